"""The student's side of distillation: projection to the teacher's channels, standardisation, loss of all levels.

Tensor letters: N images, C channels of the teacher, H W feature size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .backbone import FeatureExtractor
from .distill_config import DistillConfig
from .distill_losses import channel_wise_loss, drawn_mask, masked_generative_loss, mimic_loss
from .errors import ConfigError
from .model import Detector

_EPS = 1e-5
"""Of the standardisation; the detector's own batch norms have another one."""


@dataclass(frozen=True, slots=True)
class MapShapes:
    """The maps of a network that distillation compares.

    Attributes:
        channels: Of each map.
        strides: Image pixels per cell of each map.
        indices: Place of each map among the network's.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Guidance:
    """What the teacher says to a batch.

    Attributes:
        maps: One (N, C, H, W) per compared level, without gradient.
        weight: Factor of the loss.
    """

    maps: list[Tensor]
    weight: float


def map_shapes(model: Detector, config: DistillConfig, *, whose: str) -> MapShapes:
    """Channels and places of a network's maps that the settings name.

    Args:
        model: The network.
        config: Features and levels.
        whose: `student` or `teacher`, for messages.

    Raises:
        ConfigError: The network has no map of a level.
    """
    strides = tuple(2**level for level in config.levels)
    for level, stride in zip(config.levels, strides, strict=True):
        if stride not in model.strides:
            known = ", ".join(map(str, model.strides))
            raise ConfigError(
                f"distill.levels names level {level} (stride {stride}), which the {whose} does not have: the maps of "
                f"its {config.features} have strides {known}; expected levels that student and teacher both have"
            )
    indices = tuple(model.strides.index(stride) for stride in strides)
    found: tuple[int, ...] = model.structure.neck.out_channels
    if config.features == "backbone":
        found = cast(FeatureExtractor, model.backbone).channels
    return MapShapes(tuple(found[index] for index in indices), strides, indices)


class Distiller(nn.Module):
    """Loss between a student's and a teacher's maps; what it learns serves training only.

    Args:
        config: Method and its numbers.
        student: The student's maps.
        teacher: The teacher's.

    Attributes:
        align: A 1x1 convolution with bias per level, from the student's to the teacher's channels.
        norms: Standardise each channel over the batch, whatever mode the module is in; nothing to learn, nothing to
            keep. Student and teacher share them.
        generate: Two 3x3 convolutions per level for `mgd`, else empty. They learn like the rest; in the official
            training they were left out of the optimiser.
    """

    def __init__(self, config: DistillConfig, *, student: MapShapes, teacher: MapShapes) -> None:
        super().__init__()
        self.config = config
        self.indices = student.indices
        pairs = zip(student.channels, teacher.channels, strict=True)
        self.align = nn.ModuleList(nn.Conv2d(own, wanted, 1) for own, wanted in pairs)
        self.norms = nn.ModuleList(_standardisation(wanted, config.normalise) for wanted in teacher.channels)
        generated = teacher.channels if config.method == "mgd" else ()
        self.generate = nn.ModuleList(_generation(channels) for channels in generated)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Sum of the levels' losses, without the weight, in float32 (float64 where this module is).

        Args:
            student: All maps (N, own channels, H, W) of the network's neck or backbone, in whatever precision.
            teacher: The compared maps (N, C, H, W) of the teacher.
        """
        dtype = next(self.parameters()).dtype
        with torch.autocast(student[0].device.type, enabled=False):
            losses = []
            for level, index in enumerate(self.indices):
                found = self.norms[level](self.align[level](student[index].to(dtype)))
                with torch.no_grad():
                    wanted = self.norms[level](teacher[level].to(dtype))
                losses.append(self._level_loss(found, wanted, level))
            return torch.stack(losses).sum()

    def nothing(self) -> Tensor:
        """A 0 that depends on every parameter: where the teacher is silent, parallel training still finds them used."""
        return torch.stack([0.0 * parameter.sum() for parameter in self.parameters()]).sum()

    def _level_loss(self, found: Tensor, wanted: Tensor, level: int) -> Tensor:
        config = self.config
        if config.method == "cwd":
            return channel_wise_loss(found, wanted, temperature=config.temperature)
        if config.method == "mimic":
            return mimic_loss(found, wanted)
        kept = drawn_mask(found, ratio=config.mask_ratio)
        loss = masked_generative_loss(found, wanted, kept=kept, generate=self.generate[level])
        return config.mgd_scale * loss


def _standardisation(channels: int, wanted: bool) -> nn.Module:
    if not wanted:
        return nn.Identity()
    # Without running statistics it takes those of the batch in any mode, with the biased variance.
    return nn.BatchNorm2d(channels, eps=_EPS, affine=False, track_running_stats=False)


def _generation(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )
