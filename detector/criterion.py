"""The training loss of a batch: assignment, the three losses, and their normalisers.

Tensor letters: B images, P points of all levels, C class channels, R = reg_max, N positives of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .assign import AlignOTA, Assigner
from .boxes import boxes_to_distances
from .label_rules import LabelRules
from .losses import distribution_focal_loss, giou_loss, quality_focal_loss_with_logits
from .points import decode_boxes, level_points
from .targets import Assignment, Targets
from .types import HeadOutput

LAST_BIN_MARGIN = 0.1
"""How far below R distances are cut, so that a bin on the right exists."""


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Losses of one batch, scalars with their weights applied.

    Attributes:
        total: Sum of the three; the only one with a gradient.
        quality_focal: Classes.
        giou: Boxes.
        dfl: Distributions of the boxes' sides.
        num_positives: Assigned points, as a scalar tensor.
    """

    total: Tensor
    quality_focal: Tensor
    giou: Tensor
    dfl: Tensor
    num_positives: Tensor


def this_process_only(value: Tensor) -> Tensor:
    """The mean over processes where there is one."""
    return value


@dataclass(frozen=True, slots=True)
class Criterion:
    """Losses of raw predictions; works in float32 whatever the network ran in.

    Predictions that are not finite give losses that are not finite, and no exception: a trainer looks at `total`.

    Attributes:
        assigner: Which point answers for which box.
        quality_focal_weight: Of the class loss.
        giou_weight: Of the box loss.
        dfl_weight: Of the distribution loss.
        beta: Exponent of the quality focal loss.
        mean_over_processes: Mean of a tensor over all processes of a training run, without a gradient. It is called
            once per batch, whatever the batch holds.
        rules: Of a union of data sets: which classes images teach nothing of. Normalisers are counts and weights of
            points, so they are the same with and without it.

    Source: DAMO-YOLO (arXiv 2211.15444), eq. 1; normalisers as in Generalized Focal Loss (arXiv 2006.04388).
    """

    assigner: Assigner = field(default_factory=AlignOTA)
    quality_focal_weight: float = 1.0
    giou_weight: float = 2.0
    dfl_weight: float = 0.25
    beta: float = 2.0
    mean_over_processes: Callable[[Tensor], Tensor] = this_process_only
    rules: LabelRules | None = None

    def __call__(self, output: HeadOutput, targets: Targets, *, strides: Sequence[int], num_classes: int) -> Losses:
        """Assign points, and compare predictions with what they answer for.

        Args:
            output: Raw predictions.
            targets: Boxes in pixels of the network's input, on the device of the predictions; with rules also sources.
            strides: Image pixels per cell of each level.
            num_classes: Object classes; a background channel after them is taught to be 0 everywhere.
        """
        device = output.cls_logits.device
        with torch.autocast(device.type, enabled=False):
            cls_logits, box_logits = output.cls_logits.float(), output.box_logits.float()
            points = level_points(output.level_shapes, strides, device=device)
            targets = targets if self.rules is None else self.rules.judging(targets)
            with torch.no_grad():
                scores = cls_logits.sigmoid()
                assignment = self.assigner(scores, decode_boxes(box_logits, points), points, targets)
            return self._losses(cls_logits, box_logits, scores=scores, points=points, targets=targets, found=assignment)

    def _losses(
        self,
        cls_logits: Tensor,
        box_logits: Tensor,
        *,
        scores: Tensor,
        points: Tensor,
        targets: Targets,
        found: Assignment,
    ) -> Losses:
        image, point = torch.nonzero(found.indices >= 0, as_tuple=True)
        box = found.indices[image, point]
        own = scores[image, point]
        learnt = None
        if self.rules is not None:
            learnt = self.rules.learnt(targets, image, point, box, num_points=scores.shape[1])
            own = own * learnt[image, point]
        # How sure a point is of any class weighs its box; learning boxes must not change scores.
        weights = own.amax(dim=1)
        totals = torch.stack([weights.new_tensor(float(len(image))), weights.sum()])
        num_positives, weight = self.mean_over_processes(totals).clamp(min=1).unbind()

        qualities = torch.zeros_like(cls_logits)
        if self.rules is None:
            qualities[image, point, targets.labels[image, box]] = found.qualities[image, point]
        else:
            is_own = self.rules.implied[targets.labels[image, box]]
            qualities[image, point] = is_own * found.qualities[image, point][:, None]
        quality_focal = quality_focal_loss_with_logits(cls_logits, qualities, beta=self.beta)
        if learnt is not None:
            quality_focal = quality_focal * learnt
        quality_focal = quality_focal.sum() / num_positives

        # Without positives the rows are empty and their sums 0, yet every layer still receives a gradient.
        rows, points, boxes = box_logits[image, point], points[point], targets.boxes[image, box]
        giou = (giou_loss(decode_boxes(rows, points), boxes) * weights).sum() / weight
        largest = box_logits.shape[3] - 1 - LAST_BIN_MARGIN
        sides = boxes_to_distances(points[:, :2], boxes) / points[:, 2:3]
        dfl = distribution_focal_loss(rows.flatten(0, 1), sides.clamp(0.0, largest).flatten()).view(-1, 4)
        dfl = (dfl * weights[:, None]).sum() / (4 * weight)

        quality_focal, giou = self.quality_focal_weight * quality_focal, self.giou_weight * giou
        dfl = self.dfl_weight * dfl
        total = quality_focal + giou + dfl
        return Losses(total, quality_focal.detach(), giou.detach(), dfl.detach(), num_positives=totals[0])
