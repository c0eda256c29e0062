"""Images moved together with their boxes and outlines: resized, flipped, turned, warped.

Every function returns a new `Sample`; the image may share memory with the one given.

Tensor letters: G boxes, V outline points, H W image size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .dataset import Sample

GREY = 114
"""Value of pixels that show no image, as in the official system."""

_OUTLINE_POINTS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """An affine map of pixel coordinates.

    Attributes:
        matrix: (2, 3) float64, applied to (x, y, 1).
        scale: How much longer it makes lengths, apart from its shear.
    """

    matrix: NDArray[np.float64]
    scale: float


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Stretch to (height, width), plain bilinear; an image of that size already is returned as it is.

    OpenCV's arithmetic in integers, within one grey level of `detector.images.resize` and several times faster.
    """
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


def stretch(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize to (height, width); the aspect ratio is not kept."""
    height, width = sample.image.shape[:2]
    return scaled(sample, resize_image(sample.image, size), (size[1] / width, size[0] / height))


def fitted_size(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """Largest size of the same aspect ratio within `limit`, truncated to whole pixels; all are (height, width)."""
    ratio = min(limit[0] / size[0], limit[1] / size[1])
    return max(1, int(size[0] * ratio)), max(1, int(size[1] * ratio))


def scaled(sample: Sample, image: NDArray[np.uint8], factors: tuple[float, float]) -> Sample:
    """The boxes and outlines of a sample multiplied by factors in x and y, on a given image."""
    boxes = sample.boxes * np.array(factors * 2, np.float32)
    polygons = sample.polygons
    if polygons is not None:
        pair = np.array(factors, np.float32)
        polygons = tuple(outline * pair for outline in polygons)
    return Sample(image, boxes, sample.labels, polygons)


def pad(sample: Sample, size: tuple[int, int], *, value: int) -> Sample:
    """Extend the image to (height, width) to the right and below."""
    height, width = sample.image.shape[:2]
    if (height, width) == tuple(size):
        return sample
    image = np.full((*size, 3), value, np.uint8)
    image[:height, :width] = sample.image
    return replace(sample, image=image)


def mirror(sample: Sample) -> Sample:
    """Swap left and right."""
    width = sample.image.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, 0], boxes[:, 2] = width - sample.boxes[:, 2], width - sample.boxes[:, 0]
    polygons = sample.polygons
    if polygons is not None:
        polygons = tuple(np.stack([width - line[:, 0], line[:, 1]], axis=1) for line in polygons)
    return Sample(np.asarray(cv2.flip(sample.image, 1), np.uint8), boxes, sample.labels, polygons)


def turn(sample: Sample, quarters: int) -> Sample:
    """Turn by quarters of a circle, counter-clockwise; exact."""
    for _ in range(quarters % 4):
        width = sample.image.shape[1]
        x1, y1, x2, y2 = sample.boxes.T
        boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
        polygons = sample.polygons
        if polygons is not None:
            polygons = tuple(np.stack([line[:, 1], width - line[:, 0]], axis=1) for line in polygons)
        sample = Sample(np.rot90(sample.image), boxes, sample.labels, polygons)
    return replace(sample, image=np.ascontiguousarray(sample.image))


def flip_upside_down(sample: Sample) -> Sample:
    """Swap top and bottom."""
    return turn(mirror(sample), 2)


def clip_boxes(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """The part of each (G, 4) box inside an image of (height, width); a box outside becomes empty."""
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


def box_areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(G,) areas in square pixels; 0 where a side is not positive."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def select(sample: Sample, keep: NDArray[np.bool_]) -> Sample:
    """The sample with the boxes where (G,) `keep` is true, each with its own label and outline."""
    if keep.all():
        return sample
    polygons = sample.polygons
    if polygons is not None:
        polygons = tuple(outline for outline, kept in zip(polygons, keep, strict=True) if kept)
    return Sample(sample.image, sample.boxes[keep], sample.labels[keep], polygons)


def draw_affine(
    rng: np.random.Generator,
    *,
    source: tuple[int, int],
    target: tuple[int, int],
    degrees: float,
    scale: tuple[float, float],
    shear: float,
    translate: float,
) -> Affine:
    """A random map from an image onto another: centred, turned and scaled, sheared, moved.

    Drawn in this order: angle, scale, shear in x, shear in y, place of the centre in x, in y.

    Args:
        rng: Where the numbers come from.
        source: (height, width) of the image that is mapped.
        target: (height, width) of the image that is made.
        degrees: Largest angle either way.
        scale: Smallest and largest scale.
        shear: Largest shear either way, in degrees.
        translate: How far the centre may lie from that of the target, as a share of its sides.
    """
    angle = math.radians(rng.uniform(-degrees, degrees))
    factor = rng.uniform(*scale)
    shear_x = math.tan(math.radians(rng.uniform(-shear, shear)))
    shear_y = math.tan(math.radians(rng.uniform(-shear, shear)))
    centre_x = rng.uniform(0.5 - translate, 0.5 + translate) * target[1]
    centre_y = rng.uniform(0.5 - translate, 0.5 + translate) * target[0]
    cosine, sine = factor * math.cos(angle), factor * math.sin(angle)
    turned = np.array([[cosine, sine], [-sine, cosine]])  # counter-clockwise on the screen
    linear = np.array([[1.0, shear_x], [shear_y, 1.0]]) @ turned
    offset = np.array([centre_x, centre_y]) - linear @ np.array([source[1] / 2, source[0] / 2])
    return Affine(np.concatenate([linear, offset[:, None]], axis=1), factor)


def warp(
    sample: Sample,
    affine: Affine,
    size: tuple[int, int],
    *,
    min_side: float,
    min_visible: float,
    max_aspect: float,
) -> Sample:
    """Map a sample onto an image of (height, width), grey where nothing comes to lie; outlines are used up.

    A box is drawn again around the visible points of its outline where every box has one, else around its four
    corners, clipped.

    Args:
        sample: What is mapped; boxes inside the image.
        affine: Pixels of the sample to pixels of the result.
        size: Of the result.
        min_side: A box must become wider and higher than this, in pixels,
        min_visible: keep more than this share of its area, scale allowed for,
        max_aspect: and its longer side must be less than this many times the shorter, or it is dropped.
    """
    image = cv2.warpAffine(
        sample.image, affine.matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderValue=(GREY, GREY, GREY)
    )
    outlines = sample.polygons or ()
    if outlines and all(len(outline) for outline in outlines):
        boxes = _around_outlines(outlines, affine, size)
    else:
        boxes = _around_corners(sample.boxes, affine, size)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).astype(np.float64) * affine.scale
    keep = (width > min_side) & (height > min_side)
    keep &= width * height > min_visible * sides[:, 0] * sides[:, 1]
    keep &= np.maximum(width, height) < max_aspect * np.minimum(width, height)
    return Sample(np.asarray(image, np.uint8), boxes[keep].astype(np.float32), sample.labels[keep])


def _around_corners(boxes: NDArray[np.float32], affine: Affine, size: tuple[int, int]) -> NDArray[np.float64]:
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    moved = corners @ affine.matrix[:, :2].T + affine.matrix[:, 2]
    limit = np.array([size[1], size[0]])
    return np.clip(np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1), 0, np.tile(limit, 2))


def _around_outlines(
    outlines: Sequence[NDArray[np.float32]], affine: Affine, size: tuple[int, int]
) -> NDArray[np.float64]:
    """(G, 4) boxes around those of a thousand points along each outline that lie in the image; 0 where none does."""
    # Maps of lines are lines, so the few corners are moved and the thousand points are laid between them.
    counts = np.array([len(outline) for outline in outlines])
    corners = np.concatenate(outlines).astype(np.float64) @ affine.matrix[:, :2].T + affine.matrix[:, 2]
    places = np.linspace(0, 1, _OUTLINE_POINTS) * (counts - 1)[:, None]
    before = places.astype(np.intp)
    share = places - before
    starts = (np.cumsum(counts) - counts)[:, None]
    after = starts + np.minimum(before + 1, (counts - 1)[:, None])
    before += starts
    inside: NDArray[np.bool_] = np.ones(places.shape, np.bool_)
    lines = []
    for axis, limit in ((0, size[1]), (1, size[0])):
        values = corners[:, axis]
        line = values[before]
        line += share * (values[after] - line)
        inside &= (line >= 0) & (line <= limit)
        lines.append(line)
    low = [np.where(inside, line, np.inf).min(axis=1) for line in lines]
    high = [np.where(inside, line, -np.inf).max(axis=1) for line in lines]
    boxes = np.stack([*low, *high], axis=1)
    return np.where(inside.any(axis=1, keepdims=True), boxes, 0.0)
