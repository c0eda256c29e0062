"""Layer times distributed over operators: hand-made layers of every sort, then those of real runtimes."""

from __future__ import annotations

import math

import pytest

from maenas.lowering.op import conv, glue
from maenas.profiling.attribute import attribute
from maenas.profiling.backends import open_backend
from maenas.profiling.backends.layers import LayerTime
from maenas.profiling.onnx_ops import PlacedOp, read_network_ops
from maenas.profiling.probes import probe_network

SIZE = (10, 10)


def placed_conv(channels, *nodes):
    return PlacedOp(conv(8, channels, SIZE, kernel_size=1, name="", stage=""), nodes, True, "")


def placed_glue(kind, channels, *nodes):
    return PlacedOp(glue(kind, channels, SIZE, name="", stage=""), nodes, True, "")


def layer(name, sources, ms, *inputs):
    return LayerTime(name, "Any", tuple(sources), inputs, ms)


def test_a_fused_layer_and_an_unfused_activation_belong_to_the_convolution():
    placed = [placed_conv(8, "c", "relu"), placed_conv(8, "d", "sigmoid", "mul")]
    layers = [layer("one", ["c", "relu"], 3.0), layer("two", ["d"], 5.0, "one"), layer("act", ["sigmoid", "mul"], 1.0)]
    found = attribute(placed, layers)
    assert found.ms == (3.0, 6.0) and found.free == (False, False)
    assert found.unassigned_ms == found.reorder_ms == 0


def test_a_layer_of_several_operators_goes_to_its_convolution():
    placed = [placed_conv(8, "c"), placed_glue("concat", 16, "k"), placed_glue("pool", 8, "p")]
    found = attribute(placed, [layer("all", ["c", "k", "p"], 4.0)])
    assert found.ms == (4.0, 0.0, 0.0) and found.free == (False, True, True)


def test_several_convolutions_share_by_their_work_and_others_by_their_values():
    placed = [placed_conv(8, "c"), placed_conv(24, "d"), placed_glue("slice", 4, "s"), placed_glue("concat", 12, "k")]
    layers = [layer("both", ["c", "d"], 4.0), layer("glue", ["s", "k"], 8.0)]
    assert attribute(placed, layers).ms == pytest.approx((1.0, 3.0, 2.0, 6.0))


def test_an_addition_that_runs_with_another_convolution_stays_there():
    # The addition was folded into c; the runtime did it at the end of the projection.
    placed = [placed_conv(8, "c", "add"), placed_conv(8, "projection")]
    layers = [layer("one", ["c"], 2.0), layer("two", ["projection", "add"], 3.0, "one")]
    assert attribute(placed, layers).ms == (2.0, 3.0)


def test_reorders_belong_to_what_they_feed_else_to_what_feeds_them():
    placed = [placed_conv(8, "c"), placed_conv(8, "d")]
    layers = [
        layer("in", [], 0.5),
        layer("one", ["c"], 2.0, "in"),
        layer("reorder", [], 0.25, "one"),
        layer("view", ["reshape"], 0.125, "reorder"),
        layer("two", ["d"], 3.0, "view"),
        layer("out", [], 1.0, "two"),
        layer("alone", [], 7.0),
    ]
    found = attribute(placed, layers)
    assert found.ms == (2.5, 4.375) and found.reorder_ms == 1.875 and found.unassigned_ms == 7.0


def test_a_reorder_before_a_layer_of_several_operators_is_shared_like_it():
    placed = [placed_glue("slice", 4, "s"), placed_glue("concat", 12, "k")]
    layers = [layer("depth", [], 4.0), layer("glue", ["s", "k"], 8.0, "depth")]
    assert attribute(placed, layers).ms == pytest.approx((3.0, 9.0))


def test_unsupported_nodes_keep_their_time_to_themselves():
    placed = [placed_conv(8, "c")]
    layers = [layer("one", ["c"], 2.0), layer("attention", ["softmax"], 5.0, "one")]
    found = attribute(placed, layers, unsupported=["softmax"])
    assert found.ms == (2.0,) and found.unassigned_ms == 5.0
    assert attribute(placed, layers).unassigned_ms == 0


def test_layers_in_a_ring_end():
    placed = [placed_conv(8, "c")]
    layers = [layer("a", [], 1.0, "b"), layer("b", [], 1.0, "a"), layer("one", ["c"], 2.0)]
    assert attribute(placed, layers).unassigned_ms == 2.0


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_layers_of_runtimes_are_assigned(name, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip(name)
    path = tmp_path / "probe.onnx"
    backend = open_backend(name, threads=1)
    for seed in range(3):
        path.write_bytes(probe_network(seed, image_side=224).SerializeToString())
        placed = read_network_ops(path).placed
        with backend.entry(path, key="probe", layers=True).open() as run:
            run.run()
            run.discard()
            run.run()
            layers = run.layers()
        found = attribute(placed, layers)
        total = math.fsum(each.ms for each in layers)
        assert math.fsum([*found.ms, found.unassigned_ms]) == pytest.approx(total)
        assert found.unassigned_ms < 0.02 * total
        convs = [index for index, each in enumerate(placed) if each.op.kind == "conv"]
        assert not any(found.free[index] for index in convs)
        assert sum(found.ms[index] for index in convs) > 0.5 * total
