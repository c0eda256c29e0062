"""From trained networks and their scores to a comparison: correlations, regret, intervals, and what noise allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maenas.errors import ProxyError
from maenas.lowering.backbone import lower_backbone
from maenas.lowering.costs import num_flops, num_layers, num_params
from maenas.lowering.detector import lower
from maenas.proxy_folder import Member, csv_text
from maenas.proxy_runs import RunResult
from maenas.proxy_scores import ScoreValues
from maenas.rank_statistics import (
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    NoiseCeiling,
    bootstrap,
    bootstrap_difference,
    noise_ceiling,
    regret_rows,
    rho_rows,
    tau_rows,
)

FEWEST = 3
"""Networks of a group, at least: two are always ordered perfectly, rightly or wrongly."""

POINT_COLUMNS = (
    *("group", "label", "structure", "name", "seed", "ap", "ap50", "ap75", "epochs", "iterations", "seconds"),
    *("predicted_ms", "measured_ms", "params", "flops", "layers"),
)

Results = Mapping[tuple[str, int], RunResult]
"""By digest and seed."""


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One score in one group.

    Attributes:
        name: Of the score.
        problem: Why it cannot be judged; empty if it can.
        note: What else a reader should know.
        kendall: tau-b; None where there is a problem, as for the rest.
        spearman: rho.
        regret: AP lost by its pick, between 0 and 1.
        pick: Label of the network with the highest score; several joined by + where they tie.
        less_madnas: tau-b less that of madnas on the same resamples; None for madnas itself.
    """

    name: str
    problem: str = ""
    note: str = ""
    kendall: Interval | None = None
    spearman: Interval | None = None
    regret: Interval | None = None
    pick: str = ""
    less_madnas: Interval | None = None


@dataclass(frozen=True, slots=True)
class GroupResult:
    """One group of networks.

    Attributes:
        group: `band`, `wide` or `given`.
        members: Best AP first; the first is labelled A.
        seeds: In order.
        aps: (networks, seeds) between 0 and 1.
        values: Scores by name, in the order of the members.
        scores: Judged.
        ceiling: What seed noise allows; None with one seed.
        random_regret: AP lost by a network taken blindly, on average.
        left_out: Digests without a result for every seed.
    """

    group: str
    members: tuple[Member, ...]
    seeds: tuple[int, ...]
    aps: Floats
    values: Mapping[str, Floats]
    scores: tuple[ScoreResult, ...]
    ceiling: NoiseCeiling | None
    random_regret: float
    left_out: tuple[str, ...]

    @property
    def mean_aps(self) -> Floats:
        """(networks,) averaged over seeds."""
        means: Floats = self.aps.mean(axis=1)
        return means


