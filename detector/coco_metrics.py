"""COCO's average precision and recall, computed by faster-coco-eval from our own types; without torch.

Tensor letters: C classes, T IoU thresholds (0.50, 0.55 ... 0.95), Q recalls (0.00, 0.01 ... 1.00).

Source: COCO's evaluation (Lin et al., arXiv 1405.0312, and its reference implementation pycocotools).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .data.dataset import Dataset
from .types import Detections

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
SIZES = ("small", "medium", "large")
"""Objects of up to 32 x 32 pixels of the original image, up to 96 x 96, and above."""

SMALL_AREA, MEDIUM_AREA = 32**2, 96**2
DETECTIONS_PER_CLASS = 100
"""Detections of one class in one image that count; the best ones."""


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Figures of one class; None where no box of it is there to be found.

    Attributes:
        name: Of the class.
        num_boxes: Boxes to be found; ignored ones are not counted.
        num_images: Images that hold at least one of them.
        num_detections: What was handed over, at any score.
        ap: Mean over IoU 0.50 ... 0.95.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ar100: Recall with up to 100 detections of the class per image, mean over IoU 0.50 ... 0.95.
    """

    name: str
    num_boxes: int
    num_images: int
    num_detections: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ar100: float | None


@dataclass(frozen=True, slots=True, eq=False)
class CocoMetrics:
    """COCO's twelve figures, between 0 and 1, and what they are means of; None where nothing is there to be found.

    Classes without a box to be found are left out of every mean.

    Attributes:
        ap: Average precision: mean over classes and IoU 0.50 ... 0.95.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ap_small: Of objects up to 32 x 32 pixels.
        ap_medium: Of objects up to 96 x 96 pixels.
        ap_large: Of larger ones.
        ar1: Average recall with one detection per class and image, mean over IoU 0.50 ... 0.95.
        ar10: With ten.
        ar100: With a hundred.
        ar_small: With a hundred, of objects up to 32 x 32 pixels.
        ar_medium: With a hundred, of objects up to 96 x 96 pixels.
        ar_large: With a hundred, of larger ones.
        num_images: Images measured.
        num_boxes: Boxes to be found, by size: small, medium, large.
        num_ignored: Boxes that need not be found, and detections on which are not counted.
        num_detections: What was handed over, at any score.
        classes: In label order.
        precision: (T, C, Q) float64 interpolated precision; -1 for classes without a box.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    num_images: int
    num_boxes: tuple[int, int, int]
    num_ignored: int
    num_detections: int
    classes: tuple[ClassMetrics, ...]
    precision: NDArray[np.float64]

    def figures(self) -> dict[str, float | None]:
        """The twelve figures by name."""
        return {name: getattr(self, name) for name in FIGURES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the curves."""
        return {
            **self.figures(),
            "num_images": self.num_images,
            "num_boxes": sum(self.num_boxes),
            "num_boxes_by_size": dict(zip(SIZES, self.num_boxes, strict=True)),
            "num_ignored": self.num_ignored,
            "num_detections": self.num_detections,
            "classes": [asdict(entry) for entry in self.classes],
        }


FIGURES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""Names of the twelve figures, in COCO's order."""


def coco_metrics(dataset: Dataset, detections: Sequence[Detections]) -> CocoMetrics:
    """COCO's figures of what was found in a data set.

    An ignored box counts as COCO's crowd: it need not be found, and any number of detections that lie on it, by their
    own area, are left out of the count. Sizes are those of the annotated areas (of the mask where the file has one).

    Args:
        dataset: The truth.
        detections: One entry per image of the data set, in its order: pixels of the original image, labels of the data
            set.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """
    package = require("faster_coco_eval", extra="detector", purpose="measuring average precision")
    truth = package.COCO(_truth(dataset))
    rows = [
        row
        for record, found in zip(dataset.images, detections, strict=True)
        for row in found.to_coco(record.image_id, category_ids=dataset.category_ids)
    ]
    for row in rows:
        # Boxes are measured, not outlines: an empty one spares the package making one of each box.
        row["segmentation"] = []
    judge = package.COCOeval_faster(truth, truth.loadRes(rows), iouType="bbox")
    judge.evaluate()
    judge.accumulate()
    # (T, Q, C, sizes, numbers of detections) and (T, C, sizes, numbers); categories sorted by id.
    order = np.argsort(np.argsort(dataset.category_ids))
    precision, recall = judge.eval["precision"][:, :, order], judge.eval["recall"][:, order]
    last = -1
    return CocoMetrics(
        ap=_mean(precision[:, :, :, 0, last]),
        ap50=_mean(precision[0, :, :, 0, last]),
        ap75=_mean(precision[5, :, :, 0, last]),
        ap_small=_mean(precision[:, :, :, 1, last]),
        ap_medium=_mean(precision[:, :, :, 2, last]),
        ap_large=_mean(precision[:, :, :, 3, last]),
        ar1=_mean(recall[:, :, 0, 0]),
        ar10=_mean(recall[:, :, 0, 1]),
        ar100=_mean(recall[:, :, 0, last]),
        ar_small=_mean(recall[:, :, 1, last]),
        ar_medium=_mean(recall[:, :, 2, last]),
        ar_large=_mean(recall[:, :, 3, last]),
        num_images=len(dataset),
        num_boxes=_boxes_by_size(dataset),
        num_ignored=sum(int(record.ignored.sum()) for record in dataset.images),
        num_detections=len(rows),
        classes=_classes(dataset, detections, precision[:, :, :, 0, last], recall[:, :, 0, last]),
        precision=np.ascontiguousarray(precision[:, :, :, 0, last].transpose(0, 2, 1)),
    )


def _truth(dataset: Dataset) -> dict[str, Any]:
    """A data set as COCO's annotation files are parsed."""
    annotations: list[dict[str, Any]] = []
    for record in dataset.images:
        corners = record.boxes.astype(np.float64)
        sides = corners[:, 2:] - corners[:, :2]
        columns = (np.hstack([corners[:, :2], sides]), record.labels, record.ignored, record.areas)
        for box, label, ignored, area in zip(*(column.tolist() for column in columns), strict=True):
            annotations.append(
                {
                    # From 1: to the evaluation, 0 means that nothing was matched.
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": dataset.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(ignored),
                }
            )
    return {
        "images": [{"id": record.image_id} for record in dataset.images],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name} for number, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        ],
    }


def _classes(
    dataset: Dataset, detections: Sequence[Detections], precision: NDArray[Any], recall: NDArray[Any]
) -> tuple[ClassMetrics, ...]:
    """Figures of every class from precision (T, Q, C) and recall (T, C)."""
    count = len(dataset.class_names)
    boxes, images, found = (np.zeros(count, np.int64) for _ in range(3))
    for record in dataset.images:
        in_image = np.bincount(record.labels[~record.ignored], minlength=count)
        boxes += in_image
        images += in_image > 0
    for entry in detections:
        found += np.bincount(entry.labels, minlength=count)
    return tuple(
        ClassMetrics(
            name=name,
            num_boxes=int(boxes[label]),
            num_images=int(images[label]),
            num_detections=int(found[label]),
            ap=_mean(precision[:, :, label]),
            ap50=_mean(precision[0, :, label]),
            ap75=_mean(precision[5, :, label]),
            ar100=_mean(recall[:, label]),
        )
        for label, name in enumerate(dataset.class_names)
    )


def _boxes_by_size(dataset: Dataset) -> tuple[int, int, int]:
    areas = np.concatenate([np.zeros(0), *(record.areas[~record.ignored] for record in dataset.images)])
    # COCO counts a box of exactly 32 x 32 or 96 x 96 on both sides; here it is counted once.
    small, medium = int((areas <= SMALL_AREA).sum()), int((areas <= MEDIUM_AREA).sum())
    return small, medium - small, len(areas) - medium


def _mean(values: NDArray[Any]) -> float | None:
    """Mean of the values that are there; -1 stands for nothing to be found."""
    present = values[values > -1]
    return float(present.mean()) if len(present) else None
