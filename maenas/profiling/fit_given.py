"""A table from a few given networks, such as quantised files, which serve for samples and calibration alike.

The table is fitted to all of them. Its error comes from fits that leave one network out and predict it from the others:
no operator time, model or line behind a prediction has seen the network.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maenas.profiling.campaign import Network
from maenas.profiling.fit import (
    Fit,
    Line,
    NetworkResult,
    OperatorTimes,
    complete_passes,
    fit_ratio,
    layer_totals,
    network_result,
    operator_times,
    sum_of,
)
from maenas.profiling.measurement import Record
from maenas.profiling.onnx_ops import read_onnx_ops


def fit_given(networks: Sequence[Network], records: Sequence[Record], *, seed: int = 0, precision: str = "int8") -> Fit:
    """Fit a table to given networks; equal timings give equal results.

    Args:
        networks: Those of the role `kernels` are fitted to, at least three; others are predicted.
        records: Their accepted measurements.
        seed: Of the model of operators.
        precision: Of the arithmetic.

    Raises:
        ProfileError: A network has no measurement, or too few operators are in them.
    """
    passes = complete_passes(networks, records)
    placed = {network.key: read_onnx_ops(network.path) for network in networks}
    layers = layer_totals(records)
    given = [network for network in networks if network.role == "kernels"]

    def learn(sources: Sequence[Network]) -> tuple[OperatorTimes, Line, float]:
        times, unassigned = operator_times(sources, placed, records, seed=seed, precision=precision)
        sums = np.array([sum_of(network, placed[network.key], times).total_ms for network in sources])
        scale = fit_ratio(sums, np.array([statistics.median(passes[network.key]) for network in sources]))
        return times, Line(0.0, scale, len(sources), mean_error=0.0, sigma=0.0), unassigned

    def predict(network: Network, times: OperatorTimes, line: Line) -> NetworkResult:
        total = sum_of(network, placed[network.key], times)
        return network_result(network, total, line, passes[network.key], layers.get(network.key))

    results = []
    for network in given:
        times, line, _ = learn([other for other in given if other is not network])
        results.append(predict(replace(network, role="calibration"), times, line))
    errors = np.array([result.error for result in results])
    times, line, unassigned = learn(given)
    line = replace(line, mean_error=float(np.abs(errors).mean()), sigma=float(np.sqrt((errors**2).mean())))
    results += [predict(network, times, line) for network in networks if network.role != "kernels"]
    return Fit(times, line, tuple(results), unassigned)
