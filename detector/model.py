"""The network of a structure: backbone, neck, head.

Tensor letters: B images, P points of all levels, C classes, R = reg_max, H W image size.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from maenas.structure import Structure, load_structure

from .backbone import STRIDES, Backbone, check_extractor
from .errors import InputError
from .head import ZeroHead
from .neck import RepGFPN
from .points import decode
from .types import HeadOutput


class Detector(nn.Module):
    """A detector; one signature and one return type in training, evaluation and export.

    Args:
        structure: What to build.
        backbone: Feature extractor in place of the structure's own, such as one of another library; it states
            `channels` and `strides` (see `detector.backbone.FeatureExtractor`).

    Raises:
        InputError: The given backbone does not describe three levels at strides 8, 16, 32.
    """

    def __init__(self, structure: Structure, *, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.structure = structure
        self.strides = STRIDES
        self.backbone = Backbone(structure.backbone) if backbone is None else backbone
        self.neck = RepGFPN(structure.neck, check_extractor(self.backbone).channels)
        self.head = ZeroHead(structure.head, structure.neck.out_channels, activation=structure.neck.activation)

    @property
    def num_classes(self) -> int:
        """Object classes, without a background channel."""
        return self.structure.head.num_classes

    def forward(self, images: Tensor) -> HeadOutput:
        """Raw predictions.

        Args:
            images: (B, 3, H, W) RGB in 0 ... 255, not normalised; H and W any multiples of 32.

        Returns:
            Class logits (B, P, C) and box logits (B, P, 4, R + 1).

        Raises:
            InputError: The images have another shape.
        """
        return self.head(self.features(images))

    def features(self, images: Tensor) -> list[Tensor]:
        """The neck's three maps, at strides 8, 16, 32, as `forward` computes them.

        Raises:
            InputError: The images are not (B, channels, H, W) with H and W multiples of 32.
        """
        self._check(images)
        return self.neck(self.backbone(images))

    def decode(self, output: HeadOutput) -> tuple[Tensor, Tensor]:
        """(B, P, C) probabilities and (B, P, 4) boxes, xyxy in pixels of the input, not clipped."""
        return decode(output, strides=self.strides, num_classes=self.num_classes)

    def _check(self, images: Tensor) -> None:
        shape = tuple(images.shape)
        channels = self.structure.backbone.stem.in_channels
        if len(shape) != 4 or shape[1] != channels:
            raise InputError(f"images have shape {shape}; expected (B, {channels}, H, W)")
        coarsest = self.strides[-1]
        for name, side in (("height", shape[2]), ("width", shape[3])):
            if side % coarsest or side < coarsest:
                raise InputError(f"image {name} is {side}; expected a multiple of {coarsest}, at least {coarsest}")


def build_detector(structure: Structure | str | Path, *, backbone: nn.Module | None = None) -> Detector:
    """A detector with initial weights from a structure or a structure file.

    Raises:
        StructureError: The file cannot be read or does not describe a detector.
        InputError: The given backbone does not fit.
    """
    if not isinstance(structure, Structure):
        structure = load_structure(structure)
    return Detector(structure, backbone=backbone)
