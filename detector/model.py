"""The network of a structure: backbone, neck, head.

Tensor letters: B images, P points of all levels, C classes, R = reg_max, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maenas.structure import Structure, load_structure

from .backbone import Backbone, check_extractor
from .errors import InputError
from .head import ZeroHead
from .neck import RepGFPN
from .points import decode
from .postprocess import postprocess
from .types import Detections, HeadOutput

if TYPE_CHECKING:
    from .export import ExportReport
    from .summary import Summary


class Detector(nn.Module):
    """A detector; one signature and one return type in training, evaluation and export.

    Args:
        structure: What to build.
        backbone: Feature extractor in place of the structure's own, such as one of another library; it states
            `channels` and `strides` (see `detector.backbone.FeatureExtractor`).
        class_names: One name per class, in label order; `class_0`, `class_1`, ... if not given.

    Attributes:
        image_size: (height, width) that the structure states; other multiples of 32 work too.
        strides: Image pixels per cell of the levels.

    Raises:
        InputError: The given backbone does not describe the structure's levels, or a number of names that is not the
            number of classes.
    """

    # What a `detector.predict.Predictor` states: any number of images at once, of any size that `forward` takes.
    batch_limit: int | None = None
    fixed_size = False

    def __init__(
        self, structure: Structure, *, backbone: nn.Module | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.structure = structure
        self.class_names = _names(structure.head.num_classes, class_names)
        self.image_size = structure.image_size
        self.strides = structure.strides
        self.backbone = Backbone(structure.backbone) if backbone is None else backbone
        self.neck = RepGFPN(structure.neck, check_extractor(self.backbone, self.strides).channels)
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
        """The neck's maps, one per stride, as `forward` computes them.

        Raises:
            InputError: The images are not (B, channels, H, W) with H and W multiples of 32.
        """
        return self.both_maps(images)[1]

    def both_maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The backbone's and the neck's maps, one of each per stride.

        Raises:
            InputError: The images are not (B, channels, H, W) with H and W multiples of 32.
        """
        self._check(images)
        maps = self.backbone(images)
        return maps, self.neck(maps)

    def decode(self, output: HeadOutput) -> tuple[Tensor, Tensor]:
        """(B, P, C) probabilities and (B, P, 4) boxes, xyxy in pixels of the input, not clipped."""
        return decode(output, strides=self.strides, num_classes=self.num_classes)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Detector:
        """The network of one of our checkpoints, in evaluation mode.

        Raises:
            CheckpointError: The file cannot be read, is no checkpoint of ours, or does not fit its own structure.
        """
        from .checkpoint import load_checkpoint

        return load_checkpoint(path).build()

    def detect(
        self,
        images: NDArray[np.float32],
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.7,
        max_detections: int = 500,
    ) -> list[Detections]:
        """Detections of a batch, whatever mode the network is in.

        Args:
            images: (B, 3, H, W) RGB in 0 ... 255; H and W multiples of 32.
            score_threshold: Pairs of point and class strictly above it are kept.
            iou_threshold: Of two boxes of one class that overlap more, the better stays.
            max_detections: Kept per image.

        Returns:
            One `Detections` per image in pixels of the input, not clipped, without names.
        """
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(np.ascontiguousarray(images)).to(next(self.parameters()).device)
                scores, boxes = self.decode(self(batch))
        finally:
            self.train(was_training)
        return postprocess(
            scores,
            boxes,
            image_size=(images.shape[2], images.shape[3]),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )

    def predict(self, source: Any, **options: Any) -> Detections | list[Detections]:  # noqa: ANN401
        """Find objects in an image, a folder, a glob, a list or a video; see `detector.predict.predict`."""
        from .predict import predict

        return predict(self, source, **options)

    def export(self, path: str | Path, **options: Any) -> ExportReport:  # noqa: ANN401
        """Write the deployed form as ONNX and check it; see `detector.export.export_onnx` for the options."""
        from .export import export_onnx
        from .reparam import deploy

        return export_onnx(deploy(self), path, class_names=self.class_names, **options)

    def summary(self, image_size: tuple[int, int] | None = None) -> Summary:
        """Shapes, parameters and work part by part, for one image; printable.

        Raises:
            InputError: The size is not a multiple of 32.
        """
        from .reparam import is_deployed
        from .summary import summarize

        height, width = image_size or self.image_size
        shape = (1, self.structure.backbone.stem.in_channels, height, width)
        return summarize(self, shape, deployed=is_deployed(self))

    def _check(self, images: Tensor) -> None:
        shape = tuple(images.shape)
        channels = self.structure.backbone.stem.in_channels
        if len(shape) != 4 or shape[1] != channels:
            raise InputError(f"images have shape {shape}; expected (B, {channels}, H, W)")
        coarsest = self.strides[-1]
        for name, side in (("height", shape[2]), ("width", shape[3])):
            if side % coarsest or side < coarsest:
                raise InputError(f"image {name} is {side}; expected a multiple of {coarsest}, at least {coarsest}")


def _names(num_classes: int, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return tuple(f"class_{label}" for label in range(num_classes))
    if len(names) != num_classes:
        raise InputError(f"class_names has {len(names)} entries; expected {num_classes}, the structure's num_classes")
    return tuple(names)


def build_detector(
    structure: Structure | str | Path,
    *,
    backbone: nn.Module | None = None,
    class_names: Sequence[str] | None = None,
) -> Detector:
    """A detector with initial weights from a structure or a structure file.

    Raises:
        StructureError: The file cannot be read or does not describe a detector.
        InputError: The given backbone or the names do not fit.
    """
    if not isinstance(structure, Structure):
        structure = load_structure(structure)
    return Detector(structure, backbone=backbone, class_names=class_names)
