"""From timings of networks to a table: samples of operators, a model of the others, a line through whole networks."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maenas.errors import ProfileError
from maenas.latency.kernel_model import KernelModel, fit_kernel_model
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.profiling.attribute import attribute
from maenas.profiling.campaign import Network
from maenas.profiling.measurement import Record, quarter
from maenas.profiling.onnx_ops import PlacedOp, read_onnx_ops
from maenas.profiling.overhead import without_overhead

Floats = NDArray[np.float64]
OpKey = tuple[object, ...]

MEASURED, MODELLED, EXTRAPOLATED = "measured", "modelled", "extrapolated"
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of one value by precision."""

LINE_NETWORKS = 10
"""Calibration networks that a line needs; fewer allow a ratio only."""
SMALLEST_MS = 1e-4
"""Operators that a runtime leaves out (a concat done in place) count as this, so that they have a logarithm."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Time of one operator inside networks.

    Attributes:
        op: The operator, without name and place.
        ms: Median over its occurrences.
        count: Occurrences, each the median over the passes.
        spread: Largest over smallest occurrence; 1 for a single one.
    """

    op: Op
    ms: float
    count: int
    spread: float


@dataclass(frozen=True, slots=True)
class Line:
    """Latency of a network from the sum of its operators: fixed_ms + scale * sum.

    Attributes:
        fixed_ms: Part that every network pays; 0 where only a ratio was fitted.
        scale: Factor on the sum.
        num_networks: Networks it was fitted on.
        mean_error: Mean absolute relative error, each network left out of the fit that predicts it.
        sigma: Root mean square of the same errors.
    """

    fixed_ms: float
    scale: float
    num_networks: int
    mean_error: float
    sigma: float

    def __call__(self, total_ms: float) -> float:
        """Latency from a sum."""
        return self.fixed_ms + self.scale * total_ms


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """A network as timed and as predicted; milliseconds per inference.

    Attributes:
        network: Which one.
        num_ops: Operators.
        num_extrapolated: Those outside what was measured.
        extrapolated_share: Their share of the predicted sum.
        measured_ms: Time of the whole network: median over passes of the 25th percentile within a pass.
        low_ms: Fastest pass.
        high_ms: Slowest pass.
        layers_ms: Sum of the runtime's own layer times, where they were taken.
        sum_ms: Sum of the operators' times.
        predicted_ms: The line of that sum; of given networks that of a fit to the others.
    """

    network: Network
    num_ops: int
    num_extrapolated: int
    extrapolated_share: float
    measured_ms: float
    low_ms: float
    high_ms: float
    layers_ms: float | None
    sum_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True, eq=False)
class OperatorTimes:
    """Times of any operator: measured where it was seen, else the model's.

    Attributes:
        samples: What was seen.
        model: Fitted to them.
        free_kinds: Kinds that cost nothing wherever they were seen, such as box scales folded into convolutions.
    """

    samples: Mapping[OpKey, Sample]
    model: KernelModel
    free_kinds: frozenset[str]

    def __call__(self, ops: Sequence[Op]) -> tuple[Floats, list[str], Floats]:
        """Milliseconds, status and relative sigma of operators whose channels are plain numbers."""
        predicted = self.model.predict(ops)
        ms, sigma = np.array(predicted.ms, dtype=np.float64), np.array(predicted.relative_sigma, dtype=np.float64)
        statuses = [EXTRAPOLATED if beyond else MODELLED for beyond in predicted.extrapolated]
        for index, op in enumerate(ops):
            sample = self.samples.get(op_key(op))
            if sample is not None:
                ms[index], statuses[index] = sample.ms, MEASURED
            elif op.kind in self.free_kinds:
                ms[index], statuses[index] = 0.0, MODELLED
        return ms, statuses, sigma


@dataclass(frozen=True, eq=False)
class Fit:
    """Everything that a campaign's timings give.

    Attributes:
        times: Time of any operator.
        line: From sums to latencies.
        results: Every network with a prediction, `kernels` ones included (they are no test).
        unassigned: Share of the layer times that no operator accounts for.
    """

    times: OperatorTimes
    line: Line
    results: tuple[NetworkResult, ...]
    unassigned: float


def op_key(op: Op) -> OpKey:
    """What makes two operators the same to a table."""
    shape = (op.kind, op.kernel_size, op.stride, op.depthwise, op.in_size, op.out_size, op.activation, op.residual)
    return (*shape, int(op.in_channels), int(op.out_channels))


