"""Validation images with the truth and with what the detector finds, for a journey's report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from maenas.errors import reason_of
from maenas.journey import JourneyError

NUM_SAMPLES = 6
SIDE = 720
"""Longest side of a drawn image, in pixels."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image twice.

    Attributes:
        name: File name of the image.
        truth: JPEG with the annotations.
        found: JPEG with the detections.
        num_truth: Annotated boxes.
        num_found: Detections drawn.
    """

    name: str
    truth: bytes
    found: bytes
    num_truth: int
    num_found: int


def draw_samples(
    dataset: Any,  # noqa: ANN401  of the package `detector`
    evaluation: Path,
    *,
    score_threshold: float,
    bridge: Callable[[str], ModuleType],
) -> list[Sample]:
    """Images spread evenly over a split, so that they are typical rather than chosen.

    Args:
        dataset: A `detector.data.dataset.Dataset`, as it was evaluated.
        evaluation: Folder of `maenas eval` with its detections.
        score_threshold: Draw detections above it.
        bridge: To the package `detector`.

    Raises:
        MaenasError: An image or the detections cannot be read.
    """
    path = evaluation / "detections.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JourneyError(
            f"{path}: cannot be read ({reason_of(error)}); expected what maenas eval wrote".replace("\n", " ")
        ) from error
    count = min(NUM_SAMPLES, len(dataset))
    records = [dataset.images[(2 * place + 1) * len(dataset) // (2 * count)] for place in range(count)]
    by_image: dict[int, list[Mapping[str, Any]]] = {record.image_id: [] for record in records}
    for entry in entries:
        if entry["image_id"] in by_image and entry["score"] > score_threshold:
            by_image[entry["image_id"]].append(entry)
    return [_sample(record, by_image[record.image_id], dataset, bridge) for record in records]


def _sample(
    record: Any,  # noqa: ANN401
    entries: list[Mapping[str, Any]],
    dataset: Any,  # noqa: ANN401
    bridge: Callable[[str], ModuleType],
) -> Sample:
    import numpy as np

    pixels = bridge("images").read_image(record.path)
    size = pixels.shape[:2]
    kind = bridge("types").Detections
    marked = ~record.ignored
    truth = kind(
        boxes=record.boxes[marked],
        scores=np.ones(int(marked.sum()), np.float32),
        labels=record.labels[marked],
        image_size=size,
        class_names=dataset.class_names,
    )
    labels = {number: label for label, number in enumerate(dataset.category_ids)}
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = kind(
        boxes=boxes,
        scores=np.array([entry["score"] for entry in entries], np.float32),
        labels=np.array([labels[entry["category_id"]] for entry in entries], np.int64),
        image_size=size,
        class_names=dataset.class_names,
    )
    draw = bridge("drawing").draw_detections
    return Sample(
        name=record.path.name,
        truth=_jpeg(draw(pixels, truth, with_scores=False)),
        found=_jpeg(draw(pixels, found)),
        num_truth=len(truth.scores),
        num_found=len(entries),
    )


def _jpeg(pixels: Any) -> bytes:  # noqa: ANN401
    from maenas.extras import require

    image = require("PIL.Image", extra="detector", purpose="drawing samples").fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=84)
    return buffer.getvalue()
