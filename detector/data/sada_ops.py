"""Operations of SADA on a part of an image: colours, Gaussian weights, and crops turned or sheared.

Values are 0 ... 255. A colour operation may look at the whole image but computes the window asked for only.

Source: scale-aware automatic augmentation (arXiv 2103.17220), with the magnitudes of the official DAMO-YOLO.
Tensor letters: H W image size, h w size of a window or crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Window = tuple[slice, slice]
"""Rows and columns of an image."""

ColourOp = Callable[[NDArray[np.uint8], float, Window], NDArray[np.float32]]
"""Takes (H, W, 3) RGB, the level between 0 and 10, and the window; gives (h, w, 3)."""

_LUMA = np.array([0.2989, 0.5870, 0.1140], np.float32)
_FILL = (102, 115, 122)  # where a turned crop shows nothing; the official value
_MAX_LEVEL = 10.0


def autocontrast(image: NDArray[np.uint8], level: float, window: Window) -> NDArray[np.float32]:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 255, as Pillow does; no level."""
    tables = []
    for channel in cv2.split(image):
        low, high = int(channel.min()), int(channel.max())
        values = np.arange(256, dtype=np.float64)
        if high > low:
            factor = 255.0 / (high - low)
            values = np.clip(np.trunc(values * factor - low * factor), 0, 255)
        tables.append(values)
    return _looked_up(image[window], tables)


def equalize(image: NDArray[np.uint8], level: float, window: Window) -> NDArray[np.float32]:
    """Flatten the histogram of each channel, as Pillow does; no level."""
    tables = []
    for channel in cv2.split(image):
        counts = np.bincount(channel.ravel(), minlength=256)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        before = np.cumsum(counts) - counts
        tables.append(np.minimum((step // 2 + before) // step, 255) if step else np.arange(256))
    return _looked_up(image[window], tables)


def solarize_add(image: NDArray[np.uint8], level: float, window: Window) -> NDArray[np.float32]:
    """Brighten the pixels of the darker half."""
    values = np.arange(256, dtype=np.float32)
    added = np.minimum(values + np.float32(level / _MAX_LEVEL * 0.4296875 * 255), 255)
    return _looked_up(image[window], [np.where(values <= 127.5, added, values)] * 3)


def colour(image: NDArray[np.uint8], level: float, window: Window) -> NDArray[np.float32]:
    """Blend with grey: less colour, or more."""
    part = image[window].astype(np.float32)
    return _blend(part, (part @ _LUMA)[:, :, None], level)


def contrast(image: NDArray[np.uint8], level: float, window: Window) -> NDArray[np.float32]:
    """Blend with the mean grey of the whole image."""
    mean = np.float32(image.reshape(-1, 3).mean(axis=0) @ _LUMA)
    return _blend(image[window].astype(np.float32), mean, level)


def brightness(image: NDArray[np.uint8], level: float, window: Window) -> NDArray[np.float32]:
    """Blend with black."""
    return _blend(image[window].astype(np.float32), np.float32(0), level)


def sharpness(image: NDArray[np.uint8], level: float, window: Window) -> NDArray[np.float32]:
    """Blend with a smoothed copy: the mean of 3x3 pixels in which the middle one counts five times."""
    rows, columns = window
    # One pixel more on every side, so that only the image's own edge is reflected.
    top, left = max(rows.start - 1, 0), max(columns.start - 1, 0)
    margin = image[top : rows.stop + 1, left : columns.stop + 1].astype(np.float32)
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(margin, -1, kernel / 13, borderType=cv2.BORDER_REFLECT_101)
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return _blend(margin[inner], np.asarray(smooth, np.float32)[inner], level)


COLOUR_OPS: dict[str, ColourOp] = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "SolarizeAdd": solarize_add,
    "Color": colour,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
"""In the order in which a vector of SADA numbers them."""

GEOMETRIC_OPS = ("hflip", "rotate", "shearX", "shearY", "translateX", "translateY")
"""In the order in which a vector of SADA numbers them."""


def translation(name: str, level: float) -> tuple[float, float]:
    """How far an operation moves a box in x and y, in pixels; (0, 0) for those that do not."""
    length = level / _MAX_LEVEL * 120
    return {"translateX": (length, 0.0), "translateY": (0.0, length)}.get(name, (0.0, 0.0))


def change_crop(crop: NDArray[np.uint8], name: str, *, level: float, sign: int) -> NDArray[np.uint8]:
    """A crop mirrored, turned or sheared about its centre, size kept.

    Args:
        crop: (h, w, 3).
        name: One of `GEOMETRIC_OPS` that does not move the crop.
        level: Between 0 and 10.
        sign: 1, or -1 for the other direction.
    """
    if name == "hflip":
        return crop[:, ::-1]
    angle = math.radians(level / _MAX_LEVEL * (30 if name == "rotate" else 15)) * sign
    linear = {
        "rotate": np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]),
        "shearX": np.array([[1.0, math.tan(angle)], [0.0, 1.0]]),
        "shearY": np.array([[1.0, 0.0], [math.tan(angle), 1.0]]),
    }[name]
    height, width = crop.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.concatenate([linear, (centre - linear @ centre)[:, None]], axis=1)
    return np.asarray(
        cv2.warpAffine(crop, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=_FILL), np.uint8
    )


def gaussian(window: Window, centre: tuple[float, float], sigmas: tuple[float, float]) -> NDArray[np.float32]:
    """(h, w) weights exp(-(dx^2 / 2 sx^2 + dy^2 / 2 sy^2)) of the pixels of a window.

    Args:
        window: Rows and columns.
        centre: (x, y) where the weight is 1.
        sigmas: In x and y, in pixels.
    """
    rows, columns = window
    across = (np.arange(columns.start, columns.stop, dtype=np.float32) - centre[0]) / sigmas[0]
    down = (np.arange(rows.start, rows.stop, dtype=np.float32) - centre[1]) / sigmas[1]
    return np.exp(-0.5 * down * down)[:, None] * np.exp(-0.5 * across * across)


def blend_into(image: NDArray[np.uint8], window: Window, part: NDArray[Any], weight: NDArray[np.float32]) -> None:
    """Mix (h, w, 3) `part` into a window of the image by (h, w) weights between 0 and 1, rounded to the nearest."""
    below = image[window].astype(np.float32)
    mixed = part - below
    mixed *= weight[:, :, None]
    mixed += below
    np.rint(mixed, out=mixed)
    image[window] = mixed


def _blend(image: NDArray[np.float32], plain: NDArray[np.float32] | np.float32, level: float) -> NDArray[np.float32]:
    """From a plain image (factor 0) over the image (1) beyond it."""
    factor = np.float32(level / _MAX_LEVEL * 1.8 + 0.1)
    mixed = plain + factor * (image - plain)
    return np.clip(mixed, 0, 255) if factor > 1 else mixed


def _looked_up(part: NDArray[np.uint8], tables: list[NDArray[Any]]) -> NDArray[np.float32]:
    return np.stack([table.astype(np.float32)[part[:, :, index]] for index, table in enumerate(tables)], axis=2)
