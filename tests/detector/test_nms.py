"""Suppression with numpy alone, held against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from detector import postprocess  # noqa: E402
from detector.nms import select_best, suppress  # noqa: E402

OPTIONS = {"score_threshold": 0.3, "iou_threshold": 0.5, "max_detections": 100}


def box_array(*rows):
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


@st.composite
def predictions(draw):
    """Few distinct scores and whole coordinates, so that ties, equal boxes and boxes without area are common."""
    points, classes = draw(st.integers(0, 60)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, draw(st.sampled_from([3, 1000])), (points, classes)).astype(np.float32)
    corners = rng.integers(0, 12, (points, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 12, (points, 2))], axis=1).astype(np.float32)
    return scores / max(1.0, scores.max(initial=0)), boxes


@settings(max_examples=300)
@given(predictions(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.sampled_from([0.0, 0.25, 1.0]), st.integers(1, 60))
def test_equals_torchvision(case, iou_threshold, score_threshold, max_detections):
    options = {
        "iou_threshold": iou_threshold,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
    }
    scores, boxes = case
    found = select_best(scores, boxes, **options)
    expected = postprocess.select_best(torch.from_numpy(scores), torch.from_numpy(boxes), **options)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
        assert ours.dtype == theirs.numpy().dtype


@pytest.mark.parametrize("count", [3000])
def test_equals_torchvision_on_many_candidates(count):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 100, (count, 2))], axis=1).astype(np.float32)
    scores = rng.uniform(0, 1, (count, 3)).astype(np.float32)
    options = {"score_threshold": 0.05, "iou_threshold": 0.6, "max_detections": 500}
    found = select_best(scores, boxes, **options)
    expected = postprocess.select_best(torch.from_numpy(scores), torch.from_numpy(boxes), **options)
    assert len(found[1]) == 500
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_thresholds_are_strict():
    # 10x10 against 10x5 inside it: IoU exactly one half, which is not above the threshold.
    boxes = box_array([0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6])
    scores = np.array([[0.9], [0.8], [0.7]], dtype=np.float32)
    kept = select_best(scores, boxes, score_threshold=0.3, iou_threshold=0.5, max_detections=9)
    # The third overlaps the first by 0.6 and goes.
    np.testing.assert_array_equal(kept[1], scores[:2, 0])
    assert len(select_best(scores, boxes, **{**OPTIONS, "score_threshold": float(scores[0, 0])})[1]) == 0


def test_one_box_may_have_several_classes_and_classes_do_not_suppress_each_other():
    scores = np.array([[0.9, 0.5], [0.8, 0.6]], dtype=np.float32)
    boxes = box_array([0, 0, 4, 4], [0, 0, 4, 4])
    _, found, labels = select_best(scores, boxes, **OPTIONS)
    np.testing.assert_array_equal(found, np.array([0.9, 0.6], dtype=np.float32))
    np.testing.assert_array_equal(labels, [0, 1])


def test_a_suppressed_box_suppresses_nothing():
    # Each overlaps the next by more than one half, the first and the third by less.
    boxes = box_array([0, 0, 10, 1], [3, 0, 13, 1], [6, 0, 16, 1])
    np.testing.assert_array_equal(suppress(boxes, 0.5, limit=9), [0, 2])
    np.testing.assert_array_equal(suppress(boxes, 0.5, limit=1), [0])


def test_boxes_without_area_stay():
    boxes = box_array([5, 5, 5, 5], [5, 5, 5, 5])
    np.testing.assert_array_equal(suppress(boxes, 0.1, limit=9), [0, 1])


def test_nothing_gives_nothing():
    boxes, scores, labels = select_best(np.zeros((0, 3), np.float32), box_array(), **OPTIONS)
    assert (boxes.shape, scores.shape, labels.shape, labels.dtype) == ((0, 4), (0,), (0,), np.int64)
