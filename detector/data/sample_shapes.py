"""Outlines and surfaces of the objects that made-up pictures show.

Tensor letters: V points of an outline, H W size of a patch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Outline = list[NDArray[np.float64]]
"""Closed lines of (V, 2) points around the origin, within a circle of radius 1; a second line is a hole."""


def _arrow(rng: Generator) -> Outline:
    head, shaft = rng.uniform(0.1, 0.3), rng.uniform(0.22, 0.32)
    right = [(1.0, 0.0), (head, 0.75), (head, shaft), (-0.95, shaft)]
    return [np.array(right + [(x, -y) for x, y in reversed(right) if y])]


def _cross(rng: Generator) -> Outline:
    arm = rng.uniform(0.25, 0.36)
    corner = [(arm, arm), (arm, 0.95), (-arm, 0.95)]
    return [np.concatenate([_turn(np.array(corner), quarter * np.pi / 2) for quarter in range(4)])]


def _heart(rng: Generator) -> Outline:
    del rng  # it has one form
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x, -y - 2], axis=1) / 17]


def _ring(rng: Generator) -> Outline:
    return [_circle(1.0), _circle(rng.uniform(0.45, 0.62))]


def _star(rng: Generator) -> Outline:
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.4, 0.5))
    return [np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)]


def _triangle(rng: Generator) -> Outline:
    angles = np.array([0, 2, 4]) * np.pi / 3 + rng.uniform(-0.3, 0.3, 3)
    return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]


def _rectangle(rng: Generator) -> Outline:
    side = rng.uniform(0.25, 0.7)
    return [np.array([(0.7, side), (-0.7, side), (-0.7, -side), (0.7, -side)])]


def _disc(rng: Generator) -> Outline:
    return [_circle(1.0) * [1.0, rng.uniform(0.5, 1.0)]]


def _blob(rng: Generator) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = sum(rng.uniform(0, 0.14) * np.sin(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    radii = 0.7 + waves
    return [np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)]


def _circle(radius: float) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _turn(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


CLASSES: dict[str, Callable[[Generator], Outline]] = {
    "arrow": _arrow,
    "cross": _cross,
    "heart": _heart,
    "ring": _ring,
    "star": _star,
}
"""Class names in label order."""
DISTRACTORS: tuple[Callable[[Generator], Outline], ...] = (_triangle, _rectangle, _disc, _blob)
"""Shapes that are of no class."""


def place_outline(outline: Outline, rng: Generator, *, centre: tuple[float, float], diameter: float) -> Outline:
    """Turn an outline by any angle, squeeze it a little, and move it.

    Args:
        outline: Around the origin.
        rng: Draws angle and squeeze.
        centre: x, y in pixels.
        diameter: Of the circle around it before it is squeezed, in pixels.
    """
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0)
    lean = rng.uniform(0, np.pi)
    placed = []
    for line in outline:
        points = _turn(_turn(_turn(line, angle), lean) * [1.0, squeeze], -lean)
        placed.append(points * diameter / 2 + np.array(centre))
    return placed


def surface(
    rng: Generator, shape: tuple[int, int], colours: tuple[NDArray[np.float32], NDArray[np.float32]], *, scale: float
) -> NDArray[np.float32]:
    """A patch of one colour, or of two as stripes, dots, squares or a gradient.

    Args:
        rng: Draws the kind and its measures.
        shape: (H, W).
        colours: RGB in 0 ... 255.
        scale: Size of the thing it is for, in pixels; stripes and dots are a share of it, and 3 pixels at least.

    Returns:
        (H, W, 3).
    """
    kind = rng.choice(["plain", "stripes", "dots", "squares", "gradient"], p=[0.4, 0.15, 0.15, 0.1, 0.2])
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    period = max(3.0, scale * rng.uniform(0.12, 0.3))
    first, second = colours
    if kind == "plain":
        return np.broadcast_to(first, (*shape, 3)).astype(np.float32)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind == "gradient":
        share = np.clip((u - u.mean()) / max(scale, 1.0) + 0.5, 0, 1)
    else:
        across = np.sin(2 * np.pi * u / period + phase[0])
        along = np.sin(2 * np.pi * v / period + phase[1])
        values = {"stripes": across, "dots": across * along - 0.35, "squares": across * along}[str(kind)]
        # Half a pixel of transition instead of stairs.
        share = np.clip(values * period / 4 + 0.5, 0, 1)
    return (first + (second - first) * share[..., None]).astype(np.float32)
