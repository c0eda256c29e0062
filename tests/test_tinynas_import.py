"""The reference's operator libraries: reader, interpolation and import, on a small made library.

The parity tests read the published library from `../shared`, which is no part of this repository, and are skipped
where it is absent. Their numbers are those of the reference tool itself.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from maenas.errors import LatencyTableError, OutputError
from maenas.latency import import_tinynas as importer
from maenas.latency.import_tinynas import held_out_errors, import_tinynas, peak_tflops
from maenas.latency.predict import predict
from maenas.latency.table import EXACT, EXTRAPOLATED, MISSING, MODELLED, load_table, validate
from maenas.latency.tinynas import ConvForm, TinyNasPredictor
from maenas.latency.tinynas_library import read_library
from maenas.lowering.op import Op
from maenas.lowering.reference import lower_reference
from maenas.official_import import import_reference

WIDTHS, SIDES, RATIOS = (8, 16, 32, 64), (5, 10, 20, 40), (0.25, 0.5, 1, 2, 4)
HEADER = "conv_type,batch,in_c,in_h,in_w,out_c,kernel,stride,fused,latency_ms"


def planar_ms(in_c, out_c, side, *, batch=32, form=0):
    """Flat in (out_c, side) and linear in the ratio, so that every interpolation inside the grid is exact."""
    return (1 + form) * batch / 32 * (1 + 0.1 * out_c + 0.05 * side) * (1 + in_c / out_c)


def line(in_c, out_c, side, ms, *, kernel=1, stride=1, fused=0, batch=32, kind="Regular") -> str:
    return f"{{{kind},{batch},{in_c},{side},{side},{out_c},{kernel},{stride},{fused}}} {ms:.9g}"


def made_lines(batches=(32,), forms=((1, 1, 0), (3, 1, 0), (3, 1, 1), (3, 2, 1))) -> list[str]:
    lines = []
    for batch, (number, (kernel, stride, fused)) in itertools.product(batches, enumerate(forms)):
        what = {"kernel": kernel, "stride": stride, "fused": fused, "batch": batch}
        for side, out_c in itertools.product(SIDES[::-1], WIDTHS[::-1]):
            for ratio in RATIOS[::-1]:
                in_c = int(out_c * ratio)
                lines.append(line(in_c, out_c, side, planar_ms(in_c, out_c, side, batch=batch, form=number), **what))
            lines.append(line(3, out_c, side, 7.0 + out_c + side, **what))
    return lines


def write(folder: Path, lines, name="library.txt") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def predictor(folder: Path, lines) -> TinyNasPredictor:
    return TinyNasPredictor(read_library(write(folder, lines)))


def ask(predictor, in_c, out_c, side, form=ConvForm(1), batch=32):  # noqa: B008
    """(ms, outside) of one operator."""
    found = predictor.estimate(form, batch=batch, in_channels=in_c, out_channels=out_c, side=side)
    return float(found.ms), bool(found.outside)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return predictor(tmp_path_factory.mktemp("made"), made_lines())


# Reader


def test_raw_lines_keep_their_order_repeats_and_failures(tmp_path):
    lines = [line(16, 8, 10, 0.5), line(8, 8, 5, -1), line(16, 8, 10, 0.7), "", line(8, 8, 6, 1, kind="Depthwise")]
    library = read_library(write(tmp_path, lines))
    assert library.latency_ms.tolist() == [0.5, -1, 0.7, 1]
    assert library.side.tolist() == [10, 5, 10, 6]
    assert library.failed.tolist() == [False, True, False, False]
    assert library.depthwise.tolist() == [False, False, False, True]
    assert (len(library), library.batches, library.source) == (4, (32,), "library.txt")


def test_both_forms_and_gzip_read_the_same(tmp_path):
    raw = read_library(write(tmp_path, [*made_lines(), line(8, 8, 5, -1)]))
    text = raw.to_csv()
    assert text.startswith(HEADER + "\nRegular,32,256,40,40,64,1,1,0,")
    (tmp_path / "library.csv").write_text(text)
    (tmp_path / "library.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("library.csv", "library.csv.gz"):
        other = read_library(tmp_path / name, keep_order=True)
        for column in ("depthwise", "batch", "in_channels", "side", "out_channels", "kernel_size", "stride", "fused"):
            np.testing.assert_array_equal(getattr(raw, column), getattr(other, column))
        np.testing.assert_array_equal(raw.latency_ms, other.latency_ms)


def test_a_csv_file_is_put_in_published_order(tmp_path):
    raw = [line(c, out_c, side, c + out_c) for side in (10, 5) for out_c in (16, 8) for c in (64, 32, 3)]
    expected = read_library(write(tmp_path, raw))
    rows = sorted(expected.to_csv().splitlines()[1:])
    found = read_library(write(tmp_path, [HEADER, *rows]))
    assert found.side.tolist() == expected.side.tolist()
    assert found.out_channels.tolist() == expected.out_channels.tolist()
    assert found.in_channels.tolist() == [3, 32, 64] * 4  # equal in both: as in the file
    sorted_sides = read_library(write(tmp_path, [HEADER, *rows]), keep_order=True).side.tolist()
    assert sorted_sides == [int(row.split(",")[3]) for row in rows] != found.side.tolist()


def test_raw_text_is_never_reordered(tmp_path):
    lines = [line(8, 8, side, side) for side in (5, 40, 10)]
    assert read_library(write(tmp_path, lines)).side.tolist() == [5, 40, 10]


def test_csv_columns_may_come_in_any_order_with_others(tmp_path):
    header = "conv_type,precision,latency_ms,fused,stride,kernel,out_c,in_w,in_h,in_c,batch"
    library = read_library(write(tmp_path, [header, "Depthwise,fp16,.5,0,2,5,8,9,9,8,4"]))
    assert (library.kernel_size[0], library.stride[0], library.side[0], library.batch[0]) == (5, 2, 9, 4)
    assert library.latency_ms[0] == 0.5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello"], "line 1 is 'hello'; expected `{type,batch,.*` or a CSV header that starts with conv_type"),
        ([], "line 1 is ''; expected"),
        ([line(8, 8, 5, 1), "{Regular,32,8,5,5,8,1,1} 0.5"], "line 2: '{Regular,32,8,5,5,8,1,1} 0.5'; expected `{type"),
        ([line(8, 8, 5, 1), "{Regular,32,8,5,5,8,1,1,0} fast"], "line 2: .*; expected whole numbers followed by milli"),
        ([line(8, 8, 5, 1), "{Regular,32,8,5,5,8,1,1,2} 0.5"], "line 2: .* and fused 0 or 1"),
        ([line(8, 8, 5, 1, kind="Sparse")], "line 1: .*; expected the type to be one of Regular, Depthwise"),
        ([line(8, 8, 5, 1), "", "{Regular,32,8,5,6,8,1,1,0} 0.5"], "line 3: .*; expected a square map, in_h equal to"),
        ([line(8, 0, 5, 1)], "line 1: .*; expected positive sizes"),
        ([line(8, 8, 5, 0)], "line 1: .*; expected positive milliseconds, or -1"),
        ([line(8, 8, 5, -2)], "line 1: .*; expected positive milliseconds, or -1"),
        ([line(8, 8, 5, float("nan"))], "line 1: .*; expected positive milliseconds"),
        ([HEADER.replace(",stride,fused", "")], "line 1 lacks the columns stride, fused; expected conv_type,batch"),
        ([HEADER], "holds no measurement"),
        ([HEADER, "Regular,32,8,5,5,8,1,1,0"], "line 2: 'Regular,.*'; expected 10 comma-separated fields as in line 1"),
        ([HEADER, "Regular,32,8,5,5,8,1.5,1,0,1"], "line 2: .*; expected whole numbers followed by milliseconds"),
    ],
)
def test_malformed_libraries(tmp_path, lines, message):
    path = write(tmp_path, lines)
    with pytest.raises(LatencyTableError, match=message) as caught:
        read_library(path)
    assert str(caught.value).startswith(str(path))


def test_unreadable_libraries(tmp_path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{Regular" * 99)[:-9])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("cut.gz", "binary", "absent"):
        with pytest.raises(LatencyTableError, match=f"{name}: cannot be read as .gzip. UTF-8 text"):
            read_library(tmp_path / name)


# Interpolation


def test_measured_points_are_returned(made):
    for in_c, out_c, side in ((16, 16, 20), (256, 64, 40), (2, 8, 5)):
        assert ask(made, in_c, out_c, side) == (pytest.approx(planar_ms(in_c, out_c, side), rel=1e-8), False)


def test_between_widths_sides_and_ratios(made):
    for in_c, out_c, side in ((24, 24, 13), (30, 60, 7), (12, 32, 40), (40, 16, 20), (50, 40, 11)):
        assert ask(made, in_c, out_c, side) == (pytest.approx(planar_ms(in_c, out_c, side), rel=1e-8), False)
    for number, form in enumerate((ConvForm(1), ConvForm(3), ConvForm(3, fused=True), ConvForm(3, 2, True))):
        expected = planar_ms(24, 24, 13, form=number)
        assert ask(made, 24, 24, 13, form) == (pytest.approx(expected, rel=1e-8), False)


def test_outside_the_hull_the_nearest_value_is_held(made):
    assert ask(made, 64, 64, 80) == (pytest.approx(planar_ms(64, 64, 40), rel=1e-8), True)
    assert ask(made, 128, 128, 20) == (pytest.approx(planar_ms(64, 64, 20), rel=1e-8), True)


def test_beyond_the_ratios_the_line_is_continued(made):
    expected = planar_ms(256, 32, 20)
    assert ask(made, 256, 32, 20) == (pytest.approx(expected, rel=1e-8), True)
    assert ask(made, 4, 64, 20) == (pytest.approx(planar_ms(4, 64, 20), rel=1e-8), True)


def test_images_have_their_own_group(made):
    assert ask(made, 3, 24, 10) == (pytest.approx(41.0), False)
    assert ask(made, 12, 24, 10)[0] == pytest.approx(planar_ms(12, 24, 10))


def test_a_ratio_is_cut_to_two_decimals_for_the_group_but_not_for_the_line(made):
    at_one = 2 * (1 + 0.1 * 60 + 0.05 * 20)
    assert ask(made, 60, 60, 20)[0] == pytest.approx(at_one)
    near = made.estimate(ConvForm(1), batch=32, in_channels=6040, out_channels=6000, side=20)  # 1.0067: group 1.00
    assert float(near.ms) == pytest.approx(planar_ms(64, 64, 20))
    assert ask(made, 12, 32, 20)[0] == pytest.approx((1 + 3.2 + 1) * 1.375)  # 0.375, not 0.37


def ratio_lines(values, out_c=8):
    return [line(int(out_c * r), w, s, ms) for r, ms in values.items() for w in (out_c,) for s in (5, 10)] + [
        line(int(2 * out_c * r), 2 * out_c, s, ms) for r, ms in values.items() for s in (5, 10)
    ]


def test_a_smaller_value_at_a_larger_ratio_is_passed_over(tmp_path):
    found = predictor(tmp_path, ratio_lines({0.5: 1.0, 1: 2.0, 2: 1.5, 4: 4.0}))
    assert ask(found, 24, 8, 5) == (pytest.approx(2 + 2 * (3 - 1) / (4 - 1)), False)
    assert ask(found, 16, 8, 5) == (pytest.approx(1.5), False)  # a measured ratio is not judged
    assert ask(found, 48, 8, 5) == (pytest.approx(2 + 2 * (6 - 1) / (4 - 1)), True)


def test_the_first_two_ratios_always_count(tmp_path):
    found = predictor(tmp_path, ratio_lines({0.5: 3.0, 1: 2.0, 2: 2.5}))
    assert ask(found, 6, 8, 5)[0] == pytest.approx(2.5)
    assert ask(found, 12, 8, 5)[0] == pytest.approx(2.25)


def test_beyond_the_last_ratio_that_counts_is_outside(tmp_path):
    found = predictor(tmp_path, ratio_lines({0.5: 1.0, 1: 2.0, 2: 3.0, 4: 2.5}))
    assert ask(found, 24, 8, 5) == (pytest.approx(4.0), True)


def test_a_negative_result_becomes_the_first_value_in_proportion(tmp_path):
    found = predictor(tmp_path, ratio_lines({0.5: 1.0, 1: 4.0}))
    assert ask(found, 2, 8, 5) == (pytest.approx(1.0 * 0.25 / 0.5), True)


def test_one_ratio_gives_no_line(tmp_path):
    assert np.isnan(ask(predictor(tmp_path, ratio_lines({1: 2.0})), 16, 8, 5)[0])


def test_batches_are_joined_by_a_line(tmp_path):
    found = predictor(tmp_path, made_lines(batches=(1, 32), forms=((1, 1, 0),)))
    assert ask(found, 16, 16, 20, batch=8) == (pytest.approx(planar_ms(16, 16, 20, batch=8), rel=1e-6), False)
    assert ask(found, 16, 16, 20, batch=64) == (pytest.approx(planar_ms(16, 16, 20, batch=64), rel=1e-6), True)


def test_what_no_group_covers_is_nan(made):
    for form in (ConvForm(5), ConvForm(1, 2), ConvForm(3, 2), ConvForm(1, depthwise=True)):
        assert np.isnan(ask(made, 16, 16, 20, form)[0])
    assert np.isnan(ask(made, 16, 16, 20, batch=16)[0])
    assert made.forms == sorted([ConvForm(1), ConvForm(3), ConvForm(3, fused=True), ConvForm(3, 2, True)])


def test_depthwise_lines_have_no_ratio(tmp_path):
    lines = [line(c, c, side, c + side, kind="Depthwise") for c in (8, 16, 32) for side in (5, 10)]
    found = predictor(tmp_path, lines)
    assert ask(found, 24, 24, 7, ConvForm(1, depthwise=True)) == (pytest.approx(31.0), False)
    assert np.isnan(ask(found, 24, 24, 7)[0])


def test_side_four_and_failures_are_left_out(tmp_path):
    good = [line(c, c, side, c + side) for c in (8, 16) for side in (5, 10)]
    found = predictor(tmp_path, [*good, line(8, 8, 4, 99), line(8, 8, 7, -1), line(16, 16, 4, 99)])
    assert ask(found, 8, 8, 7) == (pytest.approx(15.0), False)
    assert ask(found, 8, 8, 4) == (pytest.approx(13.0), True)
    empty = predictor(tmp_path, [line(8, 8, 7, -1)])
    assert empty.forms == []
    assert np.isnan(ask(empty, 8, 8, 7)[0])


def test_points_on_a_line_leave_neighbours_only(tmp_path):
    found = predictor(tmp_path, [line(8, 8, side, side) for side in (5, 10, 20)])
    assert ask(found, 8, 8, 11) == (10.0, True)


def test_arrays_equal_single_questions(made):
    rng = np.random.default_rng(1)
    in_c, out_c, side = rng.integers(1, 100, (3, 5, 1)), rng.integers(1, 100, (1, 5, 4)), rng.integers(3, 60, (1, 1, 4))
    found = made.estimate(ConvForm(3), batch=32, in_channels=in_c, out_channels=out_c, side=side)
    assert found.ms.shape == found.outside.shape == (3, 5, 4)
    for place in np.ndindex(3, 5, 4):
        one = [int(np.broadcast_to(a, (3, 5, 4))[place]) for a in (in_c, out_c, side)]
        assert ask(made, *one, ConvForm(3)) == (pytest.approx(found.ms[place]), found.outside[place])


def test_surfaces_equal_those_of_scipy(tmp_path):
    """On a regular grid the diagonals are a matter of the order of points; repeats are kept as they come."""
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(2)
    points = [(c, side) for side in (40, 20, 10, 5) for c in (64, 48, 32, 16, 8) if c * side < 2000] * 2
    values = rng.uniform(0.1, 9, len(points))
    found = predictor(tmp_path, [line(c, c, s, ms) for (c, s), ms in zip(points, values, strict=True)])
    c, side = (grid.ravel() for grid in np.meshgrid(np.arange(4, 70), np.arange(5, 45)))
    reference = interpolate.LinearNDInterpolator(np.array(points, float), np.array([float(f"{v:.9g}") for v in values]))
    expected = reference(c, side)
    ours = found.estimate(ConvForm(1), batch=32, in_channels=c, out_channels=c, side=side)
    np.testing.assert_array_equal(np.isnan(expected), ours.outside)
    np.testing.assert_allclose(ours.ms[~ours.outside], expected[~ours.outside], rtol=1e-9)


# Import


@pytest.fixture
def small_grid(monkeypatch):
    monkeypatch.setattr(importer, "WIDTHS", (8, 24, 64, 96))
    monkeypatch.setattr(importer, "SIDES", (40, 20))


def conv(in_c, out_c, side=20, *, kernel=1, stride=1, residual=False, activation="relu", **fields) -> Op:
    out_side = side // stride
    return Op(
        "conv", in_c, out_c, (side, side), (out_side, out_side), kernel, stride,
        residual=residual, activation=activation, **fields,
    )  # fmt: skip


def imported(folder: Path, lines=None, **options):
    path = write(folder, lines or made_lines())
    return load_table(import_tinynas(path, "made", folder / "tables", **({"date": "2025-01-31"} | options)))


def test_import_writes_a_sound_table(tmp_path, small_grid):
    loaded = imported(tmp_path, device="a test bench", precision="fp16")
    assert validate(loaded.folder) == []
    assert (loaded.provenance, loaded.batch, loaded.scale, loaded.fixed_ms) == ("imported", 32, 1 / 32, 0.0)
    assert (loaded.device, loaded.precision, loaded.date) == ("a test bench", "fp16", "2025-01-31")
    assert (loaded.predictor["kind"], loaded.ignores) == ("tinynas", ("activation",))
    assert loaded.sources == ("library.txt",)
    assert str(tmp_path) not in (loaded.folder / "table.json").read_text()
    source = hashlib.sha256((tmp_path / "library.txt").read_bytes()).hexdigest()
    assert loaded.calibration["source_sha256"] == source
    assert sorted(path.name for path in loaded.folder.iterdir()) == ["raw.csv", "rows.csv", "table.json"]
    assert loaded.num_rows == 2 * (4 * 4 * 4 + 2 * 4)  # the stem at stride 2 has no group here


def test_raw_lines_survive_the_import(tmp_path, small_grid):
    loaded = imported(tmp_path)
    kept, read = read_library(loaded.folder / "raw.csv", keep_order=True), read_library(tmp_path / "library.txt")
    assert kept.latency_ms.tolist() == read.latency_ms.tolist()
    assert kept.out_channels.tolist() == read.out_channels.tolist()


def test_look_ups_interpolate_the_raw_lines_in_their_order(tmp_path, small_grid):
    """Unlike the made lines, these values are not flat: the diagonals, so the order, decide between the points."""
    rng = np.random.default_rng(3)
    points = [(out_c, side) for side in SIDES for out_c in WIDTHS]  # ascending, so other than the published order
    raw = [line(out_c, out_c, side, rng.uniform(1, 9)) for out_c, side in points]
    widths = np.arange(9, 64)
    found = imported(tmp_path, raw).op_latency(conv(widths, widths, 13)).ms * 32
    library = read_library(tmp_path / "library.txt")
    ours, other = (
        TinyNasPredictor(one).estimate(ConvForm(1), batch=32, in_channels=widths, out_channels=widths, side=13).ms
        for one in (library, library.in_published_order())
    )
    np.testing.assert_allclose(found, ours)
    assert not np.allclose(ours, other)


def test_rows_are_milliseconds_per_image(tmp_path, small_grid):
    loaded = imported(tmp_path)
    forms = [{}, {"kernel": 3}, {"kernel": 3, "residual": True}, {"kernel": 3, "residual": True, "stride": 2}]
    for number, form in enumerate(forms):
        found = loaded.op_latency(conv(24, np.array([24, 8, 64]), **form))
        expected = planar_ms(24, np.array([24, 8, 64]), 20, form=number) / 32
        np.testing.assert_allclose(found.ms, expected, rtol=1e-7)
        np.testing.assert_allclose(found.sigma_ms, found.ms * loaded.uncertainty["relative"], rtol=1e-6, atol=1e-12)
        assert found.status.tolist() == [EXACT] * 3
    assert loaded.op_latency(conv(3, 24, kernel=3)).ms * 32 == pytest.approx(7 + 24 + 20)
    assert loaded.op_latency(conv(12, 24, kernel=3)).status == EXACT


def test_rows_beyond_the_measurements_are_flagged(tmp_path, small_grid):
    loaded = imported(tmp_path)
    assert loaded.op_latency(conv(96, 8)).status == EXTRAPOLATED  # ratio 12
    assert loaded.op_latency(conv(96, 96)).status == EXTRAPOLATED  # width beyond the grid


def test_off_the_rows_the_raw_lines_are_interpolated(tmp_path, small_grid):
    loaded = imported(tmp_path)
    found = loaded.op_latency(conv(np.array([24, 20, 20]), np.array([24, 20, 200]), 20))
    np.testing.assert_allclose(found.ms[:2] * 32, [planar_ms(24, 24, 20), planar_ms(20, 20, 20)], rtol=1e-7)
    assert found.status.tolist() == [EXACT, MODELLED, EXTRAPOLATED]
    assert loaded.op_latency(conv(24, 24, 33)).status == MODELLED


def test_activations_are_ignored(tmp_path, small_grid):
    loaded = imported(tmp_path)
    assert loaded.op_latency(conv(24, 24, activation="silu")).ms == loaded.op_latency(conv(24, 24)).ms
    assert any("activation is ignored" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "op",
    [
        conv(8, 8, kernel=5),
        conv(8, 8, depthwise=True),
        conv(8, 8, kernel=3, stride=2),
        Op("pool", 8, 8, (20, 20), (20, 20), 5),
        Op("concat", 8, 8, (20, 20), (20, 20)),
        Op("conv", 8, 8, (20, 10), (20, 10)),
    ],
)
def test_operators_without_a_group_are_missing(tmp_path, small_grid, op):
    found = imported(tmp_path).op_latency(op)
    assert np.isnan(found.ms)
    assert found.status == MISSING


def test_several_batches_need_a_choice(tmp_path, small_grid):
    lines = made_lines(batches=(1, 32), forms=((1, 1, 0),))
    with pytest.raises(LatencyTableError, match=r"library.txt: holds the batch sizes 1, 32; say which one to import"):
        imported(tmp_path, lines)
    with pytest.raises(LatencyTableError, match=r"library.txt: batch is 8; expected one of 1, 32"):
        imported(tmp_path, lines, batch=8)
    loaded = imported(tmp_path, lines, batch=1)
    assert (loaded.batch, loaded.scale) == (1, 1.0)
    assert loaded.op_latency(conv(24, 24)).ms == pytest.approx(planar_ms(24, 24, 20, batch=1), rel=1e-6)
    assert set(read_library(loaded.folder / "raw.csv").batch.tolist()) == {1}


def test_a_library_of_failures_is_refused(tmp_path):
    with pytest.raises(LatencyTableError, match=r"library.txt: every measurement failed"):
        imported(tmp_path, [line(8, 8, 5, -1)])


def test_existing_tables_and_odd_names_are_refused_before_any_work(tmp_path, small_grid, monkeypatch):
    first = imported(tmp_path)
    assert imported(tmp_path, force=True).table_hash == first.table_hash
    monkeypatch.setattr(importer, "read_library", lambda path: pytest.fail("read although the place is taken"))
    with pytest.raises(OutputError, match="made: exists already; use force"):
        imported(tmp_path)
    for name in ("../made", "a/b", "a b", ""):
        with pytest.raises(LatencyTableError, match="is not usable; expected a plain name"):
            import_tinynas(tmp_path / "library.txt", name, tmp_path / "tables")


def test_a_failing_import_leaves_nothing(tmp_path, small_grid, monkeypatch):
    def full_disk(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        imported(tmp_path)
    assert list((tmp_path / "tables").iterdir()) == []


def test_changed_raw_lines_are_noticed(tmp_path, small_grid):
    folder = imported(tmp_path).folder
    text = (folder / "raw.csv").read_text()
    (folder / "raw.csv").write_text(text.replace("32,256,40", "32,256,41", 1))
    with pytest.raises(LatencyTableError, match=r"raw.csv: its sha256 is .*raw_sha256.*the file was changed"):
        load_table(folder)


def test_imports_of_one_day_are_equal_and_the_file_counts(tmp_path, small_grid):
    one = imported(tmp_path)
    (tmp_path / "again").mkdir()
    assert imported(tmp_path / "again").table_hash == one.table_hash
    (tmp_path / "other").mkdir()
    lines = made_lines()
    lines[0] = line(256, 64, 40, 99.0)
    assert imported(tmp_path / "other", lines).table_hash != one.table_hash


def test_progress_rises_from_zero_to_one(tmp_path, small_grid):
    seen = []
    imported(tmp_path, progress=seen.append)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert seen == sorted(seen)
    assert len(seen) > 5


def test_implausible_rates_are_noted(tmp_path, small_grid):
    flops = 2 * 64 * 64 * 9 * 20 * 20  # per image
    slow = [*made_lines(), line(64, 64, 20, 1e3 * flops / 10e12, kernel=3)]
    assert peak_tflops(read_library(write(tmp_path, slow)), 1) == pytest.approx(10, rel=1e-6)
    notes = imported(tmp_path, slow).notes
    assert any(
        "implies up to 320 TFLOP/s, more than the 125" in note and "batch 1, it is 10." in note for note in notes
    )
    plain = imported(tmp_path, force=True).notes
    assert not any("more than" in note for note in plain)


def test_held_out_errors(tmp_path):
    exact = held_out_errors(read_library(write(tmp_path, made_lines())))
    assert exact["n"] > 10
    assert exact["p90"] < 1e-6
    few = held_out_errors(read_library(write(tmp_path, [line(8, 8, 5, 1.0)])))
    assert few["n"] == 0


# Parity with the reference tool

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
LIBRARY = SHARED / "latency" / "tinynas_raw" / "conv_data.out.fp16.damoyolo"
FP16_CSV = SHARED / "latency" / "v100_tensorrt_fp16_conv.csv.gz"
STRUCTURES = SHARED / "published_structures"
needs_shared = pytest.mark.skipif(not LIBRARY.is_file(), reason="the published library is not in ../shared")

START = ((48, 32, 1, 2), (96, 48, 1, 2), (96, 96, 1, 2), (192, 96, 1, 1), (384, 192, 1, 2))
TUTORIAL = ((96, 24, 1, 2), (96, 96, 2, 2), (256, 128, 3, 2), (256, 144, 3, 1), (512, 224, 3, 2))
# Source, kernel of the first convolution of a unit, operators; ms per image: damoyolo, fp16 batch 32, fp16 batch 1.
NETWORKS = {
    "T": ("tinynas_L20_k1kx.txt", 1, 23, 0.08378, 0.2191, 0.5881),
    "S": ("tinynas_L25_k1kx.txt", 1, 28, 0.11996, 0.3033, 0.7616),
    "M": ("tinynas_L35_kxkx.txt", 3, 38, 0.40037, 0.8105, 1.9756),
    "L": ("tinynas_L45_kxkx.txt", 3, 48, 0.70482, 1.5230, 3.3627),
    "N": ("tinynas_L20_k1kx_nano.txt", 1, 23, 0.06938, 0.1696, 0.5063),
    "Ns": ("tinynas_nano_small.txt", 1, 24, 0.06597, 0.1385, 0.5041),
    "Nm": ("tinynas_nano_middle.txt", 1, 24, 0.06734, 0.1659, 0.5150),
    "Nl": ("tinynas_nano_large.txt", 1, 25, 0.07900, 0.1962, 0.6053),
    "tutorial": (TUTORIAL, 1, 28, 0.11992, 0.2828, 0.8413),
    "start k1kx": (START, 1, 15, 0.04914, 0.1468, 0.3873),
    "start kxkx": (START, 3, 15, 0.07977, 0.2097, 0.4966),
}
CHECKS = {  # kernel, in_channels, side, out_channels: ms of a batch of 32
    (3, 12, 320, 32): "0.173099",
    (3, 3, 320, 32): "0.111404",
    (3, 64, 40, 64): "0.090918",
    (3, 512, 20, 512): "0.454286",
    (3, 640, 20, 640): "0.465398",
    (3, 32, 640, 32): "0.321245",
    (3, 32, 320, 32): "0.321245",
    (1, 256, 20, 64): "0.062793",
    (1, 8, 20, 512): "0.039661",
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Convolutions of the reference's graph of each network."""
    folder = tmp_path_factory.mktemp("structures")
    lowered = {}
    for name, (source, first_kernel, *_) in NETWORKS.items():
        path = STRUCTURES / source if isinstance(source, str) else official_file(folder / name, source, first_kernel)
        lowered[name] = [op for op in lower_reference(import_reference(path)) if op.kind == "conv"]
    return lowered


