"""What a run leaves for people: a row per epoch, curves, and validation images with predictions beside the truth."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require
from maenas.files import make_folder, write_bytes_atomically, write_text_atomically

from .drawing import draw_detections
from .errors import TrainingError
from .images import read_image, resize
from .types import Detections

if TYPE_CHECKING:
    from .data.dataset import ImageRecord
    from .evaluate import Evaluation

LOSSES = ("loss", "quality_focal", "giou", "dfl", "distill", "distill_weight")
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
COLUMNS = (
    *("epoch", "iteration", "lr", *LOSSES),
    *("positives_per_image", "gradient_norm", "images_per_second", "seconds", *FIGURES),
)
"""Of metrics.csv; distillation is empty without a teacher, figures are empty where an epoch was not evaluated."""

SOURCE_FIGURE = re.compile("ap:.+")
"""Names of the columns that follow: the AP of each source of a union."""

SAMPLE_SCORE = 0.3
_SAMPLE_HEIGHT = 480

Row = Mapping[str, float | None]


def write_metrics(rows: Sequence[Row], path: Path) -> None:
    """All rows as CSV; the former file stays whole until the new one is complete.

    Raises:
        OutputError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (*COLUMNS, *_source_figures(rows))
    writer.writerow(columns)
    for row in rows:
        writer.writerow("" if row.get(name) is None else row[name] for name in columns)
    write_text_atomically(path, text.getvalue())


def read_metrics(path: Path, *, epochs: int) -> list[dict[str, float | None]]:
    """The rows of the first epochs; none where there is no file.

    Raises:
        TrainingError: The file is not one that `write_metrics` wrote.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))
    try:
        columns = tuple(lines[0]) if lines else ()
        own, further = columns[: len(COLUMNS)], columns[len(COLUMNS) :]
        if own != COLUMNS or not all(SOURCE_FIGURE.fullmatch(name) for name in further):
            raise ValueError
        rows = [dict(zip(columns, map(_number, line), strict=True)) for line in lines[1:]]
    except ValueError:
        raise TrainingError(f"{path}: is no metrics.csv of ours; remove it to go on without the earlier rows") from None
    return [row for row in rows if (row["epoch"] or 0) <= epochs]


def _source_figures(rows: Sequence[Row]) -> list[str]:
    """Names of the sources' figures in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if SOURCE_FIGURE.fullmatch(name)))


def _number(text: str) -> float | None:
    if not text:
        return None
    return int(text) if text.isdecimal() else float(text)


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Losses, learning rate and AP over the epochs, as PNG.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes, figure_axes = figure.subplots(1, 3)
    names = {"loss": "total", "quality_focal": "quality focal", "giou": "GIoU", "dfl": "distribution focal"}
    for name, label in names.items():
        loss_axes.plot(
            *_series(rows, name), label=label, marker=".", markersize=3, linewidth=2 if name == "loss" else 1
        )
    taught = [{**row, "weighted": _product(row, "distill", "distill_weight")} for row in rows]
    if any(row["weighted"] is not None for row in taught):
        loss_axes.plot(*_series(taught, "weighted"), label="teacher, weighted", marker=".", markersize=3, linewidth=1)
    rate_axes.plot(*_series(rows, "lr"), color="tab:gray", marker=".", markersize=3)
    for name, label in {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}.items():
        figure_axes.plot(*_series(rows, name), label=label, marker=".", markersize=4)
    for name in _source_figures(rows):
        figure_axes.plot(*_series(rows, name), label=name.replace("ap:", "AP "), linewidth=1, linestyle="--")
    for axes, title in zip((loss_axes, rate_axes, figure_axes), ("loss", "learning rate", "validation"), strict=True):
        axes.set(title=title, xlabel="epoch")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    loss_axes.legend()
    figure_axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_bytes_atomically(path, content.getvalue())


def _product(row: Row, first: str, second: str) -> float | None:
    one, other = row.get(first), row.get(second)
    return None if one is None or other is None else one * other


def _series(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    return [float(x or 0) for x, _ in points], [float(y or 0) for _, y in points]


def draw_samples(evaluation: Evaluation, path: Path, *, count: int) -> None:
    """A few images of an evaluation below each other, truth on the left and predictions on the right, as JPEG.

    Args:
        evaluation: Where images, truth and predictions come from; the same images every time.
        path: File to write; its folder is made.
        count: At most so many images.

    Raises:
        OutputError: The file cannot be written.
        InputError: An image cannot be read.
    """
    num_images = len(evaluation.dataset)
    picked = np.unique(np.linspace(0, num_images - 1, min(count, num_images)).round().astype(int))
    rows = [
        _sample(evaluation.dataset.images[i], evaluation.detections[i], evaluation.dataset.class_names) for i in picked
    ]
    width = max(row.shape[1] for row in rows)
    page = np.concatenate(
        [np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )
    pillow: Any = require("PIL.Image", extra="detector", purpose="drawing sample predictions")
    content = io.BytesIO()
    pillow.fromarray(page).save(content, format="JPEG", quality=90)
    make_folder(path.parent)
    write_bytes_atomically(path, content.getvalue())


def _sample(record: ImageRecord, found: Detections, class_names: tuple[str, ...]) -> NDArray[np.uint8]:
    image = read_image(record.path)
    size = image.shape[0], image.shape[1]
    kept = ~record.ignored
    truth = Detections(
        record.boxes[kept], np.ones(int(kept.sum()), np.float32), record.labels[kept], size, class_names=class_names
    )
    scale = min(1.0, _SAMPLE_HEIGHT / size[0])
    smaller = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    shown = resize(image, smaller)
    named = Detections(found.boxes, found.scores, found.labels, size, class_names=class_names)
    drawn = [draw_detections(shown, part.rescale(smaller)) for part in (truth, named.filter(score=SAMPLE_SCORE))]
    gap = np.full((smaller[0], 6, 3), 255, np.uint8)
    return np.concatenate([drawn[0], gap, drawn[1]], axis=1)
