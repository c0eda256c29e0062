"""Batches for training, made in worker processes.

What a batch holds depends on the data set, the settings, the seed and the batch's number, and on nothing else: not on
the number of workers or processes, nor on where a run was resumed.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from ..errors import ConfigError, DataError, TrainingError
from ..targets import Batch
from .batches import BatchMaker, MadeBatch, PackedBatch
from .dataset import Dataset
from .pipeline import Augmenter, BrokenImage
from .plan import BatchPlan, count_iterations
from .sampling import SamplingSettings, image_shares
from .settings import AugmentSettings, check_size
from .store import ImageStore

__all__ = ["AugmentSettings", "TrainLoader", "count_iterations"]

BROKEN_SHARE = 0.1
"""Of the images of an epoch, more than this may not be broken."""

_SPARE_BATCHES = 2

_log = logging.getLogger(__name__)


class TrainLoader:
    """The batches of a training run, from any iteration to its end.

    Images are uint8; converting them is the device's work. A broken image is named in a warning, once, and
    replaced by another.

    Attributes:
        iterations_per_epoch: Batches of an epoch.
        num_broken: Images replaced so far because they could not be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: AugmentSettings,
        *,
        batch_size: int,
        seed: int,
        total_iterations: int,
        final_epochs: int = 0,
        start_iteration: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        cache: str = "none",
        last: str = "drop",
        multi_scale: Sequence[int] = (),
        multi_scale_every: int = 10,
        sampling: SamplingSettings | None = None,
    ) -> None:
        """Plan the batches; with a cache, read the images.

        Args:
            dataset: Training images.
            settings: Augmentation, and the size of the images.
            batch_size: Images of a batch over all processes; a multiple of `world_size`.
            seed: Of the order and all augmentation; 0 or more.
            total_iterations: Batches of the whole run; SADA's ramp depends on it.
            final_epochs: Epochs at the end without mosaic and MixUp.
            start_iteration: Number of the first batch, counted from the start of the run.
            num_workers: Processes that make batches; 0 makes them here. More do not change them.
            rank: Of this process.
            world_size: Processes that train together; each gets its part of every batch.
            cache: `none`, or `ram` to decode each image once and keep it; shared with forked workers.
            last: What becomes of the images of an epoch that make no whole batch; see `count_iterations`.
            multi_scale: Sides of square inputs that are drawn by chance; empty keeps the settings' size.
            multi_scale_every: Batches before a side is drawn again.
            sampling: How often each image is shown; by default the defaults of the settings.

        Raises:
            ConfigError: Naming the value that does not fit.
        """
        self.iterations_per_epoch = count_iterations(len(dataset), batch_size, last=last)
        _check("num_workers", num_workers, 0, None)
        _check("multi_scale_every", multi_scale_every, 1, None)
        _check("seed", seed, 0, None)
        _check_processes(rank, world_size, batch_size=batch_size, last=last)
        _check_sides(multi_scale)
        if cache != "none" and num_workers and _context() is None:
            raise ConfigError(f"cache is {cache!r} with workers that do not share memory; expected num_workers 0")
        self._settings = settings
        self._dataset = dataset
        self._num_workers = num_workers
        shares = image_shares(dataset, SamplingSettings() if sampling is None else sampling)
        self._plan = BatchPlan(
            num_images=len(dataset),
            batch_size=batch_size,
            per_epoch=self.iterations_per_epoch,
            total=total_iterations,
            final_from=total_iterations,
            seed=seed,
            rank=rank,
            world_size=world_size,
            last=last,
            image_size=settings.image_size,
            multi_scale=tuple(multi_scale),
            multi_scale_every=multi_scale_every,
            ramp_until=total_iterations,
            sada_in_final=settings.sada_in_final_epochs,
            views=settings.views,
            shares=shares,
        )
        self._set_length(total_iterations, final_epochs, start_iteration)
        store = ImageStore(dataset, tile_size=settings.tile_size, cache=cache)
        self._augmenter = Augmenter(store, settings, shares=shares)
        self.num_broken = 0
        self._named: set[int] = set()

    def with_length(self, *, total_iterations: int, final_epochs: int, start_iteration: int) -> TrainLoader:
        """The same loader, cached images included, for a run of another length.

        Args:
            total_iterations: As of the class; so are the others.
            final_epochs: Those at the end of that length.
            start_iteration: Where it begins.

        Raises:
            ConfigError: Naming the value that does not fit.
        """
        loader = copy.copy(self)
        loader._set_length(total_iterations, final_epochs, start_iteration)
        return loader

    def _set_length(self, total: int, final_epochs: int, start: int) -> None:
        _check("total_iterations", total, 1, None)
        _check("final_epochs", final_epochs, 0, None)
        _check("start_iteration", start, 0, total)
        final_from = total - final_epochs * self.iterations_per_epoch
        ramp_until = total if self._settings.sada_ramp == "all" else max(1, final_from)
        self._plan = replace(self._plan, total=total, final_from=final_from, ramp_until=ramp_until)
        self._start = start

    def __len__(self) -> int:
        """Batches from the first to the end of the run."""
        return self._plan.total - self._start

    def __iter__(self) -> Iterator[Batch]:
        """All batches to the end of the run; workers live as long as the iterator.

        Raises:
            DataError: More than a tenth of the images of an epoch are broken.
            TrainingError: A worker process has died.
        """
        epoch, broken = -1, set[int]()
        for item in self._made():
            made = item.unpack() if isinstance(item, PackedBatch) else item
            if made.error is not None:
                raise DataError(made.error)
            if made.batch.index // self.iterations_per_epoch != epoch:
                epoch, broken = made.batch.index // self.iterations_per_epoch, set()
            self._note(made.broken, broken)
            yield made.batch

    def _made(self) -> Iterator[MadeBatch | PackedBatch]:
        workers = self._num_workers
        packed = workers > 0 and not self._shared_memory_is_enough()
        maker = BatchMaker(self._augmenter, self._plan, start=self._start, packed=packed)
        if workers:
            # Workers forked from a process whose OpenCV has started threads would wait for them for ever.
            cv2.setNumThreads(0)
        with warnings.catch_warnings():
            # More workers than cores only wait; how many there are is the choice of the recipe or the user.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                maker,
                batch_size=None,
                num_workers=workers,
                collate_fn=_as_it_is,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=_SPARE_BATCHES if workers else None,
                worker_init_fn=_start_worker,
                multiprocessing_context=_context() if workers else None,
            )
            batches = iter(loader)
        try:
            yield from batches
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise TrainingError(f"{reason}; out of memory, most often: expected fewer workers or no cache") from error

    def _note(self, found: Sequence[BrokenImage], of_epoch: set[int]) -> None:
        """Count broken images, name new ones, and give up when they are too many."""
        for image in found:
            self.num_broken += 1
            of_epoch.add(image.index)
            if image.index not in self._named:
                self._named.add(image.index)
                _log.warning("%s; another image takes its place", image.reason)
        if len(of_epoch) > BROKEN_SHARE * len(self._dataset):
            raise DataError(
                f"{self._dataset.name}: {len(of_epoch)} of {len(self._dataset)} images cannot be read, more than "
                f"{BROKEN_SHARE:.0%}; the last: {found[-1].reason}"
            )

    def _shared_memory_is_enough(self) -> bool:
        """Whether the batches on their way fit where torch puts tensors for other processes.

        Containers often have little there, and a worker that finds it full dies without a word.
        """
        height, width = self._plan.image_size
        largest = max([height * width, *(side * side for side in self._plan.multi_scale)])
        batches = self._num_workers * (_SPARE_BATCHES + 1) + 1
        try:
            free = shutil.disk_usage("/dev/shm").free
        except OSError:
            return True
        return batches * 3 * largest * self._plan.batch_size // self._plan.world_size < free


def _as_it_is(made: Any) -> Any:  # noqa: ANN401  torch's annotation knows lists only
    return made


def _start_worker(worker: int) -> None:
    # Both often go to all processes of a job; the training process answers them and ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)


def _context() -> str | None:
    """How workers start: forked on Linux, which shares the cache; elsewhere as Python does."""
    return "fork" if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods() else None


def _check_processes(rank: int, world_size: int, *, batch_size: int, last: str) -> None:
    """Every process must get the same number of images of every batch."""
    _check("world_size", world_size, 1, None)
    _check("rank", rank, 0, world_size - 1)
    if batch_size % world_size or (last == "keep" and world_size > 1):
        found = f"batch_size is {batch_size} and last is {last!r} with {world_size} processes"
        raise ConfigError(f"{found}; expected a multiple of {world_size}, and no smaller last batch")


def _check_sides(multi_scale: Sequence[int]) -> None:
    for side in multi_scale:
        try:
            check_size("multi_scale", (side, side))
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _check(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"{low} ... {high}"
        raise ConfigError(f"{name} is {value}; expected {expected}")
