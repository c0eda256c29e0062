"""The values that parts of the detector hand to each other; torch is not needed to use `Detections`.

Tensor letters: B images, P points of all levels, C class channels, R = reg_max, N detections.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutput:
    """Raw predictions, the same in training, evaluation and export.

    Attributes:
        cls_logits: (B, P, C) before the sigmoid; a background channel, where there is one, is the last.
        box_logits: (B, P, 4, R + 1) before the softmax; sides left, top, right, bottom.
        level_shapes: (H, W) of the levels, fine to coarse; points are numbered row by row, level after level.
    """

    cls_logits: Tensor
    box_logits: Tensor
    level_shapes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        classes, boxes = tuple(self.cls_logits.shape), tuple(self.box_logits.shape)
        if len(classes) != 3:
            raise ValueError(f"cls_logits has shape {classes}; expected (B, P, C)")
        if len(boxes) != 4 or boxes[2] != 4 or boxes[:2] != classes[:2]:
            raise ValueError(f"box_logits has shape {boxes}; expected ({classes[0]}, {classes[1]}, 4, R + 1)")
        # While a graph is traced with free sizes they are symbols, which a comparison would bind.
        if type(classes[1]) is int and all(type(side) is int for shape in self.level_shapes for side in shape):
            points = sum(height * width for height, width in self.level_shapes)
            if points != classes[1]:
                raise ValueError(f"level_shapes {self.level_shapes} hold {points} points; expected {classes[1]}")


class Detection(NamedTuple):
    """One object as plain Python values.

    Attributes:
        box: (x1, y1, x2, y2) in pixels.
        score: Class probability.
        label: Class index, counted from 0.
        name: Class name; the index as text where the names are not known.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Objects found in one image, best first; iterating gives a `Detection` each.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of an image of `image_size`; may reach beyond it unless clipped.
        scores: (N,) float32 class probabilities.
        labels: (N,) int64 class indices, counted from 0.
        image_size: (height, width) of that image.
        class_names: One name per class, in label order; None where they are not known.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_size: tuple[int, int]
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        for name, shape in (("boxes", (count, 4)), ("scores", (count,)), ("labels", (count,))):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} has shape {found}; expected {shape}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; expected a positive (height, width)")
        if self.class_names is not None and count and int(self.labels.max()) >= len(self.class_names):
            raise ValueError(f"labels hold {self.labels.max()}; class_names has {len(self.class_names)} entries")

    @classmethod
    def empty(cls, image_size: tuple[int, int], *, class_names: tuple[str, ...] | None = None) -> Detections:
        """No object."""
        boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return cls(boxes, scores, np.zeros(0, np.int64), image_size, class_names)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes, self.scores, self.labels, self.names, strict=True)
        for (x1, y1, x2, y2), score, label, name in rows:
            yield Detection((_plain(x1), _plain(y1), _plain(x2), _plain(y2)), _plain(score), int(label), name)

    @property
    def names(self) -> list[str]:
        """Class name of every detection; the class index as text where the names are not known."""
        return [str(label) if self.class_names is None else self.class_names[label] for label in self.labels.tolist()]

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Detections:
        """The detections that a boolean mask (N,) or integer indices pick."""
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def filter(
        self,
        *,
        score: float | None = None,
        classes: Iterable[str | int] | None = None,
        min_area: float | None = None,
    ) -> Detections:
        """The detections that pass every test given.

        Args:
            score: Scores strictly above it.
            classes: Names or indices of the classes to keep.
            min_area: Box areas strictly above it, in square pixels; 0 drops boxes without any.

        Raises:
            InputError: An unknown class.
        """
        keep = np.ones(len(self), np.bool_)
        if score is not None:
            keep &= self.scores > score
        if classes is not None:
            keep &= np.isin(self.labels, class_indices(classes, self.class_names))
        if min_area is not None:
            sides = np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0)
            keep &= sides.prod(axis=1) > min_area
        return self.select(keep)

    def rescale(self, size: tuple[int, int]) -> Detections:
        """The same detections on the image stretched to (height, width), with independent factors for x and y."""
        scale_y, scale_x = size[0] / self.image_size[0], size[1] / self.image_size[1]
        factors = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        return replace(self, boxes=self.boxes * factors, image_size=(size[0], size[1]))

    def clip(self) -> Detections:
        """Boxes cut at the image's borders; one wholly outside is left without area."""
        height, width = self.image_size
        bounds = np.array([width, height, width, height], np.float32)
        return replace(self, boxes=np.clip(self.boxes, np.float32(0), bounds))

    def draw(self, image: Image | NDArray[Any]) -> NDArray[np.uint8]:
        """A copy of the image with boxes, names and scores drawn on it, uint8 (H, W, 3) RGB.

        Raises:
            InputError: The image is not of `image_size`, or of a kind that `detector.images.as_rgb` refuses.
        """
        from .drawing import draw_detections

        return draw_detections(image, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: image_size, and a list of box, score, label and name."""
        found = [{**entry._asdict(), "box": list(entry.box)} for entry in self]
        return {"image_size": [int(side) for side in self.image_size], "detections": found}

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict())

    def to_coco(self, image_id: int | str, *, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Detections as COCO's result files list them; plain values, bbox as [x, y, width, height].

        Args:
            image_id: Which image it is.
            category_ids: COCO category of every class, in label order; by default the class index, counted from 0.
        """
        return [
            {
                "image_id": image_id,
                "category_id": int(label if category_ids is None else category_ids[label]),
                "bbox": [_plain(x1), _plain(y1), _plain(x2 - x1), _plain(y2 - y1)],
                "score": _plain(score),
            }
            for (x1, y1, x2, y2), score, label in zip(self.boxes, self.scores, self.labels, strict=True)
        ]

    def to_pandas(self) -> DataFrame:
        """A table with a row per detection: x1, y1, x2, y2, score, label, name."""
        from pandas import DataFrame

        columns = {name: self.boxes[:, index] for index, name in enumerate(("x1", "y1", "x2", "y2"))}
        return DataFrame({**columns, "score": self.scores, "label": self.labels, "name": np.array(self.names, object)})

    def to_supervision(self) -> Any:  # noqa: ANN401  the package may not be installed
        """As `supervision.Detections`, for its trackers, zones and annotators; names are under `class_name`.

        Raises:
            MissingExtraError: The package supervision is not installed.
        """
        package = require("supervision", extra="supervision", purpose="converting to supervision")
        return package.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )


def class_indices(classes: Iterable[str | int], class_names: Sequence[str] | None) -> list[int]:
    """Class names or indices as indices.

    Args:
        classes: What to look up; every index may also be given as text, unless it is a class's name.
        class_names: Names in label order; None where they are not known.

    Raises:
        InputError: A name or index that is none of the classes, with the nearest name.
    """
    found = []
    names = None if class_names is None else {name: index for index, name in enumerate(class_names)}
    for entry in [classes] if isinstance(classes, str) else classes:
        if names is not None and entry in names:
            found.append(names[str(entry)])
        elif str(entry).isdecimal() and (names is None or int(entry) < len(names)):
            found.append(int(entry))
        else:
            raise InputError(f"class {entry!r} is unknown; {_expected(str(entry), class_names)}")
    return found


def _expected(entry: str, class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return "expected an index, as the class names are not known"
    hint = did_you_mean(entry, class_names, quoted=True)
    shown = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
    return f"expected one of {len(class_names)} names ({shown}) or an index below {len(class_names)}{hint}"


def _plain(value: np.float32) -> float:
    """A Python float with the digits that the 32-bit number has: 12.3, not 12.300000190734863."""
    return float(str(value))
