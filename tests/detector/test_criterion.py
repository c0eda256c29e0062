"""The training loss against the official implementation's figures, our slow reference, and rules it must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loss_cases import SPECIAL_CASES, STRIDES, LossCase, random_case, special_case  # noqa: E402
from loss_reference import batch_losses  # noqa: E402
from network_cases import published, shared  # noqa: E402

from detector.assign import ASSIGNERS, AlignOTA  # noqa: E402
from detector.criterion import Criterion, Losses  # noqa: E402
from detector.losses import log1p, quality_focal_loss, quality_focal_loss_with_logits  # noqa: E402
from detector.model import build_detector  # noqa: E402
from detector.points import decode_boxes  # noqa: E402
from detector.targets import Targets  # noqa: E402
from detector.types import HeadOutput  # noqa: E402

LOCAL = Path(__file__).resolve().parent / "fixtures" / "losses.npz"
OFFICIAL = (
    "case0_simple",
    "case2_mixed_batch",
    "case4_no_gt_at_all",
    "case6_duplicate_gts",
    "case8_untrained_predictions",
)


def run(output: HeadOutput, targets: Targets, num_classes: int, criterion: Criterion | None = None):
    """Losses, and the gradients of both kinds of logits."""
    logits = [entry.clone().requires_grad_() for entry in (output.cls_logits, output.box_logits)]
    losses = (criterion or Criterion())(
        HeadOutput(*logits, output.level_shapes), targets, strides=STRIDES, num_classes=num_classes
    )
    losses.total.backward()
    return losses, logits[0].grad, logits[1].grad


def run_case(case: LossCase, criterion: Criterion | None = None):
    return run(case.output, case.targets, case.num_classes, criterion)


def parts(losses: Losses) -> list[float]:
    return [losses.quality_focal.item(), losses.giou.item(), losses.dfl.item()]


@pytest.mark.parametrize("name", OFFICIAL)
def test_equals_the_official_implementation(name):
    arrays = np.load(shared(f"fixtures/assign_loss_{name}.npz"))
    images = range(len(arrays["cls_logits"]))
    output = HeadOutput(
        torch.from_numpy(arrays["cls_logits"]), torch.from_numpy(arrays["reg_logits"]), ((20, 20), (10, 10), (5, 5))
    )
    targets = Targets.from_lists(
        [torch.from_numpy(arrays[f"gt_boxes_{i}"]).float().reshape(-1, 4) for i in images],
        [torch.from_numpy(arrays[f"gt_labels_{i}"]).long() for i in images],
    )
    losses, grad_cls, grad_box = run(output, targets, int(arrays["num_classes"]))
    expected = [float(arrays[key]) for key in ("loss_cls", "loss_bbox", "loss_dfl")]
    assert parts(losses) == pytest.approx(expected, rel=1e-5)
    assert losses.total.item() == pytest.approx(float(arrays["total_loss"]), rel=1e-5)
    assert losses.num_positives.item() == float(arrays["num_pos"])
    assert grad_cls.norm().item() == pytest.approx(float(arrays["grad_cls_logits_l2"]), rel=1e-4)
    assert grad_box.norm().item() == pytest.approx(float(arrays["grad_reg_logits_l2"]), rel=1e-4)

    scores, points = output.cls_logits.sigmoid(), torch.from_numpy(arrays["priors"])
    found = AlignOTA()(scores, torch.from_numpy(arrays["decoded_boxes"]), points, targets)
    for i in images:
        assert found.indices[i].tolist() == arrays[f"assigned_gt_{i}"].tolist()
        np.testing.assert_allclose(found.qualities[i].numpy(), arrays[f"assigned_iou_{i}"], atol=1e-5)
    if losses.num_positives:
        rows = grad_box[found.indices >= 0].numpy()
        scale = np.abs(rows).max()
        np.testing.assert_allclose(rows, arrays["grad_reg_logits_at_pos"], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", SPECIAL_CASES)
def test_equals_the_stored_figures_of_special_cases(name):
    content = np.load(LOCAL)
    arrays = {key.removeprefix(f"{name}/"): content[key] for key in content.files if key.startswith(f"{name}/")}
    images = range(len(arrays["cls_logits"]))
    case = LossCase(
        int(arrays["image_size"]),
        int(arrays["num_classes"]),
        arrays["cls_logits"].astype(np.float32) / 64,
        arrays["box_logits"].astype(np.float32) / 64,
        [arrays[f"gt_boxes_{i}"] for i in images],
        [arrays[f"gt_labels_{i}"].astype(np.int64) for i in images],
    )
    losses, grad_cls, grad_box = run_case(case)
    assert parts(losses) == pytest.approx(arrays["losses"].tolist(), rel=1e-5, abs=1e-7)
    assert losses.num_positives.item() == arrays["num_positives"]
    assert grad_cls.norm().item() == pytest.approx(float(arrays["grad_cls_logits_norm"]), rel=1e-4)
    assert grad_box.norm().item() == pytest.approx(float(arrays["grad_box_logits_norm"]), rel=1e-4)
    found = AlignOTA()(
        case.output.cls_logits.sigmoid(), decode_boxes(case.output.box_logits, case.points), case.points, case.targets
    )
    for i in images:
        assert found.indices[i].tolist() == arrays[f"indices_{i}"].tolist()
        np.testing.assert_allclose(found.qualities[i].numpy(), arrays[f"qualities_{i}"], atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_slow_reference(seed):
    rng = np.random.default_rng(seed)
    counts = tuple(rng.integers(0, 7, 2).tolist())
    case = random_case(rng, num_boxes=counts, background=bool(seed % 2), spread=float(rng.choice([0.5, 2, 10])))
    expected = batch_losses(case.cls_logits, case.box_logits, case.points.numpy(), case.gt_boxes, case.gt_labels)
    if expected.margin < 1e-4:
        pytest.skip("a decision of this draw is too close for float32")
    losses, grad_cls, grad_box = run_case(case)
    assert parts(losses) == pytest.approx([expected.quality_focal, expected.giou, expected.dfl], rel=1e-5, abs=1e-7)
    assert losses.num_positives.item() == expected.num_positives
    for found, wanted in ((grad_cls, expected.grad_cls_logits), (grad_box, expected.grad_box_logits)):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))


def test_quality_focal_loss_of_logits_equals_that_of_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=generator).double() * 4
    labels = torch.randint(0, 6, (200,), generator=generator)
    qualities = torch.rand(200, generator=generator).double()
    targets = torch.zeros(200, 6, dtype=torch.float64).scatter(1, labels[:, None], qualities[:, None])[:, :5]
    found = quality_focal_loss_with_logits(logits, targets).sum(dim=1)
    torch.testing.assert_close(found, quality_focal_loss(logits.sigmoid(), labels, qualities))


def test_gradient_of_the_quality_focal_loss():
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(40, 3, generator=generator) * 3).double().requires_grad_()
    targets = torch.rand(40, 3, generator=generator).double()
    for beta in (1.5, 2.0, 3.0):
        assert torch.autograd.gradcheck(
            lambda x, beta=beta: quality_focal_loss_with_logits(x, targets, beta=beta), logits
        )


def test_quality_focal_loss_at_the_ends_of_the_scale():
    logits = torch.tensor([-1e4, -200.0, -50.0, 0.0, 50.0, 200.0, 1e4], requires_grad=True)
    wrong = quality_focal_loss_with_logits(logits, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    expected = [100, 100, 50, np.log(2) / 4, 50, 100, 100]
    torch.testing.assert_close(wrong, torch.tensor(expected, dtype=torch.float32))
    wrong.sum().backward()
    # The loss is constant beyond its limit.
    slope = -(0.5 * np.log(2) / 2 + 0.125)
    torch.testing.assert_close(logits.grad, torch.tensor([0, 0, -1.0, slope, 1.0, 0, 0], dtype=torch.float32))


@pytest.mark.parametrize("name", sorted(ASSIGNERS))
@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
def test_every_parameter_gets_a_gradient(name, counts):
    model = build_detector(published("ns")).train()
    case = random_case(np.random.default_rng(0), num_boxes=counts, num_classes=80)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    losses = Criterion(assigner=ASSIGNERS[name])(model(images), case.targets, strides=STRIDES, num_classes=80)
    losses.total.backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    if not any(counts):
        assert losses.giou == 0 and losses.dfl == 0 and losses.num_positives == 0
        assert all(not scale.grad for scale in model.head.scales)


def test_normalisers_are_means_over_processes():
    """Two processes of one image each: their mean gradient is that of a batch of both."""
    case = random_case(np.random.default_rng(3), num_boxes=(4, 2))
    together, grad_cls, grad_box = run_case(case)
    seen = []
    for image in range(2):
        one = LossCase(
            case.image_size,
            case.num_classes,
            case.cls_logits[[image]],
            case.box_logits[[image]],
            [case.gt_boxes[image]],
            [case.gt_labels[image]],
        )
        run_case(one, Criterion(mean_over_processes=lambda totals: seen.append(totals) or totals))
    assert not any(totals.requires_grad for totals in seen)
    mean = torch.stack(seen).mean(dim=0)
    assert 2 * mean[0] == together.num_positives
    for image in range(2):
        output = HeadOutput(case.output.cls_logits[[image]], case.output.box_logits[[image]], case.level_shapes)
        targets = Targets(*(entry[[image]] for entry in (case.targets.boxes, case.targets.labels, case.targets.valid)))
        _, alone_cls, alone_box = run(output, targets, 3, Criterion(mean_over_processes=lambda _: mean))
        torch.testing.assert_close(alone_cls[0] / 2, grad_cls[image])
        torch.testing.assert_close(alone_box[0] / 2, grad_box[image])


def test_weights_scale_their_part_alone():
    case = special_case("mixed_batch", 0)
    plain, weighted = (
        run_case(case)[0],
        run_case(case, Criterion(quality_focal_weight=3.0, giou_weight=1.0, dfl_weight=1.0))[0],
    )
    assert parts(weighted) == pytest.approx(np.multiply(parts(plain), [3, 0.5, 4]).tolist())
    assert weighted.total.item() == pytest.approx(sum(parts(weighted)))


def test_works_in_float32_under_autocast():
    case = special_case("mixed_batch", 0)
    plain, grad_cls, grad_box = run_case(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run_case(case)
    assert parts(cast[0]) == parts(plain)
    assert torch.equal(cast[1], grad_cls) and torch.equal(cast[2], grad_box)
    half = HeadOutput(case.output.cls_logits.bfloat16(), case.output.box_logits.bfloat16(), case.level_shapes)
    losses = Criterion()(half, case.targets, strides=STRIDES, num_classes=3)
    assert losses.total.dtype == torch.float32 and losses.total.item() == pytest.approx(plain.total.item(), rel=0.2)


@pytest.mark.parametrize("assigner", sorted(ASSIGNERS))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_predictions_that_are_not_finite_give_a_loss_that_is_not(assigner, value):
    case = special_case("mixed_batch", 0)
    case.box_logits[:, ::2] = value
    case.cls_logits[:, ::3] = float("nan")
    losses = run_case(case, Criterion(assigner=ASSIGNERS[assigner]))[0]
    assert not losses.total.isfinite()


def test_boxes_are_not_learned_through_scores_nor_scores_through_boxes():
    case = special_case("mixed_batch", 0)
    only_boxes = run_case(case, Criterion(quality_focal_weight=0.0))
    assert not only_boxes[1].any() and only_boxes[2].any()
    only_classes = run_case(case, Criterion(giou_weight=0.0, dfl_weight=0.0))
    assert only_classes[1].any() and not only_classes[2].any()


def test_our_log1p_is_as_exact_as_that_of_torch():
    values = torch.cat([torch.logspace(-30, 0, 5000), -torch.logspace(-30, -1e-7, 5000), torch.tensor([0.0, -1.0])])
    exact = values.double().log1p().float()
    torch.testing.assert_close(log1p(values), exact, rtol=3e-7, atol=0)
