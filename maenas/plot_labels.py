"""Where names of points go in a picture: beside their points, away from each other, from marks and from lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in pixels."""

_DIRECTIONS = 16
_RADII = (1.0, 1.7, 2.6, 3.8, 5.2)
"""Distances that are tried, in units of the smallest gap."""

# What spoils a place, per square pixel or per crossing; only the order of magnitude matters.
_ON_LABEL, _ON_MARK, _ON_LINE, _PER_RADIUS, _NEARER_MARK = 4.0, 3.0, 20.0, 14.0, 30.0
_SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a name goes.

    Attributes:
        left: Pixels.
        bottom: Pixels.
        far: Whether it is so far away that a line should lead to it.
    """

    left: float
    bottom: float
    far: bool


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    inside: Box,
    marks: Sequence[Box] = (),
    lines: Sequence[tuple[float, float, float, float]] = (),
    gap: float = 6.0,
) -> list[Placed]:
    """Place names greedily, then let each one move again while the others stay.

    Args:
        anchors: The points, x and y in pixels.
        sizes: Width and height of each name.
        inside: Names stay within it.
        marks: What should not be covered.
        lines: Ends of lines that should not be crossed: x0, y0, x1, y1.
        gap: Smallest distance between point and name.
    """
    choices = [_candidates(anchor, size, inside, gap) for anchor, size in zip(anchors, sizes, strict=True)]
    fixed = [
        [
            _ON_MARK * sum(_shared(box, mark) for mark in marks)
            + _ON_LINE * sum(_crosses(box, line) for line in lines)
            + _NEARER_MARK * _foreign(box, anchor, anchors)
            + _PER_RADIUS * radius
            for box, radius in options
        ]
        for anchor, options in zip(anchors, choices, strict=True)
    ]
    # Crowded points choose first.
    order = sorted(range(len(anchors)), key=lambda index: min(fixed[index]), reverse=True)
    chosen: dict[int, int] = {}
    for _ in range(_SWEEPS):
        before = dict(chosen)
        for index in order:
            others = [choices[other][place][0] for other, place in chosen.items() if other != index]
            costs = [
                cost + _ON_LABEL * sum(_shared(box, other) for other in others)
                for (box, _), cost in zip(choices[index], fixed[index], strict=True)
            ]
            chosen[index] = costs.index(min(costs))
        if chosen == before:
            break
    placed = []
    for index in range(len(anchors)):
        box, radius = choices[index][chosen[index]]
        placed.append(Placed(box[0], box[1], radius >= _RADII[2]))
    return placed


def _candidates(
    anchor: tuple[float, float], size: tuple[float, float], inside: Box, gap: float
) -> list[tuple[Box, float]]:
    """Boxes around a point with their distance, those outside left out (the nearest one stays if all are)."""
    (x, y), (width, height) = anchor, size
    found = []
    for radius in _RADII:
        for step in range(_DIRECTIONS):
            angle = 2.0 * math.pi * step / _DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            # The middle of the name lies so that its edge, not its middle, keeps the distance.
            left = x + across * (gap * radius + width / 2) - width / 2
            bottom = y + up * (gap * radius + height / 2) - height / 2
            found.append(((left, bottom, left + width, bottom + height), radius))
    within = [
        (box, radius)
        for box, radius in found
        if box[0] >= inside[0] and box[1] >= inside[1] and box[2] <= inside[2] and box[3] <= inside[3]
    ]
    return within or found[:1]


def _foreign(box: Box, anchor: tuple[float, float], anchors: Sequence[tuple[float, float]]) -> int:
    """How many other points lie about as near to a name as its own, or nearer."""
    own = _distance(box, anchor)
    return sum(_distance(box, other) < 1.4 * own for other in anchors if other != anchor)


def _distance(box: Box, point: tuple[float, float]) -> float:
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    up = max(box[1] - point[1], 0.0, point[1] - box[3])
    return math.hypot(across, up)


def _shared(first: Box, second: Box) -> float:
    """Area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0.0 and height > 0.0 else 0.0


def _crosses(box: Box, line: tuple[float, float, float, float]) -> bool:
    """Whether a line's part between its ends touches a box (Liang and Barsky's clipping)."""
    x0, y0, x1, y1 = line
    start, end = 0.0, 1.0
    for step, low, high in ((x1 - x0, box[0] - x0, box[2] - x0), (y1 - y0, box[1] - y0, box[3] - y0)):
        if step == 0.0:
            if low > 0.0 or high < 0.0:
                return False
            continue
        near, far = sorted((low / step, high / step))
        start, end = max(start, near), min(end, far)
        if start > end:
            return False
    return True
