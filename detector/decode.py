"""Raw predictions to scores and boxes with numpy alone, for exported files that end before the decoding.

Tensor letters: B images, P points of all levels, C classes, R = reg_max.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STRIDES = (8, 16, 32)
"""Image pixels per cell of the levels that networks have unless they say otherwise."""


def box_frame(
    image_size: tuple[int, int], strides: Sequence[int] = STRIDES
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What turns distances in cells into corners: `corners + cells * reach`.

    Args:
        image_size: (height, width), multiples of 32.
        strides: Image pixels per cell of each level.

    Returns:
        Corners (P, 4), the point twice as x, y, x, y in pixels, row by row and level after level; and reach (P, 4),
        the stride with its direction: minus for left and top, plus for right and bottom.
    """
    corners, reach = [], []
    for stride in strides:
        y, x = np.mgrid[: image_size[0] // stride, : image_size[1] // stride]
        points = stride * np.stack([x.ravel(), y.ravel()], axis=1)
        corners.append(np.tile(points, 2))
        reach.append(np.broadcast_to(stride * np.array([-1, -1, 1, 1]), corners[-1].shape))
    return np.concatenate(corners).astype(np.float32), np.concatenate(reach).astype(np.float32)


def decode(
    cls_logits: NDArray[np.float32],
    box_logits: NDArray[np.float32],
    image_size: tuple[int, int],
    strides: Sequence[int] = STRIDES,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores and boxes of all points.

    Args:
        cls_logits: (B, P, C) before the sigmoid.
        box_logits: (B, P, 4, R + 1) before the softmax.
        image_size: (height, width) of the input that gave them.
        strides: Image pixels per cell of each level.

    Returns:
        (B, P, C) probabilities and (B, P, 4) boxes, xyxy in pixels of the input, not clipped.
    """
    weights = np.exp(box_logits - box_logits.max(axis=-1, keepdims=True))
    cells = weights @ np.arange(weights.shape[-1], dtype=np.float32) / weights.sum(axis=-1)
    corners, reach = box_frame(image_size, strides)
    return sigmoid(cls_logits), corners + cells * reach


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, small) / (1 + small)
