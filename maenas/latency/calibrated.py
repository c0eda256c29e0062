"""Formulas that give one operator's milliseconds on a device nobody can run here, from a handful of coefficients.

Both formulas are sums of "work done / rate", so a network is `fixed + sum over operators`, and every term grows (or
stays) with channels, map size and kernel size. A search over widths therefore meets no holes to fall into. What an
operator costs is split in two steps: `t4_work` and `cpu_work` count device-independent work (any array of widths at
once), `t4_ms` and `cpu_ms` divide it by the coefficients. The coefficients come from `maenas.latency.calibrate`; they
are fitted to end-to-end latencies, so a single operator's value is an estimate, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maenas.lowering.op import Op, Real

BYTES = 2
"""Bytes of a value on the T4: weights and maps are FP16."""

HOST_BYTES = 4
"""Bytes of a value the host receives: network outputs are FP32."""

TILES: tuple[tuple[int, int, float], ...] = ((128, 128, 0.0), (128, 64, 1.0), (64, 64, 1.5), (64, 32, 2.5))
"""Output tiles (positions, channels) of the matrix-multiply kernels, and the power of `tile_penalty` each one costs."""

DEPTHWISE_FLOPS = 8
"""A depthwise convolution uses one channel of the eight that a tensor-core step multiplies at once."""

NO_FLOPS: NDArray[np.float64] = np.zeros(len(TILES))
"""The arithmetic of an operator that multiplies nothing, in the layout of `T4Work.tile_flops`."""

UNFUSED = ("silu", "sigmoid", "hardsigmoid")
"""Activations that cost pointwise work on the T4; the others are free in the convolution's epilogue."""


@dataclass(frozen=True, slots=True)
class T4Work:
    """What an operator asks of a GPU. Every field is a number or an array that broadcasts with the others.

    Attributes:
        launches: Kernels started.
        bytes: Bytes read and written by those kernels: maps, weights and a fused residual.
        pointwise: Pointwise operators (activation, add, mul) that TensorRT merges into a neighbour.
        pointwise_bytes: Bytes they would read and write if they ran alone.
        tile_flops: Floating-point operations with the output padded to whole tiles; the first axis runs over TILES.
        host_bytes: Bytes copied to the host and decoded there.
    """

    launches: Real = 0.0
    bytes: Real = 0.0
    pointwise: Real = 0.0
    pointwise_bytes: Real = 0.0
    tile_flops: NDArray[np.float64] = field(default_factory=lambda: NO_FLOPS)
    host_bytes: Real = 0.0


@dataclass(frozen=True, slots=True)
class CpuWork:
    """What an operator asks of a many-core CPU: parallel regions of two kinds, and arithmetic."""

    convs: Real = 0.0
    others: Real = 0.0
    gflops: Real = 0.0


