"""From what the files say to what is trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .dataset import ImageRecord


def training_boxes(
    record: ImageRecord, *, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[NDArray[np.float32], ...] | None]:
    """The objects of an image that are trained on: ignored ones dropped, the others clipped, empty ones removed.

    Boxes, labels and outlines are filtered together. (The published system takes labels by position from the list
    before it was filtered, and so mixes them up where an empty box is removed.)

    Args:
        record: Left as it is.
        size: (height, width) of the image that was read; by default the one that the record states. With neither,
            boxes are not clipped on the right and below.

    Returns:
        Boxes (G, 4) xyxy in pixels, labels (G,), and per box the outline with its points moved into the image; None
        where the record has no outlines.
    """
    height, width = size or record.size or (np.inf, np.inf)
    boxes = np.clip(record.boxes, 0, np.array([width, height, width, height], np.float32))
    keep = ~record.ignored & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    polygons = record.polygons
    if polygons is not None:
        largest = np.array([width, height], np.float32)
        polygons = tuple(np.clip(polygons[index], 0, largest) for index in np.flatnonzero(keep))
    return boxes[keep], record.labels[keep], polygons
