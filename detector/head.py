"""ZeroHead: per level one convolution for classes and one for box distributions, optionally behind towers.

Tensor letters: B images, P points of all levels, C classes, R = reg_max, H W feature size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maenas.structure import Head

from .layers import ConvNormAct
from .types import HeadOutput

PRIOR_PROBABILITY = 0.01
"""Class probability before training (focal loss, arXiv 1708.02002, section 4.1)."""


class ZeroHead(nn.Module):
    """Prediction layers without shared weights; it returns raw numbers only, in training and after.

    Attributes:
        num_classes: Object classes, without the background channel.
        num_logits: Class channels: one more than `num_classes` with a background channel, which comes last.
        reg_max: Largest bin R of a box side's distribution.
    """

    def __init__(self, spec: Head, in_channels: tuple[int, ...], *, activation: str) -> None:
        super().__init__()
        self.num_classes = spec.num_classes
        self.num_logits = spec.num_classes + int(spec.background_class)
        self.reg_max = spec.reg_max
        width = [spec.tower_channels if spec.tower_depth else channels for channels in in_channels]
        num_bins = 4 * (spec.reg_max + 1)
        bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        self.class_towers = nn.ModuleList(_tower(spec, channels, activation) for channels in in_channels)
        self.box_towers = nn.ModuleList(_tower(spec, channels, activation) for channels in in_channels)
        self.class_convs = nn.ModuleList(_projection(spec, channels, self.num_logits, bias) for channels in width)
        self.box_convs = nn.ModuleList(_projection(spec, channels, num_bins, 0.0) for channels in width)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in in_channels)

    def forward(self, features: list[Tensor]) -> HeadOutput:
        """Raw predictions of all levels, flattened row by row and level after level.

        Args:
            features: Per level a neck map (B, in_channels[l], H_l, W_l).

        Returns:
            Class logits (B, P, num_logits) and box logits (B, P, 4, R + 1), both float32.
        """
        maps = self.forward_maps(features)
        cls_logits = [logits.flatten(2).transpose(1, 2) for logits, _ in maps]
        bins = self.reg_max + 1
        box_logits = [logits.flatten(2).transpose(1, 2).unflatten(2, (4, bins)) for _, logits in maps]
        return HeadOutput(
            cls_logits=torch.cat(cls_logits, dim=1),
            box_logits=torch.cat(box_logits, dim=1),
            level_shapes=tuple((logits.shape[2], logits.shape[3]) for logits, _ in maps),
        )

    def forward_maps(self, features: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Raw predictions as maps.

        Args:
            features: Per level a neck map (B, in_channels[l], H_l, W_l).

        Returns:
            Per level class logits (B, num_logits, H_l, W_l) and box logits (B, 4 * (R + 1), H_l, W_l), the sides left,
            top, right, bottom one after the other, after the level's scale; float32.
        """
        maps = []
        for level, x in enumerate(features):
            # Boxes first, as in the deployed graph.
            box_logits = self.box_convs[level](self.box_towers[level](x)) * self.scales[level]
            cls_logits = self.class_convs[level](self.class_towers[level](x))
            maps.append((cls_logits.float(), box_logits.float()))
        return maps


def _tower(spec: Head, in_channels: int, activation: str) -> nn.Sequential:
    """`tower_depth` convolutions, the first 1x1, the following 3x3; empty for ZeroHead."""
    layers = []
    for index in range(spec.tower_depth):
        kernel_size = 1 if index == 0 else 3
        layers.append(ConvNormAct(in_channels, spec.tower_channels, kernel_size=kernel_size, activation=activation))
        in_channels = spec.tower_channels
    return nn.Sequential(*layers)


def _projection(spec: Head, in_channels: int, out_channels: int, bias: float) -> nn.Conv2d:
    """A convolution with weights drawn from N(0, 0.01^2) and the given bias."""
    conv = nn.Conv2d(in_channels, out_channels, spec.kernel_size, padding=spec.kernel_size // 2)
    nn.init.normal_(conv.weight, 0.0, 0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv
