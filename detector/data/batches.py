"""The making of batches, in worker processes or here.

Tensor letters: B images of this process, G boxes of an image, H W image size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..errors import DataError
from ..targets import Batch, Targets
from .pipeline import Augmenter, BrokenImage
from .plan import BatchPlan


@dataclass(frozen=True, slots=True, eq=False)
class MadeBatch:
    """A batch on its way from the process that made it.

    Attributes:
        batch: The batch; empty where it could not be made.
        broken: Images that were replaced because they could not be read.
        error: Why the batch could not be made.
    """

    batch: Batch
    broken: tuple[BrokenImage, ...] = ()
    error: str | None = None

    def pin_memory(self) -> MadeBatch:
        """In memory that a GPU copies from quickly; called by torch's loader."""
        batch = Batch(self.batch.images.pin_memory(), self.batch.targets.pin_memory(), self.batch.index)
        return MadeBatch(batch, self.broken, self.error)


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """A batch without tensors: it comes through a pipe, where shared memory is too small for what tensors put there.

    Attributes:
        arrays: Images, boxes, labels and validity, and sources where there are several.
        index: As in `Batch`.
        broken: As in `MadeBatch`.
        error: As in `MadeBatch`.
    """

    arrays: tuple[NDArray[Any], ...]
    index: int
    broken: tuple[BrokenImage, ...]
    error: str | None

    @classmethod
    def pack(cls, made: MadeBatch) -> PackedBatch:
        """Take the tensors apart; their memory is not copied."""
        images, targets = made.batch.images, made.batch.targets
        tensors = [images, targets.boxes, targets.labels, targets.valid]
        if targets.sources is not None:
            tensors.append(targets.sources)
        return cls(tuple(values.numpy() for values in tensors), made.batch.index, made.broken, made.error)

    def unpack(self) -> MadeBatch:
        """Put the tensors together again."""
        images, boxes, labels, valid, *sources = (torch.from_numpy(array) for array in self.arrays)
        targets = Targets(boxes, labels, valid, sources[0] if sources else None)
        return MadeBatch(Batch(images, targets, self.index), self.broken, self.error)

    def pin_memory(self) -> MadeBatch:
        """As of `MadeBatch`."""
        return self.unpack().pin_memory()


class BatchMaker(TorchDataset[MadeBatch | PackedBatch]):
    """The batches of a run from a first one on, each made when asked for; torch's loader sends it to its workers."""

    def __init__(self, augmenter: Augmenter, plan: BatchPlan, *, start: int, packed: bool) -> None:
        self._augmenter = augmenter
        self._plan = plan
        self._start = start
        self._packed = packed
        self._epoch = -1
        self._order = np.empty(0, np.intp)

    def __len__(self) -> int:
        return self._plan.total - self._start

    def __getitem__(self, place: int) -> MadeBatch | PackedBatch:
        made = self._make(self._start + place)
        return PackedBatch.pack(made) if self._packed else made

    def _make(self, number: int) -> MadeBatch:
        plan = self._plan
        epoch = number // plan.per_epoch
        if epoch != self._epoch:
            self._epoch, self._order = epoch, plan.order(epoch)
        chosen, size, moment = plan.samples(number, self._order), plan.size(number), plan.moment(number)
        images = torch.empty((len(chosen), 3, *size), dtype=torch.uint8)
        planes = images.numpy()
        boxes: list[Tensor] = []
        labels: list[Tensor] = []
        broken: list[BrokenImage] = []
        for place, (position, index) in enumerate(chosen):
            try:
                rng = plan.generator(number, position, index)
                sample, replaced = self._augmenter.sample(index, moment, rng, image_size=size)
            except DataError as error:
                # As a value: torch would put the worker's traceback into the message.
                return MadeBatch(Batch(images, Targets.from_lists([], []), number), error=str(error))
            for channel in range(3):
                cv2.extractChannel(sample.image, channel, planes[place, channel])
            boxes.append(torch.from_numpy(sample.boxes))
            labels.append(torch.from_numpy(sample.labels))
            broken += replaced
        sources = self._augmenter.sources_of([index for _, index in chosen])
        targets = Targets.from_lists(
            boxes, labels, sources=None if sources is None else torch.from_numpy(sources.astype(np.int64))
        )
        return MadeBatch(Batch(images, targets, number), tuple(broken))
