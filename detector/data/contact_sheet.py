"""One picture of many: images of a data set with their boxes, those with problems first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from ..drawing import COLOURS, Colour, text_colour
from ..errors import InputError
from ..images import read_header, read_image
from .checks import DataReport
from .dataset import ImageRecord
from .image_facts import is_huge

NUM_COLUMNS = 6
NUM_TILES = 36
_TILE = 220
_CAPTION = 30
_GAP = 6
_PAPER: Colour = (250, 250, 250)
_INK: Colour = (40, 40, 40)
_BLANK: Colour = (210, 210, 210)
_ALARM: Colour = (190, 30, 30)
_IGNORED: Colour = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class _Tile:
    path: Path
    record: ImageRecord | None
    title: str
    alarm: str


def contact_sheet(report: DataReport, *, num_tiles: int = NUM_TILES) -> NDArray[np.uint8]:
    """Draw the images of a report's findings, the worst first, then others from all over the splits.

    At most half of the tiles go to problems, so that the sheet also shows what the data set is like; and kinds of
    findings take turns. A box has its class's colour; an ignored one is white.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    tiles = _chosen(report, num_tiles)
    colours = [COLOURS[label % len(COLOURS)] for label in range(len(report.class_names))]
    pillow = _pillow("Image")
    rows = max(1, -(-len(tiles) // NUM_COLUMNS))
    legend = 24
    step = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = pillow.new("RGB", (NUM_COLUMNS * step[0] + _GAP, legend + rows * step[1] + _GAP), _PAPER)
    pen, font = _pillow("ImageDraw").Draw(sheet), _pillow("ImageFont").load_default(size=11)
    _draw_legend(pen, font, report.class_names, colours, sheet.width)
    for number, tile in enumerate(tiles):
        x = _GAP + number % NUM_COLUMNS * step[0]
        y = legend + number // NUM_COLUMNS * step[1]
        sheet.paste(_picture(tile, colours, font), (x, y))
        pen.text((x, y + _TILE + 2), _fitted(tile.title, font), fill=_INK, font=font)
        pen.text((x, y + _TILE + 15), _fitted(tile.alarm, font), fill=_ALARM, font=font)
    return np.array(sheet)


def _chosen(report: DataReport, num_tiles: int) -> list[_Tile]:
    records = {record.path: (split, record) for split, one in report.data.items() for record in one.images}
    alarms: dict[Path, list[str]] = {}
    for finding in report.findings:
        for path in finding.images:
            alarms.setdefault(path, []).append(finding.code)
    chosen: dict[Path, None] = {}
    waiting = [list(finding.images) for finding in report.findings if finding.severity != "note"]
    while any(waiting) and len(chosen) < (num_tiles + 1) // 2:
        for images in waiting:
            if images and len(chosen) < (num_tiles + 1) // 2:
                chosen[images.pop(0)] = None
    others = [path for path in records if path not in chosen]
    free = min(num_tiles - len(chosen), len(others))
    for place in np.linspace(0, len(others) - 1, free).astype(int).tolist() if free else []:
        chosen[others[place]] = None
    tiles = []
    for path in chosen:
        split, record = records.get(path, ("", None))
        count = "" if record is None else f"  {split}, {len(record.labels)} boxes"
        tiles.append(_Tile(path, record, f"{path.name}{count}", ", ".join(alarms.get(path, []))))
    return tiles


def _picture(tile: _Tile, colours: list[Colour], font: Any) -> Any:  # noqa: ANN401  Pillow's types
    """A square with the image in it, its boxes drawn, or with the reason why there is none."""
    pillow = _pillow("Image")
    square = pillow.new("RGB", (_TILE, _TILE), _BLANK)
    pen = _pillow("ImageDraw").Draw(square)
    try:
        height, width = read_header(tile.path).size
        if is_huge((height, width)):
            pen.text((8, _TILE // 2), f"{width} x {height}: not decoded", fill=_INK, font=font)
            return square
        image = pillow.fromarray(read_image(tile.path))
    except InputError as error:
        pen.text((8, _TILE // 2), _fitted(str(error).removeprefix(f"{tile.path}: "), font), fill=_ALARM, font=font)
        return square
    scale = _TILE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    corner = (_TILE - size[0]) // 2, (_TILE - size[1]) // 2
    square.paste(image.resize(size, pillow.Resampling.BILINEAR), corner)
    if tile.record is not None:
        # Where annotations state another size, boxes are drawn as they are: that they do not fit is to be seen.
        for box, label, ignored in zip(tile.record.boxes, tile.record.labels, tile.record.ignored, strict=True):
            x1, y1, x2, y2 = (float(value) for value in np.clip(box * scale, -_TILE, 2 * _TILE))
            edges = (corner[0] + x1, corner[1] + y1, corner[0] + max(x2 - 1, x1), corner[1] + max(y2 - 1, y1))
            pen.rectangle(edges, outline=_IGNORED if ignored else colours[int(label)], width=2)
    return square


def _draw_legend(pen: Any, font: Any, names: tuple[str, ...], colours: list[Colour], width: int) -> None:  # noqa: ANN401
    """Class names on plates of their colours, as many as fit on a line."""
    x = _GAP
    for name, colour in zip(names, colours, strict=True):
        text = name if len(name) <= 24 else f"{name[:21]}..."
        length = round(font.getlength(text)) + 8
        if x + length > width - 30:
            pen.text((x, 4), "...", fill=_INK, font=font)
            return
        pen.rectangle((x, 2, x + length, 18), fill=colour)
        pen.text((x + 4, 4), text, fill=text_colour(colour), font=font)
        x += length + _GAP


def _fitted(text: str, font: Any) -> str:  # noqa: ANN401
    """The text, or its start and dots, on one line of a tile."""
    text = " ".join(text.split())
    if font.getlength(text) <= _TILE:
        return text
    while text and font.getlength(f"{text}...") > _TILE:
        text = text[:-1]
    return f"{text}..."


def _pillow(module: str) -> ModuleType:
    return require(f"PIL.{module}", extra="detector", purpose="drawing a contact sheet")
