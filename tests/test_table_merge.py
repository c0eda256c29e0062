"""Merging measured tables: which values win, which tables are refused, and what the header keeps."""

from __future__ import annotations

import json
import math

import pytest
from cli_cases import answer
from table_cases import conv, header, row, table

from maenas.errors import LatencyTableError
from maenas.latency.table import EXACT, MODELLED, load_table, validate
from maenas.latency.table_merge import FORCED, merge_tables
from maenas.latency.table_write import write_table


def merged(folder, tables, **options):
    result = merge_tables(tables, **options)
    return load_table(write_table(folder, result.header, result.rows)), result


# Values


def test_rows_of_all_tables_with_their_statuses(tmp_path):
    first = table(tmp_path / "a", [row(1.0), row(3.0, op=conv(8, 24), status="modelled", sigma_ms=0.4)])
    second = table(tmp_path / "b", [row(2.0, op=conv(8, 32), status="extrapolated")])
    made, result = merged(tmp_path / "both", [first, second])
    assert sorted(made.list_rows()) == sorted([*first.list_rows(), *second.list_rows()])
    assert result.num_common == 0
    assert made.op_latency(conv()).status == EXACT
    found = made.op_latency(conv(8, 24))
    assert (found.ms, found.sigma_ms, found.status) == (3.0, 0.4, MODELLED)
    assert validate(made.folder) == []


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", ["modelled", "imported", "extrapolated"])
def test_a_measured_row_wins_over_any_other(tmp_path, order, other):
    tables = [table(tmp_path / "a", [row(1.0)]), table(tmp_path / "b", [row(9.0, status=other)])]
    made, result = merged(tmp_path / "both", tables[::order])
    assert made.list_rows() == [row(1.0)]
    assert result.num_common == 1


def test_a_modelled_row_wins_over_an_extrapolated_one(tmp_path):
    tables = [table(tmp_path / "a", [row(9.0, status="extrapolated")]), table(tmp_path / "b", [row(status="modelled")])]
    assert merged(tmp_path / "both", tables)[0].list_rows() == [row(status="modelled")]


def test_two_measurements_are_weighted_by_their_sigmas(tmp_path):
    tables = [table(tmp_path / "a", [row(1.0, sigma_ms=0.1)]), table(tmp_path / "b", [row(1.3, sigma_ms=0.2)])]
    (found,) = merged(tmp_path / "both", tables)[0].list_rows()
    assert found.ms == pytest.approx((1.0 / 0.01 + 1.3 / 0.04) / (1 / 0.01 + 1 / 0.04))  # 1.06
    variance = 0.8 * (0.01 + 0.06**2) + 0.2 * (0.04 + 0.24**2)
    assert found.sigma_ms == pytest.approx(math.sqrt(variance))
    assert found.status == "measured"


def test_equal_measurements_stay_as_uncertain_as_they_are(tmp_path):
    tables = [table(tmp_path / name, [row(1.0, sigma_ms=0.1)], date=f"2025-01-0{name}") for name in "123"]
    (found,) = merged(tmp_path / "all", tables)[0].list_rows()
    assert (found.ms, found.sigma_ms) == pytest.approx((1.0, 0.1))


def test_measurements_without_sigma_count_alike(tmp_path):
    tables = [table(tmp_path / "a", [row(1.0, sigma_ms=0.0)]), table(tmp_path / "b", [row(1.2, sigma_ms=0.1)])]
    (found,) = merged(tmp_path / "both", tables)[0].list_rows()
    assert found.ms == pytest.approx(1.1)
    assert found.sigma_ms == pytest.approx(math.sqrt(0.005 + 0.01))


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 4}, "threads is 1 and 4"),
        ({"precision": "fp16"}, 'precision is "fp32" and "fp16"'),
        ({"backend_version": "0.2"}, 'backend_version is "0.1" and "0.2"'),
        ({"backend": "onnxruntime", "batch": 2}, 'backend is "openvino" and "onnxruntime"; batch is 1 and 2'),
        ({"fingerprint": "ba9876543210"}, 'fingerprint is "0123456789ab" and "ba9876543210"'),
        ({"device": "another GPU"}, 'device is ".*" and "another GPU"'),
        ({"ignores": ["residual"]}, r'ignores is \[\] and \["residual"\]'),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_unlike_conditions_are_refused_whatever_is_forced(tmp_path, changes, message, force):
    tables = [table(tmp_path / "a", [row()]), table(tmp_path / "b", [row(op=conv(8, 32))], **changes)]
    with pytest.raises(LatencyTableError, match=f"tables a and b cannot be merged: {message}$"):
        merge_tables(tables, force=force)


