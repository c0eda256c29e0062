"""What is taken for what: by hand, and sums that must come out."""

from __future__ import annotations

import numpy as np
from evaluation_cases import dataset, found, random_case, record
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.confusion import confusion_matrix


def test_by_hand():
    truth = dataset(
        record([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], [0, 1, 1]),
        record([[0, 0, 10, 10]], [2], image_id=2),
    )
    detections = [
        # Right; a dog taken for a cat; a fox where nothing is. The second dog is missed.
        found((0, 0, 10, 10, 0.9, 0), (21, 0, 31, 10, 0.8, 0), (80, 80, 90, 90, 0.7, 2)),
        # Below the threshold.
        found((0, 0, 10, 10, 0.3, 2)),
    ]
    confusion = confusion_matrix(truth, detections, score_threshold=0.5)
    assert confusion.counts.tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 1],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
    ]
    assert confusion.most_confused() == [("dog", "cat", 1)]
    assert confusion_matrix(truth, detections, score_threshold=0.1).counts[2].tolist() == [0, 0, 1, 0]
    assert confusion.to_dict()["counts"][3] == [0, 0, 1, 0] and confusion.to_dict()["score_threshold"] == 0.5


def test_the_largest_overlap_has_the_box():
    truth = dataset(record([[0, 0, 10, 10]], [0]))
    # The worse score lies better: it gets the box, the other one has none.
    counts = confusion_matrix(
        truth, [found((2, 0, 12, 10, 0.9, 1), (0, 0, 10, 10, 0.6, 0))], score_threshold=0.1
    ).counts
    assert counts[0].tolist() == [1, 0, 0, 0] and counts[3].tolist() == [0, 1, 0, 0]
    # Of two that lie the same the better score.
    counts = confusion_matrix(
        truth, [found((0, 0, 10, 10, 0.6, 0), (0, 0, 10, 10, 0.9, 1))], score_threshold=0.1
    ).counts
    assert counts[0].tolist() == [0, 1, 0, 0]


def test_ignored_boxes_take_part_in_nothing():
    truth = dataset(record([[0, 0, 50, 50], [60, 60, 70, 70]], [0, 0], ignored=[True, False]))
    detections = [found((0, 0, 10, 10, 0.9, 1), (60, 60, 70, 70, 0.8, 0))]
    counts = confusion_matrix(truth, detections, score_threshold=0.1).counts
    assert counts.sum() == 1 and counts[0, 0] == 1


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), score=st.sampled_from([0.0, 0.5, 0.9]))
def test_rows_are_boxes_and_columns_detections(seed, score):
    truth, detections = random_case(
        np.random.default_rng(seed), num_images=3, num_classes=4, most_boxes=10, most_found=30
    )
    counts = confusion_matrix(truth, detections, score_threshold=score).counts
    boxes = sum(
        (np.bincount(entry.labels[~entry.ignored], minlength=4) for entry in truth.images), np.zeros(4, np.int64)
    )
    above = sum(
        (np.bincount(entry.filter(score=score).labels, minlength=4) for entry in detections), np.zeros(4, np.int64)
    )
    assert counts[:-1].sum(axis=1).tolist() == boxes.tolist()
    assert (counts[:, :-1].sum(axis=0) <= above).all() and counts[-1, -1] == 0
