"""Hand-built networks: repeatable, within their limits, read back as meant, and run by both runtimes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from maenas.errors import ProfileError  # noqa: E402
from maenas.extras import openvino_core  # noqa: E402
from maenas.latency.table_rows import TableRow  # noqa: E402
from maenas.lowering.op import OP_KINDS, conv, glue  # noqa: E402
from maenas.profiling.onnx_ops import read_network_ops  # noqa: E402
from maenas.profiling.probes import LIGHT_MACS, MAX_MACS, MAX_WEIGHTS, build_probe, isolated_op, probe_network  # noqa: E402

SIDES = (224, 416, 640)


def row(op):
    return TableRow.of(op, ms=0, sigma_ms=0, status="measured")[:12]


def outputs_of(model, runtime):
    """Outputs of a model for seeded pixels."""
    pytest.importorskip(runtime)
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(0).uniform(0, 255, dims).astype(np.float32)
    if runtime == "openvino":
        core = openvino_core(purpose="a test")
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()),
            "CPU",
            {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"},
        )
        return list(compiled({"images": images}).values())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def test_equal_seeds_give_equal_bytes_and_others_other_networks():
    first = probe_network(3, image_side=224).SerializeToString()
    assert probe_network(3, image_side=224).SerializeToString() == first
    operators = {tuple(map(row, build_probe(seed, image_side=224).ops)) for seed in range(8)}
    assert len(operators) == 8


@pytest.mark.parametrize("side", SIDES)
def test_probes_are_read_back_as_built(side):
    for seed in range(6):
        builder = build_probe(seed, image_side=side)
        model = builder.model()
        onnx.checker.check_model(model)
        found = read_network_ops(model)
        assert Counter(row(each.op) for each in found.placed) == Counter(map(row, builder.ops))
        assert all(each.exact for each in found.placed) and not found.unsupported


def test_probes_stay_within_their_limits():
    for side in SIDES:
        for seed in range(30):
            ops = build_probe(seed, image_side=side).ops
            convs = [op for op in ops if op.kind == "conv"]
            assert 20 <= len(convs) <= 44
            # A width fixed by a depthwise convolution may go a little beyond.
            assert sum(op.macs for op in ops) < 1.2 * MAX_MACS and sum(op.weights for op in ops) < 1.2 * MAX_WEIGHTS
            assert max(op.in_channels for op in convs) <= 2048 and max(op.out_channels for op in convs) <= 2048


@pytest.mark.slow
def test_probes_together_cover_every_kind_and_wide_ranges():
    ops = [op for side in SIDES for seed in range(40) for op in build_probe(seed, image_side=side).ops]
    convs = [op for op in ops if op.kind == "conv"]
    assert {op.kind for op in ops} == set(OP_KINDS)
    assert {"none", "relu", "silu", "leaky_relu", "sigmoid"} == {op.activation for op in convs}
    assert {(k, s) for k in (1, 3, 5) for s in (1, 2)} <= {(op.kernel_size, op.stride) for op in convs}
    small = [op.out_channels for op in convs if op.out_size[0] <= 20]
    large = [op.out_channels for op in convs if op.out_size[0] == 320]
    assert min(small) <= 8 and max(small) >= 1700 and min(large) == 8 and max(large) > 64
    assert {op.out_size[0] for op in convs} >= {320, 208, 160, 112, 80, 40, 20, 13, 7}
    assert sum(op.residual for op in convs) > 50 and sum(op.depthwise for op in convs) > 50
    # New operators in nearly every probe, or their timings would teach little.
    assert len({row(op) for op in ops}) > 0.8 * len(ops)


def test_light_probes_do_little_work_down_to_small_maps():
    for seed in range(20):
        ops = build_probe(seed, image_side=224, light=True).ops
        assert sum(float(op.macs) for op in ops) < 2 * LIGHT_MACS[1]
        assert min(op.out_size for op in ops) <= (14, 14)
    assert probe_network(3, image_side=224, light=True) != probe_network(3, image_side=224)


def test_a_side_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(ProfileError, match="image_side is 100; expected a multiple of 32"):
        probe_network(0, image_side=100)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_probes_run_and_their_values_neither_vanish_nor_overflow(runtime):
    for seed, side in enumerate((*SIDES, 96)):
        results = outputs_of(probe_network(seed, image_side=side), runtime)
        assert len(results) >= 2
        for values in results:
            assert np.isfinite(values).all() and 1e-4 < np.abs(values).mean() < 1e4


ISOLATED = {
    "plain": conv(8, 16, (9, 11), kernel_size=3, stride=2, activation="silu", name="", stage=""),
    "residual": conv(16, 16, (9, 11), kernel_size=3, activation="relu", residual=True, name="", stage=""),
    "residual-other": conv(8, 16, (9, 11), kernel_size=1, residual=True, name="", stage=""),
    "depthwise": conv(12, 12, (8, 8), kernel_size=5, depthwise=True, activation="leaky_relu", name="", stage=""),
    "sigmoid": conv(8, 80, (8, 8), kernel_size=3, activation="sigmoid", name="", stage=""),
    "one-channel": conv(1, 1, (8, 8), kernel_size=1, name="", stage=""),
    "pool": glue("pool", 8, (9, 9), kernel_size=5, name="", stage=""),
    "pool-even": glue("pool", 8, (8, 8), (4, 4), kernel_size=2, stride=2, name="", stage=""),
    "resize": glue("resize", 8, (4, 6), (8, 12), name="", stage=""),
    "concat": glue("concat", 24, (8, 8), name="", stage=""),
    "concat-odd": glue("concat", 13, (8, 8), name="", stage=""),
    "add": glue("add", 8, (8, 8), name="", stage=""),
    "mul": glue("mul", 68, (8, 8), name="", stage=""),
    "se": glue("se", 18, (8, 8), name="", stage=""),
    "slice-rows": glue("slice", 3, (8, 8), (4, 8), name="", stage=""),
    "slice-columns": glue("slice", 3, (4, 8), (4, 4), name="", stage=""),
}


@pytest.mark.parametrize("name", ISOLATED)
def test_an_isolated_operator_is_read_back(name):
    op = ISOLATED[name]
    model = isolated_op(op)
    onnx.checker.check_model(model)
    (placed,) = read_network_ops(model).placed
    assert placed.exact and row(placed.op) == row(op)
    assert len(model.graph.input) == 1


@pytest.mark.export
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", ISOLATED)
def test_an_isolated_operator_runs(name, runtime):
    op = ISOLATED[name]
    (values,) = outputs_of(isolated_op(op), runtime)
    assert values.shape == (1, op.out_channels, *op.out_size) and np.isfinite(values).all()


def test_an_operator_whose_sizes_do_not_fit_is_refused():
    op = replace(ISOLATED["plain"], out_size=(9, 11))
    with pytest.raises(ProfileError, match=r"conv from \(9, 11\) to \(9, 11\) cannot be built: .* at 5x6"):
        isolated_op(op)
