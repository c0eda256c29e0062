"""Task-aligned assignment: the points whose scores and boxes agree best that they see a box.

Tensor letters: B images, P points of all levels, C class channels, G largest number of boxes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .assign_pairs import NEVER, assign_in_portions, inside_boxes, of_labels, ranks
from .boxes import elementwise_iou
from .targets import Assignment, Targets


@dataclass(frozen=True, slots=True)
class TOOD:
    """Assigns the best-aligned points inside a box; alignment is score^alpha * IoU^beta.

    The quality of a point is its alignment, scaled so that the best point of a box has the box's largest IoU.

    Attributes:
        candidates: Points that a box takes, at most.
        alpha: Exponent of the score of the box's class.
        beta: Exponent of the IoU.

    Source: TOOD (arXiv 2108.07755), section 3.2, eq. 6 and 7; only points inside a box, as in its implementation.
    """

    candidates: int = 13
    alpha: float = 1.0
    beta: float = 6.0

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, points: Tensor, targets: Targets) -> Assignment:
        """See `detector.assign.Assigner`."""
        return assign_in_portions(self._assign, scores, boxes, points=points, targets=targets)

    def _assign(self, scores: Tensor, boxes: Tensor, points: Tensor, targets: Targets) -> Assignment:
        iou = elementwise_iou(boxes[:, None], targets.boxes[:, :, None]).nan_to_num(nan=0.0)
        alignment = of_labels(scores, targets.labels).pow(self.alpha) * iou.pow(self.beta)
        alignment = alignment.nan_to_num(nan=0.0)
        allowed = inside_boxes(points, targets.boxes) & targets.valid[..., None] & (alignment > 0)
        rank = ranks(-alignment, later=~allowed) + torch.arange(len(points), device=iou.device)
        best = rank.topk(min(self.candidates, len(points)), dim=2, largest=False).indices
        takes = torch.zeros_like(allowed).scatter(2, best, True) & allowed
        box = ranks(-iou, later=~takes).where(takes, NEVER).argmin(dim=1)
        indices = box.where(takes.any(dim=1), -1)

        own = torch.arange(iou.shape[1], device=iou.device)[:, None] == indices[:, None]
        largest = alignment.where(own, 0.0).amax(dim=2, keepdim=True).clamp(min=torch.finfo(iou.dtype).tiny)
        quality = alignment / largest * iou.where(own, 0.0).amax(dim=2, keepdim=True)
        return Assignment(indices, quality.where(own, 0.0).sum(dim=1))
