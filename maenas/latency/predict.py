"""Latency of a whole network from a table: value, uncertainty, and which operators it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maenas.errors import LatencyTableError
from maenas.latency.table import EXACT, EXTRAPOLATED, MISSING, LatencyTable
from maenas.latency.table_missing import missing_hint
from maenas.lowering.op import Op


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latency of one network.

    Attributes:
        latency_ms: Milliseconds per image at the table's batch.
        sigma_ms: One standard deviation. Errors of a table are shared by its operators, so they add linearly.
        op_ms: Milliseconds of each operator, in order; their sum and `fixed_ms` make `latency_ms`.
        fixed_ms: Part that every network pays.
        num_exact: Operators found as rows of the table.
        num_modelled: Operators from the table's model, within its range.
        num_extrapolated: Operators outside its range.
    """

    latency_ms: float
    sigma_ms: float
    op_ms: tuple[float, ...]
    fixed_ms: float
    num_exact: int
    num_modelled: int
    num_extrapolated: int


def predict(ops: Sequence[Op], table: LatencyTable) -> Prediction:
    """Latency of a network.

    Args:
        ops: Its operators; those of the reference graph other than convolutions must be left out by the caller.
        table: Where the figures come from.

    Raises:
        LatencyTableError: The table lacks some of the operators (named, with their number).
    """
    values, sigmas, statuses, missing = [], [], [], []
    for op in ops:
        found = table.op_latency(op)
        status = int(found.status)
        if status == MISSING:
            missing.append(op)
        values.append(float(found.ms) * int(op.count))
        sigmas.append(float(found.sigma_ms) * int(op.count))
        statuses.append(status)
    if missing:
        shown = "; ".join(_describe(op) for op in missing[:4])
        raise LatencyTableError(
            f"table {table.name} lacks {len(missing)} operators of this network: {shown}{missing_hint(table, missing)}"
        )
    return Prediction(
        latency_ms=math.fsum([table.fixed_ms, *values]),
        sigma_ms=math.fsum([table.fixed_sigma_ms, *sigmas]),
        op_ms=tuple(values),
        fixed_ms=table.fixed_ms,
        num_exact=statuses.count(EXACT),
        num_modelled=len(statuses) - statuses.count(EXACT) - statuses.count(EXTRAPOLATED),
        num_extrapolated=statuses.count(EXTRAPOLATED),
    )


def _describe(op: Op) -> str:
    kind = "depthwise conv" if op.depthwise else op.kind
    widths = f"{op.in_channels}->{op.out_channels}"
    return f"{kind} {op.kernel_size}x{op.kernel_size}/{op.stride} {widths} at {op.in_size[0]}x{op.in_size[1]}"
