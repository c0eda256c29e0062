"""The shipped calibrated tables: what their files hold is what the formula and the facts give."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maenas.latency.calibrated import PREDICTORS
from maenas.latency.predict import predict
from maenas.latency.shipped import CALIBRATED, calibrate_shipped, shipped_name, write_shipped
from maenas.latency.table import EXACT, EXTRAPOLATED, MODELLED, load_table, validate
from maenas.lowering.detector import lower
from maenas.lowering.op import conv, glue
from maenas.published import PUBLISHED_FACTS, load_published
from maenas.reach import reachable_ops
from maenas.resources import data_folder
from maenas.spaces import load_space

TABLES = tuple(CALIBRATED)


@pytest.mark.parametrize("name", TABLES)
def test_shipped_table_is_valid_and_calibrated(name):
    table = load_table(name)
    assert validate(table.folder) == []
    assert table.provenance == "calibrated"
    assert table.calibration["n"] == {"t4-tensorrt-fp16": 13, "intel8163-openvino": 9}[name]
    assert load_table(table.aliases[0].upper()).table_hash == table.table_hash


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_the_formula_with_the_stored_coefficients(name):
    table = load_table(name)
    formula = PREDICTORS[table.predictor["kind"]]
    space = load_space(CALIBRATED[name].spaces[0])
    ops = reachable_ops(space)
    rng = np.random.default_rng(0)
    for index in rng.choice(len(ops), 300, replace=False):
        found = table.op_latency(ops[index])
        assert found.status == EXACT
        assert found.ms == pytest.approx(float(formula(ops[index], table.predictor["coefficients"])), rel=1e-6)
        assert found.sigma_ms >= 0.99 * found.ms * table.uncertainty["relative"]


@pytest.mark.parametrize("name", TABLES)
def test_every_operator_of_the_spaces_is_a_row(name):
    table = load_table(name)
    for space in CALIBRATED[name].spaces:
        ops = reachable_ops(load_space(space))
        assert len(ops) > 1000
        assert {int(table.op_latency(op).status) for op in ops[::7]} == {EXACT}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_regenerating_a_table_gives_the_shipped_one(name, tmp_path):
    folder = write_shipped(name, calibrate_shipped(name), tmp_path, force=False)
    shipped = data_folder("latency_tables") / name
    new, old = (json.loads((each / "table.json").read_text()) for each in (folder, shipped))
    for key, value in old["predictor"]["coefficients"].items():
        assert new["predictor"]["coefficients"][key] == pytest.approx(value, rel=1e-4)
    for key in ("name", "aliases", "provenance", "date", "sources", "fixed_ms", "method"):
        assert new[key] == old[key]
    assert (folder / "rows.csv").read_text().count("\n") == (shipped / "rows.csv").read_text().count("\n")


@pytest.mark.parametrize(
    ("device", "names", "sigmas"),
    [("t4", ("damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "damo-yolo-l"), 1.0), ("intel-8163", ("damo-yolo-nm",), 1.0)],
)
def test_published_networks_are_predicted_within_one_sigma(device, names, sigmas):
    table = load_table(device)
    for name in names:
        prediction = predict(lower(load_published(name)), table)
        assert prediction.num_modelled == prediction.num_extrapolated == 0
        assert abs(prediction.latency_ms - PUBLISHED_FACTS[name].latency_ms) < sigmas * prediction.sigma_ms


def test_an_operator_that_no_fitted_network_has_is_modelled_with_a_wide_sigma():
    table = load_table("t4")
    depthwise = conv(64, 64, (40, 40), kernel_size=5, depthwise=True, activation="silu", name="", stage="")
    plain = conv(64, 72, (40, 40), kernel_size=3, activation="leaky_relu", name="", stage="")
    wide, narrow = table.op_latency(depthwise), table.op_latency(plain)
    assert wide.status == narrow.status == MODELLED
    assert wide.sigma_ms / wide.ms == pytest.approx(table.uncertainty["unfitted"])
    assert narrow.sigma_ms / narrow.ms == pytest.approx(table.uncertainty["relative"])


def test_beyond_the_range_is_flagged():
    table = load_table("t4")
    huge = conv(8192, 64, (40, 40), kernel_size=1, activation="relu", name="", stage="")
    assert table.op_latency(huge).status == EXTRAPOLATED
    assert table.op_latency(glue("concat", 64, (4000, 4000), name="", stage="")).status == EXTRAPOLATED


def test_an_unknown_calibrated_table_lists_the_known_ones():
    with pytest.raises(ValueError, match="t4-tensorrt-fp16"):
        shipped_name("v100")
    assert shipped_name("T4") == "t4-tensorrt-fp16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["uncertainty"].pop("unfitted"), "uncertainty has new_family but lacks unfitted"),
        (lambda header: header["uncertainty"]["fitted_range"].pop("in_width"), "fitted_range lacks in_width"),
        (lambda header: header["predictor"]["coefficients"].pop("launch_us"), "coefficients.launch_us is null"),
    ],
)
def test_a_damaged_header_is_refused_with_its_field(change, message, tmp_path):
    shipped = data_folder("latency_tables") / "t4-tensorrt-fp16"
    folder = tmp_path / "t4-tensorrt-fp16"
    folder.mkdir()
    header = json.loads((shipped / "table.json").read_text())
    change(header)
    (folder / "table.json").write_text(json.dumps(header))
    (folder / "rows.csv").write_bytes((shipped / "rows.csv").read_bytes())
    with pytest.raises(ValueError, match=message):
        load_table(folder)
