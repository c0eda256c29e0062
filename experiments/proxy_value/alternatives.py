"""Does another separable objective than the shipped score predict AP better at equal latency, honestly judged?

All candidates are sums over stages, so the exact solver could maximise any of them. The best of many looks good by
chance; so the choice is also made leaving each network out, and on one data set for the other.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.lowering.costs import num_flops, num_params
from maenas.lowering.op import Real
from maenas.proxy_folder import ProxyFolder
from maenas.rank_statistics import Interval, bootstrap, bootstrap_difference, interval_of, kendall_tau, tau_rows
from maenas.scores import MADNAS_WEIGHTS, Score, StageView, log_deviation, madnas

Floats = NDArray[np.float64]
Term = Callable[[StageView], Real]


def _width(view: StageView) -> Real:
    return np.log(view.out_channels)


def _depth_penalty(view: StageView) -> Real:
    return -float(view.depth**2)


def _growth_penalty(view: StageView) -> Real:
    return -(np.log(view.out_channels / (2.0 * view.in_channels)) ** 2) if view.index else 0.0


def _log_params(view: StageView) -> Real:
    return np.log(np.float64(1.0) * num_params(view.ops))


def _log_flops(view: StageView) -> Real:
    return np.log(np.float64(1.0) * num_flops(view.ops))


def _mix(*parts: tuple[float, Term]) -> Term:
    return lambda view: sum(weight * term(view) for weight, term in parts)


def _entropy_per_layer(view: StageView) -> Real:
    """Mean ln-deviation of a convolution: width without depth."""
    layers = sum(op.count for op in view.ops if op.main_path)
    return log_deviation(view.ops) / np.maximum(layers, 1)


ENTROPY = madnas(MADNAS_WEIGHTS)
CANDIDATES: dict[str, Term] = {
    "madnas": ENTROPY,
    "weights 0 0 1 1 6": madnas((0.0, 0.0, 1.0, 1.0, 6.0)),
    "weights 0 0 0 0 1": madnas((0.0, 0.0, 0.0, 0.0, 1.0)),
    "weights 0 0 1 1 1": madnas((0.0, 0.0, 1.0, 1.0, 1.0)),
    "weights 0 0 4 2 1": madnas((0.0, 0.0, 4.0, 2.0, 1.0)),
    "weights 1 1 1 1 1": madnas((1.0, 1.0, 1.0, 1.0, 1.0)),
    **{f"madnas + {weight:g} width": _mix((1.0, ENTROPY), (weight, _width)) for weight in (20.0, 50.0, 100.0, 200.0)},
    **{
        f"madnas + {weight:g} depth penalty": _mix((1.0, ENTROPY), (weight, _depth_penalty))
        for weight in (5.0, 15.0, 30.0)
    },
    "madnas + 50 growth penalty": _mix((1.0, ENTROPY), (50.0, _growth_penalty)),
    "entropy per layer": _entropy_per_layer,
    "sum of ln width": _width,
    "sum of ln params": _log_params,
    "sum of ln FLOPs": _log_flops,
    "params": lambda view: np.float64(1.0) * num_params(view.ops),
    "flops": lambda view: np.float64(1.0) * num_flops(view.ops),
}
"""By name; the first is the shipped score."""


@dataclass(frozen=True)
class GroupData:
    """Networks of one group on one data set.

    Attributes:
        digests: In order.
        values: (candidates, networks).
        aps: (networks,) averaged over seeds.
    """

    digests: tuple[str, ...]
    values: Floats
    aps: Floats


def group_data(folder: Path, group: str) -> GroupData:
    """From a finished campaign."""
    with (folder / "points.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["group"] == group and row["ap"]]
    aps: dict[str, list[float]] = {}
    for row in rows:
        aps.setdefault(row["structure"], []).append(float(row["ap"]))
    members = ProxyFolder(folder).load_members() or []
    structures = {each.digest: each.structure for each in members}
    values = [
        # To 12 digits: equal values must tie, whatever the order of summation.
        [float(f"{Score(name, stage_score=term)(structures[digest]):.12g}") for digest in aps]
        for name, term in CANDIDATES.items()
    ]
    return GroupData(tuple(aps), np.array(values), np.array([np.mean(each) for each in aps.values()]))


def pooled(parts: Sequence[GroupData]) -> GroupData:
    """The same networks on all data sets together: their APs in standard deviations, averaged."""
    standard = [(part.aps - part.aps.mean()) / part.aps.std() for part in parts]
    return GroupData(parts[0].digests, parts[0].values, np.mean(standard, axis=0))


def best_row(values: Floats, aps: Floats) -> int:
    """The candidate of the highest tau-b; the first of equally good ones."""
    taus = tau_rows(values, np.tile(aps, (len(values), 1)))
    return int(np.argmax(np.where(np.isnan(taus), -2.0, taus)))


def left_out_agreement(values: Floats, aps: Floats) -> Floats:
    """(networks, networks): how each network's pairs agree, judged by the candidate that is best *without* it.

    1 where score and AP order a pair alike, -1 where not, 0 at a tie, NaN for a network with itself. The mean is a
    tau-a of a choice that has not seen the network it is judged by.
    """
    found = np.full((len(aps), len(aps)), np.nan)
    for left in range(len(aps)):
        others = np.arange(len(aps)) != left
        chosen = values[best_row(values[:, others], aps[others])]
        found[left, others] = np.sign(chosen[left] - chosen[others]) * np.sign(aps[left] - aps[others])
    return found


def mean_agreement(agreement: Floats, *, resamples: int, seed: int) -> list[float | None]:
    """Mean over pairs, its interval over networks: both sides of every pair are drawn, the choices stay."""
    places = np.random.default_rng(seed).integers(0, len(agreement), (resamples, len(agreement)))
    draws = [np.nanmean(agreement[np.ix_(row, row)]) if len(set(row)) > 1 else np.nan for row in places]
    return _ends(interval_of(float(np.nanmean(agreement)), np.array(draws)))


def judge(data: GroupData, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """All candidates of one group, and the honest value of having chosen among them."""
    names = list(CANDIDATES)
    rows = []
    for name, values in zip(names, data.values, strict=True):
        tau = bootstrap(values, data.aps, tau_rows, resamples=resamples)
        less = bootstrap_difference(values, data.values[0], data.aps, resamples=resamples)
        rows.append({"candidate": name, "tau": _ends(tau), "less_madnas": _ends(less)})
    parts = {
        "chosen": left_out_agreement(data.values, data.aps),
        "madnas": left_out_agreement(data.values[:1], data.aps),
    }
    parts["gain"] = parts["chosen"] - parts["madnas"]
    return {
        "networks": len(data.aps),
        "candidates": rows,
        "best": names[best_row(data.values, data.aps)],
        "left_out": {name: mean_agreement(part, resamples=resamples, seed=seed) for name, part in parts.items()},
    }


def carried_over(first: GroupData, second: GroupData) -> dict[str, Any]:
    """The best candidate of one data set, judged on the other (the same networks, other APs)."""
    chosen = best_row(first.values, first.aps)
    tau = bootstrap(second.values[chosen], second.aps, tau_rows)
    less = bootstrap_difference(second.values[chosen], second.values[0], second.aps)
    return {"candidate": list(CANDIDATES)[chosen], "tau": _ends(tau), "less_madnas": _ends(less)}


def write_alternatives(folders: Mapping[str, Path], out: Path, *, groups: Sequence[str] = ("band", "wide")) -> None:
    """alternatives.json and alternatives.csv of finished campaigns."""
    report: dict[str, Any] = {}
    lines = [["data", "group", "candidate", "tau", "low", "high", "less_madnas", "less_low", "less_high"]]
    for group in groups:
        found = {data: group_data(folder, group) for data, folder in folders.items()}
        together = {}
        if len(found) > 1 and len({one.digests for one in found.values()}) == 1:
            together["+".join(found)] = pooled(list(found.values()))
        for data, one in {**found, **together}.items():
            judged = judge(one)
            report[f"{data} {group}"] = judged
            for row in judged["candidates"]:
                numbers = [*row["tau"], *row["less_madnas"]]
                lines.append([data, group, row["candidate"], *("" if v is None else f"{v:.3f}" for v in numbers)])
        for first, one in found.items():
            for second, other in found.items():
                if first != second and one.digests == other.digests:
                    report[f"{group}: chosen on {first}, judged on {second}"] = carried_over(one, other)
                    report[f"{group}: tau of the APs of {first} and {second}"] = kendall_tau(one.aps, other.aps)
    (out / "alternatives.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    with (out / "alternatives.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(lines)


def _ends(interval: Interval) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 4) for v in (interval.value, interval.low, interval.high)]


def main() -> None:
    """Judge campaigns that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="that of run.py")
    parser.add_argument("--sets", nargs="+", default=["bccd", "cards"])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    arguments = parser.parse_args()
    write_alternatives({data: arguments.work / data for data in arguments.sets}, arguments.out)


if __name__ == "__main__":
    main()
