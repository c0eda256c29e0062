"""Made-up pictures with objects in them: drawn by a program, so that every box is exact.

Tensor letters: H W size of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from maenas.extras import require

from .sample_shapes import CLASSES, DISTRACTORS, Outline, place_outline, surface

_NAMES = tuple(CLASSES)
_FINE = 4
"""Outlines are drawn that many times finer in both directions, for smooth edges."""
_FIXED_POINT = 4
_SMALLEST_SHARE = 0.45
"""Of an object, that the border and later ones leave visible at least."""
_TRIES = 30


@dataclass(frozen=True, slots=True)
class DrawnObject:
    """One object, or one crowd of small ones.

    Attributes:
        label: Index into the class names.
        box: x, y, width, height in whole pixels: tight around the visible pixels.
        area: Visible pixels.
        is_crowd: Several small ones of a class, marked as one region.
    """

    label: int
    box: tuple[int, int, int, int]
    area: int
    is_crowd: bool


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        objects: In the order of drawing.
        owners: (H, W) int16 index into `objects` of what each pixel shows; -1 for everything else.
    """

    image: NDArray[np.uint8]
    objects: tuple[DrawnObject, ...]
    owners: NDArray[np.int16]


@dataclass(slots=True)
class _Canvas:
    """A picture that is being drawn.

    Attributes:
        pixels: (H, W, 3) float32 in 0 ... 255.
        owners: (H, W) number of the object that each pixel shows; -1 for none.
        labels: Of the objects.
        whole_areas: Pixels that the objects would have if nothing hid them.
        crowds: Numbers of those that are crowds.
    """

    pixels: NDArray[np.float32]
    owners: NDArray[np.int16]
    labels: list[int] = field(default_factory=list)
    whole_areas: list[int] = field(default_factory=list)
    crowds: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class _Stamp:
    """A shape ready to be painted: coverage in 0 ... 1 of its inside and its line on a part of the picture."""

    inside: NDArray[np.float32]
    line: NDArray[np.float32]
    part: tuple[slice, slice]
    whole_area: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels that are at least half covered: those that count as the object."""
        return np.maximum(self.inside, self.line) >= 0.5


def draw_scene(rng: Generator) -> Scene:
    """Draw one picture.

    About one in fifteen holds no object. Most objects measure 32 to 160 pixels across and stand out; a minority is
    tiny, cut by the border, partly covered, or hardly differs from the background. One picture in twelve has a crowd.
    """
    height, width = (int(side) for side in rng.integers(256, 385, 2))
    canvas = _Canvas(_background(rng, (height, width)), np.full((height, width), -1, np.int16))
    for _ in range(rng.integers(0, 4)):
        _add_shape(canvas, rng, label=None)
    if rng.random() > 1 / 15:
        if rng.random() < 1 / 12:
            _add_crowd(canvas, rng)
        for _ in range(rng.integers(1, 7)):
            _add_shape(canvas, rng, label=int(rng.integers(len(_NAMES))))
    return Scene(_photographed(canvas.pixels, rng), *_visible(canvas))


def _add_shape(canvas: _Canvas, rng: Generator, *, label: int | None) -> None:
    """Draw an object, or a distractor, where earlier objects stay visible; nothing where no such place is found."""
    tiny = rng.random() < 0.06
    low, high = (10.0, 20.0) if tiny else (32.0, 160.0)
    # Log-uniform: every octave is equally frequent.
    diameter = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    at_border, may_overlap = rng.random() < 0.12, rng.random() < 0.25
    faint = label is not None and diameter > 40 and rng.random() < 0.1
    filled = faint or label is None or rng.random() < 0.85
    # The outline alone of a disc would be a ring.
    line_width = 0.0 if faint or (filled and rng.random() < 0.5) else _line_width(diameter, rng)
    draw = DISTRACTORS[rng.integers(len(DISTRACTORS))] if label is None else CLASSES[_NAMES[label]]
    outline = draw(rng)
    height, width = canvas.owners.shape
    margin = 0.0 if at_border else diameter / 2
    for _ in range(_TRIES):
        centre = float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin))
        placed = place_outline(outline, rng, centre=centre, diameter=diameter)
        stamp = _stamp(placed, (height, width), line_width=line_width, filled=filled)
        if _leaves_enough(canvas, stamp, may_overlap=may_overlap):
            _paint(canvas.pixels[stamp.part], stamp, rng, diameter, faint=faint)
            number = -1 if label is None else len(canvas.labels)
            canvas.owners[stamp.part][stamp.mask] = number
            if label is not None:
                canvas.labels.append(label)
                canvas.whole_areas.append(stamp.whole_area)
            return


def _add_crowd(canvas: _Canvas, rng: Generator) -> None:
    """A dozen or two of small shapes of one class close together, which count as one region."""
    height, width = canvas.owners.shape
    label, number = int(rng.integers(len(_NAMES))), len(canvas.labels)
    spread = rng.uniform(30, 50)
    middle = rng.uniform(spread, [width - spread, height - spread])
    for _ in range(rng.integers(12, 25)):
        diameter = float(rng.uniform(12, 18))
        x, y = middle + rng.uniform(-spread, spread, 2)
        outline = place_outline(CLASSES[_NAMES[label]](rng), rng, centre=(float(x), float(y)), diameter=diameter)
        stamp = _stamp(outline, (height, width), line_width=0.0, filled=True)
        _paint(canvas.pixels[stamp.part], stamp, rng, diameter, faint=False)
        canvas.owners[stamp.part][stamp.mask] = number
    canvas.labels.append(label)
    canvas.crowds.add(number)
    canvas.whole_areas.append(int((canvas.owners == number).sum()))


def _leaves_enough(canvas: _Canvas, stamp: _Stamp, *, may_overlap: bool) -> bool:
    """Whether the border hides little enough of a shape, and the shape little enough of earlier objects."""
    mask = stamp.mask
    if mask.sum() < max(_SMALLEST_SHARE * stamp.whole_area, 1):
        return False
    count = len(canvas.labels)
    below = canvas.owners[stamp.part][mask]
    covered = np.bincount(below[below >= 0], minlength=count)
    if not covered.any():
        return True
    if not may_overlap or any(covered[number] for number in canvas.crowds):
        return False
    left = np.bincount(canvas.owners[canvas.owners >= 0], minlength=count) - covered
    return bool((left >= _SMALLEST_SHARE * np.array(canvas.whole_areas)).all())


def _line_width(diameter: float, rng: Generator) -> float:
    return max(2.0, diameter * float(rng.uniform(0.04, 0.08)))


def _stamp(outline: Outline, shape: tuple[int, int], *, line_width: float, filled: bool) -> _Stamp:
    """Draw an outline finer than the picture, shrink it, and cut it at the picture's borders.

    Args:
        outline: In pixels of the picture; may reach out of it.
        shape: (H, W) of the picture.
        line_width: Of the line along it, in pixels; 0 for none.
        filled: Whether there is more than the line.
    """
    cv2 = _opencv()
    points = np.concatenate(outline)
    reach = line_width / 2 + 2
    left, top = np.floor(points.min(axis=0) - reach).astype(int).tolist()
    right, bottom = np.ceil(points.max(axis=0) + reach).astype(int).tolist()
    lines = [((line - [left, top]) * _FINE * 2**_FIXED_POINT).round().astype(np.int32) for line in outline]
    fine = ((bottom - top) * _FINE, (right - left) * _FINE)
    inside, border = np.zeros(fine, np.uint8), np.zeros(fine, np.uint8)
    if filled:
        cv2.fillPoly(inside, lines, 255, shift=_FIXED_POINT)
    if line_width:
        cv2.polylines(border, lines, True, 255, max(1, round(line_width * _FINE)), shift=_FIXED_POINT)
    size = (right - left, bottom - top)
    inside, border = (
        cv2.resize(each, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255 for each in (inside, border)
    )
    whole = int((np.maximum(inside, border) >= 0.5).sum())
    rows = slice(max(top, 0), max(min(bottom, shape[0]), 0))
    columns = slice(max(left, 0), max(min(right, shape[1]), 0))
    own = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return _Stamp(inside[own], border[own], (rows, columns), whole)


def _paint(pixels: NDArray[np.float32], stamp: _Stamp, rng: Generator, diameter: float, *, faint: bool) -> None:
    """Lay a shape over a part of the picture, in colours that stand out from it, or hardly."""
    behind = pixels.reshape(-1, 3).mean(axis=0)
    first = _colour(rng, behind, (26.0, 40.0) if faint else (100.0, 442.0))
    second = _colour(rng, first, (0.0, 8.0) if faint else (40.0, 200.0))
    filling = surface(rng, stamp.inside.shape, (first, second), scale=diameter)
    pixels += (filling - pixels) * stamp.inside[..., None]
    line = _colour(rng, behind, (100.0, 442.0))
    pixels += (line - pixels) * stamp.line[..., None]


def _colour(rng: Generator, other: NDArray[np.float32], distance: tuple[float, float]) -> NDArray[np.float32]:
    """A random RGB colour whose distance from another lies between two bounds; the nearest to that of many draws."""
    draws = rng.uniform(0, 255, (64, 3)).astype(np.float32)
    if distance[1] < 100:
        # Hardly any draw would lie so near.
        draws = np.clip(other + rng.uniform(-1, 1, (64, 3)) * distance[1], 0, 255).astype(np.float32)
    found = np.linalg.norm(draws - other, axis=1)
    off = np.maximum(distance[0] - found, found - distance[1])
    fitting = np.flatnonzero(off <= 0)
    return draws[fitting[0] if len(fitting) else off.argmin()]


def _background(rng: Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Clouds of a few colours, a faint pattern, and grain."""
    cv2 = _opencv()
    height, width = shape
    pixels = np.zeros((height, width, 3), np.float32)
    base = rng.uniform(50, 205, 3).astype(np.float32)
    for cells, strength in ((3, 35.0), (9, 14.0), (40, 8.0)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        pixels += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    other = np.clip(base + rng.uniform(-35, 35, 3).astype(np.float32), 0, 255)
    return np.clip(pixels + surface(rng, shape, (base, other), scale=float(rng.uniform(60, 400))), 0, 255)


def _photographed(pixels: NDArray[np.float32], rng: Generator) -> NDArray[np.uint8]:
    """Uneven light, in a third of the pictures a little out of focus, and a sensor's noise."""
    cv2 = _opencv()
    height, width = pixels.shape[:2]
    slope = rng.uniform(-0.25, 0.25, 2)
    light = 1 + slope[0] * np.linspace(-1, 1, height)[:, None] + slope[1] * np.linspace(-1, 1, width)
    pixels = pixels * (light * rng.uniform(0.8, 1.15))[..., None].astype(np.float32)
    if rng.random() < 1 / 3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.5, 1.1)))
    pixels = pixels + rng.uniform(0, 8) * rng.standard_normal(pixels.shape, np.float32)
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def _visible(canvas: _Canvas) -> tuple[tuple[DrawnObject, ...], NDArray[np.int16]]:
    """The objects with what is left of them to see."""
    found = []
    for number, label in enumerate(canvas.labels):
        rows, columns = np.nonzero(canvas.owners == number)
        left, top = int(columns.min()), int(rows.min())
        box = left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top
        found.append(DrawnObject(label, box, len(rows), number in canvas.crowds))
    return tuple(found), canvas.owners


def _opencv() -> ModuleType:
    return require("cv2", extra="detector", purpose="drawing sample data")
