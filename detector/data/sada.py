"""SADA: augmentation of single boxes, as strong as their size asks for.

A step changes the colours around some boxes, or turns, mirrors or copies the boxes themselves, faded in and out by
Gaussian weights so that no edge shows.

Source: scale-aware automatic augmentation (arXiv 2103.17220) with the policy of the official DAMO-YOLO. What differs
from the latter: values are rounded to whole grey levels after each step, and a copied box and its pixels move by the
same offset.

Tensor letters: G boxes, H W image size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .dataset import Sample
from .geometry import box_areas, clip_boxes
from .sada_ops import COLOUR_OPS, GEOMETRIC_OPS, Window, blend_into, change_crop, gaussian, translation

PUBLISHED_VECTOR = (
    *(6, 9, 5, 3),  # not used
    *(3, 4, 2, 4, 4, 4),
    *(5, 2, 4, 1, 4, 2),
    *(6, 4, 2, 2, 2, 6),
    *(2, 2, 2, 0, 5, 1),
    *(3, 0, 8, 5, 2, 8),
    *(7, 5, 1, 3, 3, 3),
)
"""The policy that DAMO-YOLO trains with; `SadaPolicy.from_vector` reads it."""

_RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
_SPLITS = (2048, 10240, 51200)  # areas between small, middle, large and very large boxes, at a side of 800 pixels


@dataclass(frozen=True, slots=True)
class Step:
    """An operation, how often, how strong.

    Attributes:
        name: One of `COLOUR_OPS` or `GEOMETRIC_OPS`.
        probability: Per image, at the end of the ramp.
        level: Between 0 and 10.
    """

    name: str
    probability: float
    level: int


@dataclass(frozen=True, slots=True)
class SadaPolicy:
    """What SADA does.

    Attributes:
        pairs: An image gets one of these, all equally likely: a colour step, then a geometric one.
        colour_shares: How the colour steps' choice of boxes is shared out to small, middle and large ones.
        geometric_shares: The same of the geometric steps.
        spreads: How far colours reach around small, middle and large boxes.
    """

    pairs: tuple[tuple[Step, Step], ...]
    colour_shares: tuple[int, int, int]
    geometric_shares: tuple[int, int, int]
    spreads: tuple[float, float, float]

    @classmethod
    def from_vector(cls, vector: Sequence[int]) -> SadaPolicy:
        """Read the 40 numbers of a searched policy.

        They are: 4 that are not used; five times colour operation, probability in tenths, level, geometric operation,
        probability in tenths, level; the shares of the colour steps, which also number the spreads; the shares of the
        geometric steps.

        Raises:
            ValueError: Not 40 numbers between 0 and 10, or shares that are all 0 or number no spread.
        """
        if len(vector) != 40 or not all(0 <= number <= 10 for number in vector):
            raise ValueError(f"sada_vector is {list(vector)}; expected 40 integers between 0 and 10")
        colours = (vector[34], vector[35], vector[36])
        geometric = (vector[37], vector[38], vector[39])
        if not (sum(colours) and sum(geometric) and max(colours) < len(_RATIOS)):
            found = [*colours, *geometric]
            raise ValueError(f"sada_vector ends in {found}; expected 0 to 9 each, and not all 0 of either three")
        names = tuple(COLOUR_OPS)
        pairs = []
        for start in range(4, 34, 6):
            op, tenths, level, other, other_tenths, other_level = vector[start : start + 6]
            first = Step(names[op % len(names)], tenths / 10, level)
            second = Step(GEOMETRIC_OPS[other % len(GEOMETRIC_OPS)], other_tenths / 10, other_level)
            pairs.append((first, second))
        spreads = (_RATIOS[colours[0]], _RATIOS[colours[1]], _RATIOS[colours[2]])
        return cls(tuple(pairs), colours, geometric, spreads)


def sada(
    sample: Sample,
    policy: SadaPolicy,
    *,
    progress: float,
    box_probability: float,
    rng: np.random.Generator,
) -> Sample:
    """Augment the surroundings and the pixels of some boxes.

    Args:
        sample: Image and boxes; its outlines are not kept.
        policy: What may be done.
        progress: How much of the training is over, 0 to 1; the steps' probabilities are multiplied by it.
        box_probability: Multiplied by the shares of the policy, how likely a box of an image is chosen.
        rng: Where the numbers come from.

    Returns:
        The image with the boxes it had, then those that were copied; the one given is not changed.
    """
    colour_step, geometric_step = policy.pairs[int(rng.integers(len(policy.pairs)))]
    sample = replace(sample, polygons=None)
    if rng.random() < colour_step.probability * progress:
        chosen = _choose(sample, policy.colour_shares, box_probability, rng)
        sample = change_colours(sample, chosen, colour_step, spreads=policy.spreads)
    if rng.random() < geometric_step.probability * progress:
        chosen = _choose(sample, policy.geometric_shares, box_probability, rng)
        sign = -1 if rng.random() < 0.5 else 1
        sample = change_boxes(sample, chosen, geometric_step, sign=sign)
    return sample


def change_colours(
    sample: Sample, chosen: NDArray[np.intp], step: Step, *, spreads: tuple[float, float, float]
) -> Sample:
    """Apply a colour step around the chosen boxes.

    The weight of the changed image is the sum of a Gaussian per box, at most 1. It is computed where it can change a
    pixel by half a grey level or more; outside, rounding gives the pixel back, so nothing is lost.

    Args:
        sample: Is not changed.
        chosen: Indices of its boxes; none gives it back as it is.
        step: The operation, and how strong it is.
        spreads: As `Policy` has them.
    """
    size = sample.image.shape[0], sample.image.shape[1]
    spots = [spot for spot in (_spot(sample.boxes[index], size, spreads) for index in chosen) if spot is not None]
    if not spots:
        return sample
    # 255 times n weights of less than 1 / (510 n) is less than a half.
    reach = math.sqrt(2 * math.log(510 * len(spots)))
    windows = [_around(centre, sigmas, reach, size) for centre, sigmas in spots]
    whole = tuple(
        slice(min(window[axis].start for window in windows), max(window[axis].stop for window in windows))
        for axis in (0, 1)
    )
    window = (whole[0], whole[1])
    weight = sum(gaussian(window, centre, sigmas) for centre, sigmas in spots)
    image = sample.image.copy()
    blend_into(image, window, COLOUR_OPS[step.name](sample.image, step.level, window), np.minimum(weight, 1))
    return replace(sample, image=image)


def change_boxes(sample: Sample, chosen: NDArray[np.intp], step: Step, *, sign: int) -> Sample:
    """Apply a geometric step to the pixels of the chosen boxes.

    Mirroring, turning and shearing leave the annotations as they are. A translation lays a copy of the box's pixels
    down some whole pixels away, and appends the moved box, clipped to the image; the offset is shortened where the
    box's right or lower side would leave the image.

    Args:
        sample: Is not changed.
        chosen: Indices of its boxes; none gives it back as it is.
        step: The operation, and how strong it is.
        sign: 1, or -1 for the other direction.
    """
    if not len(chosen):
        return sample
    image = sample.image.copy()
    height, width = image.shape[:2]
    shift = translation(step.name, step.level)
    copies, labels = [], []
    for index in chosen:
        x1, y1, x2, y2 = (int(side) for side in clip_boxes(sample.boxes[index : index + 1], (height, width))[0])
        if x1 >= x2 or y1 >= y2:
            continue
        crop = sample.image[y1:y2, x1:x2]
        across = min(max(x2 + int(sign * shift[0]), 0), width) - x2
        down = min(max(y2 + int(sign * shift[1]), 0), height) - y2
        if shift == (0.0, 0.0):
            crop = change_crop(crop, step.name, level=step.level, sign=sign)
        elif across or down:
            copies.append(sample.boxes[index] + np.array((across, down) * 2, np.float32))
            labels.append(sample.labels[index])
        _lay(image, crop, (x1 + across, y1 + down))
    added = clip_boxes(np.array(copies, np.float32).reshape(-1, 4), (height, width))
    whole = box_areas(added) > 0
    return Sample(
        image,
        np.concatenate([sample.boxes, added[whole]]),
        np.concatenate([sample.labels, np.array(labels, np.int64)[whole]]),
    )


def _choose(
    sample: Sample, shares: tuple[int, int, int], probability: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Indices of the boxes a step is applied to, each drawn by itself."""
    areas = box_areas(sample.boxes)
    small, middle, _ = _splits((sample.image.shape[0], sample.image.shape[1]))
    share = np.select([areas <= 0, areas < small, areas < middle], [0, shares[0], shares[1]], shares[2])
    return np.flatnonzero(rng.random(len(areas)) < probability * share / sum(shares))


