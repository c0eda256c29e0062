"""Draw predicted against published latency, with a close-up of the T4's crowded middle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from maenas.latency.calibration_report import Calibration, TestedNetwork

TITLES = {
    "nvidia-t4": "NVIDIA T4, TensorRT FP16, batch 1",
    "intel-8163": "Intel Xeon Platinum 8163, OpenVINO, batch 1",
}
SMALL = {"DAMO-YOLO-S neck depth 4 width (64 128 256)": "S neck d4", "DAMO-YOLO-N MAE-Res backbone": "N MAE-Res"}
BAND, BLUE, ORANGE, RED, INK = "#e8eef5", "#1f5fa8", "#d9822b", "#b3261e", "#333333"
CLOSE_UP = (2.55, 4.95)
"""Milliseconds of the T4's middle panel; its networks are labelled there only."""

LABELS = {  # points right and up of the marker, and the side of the text that is fixed
    "YOLOX-L": (-2, -14, "center"),
    "YOLOv6-L": (-8, 3, "right"),
    "DAMO-YOLO-M": (-8, 3, "right"),
    "YOLOv5-M": (8, -5, "left"),
    "DAMO-YOLO-S": (10, -12, "left"),
    "S neck d4": (-8, 4, "right"),
    "YOLOX-S": (-8, 2, "right"),
    "YOLOv5-S": (-8, 2, "right"),
    "S neck d2 (128 256 512)": (9, -2, "left"),
    "S neck d3 (160 160 160)": (9, -3, "left"),
    "S queen none": (9, -12, "left"),
    "S queen both": (-8, 3, "right"),
    "S fusion Conv": (9, -5, "left"),
    "S fusion CSP": (-8, 3, "right"),
    "YOLOv8-N": (-8, 2, "right"),
    "PicoDet-S": (8, -6, "left"),
    "PicoDet-XS": (8, -8, "left"),
    "DAMO-YOLO-Ns": (0, 9, "center"),
    "NanoDet-Plus-m-1.5x": (-8, -6, "right"),
}


def draw(results: Sequence[tuple[Calibration, Sequence[TestedNetwork]]], path: Path) -> None:
    """Write the figure: both devices, and the close-up of the first.

    Args:
        results: Each device's calibration and the networks it has never seen; the T4 first.
        path: PNG file.
    """
    (t4, t4_unseen), (xeon, xeon_unseen) = results
    figure, panels = plt.subplots(1, 3, figsize=(18.5, 6.9), layout="constrained")
    _panel(panels[0], t4, t4_unseen, hidden=CLOSE_UP)
    _panel(panels[1], t4, t4_unseen, limits=CLOSE_UP)
    _panel(panels[2], xeon, xeon_unseen)
    panels[1].set_title(f"the same, close-up of {CLOSE_UP[0]:g} to {CLOSE_UP[1]:g} ms", fontsize=11)
    panels[0].indicate_inset([CLOSE_UP[0], CLOSE_UP[0], CLOSE_UP[1] - CLOSE_UP[0], CLOSE_UP[1] - CLOSE_UP[0]])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(
    axes: Axes,
    calibration: Calibration,
    unseen: Sequence[TestedNetwork],
    *,
    limits: tuple[float, float] | None = None,
    hidden: tuple[float, float] = (0.0, 0.0),
) -> None:
    """One scatter over `limits`; networks between the `hidden` bounds get no label."""
    published = [row.published_ms for row in calibration.rows]
    low, high = limits or (min(published) * 0.85, max(published) * 1.18)
    line = [low, high]
    axes.fill_between(line, [0.9 * x for x in line], [1.1 * x for x in line], color=BAND, label="within 10 %", zorder=0)
    axes.plot(line, line, color="#9aa7b5", linewidth=1, zorder=1)
    for row in calibration.rows:
        axes.plot([row.published_ms] * 2, [row.fitted_ms, row.left_out_ms], color="#9aa7b5", linewidth=1, zorder=2)
    fitted = [row.fitted_ms for row in calibration.rows]
    left_out = [row.left_out_ms for row in calibration.rows]
    axes.scatter(published, fitted, s=36, facecolors="white", edgecolors=BLUE, label="fitted", zorder=3)
    axes.scatter(published, left_out, s=32, color=ORANGE, label="predicted from the other networks", zorder=4)
    known, predicted = [test.published_ms for test in unseen], [test.predicted_ms for test in unseen]
    axes.scatter(known, predicted, s=40, marker="D", color=RED, label="in no fit, predicted once", zorder=5)
    points = [(row.model, row.published_ms, row.left_out_ms, INK) for row in calibration.rows]
    points += [(test.name, test.published_ms, test.predicted_ms, RED) for test in unseen]
    for name, x, y, color in points:
        if low < x < high and not hidden[0] < x < hidden[1]:
            short = _shortened(name)
            dx, dy, side = LABELS.get(short, (8, -3, "left"))
            axes.annotate(
                short, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=8.5, color=color, zorder=6
            )
    axes.set(xscale="log", yscale="log", xlim=line, ylim=line, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([2, 3, 4, 5, 6, 7, 8, 10] if high > 6 else [3, 3.5, 4, 4.5]))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("published latency, ms")
    axes.set_ylabel("predicted latency, ms")
    loo, lofo = calibration.loo, calibration.lofo
    axes.set_title(
        f"{TITLES[calibration.device]}\nmean error {loo.mean_abs:.1%} leaving one out, "
        f"{lofo.mean_abs:.1%} leaving a family out (n = {loo.num_rows})",
        fontsize=11,
    )
    axes.legend(loc="upper left", frameon=False, fontsize=9.5)


def _shortened(name: str) -> str:
    short = SMALL.get(name, name).replace("DAMO-YOLO-S ", "S ").replace("queen-fusion", "queen").replace("width ", "")
    return short.replace("neck depth ", "neck d").replace("upsampling", "up")
