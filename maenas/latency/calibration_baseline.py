"""The eight-coefficient T4 model that `calibrated` replaced, kept to be refitted on the same rows and compared.

Per convolution, kernel start plus the cube-norm of tile-quantised arithmetic and memory traffic; SiLU and sigmoid cost
a share of a pass over the output; concat and slice are discounted; every other operator is a memory pass. Nothing is
merged, and the network's outputs are free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maenas.latency.calibration_facts import PublishedLatency, count_matrix
from maenas.latency.calibration_fit import Floats, Model, Prior
from maenas.lowering.op import Op

TILES = ((256, 128, 0.0), (128, 128, 0.0), (128, 64, 1.0), (64, 64, 1.5), (64, 32, 2.5))
PROCESSORS = 40
"""Streaming multiprocessors of a T4; up to four waves of tiles are counted whole."""

T4_SPREAD = 1.0
"""Width of the priors: the document gives their centres only; this one served the old model best of .3, .5 and 1."""

T4_PRIORS = (
    Prior("compute_tflop_s", 32.0, T4_SPREAD),
    Prior("memory_gb_s", 220.0, T4_SPREAD),
    Prior("launch_us", 5.0, T4_SPREAD),
    Prior("tile_penalty", 1.2, T4_SPREAD),
    Prior("copy_share", 0.5, T4_SPREAD),
    Prior("fixed_ms", 0.1, T4_SPREAD),
    Prior("silu_bytes", 0.5, T4_SPREAD),
    Prior("silu_launch", 0.2, T4_SPREAD),
)

CPU_PRIORS = (Prior("conv_ms", 0.03, 10.0), Prior("other_ms", 0.01, 10.0), Prior("ms_per_gflop", 0.4, 10.0))
"""The old CPU model is the same line without priors."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One operator: bytes moved, share of a start, tile work per tile shape, and its class."""

    bytes: float
    out_bytes: float
    tile_flops: tuple[float, ...]
    conv: bool
    copy: bool
    unfused: bool


def _work(op: Op) -> _Work:
    ins, outs = 2.0 * float(op.in_elements), 2.0 * float(op.out_elements)
    if op.kind != "conv":
        ins = 2 * ins if op.kind == "add" else ins
        return _Work(ins + outs, outs, (0.0,) * len(TILES), False, op.kind in ("concat", "slice"), False)
    rows = op.out_size[0] * op.out_size[1]
    columns, inner = np.ceil(op.out_channels / 8) * 8, np.ceil(op.in_channels / 8) * 8 * op.kernel_size**2
    flops = []
    for tile_rows, tile_columns, _ in TILES:
        tiles = np.ceil(rows / tile_rows) * np.ceil(columns / tile_columns)
        waves = np.ceil(tiles / PROCESSORS) if tiles <= 4 * PROCESSORS else tiles / PROCESSORS
        flops.append(float(waves * PROCESSORS * tile_rows * tile_columns * 2 * inner))
    if op.depthwise:
        flops = [16.0 * float(op.macs)] * len(TILES)
    traffic = ins + outs * (2 if op.residual else 1) + 2.0 * float(op.weights)
    return _Work(traffic, outs, tuple(flops), True, False, op.activation in ("silu", "sigmoid"))


def t4_baseline(rows: Sequence[PublishedLatency]) -> Model:
    """The old T4 model over the given rows."""
    work = [_work(op) for row in rows for op in row.ops]
    sums = count_matrix(rows)
    traffic, outs = np.array([w.bytes for w in work]), np.array([w.out_bytes for w in work])
    flops = np.array([w.tile_flops for w in work])
    conv, copy, unfused = (np.array([getattr(w, name) for w in work]) for name in ("conv", "copy", "unfused"))
    powers = np.array([power for _, _, power in TILES])

    def predict(c: Mapping[str, float]) -> Floats:
        start, rate = 1e-3 * c["launch_us"], 1e6 * c["memory_gb_s"]
        compute = (flops * c["tile_penalty"] ** powers).min(axis=1) / (1e9 * c["compute_tflop_s"])
        conv_ms = start + np.cbrt(compute**3 + (traffic / rate) ** 3)
        conv_ms += unfused * (2 * outs * c["silu_bytes"] / rate + c["silu_launch"] * start)
        other_ms = np.where(copy, c["copy_share"] * (traffic / rate + 0.6 * start), traffic / rate + start)
        ms: Floats = c["fixed_ms"] + sums @ np.where(conv, conv_ms, other_ms)
        return ms

    published = np.array([row.latency_ms for row in rows])
    return Model(T4_PRIORS, predict, published, tuple(row.family for row in rows))