def _splits(size: tuple[int, int]) -> tuple[float, float, float]:
    factor = min(size) / 800
    return _SPLITS[0] * factor, _SPLITS[1] * factor, _SPLITS[2] * factor


def _spot(
    box: NDArray[np.float32], size: tuple[int, int], spreads: tuple[float, float, float]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Centre and sigmas, in x and y, of the Gaussian of a box; None for an empty box."""
    x, y = float(box[0]), float(box[1])
    width, height = float(box[2]) - x, float(box[3]) - y
    if width <= 0 or height <= 0:
        return None
    area = width * height
    small, middle, large = _splits(size)
    if area < small:
        ratio = spreads[0] * small / area
    elif area < middle:
        ratio = spreads[1] * (small + middle) / 2 / area
    else:
        ratio = spreads[2] * (large / area if area < large else 1)
    reach = math.sqrt(ratio * size[0] * size[1] / (2 * math.pi))
    centre = (x + math.floor(width / 2), y + math.floor(height / 2))
    return centre, (width / size[1] * reach, height / size[0] * reach)


def _around(centre: tuple[float, float], sigmas: tuple[float, float], reach: float, size: tuple[int, int]) -> Window:
    """Rows and columns of the image within so many sigmas of a centre."""
    columns, rows = (
        slice(max(0, math.floor(middle - reach * sigma)), min(limit, math.ceil(middle + reach * sigma) + 1))
        for middle, sigma, limit in zip(centre, sigmas, (size[1], size[0]), strict=True)
    )
    return rows, columns


def _lay(image: NDArray[np.uint8], crop: NDArray[np.uint8], corner: tuple[int, int]) -> None:
    """Mix a crop into the image, its top left pixel at (x, y), fading out from the middle of the part that is seen."""
    left, top = corner
    rows = slice(max(top, 0), min(top + crop.shape[0], image.shape[0]))
    columns = slice(max(left, 0), min(left + crop.shape[1], image.shape[1]))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height <= 0 or width <= 0:
        return
    seen = crop[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    sigma = math.sqrt(height * width / (2 * math.pi))
    weight = gaussian((slice(0, height), slice(0, width)), (width // 2, height // 2), (sigma, sigma))
    blend_into(image, (rows, columns), seen.astype(np.float32), weight)
