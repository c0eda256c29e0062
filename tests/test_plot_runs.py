"""Run folders to points: what is joined by the digest, what is kept apart, and one line for whatever is malformed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plot_cases import DATA, benchmark, evaluation, line, points_file, row, search, small, write_json, write_structure
from search_cases import has_table

from maenas.errors import MaenasError, PlotError
from maenas.frontier import load_frontier, parse_frontier
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.lowering.detector import lower
from maenas.plot_runs import run_points
from maenas.published import load_published

needs_t4 = pytest.mark.skipif(not has_table("t4-tensorrt-fp16"), reason="the T4 table is not in this checkout")


def points_of(*paths, frontier=(), tables=()):
    return run_points([str(path) for path in paths], frontier=frontier, tables=tables)


def test_accuracy_and_latency_are_joined_by_the_digest(tmp_path):
    one, other = small(3), small(4)
    write_structure(tmp_path / "train", one)
    write_json(tmp_path / "eval" / "eval.json", evaluation(one, 0.4))
    write_json(tmp_path / "bench.json", benchmark(line(other, 7.0), line(one, 5.0), line(None, 3.0)))
    points, notes = points_of(tmp_path)
    named = {point.digest: point for point in points}
    assert set(named) == {one.digest, other.digest}
    joined = named[one.digest]
    assert (joined.label, joined.ap, joined.latency_ms) == ("ns-3", 40.0, 5.0)
    assert (joined.latency_low_ms, joined.latency_high_ms) == (4.5, 6.0)
    assert (joined.latency_status, joined.ap_status) == ("measured", "measured")
    assert joined.data == "cells (val, 8fb71c1f3ca334f6)"
    assert joined.conditions.runtime == "OpenVINO 2026.4" and joined.conditions.nms == "no"
    assert joined.params_m is not None and joined.params_m > 1.0
    # Known from the benchmark alone: no accuracy, no structure, so the digest is its name.
    assert (named[other.digest].label, named[other.digest].ap, named[other.digest].params_m) == (
        other.digest,
        None,
        None,
    )
    assert [note for note in notes if "lines[2]: is no export of ours" in note]


def test_seeds_become_a_mean_with_a_bar(tmp_path):
    one = small()
    for seed, ap in enumerate((0.40, 0.43, 0.46)):
        write_json(tmp_path / f"seed{seed}" / "eval.json", evaluation(one, ap, model={"sha256": f"{seed}" * 64}))
    write_json(tmp_path / "bench.json", benchmark(line(one, 5.0)))
    ((point,), _) = points_of(tmp_path)
    assert point.ap == pytest.approx(43.0)
    assert (point.ap_low, point.ap_high, point.num_evaluations) == (pytest.approx(40.0), pytest.approx(46.0), 3)


def test_a_quantised_file_has_its_own_accuracy_or_none(tmp_path):
    one = small()
    whole = line(one, 3.0, precision="int8", sha256="c" * 64)
    write_json(tmp_path / "fp32" / "eval.json", evaluation(one, 0.40))
    write_json(tmp_path / "bench.json", benchmark(line(one, 5.0), whole))
    points, notes = points_of(tmp_path)
    assert {point.conditions.precision: point.ap for point in points} == {"fp32": 40.0, "int8": None}
    assert [note for note in notes if "in int8 has no AP of its own" in note]
    write_json(tmp_path / "int8" / "eval.json", evaluation(one, 0.39, model={"sha256": "c" * 64}))
    points, _ = points_of(tmp_path)
    assert {point.conditions.precision: point.ap for point in points} == {"fp32": 40.0, "int8": 39.0}


def test_repeated_benchmarks_and_forms(tmp_path):
    one = small()
    lines = [line(one, ms) for ms in (5.0, 6.0, 9.0)]
    write_json(tmp_path / "bench.json", benchmark(*lines, line(one, 1.0, form="raw"), line(one, 12.0, form="nms")))
    points, _ = points_of(tmp_path)
    assert {point.conditions.nms: point.latency_ms for point in points} == {"no": 6.0, "yes": 12.0}


def test_measured_by_the_search_or_predicted(tmp_path):
    one = small()
    file = write_json(tmp_path / "search.json", search(one))
    ((point,), _) = points_of(file)
    assert (point.latency_status, point.latency_low_ms, point.latency_high_ms) == ("predicted", 4.75, 5.25)
    assert point.ap is None and point.conditions.device == "table-of-another-machine"
    write_json(file, search(one, measured={"finalist": one.digest, "measured_ms": 5.2}))
    ((point,), _) = points_of(file)
    assert (point.latency_status, point.latency_ms) == ("measured", 5.2)


def test_a_backbones_latency_is_no_detectors(tmp_path):
    file = write_json(tmp_path / "search.json", search(small(), request={"scope": "backbone", "graph": "deployed"}))
    points, notes = points_of(file)
    assert points == [] and "not the whole deployed detector's" in notes[0] and "--predict TABLE" in notes[1]


def test_training_counts_where_nothing_evaluates(tmp_path):
    one = small()
    write_structure(tmp_path / "train", one)
    write_json(tmp_path / "train" / "result.json", {"ended_by": "completed", "ap": 0.3, "best": {"ap": 0.35}})
    (tmp_path / "train" / "config.yaml").write_text("data:\n  path: cells\n", encoding="utf-8")
    write_json(tmp_path / "bench.json", benchmark(line(one, 5.0)))
    ((point,), _) = points_of(tmp_path)
    assert (point.ap, point.data) == (35.0, "cells (val, as training measures it)")
    write_json(tmp_path / "eval" / "eval.json", evaluation(one, 0.4))
    ((point,), _) = points_of(tmp_path)
    assert point.ap == 40.0


def test_coco_is_known_by_its_annotations(tmp_path):
    one = small()
    data = {**DATA, "name": "coco/annotations/instances_val2017.json", "num_images": 5000}
    write_json(tmp_path / "eval.json", evaluation(one, 0.4, data=data))
    write_json(tmp_path / "bench.json", benchmark(line(one, 5.0)))
    ((point,), _) = points_of(tmp_path)
    assert point.data == "COCO val2017"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("some/where/cells/annotations/val.json", "cells"),
        ("/some/where/cells/images/val", "cells"),
        ("cells", "cells"),
    ],
)
def test_a_set_is_known_by_its_folder_and_digest(tmp_path, name, short):
    """The same images moved elsewhere stay the same images."""
    structure = small()
    write_structure(tmp_path, structure)
    write_json(tmp_path / "eval.json", evaluation(structure, 0.5, data={"name": name}))
    write_json(tmp_path / "benchmark.json", benchmark(line(structure, 5.0)))
    points, _ = run_points([str(tmp_path)], frontier=())
    assert [each.data for each in points] == [f"{short} (val, {DATA['digest']})"]


def test_a_benchmark_that_measured_accuracy_too(tmp_path):
    one = small()
    content = benchmark(line(one, 5.0, ap=0.38), line(one, 3.0, ap=0.36, precision="int8", sha256="c" * 64))
    content["conditions"] = {"data": {"source": "cells/data.yaml", "split": "val"}}
    write_json(tmp_path / "bench.json", content)
    points, _ = points_of(tmp_path)
    assert {point.conditions.precision: point.ap for point in points} == {"fp32": 38.0, "int8": 36.0}
    assert {point.data for point in points} == {"cells/data.yaml (val)"}
    # Where the benchmark knows the annotations, its AP is comparable with evaluations.
    content["conditions"]["data"] |= DATA
    write_json(tmp_path / "bench.json", content)
    write_json(tmp_path / "eval.json", evaluation(one, 0.4, model={"sha256": "b" * 64}))
    points, _ = points_of(tmp_path)
    assert {point.conditions.precision: point.ap for point in points} == {"fp32": 40.0, "int8": 36.0}
    assert {point.data for point in points} == {"cells (val, 8fb71c1f3ca334f6)"}


def test_the_runners_up_of_a_search_are_no_results(tmp_path):
    write_json(tmp_path / "search.json", search(small(3)))
    write_json(tmp_path / "shortlist" / "02-abc.json", small(4).to_dict())
    points, _ = points_of(tmp_path)
    assert [point.digest for point in points] == [small(3).digest]


def test_equal_names_get_their_digests(tmp_path):
    one, other = small(3), replace(small(4), name="ns-3")
    for number, structure in enumerate((one, other)):
        write_json(tmp_path / f"{number}" / "search.json", search(structure))
    points, _ = points_of(tmp_path)
    assert {point.label for point in points} == {f"ns-3 {one.digest}", f"ns-3 {other.digest}"}


@needs_t4
def test_a_published_network_is_priced_and_has_its_published_accuracy():
    rows = load_frontier()
    points, notes = points_of("DAMO-YOLO-T", frontier=rows, tables=["t4"])
    expected = predict(lower(load_published("damo-yolo-t")), load_table("t4"))
    assert notes == []
    assert [(point.ap, point.distilled) for point in points] == [(42.0, "no"), (43.6, "yes")]
    for point in points:
        assert point.latency_ms == pytest.approx(expected.latency_ms)
        assert point.latency_high_ms == pytest.approx(expected.latency_ms + expected.sigma_ms)
        assert (point.latency_status, point.ap_status) == ("predicted", "published")
        # The table stands for what its laboratory would have measured.
        assert point.conditions.protocol == "damo-paper-t4"


@pytest.mark.skipif(not has_table("epyc-openvino-1t"), reason="the EPYC table is not in this checkout")
def test_a_table_that_lacks_operators_is_named(tmp_path):
    write_structure(tmp_path / "run", small())
    points, notes = points_of(tmp_path / "run", tables=["epyc-openvino-1t"])
    assert points == [] and "has no prediction; table epyc-openvino-1t lacks 3 operators" in notes[0]


def test_users_points_lend_their_accuracy_by_the_digest(tmp_path):
    ns = load_published("damo-yolo-ns")
    write_json(tmp_path / "bench.json", benchmark(line(ns, 5.0)))
    rows = parse_frontier(points_file(row(structure="damo-yolo-ns", ap="31.5")), source="x.csv")
    ((point,), _) = points_of(tmp_path, frontier=rows)
    assert (point.ap, point.ap_status, point.latency_status) == (31.5, "published", "measured")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (evaluation(small(), 1.4), r"run.json: metrics.ap is 1.4; expected a number from 0 to 1"),
        (evaluation(small(), 0.4, data={"digest": 3}), r"run.json: data.digest is 3; expected a printable text"),
        (evaluation(small(), 0.4, model={"structure": []}), r"run.json: model.structure is \[\]; expected a printable"),
        (benchmark(line(small(), -1.0)), r"lines\[0\].p50_ms is -1.0; expected a number|p25_ms is -0.9"),
        (benchmark(line(small(), 5.0, threads=True)), r"lines\[0\].threads is true; expected a whole number"),
        ({"lines": [3], "host": {}}, r"lines\[0\] is 3; expected an object"),
        (search(small(), latency_ms="5"), r'run.json.latency_ms is "5"; expected a number'),
        (benchmark(line(small(), 5.0, ap=0.4)), r"run.json: conditions.data is null; expected an object"),
        ({"structure": {}, "class_names": []}, r"run.json: structure: schema_version is null"),
        ({"backbone": 1, "neck": 2}, r"run.json: schema_version is null; expected 1"),
        ([1], "holds nothing to plot"),
        ({"a": 1}, "holds nothing to plot; expected a folder of maenas search"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    with pytest.raises(MaenasError, match=message) as caught:
        points_of(write_json(tmp_path / "run.json", content))
    assert "\n" not in str(caught.value)


def test_no_such_run(tmp_path):
    with pytest.raises(PlotError, match="nowhere: no such run folder or file, nor a published network's name"):
        points_of(tmp_path / "nowhere")


def test_what_cannot_count_is_named(tmp_path):
    one = small()
    write_json(tmp_path / "a" / "eval.json", evaluation(one, 0.4, model={"random_weights": True}))
    write_json(tmp_path / "b" / "eval.json", evaluation(one, None))
    write_json(tmp_path / "c" / "eval.json", evaluation(one, 0.4, model={"structure": None}))
    write_json(tmp_path / "d" / "eval.json", evaluation(one, 0.4, model={"structure": "0" * 12}))
    points, notes = points_of(tmp_path)
    assert points == []
    for text in ("its weights are random", "it has no AP", "without a structure of ours", "has an AP but no latency"):
        assert [note for note in notes if text in note]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CASES = {
    "eval": evaluation(small(), 0.4),
    "bench": benchmark(line(small(), 5.0)),
    "search": search(small()),
    "result": {"ended_by": "completed", "best": {"ap": 0.4}},
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(case=st.sampled_from(sorted(CASES)), value=json_values, data=st.data())
def test_no_json_breaks_the_reader(tmp_path, case, value, data):
    content = json.loads(json.dumps(CASES[case]))
    place = content
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    file = write_json(folder / "run.json", content)
    try:
        points_of(file)
    except MaenasError as error:
        assert "\n" not in str(error)
