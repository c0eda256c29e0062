"""Adaptive training sample selection: points near a box's centre, by the statistics of their anchors' IoUs.

Tensor letters: B images, P points of all levels, C class channels, G largest number of boxes of an image, K candidate
points of a box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .assign_pairs import assign_in_portions, inside_boxes, predicted_iou, ranks
from .boxes import elementwise_iou
from .targets import Assignment, Targets


@dataclass(frozen=True, slots=True)
class ATSS:
    """Assigns by place alone, whatever is predicted; predictions only give the qualities.

    Attributes:
        candidates: Points of each level that a box considers, those nearest to its centre.
        anchor_size: Side of the square anchor on a point, in strides.

    Source: ATSS (arXiv 1912.02424), algorithm 1.
    """

    candidates: int = 9
    anchor_size: float = 8.0

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, points: Tensor, targets: Targets) -> Assignment:
        """See `detector.assign.Assigner`."""
        return assign_in_portions(self._assign, scores, boxes, points=points, targets=targets)

    def _assign(self, scores: Tensor, boxes: Tensor, points: Tensor, targets: Targets) -> Assignment:
        candidates = self._candidates(points, targets.boxes)
        reach = self.anchor_size / 2 * points[:, 2:]
        anchors = torch.cat([points[:, :2] - reach, points[:, :2] + reach], dim=1)
        iou = elementwise_iou(anchors[candidates], targets.boxes[:, :, None])
        # A single candidate has no deviation.
        threshold = iou.mean(dim=2, keepdim=True) + iou.std(dim=2, keepdim=True).nan_to_num(nan=0.0)
        inside = inside_boxes(points, targets.boxes).gather(2, candidates)
        positive = (iou >= threshold) & inside & targets.valid[..., None]
        overlap = torch.full((*targets.labels.shape, len(points)), -1.0, device=iou.device)
        overlap.scatter_(2, candidates, iou.where(positive, -1.0))
        indices = overlap.argmax(dim=1).where((overlap >= 0).any(dim=1), -1)
        return Assignment(indices, predicted_iou(boxes, targets, indices))

    def _candidates(self, points: Tensor, boxes: Tensor) -> Tensor:
        """(B, G, K) points nearest to the centres of the boxes, level by level."""
        centers = (boxes[..., :2] + boxes[..., 2:]) / 2
        distance = (points[:, :2] - centers[:, :, None]).square().sum(dim=3)
        rank = ranks(distance, later=torch.zeros_like(distance, dtype=torch.bool))
        rank = rank + torch.arange(len(points), device=rank.device)
        levels, start = [], 0
        for count in torch.unique_consecutive(points[:, 2], return_counts=True)[1].tolist():
            nearest = rank[..., start : start + count].topk(min(self.candidates, count), dim=2, largest=False)
            levels.append(nearest.indices + start)
            start += count
        return torch.cat(levels, dim=2)
