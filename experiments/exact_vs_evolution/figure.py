"""Draw the score gap to the certified optimum against CPU seconds and against candidates.

`python experiments/exact_vs_evolution/figure.py` redraws gap.png from result.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

HERE = Path(__file__).parent
FLOOR = 0.01
"""Gaps up to this are drawn here: a logarithmic axis has no 0."""

COLOURS = {"evolution": "#1f5fa8", "reference v1": "#d9822b", "reference v2": "#b3261e"}
LABELS = {
    "evolution": "our vectorised evolution",
    "reference v1": "reference's rules, v1 (last block mutable)",
    "reference v2": "reference's rules, v2 (last block frozen)",
}
GREEN, GREY = "#1a7f45", "#777777"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the figure.

    Args:
        report: Content of result.json.
        path: PNG file.
    """
    cases = report["cases"]
    figure, panels = plt.subplots(2, len(cases), figsize=(4.6 * len(cases), 8.6), sharey=True, layout="constrained")
    rate = report["cited"]["reference_tool_candidates_per_cpu_second"]
    for column, case in enumerate(cases):
        _panel(panels[0, column], case, "cpu_seconds", rate)
        _panel(panels[1, column], case, "candidates", rate)
        panels[0, column].set_title(f"{case['title']}\noptimum {case['exact']['score']:.3f}", fontsize=11)
        panels[0, column].set_xlabel("CPU seconds, one core")
        panels[1, column].set_xlabel("candidates")
    for row in panels:
        row[0].set_ylabel("score gap to the certified optimum")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.suptitle(
        "Lines: median over seeds; bands: all seeds; dotted: what freezing the last block costs at best", fontsize=11
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Axes, case: dict[str, Any], axis: str, cited_rate: Sequence[float]) -> None:
    """Median and range over the seeds of every method, along one axis."""
    against_time = axis == "cpu_seconds"
    optimum = case["exact"]["score"]
    axes.set(xscale="log", yscale="log", xlim=(0.005, 1e5) if against_time else (4, 1e6), ylim=(FLOOR * 0.6, 1500))
    for name, runs in case["runs"].items():
        at, low, middle, high = _curves(runs, axis, optimum)
        axes.fill_between(at, low, high, step="post", color=COLOURS[name], alpha=0.18, linewidth=0)
        axes.step(at, middle, where="post", color=COLOURS[name], linewidth=1.8, label=LABELS[name])
    if against_time:
        _cited(axes, case, cited_rate, optimum)
    frozen = optimum - case["exact_with_last_block_frozen"]["score"]
    axes.axhline(
        frozen, color=COLOURS["reference v2"], linewidth=0.9, linestyle=":", label="best with the last block frozen"
    )
    place = case["exact"]["cpu_seconds"] if against_time else case["exact"]["labels"] + case["exact"]["pruned"]
    axes.plot(
        [place], [FLOOR], marker="*", markersize=16, color=GREEN, linestyle="none", zorder=6, clip_on=False,
        label="exact solver, certified (lower row: partial paths it looked at)",
    )  # fmt: skip
    axes.yaxis.set_major_locator(FixedLocator([FLOOR, 0.1, 1, 10, 100, 1000]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == FLOOR else f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25, linewidth=0.6)


def _curves(
    runs: Sequence[dict[str, Any]], axis: str, optimum: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, and lowest, median and highest gap over the runs there."""
    at = np.unique(np.concatenate([run[f"trace_{axis}"] for run in runs]))
    at = at[at > 0]
    at = at[at >= max(min(value for value in run[f"trace_{axis}"] if value > 0) for run in runs)]
    gaps = []
    for run in runs:
        place = np.searchsorted(run[f"trace_{axis}"], at, side="right") - 1
        gaps.append(np.maximum(optimum - np.array(run["trace_score"])[place], FLOOR))
    return at, np.min(gaps, axis=0), np.median(gaps, axis=0), np.max(gaps, axis=0)


def _cited(axes: Axes, case: dict[str, Any], rate: Sequence[float], optimum: float) -> None:
    """The v2 curve at the rate cited for the tool itself: the same candidates, stretched in time."""
    at, _, middle, _ = _curves(case["runs"]["reference v2"], "candidates", optimum)
    label = f"v2 at the tool's own {rate[0]}-{rate[1]} candidates / CPU s (cited, not measured here)"
    for edge in rate:
        axes.step(at / edge, middle, where="post", color=GREY, linewidth=1.1, linestyle="--", label=label)
        label = ""


def main() -> None:
    """Redraw from the committed result."""
    draw(json.loads((HERE / "result.json").read_text(encoding="utf-8")), HERE / "gap.png")


if __name__ == "__main__":
    main()
