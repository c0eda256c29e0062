"""What a runtime's layer times say too much: its profiler's own time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maenas.profiling.measurement import Record, quarter

_LEAST = 0.1
"""Share of a layer's time that is never taken off it."""


def layer_overhead_ms(records: Sequence[Record]) -> float:
    """Time per layer by which layer times exceed their networks, timed without a profiler; never negative.

    ONNX Runtime's profiler adds some microseconds to each node, so small networks would come out a third too slow.
    OpenVINO's counters add nothing; what passes between its layers is left to the line through whole networks.

    Args:
        records: Those with layer times are used, and each says how long its whole network takes.

    Returns:
        Least squares on relative errors of sum(layers) - overhead * layers; 0 where no record has layers.
    """
    rows = []
    for record in records:
        if record.layers:
            whole = quarter(record)
            total, count = sum(layer.ms for layer in record.layers), len(record.layers)
            rows.append((count / whole, (total - whole) / whole))
    if not rows:
        return 0.0
    counts, excess = np.array(rows).T
    return max(0.0, float(counts @ excess / (counts @ counts)))


def without_overhead(records: Sequence[Record]) -> list[Record]:
    """The records with layer times that exceed their networks no more, as far as one number per layer can say."""
    overhead = layer_overhead_ms(records)
    return [_corrected(record, overhead) for record in records]


def _corrected(record: Record, overhead_ms: float) -> Record:
    if not record.layers:
        return record
    layers = (replace(layer, ms=max(layer.ms - overhead_ms, _LEAST * layer.ms)) for layer in record.layers)
    return replace(record, layers=tuple(layers))
