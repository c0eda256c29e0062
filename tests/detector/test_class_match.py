"""Labels of a network as labels of a data set: by name, and narrower classes counted as broader ones, once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval")
Image = pytest.importorskip("PIL.Image")

from evaluation_cases import Seer, dataset, found, record  # noqa: E402

from detector.class_match import ClassMatch  # noqa: E402
from detector.evaluate import evaluate  # noqa: E402
from detector.evaluate_sources import mean_figures  # noqa: E402

MODEL = ("sedan", "cup", "car", "taxi")
OPTIONS = {"iou_threshold": 0.5, "max_detections": 10}


def rows(detections):
    """(x1, score, label) of each."""
    return [
        (float(box[0]), round(float(score), 2), int(label))
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True)
    ]


def test_by_name_alone_order_is_kept_and_the_rest_dropped():
    match = ClassMatch.by_name(MODEL, ("car", "sedan"), {})
    translated = match.translate(found((0, 0, 9, 9, 0.3, 2), (5, 0, 9, 9, 0.9, 1), (7, 0, 9, 9, 0.5, 0)), **OPTIONS)
    assert rows(translated) == [(0, 0.3, 0), (7, 0.5, 1)]


def test_a_narrower_class_counts_as_the_broader_one_once():
    """The same object as car, sedan and taxi is one car, with the best score; another sedan is another car."""
    match = ClassMatch.by_name(MODEL, ("cup", "car"), {"sedan": ("car",), "taxi": ("car",)})
    detections = found(
        (0, 0, 10, 10, 0.6, 2), (1, 0, 10, 10, 0.8, 0), (0, 0, 10, 11, 0.4, 3), (50, 0, 60, 10, 0.5, 0),
        (0, 0, 10, 10, 0.7, 1),
    )  # fmt: skip
    assert rows(match.translate(detections, **OPTIONS)) == [(1, 0.8, 1), (0, 0.7, 0), (50, 0.5, 1)]
    assert rows(match.translate(detections, iou_threshold=0.5, max_detections=2)) == [(1, 0.8, 1), (0, 0.7, 0)]


def test_a_class_can_count_as_several():
    match = ClassMatch.by_name(("sedan",), ("car", "vehicle"), {"sedan": ("car", "vehicle", "not there")})
    assert rows(match.translate(found((3, 0, 9, 9, 0.5, 0)), **OPTIONS)) == [(3, 0.5, 0), (3, 0.5, 1)]


def test_nothing_found():
    match = ClassMatch.by_name(MODEL, ("car",), {"sedan": ("car",)})
    assert not len(match.translate(found(), **OPTIONS))


def test_folding_in_an_evaluation(tmp_path):
    """A network that says sedan where a source says car is right."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[10:40, 10:30, 0] = 230  # seen as the first class
    Image.fromarray(pixels).save(tmp_path / "a.png")
    truth = dataset(record([(10, 10, 30, 40)], [0], path=tmp_path / "a.png", size=(64, 64)), names=("car",))
    network = Seer(("sedan", "car", "cup"), image_size=(64, 64))
    assert evaluate(network, truth).metrics.ap == 0
    assert evaluate(network, truth, counts_as={"sedan": ("car",)}).metrics.ap == pytest.approx(1)


def test_the_headline_is_the_mean_of_the_sources():
    figures = dict.fromkeys(("ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"), 0.5)
    sizes = dict.fromkeys(("ar_small", "ar_medium", "ar_large"), 0.1)
    mean = mean_figures({"a": {**figures, **sizes, "ap": 0.2, "ap_small": None}, "b": {**figures, **sizes, "ap": 0.6}})
    assert mean["ap"] == pytest.approx(0.4) and mean["ap_small"] == 0.5
    assert (mean["ap:a"], mean["ap:b"]) == (0.2, 0.6)
    assert "ap:" not in mean_figures({"": {**figures, **sizes, "ap": None}})
