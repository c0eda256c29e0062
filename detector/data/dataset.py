"""Annotated images in the one form that every file format is read into; torch is not needed.

Tensor letters: G ground-truth boxes of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .taxonomy import LabelSpace


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and what is marked in it, as the files say: boxes are not clipped and none is dropped.

    Attributes:
        image_id: Unique in its data set; COCO's own id where there is one.
        path: The image file.
        size: (height, width) that the annotation file states, or that boxes were computed with where they are shares
            of it (YOLO; the image's own, upright); None where there is neither.
        boxes: (G, 4) float32 xyxy in pixels.
        labels: (G,) int64 indices into the data set's class names.
        ignored: (G,) bool; crowd, difficult or ignore regions: never trained on, never counted as missed.
        areas: (G,) float32 in square pixels: of the mask where the file states it, else of the box.
        polygons: Per box a (V, 2) float32 array of outline points, all parts one after the other; None where the file
            has no outline for every box.
        source: Number of the data set that the image comes from, in a union of several; else 0.
    """

    image_id: int
    path: Path
    size: tuple[int, int] | None
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float32]
    polygons: tuple[NDArray[np.float32], ...] | None = None
    source: int = 0

    def __post_init__(self) -> None:
        count = len(self.labels)
        for name, shape in (("boxes", (count, 4)), ("ignored", (count,)), ("areas", (count,))):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} has shape {found}; expected {shape}")
        if self.polygons is not None and len(self.polygons) != count:
            raise ValueError(f"polygons has {len(self.polygons)} entries; expected {count}, one per box")


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """One split of a data set.

    Attributes:
        name: For messages and reports, such as `bccd/annotations/instances_val.json`.
        class_names: In label order.
        images: Sorted by `image_id`.
        category_ids: Ids that the files give the classes, in label order; label order itself where they give none.
        union: What it was made of, where it is a union of several data sets.
    """

    name: str
    class_names: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    category_ids: tuple[int, ...]
    union: Union | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True, eq=False)
class Union:
    """What a union of data sets was made of.

    Attributes:
        space: Its classes, and which of them each source marks.
        parts: By number of their source those that have this split: with their own image and category ids, and their
            own classes under the names of the union.
    """

    space: LabelSpace
    parts: dict[int, Dataset]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image in memory with its boxes, as augmentations take and return it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (G, 4) float32 xyxy in pixels of the image.
        labels: (G,) int64.
        polygons: As in `ImageRecord`, in pixels of the image.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    polygons: tuple[NDArray[np.float32], ...] | None = None