def test_only_measured_tables_of_known_machines_merge(tmp_path):
    good = table(tmp_path / "a", [row()])
    measured_only = ("fingerprint", "host", "spaces", "campaign", "reference_kernel_ms")
    plain = {name: value for name, value in header().items() if name not in measured_only}
    imported = load_table(write_table(tmp_path / "b", plain | {"provenance": "imported"}, [row()]))
    with pytest.raises(LatencyTableError, match="table b: provenance is 'imported'; expected measured to merge"):
        merge_tables([good, imported])
    nowhere = load_table(write_table(tmp_path / "c", plain, [row()]))
    with pytest.raises(LatencyTableError, match="table c: fingerprint is missing"):
        merge_tables([good, nowhere])
    predictor = {"kind": "cpu-linear", "coefficients": {"conv_ms": 1.0, "other_ms": 1.0, "ms_per_gflop": 1.0}}
    formula = table(tmp_path / "d", [row()], predictor=predictor | {"valid_range": {}})
    with pytest.raises(LatencyTableError, match=r"table d: predictor.kind is 'cpu-linear'; expected rows"):
        merge_tables([good, formula])


def test_number_and_sameness_of_tables(tmp_path):
    one = table(tmp_path / "a", [row()])
    with pytest.raises(LatencyTableError, match="1 table is given; expected two or more"):
        merge_tables([one])
    with pytest.raises(LatencyTableError, match="table a is given twice"):
        merge_tables([one, load_table(one.folder)])
    with pytest.raises(LatencyTableError, match="largest factor is 1; expected a number above 1"):
        merge_tables([one, one], max_factor=1.0)


def test_measurements_that_disagree_are_refused_unless_forced(tmp_path):
    tables = [table(tmp_path / "a", [row(1.0)]), table(tmp_path / "b", [row(1.6)])]
    with pytest.raises(
        LatencyTableError,
        match=r"disagree on 1 of 1 operators measured in both, by more than a factor of 1.5 and 3 sigma; the worst is "
        r"conv 3x3/1 relu 8->16 at 20x20: 1 and 1.6 ms; --force",
    ):
        merge_tables(tables)
    assert merge_tables(tables, max_factor=1.7).disagreements == ()
    made, result = merged(tmp_path / "both", tables, force=True)
    assert len(result.disagreements) == 1
    assert made.campaign["flags"] == [FORCED]


def test_a_difference_within_three_sigma_is_no_disagreement(tmp_path):
    tables = [table(tmp_path / "a", [row(1.0, sigma_ms=0.3)]), table(tmp_path / "b", [row(1.6, sigma_ms=0.3)])]
    assert merge_tables(tables).disagreements == ()


def test_modelled_values_may_disagree_but_widen_the_sigma(tmp_path):
    tables = [table(tmp_path / name, [row(ms, status="modelled")]) for name, ms in (("a", 1.0), ("b", 3.0))]
    (found,) = merge_tables(tables).rows
    assert (found.ms, found.status) == (2.0, "modelled")
    assert found.sigma_ms > 1.0


def test_a_common_shift_of_all_measurements_is_refused(tmp_path):
    rows = [row(1.0, op=conv(8, width)) for width in range(8, 8 * 11, 8)]
    shifted = [each._replace(ms=1.2) for each in rows]
    tables = [table(tmp_path / "a", rows), table(tmp_path / "b", shifted)]
    with pytest.raises(LatencyTableError, match=r"the median over 10 operators measured in both is a factor of 1.2"):
        merge_tables(tables)
    few = [table(tmp_path / "c", rows[:9]), table(tmp_path / "d", shifted[:9])]
    assert merge_tables(few).disagreements == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 1.06}, "scale is 1 and 1.06; expected a factor of 1.05 at most"),
        ({"fixed_ms": 0.34}, "fixed_ms is 0.25 and 0.34; expected 0.0849 apart at most"),
        ({"reference_kernel_ms": 1.3}, "reference_kernel_ms is 1.5 and 1.3; expected a factor of 1.1 at most"),
    ],
)
def test_calibrations_and_clocks_that_disagree_are_refused_unless_forced(tmp_path, changes, message):
    tables = [table(tmp_path / "a", [row()]), table(tmp_path / "b", [row(op=conv(8, 24))], **changes)]
    with pytest.raises(LatencyTableError, match=f"tables a and b disagree: {message}"):
        merge_tables(tables)
    assert len(merge_tables(tables, force=True).disagreements) == 1


