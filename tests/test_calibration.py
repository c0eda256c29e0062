"""Calibrated latency formulas: hand arithmetic, monotone everywhere, and the errors we claim."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maenas.errors import LatencyTableError
from maenas.latency.calibrate import CPU_PRIORS, T4_PRIORS, calibrate_8163, calibrate_t4
from maenas.latency.calibrated import PREDICTORS, cpu_ms, t4_ms
from maenas.latency.calibration_facts import NETWORKS_FILE, PUBLISHED_FILE, read_networks, read_published
from maenas.latency.calibration_fit import Errors, Model, Prior, fit
from maenas.latency.calibration_report import UNFITTED_SIGMA
from maenas.lowering.op import OP_KINDS, Op
from maenas.resources import data_folder

T4 = {
    "compute_tflop_s": 29.0,
    "memory_gb_s": 230.0,
    "launch_us": 6.0,
    "tile_penalty": 1.2,
    "pointwise_bytes": 0.43,
    "pointwise_launch": 0.2,
    "host_gb_s": 10.0,
}
CPU = {"conv_ms": 0.039, "other_ms": 0.0146, "ms_per_gflop": 0.376}  # fitted independently, on eleven rows
COEFFICIENTS = {"t4-roofline": T4, "cpu-linear": CPU}
EASY = T4 | {"compute_tflop_s": 1.0, "memory_gb_s": 1.0, "launch_us": 1.0, "tile_penalty": 1.0, "pointwise_bytes": 0.5}
ACTIVATIONS = ("none", "relu", "silu", "sigmoid", "leaky_relu", "hardsigmoid")


@pytest.fixture(scope="module")
def t4():
    return calibrate_t4()


@pytest.fixture(scope="module")
def xeon():
    return calibrate_8163()


def conv(in_channels, out_channels, side=10, **fields):
    return Op("conv", in_channels, out_channels, (side, side), (side, side), **fields)


def test_t4_convolution_by_hand():
    # 10 x 10 positions pad to 128, 16 channels to 32 in the narrowest tile; 8 x 9 taps, two operations each.
    flops = 128 * 32 * (8 * 9 * 2)
    traffic = 2 * (800 + 1600 + 8 * 16 * 9)
    expected = 1e-3 + traffic / 1e6 + flops / 1e9
    assert t4_ms(conv(8, 16, kernel_size=3, activation="relu"), EASY) == pytest.approx(expected, rel=1e-12)
    silu = 0.2e-3 + 0.5 * (2 * 2 * 1600) / 1e6
    assert t4_ms(conv(8, 16, kernel_size=3, activation="silu"), EASY) == pytest.approx(expected + silu, rel=1e-12)
    host = 4 * 1600 / 10e6
    assert t4_ms(conv(8, 16, kernel_size=3, activation="sigmoid"), EASY) == pytest.approx(expected + silu + host)
    residual = 2 * 1600 / 1e6
    assert t4_ms(conv(8, 16, kernel_size=3, residual=True), EASY) == pytest.approx(expected + residual, rel=1e-12)


def test_t4_other_operators_by_hand():
    concat = Op("concat", 8, 8, (10, 10), (10, 10))
    assert t4_ms(concat, EASY) == pytest.approx(1e-3 + 2 * 1600 / 1e6)
    assert t4_ms(replace(concat, kind="mul"), EASY) == pytest.approx(0.2e-3 + 0.5 * 2 * 1600 / 1e6)
    assert t4_ms(replace(concat, kind="add"), EASY) == pytest.approx(0.2e-3 + 0.5 * 2 * 2400 / 1e6)
    assert t4_ms(replace(concat, kind="se"), EASY) == pytest.approx(4e-3 + 2 * (2400 + 2 * 8 * 2) / 1e6)
    depthwise = conv(8, 8, kernel_size=3, depthwise=True)
    assert t4_ms(depthwise, EASY) == pytest.approx(1e-3 + 2 * (1600 + 72) / 1e6 + 16 * 9 * 800 / 1e9)


def test_t4_picks_the_cheapest_tile():
    # 6400 positions and 128 channels fill whole 128 x 128 tiles, so a penalty on smaller ones changes nothing.
    op = conv(64, 128, side=80)
    assert t4_ms(op, EASY) == t4_ms(op, EASY | {"tile_penalty": 3.0})
    assert t4_ms(conv(64, 8, side=80), EASY) < t4_ms(conv(64, 8, side=80), EASY | {"tile_penalty": 3.0})


def test_cpu_by_hand():
    op = conv(1000, 500, side=100, kernel_size=1, activation="silu", residual=True)
    assert cpu_ms(op, CPU) == pytest.approx(0.039 + 0.376 * 10)
    assert cpu_ms(replace(op, kind="concat", out_channels=1000), CPU) == pytest.approx(0.0146)
    assert cpu_ms(Op("mul", 100, 100, (100, 100), (100, 100)), CPU) == pytest.approx(0.376e-3)


def test_specified_cpu_coefficients_on_a_published_network():
    ns = read_networks(data_folder("latency_tables") / "facts")["damo-yolo-ns"]
    total = sum(op.count * cpu_ms(op, CPU) for op in ns)
    assert total == pytest.approx(0.039 * 91 + 0.0146 * 16 + 0.376 * 1.4976, abs=1e-3)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_holes_in_channels(predictor, activation):
    channels = np.arange(1, 300)
    for side, kernel_size in [(1, 1), (13, 3), (40, 1), (80, 5)]:
        op = conv(channels[:, None], channels[None], side, kernel_size=kernel_size, activation=activation)
        ms = PREDICTORS[predictor](op, COEFFICIENTS[predictor])
        assert ms.shape == (299, 299)
        assert ms.min() > 0
        assert np.diff(ms, axis=0).min() >= 0
        assert np.diff(ms, axis=1).min() >= 0


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("kind", [*OP_KINDS, "depthwise"])
def test_no_holes_in_width_size_and_kernel(predictor, kind):
    formula, coefficients = PREDICTORS[predictor], COEFFICIENTS[predictor]
    channels = np.arange(1, 400)
    before = np.zeros(len(channels))
    for side in range(1, 90):
        op = Op("conv" if kind == "depthwise" else kind, channels, channels, (side, side), (side, side), kernel_size=3)
        ms = formula(replace(op, depthwise=kind == "depthwise"), coefficients)
        assert np.all(ms >= before)
        assert np.diff(ms).min() >= 0
        before = ms
    if kind in ("conv", "depthwise", "pool"):
        costs = [formula(replace(op, kernel_size=k, depthwise=kind == "depthwise"), coefficients) for k in range(1, 10)]
        assert np.diff(costs, axis=0).min() >= 0


@settings(max_examples=200)
@given(
    channels=st.tuples(*[st.integers(1, 1024)] * 4),
    sizes=st.tuples(*[st.integers(1, 200)] * 4),
    kernel_size=st.sampled_from([1, 3, 5]),
    activation=st.sampled_from(ACTIVATIONS),
    predictor=st.sampled_from(sorted(PREDICTORS)),
)
def test_a_larger_convolution_never_costs_less(channels, sizes, kernel_size, activation, predictor):
    c, d, more_c, more_d = channels
    h, w, more_h, more_w = sizes
    small = Op("conv", c, d, (h, w), (h, w), kernel_size=kernel_size, activation=activation)
    size = (h + more_h, w + more_w)
    large = Op("conv", c + more_c, d + more_d, size, size, kernel_size=kernel_size + 2, activation=activation)
    formula, coefficients = PREDICTORS[predictor], COEFFICIENTS[predictor]
    assert formula(small, coefficients) <= formula(large, coefficients)
    assert formula(small, coefficients) <= formula(replace(small, residual=True), coefficients)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_arrays_give_what_single_operators_give(predictor):
    formula, coefficients = PREDICTORS[predictor], COEFFICIENTS[predictor]
    widths = np.array([3, 8, 20, 96, 640])
    grid = formula(conv(widths[:, None], widths[None], 40, kernel_size=3, activation="silu"), coefficients)
    for i, a in enumerate(widths):
        for j, b in enumerate(widths):
            single = formula(conv(int(a), int(b), 40, kernel_size=3, activation="silu"), coefficients)
            assert isinstance(single, float)
            assert grid[i, j] == pytest.approx(single, rel=1e-12)
    concat = Op("concat", widths, widths, (10, 10), (10, 10))
    assert formula(concat, coefficients).shape == widths.shape


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_fifty_thousand_pairs_cost_little(predictor):
    channels = np.arange(8, 1800, 8)
    many = conv(channels[:, None], channels[None], 80, kernel_size=3, activation="silu")
    one = conv(64, 64, 80, kernel_size=3, activation="silu")
    formula, coefficients = PREDICTORS[predictor], COEFFICIENTS[predictor]

    def seconds(op, repeats):
        began = time.process_time()
        for _ in range(repeats):
            formula(op, coefficients)
        return time.process_time() - began

    # A loose guard against loops: it is as much as a few hundred single ones.
    assert min(seconds(many, 1) for _ in range(3)) < min(seconds(one, 5000) for _ in range(3))


def test_t4_errors_are_what_we_claim(t4):
    assert t4.loo.num_rows == t4.lofo.num_rows == 13
    assert t4.loo.mean_abs == pytest.approx(0.0436, abs=0.002)
    assert t4.lofo.mean_abs == pytest.approx(0.0429, abs=0.002)
    assert t4.loo.mean_abs < 0.06
    assert t4.loo.spearman > 0.97
    assert t4.loo.mean_abs < t4.baseline_loo.mean_abs
    assert t4.lofo.mean_abs < t4.baseline_lofo.mean_abs


def test_8163_errors_are_what_we_claim(xeon):
    assert xeon.loo.num_rows == xeon.lofo.num_rows == 9
    assert xeon.loo.mean_abs == pytest.approx(0.0410, abs=0.001)
    assert xeon.lofo.mean_abs == pytest.approx(0.0381, abs=0.001)
    assert xeon.loo.mean_abs <= min(0.043, xeon.baseline_loo.mean_abs)
    assert xeon.lofo.mean_abs <= min(0.040, xeon.baseline_lofo.mean_abs)


def test_coefficients_are_physical(t4, xeon):
    c = t4.coefficients
    assert set(c) == set(T4)
    assert 15 < c["compute_tflop_s"] < 65
    assert 100 < c["memory_gb_s"] < 320
    assert 2 < c["launch_us"] < 12
    assert 1 <= c["tile_penalty"] < 1.5
    assert 0 < c["pointwise_bytes"] < 1
    assert 4 < c["host_gb_s"] < 15.8
    assert set(xeon.coefficients) == set(CPU)
    for name, value in CPU.items():
        assert xeon.coefficients[name] == pytest.approx(value, rel=0.05)
    assert 1 / xeon.coefficients["ms_per_gflop"] < 24 * 0.128
    assert xeon.fixed_ms == 0


def test_fit_runs_the_formula_that_ships(t4, xeon):
    for calibration in (t4, xeon):
        published = read_published(calibration.device, use="fit")
        for row, known in zip(calibration.rows, published, strict=True):
            if known.ops:
                assert calibration.predict(known.ops)[0] == pytest.approx(row.fitted_ms, rel=1e-9)


def test_sigmas_of_operators_sum_to_the_networks(t4, xeon):
    for calibration, name in ((t4, "damo-yolo-s"), (xeon, "damo-yolo-ns")):
        ms, sigma = calibration.predict(read_networks(data_folder("latency_tables") / "facts")[name])
        assert sigma / ms == pytest.approx(calibration.sigma, rel=1e-9)
        assert 0.04 < calibration.sigma < calibration.sigma_new_family < UNFITTED_SIGMA


def test_sigma_grows_outside_the_fit(t4, xeon):
    channels = np.array([16, 512, 5000])
    sigma = t4.op_relative_sigma(conv(channels, 64, kernel_size=3))
    assert sigma.tolist() == [t4.sigma, t4.sigma, t4.sigma_new_family]
    assert t4.op_relative_sigma(conv(16, 16, side=2000)) == t4.sigma_new_family
    assert t4.op_relative_sigma(conv(16, 16, depthwise=True)) == UNFITTED_SIGMA
    assert xeon.op_relative_sigma(conv(16, 16, depthwise=True)) == xeon.sigma
    for calibration in (t4, xeon):
        assert calibration.op_relative_sigma(Op("se", 16, 16, (10, 10), (10, 10))) == UNFITTED_SIGMA


def test_value_plus_sigma_has_no_holes(t4):
    channels = np.arange(1, 2600, 3)
    op = conv(channels, 64, side=20, kernel_size=3)
    assert np.diff(t4.op_ms(op) * (1 + t4.op_relative_sigma(op))).min() >= 0


def test_evaluate_takes_networks_from_elsewhere(t4):
    ops = [conv(64, 64, 80, kernel_size=3, count=10)]
    (tested,) = t4.evaluate([("ten", 1.0, ops)])
    assert tested.predicted_ms == pytest.approx(t4.fixed_ms + 10 * t4.op_ms(ops[0]))
    assert tested.error == pytest.approx(tested.predicted_ms - 1)


def test_report_is_json_and_a_table(t4):
    report = json.loads(json.dumps(t4.to_dict(), allow_nan=False))
    assert report["loo"]["num_rows"] == 13
    assert len(report["rows"]) == 13
    assert t4.table().row_count == 13
    assert "13 rows" in t4.summary()


def test_calibration_repeats_exactly(xeon):
    assert calibrate_8163().to_dict() == xeon.to_dict()


def test_held_coefficients_stay():
    priors = tuple(
        replace(prior, centre=0.4, spread=0) if prior.name == "ms_per_gflop" else prior for prior in CPU_PRIORS
    )
    calibration = calibrate_8163(priors=priors)
    assert calibration.coefficients["ms_per_gflop"] == 0.4
    assert calibration.spread["ms_per_gflop"] == 0


def test_fit_recovers_a_known_line():
    x = np.array([1.0, 2.0, 5.0, 9.0])
    model = Model((Prior("a", 1.0, 5.0), Prior("b", 1.0, 5.0)), lambda c: c["a"] + c["b"] * x, 3 + 2 * x, ("f",) * 4)
    assert fit(model) == pytest.approx({"a": 3.0, "b": 2.0}, rel=1e-3)
    assert fit(model, np.zeros(4)) == pytest.approx({"a": 1.0, "b": 1.0})


def test_errors_by_hand():
    errors = Errors.of(np.array([1.1, 1.8, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert errors.mean_abs == pytest.approx(0.2 / 3)
    assert errors.rms == pytest.approx(np.sqrt(0.02 / 3))
    assert errors.max_abs == pytest.approx(0.1)
    assert errors.spearman == pytest.approx(1)


def test_operator_lists_agree_with_published_gflops():
    networks = read_networks(data_folder("latency_tables") / "facts")
    for name, gflops in [
        ("damo-yolo-s", 37.8),
        ("yolox-l", 155.6),
        ("yolov5-n", 4.5),
        ("yolov6-s", 44.2),
        ("nanodet-plus-m", 1.52),
        ("nanodet-plus-m-1.5x", 2.97),
        ("yolov8-n", 8.7),
    ]:
        assert 2e-9 * sum(op.count * op.macs for op in networks[name]) == pytest.approx(gflops, rel=0.015)


def test_no_test_row_is_fitted():
    for device in ("nvidia-t4", "intel-8163"):
        fitted = {row.model for row in read_published(device, use="fit")}
        assert not fitted & {row.model for row in read_published(device, use="test")}


def test_broken_facts_are_named(tmp_path):
    facts = data_folder("latency_tables") / "facts"
    published = (facts / PUBLISHED_FILE).read_text()
    networks = (facts / NETWORKS_FILE).read_text()
    (tmp_path / PUBLISHED_FILE).write_text(published)
    with pytest.raises(LatencyTableError, match=r"networks\.csv: cannot be read"):
        read_published("nvidia-t4", use="fit", folder=tmp_path)
    (tmp_path / NETWORKS_FILE).write_text(networks.replace(",2,slice,", ",2,slise,", 1))
    with pytest.raises(LatencyTableError, match=r"networks\.csv:2: op is 'slise'; expected one of conv"):
        read_published("nvidia-t4", use="fit", folder=tmp_path)
    (tmp_path / NETWORKS_FILE).write_text(networks)
    with pytest.raises(LatencyTableError, match="no row has device 'abacus'"):
        read_published("abacus", use="fit", folder=tmp_path)
    (tmp_path / PUBLISHED_FILE).write_text(published.replace(",640,2.78,", ",640,fast,"))
    with pytest.raises(LatencyTableError, match=r"published_latencies\.csv:2: latency_ms is 'fast'; expected a number"):
        read_published("nvidia-t4", use="fit", folder=tmp_path)


def test_priors_say_why():
    assert all(prior.why for prior in T4_PRIORS + CPU_PRIORS)
