"""Assignment and losses of training in float64, one image, one box and one point at a time: slow, and easy to check.

The batched code of the package must agree with it. Rules: `AlignOTA` and `Criterion`; nothing here is shared with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
ClassCost = Callable[[Array, int, float], float]


@dataclass(frozen=True)
class ReferenceAssignment:
    """Result for one image.

    `margin` is how far the closest decision was from falling the other way (infinite if there was none to take): a
    comparison in float32 makes sense only where it is clearly positive. Exact ties between boxes do not count, since
    the first box wins them by rule.
    """

    indices: NDArray[np.int64]
    qualities: Array
    margin: float


def cross_entropy(score: float, target: float) -> float:
    """Binary cross entropy with logarithms not below -100."""
    log = max(math.log(score), -100.0) if score > 0 else -100.0
    log_other = max(math.log1p(-score), -100.0) if score < 1 else -100.0
    return -(target * log + (1 - target) * log_other)


def focal_cost(scores: Array, label: int, iou: float) -> float:
    """AlignOTA's class cost over all channels."""
    targets = [iou if channel == label else 0.0 for channel in range(len(scores))]
    return sum(cross_entropy(p, y) * abs(y - p) ** 2 for p, y in zip(scores, targets, strict=True))


def own_focal_cost(scores: Array, label: int, iou: float) -> float:
    """The paper's class cost, of the label alone."""
    return cross_entropy(scores[label], iou) * (iou - scores[label]) ** 2


def hard_cost(scores: Array, label: int, iou: float) -> float:
    """SimOTA's class cost over all channels."""
    return sum(cross_entropy(p, float(channel == label)) for channel, p in enumerate(scores))


def box_iou(first: Array, second: Array) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return overlap / max(areas[0] + areas[1] - overlap, 1e-6)


def assign_image(
    scores: Array,
    boxes: Array,
    points: Array,
    gt_boxes: Array,
    gt_labels: Sequence[int],
    *,
    class_cost: ClassCost = focal_cost,
    iou_weight: float = 3.0,
    radius: float = 2.5,
    candidates: int = 10,
) -> ReferenceAssignment:
    """Assign the points of one image by dynamic k."""
    num_points, num_boxes = len(points), len(gt_boxes)
    background = ReferenceAssignment(np.full(num_points, -1), np.zeros(num_points), math.inf)
    in_box = np.zeros((num_points, num_boxes), dtype=bool)
    in_center = np.zeros((num_points, num_boxes), dtype=bool)
    for p, (x, y, stride, _) in enumerate(points):
        for g, (x1, y1, x2, y2) in enumerate(gt_boxes):
            in_box[p, g] = min(x - x1, y - y1, x2 - x, y2 - y) > 0
            distance = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
            in_center[p, g] = distance < radius * stride
    valid = [p for p in range(num_points) if (in_box | in_center)[p].any()]
    if not valid:
        return background

    iou = {(p, g): box_iou(boxes[p], gt_boxes[g]) for p in valid for g in range(num_boxes)}
    # Pairs not both in box and centre come after all others: the key's first entry.
    key = {}
    for p, g in iou:
        cost = class_cost(scores[p], gt_labels[g], iou[p, g]) - iou_weight * math.log(iou[p, g] + 1e-7)
        key[p, g] = (not (in_box[p, g] and in_center[p, g]), cost)

    margin = math.inf
    takers: dict[int, list[int]] = {}
    for g in range(num_boxes):
        total = sum(sorted((iou[p, g] for p in valid), reverse=True)[:candidates])
        taken = max(int(total), 1)
        if round(total) >= 2 or int(total) >= 1:
            margin = min(margin, abs(total - round(total)))
        order = sorted(valid, key=lambda p: (key[p, g], p))
        if taken < len(order):
            margin = min(margin, gap(key[order[taken - 1], g], key[order[taken], g]))
        for p in order[:taken]:
            takers.setdefault(p, []).append(g)

    indices, qualities = background.indices, background.qualities
    for p, rivals in takers.items():
        if len(rivals) > 1:
            rivals = sorted(range(num_boxes), key=lambda g: (key[p, g], g))
            difference = gap(key[p, rivals[0]], key[p, rivals[1]])
            margin = min(margin, difference or math.inf)
        indices[p], qualities[p] = rivals[0], iou[p, rivals[0]]
    return ReferenceAssignment(indices, qualities, margin)


def gap(first: tuple[bool, float], second: tuple[bool, float]) -> float:
    """By how much two keys differ."""
    return math.inf if first[0] != second[0] else second[1] - first[1]


