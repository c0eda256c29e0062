"""The assignment that SimOTA introduced: boxes take as many of the cheapest points as they have good predictions.

Tensor letters: B images, P points of all levels, V candidate points of the fullest image, C class channels, G largest
number of boxes of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .assign_pairs import NEVER, assign_in_portions, inside_boxes, inside_centers, ranks
from .boxes import elementwise_iou
from .targets import Assignment, Targets

IOU_EPS = 1e-7
"""Added to an IoU before its logarithm, as in the official implementation."""


@dataclass(frozen=True, slots=True)
class DynamicK(ABC):
    """Boxes take the cheapest points; what a point's class scores cost is left to subclasses.

    Attributes:
        center_radius: Points are preferred that lie in a box and within this many of their strides from its centre.
        candidates: How many of a box's largest IoUs are added up to the number of points it takes.
        class_weight: Factor of the class cost.
        iou_weight: Factor of -ln(IoU).
    """

    center_radius: float = 2.5
    candidates: int = 10
    class_weight: float = 1.0
    iou_weight: float = 3.0

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, points: Tensor, targets: Targets) -> Assignment:
        """See `detector.assign.Assigner`."""
        return assign_in_portions(self._assign, scores, boxes, points=points, targets=targets)

    @abstractmethod
    def class_cost(self, scores: Tensor, targets: Targets, iou: Tensor) -> Tensor:
        """(B, V, C) scores and (B, G, V) IoUs with the boxes to (B, G, V) costs."""

    def _assign(self, scores: Tensor, boxes: Tensor, points: Tensor, targets: Targets) -> Assignment:
        in_box = inside_boxes(points, targets.boxes)
        in_center = inside_centers(points, targets.boxes, radius=self.center_radius)
        is_candidate = ((in_box | in_center) & targets.valid[..., None]).any(dim=1)
        num_candidates = int(is_candidate.sum(dim=1).max())
        # Candidates first and otherwise in order; images with fewer of them carry some others along.
        chosen = is_candidate.sort(dim=1, descending=True, stable=True).indices[:, :num_candidates]
        preferred = (in_box & in_center).gather(2, chosen[:, None].expand(-1, in_box.shape[1], -1))
        allowed = is_candidate.gather(1, chosen)[:, None] & targets.valid[..., None]
        scores = scores.gather(1, chosen[..., None].expand(-1, -1, scores.shape[2]))
        boxes = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))

        iou = elementwise_iou(boxes[:, None], targets.boxes[:, :, None]).nan_to_num(nan=0.0).where(allowed, 0.0)
        cost = self.class_weight * self.class_cost(scores, targets, iou)
        cost -= self.iou_weight * (iou + IOU_EPS).log()
        box, quality = self._choose(iou, cost, preferred=preferred, allowed=allowed)
        indices = torch.full(is_candidate.shape, -1, dtype=torch.int64, device=box.device)
        qualities = torch.zeros(is_candidate.shape, device=box.device)
        return Assignment(indices.scatter(1, chosen, box), qualities.scatter(1, chosen, quality))

    def _choose(self, iou: Tensor, cost: Tensor, *, preferred: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V) box of each candidate, -1 for background, and its IoU with it, from (B, G, V) of all pairs."""
        num_boxes, num_points = iou.shape[1:]
        most = min(self.candidates, num_points)
        num_taken = iou.topk(most, dim=2).values.sum(dim=2).to(torch.int64).clamp(min=1)
        rank = ranks(cost, later=~preferred).where(allowed, NEVER)
        cheapest = (rank + torch.arange(num_points, device=rank.device)).topk(most, dim=2, largest=False)
        taken = torch.arange(most, device=rank.device) < num_taken[..., None]
        takes = torch.zeros_like(allowed.expand_as(rank)).scatter(2, cheapest.indices, taken) & allowed
        # A point that several boxes take goes to the cheapest box of all, even to one that did not take it.
        num_takers = takes.sum(dim=1)
        rivals = (takes | (num_takers > 1)[:, None]) & allowed
        box = (rank + torch.arange(num_boxes, device=rank.device)[:, None]).where(rivals, NEVER).argmin(dim=1)
        quality = iou.gather(1, box[:, None])[:, 0]
        is_positive = num_takers > 0
        return box.where(is_positive, -1), quality.where(is_positive, 0.0)