def bare(op: Op) -> Op:
    """The operator without its place in a network."""
    return replace(op, name="", stage="", main_path=False, batch_norm=False, reparam=False, count=1)


def fit(networks: Sequence[Network], records: Sequence[Record], *, seed: int = 0, precision: str = "fp32") -> Fit:
    """Fit a table to the timings of a campaign; equal timings give equal results.

    Args:
        networks: The campaign's plan.
        records: Its accepted measurements.
        seed: Of the model of operators.
        precision: Of the arithmetic.

    Raises:
        ProfileError: A network has no measurement, or too few are there to calibrate.
    """
    passes = complete_passes(networks, records)
    placed = {network.key: read_onnx_ops(network.path) for network in networks}
    times, unassigned = operator_times(networks, placed, records, seed=seed, precision=precision)
    sums = {network.key: sum_of(network, placed[network.key], times) for network in networks}
    chosen = [network for network in networks if network.role == "calibration"]
    line = fit_line(
        np.array([sums[network.key].total_ms for network in chosen]),
        np.array([statistics.median(passes[network.key]) for network in chosen]),
    )
    layers = layer_totals(records)
    results = [
        network_result(network, sums[network.key], line, passes[network.key], layers.get(network.key))
        for network in networks
    ]
    return Fit(times, line, tuple(results), unassigned)


def operator_times(
    networks: Sequence[Network],
    placed: Mapping[str, Sequence[PlacedOp]],
    records: Sequence[Record],
    *,
    seed: int,
    precision: str,
) -> tuple[OperatorTimes, float]:
    """Times of operators from the networks of the role `kernels`, and the share of layer times left unassigned."""
    samples, unassigned = collect_samples(networks, placed, without_overhead(records), precision=precision)
    paid = {sample.op.kind for sample in samples.values() if sample.ms > SMALLEST_MS}
    free_kinds = frozenset(sample.op.kind for sample in samples.values()) - paid
    ordered = [samples[key] for key in sorted(samples, key=repr) if samples[key].op.kind in paid]
    model = fit_kernel_model(
        [sample.op for sample in ordered],
        np.array([max(sample.ms, SMALLEST_MS) for sample in ordered]),
        seed=seed,
        precision_bytes=BYTES[precision],
    )
    return OperatorTimes(samples, model, free_kinds), unassigned


def network_result(
    network: Network, total: SumOfOps, line: Line, passes: Sequence[float], layers_ms: float | None
) -> NetworkResult:
    """A network as timed and as the line predicts it."""
    return NetworkResult(
        network=network,
        num_ops=total.num_ops,
        num_extrapolated=total.num_extrapolated,
        extrapolated_share=total.extrapolated_share,
        measured_ms=statistics.median(passes),
        low_ms=min(passes),
        high_ms=max(passes),
        layers_ms=layers_ms,
        sum_ms=total.total_ms,
        predicted_ms=line(total.total_ms),
    )


def collect_samples(
    networks: Sequence[Network],
    placed: Mapping[str, Sequence[PlacedOp]],
    records: Sequence[Record],
    *,
    precision: str = "fp32",
) -> tuple[dict[OpKey, Sample], float]:
    """Times of operators from the layer times of the networks of the role `kernels`, and the share left unassigned.

    Convolutions that a quantised network computes in floating point all the same are no samples of int8.

    Raises:
        ProfileError: There are no layer times.
    """
    by_place: dict[tuple[str, int], list[float]] = defaultdict(list)
    unassigned = total = 0.0
    roles = {network.key: network.role for network in networks}
    for record in records:
        if record.layers is None or roles.get(record.key) != "kernels":
            continue
        shares = attribute(placed[record.key], record.layers)
        unassigned += shares.unassigned_ms
        total += shares.unassigned_ms + sum(shares.ms)
        for index, ms in enumerate(shares.ms):
            by_place[record.key, index].append(ms)
    if not by_place:
        raise ProfileError("no layer times were recorded; expected some networks of the role kernels")
    by_op: dict[OpKey, list[tuple[Op, float]]] = defaultdict(list)
    for (key, index), values in by_place.items():
        found = placed[key][index]
        floating = precision == "int8" and found.op.kind == "conv" and not found.quantised
        if found.exact and not floating:
            by_op[op_key(found.op)].append((bare(found.op), statistics.median(values)))
    for network in networks:
        if network.role == "kernels" and network.structure is not None:
            # What the exported file does without, such as box scales folded into their convolutions, costs nothing.
            there = {op_key(each.op) for each in placed[network.key]}
            for op in lower(network.structure):
                if op_key(op) not in there:
                    by_op[op_key(op)].append((bare(op), 0.0))
    samples = {}
    for op_name, occurrences in by_op.items():
        values = [ms for _, ms in occurrences]
        spread = max(values) / max(min(values), SMALLEST_MS)
        samples[op_name] = Sample(occurrences[0][0], statistics.median(values), len(values), max(spread, 1.0))
    return samples, unassigned / total


