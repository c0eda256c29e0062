"""How much average precision each kind of error costs; without torch.

Every wrong detection and every missed box is one kind of error. For each kind AP50 is computed again as if those errors
had not been made; the difference is what they cost. The differences do not add up to what is missing to 1, because
errors hide each other.

Tensor letters: N detections of all images, G boxes of all images, C classes.

Source: TIDE (Bolya et al., arXiv 2008.08115), sections 2.2 and 2.3, with its thresholds 0.5 and 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data.dataset import Dataset
from .eval_matching import Matches, average_precision, match, overlaps
from .types import Detections

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
KINDS = {
    "classification": "right place, wrong class",
    "localisation": "right class, place not exact enough",
    "both": "wrong class, place not exact enough",
    "duplicate": "object found before with a higher score",
    "background": "nothing there",
    "missed": "no detection, not even a wrong class or an inexact place",
}
"""Kinds of error and what they mean."""


@dataclass(frozen=True, slots=True)
class ErrorShare:
    """One kind of error.

    Attributes:
        kind: Name in `KINDS`, or `false positives` and `false negatives`, which are all errors of their side.
        count: How many there are, at any score.
        delta_ap50: What AP50 gains without them.
    """

    kind: str
    count: int
    delta_ap50: float


@dataclass(frozen=True, slots=True)
class ErrorBreakdown:
    """What errors cost.

    Attributes:
        ap50: With all errors, as COCO computes it; the mean over classes with boxes.
        kinds: One entry per row of `KINDS`, in that order.
        false_positives: All wrong detections removed.
        false_negatives: All boxes that are not found taken as not being there.
    """

    ap50: float
    kinds: tuple[ErrorShare, ...]
    false_positives: ErrorShare
    false_negatives: ErrorShare

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def error_breakdown(dataset: Dataset, detections: Sequence[Detections]) -> ErrorBreakdown:
    """Sort errors into kinds, and measure what each kind costs.

    Without an error of its kind, a detection of the wrong class gets the right one, an inexact one the box that it was
    meant for (it is removed where a better detection has that box already); the other wrong detections are removed, and
    missed boxes taken as not being there. Detections on ignored boxes are no errors.

    Args:
        dataset: The truth, with at least one box to be found.
        detections: One entry per image, in pixels of the original and with labels of the data set.
    """
    matches = match(dataset, detections, iou_threshold=FOREGROUND_IOU)
    kinds, meant = _kinds(dataset, detections, matches)
    repaired = meant[np.isin(kinds, (_CLASSIFICATION, _LOCALISATION))]
    missed = matches.missed
    num_lost = int(missed.sum())
    missed[repaired] = False
    base = _mean_ap(matches, matches.labels, matches.correct, matches.counted, matches.truth_counted)

    def gain(labels: NDArray[Any], correct: NDArray[Any], counted: NDArray[Any], truth_counted: NDArray[Any]) -> float:
        return _mean_ap(matches, labels, correct, counted, truth_counted) - base

    shares = []
    for number, kind in enumerate(KINDS):
        errors = kinds == number
        labels, correct, counted, boxes = matches.labels, matches.correct, matches.counted, matches.truth_counted
        if number in (_CLASSIFICATION, _LOCALISATION):
            right = errors & _first_on_free_box(matches, errors, meant)
            labels = np.where(right, matches.truth_labels[meant], labels)
            correct, counted = correct | right, counted & ~(errors & ~right)
        elif number == _MISSED:
            errors, boxes = missed, boxes & ~missed
        else:
            counted = counted & ~errors
        shares.append(ErrorShare(kind, int(errors.sum()), gain(labels, correct, counted, boxes)))
    wrong = matches.counted & ~matches.correct
    return ErrorBreakdown(
        ap50=base,
        kinds=tuple(shares),
        false_positives=ErrorShare(
            "false positives",
            int(wrong.sum()),
            gain(matches.labels, matches.correct, matches.correct, matches.truth_counted),
        ),
        false_negatives=ErrorShare(
            "false negatives",
            num_lost,
            gain(matches.labels, matches.correct, matches.counted, matches.truth_counted & ~matches.missed),
        ),
    )


_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))
_NO_ERROR = -1


def _kinds(
    dataset: Dataset, detections: Sequence[Detections], matches: Matches
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kind of error of every detection, -1 for none, and the box that it was meant for, 0 where there is none."""
    kinds, meant = np.full(len(matches.labels), _NO_ERROR), np.zeros(len(matches.labels), np.int64)
    wrong = matches.counted & ~matches.correct
    first, offset = 0, 0
    for record, found in zip(dataset.images, detections, strict=True):
        rows = slice(first, first + len(found))
        # As `match` orders them.
        boxes = found.boxes[np.argsort(-found.scores, kind="stable")]
        ious = overlaps(boxes, record.boxes, np.zeros_like(record.ignored))
        ious[:, record.ignored] = 0
        same = matches.labels[rows, None] == record.labels
        same_iou, same_box = _largest(np.where(same, ious, 0))
        other_iou, other_box = _largest(np.where(same, 0, ious))
        # The first that holds, in this order: a box of the right class in reach speaks for a wrong place.
        tests = (
            (same_iou >= BACKGROUND_IOU) & (same_iou < FOREGROUND_IOU),
            other_iou >= FOREGROUND_IOU,
            same_iou >= FOREGROUND_IOU,
            np.maximum(same_iou, other_iou) < BACKGROUND_IOU,
        )
        answers = (_LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND)
        kind = np.select(tests, answers, default=_BOTH)
        kinds[rows] = np.where(wrong[rows], kind, _NO_ERROR)
        meant[rows] = offset + np.where(kind == _CLASSIFICATION, other_box, same_box)
        first += len(found)
        offset += len(record.labels)
    meant[~np.isin(kinds, (_CLASSIFICATION, _LOCALISATION))] = 0
    return kinds, meant


def _largest(ious: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Largest entry of each row and its column; 0 and 0 where there are no columns."""
    if not ious.shape[1]:
        return np.zeros(len(ious)), np.zeros(len(ious), np.int64)
    columns = ious.argmax(axis=1)
    return ious[np.arange(len(ious)), columns], columns


def _first_on_free_box(matches: Matches, errors: NDArray[np.bool_], meant: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) errors that are the best of those meant for their box, where no right detection has it."""
    first = np.zeros(len(errors), np.bool_)
    taken = np.zeros(len(matches.truth_labels), np.bool_)
    taken[matches.truth[matches.correct]] = True
    rows = np.flatnonzero(errors)
    for row in rows[np.argsort(-matches.scores[rows], kind="stable")]:
        if not taken[meant[row]]:
            first[row] = taken[meant[row]] = True
    return first


def _mean_ap(
    matches: Matches, labels: NDArray[Any], correct: NDArray[Any], counted: NDArray[Any], truth_counted: NDArray[Any]
) -> float:
    """Mean over classes of AP at the foreground IoU; classes without a box left to be found are left out."""
    values = []
    for label in np.unique(matches.truth_labels[truth_counted]):
        rows = counted & (labels == label)
        num_boxes = int((truth_counted & (matches.truth_labels == label)).sum())
        values.append(average_precision(matches.scores[rows], correct[rows], num_boxes))
    return float(np.mean([value for value in values if value is not None])) if values else 1.0
