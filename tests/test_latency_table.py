"""Latency tables: look-ups, the messages for every way a folder can be wrong, names, and writing in one step."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maenas import resources
from maenas.budgets import Budget
from maenas.cli.main import main
from maenas.cli.report import provenance_text
from maenas.errors import LatencyTableError, OutputError
from maenas.latency import calibrated, table, table_local
from maenas.latency.predict import predict
from maenas.latency.table import EXACT, EXTRAPOLATED, MISSING, MODELLED, list_tables, load_table, validate
from maenas.latency.table_local import staleness
from maenas.latency.table_missing import missing_hint
from maenas.latency.table_rows import TableRow, list_rows
from maenas.latency.table_write import write_table
from maenas.lowering.op import Op
from maenas.search import search

ROW = "conv,8,16,3,1,1,20,20,20,20,relu,0,0.5,0.05,measured"


def conv(in_channels=8, out_channels=16, **changes) -> Op:
    fields = {"in_size": (20, 20), "out_size": (20, 20), "kernel_size": 3, "activation": "relu"} | changes
    return Op("conv", in_channels, out_channels, **fields)


def row(ms=0.5, *, op=None, status="measured", sigma_ms=0.05) -> TableRow:
    return TableRow.of(op or conv(), ms=ms, sigma_ms=sigma_ms, status=status)


def make_header(**changes) -> dict:
    return {
        "aliases": ["bench"],
        "device": "a test bench",
        "device_detail": {},
        "backend": "none",
        "backend_version": None,
        "precision": "fp32",
        "batch": 1,
        "threads": None,
        "image_size": None,
        "provenance": "measured",
        "method": "by hand",
        "date": "2025-01-31",
        "fixed_ms": 0.25,
        "fixed_sigma_ms": 0.0,
        "scale": 1.0,
        "uncertainty": {"relative": 0.1, "how": "guessed"},
        "predictor": {"kind": "rows", "coefficients": {}, "valid_range": {}},
        "calibration": {},
        "sources": [],
        "license_note": "none",
    } | changes


def write_text(folder: Path, rows: str, **changes) -> Path:
    """A table folder whose files may be wrong in any way but their hash."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(rows.encode()).hexdigest()
    header = {"schema_version": 1, "name": folder.name, "rows_sha256": digest} | make_header() | changes
    (folder / "table.json").write_text(json.dumps(header))
    (folder / "rows.csv").write_bytes(rows.encode())
    return folder


