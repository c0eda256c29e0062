"""Pairs of boxes and points, as assigners see them: in portions of bounded memory, by place, in order.

Tensor letters: B images, P points of all levels, C class channels, G largest number of boxes of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .boxes import elementwise_iou
from .targets import Assignment, Targets

MAX_PAIRS = 4_000_000
"""Pairs of box and point that are looked at together; some tens of bytes of memory each."""

NEVER = 1 << 62
"""Rank of pairs that must not be chosen."""

RANK_STEP = 1 << 24
"""Distance of neighbouring ranks: indices up to it break ties."""

AssignImages = Callable[[Tensor, Tensor, Tensor, Targets], Assignment]


def assign_in_portions(
    assign: AssignImages, scores: Tensor, boxes: Tensor, *, points: Tensor, targets: Targets
) -> Assignment:
    """Assign some images at a time, so that memory does not grow with the batch.

    Args:
        assign: Assigns images that together hold at least one box; given float32 and no padding that all of them have.
        scores: (B, P, C) probabilities.
        boxes: (B, P, 4) predicted boxes, xyxy in pixels.
        points: (P, 4) as from `level_points`.
        targets: Ground truth.
    """
    num_images, num_points = scores.shape[:2]
    indices = torch.full((num_images, num_points), -1, dtype=torch.int64, device=scores.device)
    qualities = torch.zeros((num_images, num_points), dtype=torch.float32, device=scores.device)
    # Boxes come first, so everything behind the fullest image's last one is padding.
    counts = targets.valid.sum(dim=1).tolist()
    portion = max(MAX_PAIRS // max(num_points * max(counts, default=0), 1), 1)
    for start in range(0, num_images, portion):
        rows, largest = slice(start, start + portion), max(counts[start : start + portion])
        if largest == 0:
            continue
        part = Targets(
            targets.boxes[rows, :largest],
            targets.labels[rows, :largest],
            targets.valid[rows, :largest],
            judged=None if targets.judged is None else targets.judged[rows, :largest],
        )
        found = assign(scores[rows].float(), boxes[rows].float(), points.float(), part)
        indices[rows], qualities[rows] = found.indices, found.qualities
    return Assignment(indices, qualities)


def predicted_iou(boxes: Tensor, targets: Targets, indices: Tensor) -> Tensor:
    """(B, P) IoU of predicted (B, P, 4) boxes with what their points answer for; 0 for background (index -1)."""
    answers = targets.boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))
    return elementwise_iou(boxes, answers).nan_to_num(nan=0.0).where(indices >= 0, 0.0)


def of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """(B, V, C) values of all classes to (B, G, V) of each box's (B, G) class."""
    images = torch.arange(len(values), device=values.device)[:, None]
    return values.transpose(1, 2)[images, labels]


def inside_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """(B, G, P) bool: points strictly inside the (B, G, 4) boxes."""
    x, y = points[:, 0], points[:, 1]
    x1, y1, x2, y2 = boxes[..., None].unbind(dim=2)
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def inside_centers(points: Tensor, boxes: Tensor, *, radius: float) -> Tensor:
    """(B, G, P) bool: points strictly inside the square around a box's centre, half its side `radius` strides.

    The stride is that of the point's own level; the square is not cut at the box.
    """
    x_center = (boxes[..., 0] + boxes[..., 2]) / 2
    y_center = (boxes[..., 1] + boxes[..., 3]) / 2
    reach = radius * points[:, 2]
    x, y, x_center, y_center = points[:, 0], points[:, 1], x_center[..., None], y_center[..., None]
    inside_x = (x > x_center - reach) & (x < x_center + reach)
    return inside_x & (y > y_center - reach) & (y < y_center + reach)


def ranks(cost: Tensor, *, later: Tensor) -> Tensor:
    """Integers in the order of the costs, `RANK_STEP` apart, so that adding an index breaks ties.

    The official implementation adds 1e8 to some costs, which in float32 leaves of their order no more than multiples
    of 8. Here such pairs come after all others, in the order of their own costs.

    Args:
        cost: (..., P) float32; what is not finite comes last of all.
        later: (..., P) pairs that come after all others.

    Returns:
        (..., P) int64.
    """
    finite = cost.isfinite()
    bits = cost.where(finite, torch.finfo(torch.float32).max).view(torch.int32)
    # Floats read as integers keep their order, but that of negative ones is reversed.
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return (ordered + ((later | ~finite).to(torch.int64) << 32)) * RANK_STEP