def official_file(path: Path, blocks, first_kernel) -> Path:
    """A search result with a stem of 32 and blocks given as (out, btn, L, s)."""
    kind = "SuperResK1KX" if first_kernel == 1 else "SuperResKXKX"
    records, width = [{"class": "ConvKXBNRELU", "in": 12, "out": 32, "k": 3, "s": 1}], 32
    for out, btn, depth, stride in blocks:
        records.append({"class": kind, "in": width, "out": out, "btn": btn, "k": 3, "s": stride, "L": depth})
        width = out
    path.write_text(json.dumps(records))
    return path


def network_ms(predictor, ops) -> float:
    """Milliseconds per image at batch 32."""
    forms = [ConvForm(op.kernel_size, op.stride, op.residual) for op in ops]
    places = [(op.in_channels, op.out_channels, op.in_size[0]) for op in ops]
    return sum(ask(predictor, *place, form)[0] for place, form in zip(places, forms, strict=True)) / 32


@pytest.fixture(scope="module")
def damoyolo():
    return TinyNasPredictor(read_library(LIBRARY))


@needs_shared
@pytest.mark.parametrize(("setting", "expected"), CHECKS.items())
def test_parity_of_single_operators(damoyolo, setting, expected):
    kernel, in_c, side, out_c = setting
    assert f"{ask(damoyolo, in_c, out_c, side, ConvForm(kernel))[0]:.6f}" == expected


