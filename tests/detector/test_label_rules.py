"""What is not marked teaches nothing: losses against a slow reference, and what assignment must not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loss_cases import STRIDES, random_case  # noqa: E402
from loss_reference import assign_image, cross_entropy, decode_image  # noqa: E402
from union_cases import space_of  # noqa: E402

from detector.assign import ASSIGNERS  # noqa: E402
from detector.criterion import Criterion  # noqa: E402
from detector.label_rules import LabelRules  # noqa: E402
from detector.points import decode_boxes  # noqa: E402
from detector.types import HeadOutput  # noqa: E402

SPACE = space_of(
    {"cars": ("car", "person"), "sedans": ("sedan", "cup"), "all": ("car", "sedan", "person", "cup")},
    narrower={"car": ("sedan",)},
)
"""Labels: car 0, person 1, sedan 2, cup 3."""
OWN = ((0, 1), (2, 3), (0, 1, 2, 3))
ABOVE = {0: {0}, 1: {1}, 2: {0, 2}, 3: {3}}


def union_case(seed: int = 0, *, background: bool = False, sources=(0, 1, 2), num_boxes=(4, 3, 5)):
    """Predictions and boxes that each source marks."""
    rng = np.random.default_rng(seed)
    case = random_case(rng, num_boxes=num_boxes, num_classes=4, background=background)
    labels = [rng.choice(OWN[source], count) for source, count in zip(sources, num_boxes, strict=True)]
    case = replace(case, gt_labels=[entry.astype(np.int64) for entry in labels])
    return case, replace(case.targets, sources=torch.tensor(sources))


def rules_of(space=SPACE, *, channels: int = 4) -> LabelRules:
    return LabelRules.of(space, channels=channels, device="cpu")


def losses_of(case, targets, **options):
    logits = [entry.clone().requires_grad_() for entry in (case.output.cls_logits, case.output.box_logits)]
    losses = Criterion(**options)(
        HeadOutput(*logits, case.level_shapes), targets, strides=STRIDES, num_classes=case.num_classes
    )
    losses.total.backward()
    return losses, logits[0].grad, logits[1].grad


def judged(source: int, label: int | None) -> set[int]:
    """Classes that are known to be absent, by their definition."""
    known = set() if label is None else ABOVE[label]
    return {column for column in range(4) if (ABOVE[column] & set(OWN[source])) - known}


@pytest.mark.parametrize("seed", range(4))
def test_class_loss_equals_a_reference(seed):
    """Point by point in float64: positives of the box's class and broader ones, negatives of what is judged."""
    case, targets = union_case(seed)
    losses, gradient, _ = losses_of(case, targets, rules=rules_of())
    logits = torch.tensor(case.cls_logits, dtype=torch.float64, requires_grad=True)
    total, num_positives = logits.sum() * 0, 0
    points = case.points.double().numpy()
    for image, source in enumerate((0, 1, 2)):
        labels = case.gt_labels[image].tolist()

        def cost(scores, label, iou, source=source):
            own = cross_entropy(scores[label], iou) * (iou - scores[label]) ** 2
            return own + sum(cross_entropy(scores[c], 0.0) * scores[c] ** 2 for c in judged(source, label))

        scores = torch.tensor(case.cls_logits[image]).sigmoid().double().numpy()
        boxes = decode_image(case.box_logits[image].astype(np.float64), points)
        gt = case.gt_boxes[image].astype(np.float64)
        found = assign_image(scores, boxes, points, gt, labels, class_cost=cost)
        assert found.margin > 1e-5, "choose another seed: a decision is too close for float32"
        probabilities = logits[image].sigmoid()
        for point, box in enumerate(found.indices.tolist()):
            label = labels[box] if box >= 0 else None
            num_positives += box >= 0
            for channel in judged(source, label) | (set() if label is None else ABOVE[label]):
                is_own = label is not None and channel in ABOVE[label]
                p = probabilities[point, channel]
                y = torch.tensor(float(found.qualities[point]) if is_own else 0.0, dtype=torch.float64)
                entropy = torch.nn.functional.binary_cross_entropy(p, y, reduction="none")
                total = total + entropy * (y - p).abs() ** 2
    total = total / max(num_positives, 1)
    total.backward()
    assert int(losses.num_positives) == num_positives
    assert losses.quality_focal.item() == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(gradient.numpy(), logits.grad.numpy(), rtol=1e-3, atol=2e-6)


def test_what_no_source_tells_has_no_gradient():
    """Not even of a score that is sure: cup and sedan in an image of `cars` whose cars cover everything but persons."""
    case, targets = union_case(1)
    _, gradient, _ = losses_of(case, targets, rules=rules_of())
    assert not gradient[0, :, 3].any()  # cups are unknown to `cars`
    assert not gradient[1, :, 1].any()  # persons to `sedans`
    assert gradient[2].any(dim=0).all()
    unmarked = losses_of(case, targets)[1]
    assert unmarked[0, :, 3].any() and unmarked[1, :, 1].any()


def test_a_complete_space_changes_nothing():
    """Rules of sources that mark everything give what no rules give."""
    space = space_of({"a": ("w", "x", "y", "z"), "b": ("z", "y", "x", "w")})
    assert space.is_complete
    case, targets = union_case(2, sources=(0, 1, 0))
    with_rules, without = losses_of(case, targets, rules=rules_of(space)), losses_of(case, targets)
    assert with_rules[0].total.item() == pytest.approx(without[0].total.item(), rel=1e-6)
    for one, other in zip(with_rules[1:], without[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_a_background_channel_is_known_everywhere():
    case, targets = union_case(3, background=True)
    _, gradient, _ = losses_of(case, targets, rules=rules_of(channels=5))
    assert gradient[:, :, 4].ne(0).all()
    assert not gradient[0, :, 3].any() and not gradient[1, :, 1].any()


@pytest.mark.parametrize("name", list(ASSIGNERS))
def test_assignment_does_not_see_what_is_unknown(name):
    """Whatever the scores of unmarked classes are, the same points answer for the same boxes."""
    case, targets = union_case(4)
    targets = rules_of().judging(targets)
    boxes = decode_boxes(torch.tensor(case.box_logits), case.points)
    scores = torch.tensor(case.cls_logits).sigmoid()
    other = scores.clone()
    other[0, :, 3], other[1, :, 1] = 0.999, 0.999
    first = ASSIGNERS[name](scores, boxes, case.points, targets)
    second = ASSIGNERS[name](other, boxes, case.points, targets)
    assert torch.equal(first.indices, second.indices) and torch.equal(first.qualities, second.qualities)


def test_the_weight_of_a_box_is_what_its_point_learns():
    """A sure score of an unknown class must not make a box important."""
    case, targets = union_case(5)
    other = replace(case, cls_logits=case.cls_logits.copy())
    other.cls_logits[0, :, 3] = 9.0
    assert losses_of(other, targets, rules=rules_of())[0].giou == losses_of(case, targets, rules=rules_of())[0].giou
    assert losses_of(other, targets)[0].giou != losses_of(case, targets)[0].giou


def test_images_without_boxes():
    case, targets = union_case(6, num_boxes=(0, 0, 0))
    losses, gradient, _ = losses_of(case, targets, rules=rules_of())
    assert losses.num_positives == 0 and not gradient[1, :, 1].any() and gradient[1, :, 3].any()
