"""Small objects in large images: overlapping tiles, each as large in the network as in the image; without torch.

Tensor letters: H W image size, N detections, T tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .images import to_input
from .types import Detections

if TYPE_CHECKING:
    from .predict import Predictor

MIN_TILE = 32
MAX_OVERLAP = 0.9
SAME_OBJECT = 0.5
"""Overlap (intersection over union, in what two tiles have in common) above which two boxes are one object."""
INSIDE = 0.7
"""Share of a cut box inside a box of another tile from which on it is a part of that object."""
_NEAR_BORDER = 0.01
"""Share of a tile's side: boxes that come this close to an inner border are taken as cut there."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How images are cut.

    Attributes:
        tile: (height, width) of a tile in pixels of the image; every tile is stretched to the network's input.
        overlap: Least share of a tile's side that it has in common with the next one; an object no larger than that
            is whole in one of them.
        whole: Look at the whole image too, for objects larger than a tile.
    """

    tile: tuple[int, int]
    overlap: float = 0.2
    whole: bool = False

    def __post_init__(self) -> None:
        if any(isinstance(side, bool) or not isinstance(side, int) or side < MIN_TILE for side in self.tile):
            raise InputError(f"tile is {self.tile}; expected (height, width), at least {MIN_TILE} each")
        if not 0 <= self.overlap <= MAX_OVERLAP:
            raise InputError(f"overlap is {self.overlap}; expected 0 ... {MAX_OVERLAP}")


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image in whole pixels: `image[y1:y2, x1:x2]`."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y2 - self.y1, self.x2 - self.x1

    def common(self, other: Window) -> Window | None:
        """What both show, or None."""
        x1, y1, x2, y2 = max(self.x1, other.x1), max(self.y1, other.y1), min(self.x2, other.x2), min(self.y2, other.y2)
        return Window(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def tile_windows(image_size: tuple[int, int], tiling: Tiling) -> list[Window]:
    """The tiles of an image, row by row, all of one size and evenly spread; the whole image last where asked for.

    A side shorter than the tile gives windows of that side. An image that fits into one tile is one window.
    """
    (height, width), (tile_height, tile_width) = image_size, tiling.tile
    windows = [
        Window(x, y, x + min(width, tile_width), y + min(height, tile_height))
        for y in _starts(height, tile_height, tiling.overlap)
        for x in _starts(width, tile_width, tiling.overlap)
    ]
    if tiling.whole and len(windows) > 1:
        windows.append(Window(0, 0, width, height))
    return windows


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    steps = math.ceil((length - tile) / max(1, math.floor(tile * (1 - overlap))))
    return [(length - tile) * step // steps for step in range(steps + 1)]


def detect_tiled(
    predictor: Predictor,
    image: NDArray[np.uint8],
    tiling: Tiling,
    *,
    size: tuple[int, int],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    batch_size: int,
) -> Detections:
    """Objects of one image, found tile by tile.

    Args:
        predictor: The network.
        image: (H, W, 3) uint8 RGB.
        tiling: How it is cut.
        size: (height, width) of the network's input, which every tile is stretched to.
        score_threshold: Pairs of point and class strictly above it are kept.
        iou_threshold: Of two boxes of one class and one tile that overlap more, the better stays.
        max_detections: Kept per tile, and of the image.
        batch_size: Tiles at once; a network with a batch size of its own gets that.

    Returns:
        Pixels of the image, best first, not clipped, without names.
    """
    image_size = (image.shape[0], image.shape[1])
    windows = tile_windows(image_size, tiling)
    found: list[Detections] = []
    for start, inputs in _batches(image, windows, size, predictor.batch_limit, batch_size):
        parts = predictor.detect(
            inputs, score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections
        )
        found += [part.rescale(window.size) for part, window in zip(parts, windows[start:], strict=False)]
    merged = merge_tiles(found, windows, image_size)
    return merged.select(np.arange(min(len(merged), max_detections)))


def _batches(
    image: NDArray[np.uint8], windows: Sequence[Window], size: tuple[int, int], fixed: int | None, batch_size: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Index of the first tile and (B, 3, height, width) inputs; where B is fixed, zeros follow the last tiles."""
    count = fixed or batch_size
    for start in range(0, len(windows), count):
        parts = [image[window.y1 : window.y2, window.x1 : window.x2] for window in windows[start : start + count]]
        inputs = to_input(parts, size)
        if fixed is not None and len(parts) < fixed:
            inputs = np.concatenate([inputs, np.zeros((fixed - len(parts), *inputs.shape[1:]), np.float32)])
        yield start, inputs


def merge_tiles(found: Sequence[Detections], windows: Sequence[Window], image_size: tuple[int, int]) -> Detections:
    """Detections of overlapping tiles as those of one image, every object once.

    Plain NMS over all tiles would fail where a border cuts an object: the part may have the better score, and overlaps
    the whole by too little. But in what two tiles have in common both see the same, so boxes of one class are compared
    there alone: alike there, they are one object. Its score is the best one; each of its sides comes from the best box
    that is not cut on that side, so that parts of an object which no tile shows whole are put together. A cut box left
    over that lies inside a box of another tile is dropped. Within one tile nothing changes.

    Args:
        found: Per tile, in its pixels.
        windows: The tiles.
        image_size: (height, width) of the image.

    Returns:
        Best first, in pixels of the image.
    """
    if not found:
        return Detections.empty(image_size)
    boxes, cut = zip(*map(_placed, found, windows, [image_size] * len(found)), strict=True)
    tiles = np.repeat(np.arange(len(found)), [len(part) for part in found])
    scores = np.concatenate([part.scores for part in found])
    order = np.argsort(-scores, kind="stable")
    every = _Boxes(
        np.concatenate(boxes)[order],
        np.concatenate(cut)[order],
        scores[order],
        np.concatenate([part.labels for part in found])[order],
        tiles[order],
    )
    partners, parts = _compare(every, windows)
    groups = _group(partners, every.tiles)
    # Index order is order of scores, and every group is sorted.
    lonely = {group[0] for group in groups if len(group) == 1}
    dropped = lonely & set(parts)
    kept = sorted(group for group in groups if group[0] not in dropped)
    first = np.array([group[0] for group in kept], dtype=np.intp)
    joined = np.array([_joined(every, group) for group in kept], np.float32).reshape(-1, 4)
    return Detections(joined, every.scores[first], every.labels[first], image_size)


