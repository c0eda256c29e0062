"""Tables and Figure 4 from results.csv and the metrics of the runs."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
PAPER = {"none": 38.2, "mimic": 40.2, "mgd": 39.6, "cwd": 40.7}
"""Table 8, on COCO."""
METHODS = ("none", "mimic", "mgd", "cwd")
LEAST_GAP = 3.0
"""AP that a teacher must be ahead of its student for a comparison to mean something."""

Line = dict[str, str]


def main() -> None:
    """Print the tables and draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE, help="with results.csv and metrics/")
    folder = parser.parse_args().folder
    with (folder / "results.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    zero = [line for line in lines if line["group"] == "table8"]
    tables = [
        table("bccd, equal epochs (Table 8)", zero, lambda line: line["method"], METHODS, paper=PAPER),
        table("bccd, head with towers", [line for line in lines if line["group"] == "head"], by_method, METHODS),
        table("bccd, weight of CWD (Figure 4)", weighed(lines), by_weight, ("none", "0.5", "2", "10", "cosine")),
        table("cards, equal wall time", [line for line in lines if line["group"] == "cards"], by_method, METHODS),
    ]
    text = "\n".join(part for part in tables if part)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    print(text)
    draw(weighed(lines), folder)


def by_method(line: Line) -> str:
    """Key of a line in a table of methods."""
    return line["method"]


def by_weight(line: Line) -> str:
    """Key of a line in a table of weights."""
    return line["weight"] or "none"


def weighed(lines: Iterable[Line]) -> list[Line]:
    """Students with the zero head on bccd, without a teacher and taught by CWD."""
    return [
        line for line in lines if line["data"] == "bccd" and line["towers"] == "0" and line["method"] in ("none", "cwd")
    ]


def table(
    title: str,
    lines: list[Line],
    key: Callable[[Line], str],
    order: Iterable[str],
    *,
    paper: dict[str, float] | None = None,
) -> str:
    """Mean AP, smallest and largest, and the mean gain over no teacher at equal seeds."""
    groups = {name: {line["seed"]: line for line in lines if key(line) == name} for name in order}
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        return ""
    base = groups.get("none", {})
    rows = [f"**{title}**", ""]
    rows += ["| | seeds | AP | least, most | gain | by seed | AP50 | minutes |" + (" paper |" if paper else "")]
    rows += ["|---|---|---|---|---|---|---|---|" + ("---|" if paper else "")]
    for name, group in groups.items():
        ap = [float(line["ap"]) for line in group.values()]
        gains = [float(line["ap"]) - float(base[seed]["ap"]) for seed, line in group.items() if seed in base]
        cells = [name, str(len(ap)), f"{mean(ap):.1f}", f"{min(ap):.1f}, {max(ap):.1f}"]
        shown = name != "none" and bool(gains)
        cells += [f"{mean(gains):+.1f}" if shown else "", ", ".join(f"{gain:+.1f}" for gain in gains) if shown else ""]
        cells += [f"{mean(float(line[figure]) for line in group.values()):.1f}" for figure in ("ap50", "minutes")]
        if paper:
            cells.append(f"{paper[name]}" if name == "none" else f"{paper[name]} ({paper[name] - paper['none']:+.1f})")
        rows.append(f"| {' | '.join(cells)} |")
    teacher = float(lines[0]["teacher_ap"])
    if base:
        gap = teacher - mean(float(line["ap"]) for line in base.values())
        verdict = "valid" if gap >= LEAST_GAP else f"NOT VALID: expected at least {LEAST_GAP:g}"
        rows += ["", f"Teacher: AP {teacher:.1f}, {gap:.1f} above the student alone ({verdict})."]
    return "\n".join(rows) + "\n"


def draw(lines: list[Line], folder: Path) -> None:
    """Class loss and AP over the epochs for each weight: means over seeds, and the seeds in light."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, ap_axes = figure.subplots(1, 2)
    names = {"none": "no teacher", "0.5": "weight 0.5", "2": "weight 2", "10": "weight 10", "cosine": "cosine 1 to 0.1"}
    for number, (key, label) in enumerate(names.items()):
        runs = [metrics(folder / "metrics" / f"{line['run']}.csv") for line in lines if by_weight(line) == key]
        if not runs:
            continue
        for axes, column, factor in ((loss_axes, "quality_focal", 1), (ap_axes, "ap", 100)):
            points: dict[float, list[float]] = {}
            for rows in runs:
                found = [(float(row["epoch"]), factor * float(row[column])) for row in rows if row[column]]
                axes.plot(*zip(*found, strict=True), color=f"C{number}", linewidth=0.6, alpha=0.4)
                for epoch, value in found:
                    points.setdefault(epoch, []).append(value)
            means = [(epoch, mean(values)) for epoch, values in sorted(points.items())]
            axes.plot(*zip(*means, strict=True), color=f"C{number}", label=label)
    loss_axes.set(title="classification loss (quality focal)", xlabel="epoch")
    ap_axes.set(title="AP on the validation images, %", xlabel="epoch")
    for axes in (loss_axes, ap_axes):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / "figure4.png", dpi=120)


def metrics(path: Path) -> list[Line]:
    """Rows of a run's metrics.csv."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    main()