def label_of(place: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def judge_group(
    group: str,
    members: Sequence[Member],
    seeds: Sequence[int],
    results: Results,
    values: Sequence[ScoreValues],
    *,
    resamples: int = RESAMPLES,
) -> GroupResult:
    """Compare all scores with the APs of one group.

    Args:
        group: Its name.
        members: Its networks.
        seeds: Of their runs.
        results: Of the runs; networks that lack one are left out, and listed.
        values: Of every score for all networks.
        resamples: Of the bootstrap.

    Raises:
        ProxyError: Fewer than three networks have all results.
    """
    complete = [each for each in members if all((each.digest, seed) in results for seed in seeds)]
    if len(complete) < FEWEST:
        raise ProxyError(f"group {group} has {len(complete)} networks with results; expected at least {FEWEST}")

    def ap_row(member: Member) -> list[float]:
        return [results[member.digest, seed].ap for seed in seeds]

    complete.sort(key=lambda each: (-float(np.mean(ap_row(each))), each.digest))
    aps = np.array([ap_row(each) for each in complete])
    table = {each.name: np.array([each.values[member.digest] for member in complete]) for each in values}
    judged: list[ScoreResult] = []
    for each in values:
        reasons = {reason for digest, reason in each.reasons.items() if any(m.digest == digest for m in complete)}
        judged.append(_judge(each.name, table, aps.mean(axis=1), reasons, resamples))
    means = aps.mean(axis=1)
    return GroupResult(
        group=group,
        members=tuple(complete),
        seeds=tuple(seeds),
        aps=aps,
        values=table,
        scores=tuple(judged),
        ceiling=noise_ceiling(aps),
        random_regret=float(means.max() - means.mean()),
        left_out=tuple(each.digest for each in members if each not in complete),
    )


def problem_of(values: Floats, aps: Floats, reasons: Collection[str] = ()) -> str:
    """Why a score cannot be judged; empty if it can.

    Args:
        values: (n,) of the score.
        aps: (n,) averaged over seeds.
        reasons: What is known about missing values.
    """
    total = len(values)
    parts = []
    for what, count in (("NaN", np.isnan(values).sum()), ("infinite", np.isinf(values).sum())):
        if count:
            parts.append(f"{what} for {count} of {total}")
    if parts:
        return "not usable: " + ", ".join(parts) + (f" ({'; '.join(sorted(reasons))})" if reasons else "")
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return f"not usable: the same value, {values[0]:.6g}, for all {total}"
    if np.ptp(aps) == 0:
        return f"not usable: AP is the same, {100 * aps[0]:.2f}, for all {total}"
    return ""


def _judge(name: str, table: Mapping[str, Floats], aps: Floats, reasons: set[str], resamples: int) -> ScoreResult:
    values = table[name]
    problem = problem_of(values, aps, reasons)
    if problem:
        return ScoreResult(name, problem=problem)
    madnas = table.get("madnas")
    compared = name != "madnas" and madnas is not None and not problem_of(madnas, aps)
    before = list(table)[: list(table).index(name)]
    equals = [other for other in before if np.allclose(table[other], values, rtol=1e-12, atol=0.0)]
    kendall = bootstrap(values, aps, tau_rows, resamples=resamples)
    notes = [f"equal to {equals[0]}"] if equals else []
    if kendall.degenerate > 0:
        notes.append(f"{100 * kendall.degenerate:.1f} % of resamples left out (constant)")
    return ScoreResult(
        name=name,
        note="; ".join(notes),
        kendall=kendall,
        spearman=bootstrap(values, aps, rho_rows, resamples=resamples),
        regret=bootstrap(values, aps, regret_rows, resamples=resamples),
        pick="+".join(label_of(int(place)) for place in np.flatnonzero(values == values.max())),
        less_madnas=bootstrap_difference(values, table["madnas"], aps, resamples=resamples) if compared else None,
    )


def points_csv(
    members: Sequence[Member],
    seeds: Sequence[int],
    results: Results,
    values: Sequence[ScoreValues],
    groups: Sequence[GroupResult],
) -> str:
    """A line per network and seed, with its figures and scores; what is not there yet is empty.

    `params`, `flops` are the detector's, the scores of that name (`score params`) the backbone's.
    """
    labels = {
        (group.group, member.digest): label_of(place) for group in groups for place, member in enumerate(group.members)
    }
    rows = []
    for member in members:
        ops = lower(member.structure)
        costs = (
            int(num_params(ops)),
            int(num_flops(ops)),
            int(num_layers(lower_backbone(member.structure.backbone, member.structure.image_size))),
        )
        scores = [repr(each.values[member.digest]) for each in values]
        for seed in seeds:
            result = results.get((member.digest, seed))
            reached = (
                ("",) * 6
                if result is None
                else (
                    *(f"{value:.6f}" for value in (result.ap, result.ap50, result.ap75)),
                    *(result.epochs, result.iterations, f"{result.seconds:.1f}"),
                )
            )
            latencies = ("" if ms is None else f"{ms:.6g}" for ms in (member.predicted_ms, member.measured_ms))
            label = labels.get((member.group, member.digest), "")
            rows.append(
                [member.group, label, member.digest, member.structure.name, seed, *reached, *latencies, *costs, *scores]
            )
    return csv_text([*POINT_COLUMNS, *(f"score {each.name}" for each in values)], rows)


def report_record(
    question: Mapping[str, Any], groups: Sequence[GroupResult], failures: Mapping[str, str]
) -> dict[str, Any]:
    """Everything as plain values for JSON; numbers that do not exist are null."""
    record = {
        "question": dict(question),
        "interval": f"{100 * LEVEL:g} % percentile bootstrap over networks, {RESAMPLES} resamples, seeds averaged",
        "failures": dict(failures),
        "groups": [_group_record(group) for group in groups],
    }
    plain: dict[str, Any] = _without_nan(record)
    return plain


def _group_record(group: GroupResult) -> dict[str, Any]:
    means = group.mean_aps
    return {
        "group": group.group,
        "seeds": list(group.seeds),
        "networks": [
            {
                "label": label_of(place),
                "structure": member.digest,
                "ap": float(means[place]),
                "ap_by_seed": group.aps[place].tolist(),
                "predicted_ms": member.predicted_ms,
                "measured_ms": member.measured_ms,
                "scores": {name: float(values[place]) for name, values in group.values.items()},
            }
            for place, member in enumerate(group.members)
        ],
        "left_out": list(group.left_out),
        "best_ap": float(means.max()),
        "random_regret": group.random_regret,
        "noise_ceiling": None if group.ceiling is None else asdict(group.ceiling),
        "scores": [asdict(score) for score in group.scores],
    }


def _without_nan(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def group_sizes(members: Sequence[Member]) -> dict[str, int]:
    """Networks by group.

    Raises:
        ProxyError: A group has fewer than three, or a network twice.
    """
    for (group, digest), count in Counter((each.group, each.digest) for each in members).items():
        if count > 1:
            raise ProxyError(f"group {group} has structure {digest} {count} times; expected different structures")
    sizes = dict(Counter(each.group for each in members))
    for group, size in sizes.items():
        if size < FEWEST:
            raise ProxyError(f"group {group} has {size} structures; expected at least {FEWEST}")
    return sizes
