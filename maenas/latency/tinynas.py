"""The interpolation that the reference search tool defines on its operator latency libraries.

`TinyNasPredictor` answers for any width and map size between the measured convolutions. It follows the reference to the
last printed digit, kinks included, because published structures and their latencies rest on it.

How a latency is found:

1. Lines are grouped by (type, stride, fused, kernel), then batch, then by the ratio in_c / out_c cut (not rounded) to
   two decimals. Images (in_c = 3) form a group of their own, depthwise lines have no ratio; side 4 is left out.
2. A group is a surface over (out_c, side): linear on a Delaunay triangulation, nearest neighbour outside the hull.
3. A ratio without a group is found by a line through the surfaces' values, at the exact ratio, not the cut one.
4. A batch without a group is found by a line through the batches' values.

Cells of a regular grid are cocircular, so their diagonals depend on the order of the points: lines are taken in the
library's order, repeats too. A sorted one gives other values between the points (`maenas.latency.tinynas_library`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maenas.latency.tinynas_library import TinyNasLibrary
from maenas.lowering.op import Channels

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_IMAGE_CHANNELS = 3
_DROPPED_SIDE = 4
_NO_RATIO = 0
"""Ratio key of depthwise groups and of the group of image inputs; real ratios are in hundredths and at least 1."""

_ON_EDGE = 1e-9
"""Share of a triangle by which a point may lie outside: points have whole coordinates, so this is only rounding."""

_CHUNK = 512
"""Points looked up at once, against all triangles."""


class Estimate(NamedTuple):
    """Interpolated milliseconds of the whole batch; the arrays have the broadcast shape of the query.

    Attributes:
        ms: NaN where the library has no group for the operator.
        outside: The value was extrapolated: outside a hull, the ratios or the batches of the library.
    """

    ms: Floats
    outside: Flags


class ConvForm(NamedTuple):
    """What a group of lines has in common."""

    kernel_size: int
    stride: int = 1
    fused: bool = False
    depthwise: bool = False


class _Surface:
    """Milliseconds over (out_channels, side) of one group.

    Triangles are searched here rather than by scipy's interpolator: that one factors a matrix per triangle through a
    threaded library, which takes a hundred times longer while other programs keep the cores busy.
    """

    def __init__(self, points: Floats, ms: Floats) -> None:
        from scipy.interpolate import NearestNDInterpolator  # 0.3 s, so only where used
        from scipy.spatial import Delaunay, QhullError

        self._nearest = NearestNDInterpolator(points, ms, rescale=True)
        corners = np.zeros((0, 3), dtype=np.int64)
        with suppress(QhullError, ValueError):  # fewer than three points, or all on a line: only neighbours remain
            corners = Delaunay(points).simplices.astype(np.int64)
        a, b, c = (points[corners[:, place]] for place in range(3))
        area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
        flat = area == 0
        a, b, c, area = a[~flat], b[~flat], c[~flat], area[~flat]
        self._a = a
        self._to_b = np.stack([c[:, 1] - a[:, 1], a[:, 0] - c[:, 0]], axis=1) / area[:, None]
        self._to_c = np.stack([a[:, 1] - b[:, 1], b[:, 0] - a[:, 0]], axis=1) / area[:, None]
        self._corner_ms = ms[corners[~flat]]

    def __call__(self, points: Floats) -> Estimate:
        """Values at (n, 2) points; outside the hull or below zero, that of the nearest measured point."""
        ms = np.full(len(points), np.nan)
        if len(self._a):
            for start in range(0, len(points), _CHUNK):
                ms[start : start + _CHUNK] = self._linear(points[start : start + _CHUNK])
        outside = ~(ms >= 0)
        if outside.any():
            ms[outside] = self._nearest(points[outside])
        return Estimate(ms, outside)

    def _linear(self, points: Floats) -> Floats:
        """NaN outside the hull."""
        x = points[:, None, 0] - self._a[:, 0]
        y = points[:, None, 1] - self._a[:, 1]
        b = x * self._to_b[:, 0] + y * self._to_b[:, 1]
        c = x * self._to_c[:, 0] + y * self._to_c[:, 1]
        a = 1 - b - c
        depth = np.minimum(np.minimum(a, b), c)  # of each point in each triangle; negative outside
        best = np.argmax(depth, axis=1)
        each = np.arange(len(points))
        weights = np.stack([a[each, best], b[each, best], c[each, best]], axis=1)
        value: Floats = np.sum(weights * self._corner_ms[best], axis=1)
        return np.where(depth[each, best] >= -_ON_EDGE, value, np.nan)


@dataclass(eq=False)
class TinyNasPredictor:
    """The reference's interpolation on one library; surfaces are built when first asked for, then kept."""

    library: TinyNasLibrary
    _lines: dict[ConvForm, dict[int, dict[int, Ints]]] = field(default_factory=dict, init=False, repr=False)
    _surfaces: dict[tuple[ConvForm, int, int], _Surface] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the lines of each group: form -> batch -> ratio -> line numbers in the library's order."""
        library = self.library
        ratio = _ratio_key(library.in_channels, library.out_channels, library.depthwise)
        keys = np.stack([library.kernel_size, library.stride, library.fused, library.depthwise, library.batch, ratio])
        used = np.flatnonzero(~library.failed & (library.side != _DROPPED_SIDE))
        if not len(used):
            return
        groups, place = np.unique(keys[:, used], axis=1, return_inverse=True)
        place = place.reshape(-1)  # numpy 2.0 gives it two axes
        order = np.argsort(place, kind="stable")
        ends = np.cumsum(np.bincount(place))
        for group, lines in zip(groups.T.tolist(), np.split(used[order], ends[:-1]), strict=True):
            kernel, stride, fused, depthwise, batch, key = group
            form = ConvForm(kernel, stride, bool(fused), bool(depthwise))
            self._lines.setdefault(form, {}).setdefault(batch, {})[key] = lines

    @property
    def forms(self) -> list[ConvForm]:
        """The groups that can be asked for, sorted."""
        return sorted(self._lines)

    def estimate(
        self, form: ConvForm, *, batch: int, in_channels: Channels, out_channels: Channels, side: Channels
    ) -> Estimate:
        """Milliseconds of one batch; channels and side (of the input map) are numbers or arrays that broadcast."""
        arrays = np.broadcast_arrays(*(np.asarray(a, dtype=np.int64) for a in (in_channels, out_channels, side)))
        shape = arrays[0].shape
        in_c, out_c, sides = (a.ravel() for a in arrays)
        batches = self._lines.get(form, {})
        if batch in batches:
            ms, outside = self._at_batch(form, batch, in_c, out_c, sides)
        elif len(batches) > 1:
            knots = sorted(batches)
            values = [self._at_batch(form, knot, in_c, out_c, sides) for knot in knots]
            ms, outside = _line_through(np.array(knots, dtype=np.float64), values, np.full(len(in_c), float(batch)))
        else:
            ms, outside = _nothing(len(in_c))
        return Estimate(ms.reshape(shape), outside.reshape(shape))

    def _at_batch(self, form: ConvForm, batch: int, in_c: Ints, out_c: Ints, side: Ints) -> Estimate:
        ratios = self._lines[form][batch]
        keys = _ratio_key(in_c, out_c, np.full(len(in_c), form.depthwise))
        ms, outside = _nothing(len(in_c))
        known = np.isin(keys, list(ratios))
        for key in np.unique(keys[known]).tolist():
            at = keys == key
            ms[at], outside[at] = self._on_surface(form, batch, key, out_c[at], side[at])
        at = ~known & (keys != _NO_RATIO)
        knots = sorted(key for key in ratios if key != _NO_RATIO)
        if at.any() and len(knots) > 1:
            values = [self._on_surface(form, batch, key, out_c[at], side[at]) for key in knots]
            ms[at], outside[at] = _line_through_rising(np.array(knots) / 100, values, in_c[at] / out_c[at])
        return Estimate(ms, outside)

    def _on_surface(self, form: ConvForm, batch: int, key: int, out_c: Ints, side: Ints) -> Estimate:
        name = (form, batch, key)
        if name not in self._surfaces:
            lines = self._lines[form][batch][key]
            points = np.stack([self.library.out_channels[lines], self.library.side[lines]], axis=1).astype(np.float64)
            self._surfaces[name] = _Surface(points, self.library.latency_ms[lines])
        points, place = np.unique(np.stack([out_c, side], axis=1), axis=0, return_inverse=True)
        ms, outside = self._surfaces[name](points.astype(np.float64))
        place = place.reshape(-1)
        return Estimate(ms[place], outside[place])


