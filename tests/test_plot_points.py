"""Points that may share a picture, and the front: by hand, and against its definition on random points."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plot_cases import HERE, point, points_file, row

from maenas.errors import PlotError
from maenas.frontier import load_frontier, parse_frontier
from maenas.plot_labels import place_labels
from maenas.plot_picture import draw
from maenas.plot_points import Filters, frontier_points, grouped, pareto_front, points_csv
from maenas.published import PUBLISHED, PUBLISHED_FACTS, load_published

figures = st.floats(min_value=0.1, max_value=50.0) | st.integers(1, 6).map(float)


@given(st.lists(st.tuples(figures, st.none() | figures), max_size=25))
def test_the_front_is_what_no_other_point_beats(pairs):
    points = [point(ms, ap, label=str(number)) for number, (ms, ap) in enumerate(pairs)]

    def beaten(one):
        return any(
            other.ap is not None
            and other.latency_ms <= one.latency_ms
            and other.ap >= one.ap
            and (other.latency_ms, other.ap) != (one.latency_ms, one.ap)
            for other in points
        )

    expected = [one for one in points if one.ap is not None and not beaten(one)]
    front = pareto_front(points)
    assert sorted(one.label for one in front) == sorted(one.label for one in expected)
    assert [one.latency_ms for one in front] == sorted(one.latency_ms for one in front)


def test_the_front_by_hand():
    points = [
        point(3.0, 40.0),
        point(1.0, 30.0),
        point(2.0, 29.0),
        point(2.5, None),
        point(4.0, 40.0),
        point(3.0, 40.0),
    ]
    assert [(one.latency_ms, one.ap) for one in pareto_front(points)] == [(1.0, 30.0), (3.0, 40.0), (3.0, 40.0)]


def test_predictions_push_no_measurement_off_the_front():
    slow, guess = point(3.0, 40.0), point(2.0, 41.0, latency_status="predicted")
    (group,) = grouped([slow, guess])
    assert group.points == (guess, slow) and group.front == (slow,)
    (group,) = grouped([guess])
    assert group.front == (guess,)


@pytest.mark.parametrize(
    "change",
    [
        {"device": "Other CPU"},
        {"runtime": "OpenVINO 2025.1"},
        {"precision": "int8"},
        {"batch": 8},
        {"threads": 2},
        {"nms": "yes"},
        {"protocol": "self-reported"},
        {"measured_by": "somebody"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_unlike_latencies_need_a_word(change):
    points = [point(1.0, 30.0), point(2.0, 40.0, conditions=replace(HERE, **change))]
    with pytest.raises(PlotError, match=r"measured in 2 unlike ways: Some CPU.*; .*--mix"):
        grouped(points)
    assert len(grouped(points, mix=True)) == 2


def test_accuracy_on_other_images_is_refused_even_when_mixed():
    with pytest.raises(PlotError, match=r"on 2 sets of images: cells; COCO val2017; .*--data"):
        grouped([point(1.0, 30.0), point(2.0, 40.0, data="COCO val2017")], mix=True)


def test_networks_without_accuracy_go_with_any_images():
    (group,) = grouped([point(1.0, None), point(2.0, 40.0)])
    assert len(group.points) == 2


def test_nothing_to_draw():
    with pytest.raises(PlotError, match="no point is left to draw"):
        grouped([])


def test_an_unknown_choice_of_names():
    with pytest.raises(PlotError, match="labels is 'some'; expected one of auto, all, front, none"):
        draw(grouped([point(1.0, 30.0)]), labels="some")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), [1.0, 2.0, 3.0]),
        (Filters(device=("some", "t4")), [1.0, 3.0]),
        (Filters(device=("T4",)), [3.0]),
        (Filters(runtime=("tensorrt",)), [3.0]),
        (Filters(precision=("fp16", "int8")), [3.0]),
        (Filters(nms=("unspecified",)), []),
        (Filters(data=("COCO",)), [3.0]),
        (Filters(family=("rival",)), [1.0, 3.0]),
        (Filters(extra_data=False), [1.0, 3.0]),
    ],
)
def test_filters(filters, expected):
    t4 = replace(HERE, device="NVIDIA T4 ", runtime="TensorRT", precision="fp16")
    points = [
        point(1.0, 30.0),
        point(2.0, 40.0, own=False, series="Other", conditions=replace(HERE, device="Else"), extra_data="unspecified"),
        point(3.0, 50.0, own=False, series="Rivals", conditions=t4, data="COCO val2017"),
    ]
    assert [one.latency_ms for one in points if filters.keep(one)] == expected


def test_the_shipped_points_agree_with_the_published_facts():
    rows = load_frontier()
    named = {(entry.structure, entry.distilled): entry for entry in rows if entry.structure}
    for name, facts in PUBLISHED_FACTS.items():
        assert (named[name, "no"].ap, named[name, "no"].latency_ms) == (facts.ap, facts.latency_ms)
        if facts.ap_distilled is not None:
            assert named[name, "yes"].ap == facts.ap_distilled
    digests = {one.digest for one in frontier_points(rows)} - {""}
    assert digests == {load_published(name).digest for name in PUBLISHED if name in PUBLISHED_FACTS}


def test_protocols_of_the_shipped_points_are_alike_inside():
    rows = load_frontier()
    for protocol in {entry.protocol for entry in rows} - {"self-reported"}:
        (group,) = grouped(frontier_points([entry for entry in rows if entry.protocol == protocol]))
        assert len(group.front) >= 3
    with pytest.raises(PlotError, match="unlike ways"):
        grouped(frontier_points([entry for entry in rows if entry.protocol == "self-reported"]))


GOOD = points_file(row())


def test_a_points_file_is_read_as_written():
    (entry,) = parse_frontier(points_file(row(note="a, b")), source="x.csv")
    assert (entry.model, entry.ap, entry.latency_ms, entry.threads, entry.gflops) == ("Rival-S", 40.0, 10.0, 1, None)
    assert entry.note == "a, b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,ap\n", r"x.csv: line 1 is 'model,ap'; expected '# maenas points, schema_version 1'"),
        (GOOD.replace("version 1", "version 7"), "schema_version is 7; expected 1"),
        (GOOD.replace(",ap,", ",AP,", 1), r"x.csv: line 2 is .*lacks 'ap'; unknown: 'AP'"),
        (points_file(row(ap="120")), "line 3: ap is '120'; expected a number above 0, at most 100"),
        (points_file(row(latency_ms="nan")), "line 3: latency_ms is 'nan'"),
        (points_file(row(), row(batch="0")), "line 4: batch is '0'; expected a whole number"),
        (points_file(row(nms="maybe")), "nms is 'maybe'; expected one of yes, no, unspecified"),
        (points_file(row(device=" ")), "device is empty"),
        (
            points_file(row(structure="damo-yolo-q")),
            "structure is 'damo-yolo-q'; expected nothing, or one of damo-yolo-t",
        ),
        (points_file(row(model="x" * 300)), "model is 'xxx.*expected at most 200 printable"),
        (GOOD + "a,b\n", "line 4: has another number of entries"),
        (GOOD + '"open', "is not CSV after line 3"),
    ],
)
def test_malformed_points_files(text, message):
    with pytest.raises(PlotError, match=message):
        parse_frontier(text, source="x.csv")


@given(
    st.text(max_size=80)
    | st.integers(0, len(GOOD)).flatmap(lambda cut: st.text(max_size=6).map(lambda t: GOOD[:cut] + t + GOOD[cut:]))
)
def test_no_text_breaks_the_reader(text):
    try:
        rows = parse_frontier(text, source="x.csv")
    except PlotError as error:
        assert str(error).startswith("x.csv: ") and "\n" not in str(error)
    else:
        assert grouped(frontier_points(rows), mix=True) if rows else True


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(PlotError, match=r"none.csv: cannot be read as text \(No such file"):
        load_frontier(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlotError, match=r"bad\.csv: cannot be read as text"):
        load_frontier(tmp_path / "bad.csv")


def test_the_csv_of_a_picture():
    text = points_csv(grouped([point(2.0, 40.0, label="a, b"), point(1.0, None)]))
    first, second, third = text.splitlines()
    assert first.startswith("label,series,latency_ms,") and first.endswith(",measured_by,on_front")
    assert second.startswith("1.0 None,maenas,1,1,1,measured,,,,") and second.endswith(",no")
    assert third.startswith('"a, b",maenas,2,') and third.endswith(",yes")


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), max_size=12))
def test_names_stay_inside_the_picture(anchors):
    inside = (0.0, 0.0, 400.0, 300.0)
    placed = place_labels(anchors, [(40.0, 10.0)] * len(anchors), inside=inside)
    assert len(placed) == len(anchors)
    for spot in placed:
        assert 0 <= spot.left <= 360 and 0 <= spot.bottom <= 290


def test_names_keep_apart_where_there_is_room():
    placed = place_labels([(200.0, 150.0), (203.0, 150.0), (200.0, 154.0)], [(60.0, 10.0)] * 3, inside=(0, 0, 400, 300))
    for first in placed:
        for second in placed:
            apart = abs(first.left - second.left) >= 60 or abs(first.bottom - second.bottom) >= 10
            assert first is second or apart
