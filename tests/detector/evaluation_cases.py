"""Shared by the tests of evaluation: data sets in memory and on disk, made-up detections, a predictor that sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.data.dataset import Dataset, ImageRecord
from detector.types import Detections

NAMES = ("cat", "dog", "fox")


def record(
    boxes,
    labels,
    *,
    image_id: int = 1,
    ignored=None,
    areas=None,
    path: str | Path = "nowhere.png",
    size: tuple[int, int] | None = (100, 100),
) -> ImageRecord:
    """An image with xyxy boxes."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    return ImageRecord(
        image_id=image_id,
        path=Path(path),
        size=size,
        boxes=corners,
        labels=np.array(labels, np.int64),
        ignored=np.zeros(len(corners), np.bool_) if ignored is None else np.array(ignored, np.bool_),
        areas=sides.prod(axis=1) if areas is None else np.array(areas, np.float32),
    )


def dataset(*records: ImageRecord, names=NAMES, category_ids=None) -> Dataset:
    ids = tuple(range(1, len(names) + 1)) if category_ids is None else tuple(category_ids)
    return Dataset("made up", tuple(names), tuple(records), ids)


def found(*rows, size=(100, 100)) -> Detections:
    """Detections from (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(
        table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64), size
    )


def random_case(
    rng: np.random.Generator, *, num_images: int, num_classes: int, most_boxes: int, most_found: int
) -> tuple[Dataset, list[Detections]]:
    """Boxes of every size with ignored ones, empty images, and detections near and far with many equal scores."""
    records, detections = [], []
    for number in range(num_images):
        count = int(rng.integers(0, most_boxes + 1))
        corners = rng.uniform(0, 300, (count, 2))
        sides = rng.choice([12.0, 40.0, 150.0], (count, 2)) * rng.uniform(0.7, 1.5, (count, 2))
        boxes = np.hstack([corners, corners + sides]).astype(np.float32)
        labels = rng.integers(0, num_classes, count)
        # A mask covers less than its box.
        areas = sides.prod(axis=1) * rng.uniform(0.5, 1.0, count)
        records.append(
            record(
                boxes,
                labels,
                image_id=10 * number + 3,
                ignored=rng.random(count) < 0.2,
                areas=areas,
                size=(480, 640),
            )
        )
        detections.append(_near(rng, boxes, labels, num_classes, int(rng.integers(0, most_found + 1))))
    names = tuple(f"class {label}" for label in range(num_classes))
    ids = tuple(int(value) for value in rng.permutation(100)[:num_classes] + 1)
    return dataset(*records, names=names, category_ids=ids), detections


def _near(rng: np.random.Generator, boxes: NDArray, labels: NDArray, num_classes: int, num_more: int) -> Detections:
    copies = int(rng.integers(0, 3))
    moved = np.concatenate([boxes + rng.normal(0, 5, boxes.shape) for _ in range(copies)] or [boxes[:0]])
    corners = rng.uniform(0, 300, (num_more, 2))
    more = np.hstack([corners, corners + rng.uniform(5, 120, (num_more, 2))])
    every = np.concatenate([moved, more]).astype(np.float32)
    every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
    kinds = np.concatenate([np.tile(labels, copies), rng.integers(0, num_classes, num_more)]).astype(np.int64)
    wrong = rng.random(len(kinds)) < 0.15
    kinds[wrong] = rng.integers(0, num_classes, int(wrong.sum()))
    scores = np.round(0.01 + 0.99 * rng.random(len(kinds)), 2).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return Detections(every[order], scores[order], kinds[order], (480, 640))


class Seer:
    """Finds the red, green and blue rectangles of an image, as classes 0, 1, 2, with their brightness as score.

    Args:
        names: Class names in label order.
        batch_limit: As of a static export.
        fixed_size: As of a static export.
        image_size: (height, width).
    """

    def __init__(self, names=NAMES, *, batch_limit=None, fixed_size=False, image_size=(64, 96)):
        self.class_names, self.batch_limit, self.fixed_size = tuple(names), batch_limit, fixed_size
        self.image_size = image_size
        self.batches: list[tuple[int, ...]] = []

    def detect(self, images, *, score_threshold, iou_threshold, max_detections):
        assert images.dtype == np.float32 and images.flags.c_contiguous
        self.batches.append(images.shape)
        results = []
        for image in images:
            rows = []
            for label in range(3):
                y, x = np.nonzero(image[label] > 64)
                if len(y) and (score := float(image[label].max()) / 256) > score_threshold:
                    rows.append((x.min(), y.min(), x.max() + 1, y.max() + 1, score, label))
            rows = sorted(rows, key=lambda row: -row[4])[:max_detections]
            results.append(found(*rows, size=image.shape[1:]))
        return results


def write_scenes(folder: Path, count: int = 5, *, names=NAMES, scale: int = 2) -> Dataset:
    """Images of coloured rectangles that `Seer` finds exactly, at twice its size, and their annotations in COCO's form.

    The rectangles lie on pixel borders of the smaller image, so that stretching moves no edge.
    """
    from PIL import Image

    rng = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    records, images, annotations = [], [], []
    for number in range(count):
        small = np.zeros((64, 96, 3), np.uint8)
        boxes, labels = [], []
        for label in range(1 + number % 3):
            x, y = 32 * label + int(rng.integers(0, 8)), int(rng.integers(0, 20))
            width, height = int(rng.integers(6, 20)), int(rng.integers(6, 40))
            small[y : y + height, x : x + width, label] = int(rng.integers(150, 255))
            boxes.append([scale * side for side in (x, y, x + width, y + height)])
            labels.append(label)
        path = folder / "images" / f"scene {number}.png"
        Image.fromarray(small.repeat(scale, axis=0).repeat(scale, axis=1)).save(path)
        size = (64 * scale, 96 * scale)
        records.append(record(boxes, labels, image_id=number + 11, path=path, size=size))
        images.append({"id": number + 11, "file_name": path.name, "height": size[0], "width": size[1]})
        for box, label in zip(boxes, labels, strict=True):
            sides = [box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 11,
                    "category_id": 5 * label + 2,
                    "bbox": [*box[:2], *sides],
                    "area": sides[0] * sides[1],
                    "iscrowd": 0,
                }
            )
    ids = tuple(5 * label + 2 for label in range(len(names)))
    categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return dataset(*records, names=names, category_ids=ids)
