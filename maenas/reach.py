"""Every operator that the structures of a search space can contain: what a latency table for it must hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from maenas.grids import grid_shapes, lower_grid, lower_tail, stem_ops
from maenas.lowering.op import Op
from maenas.spaces import SearchSpace


def reachable_ops(space: SearchSpace, *, scope: str = "detector") -> list[Op]:
    """The distinct operators of all structures of a space, over all its variants, without names.

    Args:
        space: Search space; hidden-ratio and growth limits are not applied, so a few operators are unreachable.
        scope: `detector` or `backbone`.
    """
    found: dict[tuple[object, ...], Op] = {}
    for op in _grids(space, scope):
        bare = replace(op, name="", stage="", main_path=False, batch_norm=False, reparam=False, count=1)
        form = (op.kind, op.kernel_size, op.stride, op.depthwise, op.in_size, op.out_size, op.activation, op.residual)
        used = np.broadcast_arrays(np.asarray(op.in_channels), np.asarray(op.out_channels), np.asarray(op.count))
        ins, outs, counts = (array.ravel() for array in used)
        pairs = np.unique(np.stack([ins, outs])[:, counts > 0], axis=1).T
        for in_channels, out_channels in pairs.tolist():
            key = (*form, in_channels, out_channels)
            if key not in found:
                found[key] = replace(bare, in_channels=in_channels, out_channels=out_channels)
    return list(found.values())


def _grids(space: SearchSpace, scope: str) -> Iterator[Op]:
    """Operators on grids of widths: stems, stages with no, one and two units, necks and heads."""
    for variant in space.variants:
        yield from stem_ops(space, variant)
        for stage, shape in zip(space.stages, grid_shapes(space, variant), strict=True):
            for kernel in stage.kernel_sizes:
                for depth in sorted({min(depth, 2) for depth in stage.depth.values.tolist()} | {1}):
                    yield from lower_grid(space, shape, kernel, depth)
        if scope == "detector" and space.graph == "deployed":
            yield from lower_tail(space, variant)