# The header


def test_calibrations_that_agree_give_the_mean_line(tmp_path):
    first = table(tmp_path / "a", [row()], fixed_ms=0.25, scale=1.0)
    second = table(tmp_path / "b", [row(op=conv(8, 24))], fixed_ms=0.29, scale=1.04)
    made, _ = merged(tmp_path / "both", [first, second])
    assert (made.fixed_ms, made.scale) == pytest.approx((0.27, 1.02))
    assert made.fixed_sigma_ms == pytest.approx(math.hypot(0.02, 0.02))
    for total in (0.0, 3.0, 300.0):
        lines = [each.fixed_ms + each.scale * total for each in (first, second)]
        assert made.fixed_ms + made.scale * total == pytest.approx(sum(lines) / 2)


def test_what_the_header_keeps(tmp_path):
    first = table(tmp_path / "a", [row()], extra={"samples.csv": b"x\n"}, notes=["n"], date="2025-02-01")
    campaign = {"seed": 7, "flags": ["drift"]}
    changes = {"spaces": ["mob at 416x416"], "uncertainty": {"relative": 0.2, "how": "b's"}, "reference_kernel_ms": 1.6}
    second = table(tmp_path / "b", [row(op=conv(8, 24))], campaign=campaign, sources=["s"], **changes)
    made, _ = merged(tmp_path / "both", [first, second])
    assert (made.provenance, made.fingerprint, made.threads, made.date) == ("measured", "0123456789ab", 1, "2025-02-01")
    assert made.spaces == ("res at 640x640, 80 classes", "mob at 416x416")
    assert made.uncertainty == {"relative": 0.2, "how": "largest of the merged tables, that of b: b's"}
    assert made.campaign["flags"] == ["drift"]
    assert [part["campaign"]["seed"] for part in made.campaign["merged"]] == [0, 7]
    assert made.sources == (f"table a {first.table_hash}", f"table b {second.table_hash}", "s")
    assert made.notes[1:] == ("n",)
    assert made.reference_kernel_ms == pytest.approx(1.55)
    assert made.files_sha256 == {}
    again, _ = merged(tmp_path / "more", [made, table(tmp_path / "c", [row(op=conv(8, 32))])])
    assert again.num_rows == 3


# The command line


@pytest.fixture
def maenas(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MAENAS_TABLES", str(tmp_path / "user"))

    def run(*arguments):
        return answer(capsys, *arguments)

    return run


def test_merge_writes_a_table_of_the_users(maenas, tmp_path):
    first, second = table(tmp_path / "a", [row(1.0)]), table(tmp_path / "b", [row(1.3), row(op=conv(8, 24))])
    command = ("table", "merge", first.folder, second.folder, "--name", "both")
    code, out, err = maenas(*command)
    assert (code, err) == (0, "")
    assert f"{tmp_path}/user/both: 2 rows (2 measured), 1 of them in several tables, hash " in out
    assert load_table("both").num_rows == 2
    code, out, err = maenas(*command)
    assert (code, out) == (2, "")
    assert "both: exists already; use force to replace it" in err
    assert maenas(*command, "--force")[0] == 0
    assert maenas(*command, "--force", "--max-factor", "1.1")[2].startswith(
        "warning: tables a and b disagree on 1 of 1"
    )
    assert load_table("both").campaign["flags"] == [FORCED]


def test_a_refused_merge_writes_nothing(maenas, tmp_path):
    first, second = table(tmp_path / "a", [row()]), table(tmp_path / "b", [row()], threads=2)
    code, out, err = maenas("table", "merge", first.folder, second.folder, "--name", "both", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err == "maenas: error: tables a and b cannot be merged: threads is 1 and 2\n"
    assert not (tmp_path / "out").exists()
    assert "'local' is not usable" in maenas("table", "merge", first.folder, second.folder, "--name", "local")[2]


def test_a_merged_table_shows_its_parts(maenas, tmp_path):
    tables = [table(tmp_path / "a", [row()]), table(tmp_path / "b", [row(op=conv(8, 24), status="modelled")])]
    made, _ = merged(tmp_path / "both", tables)
    record = json.loads(maenas("table", "show", made.folder, "--json")[1])
    assert record["rows_by_status"] == {"measured": 1, "modelled": 1}
    assert [part["table"] for part in record["campaign"]["merged"]] == ["a", "b"]
