"""What the network takes each class for; without torch.

Tensor letters: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data.dataset import Dataset
from .eval_matching import overlaps
from .types import Detections


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Boxes against what was found in their place.

    Attributes:
        counts: (C + 1, C + 1) int64: row the true class, column the class found. The last row holds detections where
            there is no box, the last column boxes that nothing was found for; their common corner is 0.
        class_names: In label order.
        score_threshold: Detections strictly above it took part.
        iou_threshold: Smallest IoU of a pair.
    """

    counts: NDArray[np.int64]
    class_names: tuple[str, ...]
    score_threshold: float
    iou_threshold: float

    def most_confused(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """The most frequent confusions of one class with another: true class, class found, count."""
        mixed = self.counts[:-1, :-1].copy()
        np.fill_diagonal(mixed, 0)
        order = np.argsort(-mixed, axis=None, kind="stable")[:limit]
        pairs = [divmod(int(place), len(self.class_names)) for place in order if mixed.flat[place]]
        return [(self.class_names[true], self.class_names[found], int(mixed[true, found])) for true, found in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the last row and column stand for the background."""
        return {
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "counts": self.counts.tolist(),
        }


def confusion_matrix(
    dataset: Dataset,
    detections: Sequence[Detections],
    *,
    score_threshold: float,
    iou_threshold: float = 0.5,
) -> Confusion:
    """Pair detections with boxes whatever their classes, the largest overlap first, each at most once.

    A detection without a partner that lies in an ignored box, by its own area, is left out; so are ignored boxes.

    Args:
        dataset: The truth.
        detections: One entry per image, in pixels of the original and with labels of the data set.
        score_threshold: Detections strictly above it take part.
        iou_threshold: Smallest IoU of a pair.
    """
    background = len(dataset.class_names)
    counts = np.zeros((background + 1, background + 1), np.int64)
    for record, entry in zip(dataset.images, detections, strict=True):
        found = entry.filter(score=score_threshold)
        ious = overlaps(found.boxes, record.boxes, record.ignored)
        partner = _pair(np.where(record.ignored, 0.0, ious), found.scores, iou_threshold)
        on_ignored = (ious[:, record.ignored] >= iou_threshold).any(axis=1)
        paired = partner >= 0
        np.add.at(counts, (record.labels[partner[paired]], found.labels[paired]), 1)
        counts[background] += np.bincount(found.labels[~paired & ~on_ignored], minlength=background + 1)
        missed = ~record.ignored
        missed[partner[paired]] = False
        counts[:, background] += np.bincount(record.labels[missed], minlength=background + 1)
    return Confusion(counts, dataset.class_names, score_threshold, iou_threshold)


def _pair(ious: NDArray[np.float64], scores: NDArray[np.float32], iou_threshold: float) -> NDArray[np.int64]:
    """(N,) box of every detection, -1 for none; of equal overlaps the higher score first."""
    partner = np.full(len(ious), -1, np.int64)
    rows, columns = np.nonzero(ious >= iou_threshold)
    taken = np.zeros(ious.shape[1], np.bool_)
    for place in np.lexsort((-scores[rows], -ious[rows, columns])):
        row, column = rows[place], columns[place]
        if partner[row] < 0 and not taken[column]:
            partner[row] = column
            taken[column] = True
    return partner
