"""Points, decoding, boxes and post-processing."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from detector.boxes import (  # noqa: E402
    boxes_to_distances,
    clip_boxes,
    distances_to_boxes,
    elementwise_giou,
    pairwise_iou,
)
from detector.points import decode, decode_boxes, level_points, mean_bins  # noqa: E402
from detector.postprocess import postprocess, select_best  # noqa: E402
from detector.types import Detections, HeadOutput  # noqa: E402

STRIDES = (8, 16, 32)
SHAPES = ((4, 6), (2, 3), (1, 2))


def test_points_lie_on_cell_corners_row_by_row():
    points = level_points(SHAPES, STRIDES)
    assert points.shape == (24 + 6 + 2, 4)
    assert points[1].tolist() == [8, 0, 8, 8] and points[6].tolist() == [0, 8, 8, 8]
    assert points[24 + 1].tolist() == [16, 0, 16, 16] and points[-1].tolist() == [32, 0, 32, 32]


def test_points_are_kept_per_shapes_of_all_levels_device_and_dtype():
    first = level_points(SHAPES, STRIDES)
    assert level_points(list(SHAPES), list(STRIDES)) is first
    other = (SHAPES[0], SHAPES[1], (2, 2))
    assert level_points(other, STRIDES).shape[0] == 34
    assert level_points(SHAPES, STRIDES, dtype=torch.float64).dtype == torch.float64
    assert level_points(SHAPES, STRIDES, device="meta").device.type == "meta"
    assert level_points(SHAPES, STRIDES) is first


def test_points_cached_during_a_prediction_serve_training():
    shapes = ((3, 7), (2, 4), (1, 2))
    with torch.inference_mode():
        level_points(shapes, STRIDES)
    points = level_points(shapes, STRIDES)
    logits = torch.randn(1, len(points), 4, 5, requires_grad=True)
    (decode_boxes(logits, points) * points).sum().backward()
    assert logits.grad is not None


def test_distances_are_the_mean_bin():
    logits = torch.full((1, 1, 4, 9), -1e4)
    for side, bin_ in enumerate((0, 3, 8, 5)):
        logits[0, 0, side, bin_] = 0
    logits[0, 0, 3, 6] = 0
    assert mean_bins(logits.softmax(-1)).tolist() == [[[0.0, 3.0, 8.0, 5.5]]]
    points = torch.tensor([[16.0, 24.0, 8.0, 8.0]])
    assert decode_boxes(logits, points).tolist() == [[[16.0, 0.0, 80.0, 68.0]]]


def test_decoding_drops_a_background_channel_and_does_not_clip():
    points = sum(h * w for h, w in SHAPES)
    box_logits = torch.zeros(2, points, 4, 9)
    box_logits[..., 8] = 50
    output = HeadOutput(torch.randn(2, points, 4), box_logits, SHAPES)
    scores, boxes = decode(output, strides=STRIDES, num_classes=3)
    assert torch.equal(scores, output.cls_logits[..., :3].sigmoid())
    assert boxes[0, 0].tolist() == pytest.approx([-64, -64, 64, 64], abs=1e-3)


def test_distances_invert_boxes():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.rand(50, 4, generator=generator) * 100
    torch.testing.assert_close(distances_to_boxes(points, boxes_to_distances(points, boxes)), boxes)
    assert (boxes_to_distances(points, boxes, largest=5.0) <= 5).all()


def test_overlaps_by_hand():
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 0, 0]])
    second = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [10, 10, 12, 12]])
    assert pairwise_iou(first, second)[0].tolist() == pytest.approx([1 / 7, 1, 0])
    assert pairwise_iou(first, second)[1].tolist() == [0, 0, 0]
    assert pairwise_iou(first[:0], second).shape == (0, 3)
    assert elementwise_giou(first[:1], second[:1]).item() == pytest.approx(1 / 7 - 2 / 9)


def test_clipping():
    boxes = torch.tensor([[-5.0, -6, 300, 400], [1, 2, 3, 4]])
    assert clip_boxes(boxes, (100, 200)).tolist() == [[0, 0, 200, 100], [1, 2, 3, 4]]


def run(scores, boxes, **options):
    settings = {"image_size": (64, 64), "score_threshold": 0.5, "iou_threshold": 0.5} | options
    (detections,) = postprocess(torch.tensor([scores]), torch.tensor([boxes]), **settings)
    return detections


def test_the_threshold_is_strict_and_a_box_may_have_several_classes():
    found = run([[0.5, 0.75, 0.625], [0.25, 0.5, 0.5]], [[0.0, 0, 10, 10], [20, 20, 30, 30]])
    assert found.labels.tolist() == [1, 2] and found.scores.tolist() == [0.75, 0.625]
    assert found.boxes.tolist() == [[0, 0, 10, 10]] * 2 and found.image_size == (64, 64)


def test_suppression_is_class_wise_and_the_best_come_first():
    boxes = [[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [40, 40, 50, 50]]
    found = run([[0.75, 0.0], [0.875, 0.0], [0.0, 0.625], [0.9375, 0.0]], boxes)
    assert found.scores.tolist() == [0.9375, 0.875, 0.625] and found.labels.tolist() == [0, 0, 1]


def test_nothing_above_the_threshold_gives_an_empty_result():
    found = run([[0.25], [0.5]], [[0.0, 0, 1, 1]] * 2)
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.labels.dtype == np.int64
    no_points = postprocess(torch.zeros(1, 0, 3), torch.zeros(1, 0, 4), image_size=(32, 32))
    assert len(no_points[0]) == 0 and postprocess(torch.zeros(0, 5, 3), torch.zeros(0, 5, 4), image_size=(32, 32)) == []


def test_at_most_500_are_kept():
    torch.manual_seed(0)
    corners = torch.arange(700.0)[:, None] * 20
    boxes = torch.cat([corners, corners, corners + 10, corners + 10], dim=1)
    scores = torch.rand(700, 1) * 0.5 + 0.5
    (found,) = postprocess(scores[None], boxes[None], image_size=(32, 32))
    expected = scores.flatten().sort(descending=True).values[:500]
    assert len(found) == 500 and np.array_equal(found.scores, expected.numpy())
    assert len(run([[0.75]] * 3, [[i * 20.0, 0, i * 20 + 9, 9] for i in range(3)], max_detections=2)) == 2


def test_boxes_return_to_the_original_image_by_independent_factors():
    box = [[-8.0, 16, 72, 32]]
    found = run([[0.75]], box, original_sizes=[(32, 128)])
    assert found.boxes.tolist() == [[-16, 8, 144, 16]] and found.image_size == (32, 128)
    clipped = run([[0.75]], box, original_sizes=[(32, 128)], clip=True)
    assert clipped.boxes.tolist() == [[0, 8, 128, 16]]
    with pytest.raises(ValueError, match="original_sizes has 2 entries; expected one per image, 1"):
        run([[0.75]], box, original_sizes=[(32, 128)] * 2)


def test_suppression_picks_a_subset_and_is_idempotent():
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(300, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + torch.rand(300, 2, generator=generator) * 20], dim=1)
    scores = torch.rand(300, 4, generator=generator)
    settings = {"score_threshold": 0.6, "iou_threshold": 0.6, "max_detections": 500}
    kept, kept_scores, labels = select_best(scores, boxes, **settings)
    assert 0 < len(kept) < int((scores > 0.6).sum())
    again = torch.zeros(len(kept), 4)
    again[torch.arange(len(kept)), labels] = kept_scores
    second, second_scores, second_labels = select_best(again, kept, **settings)
    assert torch.equal(kept, second) and torch.equal(kept_scores, second_scores) and torch.equal(labels, second_labels)


def test_detections_check_their_shapes_and_select():
    found = run([[0.75, 0.625]], [[0.0, 0, 10, 10]])
    assert found.select(found.scores > 0.7).labels.tolist() == [0]
    assert found.select(np.array([1])).labels.tolist() == [1]
    assert len(Detections.empty((5, 6))) == 0
    with pytest.raises(ValueError, match=r"boxes has shape \(2, 3\); expected \(2, 4\)"):
        Detections(np.zeros((2, 3), np.float32), np.zeros(2, np.float32), np.zeros(2, np.int64), (5, 6))
    with pytest.raises(ValueError, match="image_size is"):
        Detections.empty((0, 6))
