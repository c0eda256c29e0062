"""Points of the levels, and boxes from the distributions predicted at them.

Tensor letters: B images, P points of all levels, R = reg_max.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .boxes import distances_to_boxes
from .types import HeadOutput

LevelShapes = tuple[tuple[int, int], ...]


def level_points(
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points of all levels; kept between calls, so do not write into the result.

    Args:
        level_shapes: (H, W) per level.
        strides: Image pixels per cell of each level.
        device: Where the result lives.
        dtype: Of the result.

    Returns:
        (P, 4): x, y, stride, stride in pixels, row by row, level after level. Points lie on the cells' upper left
        corners, not their centres: released weights were trained so.
    """
    shapes = tuple((shape[0], shape[1]) for shape in level_shapes)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return make_points(shapes, tuple(strides), torch.device(device), dtype)
    return _cached_points(shapes, tuple(strides), torch.device(device), dtype)


def make_points(shapes: LevelShapes, strides: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(P, 4) `level_points` computed anew."""
    levels = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        x = (torch.arange(width, device=device) * stride).to(dtype)
        y = (torch.arange(height, device=device) * stride).to(dtype)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        size = torch.full_like(grid_x, stride)
        levels.append(torch.stack([grid_x, grid_y, size, size], dim=-1).flatten(0, 1))
    return torch.cat(levels)


@lru_cache(maxsize=32)
def _cached_points(shapes: LevelShapes, strides: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # Made outside inference mode, or a training step could not use what a prediction before it has cached.
    with torch.inference_mode(mode=False), torch.no_grad():
        return make_points(shapes, strides, device, dtype)


def mean_bins(probabilities: Tensor) -> Tensor:
    """Means of distributions over the bins 0 ... R: (..., R + 1) probabilities to (...).

    Source: Generalized Focal Loss (arXiv 2006.04388), eq. 4.
    """
    bins = torch.arange(probabilities.shape[-1], device=probabilities.device, dtype=probabilities.dtype)
    return (probabilities * bins).sum(dim=-1)


def decode_boxes(box_logits: Tensor, points: Tensor) -> Tensor:
    """Boxes of all points, not clipped to the image.

    Args:
        box_logits: (B, P, 4, R + 1) before the softmax.
        points: (P, 4) as from `level_points`.

    Returns:
        (B, P, 4) xyxy in pixels of the network's input.
    """
    distances = mean_bins(box_logits.softmax(dim=-1)) * points[:, 2:3]
    return distances_to_boxes(points[:, :2], distances)


def decode(output: HeadOutput, *, strides: Sequence[int], num_classes: int) -> tuple[Tensor, Tensor]:
    """Scores and boxes of all points.

    Args:
        output: Raw predictions.
        strides: Image pixels per cell of each level.
        num_classes: Object classes; a background channel after them is dropped.

    Returns:
        (B, P, num_classes) probabilities and (B, P, 4) boxes, xyxy in pixels of the network's input, not clipped.
    """
    logits = output.box_logits
    points = level_points(output.level_shapes, strides, device=logits.device, dtype=logits.dtype)
    return output.cls_logits[..., :num_classes].sigmoid(), decode_boxes(logits, points)