def _real(value: int | float | NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(value, dtype=np.float64)


def _pad8(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ceil(channels / 8) * 8


def _t4_conv(op: Op) -> T4Work:
    positions = op.out_size[0] * op.out_size[1]
    in_elements, out_elements = _real(op.in_elements), _real(op.out_elements)
    if op.depthwise:
        flops = [_real(op.macs) * (2 * DEPTHWISE_FLOPS)] * len(TILES)
    else:
        taps = _pad8(_real(op.in_channels)) * (2 * op.kernel_size**2)
        columns = _pad8(_real(op.out_channels))
        flops = [np.ceil(columns / n) * n * (-(-positions // m) * m) * taps for m, n, _ in TILES]
    maps = in_elements + out_elements * (2 if op.residual else 1)
    pointwise = 1.0 if op.activation in UNFUSED else 0.0
    return T4Work(
        launches=1.0,
        bytes=BYTES * (maps + _real(op.weights)),
        pointwise=pointwise,
        pointwise_bytes=pointwise * 2 * BYTES * out_elements,
        tile_flops=np.stack(flops),
        host_bytes=HOST_BYTES * out_elements if op.activation == "sigmoid" else 0.0,
    )


def _t4_copy(op: Op) -> T4Work:
    return T4Work(launches=1.0, bytes=BYTES * (_real(op.in_elements) + _real(op.out_elements)))


def _t4_pointwise(op: Op) -> T4Work:
    inputs = 2 if op.kind == "add" else 1
    return T4Work(pointwise=1.0, pointwise_bytes=BYTES * (inputs * _real(op.in_elements) + _real(op.out_elements)))


def _t4_se(op: Op) -> T4Work:
    # Pool, two tiny matrix-vector products, scale: the map is read twice and written once.
    maps = 2 * _real(op.in_elements) + _real(op.out_elements)
    return T4Work(launches=4.0, bytes=BYTES * (maps + _real(op.weights)))


T4_WORK: dict[str, Callable[[Op], T4Work]] = {
    "conv": _t4_conv,
    "pool": _t4_copy,
    "resize": _t4_copy,
    "concat": _t4_copy,
    "slice": _t4_copy,
    "add": _t4_pointwise,
    "mul": _t4_pointwise,
    "se": _t4_se,
}


def t4_work(op: Op) -> T4Work:
    """Count the work of one operator on the T4, for one width or a grid of widths."""
    return T4_WORK[op.kind](op)


def t4_time(work: T4Work, coefficients: Mapping[str, float]) -> NDArray[np.float64]:
    """Milliseconds of counted work on the T4.

    Kernel start, memory traffic and arithmetic follow one another (they add), the arithmetic at the best tile. A
    convolution with a sigmoid ends the network: its map goes to the host and is decoded there.

    Args:
        work: From `t4_work`, or stacked over many operators.
        coefficients: `compute_tflop_s`, `memory_gb_s`, `launch_us`, `tile_penalty`, `pointwise_bytes` (share of a
            merged pointwise operator's traffic that remains), `pointwise_launch` (share of its start), `host_gb_s`.
    """
    penalties = (coefficients["tile_penalty"] ** power for _, _, power in TILES)
    flops = np.minimum.reduce([tiled * penalty for tiled, penalty in zip(work.tile_flops, penalties, strict=True)])
    launches = work.launches + coefficients["pointwise_launch"] * work.pointwise
    traffic = work.bytes + coefficients["pointwise_bytes"] * work.pointwise_bytes
    return _real(
        1e-3 * coefficients["launch_us"] * launches
        + traffic / (1e6 * coefficients["memory_gb_s"])
        + flops / (1e9 * coefficients["compute_tflop_s"])
        + work.host_bytes / (1e6 * coefficients["host_gb_s"])
    )


def cpu_work(op: Op) -> CpuWork:
    """Count the work of one operator on the many-core CPU; activations and residual adds are fused and free."""
    if op.kind == "conv":
        return CpuWork(convs=1.0, gflops=2e-9 * _real(op.macs))
    if op.kind == "se":
        return CpuWork(convs=2.0, others=2.0, gflops=2e-9 * _real(op.weights))
    if op.kind == "mul":
        # Merged into the convolution before it: only its arithmetic is left.
        return CpuWork(gflops=1e-9 * _real(op.out_elements))
    return CpuWork(others=1.0)


def cpu_time(work: CpuWork, coefficients: Mapping[str, float]) -> NDArray[np.float64]:
    """Milliseconds of counted work on the CPU.

    Args:
        work: From `cpu_work`, or summed over a network.
        coefficients: `conv_ms` and `other_ms` (start and end of a parallel region), `ms_per_gflop`.
    """
    return _real(
        coefficients["conv_ms"] * work.convs
        + coefficients["other_ms"] * work.others
        + coefficients["ms_per_gflop"] * work.gflops
    )


def _plain(ms: NDArray[np.float64], op: Op) -> Real:
    shape = np.broadcast_shapes(np.shape(op.in_channels), np.shape(op.out_channels))
    return float(ms) if shape == () else np.broadcast_to(ms, shape)


def t4_ms(op: Op, coefficients: Mapping[str, float]) -> Real:
    """Milliseconds of one operator on an NVIDIA T4 (TensorRT FP16, batch 1); follows the shape of the channels."""
    return _plain(t4_time(t4_work(op), coefficients), op)


def cpu_ms(op: Op, coefficients: Mapping[str, float]) -> Real:
    """Milliseconds of one operator on a many-core CPU (batch 1); follows the shape of the channels."""
    return _plain(cpu_time(cpu_work(op), coefficients), op)


PREDICTORS: dict[str, Callable[[Op, Mapping[str, float]], Real]] = {"t4-roofline": t4_ms, "cpu-linear": cpu_ms}
"""Predictor kind of a table's header to the function that costs one operator, without its count."""

COEFFICIENTS: dict[str, tuple[str, ...]] = {
    "t4-roofline": (
        "compute_tflop_s",
        "memory_gb_s",
        "launch_us",
        "tile_penalty",
        "pointwise_bytes",
        "pointwise_launch",
        "host_gb_s",
    ),
    "cpu-linear": ("conv_ms", "other_ms", "ms_per_gflop"),
}
"""What each predictor reads from a table's header."""
