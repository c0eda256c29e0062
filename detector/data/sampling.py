"""How often each training image is shown: data sets of a union by their size, images by how rare their classes are.

Tensor letters: N images, S sources, C classes.

Sources: smoothed shares and class-aware sampling as in DAMO-YOLO (arXiv 2211.15444), section 2.5, which gives no
formulas; those for classes are the repeat factors of LVIS (arXiv 1908.03195), section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.records import require

from .dataset import Dataset

CLASS_AWARE = ("union", "always", "never")


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How often each training image is shown.

    Attributes:
        source_power: a of a union: a source with n images is shown in proportion to n^a. 1 shows every image alike,
            0 every source.
        class_aware: Whether images with rare classes are shown more often: in a `union` only, `always`, or `never`.
        rare_share: t: a class that fewer than this share of a source's images hold counts as rare.
    """

    source_power: float = 0.5
    class_aware: str = "union"
    rare_share: float = 0.001

    def __post_init__(self) -> None:
        require(0 <= self.source_power <= 1, "source_power", self.source_power, "a number from 0 to 1")
        require(self.class_aware in CLASS_AWARE, "class_aware", self.class_aware, f"one of {', '.join(CLASS_AWARE)}")
        fits = 0 < self.rare_share <= 1
        require(fits, "rare_share", self.rare_share, "a number above 0, at most 1")


def source_shares(sizes: Sequence[int], power: float) -> NDArray[np.float64]:
    """(S,) p_s = n_s^a / sum of n^a from the numbers of images; a source without images gets 0."""
    counts = np.array(sizes, np.float64)
    smoothed = np.where(counts > 0, counts**power, 0.0)
    return smoothed / smoothed.sum()


def repeat_factors(holds: Sequence[NDArray[np.int64]], num_classes: int, rare_share: float) -> NDArray[np.float64]:
    """(N,) factors of images: the largest over an image's classes of max(1, sqrt(t / f_c)).

    Args:
        holds: Per image the labels of its boxes; any number of times, in any order.
        num_classes: C.
        rare_share: t. f_c is the share of the images that hold class c.

    Returns:
        1 for an image without boxes.
    """
    images, labels = present_pairs(holds, num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    shares = counts / max(len(holds), 1)
    # A class that no image holds is asked for by none.
    by_class = np.maximum(1.0, np.sqrt(rare_share / np.where(counts > 0, shares, math.inf)))
    factors = np.ones(len(holds))
    np.maximum.at(factors, images, by_class[labels])
    return factors


def present_pairs(holds: Sequence[NDArray[np.int64]], num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place in `holds` and label, in two arrays, of every image and class that it holds, each pair once."""
    places = np.repeat(np.arange(len(holds)), [len(labels) for labels in holds])
    pairs = np.unique(places * num_classes + np.concatenate([np.zeros(0, np.int64), *holds]))
    return pairs // num_classes, pairs % num_classes


def image_shares(dataset: Dataset, settings: SamplingSettings) -> NDArray[np.float64] | None:
    """(N,) how often each image is shown, adding up to 1; None where all are shown alike.

    Within a source, shares follow the repeat factors; those of a source together are its smoothed share.
    """
    is_union = dataset.union is not None
    class_aware = settings.class_aware == "always" or (is_union and settings.class_aware == "union")
    sources = np.array([record.source for record in dataset.images], np.int64)
    factors = np.ones(len(dataset))
    if class_aware:
        for source in np.unique(sources):
            members = np.flatnonzero(sources == source)
            holds = [labels_shown(dataset, index) for index in members.tolist()]
            factors[members] = repeat_factors(holds, len(dataset.class_names), settings.rare_share)
    # Smoothing changes nothing where there is one source, or all are as large as each other.
    sizes = np.bincount(sources)
    alike = settings.source_power == 1 or len(np.unique(sizes[sizes > 0])) <= 1
    if alike and (factors == 1).all():
        return None
    per_source = source_shares(sizes.tolist(), settings.source_power)
    totals = np.bincount(sources, weights=factors)
    shares: NDArray[np.float64] = factors * (per_source / np.where(totals > 0, totals, 1.0))[sources]
    return shares


def labels_shown(dataset: Dataset, index: int) -> NDArray[np.int64]:
    """The labels of the boxes of an image that are trained on."""
    record = dataset.images[index]
    return record.labels[~record.ignored]


def draw_images(shares: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Image indices in random order, each as often as its share asks for.

    An image whose share is p comes floor(count * p) or ceil(count * p) times, count * p on average: the images are
    laid on a line in random order, as long as their shares, and taken where evenly spaced marks fall.

    Args:
        shares: (N,) adding up to 1.
        count: Indices to draw.
        rng: Everything random comes from it.
    """
    line = rng.permutation(len(shares))
    ends = np.cumsum(shares[line])
    marks = (rng.random() + np.arange(count)) * (ends[-1] / count)
    # Rounding must not lead beyond the last image.
    places = np.minimum(np.searchsorted(ends, marks, side="right"), len(line) - 1)
    return rng.permutation(line[places])


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Images that one is drawn from, for a mosaic or in place of a broken one.

    Attributes:
        indices: Of the images.
        ends: Cumulated shares of them, up to 1; None where all are drawn alike.
    """

    indices: NDArray[np.intp]
    ends: NDArray[np.float64] | None = None

    def draw(self, rng: np.random.Generator) -> int:
        """One image."""
        return int(self._drawn(rng, None))

    def draw_several(self, rng: np.random.Generator, count: int) -> list[int]:
        """Images, possibly one of them several times."""
        return [int(index) for index in self._drawn(rng, count)]

    def _drawn(self, rng: np.random.Generator, count: int | None) -> Any:  # noqa: ANN401  a number or an array
        if self.ends is None:
            return self.indices[rng.integers(len(self.indices), size=count)]
        places = np.searchsorted(self.ends, rng.random(count), side="right")
        return self.indices[np.minimum(places, len(self.indices) - 1)]


class Partners:
    """Which images may stand beside one in a sample: those of its own source, drawn as often as they are shown.

    What a source does not mark is unknown in its images; a sample of two sources would be known in parts only.

    Args:
        sources: (N,) number of each image's source.
        annotated: (N,) whether an image has a box to train on.
        shares: (N,) as of `image_shares`.
    """

    def __init__(
        self,
        sources: NDArray[np.int64],
        annotated: NDArray[np.bool_],
        shares: NDArray[np.float64] | None = None,
    ) -> None:
        self.sources = sources
        self._all: dict[int, Pool] = {}
        self._annotated: dict[int, Pool] = {}
        for source in np.unique(sources).tolist():
            members = np.flatnonzero(sources == source)
            self._all[source] = _pool(members, shares)
            self._annotated[source] = _pool(members[annotated[members]], shares)

    def of(self, index: int) -> Pool:
        """All images of an image's source."""
        return self._all[int(self.sources[index])]

    def annotated(self, index: int) -> Pool:
        """Those of them that have a box to train on."""
        return self._annotated[int(self.sources[index])]


def _pool(indices: NDArray[np.intp], shares: NDArray[np.float64] | None) -> Pool:
    if shares is None or not len(indices):
        return Pool(indices)
    ends = np.cumsum(shares[indices])
    return Pool(indices, ends / ends[-1])
