"""Small inputs of assignment and losses: random ones, and those where something special happens."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from detector.points import level_points
from detector.targets import Targets
from detector.types import HeadOutput

STRIDES = (8, 16, 32)
REG_MAX = 7


@dataclass(frozen=True)
class LossCase:
    """Predictions and ground truth of a batch."""

    image_size: int
    num_classes: int
    cls_logits: NDArray[np.float32]
    box_logits: NDArray[np.float32]
    gt_boxes: list[NDArray[np.float32]]
    gt_labels: list[NDArray[np.int64]]

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((self.image_size // stride, self.image_size // stride) for stride in STRIDES)

    @property
    def points(self) -> torch.Tensor:
        return level_points(self.level_shapes, STRIDES)

    @property
    def output(self) -> HeadOutput:
        logits = (torch.tensor(self.cls_logits), torch.tensor(self.box_logits))
        return HeadOutput(*logits, self.level_shapes)

    @property
    def targets(self) -> Targets:
        boxes = [torch.tensor(entry).reshape(-1, 4) for entry in self.gt_boxes]
        return Targets.from_lists(boxes, [torch.tensor(entry) for entry in self.gt_labels])


def random_case(
    rng: np.random.Generator,
    *,
    num_boxes: tuple[int, ...],
    image_size: int = 64,
    num_classes: int = 3,
    background: bool = False,
    spread: float = 2.0,
) -> LossCase:
    """Images with so many boxes each; predictions near some of them are made to fit, as training would.

    Coordinates are multiples of 1/4 and logits of 1/64: exact in float32 and small in a file.
    """
    places = np.concatenate([grid(image_size // stride, stride) for stride in STRIDES])
    channels = num_classes + int(background)
    cls_logits = rng.normal(-2.0, spread, (len(num_boxes), len(places), channels))
    box_logits = rng.normal(0.0, 1.5, (len(num_boxes), len(places), 4, REG_MAX + 1))
    gt_boxes, gt_labels = [], []
    for image, count in enumerate(num_boxes):
        centers = rng.uniform(0, image_size, (count, 2))
        sizes = np.exp(rng.uniform(np.log(4), np.log(image_size), (count, 2)))
        boxes = np.round(np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1) * 4) / 4
        labels = rng.integers(0, num_classes, count)
        for box, label in zip(boxes, labels, strict=True):
            for point in rng.choice(len(places), size=6, replace=False):
                x, y, stride = places[point]
                sides = np.array([x - box[0], y - box[1], box[2] - x, box[3] - y]) / stride
                bins = np.arange(REG_MAX + 1)
                box_logits[image, point] = -((bins - sides[:, None]) ** 2) + rng.normal(0, 0.3, (4, REG_MAX + 1))
                cls_logits[image, point, label] += 2
        gt_boxes.append(boxes.astype(np.float32))
        gt_labels.append(labels.astype(np.int64))
    # Beyond 25 the gradient of PyTorch's cross entropy of probabilities is no longer that of the formula.
    rounded = [np.round(np.clip(logits, -25, 25) * 64).astype(np.float32) / 64 for logits in (cls_logits, box_logits)]
    return LossCase(image_size, num_classes, rounded[0], rounded[1], gt_boxes, gt_labels)


def grid(side: int, stride: int) -> NDArray[np.float64]:
    """(side * side, 3): x, y, stride, row by row."""
    y, x = np.divmod(np.arange(side * side), side)
    return np.stack([x * stride, y * stride, np.full(side * side, stride)], axis=1).astype(np.float64)


def with_boxes(case: LossCase, boxes: list[list[float]], labels: list[int]) -> LossCase:
    """The same predictions for a single image of other boxes."""
    gt_boxes, gt_labels = [np.array(boxes, dtype=np.float32).reshape(-1, 4)], [np.array(labels, dtype=np.int64)]
    return LossCase(case.image_size, case.num_classes, case.cls_logits, case.box_logits, gt_boxes, gt_labels)


def special_case(name: str, seed: int) -> LossCase:
    """One of SPECIAL_CASES."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
    if name == "mixed_batch":
        return random_case(rng, num_boxes=(3, 0, 8))
    if name == "background_channel":
        return random_case(rng, num_boxes=(4, 1), background=True)
    if name == "no_boxes":
        return random_case(rng, num_boxes=(0, 0))
    if name == "more_boxes_than_points":
        return random_case(rng, num_boxes=(30,), image_size=32)
    if name == "duplicates":
        case = random_case(rng, num_boxes=(3,))
        first, second, third = case.gt_boxes[0].tolist()
        return with_boxes(case, [first, first, second, second, third], [0, 0, 1, 2, 1])
    one = random_case(rng, num_boxes=(1,))
    boxes = {
        # Far away from every point: nobody answers for it.
        "unreachable": [[-500.0, -480.0, -450.0, -440.0]],
        # Another box makes points eligible, so one of them must answer for the far one as well.
        "unreachable_beside_another": [[-500.0, -480.0, -450.0, -440.0], [10.0, 12.0, 40.0, 36.0]],
        "giant": [[-900.0, -950.0, 1000.0, 1010.0]],
        "across_the_border": [[-20.0, 30.0, 12.0, 90.0], [50.25, -8.0, 75.0, 9.0], [62.0, 62.0, 66.0, 66.0]],
        # No area: in no box, yet near a centre.
        "without_area": [[20.0, 20.0, 20.0, 20.0], [30.0, 10.0, 30.0, 40.0], [8.0, 8.0, 40.0, 44.0]],
        # Between the points of every level.
        "tiny": [[33.5, 35.0, 35.5, 37.25], [3.0, 3.0, 5.0, 5.0]],
    }[name]
    return with_boxes(one, boxes, [index % 3 for index in range(len(boxes))])


SPECIAL_CASES = (
    "mixed_batch",
    "background_channel",
    "no_boxes",
    "more_boxes_than_points",
    "duplicates",
    "unreachable",
    "unreachable_beside_another",
    "giant",
    "across_the_border",
    "without_area",
    "tiny",
)
