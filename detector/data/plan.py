"""Which images, how augmented and how large, make up each batch of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .pipeline import Moment
from .sampling import draw_images

LAST_BATCHES = ("drop", "keep", "fill")

# Third words of seeds beside the positions of samples in their batch, which are smaller.
_ORDER, _SIZE, _VIEW = 2**30, 2**30 + 1, 2**30 + 2


def count_iterations(num_images: int, batch_size: int, *, last: str = "drop") -> int:
    """Batches of an epoch.

    Args:
        num_images: In the data set.
        batch_size: Images of a batch, over all processes.
        last: What becomes of the images that make no whole batch: `drop` them, `keep` a smaller batch, or `fill` it
            up with images from the beginning of the epoch.

    Raises:
        ConfigError: No images, a batch larger than the data set that is neither kept nor filled, or an unknown `last`.
    """
    if last not in LAST_BATCHES:
        raise ConfigError(f"last is {last!r}; expected one of {', '.join(LAST_BATCHES)}")
    if batch_size < 1 or num_images < 1:
        raise ConfigError(f"batch_size is {batch_size} with {num_images} training images; expected at least 1 of each")
    if last == "drop" and batch_size > num_images:
        raise ConfigError(
            f"batch_size is {batch_size} with only {num_images} training images; expected at most {num_images}, "
            "or last batches that are filled up (fill)"
        )
    return num_images // batch_size if last == "drop" else -(-num_images // batch_size)


def epoch_order(
    num_images: int, *, seed: int, epoch: int, shares: NDArray[np.float64] | None = None
) -> NDArray[np.intp]:
    """The order in which an epoch goes through the images: a permutation of their indices.

    Args:
        num_images: In the data set, and in the order.
        seed: Of the run.
        epoch: Its number.
        shares: (num_images,) how often each is shown, adding up to 1; then some come several times and others never.
    """
    rng = np.random.default_rng((seed, epoch, _ORDER))
    return rng.permutation(num_images) if shares is None else draw_images(shares, num_images, rng)


def sample_generator(*, seed: int, number: int, position: int) -> np.random.Generator:
    """What the sample at a position of a batch draws from, in whichever process it is made.

    Args:
        seed: Of the run.
        number: Of the batch, counted from the start of the run.
        position: In the whole batch.
    """
    return np.random.default_rng((seed, number, position))


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What the numbers of a run say of its batches; batches are counted from the start of the run.

    Attributes:
        num_images: In the data set.
        batch_size: Images of a batch, over all processes.
        per_epoch: Batches of an epoch.
        total: Batches of the run.
        final_from: First batch of the final epochs.
        seed: Of everything random.
        rank: Of this process.
        world_size: Processes that share a batch.
        last: One of `LAST_BATCHES`.
        image_size: (height, width) of the images.
        multi_scale: Sides to draw from instead; empty keeps `image_size`.
        multi_scale_every: Batches before a side is drawn again.
        ramp_until: Batch at which SADA's ramp ends.
        sada_in_final: SADA is on in the final epochs.
        views: Different samples of each image; 0 is without end.
        shares: How often each image is shown, adding up to 1; None shows each once an epoch.
    """

    num_images: int
    batch_size: int
    per_epoch: int
    total: int
    final_from: int
    seed: int
    rank: int
    world_size: int
    last: str
    image_size: tuple[int, int]
    multi_scale: tuple[int, ...]
    multi_scale_every: int
    ramp_until: int
    sada_in_final: bool
    views: int = 0
    shares: NDArray[np.float64] | None = field(default=None, compare=False)

    def order(self, epoch: int) -> NDArray[np.intp]:
        """(num_images,) the images of an epoch one after the other."""
        return epoch_order(self.num_images, seed=self.seed, epoch=epoch, shares=self.shares)

    def samples(self, number: int, order: NDArray[np.intp]) -> list[tuple[int, int]]:
        """Position in the whole batch and image index of each sample that this process has of a batch.

        Args:
            number: Of the batch.
            order: (num_images,) of the batch's epoch.
        """
        start = number % self.per_epoch * self.batch_size
        indices = order[start : start + self.batch_size]
        if self.last == "fill":
            indices = np.resize(order, start + self.batch_size)[start:]
        share = len(indices) // self.world_size
        positions = range(self.rank * share, (self.rank + 1) * share)
        return [(position, int(indices[position])) for position in positions]

    def generator(self, number: int, position: int, index: int) -> np.random.Generator:
        """What the sample of an image draws from, at a position of a batch."""
        if not self.views:
            return sample_generator(seed=self.seed, number=number, position=position)
        return np.random.default_rng((self.seed, index, number // self.per_epoch % self.views, _VIEW))

    def moment(self, number: int) -> Moment:
        """Which augmentations are on."""
        final = number >= self.final_from
        return Moment(min(1.0, number / self.ramp_until), mixing=not final, sada=self.sada_in_final or not final)

    def size(self, number: int) -> tuple[int, int]:
        """(height, width) of the images of a batch, the same in all processes."""
        if not self.multi_scale:
            return self.image_size
        rng = np.random.default_rng((self.seed, number // self.multi_scale_every, _SIZE))
        side = self.multi_scale[int(rng.integers(len(self.multi_scale)))]
        return side, side
