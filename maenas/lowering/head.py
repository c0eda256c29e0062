"""ZeroHead as deployed operators: per level a box conv with its scale, and a class conv."""

from __future__ import annotations

from maenas.lowering.op import Channels, Op, conv, glue
from maenas.structure import Head

Size = tuple[int, int]


def lower_head(head: Head, in_channels: tuple[Channels, ...], sizes: tuple[Size, ...], activation: str) -> list[Op]:
    """All operators of the head, in execution order; no decoding, no NMS (what the published latencies measure)."""
    ops: list[Op] = []
    num_logits = head.num_classes + int(head.background_class)
    num_bins = 4 * (head.reg_max + 1)
    for level, (channels, size) in enumerate(zip(in_channels, sizes, strict=True)):
        name = f"head.level{level}"
        box_in, box_tower = _tower(head, channels, size, f"{name}.box_tower", activation)
        class_in, class_tower = _tower(head, channels, size, f"{name}.class_tower", activation)
        ops += box_tower
        ops.append(_project(head, box_in, num_bins, size, f"{name}.box", "none"))
        ops.append(glue("mul", num_bins, size, name=f"{name}.scale", stage="head"))
        ops += class_tower
        ops.append(_project(head, class_in, num_logits, size, f"{name}.class", "sigmoid"))
    return ops


def _tower(head: Head, channels: Channels, size: Size, name: str, activation: str) -> tuple[Channels, list[Op]]:
    """Width after the tower and its convs: the first 1x1, the following 3x3."""
    ops = []
    for index in range(head.tower_depth):
        kernel = 1 if index == 0 else 3
        ops.append(
            conv(
                channels,
                head.tower_channels,
                size,
                kernel_size=kernel,
                activation=activation,
                name=f"{name}.conv{index + 1}",
                stage="head",
            )
        )
        channels = head.tower_channels
    return channels, ops


def _project(head: Head, channels: Channels, out: int, size: Size, name: str, activation: str) -> Op:
    return conv(
        channels,
        out,
        size,
        kernel_size=head.kernel_size,
        activation=activation,
        name=name,
        stage="head",
        batch_norm=False,
    )
