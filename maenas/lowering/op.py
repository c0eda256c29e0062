"""One deployed operator, and what can be counted on it without knowing any device.

Channel fields and `count` may be integers or numpy integer arrays that broadcast: the same lowering then costs one
network or a whole grid of candidate widths at once. Everything else about an operator is a plain number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Channels = int | NDArray[np.int64]
"""A number of channels, or an array of candidate numbers."""

Real = float | NDArray[np.float64]
"""A float, or an array of floats that follows the shape of the channel arrays."""

OpKind = Literal["conv", "pool", "resize", "concat", "add", "mul", "se", "slice"]
OP_KINDS: tuple[str, ...] = get_args(OpKind)
ACTIVATIONS = ("none", "relu", "silu", "sigmoid", "leaky_relu", "hardsigmoid")


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operator of the deployed graph (batch norm folded; activation and residual add fused as attributes).

    Attributes:
        kind: conv (also depthwise), pool (max, size kept), resize (nearest), concat, add, mul (element-wise by a
            scalar or map), se (squeeze-and-excitation gate), slice (space-to-depth half).
        in_channels: Input channels; for concat the sum of the inputs' channels.
        out_channels: Output channels; equal to in_channels for all but conv (and se, where it is equal too).
        in_size: Input (height, width) in feature cells.
        out_size: Output (height, width).
        kernel_size: Side of the square kernel; 1 where there is none.
        stride: Stride of a conv or pool.
        depthwise: A conv with groups = in_channels = out_channels.
        activation: Fused activation, one of ACTIVATIONS.
        residual: A residual add of an out_channels map is fused into this conv.
        count: How often the operator occurs; 0 means absent (used where channels are arrays).
        name: Dotted place in the network, such as `neck.merge_3.block2.conv1`.
        stage: Group for reports: `stem`, `stage1`, ..., `neck`, `head`.
        main_path: This conv is on the score's main path (docs/scores.md).
        batch_norm: The conv has a batch norm in the trained form (else it has a bias of its own).
        reparam: The conv is trained as a 3x3 and a parallel 1x1 branch, each with a batch norm.
    """

    kind: OpKind
    in_channels: Channels
    out_channels: Channels
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: str = "none"
    residual: bool = False
    count: Channels = 1
    name: str = ""
    stage: str = ""
    main_path: bool = False
    batch_norm: bool = False
    reparam: bool = False

    @property
    def fan_in(self) -> Channels:
        """Input taps of one output value: in_channels * kernel_size^2 / groups."""
        return (1 if self.depthwise else self.in_channels) * self.kernel_size**2

    @property
    def out_elements(self) -> Channels:
        """Values of the output map, batch 1."""
        return self.out_channels * (self.out_size[0] * self.out_size[1])

    @property
    def in_elements(self) -> Channels:
        """Values of the input map, batch 1, without a fused residual."""
        return self.in_channels * (self.in_size[0] * self.in_size[1])

    @property
    def weights(self) -> Channels:
        """Kernel weights (conv) or gate weights (se, squeeze to a quarter), without biases."""
        if self.kind == "conv":
            return self.fan_in * self.out_channels
        if self.kind == "se":
            return 2 * self.in_channels * (self.in_channels // 4)
        return 0 * self.in_channels

    @property
    def macs(self) -> Channels:
        """Multiply-accumulates of the convolution; 0 for every other kind (the papers count convolutions only)."""
        if self.kind != "conv":
            return 0 * self.in_channels
        return self.fan_in * self.out_elements


def conv(
    in_channels: Channels,
    out_channels: Channels,
    in_size: tuple[int, int],
    *,
    kernel_size: int,
    name: str,
    stage: str,
    stride: int = 1,
    depthwise: bool = False,
    activation: str = "none",
    residual: bool = False,
    count: Channels = 1,
    main_path: bool = False,
    batch_norm: bool = True,
    reparam: bool = False,
) -> Op:
    """A convolution padded by (kernel_size - 1) / 2, so that its output side is ceil(input side / stride)."""
    out_size = (-(-in_size[0] // stride), -(-in_size[1] // stride))
    return Op(
        kind="conv",
        in_channels=in_channels,
        out_channels=out_channels,
        in_size=in_size,
        out_size=out_size,
        kernel_size=kernel_size,
        stride=stride,
        depthwise=depthwise,
        activation=activation,
        residual=residual,
        count=count,
        name=name,
        stage=stage,
        main_path=main_path,
        batch_norm=batch_norm,
        reparam=reparam,
    )


def glue(
    kind: OpKind,
    channels: Channels,
    in_size: tuple[int, int],
    out_size: tuple[int, int] | None = None,
    *,
    name: str,
    stage: str,
    kernel_size: int = 1,
    stride: int = 1,
    count: Channels = 1,
) -> Op:
    """An operator that keeps its channels: pool, resize, concat, add, mul, se or slice."""
    return Op(
        kind=kind,
        in_channels=channels,
        out_channels=channels,
        in_size=in_size,
        out_size=out_size or in_size,
        kernel_size=kernel_size,
        stride=stride,
        count=count,
        name=name,
        stage=stage,
    )


def present(ops: list[Op]) -> list[Op]:
    """The operators that occur: those with a plain count of 0 are dropped."""
    return [op for op in ops if not (isinstance(op.count, int) and op.count == 0)]
