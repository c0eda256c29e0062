"""Budgets: units as users write them, and every way to get them wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maenas.budgets import METRICS, Budget, format_amount, parse_amount, parse_budget
from maenas.errors import BudgetError


@pytest.mark.parametrize(
    ("metric", "text", "limit"),
    [
        ("latency_ms", "3.8ms", 3.8),
        ("latency_ms", "120us", 0.12),
        ("latency_ms", "120µs", 0.12),
        ("latency_ms", "120μs", 0.12),  # the Greek letter, as many keyboards type it
        ("latency_ms", "0.0038s", 3.8),
        ("latency_ms", "5e5ns", 0.5),
        ("latency_ms", " 3.8 MS ", 3.8),
        ("latency_ms", ".5ms", 0.5),
        ("params", "9M", 9e6),
        ("params", "9m", 9e6),
        ("params", "1.5g", 1.5e9),
        ("params", "9000000", 9e6),
        ("params", "3e6", 3e6),
        ("params", "12k", 12e3),
        ("flops", "20G", 20e9),
        ("flops", "20GFLOPs", 20e9),
        ("flops", "0.02 TFLOPs", 20e9),
        ("flops", "500 FLOPs", 500.0),
        ("layers", "25", 25.0),
        ("memory_bytes", "8MB", 8e6),
        ("memory_bytes", "8MiB", 8 * 2**20),
        ("memory_bytes", "512 KiB", 512 * 1024),
        ("memory_bytes", "1gb", 1e9),
        ("memory_bytes", "100b", 100.0),
    ],
)
def test_units(metric, text, limit):
    budget = parse_budget(metric, text)
    assert budget.metric == metric
    assert budget.limit == pytest.approx(limit, rel=1e-12)
    assert parse_amount(metric, text) == budget.limit


@pytest.mark.parametrize(
    ("metric", "text", "message"),
    [
        ("latency_ms", "fast", r"latency_ms budget 'fast' is not a number with a unit; expected e\.g\. 3\.8ms"),
        ("latency_ms", "", r"latency_ms budget '' is not a number with a unit"),
        ("latency_ms", "-3ms", r"latency_ms budget '-3ms' is not a number with a unit"),
        ("latency_ms", "3,8ms", r"latency_ms budget '3,8ms' is not a number with a unit"),
        ("latency_ms", "3.8.1ms", r"is not a number with a unit"),
        ("latency_ms", "nanms", r"is not a number with a unit"),
        ("latency_ms", "\u0661ms", r"is not a number with a unit"),
        ("latency_ms", "3.8", r"latency_ms budget '3\.8' has no unit; expected one of ms, s, us"),
        ("latency_ms", "3.8 fps", r"has the unit 'fps'; expected one of ms, s, us"),
        ("params", "9MB", r"params budget '9MB' has the unit 'MB'; expected one of \(none\), k, m, g, t"),
        ("params", "lots", r"expected e\.g\. 9M"),
        ("flops", "20GMACs", r"flops budget '20GMACs' has the unit 'GMACs'"),
        ("layers", "25k", r"layers budget '25k' has the unit 'k'; expected one of \(none\)"),
        ("memory_bytes", "8", r"memory_bytes budget '8' has no unit; expected one of b, kb, mb"),
        ("latency_ms", "0ms", r"latency_ms budget is 0\.0; expected a number above 0"),
        ("latency_ms", "1e999ms", r"latency_ms budget is inf; expected a number above 0"),
        ("fps", "60", r"unknown metric 'fps'; expected one of latency_ms, params, flops, layers, memory_bytes"),
    ],
)
def test_what_is_no_budget(metric, text, message):
    with pytest.raises(BudgetError, match=message):
        parse_budget(metric, text)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_positive_number(limit):
    with pytest.raises(BudgetError, match=r"params budget is .*; expected a number above 0"):
        Budget("params", limit)


def test_a_metric_must_be_known():
    with pytest.raises(BudgetError, match=r"unknown metric 'fps'; expected one of latency_ms"):
        Budget("fps", 60.0)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("latency_ms", 3.8304, "3.830 ms"),
        ("latency_ms", 1.0, "1.000 ms"),
        ("latency_ms", 0.119894, "119.89 us"),
        ("params", 5_832_000, "5.832 M params"),
        ("params", 12_300, "12.300 k params"),
        ("params", 500, "500 params"),
        ("flops", 8.188e9, "8.188 GFLOPs"),
        ("flops", 2e12, "2.000 TFLOPs"),
        ("layers", 25, "25 layers"),
        ("memory_bytes", 8_192_000, "8.192 MB"),
        ("memory_bytes", 12, "12 B"),
    ],
)
def test_amounts_for_people(metric, value, text):
    assert format_amount(metric, value) == text


@given(metric=st.sampled_from(METRICS), value=st.floats(1e-3, 1e12, exclude_max=True))
def test_a_formatted_amount_parses_to_about_the_same(metric, value):
    if metric != "latency_ms":
        value = max(1.0, round(value))
    text = format_amount(metric, value)
    for word in ("params", "layers"):
        text = text.removesuffix(word)
    # Three decimals of at least 1, or two of microseconds.
    assert parse_amount(metric, text) == pytest.approx(value, rel=5e-3, abs=5e-6)