@dataclass(frozen=True, slots=True, eq=False)
class _Boxes:
    """What all tiles found, best first.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the image.
        cut: (N, 4) whether a side lies on a border of the tile with more image behind it.
        scores: (N,).
        labels: (N,).
        tiles: (N,) index of the tile.
    """

    boxes: NDArray[np.float32]
    cut: NDArray[np.bool_]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    tiles: NDArray[np.intp]


def _placed(
    part: Detections, window: Window, image_size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(N, 4) boxes in the image, ended at the tile's inner borders, and (N, 4) which sides lie there."""
    edges = np.array([window.x1, window.y1, window.x2, window.y2], np.float32)
    inner = np.array([window.x1 > 0, window.y1 > 0, window.x2 < image_size[1], window.y2 < image_size[0]], dtype=bool)
    low = np.where(inner[:2], edges[:2], -np.inf).astype(np.float32)
    high = np.where(inner[2:], edges[2:], np.inf).astype(np.float32)
    boxes = np.clip(part.boxes + np.tile(edges[:2], 2), np.tile(low, 2), np.tile(high, 2))
    near = _NEAR_BORDER * np.tile(np.array(window.size[::-1], np.float32), 2)
    return boxes, inner & (np.abs(boxes - edges) <= near)


def _compare(every: _Boxes, windows: Sequence[Window]) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of boxes that may be one object, the most alike first; and cut boxes that lie inside another tile's."""
    alike: list[NDArray[np.float32]] = []
    pairs: list[NDArray[np.intp]] = []
    parts: list[int] = []
    members = [np.flatnonzero(every.tiles == tile) for tile in range(len(windows))]
    is_cut: NDArray[np.bool_] = np.asarray(every.cut.any(axis=1))
    for first, window in enumerate(windows):
        for second in range(first + 1, len(windows)):
            shared = window.common(windows[second])
            if shared is None:
                continue
            one, other = members[first], members[second]
            iou, in_other, in_one = _overlaps(every.boxes[one], every.boxes[other], shared)
            same_class = every.labels[one][:, None] == every.labels[other][None, :]
            rows, columns = np.nonzero(same_class & (iou > SAME_OBJECT))
            alike.append(iou[rows, columns])
            pairs.append(np.sort(np.stack([one[rows], other[columns]], axis=1), axis=1))
            parts += one[is_cut[one] & (same_class & (in_other > INSIDE)).any(axis=1)].tolist()
            parts += other[is_cut[other] & (same_class & (in_one > INSIDE)).any(axis=0)].tolist()
    if not pairs:
        return [], parts
    found, values = np.concatenate(pairs), np.concatenate(alike)
    order = np.lexsort((found[:, 1], found[:, 0], -values))
    return [(int(a), int(b)) for a, b in found[order]], parts


def _overlaps(
    one: NDArray[np.float32], other: NDArray[np.float32], shared: Window
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Within a window: (N, M) intersection over union, share of the first boxes, share of the second ones."""
    edges = np.array([shared.x1, shared.y1, shared.x2, shared.y2], np.float32)
    (low, high), (other_low, other_high) = (
        (np.clip(boxes[:, :2], edges[:2], edges[2:]), np.clip(boxes[:, 2:], edges[:2], edges[2:]))
        for boxes in (one, other)
    )
    areas, other_areas = (high - low).prod(axis=1)[:, None], (other_high - other_low).prod(axis=1)[None, :]
    sides = np.minimum(high[:, None], other_high[None]) - np.maximum(low[:, None], other_low[None])
    common = np.maximum(sides, 0).prod(axis=2)
    tiny = np.float32(1e-9)
    return (
        common / np.maximum(areas + other_areas - common, tiny),
        common / np.maximum(areas, tiny),
        common / np.maximum(other_areas, tiny),
    )


def _group(pairs: Sequence[tuple[int, int]], tiles: NDArray[np.intp]) -> list[list[int]]:
    """Boxes of one object each, sorted; no group holds two boxes of one tile, because a tile tells objects apart."""
    groups = {index: [index] for index in range(len(tiles))}
    seen_in = {index: {int(tile)} for index, tile in enumerate(tiles)}
    home = list(range(len(tiles)))
    for one, other in pairs:
        a, b = home[one], home[other]
        if a == b or seen_in[a] & seen_in[b]:
            continue
        for index in groups[b]:
            home[index] = a
        groups[a] += groups.pop(b)
        seen_in[a] |= seen_in.pop(b)
    return [sorted(group) for group in groups.values()]


def _joined(every: _Boxes, group: Sequence[int]) -> NDArray[np.float32]:
    """One box of several, best first: each side from the first box that is not cut there, or else the outermost."""
    boxes, cut = every.boxes[group], every.cut[group]
    outermost = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    seen = boxes[np.argmin(cut, axis=0), np.arange(4)]
    joined = np.where(cut.all(axis=0), outermost, seen)
    # Boxes that agree pairwise may still disagree along a chain of tiles.
    return joined if (joined[:2] < joined[2:]).all() else outermost