def csv(*lines: str) -> str:
    return "\n".join([",".join(TableRow._fields), *lines]) + "\n"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders of shipped and of user tables, empty."""
    shipped, user = tmp_path / "shipped", tmp_path / "user"
    shipped.mkdir()
    monkeypatch.setattr(table, "data_folder", lambda name: shipped)
    monkeypatch.setenv("MAENAS_TABLES", str(user))
    return shipped, user


# Look-ups


def test_round_trip_keeps_every_field(tmp_path):
    folder = write_table(tmp_path / "one", make_header(scale=0.5), [row(), row(2.0, op=conv(8, 24))])
    loaded = load_table(folder)
    assert (loaded.name, loaded.aliases, loaded.device, loaded.batch) == ("one", ("bench",), "a test bench", 1)
    assert (loaded.fixed_ms, loaded.scale, loaded.date, loaded.num_rows) == (0.25, 0.5, "2025-01-31", 2)
    assert loaded.uncertainty["relative"] == 0.1
    assert validate(folder) == []


def test_rows_are_sorted_by_number_and_written_with_nine_digits(tmp_path):
    rows = [row(1 / 3, op=conv(16, 8)), row(2 / 3, op=conv(8, 104)), row(1.0, op=conv(8, 16))]
    text = (write_table(tmp_path / "one", make_header(), rows) / "rows.csv").read_bytes().decode()
    assert text == csv(
        "conv,8,16,3,1,1,20,20,20,20,relu,0,1,0.05,measured",
        "conv,8,104,3,1,1,20,20,20,20,relu,0,0.666666667,0.05,measured",
        "conv,16,8,3,1,1,20,20,20,20,relu,0,0.333333333,0.05,measured",
    )


def test_scalar_lookup_applies_the_scale_but_not_the_count(tmp_path):
    loaded = load_table(write_table(tmp_path / "one", make_header(scale=0.5), [row()]))
    found = loaded.op_latency(conv(count=7))
    assert (found.ms, found.sigma_ms, found.status) == (0.25, 0.025, EXACT)
    assert isinstance(found.ms, float)
    assert isinstance(found.status, int)


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 16},
        {"kernel_size": 1},
        {"stride": 2},
        {"in_size": (20, 10)},
        {"out_size": (10, 20)},
        {"activation": "silu"},
        {"residual": True},
        {"out_channels": 8, "depthwise": True},
    ],
)
def test_every_part_of_the_key_counts(tmp_path, changes):
    loaded = load_table(write_table(tmp_path / "one", make_header(), [row(), row(op=conv(8, 8))]))
    found = loaded.op_latency(conv(**changes))
    assert math.isnan(found.ms)
    assert math.isnan(found.sigma_ms)
    assert found.status == MISSING


def test_other_kinds_and_depthwise_have_their_own_rows(tmp_path):
    depthwise = conv(8, 8, depthwise=True)
    pool = Op("pool", 8, 8, (20, 20), (20, 20), kernel_size=3)
    rows = [row(1.0, op=conv(8, 8)), row(2.0, op=depthwise), row(3.0, op=pool)]
    loaded = load_table(write_table(tmp_path / "one", make_header(), rows))
    assert [loaded.op_latency(op).ms for op in (conv(8, 8), depthwise, pool)] == [1.0, 2.0, 3.0]


def test_array_lookup_follows_the_broadcast_shape(tmp_path):
    rows = [row(float(i * 100 + o), op=conv(i, o)) for i in (8, 16) for o in (8, 24, 32)]
    loaded = load_table(write_table(tmp_path / "one", make_header(), rows))
    found = loaded.op_latency(conv(np.array([[16], [8]]), np.array([8, 16, 32])))
    np.testing.assert_array_equal(found.ms, [[1608, np.nan, 1632], [808, np.nan, 832]])
    np.testing.assert_array_equal(found.status, [[EXACT, MISSING, EXACT]] * 2)
    assert found.status.dtype == np.int8
    assert loaded.op_latency(conv(np.zeros(0, int), 8)).ms.shape == (0,)


@settings(max_examples=30)
@given(st.dictionaries(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.floats(0, 1e3), min_size=1))
def test_any_grid_of_widths_equals_a_dictionary(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("tables") / "one"
    rows = [row(ms, op=conv(*widths)) for widths, ms in values.items()]
    loaded = load_table(write_table(folder, make_header(), rows))
    widths = np.arange(1, 41)
    found = loaded.op_latency(conv(widths[:, None], widths))
    expected = [[values.get((i, o), math.nan) for o in widths.tolist()] for i in widths.tolist()]
    np.testing.assert_allclose(found.ms, expected, rtol=1e-8)


def test_rows_evaluated_outside_the_measurements_say_so(tmp_path):
    rows = [row(), row(op=conv(8, 24), status="extrapolated")]
    loaded = load_table(write_table(tmp_path / "one", make_header(), rows))
    assert loaded.op_latency(conv(8, np.array([16, 24]))).status.tolist() == [EXACT, EXTRAPOLATED]


def test_rows_of_a_model_say_so(tmp_path):
    rows = [row(), row(0.7, op=conv(8, 24), status="modelled")]
    loaded = load_table(write_table(tmp_path / "one", make_header(), rows))
    found = loaded.op_latency(conv(8, np.array([16, 24, 32])))
    assert found.status.tolist() == [EXACT, MODELLED, MISSING]
    assert found.sigma_ms[1] == 0.05  # the row's own, not `uncertainty.relative`
    assert loaded.count_statuses() == {"measured": 1, "modelled": 1}


def test_a_prediction_tells_measured_from_modelled_operators(tmp_path):
    rows = [row(), row(0.7, op=conv(8, 24), status="modelled"), row(0.1, op=conv(8, 32), status="extrapolated")]
    loaded = load_table(write_table(tmp_path / "one", make_header(), rows))
    prediction = predict([conv(), conv(8, 24), conv(8, 24), conv(8, 32)], loaded)
    assert (prediction.num_exact, prediction.num_modelled, prediction.num_extrapolated) == (1, 2, 1)
    assert provenance_text(loaded, SimpleNamespace(prediction=prediction)) == (
        f"measured, table one {loaded.table_hash} (1 operators measured, 2 modelled from measured ones, 1 EXTRAPOLATED)"
    )


def test_rows_are_listed_as_they_were_written(tmp_path):
    rows = [row(), row(0.7, op=conv(8, 8, depthwise=True), status="modelled"), row(0.0, op=conv(8, 24, residual=True))]
    loaded = load_table(write_table(tmp_path / "one", make_header(), rows))
    assert sorted(loaded.list_rows()) == sorted(rows)
    repeated = csv(ROW, ROW).encode()
    assert list_rows(Path("rows.csv"), repeated) == [row(), row()]


def test_ignored_attributes_are_left_out_of_the_key(tmp_path):
    loaded = load_table(write_table(tmp_path / "one", make_header(ignores=["activation"]), [row()]))
    assert loaded.op_latency(conv(activation="silu")).status == EXACT
    assert loaded.op_latency(conv(residual=True)).status == MISSING


def test_predictor_fills_what_rows_lack(tmp_path, monkeypatch):
    monkeypatch.setitem(calibrated.PREDICTORS, "cpu-linear", lambda op, c: c["each"] * op.out_channels)
    monkeypatch.setitem(calibrated.COEFFICIENTS, "cpu-linear", ("each",))
    limits = {"out_channels": [8, 32], "in_height": [1, 20]}
    predictor = {"kind": "cpu-linear", "coefficients": {"each": 0.1}, "valid_range": limits}
    loaded = load_table(write_table(tmp_path / "one", make_header(predictor=predictor, scale=2), [row()]))
    found = loaded.op_latency(conv(8, np.array([16, 24, 40, 0])))
    np.testing.assert_allclose(found.ms, [1.0, 4.8, 8.0, np.nan])
    np.testing.assert_allclose(found.sigma_ms, [0.1, 0.48, 0.8, np.nan])
    assert found.status.tolist() == [EXACT, MODELLED, EXTRAPOLATED, MISSING]
    assert loaded.op_latency(conv(in_size=(40, 40), out_size=(40, 40))).status == EXTRAPOLATED


def test_a_predictor_may_not_know_an_operator(tmp_path, monkeypatch):
    monkeypatch.setitem(calibrated.PREDICTORS, "cpu-linear", lambda op, c: math.nan)
    monkeypatch.setitem(calibrated.COEFFICIENTS, "cpu-linear", ())
    predictor = {"kind": "cpu-linear", "coefficients": {}, "valid_range": {}}
    loaded = load_table(write_table(tmp_path / "one", make_header(predictor=predictor), [row()]))
    assert loaded.op_latency(conv(8, np.array([16, 24]))).status.tolist() == [EXACT, MISSING]


def test_a_table_may_have_no_rows(tmp_path):
    loaded = load_table(write_table(tmp_path / "one", make_header(), []))
    assert (loaded.num_rows, loaded.op_latency(conv()).status) == (0, MISSING)


def test_fifty_thousand_rows_load_at_once(tmp_path):
    widths = range(8, 1801, 8)
    lines = [f"conv,{i},{o},3,1,1,20,20,20,20,relu,0,0.5,0.05,measured" for i in widths for o in widths]
    folder = write_text(tmp_path / "one", csv(*lines))
    start = time.process_time()
    assert load_table(folder).num_rows > 50_000
    assert time.process_time() - start < 2  # 0.12 s where this was written


# Malformed folders


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (csv().replace("stride,", ""), "rows.csv: line 1 lacks the columns stride; expected op,in_channels"),
        ("", "rows.csv: line 1 lacks the columns op, in_channels"),
        (csv().replace("ms,sigma_ms", "sigma_ms,ms"), "rows.csv: line 1 is 'op,.*; expected op,in_channels"),
        (csv(ROW, ROW + ",1"), "rows.csv: line 3 is 'conv,.*,1'; expected 15 comma-separated fields"),
        (csv(ROW, "", ROW), "rows.csv: line 3 is ''; expected 15"),
        (csv(ROW.replace("conv", "gemm")), "line 2: op is 'gemm'; expected one of conv, pool"),
        (csv(ROW.replace("conv", "convolutionalmapping")), "op is 'convolutionalmapping'"),
        (csv(ROW.replace("relu", "tanh")), "line 2: activation is 'tanh'; expected one of none, relu"),
        (csv(ROW.replace("measured", "guessed")), "line 2: status is 'guessed'; expected one of measured, calibrated"),
        (csv(ROW, ROW.replace("16", "many")), "line 3: out_channels is 'many'; expected a whole number from 1"),
        (csv(ROW.replace("8,", "0,", 1)), "line 2: in_channels is '0'; expected a whole number from 1 to 2147483647"),
        (csv(ROW.replace("8,", "8.5,", 1)), "line 2: in_channels is '8.5'"),
        (csv(ROW.replace("20,20,20", "20,20,99999")), "line 2: out_height is '99999'; expected .* to 32767"),
        (csv(ROW.replace("relu,0", "relu,2")), "line 2: residual is '2'; expected a whole number from 0 to 1"),
        (csv(ROW.replace("3,1,1", "3,1,4")), "line 2: groups is '4'; expected 1, or in_channels"),
        (csv(ROW.replace("0.5,", "-0.5,")), "line 2: ms is '-0.5'; expected a finite number of milliseconds"),
        (csv(ROW.replace("0.5,", "nan,")), "line 2: ms is 'nan'; expected a finite number"),
        (csv(ROW.replace("0.5,", "inf,")), "line 2: ms is 'inf'"),
        (csv(ROW.replace("0.05", "")), "line 2: sigma_ms is ''; expected a finite number"),
        (csv(ROW, ROW.replace("0.5,", "0.6,")), "lines 2 and 3 give one operator 0.5 and 0.6 ms; expected one value"),
        (csv(ROW.replace("16", "\N{FULLWIDTH DIGIT SIX}")), "line 2: out_channels is"),
        (csv(ROW.replace("16", "1_6")), "line 2: out_channels is '1_6'"),
    ],
)  # fmt: skip
def test_malformed_rows(tmp_path, rows, message):
    folder = write_text(tmp_path / "one", rows)
    with pytest.raises(LatencyTableError, match=message) as caught:
        load_table(folder)
    assert str(folder / "rows.csv") in str(caught.value)
    assert validate(folder) == [str(caught.value)]


def test_repeated_rows_may_agree(tmp_path):
    assert load_table(write_text(tmp_path / "one", csv(ROW, ROW))).op_latency(conv()).ms == 0.5


def test_rows_that_differ_only_in_what_is_ignored_must_agree(tmp_path):
    folder = write_text(tmp_path / "one", csv(ROW, ROW.replace("relu,0,0.5", "silu,0,0.7")), ignores=["activation"])
    with pytest.raises(LatencyTableError, match="lines 2 and 3 give one operator"):
        load_table(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2; expected 1"),
        ({"schema_version": True}, "schema_version is true; expected 1"),
        ({"name": "../evil"}, r'name is "../evil"; expected a plain name'),
        ({"name": "two"}, "name is 'two'; expected the folder's name 'one'"),
        ({"aliases": ["a b"]}, "aliases is .*; expected a list of plain names"),
        ({"batch": 0}, "batch is 0; expected a whole number, 1 or more"),
        ({"threads": 1.5}, "threads is 1.5; expected a whole number, 1 or more, or null"),
        ({"provenance": "dreamt"}, "provenance is .*; expected one of measured, calibrated, imported"),
        ({"date": "yesterday"}, "date is .*; expected a date YYYY-MM-DD"),
        ({"fixed_ms": -1}, "fixed_ms is -1; expected a finite number, 0 or more"),
        ({"fixed_ms": math.nan}, "fixed_ms is NaN; expected a finite number"),
        ({"scale": 0}, "scale is 0; expected a number above 0"),
        ({"uncertainty": {"how": "?"}}, "uncertainty.relative is missing; expected a finite number"),
        ({"uncertainty": 0.1}, "uncertainty is 0.1; expected an object"),
        ({"predictor": {"kind": "rows", "coefficients": {"a": "1"}, "valid_range": {}}}, "predictor.coefficients is"),
        ({"predictor": {"kind": "magic", "coefficients": {}, "valid_range": {}}},
         "predictor.kind is 'magic'; expected one of rows, tinynas, t4-roofline"),
        ({"predictor": {"kind": "rows", "coefficients": {}, "valid_range": {"macs": [2, 1]}}},
         r"predictor.valid_range is .*; expected an object of pairs \[lowest, highest\]"),
        ({"predictor": {"kind": "rows", "coefficients": {}, "valid_range": {"wheels": [1, 2]}}},
         "valid_range names 'wheels'; expected some of in_channels"),
        ({"predictor": {"kind": "tinynas", "coefficients": {}, "valid_range": {}}}, "raw_sha256 .* belong together"),
        ({"ignores": ["stride"]}, "ignores is .*; expected a list of activation or residual"),
        ({"ignore": ["activation"]}, "field 'ignore' is unknown; did you mean 'ignores'?"),
        ({"rows_sha256": "abc"}, "rows_sha256 is .*; expected a sha256 in hex"),
        ({"rows_sha256": "0" * 64}, "rows.csv: its sha256 is [0-9a-f]{64}; expected 0{64}"),
        ({"raw_sha256": "0" * 64}, "raw_sha256 and the predictor kind tinynas belong together; kind is 'rows'"),
        ({"fingerprint": "abc"}, 'fingerprint is "abc"; expected 12 hex digits'),
        ({"fingerprints": "0" * 12}, "field 'fingerprints' is unknown; did you mean 'fingerprint'?"),
        ({"host": "a laptop"}, "host is .*; expected an object"),
        ({"spaces": "res"}, "spaces is .*; expected a list of texts"),
        ({"campaign": []}, "campaign is .*; expected an object"),
        ({"campaign": {"flags": "forced"}}, "campaign.flags is .*; expected a list of texts"),
        ({"campaign": {"seed": 0.5}}, "campaign.seed is 0.5; expected a whole number"),
        ({"reference_kernel_ms": 0}, "reference_kernel_ms is 0; expected a finite number above 0"),
        ({"provenance": "imported", "campaign": {}},
         "field 'campaign' belongs to measured tables; provenance is 'imported'"),
        ({"files_sha256": {"samples.csv": "abc"}}, "files_sha256 is .*; expected an object of plain file names"),
        ({"files_sha256": {"../samples.csv": "0" * 64}}, "files_sha256 is .*; expected an object of plain file names"),
        ({"files_sha256": {"Rows.csv": "0" * 64}}, "files_sha256 is .*; expected .* none of the table's own"),
    ],
)  # fmt: skip
def test_malformed_header(tmp_path, changes, message):
    folder = write_text(tmp_path / "one", csv(ROW), **changes)
    with pytest.raises(LatencyTableError, match=message) as caught:
        load_table(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in make_header() if name != "aliases"])
def test_missing_header_fields(tmp_path, name):
    folder = write_text(tmp_path / "one", csv(ROW))
    header = json.loads((folder / "table.json").read_text())
    del header[name]
    (folder / "table.json").write_text(json.dumps(header))
    with pytest.raises(LatencyTableError, match=f"table.json: {name} is missing; expected"):
        load_table(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON: .*line 1"), (b"[]", "holds list; expected an object"), (b"\xff\xfe", "is not JSON")],
)
def test_header_that_is_no_json_object(tmp_path, content, message):
    folder = write_text(tmp_path / "one", csv(ROW))
    (folder / "table.json").write_bytes(content)
    with pytest.raises(LatencyTableError, match=f"table.json: {message}"):
        load_table(folder)


def test_missing_files(tmp_path):
    with pytest.raises(LatencyTableError, match=r"one/table.json: not found; a table folder holds table.json and"):
        load_table(tmp_path / "one")
    folder = write_text(tmp_path / "one", csv(ROW))
    (folder / "rows.csv").unlink()
    with pytest.raises(LatencyTableError, match=r"rows.csv: cannot be read"):
        load_table(folder)


def test_files_must_lie_inside_the_folder(tmp_path):
    folder = write_text(tmp_path / "one", csv(ROW))
    (folder / "rows.csv").rename(tmp_path / "elsewhere.csv")
    (folder / "rows.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(LatencyTableError, match=r"leads to .*elsewhere.csv; expected a file inside"):
        load_table(folder)


# Names


def test_names_and_aliases_in_any_case(places):
    shipped, user = places
    write_table(shipped / "t4-fp16", make_header(aliases=["t4", "Tesla-T4"]), [row()])
    write_table(user / "Mine", make_header(aliases=[]), [row()])
    assert [load_table(name).name for name in ("t4", "T4", "tesla-t4", "T4-FP16")] == ["t4-fp16"] * 4
    assert load_table("mine").folder == user / "Mine"
    assert [(entry.name, entry.aliases, entry.shipped) for entry in list_tables()] == [
        ("t4-fp16", ("t4", "Tesla-T4"), True),
        ("Mine", (), False),
    ]


def test_an_exact_name_comes_before_an_alias(places):
    shipped, _ = places
    write_table(shipped / "t4", make_header(aliases=[]), [row(1.0)])
    write_table(shipped / "other", make_header(aliases=["t4"]), [row(2.0)])
    assert load_table("t4").name == "t4"


def test_a_name_found_twice_is_refused(places):
    shipped, user = places
    for base in places:
        write_table(base / "t4", make_header(aliases=[]), [row()])
    with pytest.raises(LatencyTableError, match=f"'t4' is ambiguous: {shipped}.*, {user}.*; give the folder's path"):
        load_table("t4")
    assert load_table(str(user / "t4")).folder == user / "t4"


def test_unknown_names_list_the_known_and_the_nearest(places):
    shipped, _ = places
    write_table(shipped / "intel-8163-openvino", make_header(aliases=["intel-8163"]), [row()])
    with pytest.raises(
        LatencyTableError,
        match=r"'intel-8136' is unknown; did you mean 'intel-8163'[?]; known: intel-8163, intel-8163-openvino, or",
    ):
        load_table("intel-8136")


def test_no_tables_at_all(places):
    with pytest.raises(LatencyTableError, match="'t4' is unknown; known: none, or the path of a table folder"):
        load_table("t4")


def test_a_broken_table_does_not_hide_the_others(places):
    shipped, _ = places
    write_table(shipped / "good", make_header(), [row()])
    (shipped / "bad").mkdir()
    (shipped / "bad" / "table.json").write_text("{")
    assert [entry.name for entry in list_tables()] == ["bad", "good"]
    assert load_table("good").num_rows == 1
    with pytest.raises(LatencyTableError, match=r"bad/table.json: is not JSON"):
        load_table("bad")


def test_a_folder_in_the_present_directory_needs_no_slash(places, tmp_path, monkeypatch):
    write_table(tmp_path / "here", make_header(), [row()])
    monkeypatch.chdir(tmp_path)
    assert load_table("here").name == load_table("./here").name == load_table(Path("here")).name == "here"


# The table of this machine

HERE, ELSEWHERE = "0123456789ab", "ba9876543210"


@pytest.fixture
def here(places, monkeypatch):
    """Folders of shipped and of user tables, on a machine with the fingerprint HERE."""
    monkeypatch.setattr(table, "local_fingerprint", lambda: HERE)
    return places


def test_local_is_the_one_table_of_this_machine(here):
    shipped, user = here
    write_table(shipped / "other-machine", make_header(fingerprint=ELSEWHERE), [row(1.0)])
    write_table(shipped / "no-machine", make_header(), [row(2.0)])
    write_table(user / "mine", make_header(aliases=[], fingerprint=HERE), [row(3.0)])
    assert load_table("local").name == load_table("Local").name == "mine"
    assert [entry.fingerprint for entry in list_tables()] == [None, ELSEWHERE, HERE]


def test_local_without_a_table_says_how_to_make_one(here):
    _, user = here
    write_table(user / "other", make_header(fingerprint=ELSEWHERE), [row()])
    with pytest.raises(LatencyTableError, match=f"'local': none is of this machine .*{HERE}.*`maenas profile` makes"):
        load_table("local")


def test_two_local_tables_are_named(here):
    shipped, user = here
    for folder in (user / "openvino", shipped / "onnxruntime"):
        write_table(folder, make_header(fingerprint=HERE), [row()])
    with pytest.raises(LatencyTableError, match=r"'local' is ambiguous: onnxruntime, openvino are all of .*; name one"):
        load_table("local")
    assert load_table("openvino").fingerprint == HERE


def test_no_table_may_call_itself_local(tmp_path):
    with pytest.raises(LatencyTableError, match="'Local' is not usable: it stands for this machine's own table"):
        write_table(tmp_path / "Local", make_header(), [row()])


def test_the_fingerprint_is_that_of_the_profiler():
    pytest.importorskip("psutil")
    from maenas.profiling import host

    assert table_local.local_fingerprint() == host.fingerprint(host.describe_host())


@pytest.mark.parametrize(
    ("measured", "installed", "stale"),
    [
        ("1.31.2", "1.32.0", True),
        ("1.9", "1.10", True),
        ("2026.4.0-20001-abc", "2026.4", False),
        ("1.33.0", "1.32.0", False),
        ("unknown", "1.0", False),
        (None, "1.32.0", False),
        ("1.31.2", None, False),
    ],
)
def test_tables_of_an_older_backend_are_stale(tmp_path, monkeypatch, measured, installed, stale):
    monkeypatch.setattr(table_local, "installed_version", lambda backend: {"onnxruntime": installed}[backend])
    header = make_header(backend="onnxruntime", backend_version=measured)
    line = staleness(load_table(write_table(tmp_path / "one", header, [row()])))
    assert (line is not None) == stale
    if stale:
        assert f"table one was measured with onnxruntime {measured}; {installed} is installed here" in line


def test_only_measured_tables_get_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(table_local, "installed_version", lambda backend: "99")
    header = make_header(provenance="imported", backend_version="1")
    assert staleness(load_table(write_table(tmp_path / "one", header, [row()]))) is None


def test_versions_come_from_the_installed_packages(monkeypatch):
    monkeypatch.setitem(table_local.PACKAGES, "made", ("no-such-distribution-at-all", "numpy"))
    assert table_local.installed_version("made") == np.__version__
    assert table_local.installed_version("none of ours") is None


def test_the_command_line_warns_of_a_stale_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table_local, "installed_version", lambda backend: "99")
    folder = write_table(tmp_path / "one", make_header(backend_version="98.1"), [row()])
    assert main(["table", "show", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows_by_status"] == {"measured": 1}
    assert captured.err.startswith("warning: table one was measured with none 98.1; 99 is installed here")
    assert captured.err.count("\n") == 1


# Why operators are missing


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (
            conv(in_size=(26, 26), out_size=(26, 26)),
            "it has no maps of 26x26 (but 20x20), so the image size is another",
        ),
        (conv(8, np.array([40, 48])), "it has these operators with other channels, so the search space or number of"),
        (conv(8, 99, stage="head"), "only head operators are lacking, so the number of classes (or the head)"),
        (conv(kernel_size=5), "some of them it does not have with any channels, so the search space is another"),
    ],
)
def test_the_hint_says_what_differs(tmp_path, op, reason):
    header = make_header(spaces=["res at 640x640, 80 classes"])
    hint = missing_hint(load_table(write_table(tmp_path / "one", header, [row()])), [op])
    assert hint.startswith(f"; {reason}")
    assert hint.endswith(
        "(it covers res at 640x640, 80 classes): `maenas profile` with that setting makes a table that has them"
    )


def test_only_measured_tables_hint(tmp_path):
    loaded = load_table(write_table(tmp_path / "one", make_header(provenance="imported"), [row()]))
    assert missing_hint(loaded, [conv(kernel_size=5)]) == ""


def test_predictions_and_searches_carry_the_hint(tmp_path):
    loaded = load_table(write_table(tmp_path / "one", make_header(), [row()]))
    with pytest.raises(
        LatencyTableError, match=r"lacks 1 operators of this network: .*; it has no maps of 26x26 \(but"
    ):
        predict([conv(), conv(in_size=(26, 26), out_size=(26, 26))], loaded)
    with pytest.raises(
        LatencyTableError, match=r"that space csp needs: .*; it has no maps of 640x640, .*the image size"
    ):
        search("csp", budgets=[Budget("latency_ms", 10.0)], device=loaded)


# Writing


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_existing_folders_are_kept_unless_forced(tmp_path):
    folder = write_table(tmp_path / "one", make_header(), [row(1.0)])
    with pytest.raises(OutputError, match="one: exists already; use force to replace it"):
        write_table(folder, make_header(), [row(2.0)])
    assert load_table(folder).op_latency(conv()).ms == 1.0
    write_table(folder, make_header(), [row(2.0)], force=True)
    assert load_table(folder).op_latency(conv()).ms == 2.0
    assert leftovers(tmp_path) == ["one"]


def test_force_replaces_tables_only(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("long")
    with pytest.raises(OutputError, match="thesis: is no latency table, so it is not replaced"):
        write_table(tmp_path / "thesis", make_header(), [row()], force=True)
    assert leftovers(tmp_path / "thesis") == ["chapter1.txt"]


@pytest.mark.parametrize("name", ["a b", ".hidden", "-x", "ü"])
def test_table_names_are_plain(tmp_path, name):
    with pytest.raises(LatencyTableError, match="is not usable; expected a plain name"):
        write_table(tmp_path / name, make_header(), [row()])


@pytest.mark.parametrize("old", [False, True])
def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch, old):
    folder = tmp_path / "one"
    if old:
        write_table(folder, make_header(), [row(1.0)])

    def full_disk(path, data):
        if path.name == "table.json":
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match=r"one: cannot be written: .*No space left"):
        write_table(folder, make_header(), [row(2.0)], force=True)
    assert leftovers(tmp_path) == (["one"] if old else [])
    if old:
        assert load_table(folder).op_latency(conv()).ms == 1.0


def test_a_failing_last_step_brings_the_old_table_back(tmp_path, monkeypatch):
    folder = write_table(tmp_path / "one", make_header(), [row(1.0)])
    rename = Path.rename

    def refuse(path, target):
        if path.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match="Input/output error"):
        write_table(folder, make_header(), [row(2.0)], force=True)
    assert load_table(folder).op_latency(conv()).ms == 1.0
    assert leftovers(tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (make_header(batch=0), [row()], "one/table.json: batch is 0"),
        (make_header(name="two"), [row()], "one/table.json: name is 'two'; expected the folder's name 'one'"),
        (make_header(), [row(math.nan)], "one/rows.csv: line 2: ms is 'nan'"),
        (make_header(), [row(1.0), row(2.0)], "one/rows.csv: lines 2 and 3 give one operator 1 and 2 ms"),
        (make_header(), [row()._replace(op="a,b")], "one/rows.csv: line 2 is"),
    ],
)
def test_what_would_not_load_is_not_written(tmp_path, header, rows, message):
    with pytest.raises(LatencyTableError, match=message):
        write_table(tmp_path / "one", header, rows)
    assert leftovers(tmp_path) == []


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="one: cannot be written"):
        write_table(tmp_path / "file" / "one", make_header(), [row()])


# Extra files


def with_extra(folder: Path, **files: bytes) -> Path:
    extra = {name.replace("_", "."): content for name, content in files.items()}
    return write_table(folder, make_header(), [row()], extra=extra)


def test_extra_files_are_written_and_hashed(tmp_path):
    folder = with_extra(tmp_path / "one", samples_csv=b"a,b\n", report_png=b"\x89PNG")
    assert leftovers(folder) == ["report.png", "rows.csv", "samples.csv", "table.json"]
    loaded = load_table(folder)
    assert loaded.files_sha256 == {
        "report.png": hashlib.sha256(b"\x89PNG").hexdigest(),
        "samples.csv": hashlib.sha256(b"a,b\n").hexdigest(),
    }
    assert validate(folder) == []
    assert load_table(with_extra(tmp_path / "b" / "one", samples_csv=b"c\n")).table_hash != loaded.table_hash


def test_changed_extra_files_do_not_validate_but_the_table_still_loads(tmp_path):
    folder = with_extra(tmp_path / "one", samples_csv=b"a,b\n", report_png=b"\x89PNG")
    (folder / "samples.csv").write_bytes(b"a,c\n")
    (folder / "report.png").unlink()
    (tmp_path / "outside").write_bytes(b"\x89PNG")
    missing, changed = validate(folder)
    assert f"{folder}/report.png: cannot be read" in missing
    assert f"{folder}/samples.csv: its sha256 is" in changed
    assert "files_sha256.samples.csv): the file was changed" in changed
    (folder / "report.png").symlink_to(tmp_path / "outside")
    assert "expected a file inside the table folder" in validate(folder)[0]
    assert load_table(folder).op_latency(conv()).ms == 0.5


@pytest.mark.parametrize("name", ["../x.csv", "a/b", "", ".hidden", "rows.csv", "TABLE.json", "raw.csv", "a b"])
def test_names_of_extra_files_are_plain_and_not_the_tables_own(tmp_path, name):
    with pytest.raises(LatencyTableError, match=r"extra file .* is not usable; expected a plain name"):
        write_table(tmp_path / "one", make_header(), [row()], extra={name: b""})
    assert leftovers(tmp_path) == []


def test_extra_files_that_some_file_systems_take_for_one_are_refused(tmp_path):
    with pytest.raises(LatencyTableError, match=r"'samples.csv' is given twice"):
        write_table(tmp_path / "one", make_header(), [row()], extra={"Samples.csv": b"", "samples.csv": b""})


def test_hashes_of_files_that_are_not_given_are_dropped(tmp_path):
    folder = write_table(tmp_path / "one", make_header(files_sha256={"samples.csv": "0" * 64}), [row()])
    assert load_table(folder).files_sha256 == {}


def test_a_malformed_list_of_networks_does_not_validate(tmp_path):
    folder = with_extra(tmp_path / "one", networks_csv=b"network\n")
    assert "networks.csv: line 1 is 'network'; expected network,group,family" in validate(folder)[0]


# The hash


def test_hash_depends_on_content_only(tmp_path):
    rows = [row(1.0), row(2.0, op=conv(8, 24))]
    one = load_table(write_table(tmp_path / "a" / "one", make_header(), rows))
    shuffled = dict(reversed(make_header().items()))
    two = load_table(write_table(tmp_path / "b" / "one", shuffled, rows[::-1]))
    assert one.table_hash == two.table_hash
    assert len(one.table_hash) == 12
    changed_row = load_table(write_table(tmp_path / "c" / "one", make_header(), [row(1.5), rows[1]]))
    changed_header = load_table(write_table(tmp_path / "d" / "one", make_header(fixed_ms=0.3), rows))
    assert len({one.table_hash, changed_row.table_hash, changed_header.table_hash}) == 3


def test_hash_follows_its_definition(tmp_path):
    folder = write_table(tmp_path / "one", make_header(device="Gerät"), [row()])
    header = json.loads((folder / "table.json").read_text("utf-8"))
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode() + (folder / "rows.csv").read_bytes()).hexdigest()
    assert load_table(folder).table_hash == digest[:12]


# Where data lies


def test_user_tables_follow_the_environment_of_the_call(monkeypatch, tmp_path):
    monkeypatch.setenv("MAENAS_TABLES", str(tmp_path / "mine"))
    assert resources.user_table_folder() == tmp_path / "mine"
    monkeypatch.delenv("MAENAS_TABLES")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert resources.user_table_folder() == tmp_path / "maenas" / "latency_tables"
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resources.user_table_folder() == tmp_path / "home" / ".local" / "share" / "maenas" / "latency_tables"


def test_data_folders_of_a_checkout_come_first(tmp_path, monkeypatch):
    package = tmp_path / "maenas"
    for folder in ("latency_tables", "maenas/latency_tables", "maenas/structures"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.data_folder("latency_tables") == package / "latency_tables"
    (tmp_path / "pyproject.toml").write_text("")
    assert resources.data_folder("latency_tables") == tmp_path / "latency_tables"
    assert resources.data_folder("structures") == package / "structures"
    with pytest.raises(FileNotFoundError, match=f"'search_spaces' was not found at {tmp_path}.*reinstall"):
        resources.data_folder("search_spaces")
    with pytest.raises(ValueError, match="'tables' is unknown; expected one of latency_tables, search_spaces"):
        resources.data_folder("tables")


def test_shipped_tables_are_sound():
    folders = [entry.folder for entry in list_tables() if entry.shipped]
    assert {str(folder): validate(folder) for folder in folders} == {str(folder): [] for folder in folders}
    assert all(os.access(folder / "rows.csv", os.R_OK) for folder in folders)
