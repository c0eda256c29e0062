"""Small made-up data sets whose pictures show what is annotated: each class is a rectangle of one colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from detector.data.dataset import Dataset, ImageRecord, Sample

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250)], np.uint8)
CLASS_NAMES = ("red", "green", "blue")
BACKGROUND = 114  # as around a mosaic, so that no edge is drawn there


def painted(size, boxes, labels, background=BACKGROUND):
    """An image of (height, width) with a rectangle per (x1, y1, x2, y2) in whole pixels."""
    image = np.full((*size, 3), background, np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        image[int(y1) : int(y2), int(x1) : int(x2)] = COLOURS[label]
    return image


def sample_of(size, boxes, labels, **fields):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.array(labels, np.int64)
    return Sample(painted(size, boxes, labels), boxes, labels, **fields)


def seen_box(image, label):
    """The smallest box around the pixels that have mostly a class's colour."""
    distance = np.abs(image.astype(int) - COLOURS[label]).sum(axis=2)
    rows, columns = np.nonzero(distance < 100)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def record_of(path, size, boxes, labels, *, image_id=0, ignored=None, polygons=None, stated=True):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return ImageRecord(
        image_id=image_id,
        path=Path(path),
        size=tuple(size) if stated else None,
        boxes=boxes,
        labels=np.array(labels, np.int64),
        ignored=np.zeros(len(boxes), bool) if ignored is None else np.array(ignored, bool),
        areas=sides[:, 0] * sides[:, 1],
        polygons=polygons,
    )


def dataset_of(records):
    return Dataset("made/train", CLASS_NAMES, tuple(records), tuple(range(len(CLASS_NAMES))))


def rectangles(folder, count, *, seed=0, empty=()):
    """A data set of `count` PNG images of several sizes with one to three rectangles that do not touch each other."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        height, width = (int(side) for side in rng.integers(60, 140, 2))
        boxes, labels = [], []
        for place in range(0 if index in empty else int(rng.integers(1, 4))):
            left = 4 + place * (width // 3)
            x1, y1 = left + int(rng.integers(4)), int(rng.integers(4, height // 2))
            boxes.append(
                (x1, y1, x1 + int(rng.integers(12, width // 3 - 6)), y1 + int(rng.integers(14, height // 2 - 4)))
            )
            labels.append(int(rng.integers(3)))
        path = folder / f"{index:03d}.png"
        Image.fromarray(painted((height, width), boxes, labels)).save(path)
        records.append(record_of(path, (height, width), boxes, labels, image_id=index))
    return dataset_of(records)
