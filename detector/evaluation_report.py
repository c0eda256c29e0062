"""Everything that is said of one evaluation: figures, thresholds, confusions, errors; without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coco_metrics import IOU_THRESHOLDS
from .confusion import Confusion, confusion_matrix
from .data.dataset import Dataset
from .error_breakdown import ErrorBreakdown, error_breakdown
from .eval_matching import Matches, match
from .evaluate import Evaluation
from .operating_points import OperatingPoint, best_point
from .predict import Predictor

IOU = 0.5
"""At which thresholds, confusions and errors are looked at; the usual one."""

FALLBACK_SCORE = 0.25
"""For the confusion matrix where nothing right was found and so no threshold is best."""


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """An evaluation and what can be learnt from it.

    Attributes:
        evaluation: What was measured.
        matches: At IoU 0.5.
        best: Score threshold with the highest F1, all classes together; None where nothing right was found.
        class_best: The same for every class by itself.
        confusion: At the score threshold of `best`.
        errors: What each kind of error costs.
    """

    evaluation: Evaluation
    matches: Matches
    best: OperatingPoint | None
    class_best: tuple[OperatingPoint | None, ...]
    confusion: Confusion
    errors: ErrorBreakdown

    @property
    def score_threshold(self) -> float:
        """The threshold that confusions and pictures are made with."""
        return self.confusion.score_threshold

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        evaluation = self.evaluation
        metrics = evaluation.metrics.to_dict()
        classes = [
            {**entry, "best": None if best is None else asdict(best)}
            for entry, best in zip(metrics.pop("classes"), self.class_best, strict=True)
        ]
        return {
            "settings": {**asdict(evaluation.settings), "image_size": list(evaluation.settings.image_size)},
            "metrics": metrics,
            "best": None if self.best is None else asdict(self.best),
            "classes": classes,
            "missing_classes": list(evaluation.missing_classes),
            "skipped": list(evaluation.skipped),
            "errors": self.errors.to_dict(),
            "confusion": self.confusion.to_dict(),
        }


def analyse(evaluation: Evaluation) -> Analysis:
    """Thresholds, confusions and errors of an evaluation."""
    dataset, detections = evaluation.dataset, evaluation.detections
    matches = match(dataset, detections, iou_threshold=IOU)
    lowest = evaluation.settings.score_threshold
    best = best_point(matches, lowest_score=lowest)
    score = FALLBACK_SCORE if best is None else best.score_threshold
    return Analysis(
        evaluation=evaluation,
        matches=matches,
        best=best,
        class_best=tuple(
            best_point(matches, label=label, lowest_score=lowest) for label in range(len(dataset.class_names))
        ),
        confusion=confusion_matrix(dataset, detections, score_threshold=score, iou_threshold=IOU),
        errors=error_breakdown(dataset, detections),
    )


def worst_images(analysis: Analysis, count: int) -> list[tuple[int, int, int]]:
    """The images with most errors at the score threshold of the analysis: index, wrong detections, missed boxes.

    Of images with as many errors the first ones; images without an error are left out.
    """
    above = analysis.matches.above(analysis.score_threshold)
    total = len(analysis.evaluation.dataset)
    wrong = np.bincount(above.images[above.counted & ~above.correct], minlength=total)
    missed = np.bincount(above.truth_images[above.missed], minlength=total)
    order = np.argsort(-(wrong + missed), kind="stable")[:count]
    return [(int(index), int(wrong[index]), int(missed[index])) for index in order if wrong[index] + missed[index]]


def precision_curves(evaluation: Evaluation, iou: float = IOU) -> dict[str, NDArray[np.float64]]:
    """(101,) interpolated precision at recalls 0, 0.01 ... 1 of every class that has boxes to be found, by its name."""
    rows = evaluation.metrics.precision[IOU_THRESHOLDS.index(iou)]
    return {entry.name: row for entry, row in zip(evaluation.metrics.classes, rows, strict=True) if entry.num_boxes}


def dataset_digest(dataset: Dataset) -> str:
    """What identifies the truth of a data set: its classes, file names, boxes and their marks; not the images' pixels.

    Returns:
        16 hexadecimal digits; the same wherever the folder lies.
    """
    digest = hashlib.sha256(json.dumps([dataset.class_names, dataset.category_ids]).encode())
    for record in dataset.images:
        digest.update(json.dumps([record.image_id, record.path.name]).encode("utf-8", "surrogatepass"))
        for values, kind in (
            (record.boxes, "<f4"),
            (record.labels, "<i8"),
            (record.ignored, "?"),
            (record.areas, "<f4"),
        ):
            digest.update(np.ascontiguousarray(values.astype(kind)).tobytes())
    return digest.hexdigest()[:16]


def running_on(predictor: Predictor) -> tuple[str, int | None, str | None]:
    """Device, CPU threads where they are known, and the name of an accelerator, of what has just been measured."""
    engine = getattr(getattr(predictor, "card", None), "engine", None)
    if engine is not None:
        return "cuda", None, engine.gpu
    if not hasattr(predictor, "parameters"):
        return "cpu", None, None
    import torch

    device = next(predictor.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return str(device), torch.get_num_threads(), name
