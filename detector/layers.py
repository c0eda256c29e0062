"""Convolution layers and small operators that every part of the detector is made of.

Tensor letters: B images, C channels, H W feature size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-3
NORM_MOMENTUM = 0.03
"""Both as in the published models (in PyTorch's meaning of momentum); eps changes outputs, so weights depend on it."""

SPP_KERNELS = (5, 9, 13)


def make_activation(name: str) -> nn.Module:
    """An activation layer by its name in a structure, or `none`.

    Raises:
        ValueError: The name is unknown.
    """
    makers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "relu": lambda: nn.ReLU(inplace=True),
        "silu": lambda: nn.SiLU(inplace=True),
        "leaky_relu": lambda: nn.LeakyReLU(0.1, inplace=True),
    }
    if name not in makers:
        raise ValueError(f"activation is {name!r}; expected one of {', '.join(makers)}")
    return makers[name]()


def make_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with the detector's eps and momentum."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class ConvNormAct(nn.Module):
    """Bias-free convolution padded by (kernel_size - 1) / 2, batch norm, activation.

    After `fold_norm` the convolution has a bias and the norm is the identity.
    """

    conv: nn.Conv2d
    norm: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        activation: str = "none",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=in_channels if depthwise else 1,
            bias=False,
        )
        self.norm = make_norm(out_channels)
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride), sides rounded up."""
        return self.act(self.norm(self.conv(x)))

    def fold_norm(self) -> None:
        """Move the batch norm, as it acts in evaluation, into the convolution; nothing to do the second time."""
        if isinstance(self.norm, nn.BatchNorm2d):
            set_kernel(self.conv, *folded_kernel(self))
            self.norm = nn.Identity()


class RepConv(nn.Module):
    """Two parallel branches, k x k and 1x1, each convolution and batch norm; summed, then activated.

    There is no identity branch, even where widths agree at stride 1: released weights have none. After
    `merge_branches` a single convolution with a bias, `fused`, takes the place of both.
    """

    fused: nn.Conv2d

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, activation: str = "none"
    ) -> None:
        super().__init__()
        self.dense = ConvNormAct(in_channels, out_channels, kernel_size=kernel_size, stride=stride)
        self.pointwise = ConvNormAct(in_channels, out_channels, kernel_size=1, stride=stride)
        self.act = make_activation(activation)

    @property
    def merged(self) -> bool:
        """Whether the branches are one convolution."""
        return "fused" in self._modules

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride), sides rounded up."""
        if self.merged:
            return self.act(self.fused(x))
        return self.act(self.dense(x) + self.pointwise(x))

    def merge_branches(self) -> None:
        """Replace both branches by the convolution that equals them in evaluation; nothing to do the second time."""
        if self.merged:
            return
        weight, bias = folded_kernel(self.dense)
        centre_weight, centre_bias = folded_kernel(self.pointwise)
        margin = weight.shape[-1] // 2
        self.fused = self.dense.conv
        set_kernel(self.fused, weight + F.pad(centre_weight, [margin] * 4), bias + centre_bias)
        del self.dense, self.pointwise


class DepthwiseSeparable(nn.Module):
    """Depthwise k x k convolution with the stride, then 1x1; each with batch norm and activation."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, activation: str = "none"
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels, in_channels, kernel_size=kernel_size, stride=stride, depthwise=True, activation=activation
        )
        self.pointwise = ConvNormAct(in_channels, out_channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride), sides rounded up."""
        return self.pointwise(self.depthwise(x))


class Focus(nn.Module):
    """Space-to-depth by two, then a stride-1 convolution on four times the channels."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, activation: str = "relu") -> None:
        super().__init__()
        self.conv = ConvNormAct(4 * in_channels, out_channels, kernel_size=kernel_size, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / 2, W / 2); H and W even."""
        even_rows, odd_rows = x[..., ::2, :], x[..., 1::2, :]
        # Order matters for weights, as (row, column) parity: even-even, odd-even, even-odd, odd-odd.
        parts = (even_rows[..., ::2], odd_rows[..., ::2], even_rows[..., 1::2], odd_rows[..., 1::2])
        return self.conv(torch.cat(parts, dim=1))


class SPP(nn.Module):
    """Spatial pyramid pooling: 1x1 to half, the map beside its max-pools of side 5, 9, 13, 1x1 back.

    Always SiLU, also inside ReLU models: released weights depend on it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = ConvNormAct(channels, half, activation="silu")
        self.pools = nn.ModuleList(nn.MaxPool2d(k, stride=1, padding=k // 2) for k in SPP_KERNELS)
        self.fuse = ConvNormAct(half * (1 + len(SPP_KERNELS)), channels, activation="silu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = self.reduce(x)
        return self.fuse(torch.cat([x, *(pool(x) for pool in self.pools)], dim=1))


class SqueezeExcite(nn.Module):
    """Channel gate: mean over the map, two bias-free linear layers through a quarter of the width, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 4, bias=False)
        self.expand = nn.Linear(channels // 4, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        gate = F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


def folded_kernel(layer: ConvNormAct) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with its batch norm in evaluation, in float64 (before any activation).

    Returns:
        (out, in / groups, kH, kW) and (out,).

    Raises:
        ValueError: The layer has no batch norm with running statistics.
    """
    norm = layer.norm
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ValueError("the layer has no batch norm with running statistics to fold; it is folded already")
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.detach().double() - norm.running_mean.double() * scale
    return layer.conv.weight.detach().double() * scale[:, None, None, None], bias


def set_kernel(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Give a convolution a new kernel, of the shape that it has, and a bias (out,), in its dtype."""
    trainable, dtype = conv.weight.requires_grad, conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=trainable)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=trainable)
