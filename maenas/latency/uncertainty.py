"""One-sigma relative error of a single operator of a calibrated table.

A calibration's errors are those of shared coefficients, so the sigmas of a network's operators add linearly; an
operator's share is therefore the network's relative error, and more where no fitted network vouches for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maenas.lowering.op import Channels, Op, Real

FITTED_SIZES = ("in_channels", "out_channels", "kernel_size", "in_height", "in_width")
"""What a `fitted_range` limits: the keys of `sizes_of`."""


def relative_sigma(op: Op, uncertainty: Mapping[str, Any]) -> Real:
    """Relative error of an operator; follows the shape of its channels.

    Args:
        op: Operator, or a grid of them.
        uncertainty: `relative` (networks like the fitted ones), and if the table is calibrated `new_family` (above the
            fitted sizes), `unfitted` (a kind no fitted network has), `fitted_kinds` and `fitted_range`.
    """
    shape = np.broadcast_shapes(np.shape(op.in_channels), np.shape(op.out_channels))
    relative = np.full(shape, float(uncertainty["relative"]))
    if "fitted_kinds" in uncertainty:
        if kind_of(op) not in uncertainty["fitted_kinds"]:
            relative = np.full(shape, float(uncertainty["unfitted"]))
        else:
            large = np.zeros(shape, dtype=np.bool_)
            for name, value in sizes_of(op).items():
                large = large | (np.asarray(value) > uncertainty["fitted_range"][name][1])
            relative = np.where(large, float(uncertainty["new_family"]), relative)
    return relative if shape else float(relative)


def kind_of(op: Op) -> str:
    """The operator's kind, `depthwise` apart from `conv`."""
    return "depthwise" if op.depthwise else op.kind


def sizes_of(op: Op) -> dict[str, Channels]:
    """What limits the range of the fit, in the words of a table's `valid_range`.

    Empty for an operator whose map is one cell: the facts keep only the number of values of some copies.
    """
    if op.in_size == (1, 1):
        return {}
    return {
        "in_channels": op.in_channels,
        "out_channels": op.out_channels,
        "kernel_size": op.kernel_size,
        "in_height": op.in_size[0],
        "in_width": op.in_size[1],
    }
