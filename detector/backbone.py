"""The feature extractor of a structure, and what the neck asks of any other one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from maenas.structure import Backbone as BackboneSpec
from maenas.structure import Stem

from .blocks import STAGES
from .errors import InputError
from .layers import ConvNormAct, Focus

STRIDES = (8, 16, 32)
"""Image pixels per cell of the three levels that networks have unless they say otherwise."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """What a neck needs of a backbone; a hand-made module with these fits too.

    Attributes:
        channels: Channels of the maps, fine to coarse.
        strides: Image pixels per cell of the maps: those of the structure's levels, usually (8, 16, 32).
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to a map (B, channels[l], H / strides[l], W / strides[l]) per level."""
        ...


class Backbone(nn.Module):
    """Stem and stages of a structure.

    Attributes:
        channels: Channels of the maps.
        strides: Image pixels per cell of the maps.
        out_stages: Stages, counted from 1, whose outputs are returned.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.channels = spec.out_channels
        self.strides = spec.out_strides
        self.out_stages = spec.out_stages
        self.stem = make_stem(spec.stem, spec.activation)
        self.stages = nn.ModuleList()
        channels = spec.stem.out_channels
        # Stages after the last output would run for nothing, but belong to the structure and to its cost.
        for stage in spec.stages:
            self.stages.append(STAGES[spec.family](spec, stage, channels))
            channels = stage.out_channels
        if spec.family == "mob":
            self.apply(_init_mob)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of all levels.

        Args:
            images: (B, in, H, W); H and W multiples of 32.

        Returns:
            Per level a map (B, channels[l], H / strides[l], W / strides[l]).
        """
        x, features = self.stem(images), []
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number in self.out_stages:
                features.append(x)
        return features


def make_stem(stem: Stem, activation: str) -> nn.Module:
    """The first convolution of a structure."""
    if stem.kind == "focus":
        return Focus(stem.in_channels, stem.out_channels, kernel_size=stem.kernel_size, activation=activation)
    return ConvNormAct(
        stem.in_channels, stem.out_channels, kernel_size=stem.kernel_size, stride=stem.stride, activation=activation
    )


def check_extractor(backbone: object, strides: tuple[int, ...] = STRIDES) -> FeatureExtractor:
    """The backbone itself, if it states what a neck needs.

    Args:
        backbone: What is to give the maps.
        strides: Of the levels that the structure has.

    Raises:
        InputError: `channels` or `strides` is missing or does not describe these levels.
    """
    name, count = type(backbone).__name__, len(strides)
    if not isinstance(backbone, FeatureExtractor):
        raise InputError(f"{name} has no channels and strides; expected both, for {count} levels")
    if tuple(backbone.strides) != strides:
        raise InputError(f"{name}.strides is {backbone.strides}; expected {strides}")
    channels = tuple(backbone.channels)
    if len(channels) != count or any(not isinstance(c, int) or c < 1 for c in channels):
        raise InputError(f"{name}.channels is {channels}; expected {count} positive integers")
    return backbone


def _init_mob(module: nn.Module) -> None:
    """Initial values of the mob family as in the official training; the others keep the framework's."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 1.0 / module.weight.shape[1])
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.constant_(module.bias, 1e-4)
