"""Training images at the sizes that augmentation asks for, read from their files or kept in memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..images import read_header, read_reduced
from .cleaning import training_boxes
from .dataset import Dataset, ImageRecord, Sample
from .geometry import fitted_size, resize_image, scaled
from .memory import available_bytes

CACHES = ("none", "ram")

_MEMORY_SHARE = 0.8  # of the free memory that a cache may take


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What the cache holds of an image.

    Attributes:
        size: (height, width) of the image in its file.
        images: By size: the image as it is, or, where these are smaller together, the two that mosaic and MixUp take.
    """

    size: tuple[int, int]
    images: dict[tuple[int, int], NDArray[np.uint8]]


class ImageStore:
    """Reads the images of a data set, with boxes clipped to the image and without those that are ignored.

    Whatever the cache keeps, samples are bit for bit those made from the files.

    Attributes:
        dataset: The images.
        tile_size: (height, width) of a mosaic's tiles.
        annotated: Indices of the images with a box to train on.

    Raises:
        ConfigError: The cache is none of `CACHES`, or would not fit into memory.
    """

    def __init__(self, dataset: Dataset, *, tile_size: tuple[int, int], cache: str = "none") -> None:
        if cache not in CACHES:
            raise ConfigError(f"cache is {cache!r}; expected one of {', '.join(CACHES)}")
        self.dataset = dataset
        self.tile_size = tile_size
        self.annotated = np.flatnonzero([not record.ignored.all() for record in dataset.images])
        self._kept: dict[int, _Kept] = {}
        if cache == "ram":
            self._fill()

    def __len__(self) -> int:
        return len(self.dataset)

    def stretched(self, index: int, size: tuple[int, int]) -> Sample:
        """An image stretched to (height, width).

        Raises:
            InputError: The file cannot be read.
        """
        image, original = self._image(index, size, fit=False)
        return _with_boxes(self.dataset.images[index], image, original)

    def fitted(self, index: int, size: tuple[int, int]) -> Sample:
        """An image resized so that it just fits into (height, width), aspect ratio kept.

        Raises:
            InputError: The file cannot be read.
        """
        image, original = self._image(index, size, fit=True)
        return _with_boxes(self.dataset.images[index], image, original)

    def _image(self, index: int, size: tuple[int, int], *, fit: bool) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The image as asked for, and the (height, width) that it has in its file."""
        kept = self._kept.get(index)
        if kept is not None:
            wanted = fitted_size(kept.size, size) if fit else size
            if wanted in kept.images:
                return kept.images[wanted], kept.size
            if kept.size in kept.images:
                return resize_image(kept.images[kept.size], wanted), kept.size
        image, original = self._read(index)
        return resize_image(image, fitted_size(original, size) if fit else size), original

    def _fill(self) -> None:
        sizes = [_file_size(record) for record in self.dataset.images]
        needed = sum(3 * height * width for size in sizes for height, width in self._sizes_kept(size))
        free = available_bytes()
        if free is not None and needed > _MEMORY_SHARE * free:
            raise ConfigError(
                f"cache is 'ram', which needs {needed / 1e9:.1f} GB for {len(self.dataset)} images; expected at most "
                f"{_MEMORY_SHARE * free / 1e9:.1f} GB ({_MEMORY_SHARE:.0%} of the free memory), or cache 'none'"
            )
        # Decoding and resizing run outside the interpreter's lock.
        for index, kept in enumerate(_threads().map(self._keep, range(len(self.dataset)))):
            if kept is not None:
                self._kept[index] = kept

    def _keep(self, index: int) -> _Kept | None:
        try:
            image, size = self._read(index)
        except InputError:
            return None  # is found again, and reported, when a sample asks for it
        return _Kept(size, {wanted: resize_image(image, wanted) for wanted in self._sizes_kept(size)})

    def _read(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The image, and the (height, width) that its boxes refer to; a huge one is decoded small, yet above tiles."""
        return read_reduced(self.dataset.images[index].path, side=2 * max(self.tile_size))

    def _sizes_kept(self, size: tuple[int, int]) -> set[tuple[int, int]]:
        wanted = {self.tile_size, fitted_size(size, self.tile_size)}
        return {size} if size[0] * size[1] <= sum(height * width for height, width in wanted) else wanted


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that stay.

    One that ends takes OpenCV's lock after Python has already called it ended; a data worker that is forked in that
    moment waits for the lock for ever.
    """
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="maenas-images")


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_threads.cache_clear)  # the new process has none of them


def _with_boxes(record: ImageRecord, image: NDArray[np.uint8], original: tuple[int, int]) -> Sample:
    """What can be trained on, moved from the image's original size to that of the image given."""
    sample = Sample(image, *training_boxes(record, size=original))
    return scaled(sample, image, (image.shape[1] / original[1], image.shape[0] / original[0]))


def _file_size(record: ImageRecord) -> tuple[int, int]:
    if record.size is not None:
        return record.size
    try:
        return read_header(record.path).size
    except InputError:
        return (1, 1)  # nothing will be kept of it
