"""The images of a data set as a network takes them, read ahead and, where wanted, kept; without torch.

Tensor letters: B images, H W size of the network's input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .data.dataset import Dataset
from .errors import InputError
from .images import read_image, resize

KEEP_MB = 2048.0
_BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as a network takes it.

    Attributes:
        pixels: (3, H, W) uint8 RGB.
        original_size: (height, width) before it was stretched.
    """

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]


class EvaluationSet:
    """A data set at the input size of a network; images stay in memory once read, for evaluating again and again.

    Args:
        dataset: Images and truth.
        image_size: (height, width) to stretch to, multiples of 32; None leaves images as they are and keeps none.
        keep_mb: Memory for images in millions of bytes; what does not fit is read again each time.
    """

    def __init__(self, dataset: Dataset, image_size: tuple[int, int] | None, *, keep_mb: float = KEEP_MB) -> None:
        self.dataset = dataset
        self.image_size = image_size
        self._num_kept = 0 if image_size is None else int(keep_mb * 1e6 / (3 * image_size[0] * image_size[1]))
        self._kept: dict[int, Picture] = {}

    def batches(self, batch_size: int) -> Generator[list[Picture | str]]:
        """Images in order, or why one cannot be used; the next batches are read while one is in use."""

        def load(start: int) -> list[Picture | str]:
            return [self._picture(index) for index in range(start, min(start + batch_size, len(self.dataset)))]

        pool = ThreadPoolExecutor(max_workers=_BATCHES_AHEAD)
        pending: deque[Future[list[Picture | str]]] = deque()
        try:
            for start in range(0, len(self.dataset), batch_size):
                pending.append(pool.submit(load, start))
                if len(pending) > _BATCHES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _picture(self, index: int) -> Picture | str:
        if (kept := self._kept.get(index)) is not None:
            return kept
        record = self.dataset.images[index]
        try:
            image = read_image(record.path)
        except InputError as error:
            return str(error)
        size = image.shape[0], image.shape[1]
        if record.size is not None and size != tuple(record.size):
            found, stated = (f"{height}x{width}" for height, width in (size, record.size))
            return f"{record.path}: is {found} pixels, height x width; expected {stated}, as {self.dataset.name} says"
        image = image if self.image_size is None else resize(image, self.image_size)
        picture = Picture(np.ascontiguousarray(image.transpose(2, 0, 1)), size)
        if index < self._num_kept:
            self._kept[index] = picture
        return picture


def stack(pictures: Sequence[Picture], batch_limit: int | None) -> NDArray[np.float32]:
    """(B, 3, H, W) in 0 ... 255; zeros follow the images where the network takes a fixed number."""
    inputs = np.zeros((batch_limit or len(pictures), *pictures[0].pixels.shape), np.float32)
    for place, picture in zip(inputs, pictures, strict=False):
        place[...] = picture.pixels
    return inputs


def without_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The same images without some classes."""
    if not names:
        return dataset
    stay = [label for label, name in enumerate(dataset.class_names) if name not in names]
    new_label = np.full(len(dataset.class_names), -1, np.int64)
    new_label[stay] = np.arange(len(stay))
    images = []
    for record in dataset.images:
        labels = new_label[record.labels]
        keep = labels >= 0
        polygons = record.polygons and tuple(
            outline for outline, kept in zip(record.polygons, keep, strict=True) if kept
        )
        images.append(
            replace(
                record,
                boxes=record.boxes[keep],
                labels=labels[keep],
                ignored=record.ignored[keep],
                areas=record.areas[keep],
                polygons=polygons,
            )
        )
    return replace(
        dataset,
        class_names=tuple(dataset.class_names[label] for label in stay),
        category_ids=tuple(dataset.category_ids[label] for label in stay),
        images=tuple(images),
    )