def decode_image(box_logits: Array, points: Array) -> Array:
    """(P, 4, R + 1) logits to (P, 4) boxes."""
    bins = np.arange(box_logits.shape[2])
    weights = np.exp(box_logits - box_logits.max(axis=2, keepdims=True))
    distances = (weights * bins).sum(axis=2) / weights.sum(axis=2) * points[:, 2:3]
    return np.concatenate([points[:, :2] - distances[:, :2], points[:, :2] + distances[:, 2:]], axis=1)


@dataclass(frozen=True)
class ReferenceLosses:
    """Weighted losses of a batch, gradients of their sum, and how decisive the assignment was."""

    quality_focal: float
    giou: float
    dfl: float
    num_positives: int
    grad_cls_logits: Array
    grad_box_logits: Array
    assignments: list[ReferenceAssignment]

    @property
    def margin(self) -> float:
        return min(found.margin for found in self.assignments)


def batch_losses(
    cls_logits: NDArray[np.float32],
    box_logits: NDArray[np.float32],
    points: NDArray[np.float32],
    gt_boxes: Sequence[NDArray[np.float32]],
    gt_labels: Sequence[NDArray[np.int64]],
) -> ReferenceLosses:
    """Losses on probabilities, in the order in which the method is described."""
    logits = torch.tensor(cls_logits, dtype=torch.float64, requires_grad=True)
    bins = torch.tensor(box_logits, dtype=torch.float64, requires_grad=True)
    places = points.astype(np.float64)
    reg_max = box_logits.shape[3] - 1
    probabilities = logits.sigmoid()
    assignments, positives = [], []
    targets = torch.zeros_like(probabilities)
    for b in range(len(cls_logits)):
        boxes = decode_image(box_logits[b].astype(np.float64), places)
        # Assigners are given float32 probabilities, whose 1 may be a little less in truth.
        scores = probabilities[b].detach().float().double().numpy()
        found = assign_image(scores, boxes, places, gt_boxes[b].astype(np.float64), gt_labels[b].tolist())
        assignments.append(found)
        for p in np.flatnonzero(found.indices >= 0).tolist():
            g = found.indices[p]
            targets[b, p, gt_labels[b][g]] = found.qualities[p]
            positives.append((b, p, gt_boxes[b][g].astype(np.float64)))

    entropy = torch.nn.functional.binary_cross_entropy(probabilities, targets, reduction="none")
    quality_focal = (entropy * (targets - probabilities).abs() ** 2).sum() / max(len(positives), 1)
    giou, dfl, weight = bins.sum() * 0, bins.sum() * 0, 0.0
    for b, p, box in positives:
        w = probabilities[b, p].detach().max().item()
        weight += w
        x, y, stride, _ = places[p].tolist()
        expected = (bins[b, p].softmax(dim=1) * torch.arange(reg_max + 1)).sum(dim=1) * stride
        predicted = torch.stack([x - expected[0], y - expected[1], x + expected[2], y + expected[3]])
        giou = giou + w * (1 - generalised_iou(predicted, torch.from_numpy(box)))
        sides = ((x - box[0]) / stride, (y - box[1]) / stride, (box[2] - x) / stride, (box[3] - y) / stride)
        for side, distance in enumerate(sides):
            distance = min(max(distance, 0.0), reg_max - 0.1)
            left = int(distance)
            log = bins[b, p, side].log_softmax(dim=0)
            dfl = dfl - w * (log[left] * (left + 1 - distance) + log[left + 1] * (distance - left)) / 4
    giou, dfl = 2.0 * giou / max(weight, 1.0), 0.25 * dfl / max(weight, 1.0)
    (quality_focal + giou + dfl).backward()
    assert logits.grad is not None and bins.grad is not None
    return ReferenceLosses(
        quality_focal.item(),
        giou.item(),
        dfl.item(),
        len(positives),
        logits.grad.numpy(),
        bins.grad.numpy(),
        assignments,
    )


def generalised_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    overlap = (torch.minimum(first[2:], second[2:]) - torch.maximum(first[:2], second[:2])).clamp(min=0).prod()
    areas = [(box[2:] - box[:2]).prod() for box in (first, second)]
    union = (areas[0] + areas[1] - overlap).clamp(min=1e-6)
    enclosing = (torch.maximum(first[2:], second[2:]) - torch.minimum(first[:2], second[:2])).prod().clamp(min=1e-6)
    return overlap / union - (enclosing - union) / enclosing
