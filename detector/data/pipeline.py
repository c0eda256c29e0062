"""One augmented sample: which steps, in which order.

Mosaic and warp, MixUp, resize, colours, turns and flips, SADA. Everything random is drawn from the generator given, so
a sample depends on its data set, settings and generator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from .dataset import Sample
from .geometry import (
    box_areas,
    draw_affine,
    fitted_size,
    flip_upside_down,
    mirror,
    pad,
    select,
    stretch,
    turn,
    warp,
)
from .mosaic import mix_up, mosaic
from .sada import SadaPolicy, sada
from .sampling import Partners, Pool
from .settings import AugmentSettings
from .store import ImageStore

_TRIES = 50
_BACKGROUND = 0  # around an image whose aspect ratio is kept


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """An image that could not be read, and was replaced by another one.

    Attributes:
        index: Place in the data set.
        reason: Names the file.
    """

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in a training run a sample belongs.

    Attributes:
        progress: Of SADA's ramp, 0 to 1.
        mixing: Mosaic and MixUp are on; off in the final epochs.
        sada: SADA is on, if the settings have it.
    """

    progress: float = 0.0
    mixing: bool = True
    sada: bool = True


class Augmenter:
    """Makes samples of the images of a store."""

    def __init__(
        self, store: ImageStore, settings: AugmentSettings, *, shares: NDArray[np.float64] | None = None
    ) -> None:
        """Prepare.

        Args:
            store: The images.
            settings: Augmentation.
            shares: How often each image is shown, also beside others; None shows all alike.
        """
        self._store = store
        self._settings = settings
        annotated = np.zeros(len(store), np.bool_)
        annotated[store.annotated] = True
        sources = np.array([record.source for record in store.dataset.images], np.int64)
        self._partners = Partners(sources, annotated, shares)
        self._policy = SadaPolicy.from_vector(settings.sada_vector)

    def sources_of(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        """Numbers of the sources of images; None where there is one data set only."""
        return None if self._store.dataset.union is None else self._partners.sources[list(indices)]

    def sample(
        self, index: int, moment: Moment, rng: np.random.Generator, *, image_size: tuple[int, int] | None = None
    ) -> tuple[Sample, list[BrokenImage]]:
        """One sample of an image.

        Args:
            index: Of the image.
            moment: Where in the run.
            rng: Everything random comes from it.
            image_size: (height, width) of the sample; by default as in the settings.

        Returns:
            The sample, and the images that were replaced because they could not be read.

        Raises:
            DataError: Too many images in a row cannot be read.
        """
        settings = self._settings
        size = settings.image_size if image_size is None else image_size
        broken: list[BrokenImage] = []
        mixed = moment.mixing and rng.random() < settings.mosaic
        mosaic_sample = self._mosaic(index, rng, broken) if mixed else None
        quarters = int(rng.integers(1, 4)) if rng.random() < settings.rotate_90 else 0
        before = size if quarters % 2 == 0 else size[::-1]
        if mosaic_sample is not None:
            height, width = mosaic_sample.image.shape[:2]
            sample = stretch(mosaic_sample, fitted_size((height, width), before) if settings.keep_ratio else before)
        else:
            take = self._store.fitted if settings.keep_ratio else self._store.stretched
            sample = self._read(lambda chosen: take(chosen, before), index, self._partners.of(index), rng, broken)
        sample = turn(sample, quarters)
        if settings.hue or settings.saturation or settings.value:
            sample = replace(sample, image=jitter_colours(sample.image, settings, rng))
        if rng.random() < settings.flip_vertical:
            sample = flip_upside_down(sample)
        if rng.random() < settings.flip:
            sample = mirror(sample)
        if settings.sada and moment.sada:
            sample = sada(
                sample,
                self._policy,
                progress=moment.progress,
                box_probability=settings.sada_box_probability,
                rng=rng,
            )
        return pad(replace(sample, polygons=None), size, value=_BACKGROUND), broken

    def _mosaic(self, index: int, rng: np.random.Generator, broken: list[BrokenImage]) -> Sample:
        settings, store, size = self._settings, self._store, self._settings.tile_size
        others = self._partners.of(index)
        tiles = [
            self._read(lambda chosen: store.stretched(chosen, size), chosen, others, rng, broken)
            for chosen in [index, *others.draw_several(rng, 3)]
        ]
        canvas = mosaic(tiles, rng)
        affine = draw_affine(
            rng,
            source=(2 * size[0], 2 * size[1]),
            target=size,
            degrees=settings.degrees,
            scale=settings.scale,
            shear=settings.shear,
            translate=settings.translate,
        )
        sample = warp(
            canvas,
            affine,
            size,
            min_side=settings.min_box_side,
            min_visible=settings.min_visible,
            max_aspect=settings.max_aspect,
        )
        if len(sample.labels) and rng.random() < settings.mixup:
            others = self._partners.annotated(index)
            other = self._read(lambda chosen: store.fitted(chosen, size), others.draw(rng), others, rng, broken)
            sample = mix_up(sample, other, scale=settings.mixup_scale, rng=rng)
        return select(sample, box_areas(sample.boxes) > settings.min_area)

    def _read(
        self,
        take: Callable[[int], Sample],
        index: int,
        others: Pool,
        rng: np.random.Generator,
        broken: list[BrokenImage],
    ) -> Sample:
        """An image, or where it cannot be read another one."""
        for _ in range(_TRIES):
            try:
                return take(index)
            except InputError as error:
                broken.append(BrokenImage(index, str(error)))
                index = others.draw(rng)
        raise DataError(f"{self._store.dataset.name}: {_TRIES} images in a row cannot be read; {broken[-1].reason}")


def jitter_colours(image: NDArray[np.uint8], settings: AugmentSettings, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn the hue and scale saturation and brightness, each by one random amount for the whole image."""
    hue, saturation, value = rng.uniform(-1, 1, 3) * (settings.hue, settings.saturation, settings.value)
    levels = np.arange(256)
    # Hues of eight-bit images are counted in OpenCV from 0 to 179.
    tables = ((levels + 180 * hue) % 180, levels * (1 + saturation), levels * (1 + value))
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    changed = [
        cv2.LUT(channel, np.clip(table, 0, 255).astype(np.uint8))
        for channel, table in zip(channels, tables, strict=True)
    ]
    return np.asarray(cv2.cvtColor(cv2.merge(changed), cv2.COLOR_HSV2RGB), np.uint8)