def _ratio_key(in_c: Ints, out_c: Ints, depthwise: Flags) -> Ints:
    """in_c / out_c in hundredths, cut off."""
    key: Ints = np.where(depthwise | (in_c == _IMAGE_CHANNELS), _NO_RATIO, np.maximum(100 * in_c // out_c, 1))
    return key


def _nothing(num: int) -> Estimate:
    return Estimate(np.full(num, np.nan), np.zeros(num, dtype=np.bool_))


def _line_through(knots: Floats, values: Sequence[Estimate], at: Floats) -> Estimate:
    """Piecewise-linear through (knot, value), continued beyond both ends; `knots` ascend and are two or more."""
    place = np.clip(np.searchsorted(knots, at) - 1, 0, len(knots) - 2)
    ms, out = np.stack([v.ms for v in values]), np.stack([v.outside for v in values])
    each = np.arange(len(at))
    low, high = knots[place], knots[place + 1]
    start = ms[place, each]
    line = start + (ms[place + 1, each] - start) * ((at - low) / (high - low))
    return Estimate(line, out[place, each] | out[place + 1, each] | (at < low) | (at > high))


def _line_through_rising(knots: Floats, values: Sequence[Estimate], at: Floats) -> Estimate:
    """As `_line_through`, but after the first two a value counts only if it exceeds the last one that counted.

    A negative result becomes the first value, in proportion to the knot.
    """
    first, second = values[0], values[1]
    x0, y0, out0 = np.full(len(at), knots[0]), first.ms, first.outside
    x1, y1, out1 = np.full(len(at), knots[1]), second.ms, second.outside
    last = second.ms
    for knot, value in zip(knots[2:], values[2:], strict=True):
        counts = value.ms > last
        last = np.where(counts, value.ms, last)
        move = counts & (at > x1)
        x0, y0, out0 = np.where(move, x1, x0), np.where(move, y1, y0), np.where(move, out1, out0)
        x1, y1, out1 = np.where(move, knot, x1), np.where(move, value.ms, y1), np.where(move, value.outside, out1)
    ms = y0 + (y1 - y0) * ((at - x0) / (x1 - x0))
    ms = np.where(ms < 0, first.ms * (at / knots[0]), ms)
    return Estimate(ms, out0 | out1 | (at < x0) | (at > x1))
