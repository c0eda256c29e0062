"""Threshold and class-wise non-maximum suppression with numpy alone; the same answers as `postprocess.select_best`.

Tensor letters: P points of all levels, C classes, N candidates, D detections.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def select_best(
    scores: NDArray[np.float32],
    boxes: NDArray[np.float32],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Threshold, class-wise non-maximum suppression and the best of the rest, for one image.

    Args:
        scores: (P, C) probabilities.
        boxes: (P, 4) xyxy.
        score_threshold: Pairs of point and class strictly above it are kept; one box may give several classes.
        iou_threshold: Of two boxes of one class that overlap more, the better stays.
        max_detections: Largest D.

    Returns:
        Boxes (D, 4), scores (D,) falling, labels (D,) int64; D may be 0. Equal scores keep the order of points, then
        of classes.
    """
    points, labels = np.nonzero(scores > score_threshold)
    values = scores[points, labels]
    order = np.argsort(-values, kind="stable")
    points, labels, values = points[order], labels[order], values[order]
    kept = np.zeros(len(points), dtype=bool)
    by_class = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[by_class])) + 1
    for members in np.split(by_class, ends):
        kept[members[suppress(boxes[points[members]], iou_threshold, limit=max_detections)]] = True
    chosen = np.flatnonzero(kept)[:max_detections]
    return boxes[points[chosen]], values[chosen], labels[chosen].astype(np.int64, copy=False)


def suppress(boxes: NDArray[np.float32], iou_threshold: float, *, limit: int) -> NDArray[np.intp]:
    """Indices of the boxes that stay, in order.

    Args:
        boxes: (N, 4) xyxy, best first; boxes without area overlap nothing.
        iou_threshold: A box that overlaps an earlier one that stays by more goes.
        limit: Stop after that many.
    """
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    areas = (x2 - x1) * (y2 - y1)
    # In float64, as torchvision compares: float32 would round the threshold.
    threshold = np.float64(iou_threshold)
    rest = np.arange(len(boxes))
    kept: list[np.intp] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        while len(rest) and len(kept) < limit:
            best, rest = rest[0], rest[1:]
            kept.append(best)
            width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
            height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
            overlap = np.maximum(width, 0) * np.maximum(height, 0)
            rest = rest[~(overlap / (areas[best] + areas[rest] - overlap) > threshold)]
    return np.array(kept, dtype=np.intp)
