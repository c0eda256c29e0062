"""The graph that the reference search tool costs, so that its published numbers can be matched.

It differs from the deployed one: every unit has a skip, average-pooled at stride 2 and
projected when widths differ; there is no SPP, no Focus slicing, no neck and no head; only convolutions have a latency.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maenas.lowering.backbone import StageShape, stage_shapes, stem_size
from maenas.lowering.op import Channels, Op, conv, glue, present
from maenas.structure import Stem, Structure


def lower_reference(structure: Structure) -> list[Op]:
    """The reference graph of a backbone of family res or kxkx, in the reference's order.

    Kinds `pool` and `add` count in its MACs only; its latency sums the convolutions.
    """
    ops = lower_reference_stem(structure.backbone.stem, structure.image_size)
    for shape in stage_shapes(structure.backbone, structure.image_size):
        ops += lower_reference_stage(shape)
    return ops


def lower_reference_stem(stem: Stem, image_size: tuple[int, int], out_channels: Channels | None = None) -> list[Op]:
    """The stem convolution; a focus stem is read as a conv on four times the channels at half the size."""
    focus = stem.kind == "focus"
    return [
        conv(
            stem.in_channels * (4 if focus else 1),
            stem.out_channels if out_channels is None else out_channels,
            stem_size(stem, image_size) if focus else image_size,
            kernel_size=stem.kernel_size,
            stride=stem.stride,
            activation="relu",
            name="stem.conv",
            stage="stem",
            main_path=True,
        )
    ]


def lower_reference_stage(shape: StageShape) -> list[Op]:
    """One super-block; channels may be arrays.

    Raises:
        ValueError: For families that the reference graph does not cover.
    """
    if shape.family not in ("res", "kxkx"):
        raise ValueError(f"family is {shape.family!r}; the reference graph covers res and kxkx")
    ops: list[Op] = []
    channels, size, stride = shape.in_channels, shape.in_size, shape.stride
    for index, hidden in enumerate(shape.hidden_channels):
        ops += _unit(shape, f"{shape.name}.unit{index + 1}", channels, hidden, size, stride)
        channels, size, stride = shape.out_channels, shape.out_size, 1
    return present(ops)


def _unit(
    shape: StageShape, name: str, channels: Channels, hidden: Channels, size: tuple[int, int], stride: int
) -> list[Op]:
    """Two convs (the last always has the add fused), then the skip's pooling, projection and add."""
    stage, kernel = shape.name, shape.kernel_size
    first_kernel = 1 if shape.family == "res" else kernel
    out, out_size = shape.out_channels, (size[0] // stride, size[1] // stride)
    differ = np.asarray(np.not_equal(channels, out), dtype=np.int64)
    projected: Channels = differ if differ.ndim else int(differ)
    first = conv(
        channels, hidden, size, kernel_size=first_kernel, activation="relu", name=f"{name}.conv1", stage=stage,
        main_path=True,
    )  # fmt: skip
    second = conv(
        hidden, out, size, kernel_size=kernel, stride=stride, activation="relu", residual=True,
        name=f"{name}.conv2", stage=stage, main_path=True,
    )  # fmt: skip
    pool = glue("pool", channels, size, out_size, name=f"{name}.skip_pool", stage=stage, kernel_size=2, stride=2)
    projection = conv(
        channels, out, out_size, kernel_size=1, name=f"{name}.projection", stage=stage, count=projected
    )  # fmt: skip
    add = glue("add", out, out_size, name=f"{name}.projected_add", stage=stage, count=projected)
    return [first, second, *([pool] if stride == 2 else []), projection, add]


def reference_macs(ops: Sequence[Op]) -> Channels:
    """Multiply-accumulates by the reference's rule (it calls them flops).

    Convs count weights + 2 per output channel at every output position, activations one per element, skip pools one per
    input element, and a projected skip one add per output element.
    """
    total: Channels = 0
    for op in ops:
        if op.kind == "conv":
            positions = op.out_size[0] * op.out_size[1]
            activation = op.out_elements if op.activation != "none" else 0
            total = total + op.count * ((op.weights + 2 * op.out_channels) * positions + activation)
        elif op.kind == "pool":
            total = total + op.count * op.in_elements
        else:
            total = total + op.count * op.out_elements
    return total


def reference_params(ops: Sequence[Op]) -> Channels:
    """Parameters by the reference's rule: weights and a batch norm's scale and shift of every conv."""
    total: Channels = 0
    for op in ops:
        if op.kind == "conv":
            total = total + op.count * (op.weights + 2 * op.out_channels)
    return total
