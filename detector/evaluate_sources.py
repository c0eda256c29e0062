"""How good a network is on a union of data sets: on each by itself and with its own classes, then their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .coco_metrics import FIGURES
from .data.dataset import Dataset
from .data.union import SourceTruth, source_truths
from .evaluate import Evaluation, evaluate
from .evaluation_set import KEEP_MB, EvaluationSet
from .predict import Predictor


class SourceSets:
    """The parts of a union at the input size of a network; images stay in memory for evaluating again and again.

    Args:
        dataset: A union, or a single data set, which is its only part, named "".
        image_size: (height, width) to stretch to, multiples of 32.
        keep_mb: Memory for images of all parts together, in millions of bytes.
    """

    def __init__(self, dataset: Dataset, image_size: tuple[int, int], *, keep_mb: float = KEEP_MB) -> None:
        truths = source_truths(dataset) or [SourceTruth("", dataset, {})]
        total = max(1, sum(len(one.dataset) for one in truths))
        self.parts = [
            (one, EvaluationSet(one.dataset, image_size, keep_mb=keep_mb * len(one.dataset) / total)) for one in truths
        ]

    def evaluate(
        self,
        predictor: Predictor,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        batch_size: int,
        interrupt: Callable[[], bool] | None = None,
    ) -> dict[str, Evaluation]:
        """Measure a network on every part.

        Args:
            predictor: As of `evaluate`; so are the others.
            score_threshold: Scores above it count.
            iou_threshold: Of two boxes of one class that overlap more, the better stays.
            batch_size: Images at once.
            interrupt: Asked before every batch.

        Returns:
            By name of the source.

        Raises:
            DataError: As `evaluate`.
        """
        return {
            one.name: evaluate(
                predictor,
                pictures,
                score_threshold=score_threshold,
                iou_threshold=iou_threshold,
                batch_size=batch_size,
                counts_as=one.counts_as,
                interrupt=interrupt,
            )
            for one, pictures in self.parts
        }


def mean_figures(by_source: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """COCO's figures as means over the sources that have them, and the AP of every source as `ap:<name>`.

    Args:
        by_source: COCO's figures by name of the source; a single one that is named "" gives its own figures.
    """
    figures: dict[str, float | None] = {}
    for name in FIGURES:
        values = [one[name] for one in by_source.values() if one[name] is not None]
        figures[name] = sum(values) / len(values) if values else None
    return figures | {f"ap:{source}": one["ap"] for source, one in by_source.items() if source}
