"""Stem and stages of every block family as deployed operators.

Channels may be integer arrays that broadcast, so one call lowers one stage or a whole grid of candidate stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from maenas.lowering.op import Channels, Op, conv, glue, present
from maenas.structure import Backbone, Stem

Size = tuple[int, int]
SPP_KERNELS = (5, 9, 13)


@dataclass(frozen=True, slots=True)
class StageShape:
    """What a stage's operators depend on; channels may be arrays.

    Attributes:
        family: Block family.
        activation: Activation of the units.
        in_channels: Channels of the incoming map.
        out_channels: Channels of the stage.
        hidden_channels: Hidden channels of each unit.
        stride: 1 or 2.
        kernel_size: Kernel of the spatial convolutions.
        se: Squeeze-and-excitation.
        spp: Spatial pyramid pooling.
        in_size: (height, width) of the incoming map.
        name: Stage name, also the report group.
    """

    family: str
    activation: str
    in_channels: Channels
    out_channels: Channels
    hidden_channels: Sequence[Channels]
    stride: int
    kernel_size: int
    se: bool
    spp: bool
    in_size: Size
    name: str

    @property
    def out_size(self) -> Size:
        """(height, width) of the stage's output."""
        return -(-self.in_size[0] // self.stride), -(-self.in_size[1] // self.stride)


def lower_backbone(backbone: Backbone, image_size: Size) -> list[Op]:
    """All operators of a backbone, in execution order."""
    ops = lower_stem(backbone.stem, backbone.activation, image_size)
    for shape in stage_shapes(backbone, image_size):
        ops += lower_stage(shape)
    return ops


def stage_shapes(backbone: Backbone, image_size: Size) -> list[StageShape]:
    """The stages of a backbone with their input channels and sizes filled in."""
    shapes: list[StageShape] = []
    channels, size = backbone.stem.out_channels, stem_size(backbone.stem, image_size)
    for index, stage in enumerate(backbone.stages):
        shape = StageShape(
            family=backbone.family,
            activation=backbone.activation,
            in_channels=channels,
            out_channels=stage.out_channels,
            hidden_channels=stage.hidden_channels,
            stride=stage.stride,
            kernel_size=stage.kernel_size,
            se=stage.se,
            spp=stage.spp,
            in_size=size,
            name=f"stage{index + 1}",
        )
        shapes.append(shape)
        channels, size = stage.out_channels, shape.out_size
    return shapes


def stem_size(stem: Stem, image_size: Size) -> Size:
    """(height, width) of the stem's output."""
    stride = stem.total_stride
    return -(-image_size[0] // stride), -(-image_size[1] // stride)


def lower_stem(stem: Stem, activation: str, image_size: Size, out_channels: Channels | None = None) -> list[Op]:
    """The stem; `out_channels` replaces the stem's own width (a grid of candidates)."""
    width = stem.out_channels if out_channels is None else out_channels
    if stem.kind == "conv":
        kernel, stride = stem.kernel_size, stem.stride
        return [_unit_conv(stem.in_channels, width, image_size, kernel, "stem.conv", "stem", activation, stride)]
    height, width_px = image_size
    half = (height // 2, width_px // 2)
    ops = []
    # The exported rearrangement: halve the rows, then each half's columns, once per row parity.
    for row in ("even", "odd"):
        rows = (height // 2, width_px)
        ops.append(glue("slice", stem.in_channels, image_size, rows, name=f"stem.focus.{row}", stage="stem"))
        for column in ("even", "odd"):
            name = f"stem.focus.{row}_{column}"
            ops.append(glue("slice", stem.in_channels, rows, half, name=name, stage="stem"))
    ops.append(glue("concat", 4 * stem.in_channels, half, name="stem.focus.concat", stage="stem"))
    ops.append(_unit_conv(4 * stem.in_channels, width, half, stem.kernel_size, "stem.conv", "stem", activation, 1))
    return ops


def lower_stage(shape: StageShape) -> list[Op]:
    """All operators of one stage, in execution order."""
    return present(STAGES[shape.family](shape))


def _lower_residual_stage(shape: StageShape) -> list[Op]:
    """Families res and kxkx: units with the shortcut only at stride 1, SPP after the first unit."""
    ops: list[Op] = []
    channels, size, stride = shape.in_channels, shape.in_size, shape.stride
    for index, hidden in enumerate(shape.hidden_channels):
        ops += _residual_unit(shape, f"{shape.name}.unit{index + 1}", channels, hidden, size, stride)
        channels, size, stride = shape.out_channels, shape.out_size, 1
        if index == 0 and shape.spp:
            ops += _spp(shape.out_channels, size, shape.name)
    return ops


def _residual_unit(
    shape: StageShape, name: str, channels: Channels, hidden: Channels, size: Size, stride: int
) -> list[Op]:
    """One bottleneck unit; a stride-2 unit has no shortcut of any kind."""
    first_kernel = 1 if shape.family == "res" else shape.kernel_size
    act, out = shape.activation, shape.out_channels
    first = _unit_conv(channels, hidden, size, first_kernel, f"{name}.conv1", shape.name, act, 1)
    second = conv(
        hidden,
        out,
        size,
        kernel_size=shape.kernel_size,
        stride=stride,
        activation=act,
        residual=stride == 1,
        name=f"{name}.conv2",
        stage=shape.name,
        main_path=True,
        reparam=True,
    )
    if stride != 1:
        return [first, second]
    differ = _as_count(np.not_equal(channels, out))
    projection = conv(channels, out, size, kernel_size=1, name=f"{name}.projection", stage=shape.name, count=differ)
    return [first, second, projection]


def _lower_csp_stage(shape: StageShape) -> list[Op]:
    """Family csp: block-level convs are ReLU whatever the units use; units run at half width."""
    name, out, half, size = shape.name, shape.out_channels, shape.out_channels // 2, shape.out_size
    ops = [_unit_conv(shape.in_channels, out, shape.in_size, 3, f"{name}.downsample", name, "relu", shape.stride)]
    if shape.spp:
        ops += _spp(out, size, name)
    if not shape.hidden_channels:
        return ops
    # The short-cut branch is not on the main path of the score.
    ops.append(conv(out, half, size, kernel_size=1, activation="relu", name=f"{name}.shortcut", stage=name))
    ops.append(_unit_conv(out, half, size, 1, f"{name}.start", name, "relu", 1))
    for index, hidden in enumerate(shape.hidden_channels):
        unit, kernel = f"{name}.unit{index + 1}", shape.kernel_size
        ops.append(_unit_conv(half, hidden, size, kernel, f"{unit}.conv1", name, shape.activation, 1))
        ops.append(
            conv(
                hidden,
                half,
                size,
                kernel_size=kernel,
                activation=shape.activation,
                residual=True,
                name=f"{unit}.conv2",
                stage=name,
                main_path=True,
                reparam=True,
            )
        )
    ops.append(glue("concat", 2 * half, size, name=f"{name}.concat", stage=name))
    ops.append(_unit_conv(2 * half, out, size, 1, f"{name}.fuse", name, "relu", 1))
    return ops


def _lower_mob_stage(shape: StageShape) -> list[Op]:
    """Family mob: inverted residuals, linear output, shortcut if stride 1 and equal widths."""
    ops: list[Op] = []
    channels, size, stride = shape.in_channels, shape.in_size, shape.stride
    for index, hidden in enumerate(shape.hidden_channels):
        unit, name, act = f"{shape.name}.unit{index + 1}", shape.name, shape.activation
        ops.append(_unit_conv(channels, hidden, size, 1, f"{unit}.expand", name, act, 1))
        depthwise_act = "none" if shape.se else act
        ops.append(
            conv(
                hidden,
                hidden,
                size,
                kernel_size=shape.kernel_size,
                stride=stride,
                depthwise=True,
                activation=depthwise_act,
                name=f"{unit}.depthwise",
                stage=name,
                main_path=True,
            )
        )
        if shape.se:
            ops.append(glue("se", hidden, shape.out_size, name=f"{unit}.se", stage=name))
        ops += _linear_output(hidden, channels, shape, f"{unit}.project", stride)
        channels, size, stride = shape.out_channels, shape.out_size, 1
        if index == 0 and shape.spp:
            ops += _spp(shape.out_channels, size, name)
    return ops


def _linear_output(hidden: Channels, channels: Channels, shape: StageShape, name: str, stride: int) -> list[Op]:
    """The 1x1 projection of an inverted residual, with and without the fused shortcut (one of them has count 0)."""
    skip = np.equal(channels, shape.out_channels) & (stride == 1)
    return [
        conv(
            hidden,
            shape.out_channels,
            shape.out_size,
            kernel_size=1,
            residual=residual,
            count=_as_count(skip if residual else np.logical_not(skip)),
            name=name,
            stage=shape.name,
            main_path=True,
        )
        for residual in (False, True)
    ]


def _spp(channels: Channels, size: Size, stage: str) -> list[Op]:
    """Spatial pyramid pooling; always SiLU, never on the score's main path."""
    half, name = channels // 2, f"{stage}.spp"
    reduce = conv(channels, half, size, kernel_size=1, activation="silu", name=f"{name}.reduce", stage=stage)
    pools = [glue("pool", half, size, name=f"{name}.pool{k}", stage=stage, kernel_size=k) for k in SPP_KERNELS]
    concat = glue("concat", 4 * half, size, name=f"{name}.concat", stage=stage)
    fuse = conv(4 * half, channels, size, kernel_size=1, activation="silu", name=f"{name}.fuse", stage=stage)
    return [reduce, *pools, concat, fuse]


def _unit_conv(
    channels: Channels, out: Channels, size: Size, kernel: int, name: str, stage: str, activation: str, stride: int
) -> Op:
    """A conv-bn-activation on the score's main path."""
    return conv(
        channels,
        out,
        size,
        kernel_size=kernel,
        stride=stride,
        activation=activation,
        name=name,
        stage=stage,
        main_path=True,
    )


def _as_count(condition: object) -> Channels:
    """A truth value, or an array of them, as a count of 0 or 1."""
    array = np.asarray(condition, dtype=np.int64)
    return array if array.ndim else int(array)


STAGES: dict[str, Callable[[StageShape], list[Op]]] = {
    "res": _lower_residual_stage,
    "kxkx": _lower_residual_stage,
    "csp": _lower_csp_stage,
    "mob": _lower_mob_stage,
}