@needs_shared
@pytest.mark.parametrize("name", NETWORKS)
def test_parity_of_networks(damoyolo, networks, name):
    _, _, num_ops, expected, *_ = NETWORKS[name]
    assert len(networks[name]) == num_ops
    assert round(network_ms(damoyolo, networks[name]), 5) == expected


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(("batch", "column"), [(32, 4), (1, 5)])
def test_parity_of_an_imported_csv(tmp_path, small_grid, networks, batch, column):
    """All look-ups but a few go to raw.csv here, so this also covers its order."""
    table = load_table(import_tinynas(FP16_CSV, "fp16", tmp_path, batch))
    found = {name: predict(ops, table).latency_ms for name, ops in networks.items()}
    for name, ms in found.items():
        expected = NETWORKS[name][column]
        print(f"batch {batch:2} {name:10} {ms:.4f} {expected:.4f} ms per image, {ms / expected - 1:+.3%}")
    assert found == {name: pytest.approx(NETWORKS[name][column], abs=0.51e-4) for name in NETWORKS}


@needs_shared
def test_order_of_lines_matters(networks):
    """Totals of the sorted, averaged CSV differ from those of the raw file, as known; reading it puts that right."""
    path = SHARED / "latency" / "v100_tensorrt_fp16_conv_damoyolo.csv.gz"
    as_sorted = TinyNasPredictor(read_library(path, keep_order=True))
    as_published = TinyNasPredictor(read_library(path))
    for name, expected in {"T": 0.083764, "S": 0.119777, "M": 0.400373, "L": 0.704817, "Nm": 0.070833}.items():
        assert round(network_ms(as_sorted, networks[name]), 6) == expected
    for name, ops in networks.items():
        assert round(network_ms(as_published, ops), 5) == NETWORKS[name][3]


