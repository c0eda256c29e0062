"""Pictures of an evaluation as PNG: curves, confusions, bars, and the images that went worst; without torch."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

from .coco_metrics import SIZES
from .data.dataset import ImageRecord
from .error_breakdown import KINDS
from .evaluation_report import Analysis, precision_curves, worst_images
from .images import read_image, resize
from .types import Detections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that are told apart by most eyes.
_COLOURS = ("#1f5fa8", "#d1651a", "#2f8f5b", "#8d4fa3", "#b3262e", "#6b5a2b", "#2aa3b8", "#7a7a7a")
_RIGHT, _WRONG, _TRUE, _MISSED = "#35c46a", "#ff3b30", "#4aa3ff", "#ffb020"
_NAMED_CURVES = 8
_MOST_CLASSES = 30
_WIDEST = 640


def pr_curves_png(analysis: Analysis) -> bytes:
    """Precision over recall: every class at IoU 0.50, and the mean over classes at 0.50, 0.75 and 0.90."""
    figure = _figure(9.5, 4.4)
    left, right = figure.subplots(1, 2)
    recalls = np.linspace(0, 1, 101)
    curves = precision_curves(analysis.evaluation)
    named = len(curves) <= _NAMED_CURVES
    for place, (name, precision) in enumerate(curves.items()):
        colour = _COLOURS[place % len(_COLOURS)] if named else "#9aa7b5"
        label = f"{_text(name)} {100 * precision.mean():.1f}" if named else None
        left.plot(recalls, precision, color=colour, lw=1.6 if named else 0.7, label=label)
    if not named:
        mean = np.mean(list(curves.values()), axis=0)
        left.plot([], [], color="#9aa7b5", lw=0.7, label=f"{len(curves)} classes")
        left.plot(recalls, mean, color=_COLOURS[0], lw=2.2, label=f"mean {100 * mean.mean():.1f}")
    left.set_title("classes at IoU 0.50 (AP50)", fontsize=10)
    for place, iou in enumerate((0.5, 0.75, 0.9)):
        mean = np.mean(list(precision_curves(analysis.evaluation, iou).values()), axis=0)
        right.plot(recalls, mean, color=_COLOURS[place], lw=1.8, label=f"IoU {iou:.2f}: {100 * mean.mean():.1f}")
    right.set_title("mean over classes (AP)", fontsize=10)
    for axes in (left, right):
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
        axes.grid(alpha=0.25, lw=0.6)
        axes.legend(fontsize=8, loc="lower left", framealpha=0.85)
    return _png(figure)


def confusion_png(analysis: Analysis) -> bytes:
    """What each class was taken for, in per cent of its boxes; of many classes the 30 with most confusions."""
    confusion = analysis.confusion
    chosen = _interesting(confusion.counts)
    counts = confusion.counts[np.ix_([*chosen, -1], [*chosen, -1])].astype(float)
    names = [_text(confusion.class_names[label]) for label in chosen]
    # Rows add up to 100 %, but the last: its detections have no boxes to be a share of.
    totals = np.maximum(confusion.counts[[*chosen, -1]].sum(axis=1), 1)
    shares = counts / totals[:, None]
    side = 2.6 + 0.42 * len(names) if len(names) <= 15 else 3.2 + 0.24 * len(names)
    figure = _figure(side + 1.0, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(names) + 1)
    fontsize = 8.5 if len(names) <= 15 else 6
    axes.set_xticks(places, [*names, "nothing"], rotation=90 if len(names) > 5 else 0, fontsize=fontsize)
    axes.set_yticks(places, [*names, "no box"], fontsize=fontsize)
    axes.set(xlabel="found", ylabel="annotated")
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour,
                      fontsize=fontsize - 0.5)  # fmt: skip
    title = f"scores above {confusion.score_threshold:.2f}, IoU from {confusion.iou_threshold:.2f}"
    if len(names) < len(confusion.class_names):
        title += f"\n{len(names)} of {len(confusion.class_names)} classes"
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.046)
    return _png(figure)


def bars_png(analysis: Analysis) -> bytes:
    """AP by size of objects, AP of the classes, and what each kind of error costs."""
    metrics = analysis.evaluation.metrics
    classes = sorted((entry for entry in metrics.classes if entry.ap is not None), key=lambda entry: -(entry.ap or 0))
    shown = classes if len(classes) <= _MOST_CLASSES else classes[: _MOST_CLASSES // 2] + classes[-_MOST_CLASSES // 2 :]
    figure = _figure(12.5, max(3.8, 1.2 + 0.22 * len(shown)))
    left, middle, right = figure.subplots(1, 3)
    sizes = [f"{name}\n{count} boxes" for name, count in zip(SIZES, metrics.num_boxes, strict=True)]
    values = [metrics.ap, metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    columns = left.bar(["all", *sizes], [100 * (value or 0) for value in values], color=_COLOURS[0])
    left.bar_label(columns, ["none" if value is None else f"{100 * value:.1f}" for value in values], fontsize=8)
    left.set_title("AP by size (up to 32$^2$, up to 96$^2$, larger)", fontsize=10)
    left.set_ylim(0, 108)
    left.tick_params(labelsize=8)
    names = [f"{_text(entry.name)} ({entry.num_boxes})" for entry in shown]
    places = np.arange(len(shown))
    middle.barh(places, [100 * (entry.ap50 or 0) for entry in shown], color="#c8d6e8", label="AP50")
    middle.barh(places, [100 * (entry.ap or 0) for entry in shown], color=_COLOURS[0], label="AP", height=0.5)
    middle.set_yticks(places, names, fontsize=8 if len(shown) <= 20 else 6.5)
    middle.invert_yaxis()
    middle.margins(y=0.02)
    middle.tick_params(axis="x", labelsize=8)
    middle.set_xlim(0, 100)
    hidden = len(classes) - len(shown)
    middle.set_title("classes (boxes)" + (f", without {hidden} in the middle" if hidden else ""), fontsize=10)
    middle.legend(fontsize=8, loc="lower right", framealpha=0.85)
    costs = [100 * share.delta_ap50 for share in analysis.errors.kinds]
    columns = right.barh(list(KINDS), costs, color=_COLOURS[1])
    counts = [f" {cost:.1f}  ({share.count})" for cost, share in zip(costs, analysis.errors.kinds, strict=True)]
    right.bar_label(columns, counts, fontsize=8)
    right.set_xlim(0, 1.35 * max([*costs, 1.0]))
    right.invert_yaxis()
    right.tick_params(labelsize=8.5)
    right.set_title("AP50 that errors cost (count)", fontsize=10)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def worst_png(analysis: Analysis, *, count: int = 4) -> bytes | None:
    """The images with most errors, annotated boxes beside what was found; None where there are no errors."""
    worst, evaluation = worst_images(analysis, count), analysis.evaluation
    if not worst:
        return None
    rows = math.ceil(len(worst) / 2)
    columns = 2 * min(2, len(worst))
    sizes = [evaluation.detections[index].image_size for index, _, _ in worst]
    figure = _figure(3.9 * columns, rows * (0.3 + 3.8 * max(height / width for height, width in sizes)) + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    above = analysis.matches.above(analysis.score_threshold)
    missed = above.missed
    for place, (index, num_wrong, num_missed) in enumerate(worst):
        record, found = evaluation.dataset.images[index], evaluation.detections[index]
        of_image = above.images == index
        # `matches` orders the detections of an image by score.
        found = found.select(np.argsort(-found.scores, kind="stable")).filter(score=analysis.score_threshold)
        truth, result = panels[2 * place], panels[2 * place + 1]
        _draw_truth(truth, record, missed[above.truth_images == index], evaluation.dataset.class_names)
        right, counted = above.correct[of_image], above.counted[of_image]
        _draw_found(result, record, found.select(counted), right[counted], evaluation.dataset.class_names)
        truth.set_title(f"{_text(record.path.name)}: annotated, {num_missed} missed", fontsize=8)
        result.set_title(f"found, {num_wrong} wrong", fontsize=8)
    figure.suptitle(
        f"most errors at scores above {analysis.score_threshold:.2f}: annotated (blue; orange: missed, grey: ignored) "
        "and found (green: right, red: wrong)",
        fontsize=9,
    )
    return _png(figure)


def _draw_truth(axes: Axes, record: ImageRecord, missed: np.ndarray, names: tuple[str, ...]) -> None:
    scale = _show(axes, record)
    for box, label, ignored, lost in zip(record.boxes * scale, record.labels, record.ignored, missed, strict=True):
        colour = "#bbbbbb" if ignored else _MISSED if lost else _TRUE
        _box(axes, box, colour, names[label], dashed=bool(ignored))


def _draw_found(axes: Axes, record: ImageRecord, found: Detections, right: np.ndarray, names: tuple[str, ...]) -> None:
    scale = _show(axes, record)
    # The best on top.
    for place in reversed(range(len(found))):
        text = f"{names[found.labels[place]]} {found.scores[place]:.2f}"
        _box(axes, found.boxes[place] * scale, _RIGHT if right[place] else _WRONG, text)


def _show(axes: Axes, record: ImageRecord) -> float:
    """Show an image, small enough for the picture; returns its scale."""
    image = read_image(record.path)
    height, width = image.shape[:2]
    scale = min(1.0, _WIDEST / max(height, width))
    if scale < 1:
        image = resize(image, (max(1, round(scale * height)), max(1, round(scale * width))))
    axes.imshow(image)
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    return scale


def _box(axes: Axes, box: np.ndarray, colour: str, text: str, *, dashed: bool = False) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(value) for value in box)
    style = "--" if dashed else "-"
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.2, ls=style))
    # Above the box, or inside where the image ends.
    place = "top" if y1 < 0.04 * axes.get_ylim()[0] else "bottom"
    axes.text(max(0.0, x1), max(0.0, y1), _text(text), fontsize=5, color="black", va=place, clip_on=True,
              bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85})  # fmt: skip


def _interesting(counts: np.ndarray) -> list[int]:
    """Classes that occur; of many those with most confusions, missed boxes and wrong detections left out."""
    occurring = np.flatnonzero(counts[:-1].sum(axis=1) + counts[:, :-1].sum(axis=0))
    if len(occurring) <= _MOST_CLASSES:
        return [int(label) for label in occurring]
    mixed = counts[:-1, :-1] * (1 - np.eye(len(counts) - 1, dtype=counts.dtype))
    rank = np.lexsort((-counts[:-1].sum(axis=1), -(mixed.sum(axis=0) + mixed.sum(axis=1))))
    return sorted(int(label) for label in rank[:_MOST_CLASSES])


def _text(name: str, limit: int = 28) -> str:
    """A name as a picture can show it: no formulas, no control characters, not too long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    shown = shown if len(shown) <= limit else shown[: limit - 3] + "..."
    return shown.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Tight: labels of a picture of fixed aspect ratio would reach out of it.
    figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.1)
    return buffer.getvalue()
