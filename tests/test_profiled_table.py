"""The shipped table of a profiled machine: an example of what `maenas profile` writes, and a device to search for."""

from __future__ import annotations

import pytest

from maenas.budgets import Budget
from maenas.errors import BudgetError, LatencyTableError
from maenas.latency.predict import predict
from maenas.latency.table import load_table, validate
from maenas.latency.table_networks import errors_of, read_networks
from maenas.lowering.detector import lower
from maenas.published import load_published
from maenas.search import search

NAME = "epyc-openvino-1t"


def test_it_is_measured_and_says_how():
    table = load_table(NAME)
    assert validate(table.folder) == []
    assert (table.provenance, table.backend, table.threads, table.precision) == ("measured", "openvino", 1, "fp32")
    assert table.spaces == ("mob 416x416, 80 classes", "res 320x320, 80 classes", "csp 320x320, 80 classes")
    assert table.fingerprint and table.host["cpu"] and table.campaign["flags"] == []
    statuses = table.count_statuses()
    assert statuses["measured"] > 500 and statuses["modelled"] > 10_000


def test_its_predictions_are_those_of_its_networks():
    table = load_table(NAME)
    rows = read_networks(table.folder / "networks.csv")
    known = {row.network: row for row in rows}
    for model in ("ns", "nm", "nl"):
        structure = load_published(f"damo-yolo-{model}")
        row = known[f"published-{structure.digest}"]
        assert row.role == "test"
        assert predict(lower(structure), table).latency_ms == pytest.approx(row.predicted_ms, rel=1e-6)
    test = errors_of([row for row in rows if row.role == "test"])
    # These are the figures of the report, not a bar that could fail by noise: the file does not change.
    assert test.n == 15 and test.mean_abs < 0.06 and test.spearman > 0.99
    assert test.mean_abs == pytest.approx(table.calibration["test"]["mean_abs"], rel=1e-6)


def test_searches_run_on_it():
    result = search("mob", budgets=[Budget("latency_ms", 30.0)], device=NAME, top_k=1)
    prediction = result.best.prediction
    assert prediction is not None and 29.0 < prediction.latency_ms <= 30.0
    assert prediction.num_exact > 20 and prediction.num_extrapolated == 0
    assert result.certificate is not None and result.certificate.gap < 1e-6
    with pytest.raises(BudgetError, match="cannot be met in space mob"):
        search("mob", budgets=[Budget("latency_ms", 5.0)], device=NAME)


def test_another_image_size_is_named_as_the_reason():
    with pytest.raises(LatencyTableError, match=r"image size is another .*it covers mob 416x416, 80 classes"):
        search("res", budgets=[Budget("latency_ms", 30.0)], device=NAME)
