"""Mosaic and MixUp: several images in one.

Sources: mosaic after YOLOv4 (arXiv 2004.10934), MixUp after arXiv 1710.09412; the numbers are those of DAMO-YOLO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .dataset import Sample
from .geometry import GREY, box_areas, clip_boxes, mirror, pad, select, stretch


def mosaic(tiles: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """Four images of one size around a random point of a canvas twice as high and wide.

    They meet there with a corner each: the first lies above and left of it, then above right, below left, below
    right. What leaves the canvas is cut off; a box with nothing left goes together with its label.

    Args:
        tiles: Four samples of equal image size.
        rng: Gives the point, x first: between half a tile and one and a half tiles from the canvas's edges.
    """
    height, width = tiles[0].image.shape[:2]
    x = int(rng.uniform(0.5, 1.5) * width)
    y = int(rng.uniform(0.5, 1.5) * height)
    size = (2 * height, 2 * width)
    canvas = np.full((*size, 3), GREY, np.uint8)
    boxes, outlines = [], []
    for tile, (left, top) in zip(
        tiles, ((x - width, y - height), (x, y - height), (x - width, y), (x, y)), strict=True
    ):
        _paste(canvas, tile.image, (left, top))
        boxes.append(clip_boxes(tile.boxes + np.array((left, top) * 2, np.float32), size))
        corner, limit = np.array((left, top), np.float32), np.array(size[::-1], np.float32)
        outlines += [np.clip(outline + corner, 0, limit) for outline in tile.polygons or ()]
    every_box_has_one = all(tile.polygons is not None or not len(tile.labels) for tile in tiles)
    merged = Sample(
        canvas,
        np.concatenate(boxes),
        np.concatenate([tile.labels for tile in tiles]),
        tuple(outlines) if every_box_has_one else None,
    )
    return select(merged, box_areas(merged.boxes) > 0)


def mix_up(sample: Sample, partner: Sample, *, scale: tuple[float, float], rng: np.random.Generator) -> Sample:
    """The mean of an image and another, randomly scaled, mirrored and cropped; boxes of both.

    Args:
        sample: The image; the result has its size.
        partner: An image that is at most as high and wide, aspect ratio kept; the rest is grey.
        scale: Smallest and largest scale of the partner.
        rng: Gives scale, mirroring, then the crop in x and y.
    """
    size = sample.image.shape[0], sample.image.shape[1]
    factor = rng.uniform(*scale)
    partner = pad(replace(partner, polygons=None), size, value=GREY)
    grown = stretch(partner, (max(1, int(size[0] * factor)), max(1, int(size[1] * factor))))
    grown = replace(grown, boxes=clip_boxes(grown.boxes, grown.image.shape[:2]))
    if rng.random() < 0.5:
        grown = mirror(grown)
    grown = pad(grown, (max(grown.image.shape[0], size[0]), max(grown.image.shape[1], size[1])), value=0)
    left, top = (_crop_start(grown.image.shape[axis] - size[axis], rng) for axis in (1, 0))
    window = grown.image[top : top + size[0], left : left + size[1]]
    boxes = clip_boxes(grown.boxes - np.array((left, top) * 2, np.float32), size)
    return Sample(
        _mean(sample.image, window),
        np.concatenate([sample.boxes, boxes]),
        np.concatenate([sample.labels, partner.labels]),
    )


def _paste(canvas: NDArray[np.uint8], image: NDArray[np.uint8], corner: tuple[int, int]) -> None:
    """Lay an image on a canvas, its top left pixel at (x, y); what falls outside is cut off."""
    left, top = corner
    rows = slice(max(top, 0), max(min(top + image.shape[0], canvas.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + image.shape[1], canvas.shape[1]), 0))
    canvas[rows, columns] = image[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _crop_start(excess: int, rng: np.random.Generator) -> int:
    return int(rng.integers(excess)) if excess > 0 else 0


def _mean(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the sum, rounded down, without leaving eight bits."""
    return (image & other) + ((image ^ other) >> 1)
