"""The score threshold that balances finding everything against finding only what is there; without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .eval_matching import Matches


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A score threshold and what it gives.

    Attributes:
        score_threshold: Detections strictly above it are kept.
        precision: Share of them that are right.
        recall: Share of the boxes that they find.
        f1: Harmonic mean of the two.
    """

    score_threshold: float
    precision: float
    recall: float
    f1: float


def best_point(matches: Matches, *, label: int | None = None, lowest_score: float = 0.0) -> OperatingPoint | None:
    """The threshold with the highest F1, half-way between the last score that it keeps and the first that it drops.

    Of thresholds with the same F1 the highest.

    Args:
        matches: Detections and boxes at the IoU of interest.
        label: Only this class; by default all together, each box counting the same.
        lowest_score: Threshold that the detections were made with, the lowest that can be said anything of.

    Returns:
        None where nothing right was found.
    """
    chosen = matches.counted if label is None else matches.counted & (matches.labels == label)
    boxes = matches.truth_counted if label is None else matches.truth_counted & (matches.truth_labels == label)
    scores, precision, recall = _curve(matches.scores[chosen], matches.correct[chosen], int(boxes.sum()))
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    if not len(f1) or f1.max() == 0:
        return None
    best = int(np.argmax(f1))
    below = float(scores[best + 1]) if best + 1 < len(scores) else min(lowest_score, float(scores[best]))
    threshold = (float(scores[best]) + below) / 2
    return OperatingPoint(threshold, float(precision[best]), float(recall[best]), float(f1[best]))


def point_at(matches: Matches, score_threshold: float) -> OperatingPoint:
    """What a given threshold gives, all classes together; 0 where nothing is above it."""
    above = matches.above(score_threshold)
    right, kept = int(above.correct.sum()), int(above.counted.sum())
    precision, recall = right / max(1, kept), right / max(1, int(matches.truth_counted.sum()))
    total = precision + recall
    return OperatingPoint(score_threshold, precision, recall, 2 * precision * recall / total if total else 0.0)


def _curve(
    scores: NDArray[np.float32], correct: NDArray[np.bool_], num_boxes: int
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Distinct scores, falling, with precision and recall of the detections down to each; empty without boxes."""
    if not num_boxes:
        return np.zeros(0, np.float32), np.zeros(0), np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(correct[order])
    # A threshold cannot part equal scores: only the last of each counts.
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, np.intp)
    return scores[last], right[last] / (last + 1), right[last] / num_boxes
