"""Assigners: what all of them keep, and each one's own rule by a slow reference or by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from loss_cases import SPECIAL_CASES, STRIDES, LossCase, random_case, special_case  # noqa: E402
from loss_reference import assign_image, decode_image, focal_cost, hard_cost, own_focal_cost  # noqa: E402

from detector import assign_pairs  # noqa: E402
from detector.assign import ASSIGNERS, AlignOTA, SimOTA  # noqa: E402
from detector.assign_atss import ATSS  # noqa: E402
from detector.assign_pairs import ranks  # noqa: E402
from detector.assign_tood import TOOD  # noqa: E402
from detector.boxes import pairwise_iou  # noqa: E402
from detector.points import decode_boxes, level_points  # noqa: E402
from detector.targets import Assignment, Targets  # noqa: E402

CLOSE = 1e-4
"""Decisions closer than this could fall the other way in float32."""

every_assigner = pytest.mark.parametrize("name", sorted(ASSIGNERS))


def inputs(case: LossCase):
    """Scores, boxes, points and targets."""
    output = case.output
    return output.cls_logits.sigmoid(), decode_boxes(output.box_logits, case.points), case.points, case.targets


def same(first: Assignment, second: Assignment) -> bool:
    return torch.equal(first.indices, second.indices) and torch.equal(first.qualities, second.qualities)


@every_assigner
@pytest.mark.parametrize("special", SPECIAL_CASES)
def test_what_every_assignment_is(name, special):
    scores, boxes, points, targets = inputs(special_case(special, 0))
    found = ASSIGNERS[name](scores.requires_grad_(), boxes.requires_grad_(), points, targets)
    assert found.indices.shape == found.qualities.shape == scores.shape[:2]
    assert found.indices.dtype == torch.int64 and found.qualities.dtype == torch.float32
    assert not found.qualities.requires_grad
    # Padding is never assigned: indices stay below the number of boxes of the image.
    assert (found.indices >= -1).all() and (found.indices < targets.valid.sum(dim=1)[:, None]).all()
    assert ((found.qualities >= 0) & (found.qualities <= 1)).all()
    assert (found.qualities[found.indices < 0] == 0).all()
    assert same(found, ASSIGNERS[name](scores, boxes, points, targets))


@every_assigner
def test_most_boxes_get_points(name):
    scores, boxes, points, targets = inputs(random_case(np.random.default_rng(5), num_boxes=(4, 4), image_size=96))
    found = ASSIGNERS[name](scores, boxes, points, targets)
    assert all(len(set(row.tolist()) - {-1}) >= 2 for row in found.indices)


@every_assigner
def test_no_boxes_at_all(name):
    scores, boxes, points, _ = inputs(random_case(np.random.default_rng(0), num_boxes=(1, 1)))
    targets = Targets.from_lists([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    found = ASSIGNERS[name](scores, boxes, points, targets)
    assert (found.indices == -1).all() and not found.qualities.any()


@every_assigner
@pytest.mark.parametrize("max_pairs", [1, 3000, 4_000_000])
def test_a_batch_equals_its_images_one_by_one(name, max_pairs, monkeypatch):
    monkeypatch.setattr(assign_pairs, "MAX_PAIRS", max_pairs)
    scores, boxes, points, targets = inputs(random_case(np.random.default_rng(1), num_boxes=(2, 9, 0, 5, 1)))
    together = ASSIGNERS[name](scores, boxes, points, targets)
    for image in range(5):
        # With padding of its own, and without.
        for count in (targets.labels.shape[1], int(targets.valid[image].sum())):
            entry = (targets.boxes, targets.labels, targets.valid)
            alone = Targets(*(value[image : image + 1, :count] for value in entry))
            found = ASSIGNERS[name](scores[image : image + 1], boxes[image : image + 1], points, alone)
            assert torch.equal(found.indices[0], together.indices[image])
            assert torch.equal(found.qualities[0], together.qualities[image])


@every_assigner
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), num_boxes=st.integers(2, 9))
def test_the_order_of_boxes_does_not_matter(name, seed, num_boxes):
    rng = np.random.default_rng(seed)
    scores, boxes, points, targets = inputs(random_case(rng, num_boxes=(num_boxes,)))
    order = torch.from_numpy(rng.permutation(num_boxes))
    shuffled = Targets(targets.boxes[:, order], targets.labels[:, order], targets.valid)
    found = ASSIGNERS[name](scores, boxes, points, targets)
    other = ASSIGNERS[name](scores, boxes, points, shuffled)
    back = torch.cat([order, torch.tensor([-1])])[other.indices]
    torch.testing.assert_close(other.qualities, found.qualities)
    assert torch.equal(back, found.indices)


@every_assigner
def test_half_precision_predictions_are_taken(name):
    scores, boxes, points, targets = inputs(random_case(np.random.default_rng(2), num_boxes=(3,)))
    found = ASSIGNERS[name](scores.bfloat16(), boxes.bfloat16(), points, targets)
    assert found.qualities.dtype == torch.float32 and (found.indices >= 0).any()


@every_assigner
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_predictions_that_are_not_finite(name, value):
    scores, boxes, points, targets = inputs(random_case(np.random.default_rng(2), num_boxes=(3, 4), image_size=96))
    broken = torch.arange(scores.shape[1]) % 3 == 0
    scores[:, broken], boxes[:, broken] = float("nan"), value
    found = ASSIGNERS[name](scores, boxes, points, targets)
    assert found.qualities.isfinite().all() and (found.indices >= 0).any()
    assert (found.qualities[:, broken] == 0).all()
    if name != "atss":  # which does not look at predictions to assign
        assert (found.indices[:, broken] == -1).all()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 100_000),
    num_boxes=st.integers(0, 8),
    num_classes=st.integers(1, 4),
    background=st.booleans(),
    spread=st.sampled_from([0.1, 2.0, 15.0]),
    rule=st.sampled_from(["align_ota", "align_ota_paper", "sim_ota"]),
)
def test_dynamic_k_equals_the_slow_reference(seed, num_boxes, num_classes, background, spread, rule):
    rng = np.random.default_rng(seed)
    case = random_case(
        rng, num_boxes=(num_boxes,), image_size=32, num_classes=num_classes, background=background, spread=spread
    )
    costs = {"align_ota": (focal_cost, 3.0), "align_ota_paper": (own_focal_cost, 1.0), "sim_ota": (hard_cost, 3.0)}
    points = case.points.numpy().astype(np.float64)
    expected = assign_image(
        case.output.cls_logits[0].sigmoid().double().numpy(),
        decode_image(case.box_logits[0].astype(np.float64), points),
        points,
        case.gt_boxes[0].astype(np.float64),
        case.gt_labels[0].tolist(),
        class_cost=costs[rule][0],
        iou_weight=costs[rule][1],
    )
    assume(expected.margin > CLOSE)
    found = ASSIGNERS[rule](*inputs(case))
    assert found.indices[0].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.qualities[0].numpy(), expected.qualities, atol=1e-5)


def one_box(box: list[float], *, image_size: int = 64, boxes_at: dict[int, list[float]] | None = None):
    """Inputs of one image with one box of class 0, nothing predicted but the given boxes, all scores 0.5."""
    shapes = tuple((image_size // stride, image_size // stride) for stride in STRIDES)
    points = level_points(shapes, STRIDES)
    boxes = torch.zeros(1, len(points), 4)
    for point, value in (boxes_at or {}).items():
        boxes[0, point] = torch.tensor(value)
    targets = Targets.from_lists([torch.tensor([box])], [torch.tensor([0])])
    return torch.full((1, len(points), 2), 0.5), boxes, points, targets


def test_align_ota_takes_as_many_points_as_ious_add_up_to():
    box = [16.0, 16.0, 48.0, 48.0]
    # Row 4 of stride 8 holds points 32 ... 39; point 36 lies at (32, 32), the centre.
    half = [16.0, 16.0, 32.0, 48.0]
    found = AlignOTA()(*one_box(box, boxes_at={35: box, 36: box, 37: half}))
    # 1 + 1 + 0.5 = 2.5 makes two points.
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [35, 36]
    assert found.qualities[0, [35, 36]].tolist() == [1.0, 1.0]
    found = AlignOTA(candidates=1)(*one_box(box, boxes_at={35: box, 36: box, 37: half}))
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [35]


def test_align_ota_prefers_points_near_the_centre_but_not_only():
    box = [0.0, 0.0, 64.0, 64.0]
    # Point 9 at (8, 8) lies in the box, further than 2.5 strides from its centre (32, 32).
    found = AlignOTA()(*one_box(box, boxes_at={9: box}))
    assert found.indices[0, 9] == -1 and (found.indices == 0).sum() == 1
    found = AlignOTA(center_radius=4.0)(*one_box(box, boxes_at={9: box}))
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [9]
    # Nine points in the box predict it. Preferred are four of them, and (32, 32) of the other two levels.
    box = [15.0, 15.0, 41.0, 41.0]
    found = AlignOTA(center_radius=0.7)(
        *one_box(box, boxes_at=dict.fromkeys([18, 19, 20, 26, 27, 28, 34, 35, 36], box))
    )
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [18, 19, 20, 27, 28, 35, 36, 74, 83]


def test_ties_go_to_the_first_point_and_the_first_box():
    box = [20.0, 20.0, 44.0, 44.0]
    scores, boxes, points, _ = one_box(box)
    targets = Targets.from_lists([torch.tensor([box, box])], [torch.tensor([0, 0])])
    found = AlignOTA()(scores, boxes, points, targets)
    # Every point is as bad as any other: one is taken, by both boxes, and the first box has it.
    preferred = torch.nonzero((points[:, :2] > 20).all(dim=1) & (points[:, :2] < 44).all(dim=1)).flatten()
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [int(preferred[0])]
    assert not (found.indices == 1).any()


def test_a_contested_point_goes_to_the_cheapest_box_of_all():
    """Boxes 0 and 1 both take a point that fits box 2 better; box 2 itself takes another, better still."""
    scores, boxes, points, _ = one_box([0.0, 0.0, 8.0, 8.0])
    gt = torch.tensor([[24.0, 24.0, 40.0, 41.0], [24.0, 24.0, 41.0, 40.0], [24.0, 24.0, 42.0, 42.0]])
    boxes[0, 36], boxes[0, 27] = torch.tensor([24.0, 24.0, 41.5, 41.5]), gt[2]
    boxes[0, 28] = torch.tensor([25.0, 25.0, 34.0, 34.0])
    targets = Targets.from_lists([gt], [torch.tensor([0, 1, 0])])
    found = AlignOTA()(scores, boxes, points, targets)
    case = scores[0].double().numpy(), boxes[0].double().numpy(), points.double().numpy()
    expected = assign_image(*case, gt.double().numpy(), [0, 1, 0])
    assert found.indices[0].tolist() == expected.indices.tolist()


def test_the_paper_variant_ignores_other_classes():
    box = [16.0, 16.0, 48.0, 48.0]
    scores, boxes, points, targets = one_box(box, boxes_at={35: box, 36: [16.0, 16.0, 48.0, 47.5]})
    boxes[0, 35], boxes[0, 36] = torch.tensor([16.0, 16.0, 48.0, 40.0]), torch.tensor([16.0, 16.0, 48.0, 41.0])
    scores[0, 36, 1] = 0.99  # sure of another class as well
    paper, official = ASSIGNERS["align_ota_paper"], ASSIGNERS["align_ota"]
    assert torch.nonzero(paper(scores, boxes, points, targets).indices[0] == 0).flatten().tolist() == [36]
    assert torch.nonzero(official(scores, boxes, points, targets).indices[0] == 0).flatten().tolist() == [35]


def test_ranks_follow_costs():
    cost = torch.tensor([3.0, -1.0, 0.5, float("nan"), -2.0, 1e9, float("inf"), 0.0])
    later = torch.tensor([False, False, True, False, False, False, False, True])
    assert ranks(cost, later=later).argsort(stable=True).tolist() == [4, 1, 0, 5, 7, 2, 3, 6]


def test_sim_ota_differs_from_align_ota_in_the_class_cost_alone():
    box = [16.0, 16.0, 48.0, 48.0]
    scores, boxes, points, targets = one_box(box, boxes_at={35: [16.0, 16.0, 48.0, 40.0], 36: [16.0, 16.0, 48.0, 40.0]})
    # IoU 0.75: AlignOTA likes a score of 0.75, SimOTA the higher one.
    scores[0, 35] = torch.tensor([0.75, 0.5])
    scores[0, 36] = torch.tensor([0.99, 0.5])
    assert torch.nonzero(AlignOTA()(scores, boxes, points, targets).indices[0] == 0).flatten().tolist() == [35]
    assert torch.nonzero(SimOTA()(scores, boxes, points, targets).indices[0] == 0).flatten().tolist() == [36]


def test_atss_by_hand():
    box = [32.0 - 32, 32.0 - 32, 32.0 + 32, 32.0 + 32]
    scores, boxes, points, targets = one_box(box)
    found = ATSS()(scores, boxes, points, targets)
    # Anchors have sides 64, 128, 256. The nine nearest of stride 8 lie around (32, 32), with IoU 1 at the centre,
    # 56 * 64 / (2 * 64^2 - 56 * 64) beside it, 56^2 / (2 * 64^2 - 56^2) at the corners.
    side, corner = 56 * 64 / (8192 - 56 * 64), 56 * 56 / (8192 - 56 * 56)
    # Anchors of stride 16 (side 128) and 32 (side 256) hold the whole box: IoU 1/4 and 1/16.
    ious = np.array([1.0] + [side] * 4 + [corner] * 4 + [0.25] * 9 + [1 / 16] * 4)
    threshold = ious.mean() + ious.std(ddof=1)
    assert corner < threshold < side
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [28, 35, 36, 37, 44]


def test_atss_gives_contested_points_to_the_larger_iou():
    scores, boxes, points, _ = one_box([0.0, 0.0, 1.0, 1.0])
    gt = torch.tensor([[4.0, 4.0, 60.0, 60.0], [0.0, 0.0, 64.0, 64.0]])
    targets = Targets.from_lists([gt], [torch.tensor([0, 0])])
    found = ATSS()(scores, boxes, points, targets)
    assert found.indices[0, 36] == 1


def test_tood_by_hand():
    box = [16.0, 16.0, 48.0, 48.0]
    good, fair = [16.0, 16.0, 48.0, 44.0], [16.0, 16.0, 48.0, 32.0]  # IoU 0.875 and 0.5
    scores, boxes, points, targets = one_box(box, boxes_at={27: fair, 36: good, 0: box})
    scores[0, 36, 0], scores[0, 27, 0] = 0.2, 0.9
    found = TOOD()(scores, boxes, points, targets)
    # Point 0 predicts the box exactly but does not lie in it; all others inside have no overlap, so no alignment.
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [27, 36]
    aligned = 0.9 * 0.5**6, 0.2 * 0.875**6
    assert found.qualities[0, 36].item() == pytest.approx(0.875)
    assert found.qualities[0, 27].item() == pytest.approx(0.875 * aligned[0] / aligned[1])
    found = TOOD(candidates=1)(scores, boxes, points, targets)
    assert torch.nonzero(found.indices[0] == 0).flatten().tolist() == [36]


def test_tood_gives_contested_points_to_the_larger_iou():
    gt = torch.tensor([[16.0, 16.0, 48.0, 40.0], [16.0, 16.0, 48.0, 48.0]])
    scores, boxes, points, _ = one_box([0.0, 0.0, 1.0, 1.0], boxes_at={27: [16.0, 16.0, 48.0, 46.0]})
    targets = Targets.from_lists([gt], [torch.tensor([0, 1])])
    found = TOOD()(scores, boxes, points, targets)
    assert found.indices[0, 27] == 1
    assert found.qualities[0, 27].item() == pytest.approx(pairwise_iou(boxes[0, 27:28], gt[1:]).item())
