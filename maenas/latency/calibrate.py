"""Fit the shipped T4 and Xeon 8163 formulas to published latencies, with the error on networks left out.

`calibrate_t4()` and `calibrate_8163()` read the facts, fit, cross-validate and compare with the earlier models refitted
on the same rows; same input, same numbers. Nothing here was measured by us: a result is `calibrated`, and its sigma
is the honest width of a statement about one network, not of one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from maenas.latency import calibration_baseline as baseline
from maenas.latency.calibrated import CpuWork, T4Work, cpu_time, cpu_work, t4_time, t4_work
from maenas.latency.calibration_facts import PublishedLatency, count_matrix, read_published
from maenas.latency.calibration_fit import (
    Errors,
    Floats,
    Model,
    Prior,
    bootstrap_spread,
    fit,
    leave_family_out,
    leave_one_out,
)
from maenas.latency.calibration_report import Calibration, FittedRow
from maenas.latency.uncertainty import kind_of, sizes_of

T4_PRIORS = (
    Prior("compute_tflop_s", 32.0, 0.3, "half of the 65 TFLOP/s tensor-core peak: a 70 W card under load"),
    Prior("memory_gb_s", 220.0, 0.3, "about 70 % of the 320 GB/s peak"),
    Prior("launch_us", 5.0, 0.5, "start of a kernel inside an engine"),
    Prior("tile_penalty", 1.2, 0.15, "a smaller tile reuses its operands less"),
    Prior("pointwise_bytes", 0.5, 0.5, "between merged into the kernel before (0) and a pass of its own (1)"),
    Prior("host_gb_s", 8.0, 0.5, "PCIe 3.0 x16, between pageable and pinned memory"),
    Prior("pointwise_launch", 0.2, 0.0, "held: the rows cannot tell it from pointwise_bytes"),
    Prior("fixed_ms", 0.1, 0.0, "held: the rows cannot tell it from launch_us"),
)

CPU_PRIORS = (
    Prior("conv_ms", 0.03, 0.5, "a parallel region over a whole socket"),
    Prior("other_ms", 0.015, 0.5, "half of that: less to synchronise"),
    Prior("ms_per_gflop", 0.4, 0.5, "80 % of 24 cores x 128 GFLOP/s"),
    Prior("fixed_ms", 0.0, 0.0, "held: the rows prefer none"),
)

SELECTION = 1.21
"""How much choosing a formula on its own rows flatters its error: choosing among 96 T4 formulas anew for every left-out
row gave a root mean square of 6.6 %, the chosen one alone gives 5.4 % (experiments/latency_calibration/forms.py). The
CPU formula left less to choose; the same factor is applied."""


def calibrate_t4(*, priors: tuple[Prior, ...] = T4_PRIORS, facts: Path | None = None) -> Calibration:
    """Fit the NVIDIA T4 (TensorRT FP16, batch 1) formula to the latencies of the DAMO-YOLO paper.

    Args:
        priors: Others than the default serve ablations; a spread of 0 holds a coefficient.
        facts: Folder of the two CSV files; the shipped one where None.
    """
    rows = read_published("nvidia-t4", use="fit", folder=facts)
    return _calibrate("t4-roofline", rows, t4_model(rows, priors), baseline.t4_baseline(rows))


def calibrate_8163(*, priors: tuple[Prior, ...] = CPU_PRIORS, facts: Path | None = None) -> Calibration:
    """Fit the Intel Xeon Platinum 8163 (OpenVINO, FP16 files, batch 1) formula; arguments as in `calibrate_t4`."""
    rows = read_published("intel-8163", use="fit", folder=facts)
    old = cpu_model(rows, baseline.CPU_PRIORS)
    return _calibrate("cpu-linear", rows, cpu_model(rows, priors), old)


def t4_model(rows: Sequence[PublishedLatency], priors: tuple[Prior, ...] = T4_PRIORS) -> Model:
    """The `t4-roofline` formula over whole networks.

    The work of all operators is stacked into one array per quantity, so that a fit evaluates it in microseconds.
    """
    work = [t4_work(op) for row in rows for op in row.ops]
    fields = ("launches", "bytes", "pointwise", "pointwise_bytes", "host_bytes")
    stacked = T4Work(
        tile_flops=np.stack([one.tile_flops for one in work], axis=1),
        **{name: np.array([float(getattr(one, name)) for one in work]) for name in fields},
    )
    sums = count_matrix(rows)

    def predict(coefficients: Mapping[str, float]) -> Floats:
        return coefficients["fixed_ms"] + sums @ t4_time(stacked, coefficients)

    return _model(rows, priors, predict)


def cpu_model(rows: Sequence[PublishedLatency], priors: tuple[Prior, ...] = CPU_PRIORS) -> Model:
    """The `cpu-linear` formula over whole networks; a row without operators brings its counts."""
    totals = np.array([_cpu_totals(row) for row in rows])
    work = CpuWork(convs=totals[:, 0], others=totals[:, 1], gflops=totals[:, 2])
    return _model(rows, priors, lambda c: cpu_time(work, c) + c.get("fixed_ms", 0.0))


def _cpu_totals(row: PublishedLatency) -> tuple[float, float, float]:
    if not row.ops:
        return float(row.num_convs), float(row.num_others), row.gflops
    work = [(float(op.count), cpu_work(op)) for op in row.ops]
    return (
        sum(count * float(one.convs) for count, one in work),
        sum(count * float(one.others) for count, one in work),
        sum(count * float(one.gflops) for count, one in work),
    )


def _model(
    rows: Sequence[PublishedLatency], priors: tuple[Prior, ...], predict: Callable[[Mapping[str, float]], Floats]
) -> Model:
    published = np.array([row.latency_ms for row in rows])
    return Model(priors, predict, published, tuple(row.family for row in rows))


def _calibrate(
    predictor: str,
    rows: Sequence[PublishedLatency],
    model: Model,
    old: Model,
) -> Calibration:
    coefficients = fit(model)
    fitted, loo, lofo = model.predict(coefficients), leave_one_out(model), leave_family_out(model)
    fixed_ms = coefficients.pop("fixed_ms")
    published = model.published_ms
    loo_errors, lofo_errors = Errors.of(loo, published), Errors.of(lofo, published)
    ops = [op for row in rows for op in row.ops]
    sizes = [size for size in map(sizes_of, ops) if size]
    return Calibration(
        device=rows[0].device,
        predictor=predictor,
        coefficients=coefficients,
        fixed_ms=fixed_ms,
        spread=bootstrap_spread(model),
        priors=model.priors,
        rows=tuple(
            FittedRow(row.model, row.family, row.latency_ms, float(a), float(b), float(c))
            for row, a, b, c in zip(rows, fitted, loo, lofo, strict=True)
        ),
        fit_errors=Errors.of(fitted, published),
        loo=loo_errors,
        lofo=lofo_errors,
        baseline_loo=Errors.of(leave_one_out(old), published),
        baseline_lofo=Errors.of(leave_family_out(old), published),
        sigma=SELECTION * loo_errors.rms,
        sigma_new_family=max(lofo_errors.max_abs, SELECTION * lofo_errors.rms),
        kinds=tuple(sorted({kind_of(op) for op in ops})),
        valid_range={
            name: (min(int(size[name]) for size in sizes), max(int(size[name]) for size in sizes)) for name in sizes[0]
        },
        valid_latency_ms=(float(published.min()), float(published.max())),
    )
