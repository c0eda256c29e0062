"""What users do with detections: filter, rescale, convert."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detector.errors import InputError, MissingExtraError
from detector.types import Detections, class_indices

NAMES = ("cat", "traffic light", "dog")


@pytest.fixture
def found():
    """Three objects on an image 100 high and 200 wide; the last reaches out of it, the middle one has no area."""
    boxes = np.array([[10, 20, 30, 60], [50, 50, 50, 70], [-12.3, 90, 220, 140]], np.float32)
    scores, labels = np.array([0.9, 0.6, 0.3], np.float32), np.array([2, 0, 1])
    return Detections(boxes, scores, labels, (100, 200), NAMES)


def test_names_and_iteration(found):
    assert found.names == ["dog", "cat", "traffic light"]
    assert next(iter(found)) == ((10.0, 20.0, 30.0, 60.0), 0.9, 2, "dog")
    assert found.select(np.array([2, 0])).names == ["traffic light", "dog"]
    unnamed = Detections(found.boxes, found.scores, found.labels, (100, 200))
    assert unnamed.names == ["2", "0", "1"]
    assert list(Detections.empty((4, 4))) == []


def test_labels_beyond_the_names_are_refused(found):
    with pytest.raises(ValueError, match="labels hold 2; class_names has 2 entries"):
        Detections(found.boxes, found.scores, found.labels, (100, 200), NAMES[:2])


def test_filter(found):
    assert found.filter(score=0.6).names == ["dog"]  # strictly above
    assert found.filter(min_area=0).names == ["dog", "traffic light"]
    assert found.filter(min_area=800).names == ["traffic light"]  # 20 * 40 is not above 800
    assert found.filter(classes=["dog", 1]).names == found.filter(classes=("1", 2)).names == ["dog", "traffic light"]
    assert found.filter(classes="traffic light").names == ["traffic light"]
    assert len(found.filter(classes=[])) == 0
    assert len(found.filter()) == 3
    assert found.filter(score=0.5, min_area=0).class_names == NAMES


def test_unknown_classes_are_named(found):
    with pytest.raises(InputError, match=r"class 'dgo' is unknown; expected one of 3 names .*; did you mean 'dog'\?"):
        found.filter(classes=["dgo"])
    with pytest.raises(InputError, match=r"class 3 is unknown; .* or an index below 3"):
        found.filter(classes=[3])
    with pytest.raises(InputError, match="class -1 is unknown"):
        found.filter(classes=[-1])
    with pytest.raises(InputError, match="class names are not known"):
        class_indices(["dog"], None)
    assert class_indices(["3", 7], None) == [3, 7]
    assert class_indices(["10"], ("a", "10")) == [1]  # a name goes first


def test_rescale_has_independent_factors(found):
    scaled = found.rescale((50, 600))
    assert scaled.image_size == (50, 600) and scaled.boxes.dtype == np.float32
    assert scaled.boxes[0].tolist() == [30, 10, 90, 30]
    assert scaled.class_names == NAMES and np.array_equal(scaled.scores, found.scores)
    assert found.boxes[0].tolist() == [10, 20, 30, 60]


def test_clip(found):
    clipped = found.clip()
    assert clipped.boxes.tolist() == [[10, 20, 30, 60], [50, 50, 50, 70], [0, 90, 200, 100]]
    assert clipped.boxes.dtype == np.float32
    outside = Detections(np.array([[210, 5, 230, 9]], np.float32), np.ones(1, np.float32), np.zeros(1, int), (100, 200))
    assert len(outside.clip().filter(min_area=0)) == 0


def test_coco_entries_are_plain_json(found):
    entries = found.to_coco(7)
    assert entries[0] == {"image_id": 7, "category_id": 2, "bbox": [10, 20, 20, 40], "score": 0.9}
    assert entries[2]["bbox"][0] == -12.3
    assert json.loads(json.dumps(entries)) == entries
    assert [entry["category_id"] for entry in found.to_coco(7, category_ids=[17, 10, 18])] == [18, 17, 10]
    assert Detections.empty((4, 4)).to_coco(1) == []


def test_plain_numbers_are_the_same_numbers():
    values = np.random.default_rng(0).uniform(-1e4, 1e4, (500, 4)).astype(np.float32)
    found = Detections(values, values[:, 0], np.zeros(500, int), (9, 9))
    assert np.array_equal(np.array([entry.box for entry in found], np.float32), values)


def test_json(found):
    record = json.loads(found.to_json())
    assert record["image_size"] == [100, 200]
    assert record["detections"][0] == {"box": [10, 20, 30, 60], "score": 0.9, "label": 2, "name": "dog"}
    assert len(record["detections"]) == 3


def test_pandas(found):
    pytest.importorskip("pandas")
    table = found.to_pandas()
    assert list(table.columns) == ["x1", "y1", "x2", "y2", "score", "label", "name"]
    assert table.iloc[0]["y2"] == 60 and table["name"].tolist() == found.names
    assert len(Detections.empty((4, 4)).to_pandas()) == 0


def test_supervision(found):
    pytest.importorskip("supervision")
    theirs = found.to_supervision()
    assert np.array_equal(theirs.xyxy, found.boxes) and np.array_equal(theirs.confidence, found.scores)
    assert theirs.class_id.tolist() == [2, 0, 1] and theirs["class_name"].tolist() == found.names
    assert len(theirs[theirs.confidence > 0.5]) == 2
    assert len(Detections.empty((4, 4)).to_supervision()) == 0


def test_supervision_that_is_missing_says_what_to_install(found, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(MissingExtraError, match="converting to supervision needs the package supervision"):
        found.to_supervision()
