"""Counts and sizes of one split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .dataset import Dataset

SMALL, MEDIUM = 32.0**2, 96.0**2
"""COCO's limits: an object is small below 32x32 square pixels of its original image, large from 96x96."""
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """One split; ignored boxes count in `ignored` and nowhere else.

    Attributes:
        name: Of the split's annotations.
        images: All images.
        empty: Images without any box.
        boxes: Boxes that are trained on or looked for.
        ignored: Crowd and difficult ones.
        boxes_per_class: In label order.
        images_per_class: Images with at least one box of the class.
        small: Boxes with less than 32x32 square pixels.
        medium: Boxes in between.
        large: Boxes with at least 96x96 square pixels.
        relative_size: 5 %, 50 % and 95 % quantiles of sqrt(box area / image area) where the image's size is known;
            empty without boxes.
        most_boxes: In one image.
    """

    name: str
    images: int
    empty: int
    boxes: int
    ignored: int
    boxes_per_class: tuple[int, ...]
    images_per_class: tuple[int, ...]
    small: int
    medium: int
    large: int
    relative_size: tuple[float, ...]
    most_boxes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def describe_split(data: Dataset) -> SplitStatistics:
    """Count."""
    num_classes = len(data.class_names)
    boxes_per_class, images_per_class = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    areas, shares = [np.zeros(0)], [np.zeros(0)]
    for record in data.images:
        counted = ~record.ignored
        found = np.bincount(record.labels[counted], minlength=num_classes)
        boxes_per_class += found
        images_per_class += found > 0
        sides = record.boxes[counted, 2:].astype(np.float64) - record.boxes[counted, :2]
        areas.append(record.areas[counted].astype(np.float64))
        if record.size is not None:
            shares.append(np.sqrt(sides[:, 0] * sides[:, 1] / (record.size[0] * record.size[1])))
    area, share = np.concatenate(areas), np.concatenate(shares)
    return SplitStatistics(
        name=data.name,
        images=len(data),
        empty=sum(not len(record.labels) for record in data.images),
        boxes=len(area),
        ignored=sum(int(record.ignored.sum()) for record in data.images),
        boxes_per_class=tuple(boxes_per_class.tolist()),
        images_per_class=tuple(images_per_class.tolist()),
        small=int((area < SMALL).sum()),
        medium=int(((area >= SMALL) & (area < MEDIUM)).sum()),
        large=int((area >= MEDIUM).sum()),
        relative_size=tuple(np.quantile(share, _QUANTILES).round(4).tolist()) if len(share) else (),
        most_boxes=max((int((~record.ignored).sum()) for record in data.images), default=0),
    )
