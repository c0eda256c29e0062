"""How images are augmented: every number of it, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maenas.records import require

from .sada import PUBLISHED_VECTOR, SadaPolicy

STRIDE = 32
"""Sides of the network's input are multiples of it."""

SADA_RAMPS = ("all", "until_final")


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """Augmentation of a training run; the defaults are those of DAMO-YOLO S, M and L.

    Attributes:
        image_size: (height, width) of the network's input.
        mosaic: How likely a sample is a mosaic of four images, warped.
        mosaic_size: (height, width) at which mosaics are made before they are resized; None is `image_size`. The light
            published models are trained at 416 with mosaics made at 640.
        degrees: Largest rotation of a mosaic either way.
        scale: Smallest and largest scale of a mosaic.
        shear: Largest shear of a mosaic either way, in degrees.
        translate: Largest shift of a mosaic's centre either way, as a share of the sides.
        min_box_side: A warped box stays if both sides are longer, in pixels,
        min_visible: if more than this share of its area is still seen,
        max_aspect: and if its sides differ by less than this factor.
        mixup: How likely a mosaic that shows a box is mixed with another image.
        mixup_scale: Smallest and largest scale of that other image.
        min_area: Boxes of a mosaic that are not larger are dropped; square pixels, at `mosaic_size`.
        flip: How likely left and right are swapped.
        flip_vertical: How likely top and bottom are swapped. Not in the published recipes.
        rotate_90: How likely the image is turned by 90, 180 or 270 degrees. Not in the published recipes.
        hue: Largest change of hue either way, as a share of the colour circle. Not in the published recipes.
        saturation: Largest relative change of saturation either way. Not in the published recipes.
        value: Largest relative change of brightness either way. Not in the published recipes.
        keep_ratio: Keep the aspect ratio when an image is brought to `image_size`; the rest is black. Evaluation
            stretches images, and so do the published recipes.
        sada: Augment single boxes (`detector.data.sada`).
        sada_vector: The policy, in the 40 numbers that a search gives.
        sada_box_probability: Scales how likely a box is chosen.
        sada_ramp: SADA becomes frequent with time: until the end of the run (`all`, official), or only until the final
            epochs begin (`until_final`).
        sada_in_final_epochs: Also in the final epochs, where mosaic and MixUp are off; official.
        views: So many samples are made of each image, which come again in turn, one per epoch; 0 always makes new
            ones. Few of them let a teacher's maps be kept (`distill.cache`).
    """

    image_size: tuple[int, int] = (640, 640)
    mosaic: float = 1.0
    mosaic_size: tuple[int, int] | None = None
    degrees: float = 10.0
    scale: tuple[float, float] = (0.1, 2.0)
    shear: float = 2.0
    translate: float = 0.2
    min_box_side: float = 2.0
    min_visible: float = 0.1
    max_aspect: float = 20.0
    mixup: float = 0.15
    mixup_scale: tuple[float, float] = (0.5, 1.5)
    min_area: float = 4.0
    flip: float = 0.5
    flip_vertical: float = 0.0
    rotate_90: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    keep_ratio: bool = False
    sada: bool = True
    sada_vector: tuple[int, ...] = PUBLISHED_VECTOR
    sada_box_probability: float = 0.3
    sada_ramp: str = "all"
    sada_in_final_epochs: bool = True
    views: int = 0

    def __post_init__(self) -> None:
        check_size("image_size", self.image_size)
        if self.mosaic_size is not None:
            sides = all(STRIDE <= side <= 4096 for side in self.mosaic_size)
            require(sides, "mosaic_size", self.mosaic_size, "sides from 32 to 4096")
        for name in ("mosaic", "mixup", "flip", "flip_vertical", "rotate_90", "min_visible", "sada_box_probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "a number from 0 to 1")
        for name, largest in (("degrees", 180), ("shear", 60), ("translate", 1), ("hue", 0.5)):
            value = getattr(self, name)
            require(0 <= value <= largest, name, value, f"a number from 0 to {largest}")
        for name in ("saturation", "value"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")
        for name in ("min_box_side", "min_area"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "a number of 0 or more")
        require(self.max_aspect > 1, "max_aspect", self.max_aspect, "a number above 1")
        for name in ("scale", "mixup_scale"):
            low, high = getattr(self, name)
            require(0.01 <= low <= high <= 10, name, [low, high], "two numbers from 0.01 to 10, the smaller first")
        require(self.sada_ramp in SADA_RAMPS, "sada_ramp", self.sada_ramp, f"one of {', '.join(SADA_RAMPS)}")
        SadaPolicy.from_vector(self.sada_vector)
        require(self.views >= 0, "views", self.views, "an integer, 0 or more")

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of each image of a mosaic, and of the finished mosaic."""
        return self.image_size if self.mosaic_size is None else self.mosaic_size

    @property
    def samples_per_image(self) -> float:
        """Different samples that are made of an image with mosaic on, and again without; infinity without an end."""
        if self.sada or (not self.views and (self.mosaic or self.hue or self.saturation or self.value)):
            return math.inf  # SADA grows stronger with time, so that even its views differ
        if self.views:
            return self.views
        return (1 + (0 < self.flip < 1)) * (1 + (0 < self.flip_vertical < 1)) * (4 if self.rotate_90 else 1)


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raise `ValueError` unless both sides are multiples of 32 that a network can take."""
    fits = all(STRIDE <= side <= 4096 and side % STRIDE == 0 for side in size)
    require(fits, name, size, f"multiples of {STRIDE} from {STRIDE} to 4096")