@dataclass(frozen=True, slots=True)
class SumOfOps:
    """Sum over the operators of a network, with what of it is outside the measured range."""

    total_ms: float
    num_ops: int
    num_extrapolated: int
    extrapolated_share: float


def sum_of(network: Network, placed: Sequence[PlacedOp], times: OperatorTimes) -> SumOfOps:
    """Sum over a network's operators: of the lowering where it is ours, as a search will do; else of its graph."""
    ours = network.structure is not None
    ops = [bare(op) for op in lower(network.structure)] if ours else [each.op for each in placed]  # type: ignore[arg-type]
    exact = [True] * len(ops) if ours else [each.exact for each in placed]
    ms, statuses, _ = times(ops)
    beyond = np.array([status == EXTRAPOLATED or not fine for status, fine in zip(statuses, exact, strict=True)])
    total = float(ms.sum())
    return SumOfOps(total, len(ops), int(beyond.sum()), float(ms[beyond].sum()) / total if total else 0.0)


def fit_line(sums: Floats, measured: Floats) -> Line:
    """Least squares on relative errors; a ratio below ten networks, or where the fixed part came out negative.

    Raises:
        ProfileError: Fewer than three networks.
    """
    if len(sums) < 3:
        raise ProfileError(f"{len(sums)} networks are there for calibration; expected at least 3")
    fixed_ms, scale = _solve(sums, measured)
    errors = []
    for left_out in range(len(sums)):
        keep = np.arange(len(sums)) != left_out
        a, b = _solve(sums[keep], measured[keep])
        errors.append((a + b * sums[left_out]) / measured[left_out] - 1)
    values = np.array(errors)
    return Line(
        fixed_ms=fixed_ms,
        scale=scale,
        num_networks=len(sums),
        mean_error=float(np.abs(values).mean()),
        sigma=float(np.sqrt((values**2).mean())),
    )


def _solve(sums: Floats, measured: Floats) -> tuple[float, float]:
    if len(sums) + 1 >= LINE_NETWORKS:
        design = np.stack([1 / measured, sums / measured], axis=1)
        (fixed_ms, scale), *_ = np.linalg.lstsq(design, np.ones(len(sums)), rcond=None)
        if fixed_ms >= 0:
            return float(fixed_ms), float(scale)
    return 0.0, fit_ratio(sums, measured)


def fit_ratio(sums: Floats, measured: Floats) -> float:
    """The factor on sums whose relative errors are least in squares."""
    relative = sums / measured
    return float(relative.sum() / (relative**2).sum())


def complete_passes(networks: Sequence[Network], records: Sequence[Record]) -> dict[str, list[float]]:
    """`pass_times` of all networks.

    Raises:
        ProfileError: A network has no measurement.
    """
    passes = pass_times(records)
    missing = [network.key for network in networks if network.key not in passes]
    if missing:
        raise ProfileError(f"{len(missing)} networks have no timing: {', '.join(missing[:4])}; resume the profile")
    return passes


def pass_times(records: Sequence[Record]) -> dict[str, list[float]]:
    """25th percentile of the runs of every pass, by network."""
    times: dict[str, list[float]] = defaultdict(list)
    for record in records:
        times[record.key].append(quarter(record))
    return times


def layer_totals(records: Sequence[Record]) -> dict[str, float]:
    """Sum of a network's layer times, the median over the passes, where they were taken."""
    totals: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.layers is not None:
            totals[record.key].append(sum(layer.ms for layer in record.layers))
    return {key: statistics.median(values) for key, values in totals.items()}
