"""Units and stages of the backbone families, and the basic blocks of the neck.

Modules are registered in the official order, so that state dicts compare entry by entry; `forward` has its own order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maenas.structure import Backbone, Stage

from .layers import SPP, ConvNormAct, RepConv, SqueezeExcite, make_activation


class ResidualUnit(nn.Module):
    """Bottleneck of two convolutions, the second re-parameterisable and with the stride.

    Stride 1 adds the input, projected by a 1x1 where widths differ; stride 2 has no shortcut of any kind.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        first_kernel_size: int,
        kernel_size: int,
        stride: int,
        activation: str,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, hidden_channels, kernel_size=first_kernel_size, activation=activation)
        self.conv2 = RepConv(hidden_channels, out_channels, kernel_size=kernel_size, stride=stride)
        self.has_shortcut = stride == 1
        self.projection: nn.Module = nn.Identity()
        if self.has_shortcut and in_channels != out_channels:
            self.projection = ConvNormAct(in_channels, out_channels)
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        out = self.conv2(self.conv1(x))
        if self.has_shortcut:
            out = out + self.projection(x)
        return self.act(out)


class InvertedResidual(nn.Module):
    """1x1 to the hidden width, depthwise k x k with the stride (and SE), linear 1x1; shortcut where shapes agree."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        activation: str,
        stride: int = 1,
        se: bool = False,
    ) -> None:
        super().__init__()
        self.expand = ConvNormAct(in_channels, hidden_channels, activation=activation)
        self.depthwise = ConvNormAct(
            hidden_channels,
            hidden_channels,
            kernel_size=kernel_size,
            stride=stride,
            depthwise=True,
            activation="none" if se else activation,
        )
        # SE sits between the depthwise batch norm and the activation.
        self.se: nn.Module = SqueezeExcite(hidden_channels) if se else nn.Identity()
        self.se_act = make_activation(activation if se else "none")
        self.project = ConvNormAct(hidden_channels, out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        out = self.project(self.se_act(self.se(self.depthwise(self.expand(x)))))
        return x + out if self.has_shortcut else out


class SequentialStage(nn.Module):
    """Units in a row, with SPP right after the first one: families res, kxkx and mob."""

    def __init__(self, spec: Backbone, stage: Stage, in_channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels, stride = in_channels, stage.stride
        for index, hidden in enumerate(stage.hidden_channels):
            self.blocks.append(_make_unit(spec, stage, channels, hidden, stride))
            if index == 0 and stage.spp:
                self.blocks.append(SPP(stage.out_channels))
            channels, stride = stage.out_channels, 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        for block in self.blocks:
            x = block(x)
        return x


def _make_unit(spec: Backbone, stage: Stage, in_channels: int, hidden: int, stride: int) -> nn.Module:
    if spec.family == "mob":
        return InvertedResidual(
            in_channels,
            hidden,
            stage.out_channels,
            kernel_size=stage.kernel_size,
            activation=spec.activation,
            stride=stride,
            se=stage.se,
        )
    return ResidualUnit(
        in_channels,
        hidden,
        stage.out_channels,
        first_kernel_size=1 if spec.family == "res" else stage.kernel_size,
        kernel_size=stage.kernel_size,
        stride=stride,
        activation=spec.activation,
    )


class CSPStage(nn.Module):
    """Stride-2 3x3, then two 1x1 branches of half the width, one of them through the units, concatenated and fused.

    The four convolutions around the units are ReLU whatever the units use: released weights depend on it. Without
    units only the down-sampler (and SPP) is left.
    """

    def __init__(self, spec: Backbone, stage: Stage, in_channels: int) -> None:
        super().__init__()
        out, half = stage.out_channels, stage.out_channels // 2
        self.units = nn.ModuleList(
            ResidualUnit(
                half,
                hidden,
                half,
                first_kernel_size=stage.kernel_size,
                kernel_size=stage.kernel_size,
                stride=1,
                activation=spec.activation,
            )
            for hidden in stage.hidden_channels
        )
        self.downsample = ConvNormAct(in_channels, out, kernel_size=3, stride=stage.stride, activation="relu")
        self.spp: nn.Module = SPP(out) if stage.spp else nn.Identity()
        if stage.hidden_channels:
            self.start = ConvNormAct(out, half, activation="relu")
            self.shortcut = ConvNormAct(out, half, activation="relu")
            self.fuse = ConvNormAct(2 * half, out, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / 2, W / 2)."""
        x = self.spp(self.downsample(x))
        if not self.units:
            return x
        shortcut = self.shortcut(x)
        x = self.start(x)
        for unit in self.units:
            x = unit(x)
        return self.fuse(torch.cat([x, shortcut], dim=1))


STAGES: dict[str, Callable[[Backbone, Stage, int], nn.Module]] = {
    "res": SequentialStage,
    "kxkx": SequentialStage,
    "mob": SequentialStage,
    "csp": CSPStage,
}
"""How each family builds a stage, from the backbone's settings, the stage and its input channels."""


class ReverseBlock(nn.Module):
    """Neck block: 3x3 (two-branch if `reparam`), then plain 3x3, input added after the last activation."""

    def __init__(self, channels: int, hidden_channels: int, *, activation: str, reparam: bool) -> None:
        super().__init__()
        # Registered last first, as in the official state dict.
        self.last = ConvNormAct(hidden_channels, channels, kernel_size=3, activation=activation)
        first = RepConv if reparam else ConvNormAct
        self.first = first(channels, hidden_channels, kernel_size=3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.last(self.first(x))
