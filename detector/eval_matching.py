"""Which detection has found which box, at one IoU, by COCO's rules; without torch.

Tensor letters: N detections of all images, G boxes of all images, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coco_metrics import DETECTIONS_PER_CLASS
from .data.dataset import Dataset
from .types import Detections


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Detections and boxes of all images, one image after the other.

    Attributes:
        images: (N,) int64 index of each detection's image in the data set.
        labels: (N,) int64.
        scores: (N,) float32.
        truth: (N,) int64 index among the G boxes of the one that it has found; -1 for none.
        counted: (N,) bool; whether it is right or wrong. The others lie on ignored boxes, or are not among the best 100
            of their class in their image.
        truth_images: (G,) int64 index of each box's image.
        truth_labels: (G,) int64.
        truth_counted: (G,) bool; whether the box is there to be found. Ignored ones are not.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    truth: NDArray[np.int64]
    counted: NDArray[np.bool_]
    truth_images: NDArray[np.int64]
    truth_labels: NDArray[np.int64]
    truth_counted: NDArray[np.bool_]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether each detection has found a box that is there to be found."""
        return self.counted & (self.truth >= 0)

    @property
    def missed(self) -> NDArray[np.bool_]:
        """(G,) boxes that are there to be found and were not, at any score."""
        missed = self.truth_counted.copy()
        missed[self.truth[self.correct]] = False
        return missed

    def above(self, score: float) -> Matches:
        """The same with the detections strictly above a score; a better one never loses its box to a worse one."""
        keep = self.scores > score
        return Matches(
            self.images[keep],
            self.labels[keep],
            self.scores[keep],
            self.truth[keep],
            self.counted[keep],
            self.truth_images,
            self.truth_labels,
            self.truth_counted,
        )


def match(dataset: Dataset, detections: Sequence[Detections], *, iou_threshold: float = 0.5) -> Matches:
    """Match class by class: detections in order of falling score take the free box of their class they overlap most.

    Args:
        dataset: The truth.
        detections: One entry per image, in pixels of the original and with labels of the data set.
        iou_threshold: Smallest IoU of a detection with its box. Of an ignored box the share of the detection's own area
            that lies in it counts instead, and any number of detections may lie in one.
    """
    parts: list[tuple[NDArray[Any], ...]] = []
    offset = 0
    for index, (record, found) in enumerate(zip(dataset.images, detections, strict=True)):
        order = np.argsort(-found.scores, kind="stable")
        found = found.select(order)
        ious = overlaps(found.boxes, record.boxes, record.ignored)
        ious[found.labels[:, None] != record.labels] = 0
        truth, counted = _match_image(ious, record.ignored, iou_threshold)
        counted &= _rank_in_class(found.labels) < DETECTIONS_PER_CLASS
        truth[truth >= 0] += offset
        offset += len(record.labels)
        images = np.full(len(found), index)
        parts.append((images, found.labels, found.scores, truth, counted))
    images, labels, scores, partners, counts_up = (np.concatenate([part[k] for part in parts]) for k in range(5))
    counts = [len(record.labels) for record in dataset.images]
    return Matches(
        images=images,
        labels=labels,
        scores=scores,
        truth=partners,
        counted=counts_up,
        truth_images=np.repeat(np.arange(len(dataset)), counts),
        truth_labels=np.concatenate([record.labels for record in dataset.images]),
        truth_counted=~np.concatenate([record.ignored for record in dataset.images]),
    )


def overlaps(boxes: NDArray[Any], truth: NDArray[Any], ignored: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of every detection with every box; for ignored boxes the share of the detection's own area in them.

    Args:
        boxes: (N, 4) xyxy.
        truth: (G, 4) xyxy.
        ignored: (G,).

    Returns:
        (N, G); 0 where neither has an area.
    """
    boxes, truth = boxes.astype(np.float64), truth.astype(np.float64)
    low, high = np.maximum(boxes[:, None, :2], truth[:, :2]), np.minimum(boxes[:, None, 2:], truth[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    total = np.where(ignored, areas, areas + (truth[:, 2:] - truth[:, :2]).prod(axis=1) - common)
    return np.divide(common, total, out=np.zeros_like(common), where=total > 0)


def average_precision(scores: NDArray[np.float32], correct: NDArray[np.bool_], num_boxes: int) -> float | None:
    """COCO's average precision of one class at one IoU; None where no box is there to be found.

    Args:
        scores: (N,) of the detections that count; equal ones keep their order.
        correct: (N,) whether each has found a box.
        num_boxes: Boxes that are there to be found.

    Source: the mean over recalls 0, 0.01 ... 1 of the best precision at that recall or a higher one, as in pycocotools.
    """
    if num_boxes == 0:
        return None
    right = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(right / num_boxes, np.linspace(0, 1, 101), side="left")
    reached = places[places < len(right)]
    return float(precision[reached].sum() / 101)


def _match_image(
    ious: NDArray[np.float64], ignored: NDArray[np.bool_], iou_threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Box of every detection of one image, -1 for none, and whether the detection counts.

    Args:
        ious: (N, G) of the image, detections by falling score; 0 for other classes.
        ignored: (G,).
        iou_threshold: Smallest IoU of a pair.
    """
    truth = np.full(len(ious), -1, np.int64)
    on_ignored = (ious[:, ignored] >= iou_threshold).any(axis=1)
    free = np.where(ignored, 0.0, ious)
    for row in np.flatnonzero((free >= iou_threshold).any(axis=1)):
        # Of equal overlaps the last one, as pycocotools chooses.
        best = free.shape[1] - 1 - int(np.argmax(free[row, ::-1]))
        if free[row, best] >= iou_threshold:
            truth[row] = best
            free[:, best] = 0
    return truth, (truth >= 0) | ~on_ignored


def _rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries have the same label."""
    order = np.argsort(labels, kind="stable")
    sorted_labels = labels[order]
    starts = np.searchsorted(sorted_labels, sorted_labels, side="left")
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - starts
    return ranks
