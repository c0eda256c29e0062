"""Comparing tables: headers and rows of two, what the rows of one show, and networks against predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli_cases import answer
from table_cases import conv, header, row, table

from maenas.errors import LatencyTableError, OutputError
from maenas.latency.table import LatencyTable, load_table
from maenas.latency.table_compare import Ratios, check_rows, diff_tables
from maenas.latency.table_networks import (
    NetworkRow,
    error_stats,
    errors_of,
    networks_to_csv,
    parse_networks,
    read_networks,
    worst_networks,
)
from maenas.latency.table_plot import networks_png, plot_networks
from maenas.latency.table_write import write_table
from maenas.lowering.op import Op

# Two tables


def test_ratios_are_of_common_operators_with_their_scales(tmp_path):
    dense = [row(ms, op=conv(8, 8 * place)) for place, ms in enumerate((1.0, 2.0, 3.0, 4.0), start=1)]
    depthwise = row(1.0, op=conv(8, 8, depthwise=True))
    free = row(0.0, op=Op("concat", 8, 8, (20, 20), (20, 20)))
    first = table(tmp_path / "a", [*dense, depthwise, free, row(op=conv(64, 64))], scale=0.5)
    doubled = [each._replace(ms=2 * each.ms) for each in dense]
    doubled[3] = doubled[3]._replace(ms=40.0, status="modelled")
    second = table(tmp_path / "b", [*doubled, depthwise, free, row(op=conv(72, 72)), row(op=conv(80, 80))], scale=1.0)
    found = diff_tables(first, second, num_worst=2, num_shown=1)
    assert (found.num_common, found.num_only_first, found.num_only_second, found.num_zero) == (6, 1, 2, 1)
    assert found.only_first == ("conv 3x3/1 relu 64->64 at 20x20",)
    assert len(found.only_second) == 1
    assert found.overall.n == 5
    assert found.by_kind["conv"].median == pytest.approx(4.0)  # 4, 4, 4, 20
    assert found.by_kind["depthwise"] == Ratios(1, 2.0, 2.0, 2.0)
    assert found.by_kind["conv"].p90 == pytest.approx(4 + 0.7 * 16)
    assert found.by_status["measured/modelled"] == Ratios(1, 20.0, 20.0, 20.0)
    worst = found.worst[0]
    assert (worst.operator, worst.first_ms, worst.second_ms, worst.ratio) == (
        "conv 3x3/1 relu 8->32 at 20x20", 2.0, 40.0, 20.0,
    )  # fmt: skip
    assert (worst.first_status, worst.second_status) == ("measured", "modelled")
    assert len(found.worst) == 2


def test_a_slower_and_a_faster_operator_are_equally_far_apart(tmp_path):
    first = table(tmp_path / "a", [row(1.0), row(1.0, op=conv(8, 24)), row(1.0, op=conv(8, 32))])
    second = table(tmp_path / "b", [row(0.25), row(3.0, op=conv(8, 24)), row(1.1, op=conv(8, 32))])
    assert [each.ratio for each in diff_tables(first, second).worst] == pytest.approx([0.25, 3.0, 1.1])


def test_header_differences_are_dotted(tmp_path):
    first = table(tmp_path / "a", [], fixed_ms=0.25, notes=["old"])
    second = table(tmp_path / "b", [], fixed_ms=0.3, campaign={"seed": 1, "settings": {"passes": 3}, "flags": []})
    assert diff_tables(first, second).header == (
        ("campaign.seed", 0, 1),
        ("fixed_ms", 0.25, 0.3),
        ("notes", ["old"], None),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 4}, "threads is 1 and 4"),
        ({"precision": "fp16"}, 'precision is "fp32" and "fp16"'),
        ({"backend_version": "0.2"}, 'backend_version is "0.1" and "0.2"'),
        ({"batch": 8}, "batch is 1 and 8"),
        ({"backend": "onnxruntime"}, 'backend is "openvino" and "onnxruntime"'),
        ({"fingerprint": "ba9876543210"}, 'fingerprint is "0123456789ab" and "ba9876543210"'),
        ({"device": "another GPU"}, 'device is ".*" and "another GPU"'),
        ({"ignores": ["activation"]}, r'ignores is \[\] and \["activation"\]'),
    ],
)
def test_unlike_conditions_do_not_compare_unless_forced(tmp_path, changes, message):
    first, second = table(tmp_path / "a", [row(1.0)]), table(tmp_path / "b", [row(2.0)], **changes)
    with pytest.raises(LatencyTableError, match=f"tables a and b do not compare: {message}; --force compares them"):
        diff_tables(first, second)
    forced = diff_tables(first, second, force=True)
    assert len(forced.conditions) == 1
    assert forced.overall.median == 2.0


def test_tables_without_fingerprints_compare_by_device(tmp_path):
    def other(name: str, device: str) -> LatencyTable:
        plain = {key: value for key, value in header(device=device).items() if key != "fingerprint"}
        return load_table(write_table(tmp_path / name, plain, [row()]))

    assert diff_tables(other("a", "one"), other("b", "one")).conditions == ()
    with pytest.raises(LatencyTableError, match='device is "one" and "two"'):
        diff_tables(other("c", "one"), other("d", "two"))


# The rows of one table


def test_falls_are_counted_between_widths_that_double(tmp_path):
    # 8 -> 16 falls, 16 -> 32 rises; 8 -> 15 is no doubling; along the input width 8 -> 16 falls at 16 outputs.
    rows = [row(1.0, op=conv(8, 8)), row(0.1, op=conv(8, 15)), row(0.5, op=conv(8, 16)), row(1.1, op=conv(8, 32))]
    found = check_rows([*rows, row(0.4, op=conv(16, 16))])
    assert (found.num_compared, found.num_falls) == (4, 2)
    assert found.worst_fall == "conv 3x3/1 relu 8->8 at 20x20 1 ms, 8->16 0.5 ms"


def test_falls_of_operators_that_keep_their_channels():
    depthwise = [row(ms, op=conv(width, width, depthwise=True)) for width, ms in ((8, 1.0), (16, 0.96), (32, 0.5))]
    found = check_rows(depthwise)
    assert (found.num_compared, found.num_falls) == (2, 1)


def test_operators_at_other_places_are_not_compared():
    rows = [row(1.0), row(0.1, op=conv(8, 64, stride=2)), row(0.1, op=conv(8, 64, activation="silu"))]
    assert check_rows(rows).num_compared == 0


def test_repeats_and_free_operators_are_counted():
    found = check_rows([row(), row(), row(0.0, op=conv(8, 24), status="modelled")])
    assert (found.num_repeated, found.num_zero, found.statuses) == (1, 1, {"measured": 2, "modelled": 1})


# Networks


def network(name="one", measured=10.0, predicted=11.0, **changes) -> NetworkRow:
    fields = {"group": "res-640", "family": "res", "role": "test", "num_ops": 80} | changes
    return NetworkRow(name, measured_ms=measured, predicted_ms=predicted, **fields)


def test_networks_survive_the_file(tmp_path):
    rows = [
        network("a, with a comma", num_extrapolated=0, measured_low_ms=9.5, measured_high_ms=1e1 / 3 * 4),
        network("b", measured=None, predicted=None, role="kernels"),
        network(
            "c", sum_ms=10.5, isolated_sum_ms=12.0, isolated_conv_sum_ms=11.0, backend_layers_ms=9.0, role="foreign"
        ),
    ]
    path = tmp_path / "networks.csv"
    path.write_bytes(networks_to_csv(rows))
    back = read_networks(path)
    assert back[1:] == rows[1:]
    assert back[0] == rows[0]._replace(measured_high_ms=13.3333333)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "train"}, "line 3: role is 'train'; expected one of kernels, calibration, test, foreign"),
        ({"num_ops": ""}, "line 3: num_ops is ''; expected a whole number, 0 or more"),
        ({"num_extrapolated": -1}, "line 3: num_extrapolated is '-1'"),
        ({"measured": -1.0}, "line 3: measured_ms is '-1'; expected a finite number of milliseconds above 0, or noth"),
        ({"measured": 0.0}, "line 3: measured_ms is '0'"),
        ({"predicted": math.nan}, "line 3: predicted_ms is 'nan'"),
        ({"sum_ms": "fast"}, "line 3: sum_ms is 'fast'"),
        ({"family": ""}, "line 3: family is ''; expected text"),
        ({"name": "first"}, "line 3: network is 'first', as on a line above; expected unique names"),
        ({"measured_low_ms": 10.5}, "line 3: measured_low_ms, measured_ms, measured_high_ms are 10.5, 10.0, None"),
        ({"measured": None, "measured_high_ms": 3.0}, "the middle one not empty"),
    ],
)
def test_malformed_networks(changes, message):
    data = networks_to_csv([network("first"), network(**changes)])
    with pytest.raises(LatencyTableError, match=message):
        parse_networks(Path("networks.csv"), data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1 is ''; expected network,group,family,role,num_ops"),
        (b"network,group\n", "line 1 is 'network,group'"),
        (networks_to_csv([network()]) + b"x,y\n", "line 3 has 2 fields; expected 14"),
        (b"\xff\xfe", "is not CSV in UTF-8"),
    ],
)
def test_files_that_are_no_networks(data, message):
    with pytest.raises(LatencyTableError, match=rf"networks.csv: {message}"):
        parse_networks(Path("networks.csv"), data)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(LatencyTableError, match=r"networks.csv: cannot be read"):
        read_networks(tmp_path / "networks.csv")


def test_errors_by_hand():
    rows = [
        network("a", 10.0, 11.0),
        network("b", 20.0, 19.0),
        network("c", 40.0, 44.0),
        network("d", 5.0, 6.0, family="csp"),
        network("e", None, 6.0, family="mob"),
    ]
    stats = error_stats(rows, by="family")
    assert list(stats) == ["csp", "mob", "res"]
    res = stats["res"]
    assert (res.n, res.spearman) == (3, 1.0)
    assert (res.mean_abs, res.max_abs, res.bias) == pytest.approx((0.25 / 3, 0.1, 0.05))
    assert stats["csp"].n == 1 and math.isnan(stats["csp"].spearman)
    assert stats["mob"].n == 0 and math.isnan(stats["mob"].mean_abs)
    assert error_stats(rows)["res-640"] == errors_of(rows)
    reversed_order = [network(str(place), float(place), 10.0 - place) for place in range(1, 5)]
    assert errors_of(reversed_order).spearman == -1.0
    assert math.isnan(errors_of([network(str(place), float(place), 3.0) for place in range(1, 5)]).spearman)
    assert errors_of([network(sum_ms=5.0)], "sum_ms").bias == -0.5


def test_the_worst_networks_come_first():
    rows = [network("a", 10.0, 9.0), network("b", 10.0, 15.0), network("c", 10.0, 4.0), network("d", None, 4.0)]
    assert [each.network for each in worst_networks(rows, 2)] == ["c", "b"]


def test_the_picture_shows_what_was_given(tmp_path):
    rows = [
        network(role, 10.0 + place, 11.0, role=role) for place, role in enumerate(("kernels", "calibration", "test"))
    ]
    rows += [network(f"wide {place}", 10.0**place, 10.0**place, family=f"f{place}") for place in range(10)]
    plot_networks(rows, tmp_path / "errors.png", title="a [table]")
    content = (tmp_path / "errors.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert networks_png(rows, title="a [table]") == content
    assert networks_png(rows[:-1], title="a [table]") != content
    with pytest.raises(LatencyTableError, match="no network has a measured and a predicted time"):
        plot_networks([network("x", None)], tmp_path / "none.png")
    with pytest.raises(OutputError, match="cannot be written"):
        plot_networks(rows, tmp_path / "absent" / "errors.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.png"]


# The command line


@pytest.fixture
def maenas(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MAENAS_TABLES", str(tmp_path / "user"))

    def run(*arguments):
        return answer(capsys, *arguments)

    return run


def test_validate_prints_the_errors_of_a_measured_table(maenas, tmp_path, monkeypatch):
    monkeypatch.setattr("maenas.latency.table_local.installed_version", lambda backend: None)
    networks = [network(f"net [{place}]", 10.0 + place, 11.0 + 2 * place) for place in range(4)]
    networks += [network("far", 10.0, 5.0, family="vision", role="foreign", num_extrapolated=3)]
    networks += [network("line", 10.0, 10.1, role="calibration")]
    rows = [row(1.0, op=conv(8, 8)), row(0.5, op=conv(8, 16), status="modelled")]
    made = table(
        tmp_path / "one", rows, extra={"networks.csv": networks_to_csv(networks)}, campaign={"flags": ["drift"]}
    )
    (made.folder / "stray.txt").write_text("")
    code, out, err = maenas("table", "validate", made.folder, "--plot", tmp_path / "errors.png")
    assert (code, err) == (0, "")
    assert "rows: 1 measured, 1 modelled; 0 repeated, 0 of 0 ms" in out
    assert "times fall although channels double: 1 of 1 pairs of rows; the worst: conv 3x3/1 relu 8->8" in out
    assert "flags of the campaign: drift" in out
    assert "not checked: stray.txt" in out
    lines = [line.replace("│", "|").replace("┃", "|") for line in out.splitlines()]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert ["test (seen by no fit)", "4", "21.0", "30.8", "21.0", "1.000"] in cells
    assert ["vision", "1", "50.0", "50.0", "-50.0", "-"] in cells
    assert ["far", "vision", "10.000", "5.000", "-50.0", "3"] in cells
    assert ["net [3]", "res", "13.000", "17.000", "+30.8", ""] in cells
    assert not [line for line in cells if line[0] == "line"]  # a calibration network is no test
    assert out.endswith(f"{tmp_path}/errors.png: written\n{made.folder}: valid\n")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_validate_has_nothing_to_draw_without_networks(maenas, tmp_path):
    made = table(tmp_path / "one", [row()])
    code, out, err = maenas("table", "validate", made.folder, "--plot", tmp_path / "errors.png")
    assert (code, out) == (2, "")
    assert "has no networks.csv of whole networks; there is nothing to draw" in err


def test_a_changed_extra_file_is_refused(maenas, tmp_path):
    made = table(tmp_path / "one", [row()], extra={"samples.csv": b"a\n"})
    (made.folder / "samples.csv").write_bytes(b"b\n")
    code, out, err = maenas("table", "validate", made.folder)
    assert (code, out) == (2, "")
    assert "samples.csv: its sha256 is" in err


def test_diff_for_people_and_machines(maenas, tmp_path):
    first = table(tmp_path / "a", [row(1.0), row(op=conv(8, 24))])
    second = table(tmp_path / "b", [row(2.0), row(op=conv(8, 32))], threads=4)
    code, out, err = maenas("table", "diff", first.folder, second.folder)
    assert (code, out) == (2, "")
    assert "threads is 1 and 4" in err
    code, out, _ = maenas("table", "diff", first.folder, second.folder, "--force")
    assert code == 0
    assert "UNLIKE CONDITIONS: threads is 1 and 4" in out
    assert "operators: 1 in both, 1 only in a, 1 only in b; 0 in both without a ratio (0 ms)" in out
    assert "only in b, for example: conv 3x3/1 relu 8->32 at 20x20" in out
    assert "2.000" in out
    code, out, _ = maenas("table", "diff", first.folder, second.folder, "--force", "--json")
    record = json.loads(out)
    assert record["overall"] == {"n": 1, "median": 2.0, "p10": 2.0, "p90": 2.0}
    assert record["header"] == [["threads", 1, 4]]


def test_tables_without_common_operators(maenas, tmp_path):
    first, second = table(tmp_path / "a", [row()]), table(tmp_path / "b", [row(op=conv(8, 32))])
    code, out, _ = maenas("table", "diff", first.folder, second.folder)
    assert code == 0
    assert "operators: 0 in both, 1 only in a, 1 only in b" in out
