"""The values that parts of the detector hand to each other; torch is not needed to use `Detections`.

Tensor letters: B images, P points of all levels, C class channels, R = reg_max, N detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutput:
    """Raw predictions, the same in training, evaluation and export.

    Attributes:
        cls_logits: (B, P, C) before the sigmoid; a background channel, where there is one, is the last.
        box_logits: (B, P, 4, R + 1) before the softmax; sides left, top, right, bottom.
        level_shapes: (H, W) of the levels at strides 8, 16, 32; points are numbered row by row, level after level.
    """

    cls_logits: Tensor
    box_logits: Tensor
    level_shapes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        classes, boxes = tuple(self.cls_logits.shape), tuple(self.box_logits.shape)
        if len(classes) != 3:
            raise ValueError(f"cls_logits has shape {classes}; expected (B, P, C)")
        if len(boxes) != 4 or boxes[2] != 4 or boxes[:2] != classes[:2]:
            raise ValueError(f"box_logits has shape {boxes}; expected ({classes[0]}, {classes[1]}, 4, R + 1)")
        # While a graph is traced with free sizes they are symbols, which a comparison would bind.
        if type(classes[1]) is int and all(type(side) is int for shape in self.level_shapes for side in shape):
            points = sum(height * width for height, width in self.level_shapes)
            if points != classes[1]:
                raise ValueError(f"level_shapes {self.level_shapes} hold {points} points; expected {classes[1]}")


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Objects found in one image, best first.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of an image of `image_size`; may reach beyond it unless clipped.
        scores: (N,) float32 class probabilities.
        labels: (N,) int64 class indices, counted from 0.
        image_size: (height, width) of that image.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.scores)
        for name, shape in (("boxes", (count, 4)), ("scores", (count,)), ("labels", (count,))):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} has shape {found}; expected {shape}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; expected a positive (height, width)")

    @classmethod
    def empty(cls, image_size: tuple[int, int]) -> Detections:
        """No object."""
        boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return cls(boxes, scores, np.zeros(0, np.int64), image_size)

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Detections:
        """The detections that a boolean mask (N,) or integer indices pick."""
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.image_size)
