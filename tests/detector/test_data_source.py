"""The three formats say the same of the same pictures; the shared sets load; what is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL.Image")

from data_cases import box, coco, voc_object, write_coco, write_voc, write_yolo
from hypothesis import given
from hypothesis import strategies as st

from detector.data.cleaning import training_boxes
from detector.data.dataset import ImageRecord
from detector.data.source import load_data, load_split

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "detection"


def test_formats_agree(tmp_path):
    corners = [(0, 0, 30, 20, "cat"), (6, 4, 60, 40, "dog")]
    write_coco(tmp_path / "coco", coco([(1, "a.png")], [
        box(1, ("cat", "dog").index(name) + 1, [x1, y1, x2 - x1, y2 - y1]) for x1, y1, x2, y2, name in corners
    ]))  # fmt: skip
    lines = [
        f"{('cat', 'dog').index(name)} {(x1 + x2) / 120} {(y1 + y2) / 80} {(x2 - x1) / 60} {(y2 - y1) / 40}"
        for x1, y1, x2, y2, name in corners
    ]
    write_yolo(tmp_path / "yolo", {"a": "\n".join(lines)})
    write_voc(
        tmp_path / "voc", {"a": "".join(voc_object(name, (x1 + 1, y1 + 1, x2, y2)) for x1, y1, x2, y2, name in corners)}
    )
    for kind in ("coco", "yolo", "voc"):
        data = load_data(tmp_path / kind)
        (record,) = data.train.images
        assert data.class_names == ("cat", "dog") and record.size == (40, 60)
        np.testing.assert_allclose(record.boxes, [entry[:4] for entry in corners], atol=1e-4)
        assert record.labels.tolist() == [0, 1]
        np.testing.assert_allclose(record.areas, [600, 1944], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "train", "val", "classes"),
    [
        ("bccd", (205, 2804), (87, 1137), 3),
        ("cards", (296, 527), (67, 143), 6),
        ("coco_mini", (184, 1535), (50, 382), 80),
    ],
)
def test_the_shared_sets(name, train, val, classes):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    data = load_data(folder)
    assert len(data.class_names) == classes
    for split, (images, boxes) in ((data.train, train), (data.val, val)):
        assert len(split) == images and sum(len(record.labels) for record in split.images) == boxes
        assert all(record.path.is_file() for record in split.images)


def test_official_ids_with_gaps():
    folder = SHARED / "coco_mini"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    val = load_split(folder, "val")
    assert val.category_ids[0] == 1 and val.category_ids[-1] == 90 and val.class_names[-1] == "toothbrush"
    assert sum(int(record.ignored.sum()) for record in val.images) == 5
    assert all(record.polygons is not None for record in val.images if len(record.labels))


def record_of(boxes, labels, ignored, *, size=(40, 60), polygons=None):
    count = len(labels)
    return ImageRecord(
        1, Path("a.png"), size, np.array(boxes, np.float32).reshape(count, 4), np.array(labels, np.int64),
        np.array(ignored, np.bool_), np.ones(count, np.float32), polygons,
    )  # fmt: skip


def test_labels_and_outlines_go_with_their_boxes():
    boxes = [[-5, 2, 10, 50], [70, 5, 80, 9], [1, 1, 1, 9], [5, 5, 9, 9], [6, 6, 8, 8]]
    outlines = tuple(np.array([[x1, y1], [x2, y1], [x2, y2]], np.float32) for x1, y1, x2, y2 in boxes)
    record = record_of(boxes, [0, 1, 2, 3, 4], [0, 0, 0, 1, 0], polygons=outlines)
    kept, labels, polygons = training_boxes(record)
    assert kept.tolist() == [[0, 2, 10, 40], [6, 6, 8, 8]] and labels.tolist() == [0, 4]
    assert polygons[0].tolist() == [[0, 2], [10, 2], [10, 40]] and polygons[1].tolist() == outlines[4].tolist()
    assert record.boxes[0, 0] == -5, "the record stays as it is"


def test_the_size_of_the_image_that_was_read_counts():
    record = record_of([[0, 0, 100, 100]], [0], [0], size=None)
    assert training_boxes(record)[0].tolist() == [[0, 0, 100, 100]]
    assert training_boxes(record, size=(20, 30))[0].tolist() == [[0, 0, 30, 20]]
    assert training_boxes(record)[2] is None


@given(
    st.lists(st.tuples(*[st.floats(-100, 200, width=32)] * 4, st.integers(0, 9), st.booleans()), max_size=8),
    st.tuples(st.integers(1, 100), st.integers(1, 100)),
)
def test_training_boxes_lie_in_the_image_and_keep_their_labels(rows, size):
    record = record_of([row[:4] for row in rows], [row[4] for row in rows], [row[5] for row in rows], size=size)
    boxes, labels, _ = training_boxes(record)
    assert boxes.dtype == np.float32 and labels.dtype == np.int64 and len(boxes) == len(labels)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [size[1], size[0]]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    expected = []
    for x1, y1, x2, y2, label, ignored in rows:
        width, height = (
            min(max(x2, 0), size[1]) - min(max(x1, 0), size[1]),
            min(max(y2, 0), size[0]) - min(max(y1, 0), size[0]),
        )
        if not ignored and width > 0 and height > 0:
            expected.append(label)
    assert labels.tolist() == expected
