"""What each objective would have chosen: its exact optimum at one latency, trained alike. May be stopped, goes on."""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from alternatives import CANDIDATES
from numpy.typing import NDArray
from run import EPOCHS, SHORT, VARIANT, maenas, measured_table, space_here
from scipy import stats

from maenas.budgets import Budget
from maenas.cli.detector import bundled, exporter
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.lowering.costs import num_flops, num_params
from maenas.lowering.detector import lower
from maenas.profiling.device import LocalDevice
from maenas.profiling.measurement import Settings
from maenas.scores import Score
from maenas.search import search
from maenas.structure import Structure, load_structure, save_structure

HERE = Path(__file__).resolve().parent
OBJECTIVES = ("madnas", "params", "flops", "sum of ln params", "entropy per layer")
"""The shipped score, two counts, and the objectives that looked best in the band and over the wide range."""
LONGER = 2
"""Times the epochs of the other campaigns."""


def main() -> None:
    """Solve, time, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with bccd/ and cards/")
    parser.add_argument("--work", type=Path, required=True, help="that of run.py, or another")
    parser.add_argument("--cores", type=int, nargs="+", required=True, help="one training at a time on each")
    parser.add_argument("--device", help="a latency table of that space; measured first if not given")
    parser.add_argument("--budget-ms", type=float, required=True, help="predicted latency of all")
    parser.add_argument("--sets", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "optima")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, set(arguments.cores))
    os.environ["OMP_NUM_THREADS"] = "1"
    table = arguments.device or measured_table(arguments.work, arguments.cores[0])
    claim(arguments.work / "optima", {"table": load_table(table).table_hash, "budget_ms": arguments.budget_ms})
    files = {name: arguments.work / "optima" / "structures" / f"{name.replace(' ', '-')}.json" for name in OBJECTIVES}
    for name, path in files.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_structure(optimum(name, table, arguments.budget_ms), path)
    structures = {name: load_structure(path) for name, path in files.items()}
    measured = measured_ms(list(structures.values()), table, arguments.work / "optima", core=arguments.cores[0])
    for data in arguments.sets:
        words = [*map(str, files.values()), "--data", str(arguments.data / data), "--device", table]
        words += ["--recipe", "small-data", "--epochs", str(LONGER * EPOCHS[data]), "--set", *SHORT]
        words += ["--seeds", *map(str, arguments.seeds), "--workers", "0", "--train-device", "cpu"]
        words += ["--cores", *map(str, arguments.cores), "--out", str(arguments.work / "optima" / data)]
        maenas("eval-proxy", *words)
    aps = {data: aps_of(arguments.work / "optima" / data, structures) for data in arguments.sets}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_table(structures, measured, table, aps, arguments.out / "optima.csv")
    draw(aps, arguments.out / "optima.png")


def claim(folder: Path, question: dict[str, object]) -> None:
    """Refuse a folder that holds the networks of another question."""
    file = folder / "optima.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(question) + "\n", encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != question:
        raise SystemExit(f"{folder} holds the optima of another table or budget; expected another --work")


def optimum(name: str, table: str, budget_ms: float) -> Structure:
    """The network of the highest value at a predicted latency, exactly."""
    score = Score(name, stage_score=CANDIDATES[name])
    budgets = [Budget("latency_ms", budget_ms)]
    return search(space_here(), budgets=budgets, device=load_table(table), variant=VARIANT, score=score).best.structure


def measured_ms(structures: list[Structure], table: str, folder: Path, *, core: int) -> list[float]:
    """Latencies on one core, in turns; kept, so that going on does not time again."""
    kept = folder / "measured.json"
    if not kept.exists():
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        device = LocalDevice(
            table=load_table(table), folder=folder / "timing", export=exporter(seed=0), bridge=bundled,
            settings=Settings(min_seconds=1.0),
        )  # fmt: skip
        found = [each.ms_p25 for each in device.time(structures, label="optima")]
        os.sched_setaffinity(0, everywhere)
        kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return [float(value) for value in json.loads(kept.read_text(encoding="utf-8"))]


def aps_of(folder: Path, structures: dict[str, Structure]) -> NDArray[np.float64]:
    """(objectives, seeds) in points of AP."""
    with (folder / "points.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return np.array(
        [
            [100 * float(row["ap"]) for row in rows if row["structure"] == each.digest and row["ap"]]
            for each in structures.values()
        ]
    )


def difference(aps: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of the differences between runs of one seed, and its 95 % t interval."""
    pairs = aps - base
    half = stats.t.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / np.sqrt(len(pairs))
    return float(pairs.mean()), float(pairs.mean() - half), float(pairs.mean() + half)


def write_table(
    structures: dict[str, Structure],
    measured: list[float],
    table: str,
    aps: dict[str, NDArray[np.float64]],
    path: Path,
) -> None:
    """A line per objective: its network, its costs, its APs, and how far they are from the first one's."""
    columns = ["objective", "structure", "depths", "params_M", "gflops", "predicted_ms", "measured_ms"]
    both = {**aps, "all": np.concatenate([*aps.values()], axis=1)}
    columns += [f"{data} {what}" for data in both for what in ("ap", "less_madnas", "low", "high")]
    columns += [f"{data} seed {seed}" for data, values in aps.items() for seed in range(values.shape[1])]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for place, (name, structure) in enumerate(structures.items()):
            ops = lower(structure)
            ms = predict(ops, load_table(table)).latency_ms
            depths = " ".join(str(stage.depth) for stage in structure.backbone.stages)
            row = [name, structure.digest, depths, f"{num_params(ops) / 1e6:.3f}", f"{num_flops(ops) / 1e9:.3f}"]
            row += [f"{ms:.3f}", f"{measured[place]:.3f}"]
            for values in both.values():
                gain = ["", "", ""] if place == 0 else [f"{v:.2f}" for v in difference(values[place], values[0])]
                row += [f"{values[place].mean():.2f}", *gain]
            row += [f"{ap:.2f}" for values in aps.values() for ap in values[place]]
            writer.writerow(row)


def draw(aps: dict[str, NDArray[np.float64]], path: Path) -> None:
    """Every run, and the mean of each objective."""
    figure, axes = plt.subplots(1, len(aps), figsize=(4.6 * len(aps), 3.0), squeeze=False, layout="constrained")
    for axis, (data, values) in zip(axes[0], aps.items(), strict=True):
        for place, runs in enumerate(values):
            axis.plot(runs, [place] * len(runs), "o", color="#0072b2", alpha=0.55, mec="none", ms=6)
            axis.plot([runs.mean()] * 2, [place - 0.25, place + 0.25], color="#d55e00", lw=2.2)
        axis.set_yticks(range(len(OBJECTIVES)), OBJECTIVES if axis is axes[0][0] else [""] * len(OBJECTIVES))
        axis.invert_yaxis()
        axis.set_xlabel(f"AP on {data} (points: seeds, line: mean)")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
