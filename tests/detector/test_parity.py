"""Outputs equal the official implementation's, on synthetic deterministic weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from network_cases import close, example_input, filled, filled_model, shared, statistics  # noqa: E402

from detector.boxes import box_area, boxes_to_distances, elementwise_giou, elementwise_iou, pairwise_iou  # noqa: E402
from detector.losses import distribution_focal_loss, giou_loss, quality_focal_loss  # noqa: E402
from detector.points import level_points, mean_bins  # noqa: E402
from detector.postprocess import postprocess  # noqa: E402
from detector.reparam import deploy, fuse_reparam  # noqa: E402

FORMS = {
    "train": ("train_form", lambda model: model),
    "reparameterised": ("deploy_form", fuse_reparam),
    "deployed": ("deploy_form", deploy),
}
LOCAL = Path(__file__).resolve().parent / "fixtures" / "network_statistics.json"


@pytest.fixture(scope="module", params=["t", "ns"])
def named_model(request):
    return request.param, filled_model(request.param)


def load(name: str):
    return np.load(shared(f"fixtures/{name}.npz"))


def test_the_deterministic_fill_has_the_documented_value():
    assert float(filled("head.scales.0.scale", (), 1.0)) == pytest.approx(0.9717677, abs=1e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ["1x128x128", "2x96x160"])
def test_models_equal_the_official_ones(named_model, size, form):
    name, model = named_model
    expected = load(f"model_{name.capitalize()}_{size}")
    prefix, change = FORMS[form]
    network = change(model)
    images = torch.from_numpy(expected["input"])
    close(example_input(*images.shape[:1], *images.shape[2:]), expected["input"], atol=0)
    with torch.no_grad():
        features = network.backbone(images)
        fused = network.neck(features)
        maps = network.head.forward_maps(fused)
        output = network(images)
        scores, boxes = network.decode(output)
    for level in range(3):
        for part, value in (("backbone", features[level]), ("neck", fused[level])):
            if f"{prefix}_{part}_{level}" in expected:
                close(value, expected[f"{prefix}_{part}_{level}"], atol=1e-4, rtol=1e-4)
        close(maps[level][0].sigmoid(), expected[f"{prefix}_cls_{level}"], atol=1e-5)
        close(maps[level][1], expected[f"{prefix}_reg_{level}"], atol=1e-4, rtol=1e-4)
    close(level_points(output.level_shapes, network.strides), expected["priors"], atol=0)
    close(scores, expected[f"{prefix}_scores"], atol=1e-5)
    close(boxes, expected[f"{prefix}_boxes"], atol=2e-3)
    check_detections(expected, prefix, scores, boxes, images.shape[2:])


def check_detections(expected, prefix, scores, boxes, image_size):
    found = postprocess(
        scores,
        boxes,
        image_size=tuple(image_size),
        score_threshold=float(expected["score_thr"]),
        iou_threshold=float(expected["nms_iou"]),
    )
    for index, detections in enumerate(found):
        want = {part: expected[f"{prefix}_det{index}_{part}"] for part in ("boxes", "scores", "labels")}
        assert len(detections) == len(want["scores"])
        np.testing.assert_allclose(detections.scores, want["scores"], atol=1e-5)
        distance = np.abs(detections.boxes[:, None] - want["boxes"][None]).max(axis=2)
        matched = (distance < 2e-3) & (detections.labels[:, None] == want["labels"][None])
        assert matched.any(axis=1).mean() >= 0.99
        assert matched.any(axis=0).mean() >= 0.99


def test_models_equal_the_committed_statistics(named_model):
    """The same comparison for a checkout without the shared folder, over a few numbers per array."""
    name, model = named_model
    expected = json.loads(LOCAL.read_text(encoding="utf-8"))[name]
    images = example_input(2, 96, 160)
    for change in (lambda model: model, deploy):
        with torch.no_grad():
            network = change(model)
            scores, boxes = network.decode(network(images))
            arrays = {f"neck_{level}": value for level, value in enumerate(network.features(images))}
        found = statistics(arrays | {"scores": scores, "boxes": boxes})
        assert set(found) == set(expected)
        for key, values in found.items():
            atol = {"scores": 1e-5, "boxes": 2e-3}.get(key, 1e-4)
            np.testing.assert_allclose(values, expected[key], atol=atol, rtol=1e-4 if key.startswith("neck") else 0)


def test_box_functions_equal_the_official_ones():
    units = load("units_a")
    first, second = torch.from_numpy(units["boxes1"]), torch.from_numpy(units["boxes2"])
    close(pairwise_iou(first, second), units["iou_pairwise_eps1e-6"], atol=1e-6)
    close(elementwise_iou(first, second), units["iou_pairwise_eps1e-6"].diagonal().copy(), atol=1e-6)
    close(giou_loss(first, second), units["giou_loss_elem_eps1e-6"], atol=1e-5)
    assert (elementwise_giou(first, second) >= -1).all() and (box_area(first) >= 0).all()
    distances = boxes_to_distances(torch.from_numpy(units["points"]), first / 8, largest=15.9)
    close(distances, units["bbox2distance_clamped"], atol=1e-5)


def test_distribution_and_loss_functions_equal_the_official_ones():
    units = {key: torch.from_numpy(value) for key, value in load("units_a").items()}
    close(mean_bins(units["dist"]), units["integral"].numpy(), atol=1e-5)
    close(distribution_focal_loss(units["dfl_logits"], units["dfl_target"]), units["dfl_elem"].numpy(), atol=1e-5)
    found = quality_focal_loss(units["qfl_prob"], units["qfl_label"], units["qfl_score"])
    close(found, units["qfl_row"].numpy(), atol=1e-5, rtol=1e-5)
