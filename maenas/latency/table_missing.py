"""Why a measured table lacks operators that a network or a space needs, as far as it can be seen."""

from __future__ import annotations

from collections.abc import Iterable

from maenas.latency.table import LatencyTable
from maenas.lowering.op import Op

_SHOWN = 4


def missing_hint(table: LatencyTable, ops: Iterable[Op]) -> str:
    """The end of an error about missing operators; empty but for measured tables that answer by their rows alone.

    Args:
        table: The table that lacks them.
        ops: Operators it lacks; channels may be arrays.
    """
    lacking = list(ops)
    if table.provenance != "measured" or table.predictor["kind"] != "rows" or not lacking:
        return ""
    covered = f" (it covers {'; '.join(table.spaces)})" if table.spaces else ""
    return f"; {_reason(table, lacking)}{covered}: `maenas profile` with that setting makes a table that has them"


def _reason(table: LatencyTable, ops: list[Op]) -> str:
    held = table.map_sizes()
    sizes = sorted({op.in_size for op in ops} - held, reverse=True)
    if sizes:
        having = _listed(sorted(held, reverse=True)) or "none"
        return f"it has no maps of {_listed(sizes)} (but {having}), so the image size is another"
    if all(table.holds_form(op) for op in ops):
        if all(op.stage == "head" for op in ops):
            return "only head operators are lacking, so the number of classes (or the head) is another"
        return "it has these operators with other channels, so the search space or number of classes is another"
    return "some of them it does not have with any channels, so the search space is another"


def _listed(sizes: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:_SHOWN])
    return shown + (f" and {len(sizes) - _SHOWN} more" if len(sizes) > _SHOWN else "")
