"""Who has found what, AP of one class, and the best threshold: by hand and against COCO's figures."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import dataset, found, random_case, record
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.eval_matching import average_precision, match, overlaps
from detector.operating_points import best_point, point_at


def test_overlaps_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    truth = np.array([[5, 0, 15, 10], [0, 0, 100, 10], [3, 3, 3, 3]], np.float32)
    ious = overlaps(boxes, truth, np.array([False, True, False]))
    # 50 of 150; all of the detection's own area; nothing; a box without area overlaps nothing.
    np.testing.assert_allclose(ious, [[1 / 3, 1.0, 0.0], [0, 0, 0]])
    assert overlaps(boxes, truth[:0], np.zeros(0, np.bool_)).shape == (2, 0)


def test_better_scores_choose_first():
    truth = dataset(record([[0, 0, 10, 10], [2, 0, 12, 10]], [0, 0]))
    # The second detection fits the first box exactly, but comes later; IoU 8/12 with the other one is still enough.
    matches = match(truth, [found((0, 0, 10, 10, 0.6, 0), (1, 0, 11, 10, 0.9, 0), (50, 50, 60, 60, 0.5, 0))])
    # Of two equal overlaps (9/11 each) the last box is taken, as pycocotools does.
    assert matches.truth.tolist() == [1, 0, -1]
    np.testing.assert_allclose(matches.scores, [0.9, 0.6, 0.5])
    assert matches.correct.tolist() == [True, True, False] and not matches.missed.any()


def test_other_classes_and_ignored_boxes():
    truth = dataset(
        record([[0, 0, 10, 10]], [1]),
        record([[0, 0, 10, 10], [0, 0, 50, 50]], [0, 0], ignored=[False, True], image_id=2),
    )
    detections = [
        found((0, 0, 10, 10, 0.9, 0)),
        found((0, 0, 10, 10, 0.8, 0), (0, 0, 10, 10, 0.7, 0), (20, 20, 30, 30, 0.6, 0), (20, 20, 30, 30, 0.5, 1)),
    ]
    matches = match(truth, detections)
    assert matches.truth.tolist() == [-1, 1, -1, -1, -1]
    # The duplicate and the third lie in the ignored box of their class; the last has another class.
    assert matches.counted.tolist() == [True, True, False, False, True]
    assert matches.missed.tolist() == [True, False, False]
    assert matches.above(0.85).missed.tolist() == [True, True, False]


def test_only_a_hundred_of_a_class_count():
    rows = [(0, 0, 10, 10, 0.9 - 0.001 * k, 0) for k in range(100)]
    truth = dataset(record([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 1]))
    late = [(50, 50, 60, 60, 0.1, 0), (50, 50, 60, 60, 0.05, 1)]
    matches = match(truth, [found(*rows, *late)])
    assert matches.counted.sum() == 101 and matches.counted[-2:].tolist() == [False, True]


def test_average_precision_by_hand():
    # Right, wrong, right of three boxes: precision 1 to recall 1/3 (34 recalls), 2/3 to 2/3 (33 more), then 0.
    value = average_precision(np.array([0.9, 0.8, 0.7], np.float32), np.array([True, False, True]), 3)
    assert value == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert average_precision(np.zeros(0, np.float32), np.zeros(0, np.bool_), 3) == 0
    assert average_precision(np.zeros(0, np.float32), np.zeros(0, np.bool_), 0) is None


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), most_found=st.sampled_from([0, 10, 200]))
def test_ap50_of_every_class_is_cocos(seed, most_found):
    pytest.importorskip("faster_coco_eval")
    from detector.coco_metrics import coco_metrics

    rng = np.random.default_rng(seed)
    truth, detections = random_case(rng, num_images=4, num_classes=3, most_boxes=12, most_found=most_found)
    matches = match(truth, detections)
    for label, entry in enumerate(coco_metrics(truth, detections).classes):
        rows = matches.counted & (matches.labels == label)
        boxes = int((matches.truth_counted & (matches.truth_labels == label)).sum())
        ours = average_precision(matches.scores[rows], matches.correct[rows], boxes)
        assert ours == (None if entry.ap50 is None else pytest.approx(entry.ap50, abs=1e-9))


def test_the_best_threshold_by_hand():
    truth = dataset(record([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 1]))
    rows = [(0, 0, 10, 10, 0.9, 0), (80, 80, 90, 90, 0.5, 0), (50, 50, 60, 60, 0.4, 1), (80, 0, 90, 10, 0.2, 1)]
    matches = match(truth, [found(*rows)])
    # F1: 2/3 with one, 1/2 with two, 2 * (2/3) * 1 / (5/3) = 4/5 with three, 2/3 with four.
    best = best_point(matches)
    assert best is not None
    assert (best.precision, best.recall, best.f1) == (pytest.approx(2 / 3), 1, pytest.approx(0.8))
    assert best.score_threshold == pytest.approx(0.3)
    of_cat = best_point(matches, label=0)
    assert of_cat is not None and (of_cat.f1, of_cat.score_threshold) == (1, pytest.approx(0.7))
    assert best_point(matches, label=2) is None
    # Below the last score nothing is known but the threshold of the run.
    alone = best_point(match(truth, [found(rows[0])]), label=0, lowest_score=0.1)
    assert alone is not None and alone.score_threshold == pytest.approx(0.5)


def test_equal_scores_cannot_be_parted():
    truth = dataset(record([[0, 0, 10, 10]], [0]))
    best = best_point(match(truth, [found((0, 0, 10, 10, 0.5, 0), (50, 50, 60, 60, 0.5, 0))]))
    assert best is not None and best.precision == 0.5


def test_nothing_right():
    truth = dataset(record([[0, 0, 10, 10]], [0]))
    matches = match(truth, [found((50, 50, 60, 60, 0.5, 0))])
    assert best_point(matches) is None
    assert point_at(matches, 0.1).f1 == 0 and point_at(matches, 0.9).precision == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_other_threshold_is_better(seed):
    truth, detections = random_case(
        np.random.default_rng(seed), num_images=3, num_classes=2, most_boxes=8, most_found=20
    )
    matches = match(truth, detections)
    best = best_point(matches)
    others = [point_at(matches, value / 100 + 0.005).f1 for value in range(100)]
    assert max(others) == pytest.approx(0 if best is None else best.f1)
    if best is not None:
        assert point_at(matches, best.score_threshold).f1 == pytest.approx(best.f1)
