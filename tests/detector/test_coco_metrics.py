"""COCO's figures: by hand, against pycocotools, and golden values of a generated case."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faster_coco_eval")

from evaluation_cases import dataset, found, random_case, record

from detector.coco_metrics import FIGURES, coco_metrics
from detector.data.source import load_split
from detector.types import Detections


def oracle(truth, detections, content=None):
    """The twelve figures as pycocotools computes them; -1 where there are none."""
    package = pytest.importorskip("pycocotools", reason="pycocotools is the oracle and is not installed")
    assert package
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = [
        row
        for entry, result in zip(truth.images, detections, strict=True)
        for row in result.to_coco(entry.image_id, category_ids=truth.category_ids)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content or as_coco(truth)
        coco.createIndex()
        if rows:
            results = coco.loadRes(rows)
        else:
            results = COCO()
            results.dataset = {**coco.dataset, "annotations": []}
            results.createIndex()
        judge = COCOeval(coco, results, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def as_coco(truth):
    annotations = []
    for entry in truth.images:
        for box, label, ignored, area in zip(entry.boxes, entry.labels, entry.ignored, entry.areas, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": entry.image_id,
                    "category_id": truth.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(ignored),
                }
            )
    return {
        "images": [{"id": entry.image_id} for entry in truth.images],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in truth.category_ids],
    }


def assert_equal_to_oracle(truth, detections, content=None):
    metrics = coco_metrics(truth, detections)
    judge = oracle(truth, detections, content)
    ours = [-1.0 if value is None else value for value in metrics.figures().values()]
    np.testing.assert_allclose(ours, judge.stats, atol=1e-6)
    for label, entry in enumerate(metrics.classes):
        place = judge.params.catIds.index(truth.category_ids[label])
        values = judge.eval["precision"][:, :, place, 0, -1]
        expected = values[values > -1].mean() if (values > -1).any() else None
        assert entry.ap == (None if expected is None else pytest.approx(expected, abs=1e-6))
    return metrics


def test_everything_found_exactly():
    truth = dataset(record([[0, 0, 20, 20], [30, 30, 80, 80]], [0, 1]))
    metrics = coco_metrics(truth, [found((0, 0, 20, 20, 0.9, 0), (30, 30, 80, 80, 0.8, 1))])
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ar1) == (1, 1, 1, 1)
    assert (metrics.ap_small, metrics.ap_medium, metrics.ap_large) == (1, 1, None)
    assert (metrics.num_boxes, metrics.num_detections, metrics.num_images) == ((1, 1, 0), 2, 1)
    assert [entry.ap for entry in metrics.classes] == [1, 1, None]


def test_half_of_the_boxes_and_a_wrong_detection_above():
    # Scores fall: wrong, right; of two boxes one is found, so precision is 1/2 up to recall 0.50: 51 of 101 recalls.
    truth = dataset(record([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0]), names=("cat",))
    metrics = coco_metrics(truth, [found((80, 80, 90, 90, 0.9, 0), (0, 0, 10, 10, 0.8, 0))])
    assert metrics.ap == pytest.approx(0.5 * 51 / 101)
    assert metrics.ar1 == 0 and metrics.ar10 == 0.5
    assert metrics.classes[0].num_detections == 2 and metrics.classes[0].num_images == 1
    np.testing.assert_allclose(metrics.precision[0, 0], [0.5] * 51 + [0.0] * 50)


def test_an_iou_between_thresholds():
    # Shifted by 2 of 10 pixels: IoU 8 / 12 = 0.667, right at 0.50, 0.55, 0.60, 0.65 and wrong at the other six.
    truth = dataset(record([[0, 0, 10, 10]], [0]), names=("cat",))
    metrics = coco_metrics(truth, [found((2, 0, 12, 10, 0.9, 0))])
    assert (metrics.ap, metrics.ap50, metrics.ap75) == (pytest.approx(0.4), 1, 0)


def test_ignored_boxes_are_neither_missed_nor_wrong():
    truth = dataset(record([[0, 0, 10, 10], [20, 20, 100, 100]], [0, 0], ignored=[False, True]), names=("cat",))
    on_crowd = [(20 + 8 * k, 20, 40 + 8 * k, 40, 0.95, 0) for k in range(5)]
    metrics = coco_metrics(truth, [found(*on_crowd, (0, 0, 10, 10, 0.5, 0))])
    assert metrics.ap == 1 and metrics.num_ignored == 1 and sum(metrics.num_boxes) == 1


def test_classes_without_boxes_are_left_out_of_the_mean():
    truth = dataset(record([[0, 0, 10, 10]], [0]))
    metrics = coco_metrics(truth, [found((0, 0, 10, 10, 0.5, 0), (50, 50, 60, 60, 0.9, 1))])
    assert metrics.ap == 1
    assert [(entry.ap, entry.num_boxes, entry.num_detections) for entry in metrics.classes] == [
        (1, 1, 1),
        (None, 0, 1),
        (None, 0, 0),
    ]
    assert (metrics.precision[:, 1:] == -1).all()


def test_category_ids_in_any_order_keep_their_classes():
    truth = dataset(record([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 2]), category_ids=(90, 7, 30))
    metrics = coco_metrics(truth, [found((0, 0, 10, 10, 0.5, 0))])
    assert [entry.ap for entry in metrics.classes] == [1, None, 0]
    assert metrics.precision[0, 0, 0] == 1 and metrics.precision[0, 2, 0] == 0


def test_no_detections_at_all():
    truth = dataset(record([[0, 0, 10, 10]], [0]), record([], [], image_id=2))
    metrics = coco_metrics(truth, [Detections.empty((100, 100)), Detections.empty((100, 100))])
    assert metrics.ap == 0 and metrics.ar100 == 0 and metrics.num_detections == 0


def test_sizes_are_those_of_the_annotated_areas():
    # The box of 100 x 100 has a mask of 900 pixels: a small object.
    truth = dataset(record([[0, 0, 100, 100]], [0], areas=[900]))
    metrics = coco_metrics(truth, [found((0, 0, 100, 100, 0.5, 0))])
    assert metrics.num_boxes == (1, 0, 0) and metrics.ap_small == 1 and metrics.ap_large is None


GOLDEN = {
    "ap": 0.03880010,
    "ap50": 0.09035458,
    "ap75": 0.02854248,
    "ap_small": 0.02244640,
    "ap_medium": 0.04699757,
    "ap_large": 0.23832411,
    "ar1": 0.06682758,
    "ar10": 0.27047634,
    "ar100": 0.28505075,
    "ar_small": 0.08943182,
    "ar_medium": 0.33751693,
    "ar_large": 0.59800000,
}


@pytest.fixture(scope="module")
def generated():
    return random_case(np.random.default_rng(5), num_images=30, num_classes=5, most_boxes=12, most_found=40)


def test_golden_values_of_a_generated_case(generated):
    """Made with pycocotools 2.0.11, tolerance 1e-6; `test_the_generated_case_equals_pycocotools` makes them again."""
    figures = coco_metrics(*generated).figures()
    assert figures == {name: pytest.approx(value, abs=1e-6) for name, value in GOLDEN.items()}


def test_the_generated_case_equals_pycocotools(generated):
    metrics = assert_equal_to_oracle(*generated)
    assert metrics.num_ignored > 5 and any(len(entry.labels) == 0 for entry in generated[0].images)


def test_the_same_again_and_not_a_word(generated, capfd):
    first, second = coco_metrics(*generated), coco_metrics(*generated)
    assert first.to_dict() == second.to_dict() and np.array_equal(first.precision, second.precision)
    assert capfd.readouterr() == ("", "")
    assert list(json.loads(json.dumps(first.to_dict())))[: len(FIGURES)] == list(FIGURES)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_images=st.integers(1, 4),
    num_classes=st.integers(1, 4),
    most_boxes=st.integers(0, 10),
    most_found=st.sampled_from([0, 3, 40]),
)
def test_random_cases_equal_pycocotools(seed, num_images, num_classes, most_boxes, most_found):
    rng = np.random.default_rng(seed)
    sizes = {"num_images": num_images, "num_classes": num_classes, "most_boxes": most_boxes, "most_found": most_found}
    assert_equal_to_oracle(*random_case(rng, **sizes))


def test_more_than_a_hundred_detections_of_a_class_in_an_image():
    truth, detections = random_case(
        np.random.default_rng(1), num_images=2, num_classes=1, most_boxes=30, most_found=400
    )
    assert max(len(entry) for entry in detections) > 150
    assert_equal_to_oracle(truth, detections)


def test_coco_photographs_with_crowds_equal_pycocotools():
    from network_cases import shared

    annotations = shared("data/detection/coco_mini/annotations/instances_val.json")
    truth = load_split(annotations, "val")
    assert len(truth) == 50 and sum(int(entry.ignored.sum()) for entry in truth.images) == 5
    rng = np.random.default_rng(0)
    detections = []
    for entry in truth.images:
        count, more = len(entry.labels), 15
        boxes = np.concatenate([entry.boxes + rng.normal(0, 3, (count, 4)), rng.uniform(0, 200, (more, 4))])
        boxes[count:, 2:] += boxes[count:, :2]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.concatenate([entry.labels, rng.integers(0, 80, more)])
        scores = rng.random(count + more).astype(np.float32)
        detections.append(Detections(boxes.astype(np.float32), scores, labels, entry.size))
    metrics = assert_equal_to_oracle(truth, detections, json.loads(annotations.read_text()))
    assert 0.1 < metrics.ap < 0.9
