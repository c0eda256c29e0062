"""What each kind of error costs: every kind by hand, and bounds that hold for all cases."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import dataset, found, random_case, record
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.error_breakdown import KINDS, error_breakdown

BOX = [0, 0, 10, 10]
FAR = [60, 60, 70, 70]
RIGHT = (0, 0, 10, 10, 0.5, 0)


def breakdown(truth, *rows):
    result = error_breakdown(dataset(truth), [found(*rows)])
    counts = {share.kind: share.count for share in result.kinds if share.count}
    gains = {share.kind: share.delta_ap50 for share in result.kinds}
    return result, counts, gains


def test_no_errors():
    result, counts, gains = breakdown(record([BOX], [0]), RIGHT)
    assert result.ap50 == 1 and counts == {} and set(gains.values()) == {0} and list(gains) == list(KINDS)


def test_a_wrong_class():
    # AP50: cat 0 (its box is not found), dog has no box. With the right class the box is found.
    result, counts, gains = breakdown(record([BOX], [0]), (0, 0, 10, 10, 0.9, 1))
    assert result.ap50 == 0 and counts == {"classification": 1} and gains["classification"] == 1
    # Its box is covered by the classification error, so it is not missed; but it is a false negative.
    assert gains["missed"] == 0 and result.false_negatives.count == 1 and result.false_positives.count == 1


def test_an_inexact_place():
    # IoU 4 / 16 = 0.25.
    result, counts, gains = breakdown(record([BOX], [0]), (6, 0, 16, 10, 0.9, 0))
    assert result.ap50 == 0 and counts == {"localisation": 1} and gains["localisation"] == 1


def test_wrong_class_and_inexact_place():
    _, counts, gains = breakdown(record([BOX, FAR], [0, 1]), (6, 0, 16, 10, 0.9, 1), (60, 60, 70, 70, 0.5, 1))
    # Two detections of dog, the better one wrong: AP50 1/2. Without it 1. Mean with cat, which has 0: half of that.
    assert counts == {"both": 1, "missed": 1} and gains["both"] == pytest.approx(0.25)
    # The missed cat taken as not being there leaves dog alone, with 1/2 in place of 1/4.
    assert gains["missed"] == pytest.approx(0.25)


def test_a_duplicate():
    # The duplicate comes between two right ones: precision 1, 1/2, 2/3; AP50 (51 + 50 * 2/3) / 101.
    rows = [(0, 0, 10, 10, 0.9, 0), (1, 0, 11, 10, 0.8, 0), (60, 60, 70, 70, 0.7, 0)]
    result, counts, gains = breakdown(record([BOX, FAR], [0, 0]), *rows)
    assert result.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert counts == {"duplicate": 1} and gains["duplicate"] == pytest.approx(1 - result.ap50)


def test_background():
    result, counts, gains = breakdown(record([BOX], [0]), (80, 80, 90, 90, 0.9, 0), RIGHT)
    assert result.ap50 == 0.5 and counts == {"background": 1} and gains["background"] == 0.5
    assert result.false_positives.delta_ap50 == 0.5 and result.false_negatives.delta_ap50 == 0


def test_missed():
    result, counts, gains = breakdown(record([BOX, FAR], [0, 0]), RIGHT)
    assert result.ap50 == pytest.approx(51 / 101)
    assert counts == {"missed": 1} and gains["missed"] == pytest.approx(50 / 101)
    assert result.false_negatives.delta_ap50 == pytest.approx(50 / 101)


def test_repairs_that_would_be_duplicates_are_removed():
    # The box is found already, later: two wrong classes and an inexact place above it disappear.
    rows = [(0, 0, 10, 10, 0.9, 1), (6, 0, 16, 10, 0.8, 0), RIGHT]
    result, counts, gains = breakdown(record([BOX], [0]), *rows)
    assert counts == {"classification": 1, "localisation": 1}
    assert result.ap50 == 0.5 and gains["localisation"] == 0.5 and gains["classification"] == 0
    # Of two that are meant for a free box the better one gets it.
    result, counts, gains = breakdown(record([BOX], [0]), (0, 0, 10, 10, 0.9, 1), (0, 0, 10, 10, 0.8, 2))
    assert counts == {"classification": 2} and gains["classification"] == 1


def test_repairs_go_to_the_box_of_their_own_image():
    # The first image's box is found; the second's is taken for a dog, and inexactly found as a cat.
    truth = dataset(record([BOX], [0]), record([FAR], [0], image_id=2))
    wrong = [(60, 60, 70, 70, 0.6, 1), (66, 60, 76, 70, 0.4, 0)]
    result = error_breakdown(truth, [found(RIGHT), found(*wrong)])
    gains = {share.kind: share.delta_ap50 for share in result.kinds}
    # AP50 of cat: precision 1 to recall 0.50. Either repair finds the second box.
    assert result.ap50 == pytest.approx(51 / 101)
    assert gains["classification"] == pytest.approx(50 / 101) == gains["localisation"]


def test_ignored_boxes_make_no_errors():
    truth = record([BOX, [20, 20, 90, 90]], [0, 0], ignored=[False, True])
    result, counts, _ = breakdown(truth, RIGHT, (30, 30, 40, 40, 0.9, 0))
    assert result.ap50 == 1 and counts == {}


def test_the_order_of_detections_does_not_matter():
    truth = record([BOX, FAR], [0, 1])
    rows = [(6, 0, 16, 10, 0.3, 0), (0, 0, 10, 10, 0.9, 1), (60, 60, 70, 70, 0.5, 1), (80, 0, 90, 9, 0.7, 2)]
    assert breakdown(truth, *rows)[0] == breakdown(truth, *rows[::-1])[0]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_error_has_one_kind_and_costs_something(seed):
    pytest.importorskip("faster_coco_eval")
    from detector.coco_metrics import coco_metrics

    truth, detections = random_case(
        np.random.default_rng(seed), num_images=4, num_classes=3, most_boxes=10, most_found=30
    )
    if not any((~entry.ignored).any() for entry in truth.images):
        return
    result = error_breakdown(truth, detections)
    assert result.ap50 == pytest.approx(coco_metrics(truth, detections).ap50)
    counts = {share.kind: share.count for share in result.kinds}
    assert sum(counts.values()) - counts["missed"] == result.false_positives.count
    assert counts["missed"] <= result.false_negatives.count
    for share in result.kinds:
        # Taking a missed class as not being there, or turning a detection into another class, may change which
        # classes the mean has, or add a right one below wrong ones; removing wrong detections never costs.
        if share.kind in ("localisation", "both", "duplicate", "background"):
            assert share.delta_ap50 >= -1e-9
    assert result.false_positives.delta_ap50 >= max(share.delta_ap50 for share in result.kinds[2:5]) - 1e-9
