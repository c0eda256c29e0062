"""Candidates of a search space on grids of widths, lowered all at once.

Axis 0 runs over input widths, axis 1 over output widths, axis 2 over hidden widths; neck and head are on the grid of
the three feature widths instead.
"""

from __future__ import annotations

from dataclasses import replace

from maenas.lowering.backbone import StageShape, lower_stage, lower_stem
from maenas.lowering.head import lower_head
from maenas.lowering.neck import lower_neck
from maenas.lowering.op import Op
from maenas.lowering.reference import lower_reference_stage, lower_reference_stem
from maenas.space_parts import Variant
from maenas.spaces import SearchSpace
from maenas.structure import Neck, Stem


def grid_shapes(space: SearchSpace, variant: Variant) -> list[StageShape]:
    """Stages on grids: input widths along axis 0, output widths along axis 1, hidden widths along axis 2."""
    stem = space.stem_of(variant)
    widths = [stem.out_channels.values, *(stage.out_channels.values for stage in space.stages)]
    stride = 2 if stem.kind == "focus" else stem.stride
    size = (-(-space.image_size[0] // stride), -(-space.image_size[1] // stride))
    shapes = []
    for index, stage in enumerate(space.stages):
        shape = StageShape(
            family=space.family,
            activation=space.activation,
            in_channels=widths[index][:, None, None],
            out_channels=widths[index + 1][None, :, None],
            hidden_channels=(stage.hidden_channels.values[None, None, :],),
            stride=stage.stride,
            kernel_size=stage.kernel_sizes[0],
            se=stage.se,
            spp=stage.spp,
            in_size=size,
            name=f"stage{index + 1}",
        )
        shapes.append(shape)
        size = shape.out_size
    return shapes


def stem_ops(space: SearchSpace, variant: Variant) -> list[Op]:
    """The stem on a grid of widths along axis 1."""
    stem = space.stem_of(variant)
    widths = stem.out_channels.values
    spec = Stem(stem.kind, stem.in_channels, int(widths[0]), stem.kernel_size, stem.stride)
    if space.graph == "reference":
        return lower_reference_stem(spec, space.image_size, widths[None, :, None])
    return lower_stem(spec, space.activation, space.image_size, widths[None, :, None])


def with_depth(shape: StageShape, kernel: int, depth: int) -> StageShape:
    """A grid shape with a kernel and a number of units."""
    return replace(shape, kernel_size=kernel, hidden_channels=tuple(shape.hidden_channels[:1]) * depth)


def lower_grid(space: SearchSpace, shape: StageShape, kernel: int, depth: int) -> list[Op]:
    """A stage on its grid of widths, with a kernel and a number of units."""
    lower = lower_reference_stage if space.graph == "reference" else lower_stage
    return lower(with_depth(shape, kernel, depth))


def lower_tail(space: SearchSpace, variant: Variant) -> list[Op]:
    """Neck and head on the grid of C3, C4, C5 widths (axes 0, 1, 2)."""
    third, fourth, fifth = (space.stages[index - 1].out_channels.values for index in space.out_stages)
    features = (third[:, None, None], fourth[None, :, None], fifth[None, None, :])
    height, width = space.image_size
    sizes = ((height // 8, width // 8), (height // 16, width // 16), (height // 32, width // 32))
    setting = variant.neck
    out_channels = setting.out_channels or features
    neck = Neck(
        setting.out_channels or (2, 2, 2),
        setting.num_blocks,
        setting.hidden_ratio,
        space.activation,
        setting.depthwise,
        setting.fusion,
        setting.extra_edges,
    )
    ops = lower_neck(neck, features, sizes, out_channels)
    return ops + lower_head(variant.head, out_channels, sizes, space.activation)
