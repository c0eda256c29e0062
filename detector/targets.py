"""What a training step learns from: padded ground truth in, assignment out.

Tensor letters: B images, P points of all levels, G largest number of boxes of an image of the batch, C class channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Ground truth of a batch, padded to the image with most boxes.

    Attributes:
        boxes: (B, G, 4) float32 xyxy in pixels of the network's input; 0 where there is none. G may be 0.
        labels: (B, G) int64; 0 where there is none.
        valid: (B, G) bool; which entries are boxes. Those of an image come first.
        sources: (B,) int64 number of the data set that each image comes from; None where there is only one.
        judged: (B, G, C) bool; the classes that are known to be absent from a box, its own left out. Derived from
            labels and sources for the assigner; None where all but its own are.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    sources: Tensor | None = None
    judged: Tensor | None = None

    @classmethod
    def from_lists(cls, boxes: Sequence[Tensor], labels: Sequence[Tensor], *, sources: Tensor | None = None) -> Targets:
        """Pad the (G_i, 4) boxes and (G_i,) labels of each image."""
        largest = max((len(entry) for entry in labels), default=0)
        padded = Targets(
            boxes=torch.zeros(len(labels), largest, 4),
            labels=torch.zeros(len(labels), largest, dtype=torch.int64),
            valid=torch.zeros(len(labels), largest, dtype=torch.bool),
            sources=sources,
        )
        for index, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
            count = len(image_labels)
            padded.boxes[index, :count] = image_boxes
            padded.labels[index, :count] = image_labels
            padded.valid[index, :count] = True
        return padded

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on a device."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def pin_memory(self) -> Targets:
        """The same targets in memory that a GPU copies from quickly."""
        return self._each(Tensor.pin_memory)

    def images(self, rows: slice) -> Targets:
        """The targets of some images, padding included."""
        return self._each(lambda values: values[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Targets:
        optional = (None if values is None else change(values) for values in (self.sources, self.judged))
        return Targets(change(self.boxes), change(self.labels), change(self.valid), *optional)


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Which box each point answers for.

    Attributes:
        indices: (B, P) int64 index of the box among the image's, -1 for background.
        qualities: (B, P) float32 target of the labelled class, between 0 and 1: for AlignOTA the IoU of the predicted
            box with its ground truth at assignment time; 0 for background.
    """

    indices: Tensor
    qualities: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Input of one training step.

    Attributes:
        images: (B, 3, H, W) uint8 or float32 RGB in 0 ... 255; H and W multiples of 32.
        targets: Boxes in pixels of `images`.
        index: Number of the batch since the start of training, from 0.
    """

    images: Tensor
    targets: Targets
    index: int
