"""Training samples as a picture, to be looked at before a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..drawing import draw_detections
from ..errors import InputError
from ..types import Detections
from .dataset import Dataset, Sample
from .geometry import pad
from .pipeline import Augmenter, Moment
from .plan import epoch_order, sample_generator
from .sampling import SamplingSettings, image_shares
from .settings import AugmentSettings
from .store import ImageStore

_GAP = 6
_GAP_COLOUR = 255


def augmented_samples(
    dataset: Dataset,
    settings: AugmentSettings,
    *,
    count: int,
    seed: int,
    moment: Moment,
    sampling: SamplingSettings | None = None,
) -> tuple[list[Sample], list[str]]:
    """The samples of the first batch that training with this seed would make, were it at this moment of the run.

    Args:
        dataset: Training images.
        settings: Augmentation.
        count: Of samples; a data set with fewer images is gone through again.
        seed: As of the training run.
        moment: Where in the run.
        sampling: How often each image is shown; by default the defaults of the settings.

    Returns:
        The samples, and why images were replaced.

    Raises:
        DataError: Too many images cannot be read.
    """
    shares = image_shares(dataset, SamplingSettings() if sampling is None else sampling)
    augmenter = Augmenter(ImageStore(dataset, tile_size=settings.tile_size), settings, shares=shares)
    samples, reasons = [], []
    order = epoch_order(len(dataset), seed=seed, epoch=0, shares=shares)
    for position, index in enumerate(np.resize(order, count)):
        rng = sample_generator(seed=seed, number=0, position=position)
        sample, broken = augmenter.sample(int(index), moment, rng)
        samples.append(sample)
        reasons += [image.reason for image in broken]
    return samples, reasons


def plain_samples(dataset: Dataset, *, size: tuple[int, int], count: int, seed: int) -> tuple[list[Sample], list[str]]:
    """Images as they are, fitted into (height, width), in the order that training with this seed starts with.

    Returns:
        At most `count` samples, each image once, and why images were left out.
    """
    store = ImageStore(dataset, tile_size=size)
    samples: list[Sample] = []
    reasons: list[str] = []
    for index in epoch_order(len(dataset), seed=seed, epoch=0):
        if len(samples) == count:
            break
        try:
            samples.append(replace(pad(store.fitted(int(index), size), size, value=0), polygons=None))
        except InputError as error:
            reasons.append(str(error))
    return samples, reasons


def draw_grid(samples: Sequence[Sample], class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Samples of one image size with their boxes and names, side by side in about as many rows as columns.

    Args:
        samples: One or more.
        class_names: In label order.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    height, width = samples[0].image.shape[:2]
    columns = math.ceil(math.sqrt(len(samples)))
    rows = math.ceil(len(samples) / columns)
    grid = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), _GAP_COLOUR, np.uint8)
    for place, sample in enumerate(samples):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        marked = Detections(
            boxes=sample.boxes,
            scores=np.ones(len(sample.labels), np.float32),
            labels=sample.labels,
            image_size=(height, width),
            class_names=tuple(class_names),
        )
        grid[top : top + height, left : left + width] = draw_detections(sample.image, marked, with_scores=False)
    return grid
