"""Which point answers for which object: the assigners that training can use.

Tensor letters: B images, P points of all levels, C class channels, G largest number of boxes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .assign_atss import ATSS
from .assign_dynamic_k import DynamicK
from .assign_pairs import of_labels
from .assign_tood import TOOD
from .losses import LOG_LIMIT, log1p
from .targets import Assignment, Targets


class Assigner(Protocol):
    """Assigns points to boxes. Assigners hold settings only, and batches may be cut anywhere between images."""

    def __call__(self, scores: Tensor, boxes: Tensor, points: Tensor, targets: Targets) -> Assignment:
        """Assign without a gradient.

        Args:
            scores: (B, P, C) probabilities; a background channel may be the last.
            boxes: (B, P, 4) predicted boxes, xyxy in pixels, not clipped.
            points: (P, 4) x, y, stride, stride, as from `level_points`.
            targets: Ground truth; images without a box and G = 0 are fine.

        Returns:
            At most one box for each point. Predictions that are not finite raise nothing: such a box overlaps nothing,
            and a point with such a score is the last to be chosen. The losses show them.
        """


@dataclass(frozen=True, slots=True)
class AlignOTA(DynamicK):
    """The paper's assigner: focal class cost with the IoU as soft label.

    Attributes:
        other_classes: Whether the scores of all other channels cost too, as in the official implementation. The
            paper's eq. 2 is `AlignOTA(iou_weight=1.0, other_classes=False)`.

    Source: DAMO-YOLO (arXiv 2211.15444), section 2.3 and eq. 2, and the official implementation.
    """

    other_classes: bool = True

    def class_cost(self, scores: Tensor, targets: Targets, iou: Tensor) -> Tensor:
        """See `DynamicK`."""
        own = of_labels(scores, targets.labels)
        cost = (iou - own).square() * cross_entropy(own, iou)
        if not self.other_classes:
            return cost
        return cost + of_other_labels(scores.square() * entropy_of_background(scores), targets)


@dataclass(frozen=True, slots=True)
class SimOTA(DynamicK):
    """YOLOX's assigner: cross entropy to the label as class cost.

    Without an objectness branch the class probability stands for the product of both.

    Source: YOLOX (arXiv 2107.08430), section 2.1, and its implementation.
    """

    def class_cost(self, scores: Tensor, targets: Targets, iou: Tensor) -> Tensor:
        """See `DynamicK`."""
        own = entropy_of_object(of_labels(scores, targets.labels))
        return own + of_other_labels(entropy_of_background(scores), targets)


def of_other_labels(costs: Tensor, targets: Targets) -> Tensor:
    """(B, V, C) costs of all classes to (B, G, V) sums over all classes but each box's own, or over those judged."""
    if targets.judged is not None:
        return targets.judged.to(costs.dtype) @ costs.transpose(1, 2)
    # Added up in float64, so that taking a saturated class out again leaves the rest exact.
    total = costs.sum(dim=2, dtype=torch.float64)
    return (total[:, None] - of_labels(costs, targets.labels)).float()


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of probabilities, entry by entry, logarithms limited; values out of 0 ... 1 give NaN."""
    return targets * entropy_of_object(scores) + (1 - targets) * entropy_of_background(scores)


def entropy_of_object(scores: Tensor) -> Tensor:
    """Binary cross entropy to 1, entry by entry."""
    return -scores.log().clamp(min=-LOG_LIMIT)


def entropy_of_background(scores: Tensor) -> Tensor:
    """Binary cross entropy to 0, entry by entry."""
    return -log1p(-scores).clamp(min=-LOG_LIMIT)


ASSIGNERS: dict[str, Assigner] = {
    "align_ota": AlignOTA(),
    "align_ota_paper": AlignOTA(iou_weight=1.0, other_classes=False),
    "sim_ota": SimOTA(),
    "atss": ATSS(),
    "tood": TOOD(),
}
"""Assigners by name, with the settings of their papers."""
