"""What layer times say too much."""

from __future__ import annotations

import pytest

from maenas.profiling.backends import LayerTime
from maenas.profiling.measurement import Record
from maenas.profiling.overhead import layer_overhead_ms, without_overhead


def record(whole_ms, layers):
    times = tuple(LayerTime(f"layer {index}", "Conv", (f"node {index}",), (), ms) for index, ms in enumerate(layers))
    return Record("a", 0, (whole_ms,), whole_ms, times or None, (5.0, 5.0), 5.0, 0.0, True, "", True, "2026-01-01", 1.0)


@pytest.mark.parametrize("overhead", [0.005, 0.0])
def test_one_number_per_layer_is_found_and_taken_off(overhead):
    true = [[0.2, 0.3], [0.1] * 30, [2.0, 1.0, 0.05, 0.07]]
    records = [record(sum(layers), [ms + overhead for ms in layers]) for layers in true]
    assert layer_overhead_ms(records) == pytest.approx(overhead, abs=1e-12)
    for corrected, layers in zip(without_overhead(records), true, strict=True):
        assert [layer.ms for layer in corrected.layers] == pytest.approx(layers)


def test_nothing_is_added_where_layers_miss_something():
    records = [record(1.0, [0.4, 0.4]), record(3.0, [1.0, 1.9])]
    assert layer_overhead_ms(records) == 0.0
    assert without_overhead(records) == records


def test_small_networks_decide():
    """Two networks by hand: errors of 0.1 per layer of 1 ms, and of 1 ms in 100: least squares on relative errors."""
    records = [record(1.0, [1.1]), record(100.0, [101.0])]
    assert layer_overhead_ms(records) == pytest.approx((1 * 0.1 + 0.01 * 0.01) / (1 + 0.01**2))


def test_a_layer_never_becomes_negative():
    records = [record(1.0, [0.6, 0.6, 0.001])]
    assert without_overhead(records)[0].layers[2].ms == pytest.approx(0.0001)


def test_without_layers_nothing_changes():
    records = [record(1.0, [])]
    assert layer_overhead_ms(records) == 0.0
    assert without_overhead(records) == records
