"""Boxes, names and scores drawn on an image; without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .errors import InputError
from .images import as_rgb
from .types import Detection, Detections

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (230, 72, 62),
    (45, 125, 210),
    (62, 178, 92),
    (247, 164, 32),
    (142, 82, 196),
    (22, 176, 178),
    (236, 98, 160),
    (148, 190, 48),
    (176, 108, 60),
    (92, 104, 220),
    (250, 210, 62),
    (0, 132, 116),
    (198, 46, 116),
    (118, 196, 246),
    (112, 122, 134),
    (255, 138, 92),
)
"""One per class, in label order; then from the start again."""

_NOTE: Colour = (24, 24, 24)
_SMALLEST_FONT = 9


def draw_detections(
    image: Image | NDArray[Any], detections: Detections, *, with_scores: bool = True
) -> NDArray[np.uint8]:
    """A copy of an image with its detections, the best ones on top.

    Line width and letters grow with the image. A label stands on its box where there is room above, else inside it;
    it is shortened, in the end left out, rather than reach out of the image. Boxes are cut at the borders.

    Args:
        image: As `detector.images.as_rgb` takes.
        detections: In pixels of this image.
        with_scores: Write the score beside the name; annotations have none.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        InputError: The image has another size than the detections say, or is of a kind that cannot be drawn on.
    """
    pixels = as_rgb(image)
    if pixels.shape[:2] != tuple(detections.image_size):
        expected = f"{tuple(detections.image_size)}, (height, width) of the detections"
        raise InputError(f"image has size {pixels.shape[:2]}; expected {expected}")
    canvas = _pillow("Image").fromarray(pixels)
    pen = _pillow("ImageDraw").Draw(canvas)
    height, width = pixels.shape[:2]
    line = max(1, round(min(height, width) / 240))
    font = _font(max(_SMALLEST_FONT, round(min(height, width) / 40)))
    visible = list(detections.clip().filter(min_area=0))
    corners = []
    for entry in reversed(visible):
        # Pixel k covers k ... k + 1, so the last one that belongs to a box is one before its right border.
        left, top = (int(value) for value in entry.box[:2])
        right, bottom = max(left, round(entry.box[2]) - 1), max(top, round(entry.box[3]) - 1)
        pen.rectangle((left, top, right, bottom), outline=_colour(entry), width=line)
        corners.append((left, top))
    # After all boxes, so that no line runs through a label.
    for entry, corner in zip(reversed(visible), corners, strict=True):
        text = f"{entry.name} {entry.score:.2f}" if with_scores else entry.name
        _label(pen, text, corner, (width, height), _colour(entry), font, line)
    return np.array(canvas)


def draw_note(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A copy of an image with a line of text on a dark plate in its upper left corner, shortened to its width.

    Args:
        image: uint8 (H, W, 3) RGB.
        text: The line.
    """
    canvas = _pillow("Image").fromarray(image)
    height, width = image.shape[:2]
    font = _font(max(_SMALLEST_FONT, round(min(height, width) / 32)))
    _label(_pillow("ImageDraw").Draw(canvas), text, (0, 0), (width, height), _NOTE, font, line=2)
    return np.array(canvas)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever reads better on a colour: the greater contrast as WCAG 2 defines it."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def _colour(entry: Detection) -> Colour:
    return COLOURS[entry.label % len(COLOURS)]


def _label(
    pen: ImageDraw,
    text: str,
    corner: tuple[int, int],
    size: tuple[int, int],
    colour: Colour,
    font: Any,  # noqa: ANN401  Pillow has two kinds of font without a common base
    line: int,
) -> None:
    """A filled plate with text at the upper left corner of a box, within the image of `size` (width, height)."""
    margin = max(2, line)
    # One height for all labels: that of a line, not of this text's letters.
    plate_height = sum(font.getmetrics()) + margin
    text = _fitted(text, size[0] - 2 * margin, font)
    if not text or plate_height > size[1]:
        return
    plate_width = round(font.getlength(text)) + 2 * margin
    x = max(0, min(corner[0], size[0] - plate_width))
    y = corner[1] - plate_height if corner[1] >= plate_height else corner[1]
    y = max(0, min(y, size[1] - plate_height))
    pen.rectangle((x, y, x + plate_width - 1, y + plate_height - 1), fill=colour)
    pen.text((x + margin, y + plate_height / 2), text, fill=text_colour(colour), font=font, anchor="lm")


def _font(size: int) -> Any:  # noqa: ANN401
    """DejaVu Sans, which has most alphabets and comes with matplotlib; Pillow's own has the Latin one only."""
    fonts = _pillow("ImageFont")
    package = importlib.util.find_spec("matplotlib")  # found, not loaded: that would cost more than the drawing
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return fonts.truetype(str(path), size)
    return fonts.load_default(size=size)


def _fitted(text: str, width: int, font: Any) -> str:  # noqa: ANN401
    """The text, or its start and dots, that is not wider than `width` pixels; empty where nothing fits."""
    # A line's end or half a character, which the name of a class may hold, has no width.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if font.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        shortened = text[:length].rstrip() + "..."
        if font.getlength(shortened) <= width:
            return shortened
    return ""


def _pillow(module: str) -> ModuleType:
    return require(f"PIL.{module}", extra="detector", purpose="drawing detections")