@needs_shared
def test_published_order_is_that_of_the_published_library(damoyolo, networks):
    library = damoyolo.library
    for kernel, fused in itertools.product((1, 3), (False, True)):
        at = (library.kernel_size == kernel) & (library.fused == fused)
        side, out_c = library.side[at], library.out_channels[at]
        assert (np.diff(side) <= 0).all()
        (restart,) = np.flatnonzero((np.diff(side) == 0) & (np.diff(out_c) > 0))
        assert side[restart] == 6  # the only side that occurs twice: its lines are there in two passes
    reordered = TinyNasPredictor(library.in_published_order())
    for name in NETWORKS:
        assert network_ms(reordered, networks[name]) == pytest.approx(network_ms(damoyolo, networks[name]), rel=1e-12)


@needs_shared
def test_known_facts_of_the_published_library(damoyolo):
    library = damoyolo.library
    settings = np.stack([library.in_channels, library.side, library.out_channels, library.kernel_size, library.stride])
    num_distinct = np.unique(np.vstack([settings, library.fused]), axis=1).shape[1]
    assert (len(library), len(library) - num_distinct, library.batches) == (13_364, 536, (32,))
    assert (round(peak_tflops(library, 32)), round(peak_tflops(library, 1), 1)) == (340, 10.6)
    errors = held_out_errors(library)
    assert (errors["mean"], errors["median"], errors["p90"]) == pytest.approx((0.058, 0.031, 0.138), rel=0.1)


@pytest.mark.slow
@needs_shared
def test_full_import(tmp_path, networks):
    table = load_table(import_tinynas(LIBRARY, "damoyolo", tmp_path))
    assert table.num_rows == 83_200
    for (kernel, in_c, side, out_c), expected in CHECKS.items():
        found = table.op_latency(conv(in_c, out_c, side, kernel=kernel))
        assert f"{found.ms * 32:.6f}" == expected
    for name, ops in networks.items():
        assert round(predict(ops, table).latency_ms, 5) == NETWORKS[name][3], name
    notes = json.loads((table.folder / "table.json").read_text())["notes"]
    assert any("340 TFLOP/s" in note for note in notes)
