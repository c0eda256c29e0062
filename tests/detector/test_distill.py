"""Distillation losses against references written down separately in numpy, and when they count how much."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training_cases import tiny_structure  # noqa: E402

from detector.config import load_config  # noqa: E402
from detector.distill import Distiller, MapShapes, map_shapes  # noqa: E402
from detector.distill_config import DistillConfig  # noqa: E402
from detector.distill_losses import (  # noqa: E402
    channel_wise_loss,
    drawn_mask,
    masked_generative_loss,
    mimic_loss,
)
from detector.errors import ConfigError  # noqa: E402
from detector.model import Detector  # noqa: E402

N, STUDENT, TEACHER = 3, (2, 3, 4), (3, 3, 5)
SIDES = ((4, 6), (2, 3), (1, 2))


def numpy_maps(channels, seed):
    rng = np.random.default_rng(seed)
    sizes = zip(channels, SIDES, strict=True)
    return [rng.normal(1.0, 2.0 + level, (N, c, *sides)) for level, (c, sides) in enumerate(sizes)]


def standardised(x):
    """Per channel over images and positions, biased variance; and what a gradient becomes on its way back."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    inverse = 1 / np.sqrt(variance + 1e-5)
    y = (x - mean) * inverse

    def back(g):
        return inverse * (g - g.mean((0, 2, 3), keepdims=True) - y * (g * y).mean((0, 2, 3), keepdims=True))

    return y, back


def softmax(x):
    flat = x.reshape(*x.shape[:2], -1)
    e = np.exp(flat - flat.max(2, keepdims=True))
    return e / e.sum(2, keepdims=True)


def cwd(s, t, temperature=1.0):
    """Loss, and its gradient at the student's map: (p_student - p_teacher) * temperature / (N C)."""
    p, q = softmax(t / temperature), softmax(s / temperature)
    n, c = s.shape[:2]
    loss = temperature**2 * sum((p[i, j] * np.log(p[i, j] / q[i, j])).sum() for i in range(n) for j in range(c))
    return loss / (n * c), (temperature / (n * c) * (q - p)).reshape(s.shape)


def mimic(s, t):
    return ((s - t) ** 2).mean(), 2 * (s - t) / s.size


def reference(student, teacher, weights, biases, loss, normalise=True):
    """Sum over levels of a loss of aligned, standardised maps; gradients of maps, weights and biases."""
    total, gradients = 0.0, []
    for s, t, w, b in zip(student, teacher, weights, biases, strict=True):
        aligned = np.einsum("oc,nchw->nohw", w, s) + b[None, :, None, None]
        (y, back), (wanted, _) = (standardised(x) if normalise else (x, lambda g: g) for x in (aligned, t))
        value, g = loss(y, wanted)
        total += value
        g = back(g)
        gradients.append((np.einsum("oc,nohw->nchw", w, g), np.einsum("nohw,nchw->oc", g, s), g.sum((0, 2, 3))))
    return total, gradients


def distiller_of(config, levels=3):
    torch.manual_seed(0)
    places, strides = tuple(range(levels)), (8, 16, 32)[:levels]
    shapes = [MapShapes(channels[:levels], strides, places) for channels in (STUDENT, TEACHER)]
    return Distiller(config, student=shapes[0], teacher=shapes[1]).double()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["outer", "inner"])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({}, cwd),
        ({"temperature": 3.0}, lambda s, t: cwd(s, t, 3.0)),
        ({"normalise": False}, cwd),
        ({"method": "mimic"}, mimic),
        ({"method": "mimic", "normalise": False}, mimic),
    ],
    ids=["cwd", "cwd hot", "cwd plain", "mimic", "mimic plain"],
)
def test_values_and_gradients(options, loss, levels, memory_format):
    config = DistillConfig(**options, levels=(3, 4, 5)[:levels])
    distiller = distiller_of(config, levels).to(memory_format=memory_format)
    own, wanted = numpy_maps(STUDENT, 1)[:levels], numpy_maps(TEACHER, 2)[:levels]
    maps = [torch.from_numpy(x).contiguous(memory_format=memory_format).requires_grad_() for x in own]
    value = distiller(maps, [torch.from_numpy(x) for x in wanted])
    value.backward()
    weights = [conv.weight.detach().numpy()[:, :, 0, 0] for conv in distiller.align]
    biases = [conv.bias.detach().numpy() for conv in distiller.align]
    expected, gradients = reference(own, wanted, weights, biases, loss, normalise=config.normalise)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    for level, (of_map, of_weight, of_bias) in enumerate(gradients):
        conv = distiller.align[level]
        for found, right in (
            (maps[level].grad, of_map),
            (conv.weight.grad[:, :, 0, 0], of_weight),
            (conv.bias.grad, of_bias),
        ):
            np.testing.assert_allclose(found.numpy(), right, rtol=1e-9, atol=1e-13)


def convolved(x, weight, bias):
    """3x3, one pixel of zeros around, by loops."""
    n, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.empty((n, len(weight), height, width))
    for i in range(height):
        for j in range(width):
            out[:, :, i, j] = np.einsum("ocij,ncij->no", weight, padded[:, :, i : i + 3, j : j + 3]) + bias
    return out


def mgd(distiller, student, teacher, masks):
    """By numpy loops: 2e-5 times the sum of squares, by image, summed over levels."""
    total = 0.0
    for level, (s, t, kept) in enumerate(zip(student, teacher, masks, strict=True)):
        align, (first, _, second) = distiller.align[level], distiller.generate[level]
        weights = [(conv.weight.detach().numpy(), conv.bias.detach().numpy()) for conv in (first, second)]
        aligned = np.einsum("oc,nchw->nohw", align.weight.detach().numpy()[:, :, 0, 0], s)
        y = standardised(aligned + align.bias.detach().numpy()[None, :, None, None])[0] * kept
        made = convolved(np.maximum(convolved(y, *weights[0]), 0), *weights[1])
        total += 2e-5 * ((made - standardised(t)[0]) ** 2).sum() / N
    return total


def test_masked_generation():
    """Value against loops; gradients against central differences of the loops, the masks being those of the seed."""
    distiller = distiller_of(DistillConfig(method="mgd"))
    own, wanted = numpy_maps(STUDENT, 1), numpy_maps(TEACHER, 2)
    maps = [torch.from_numpy(x.copy()).requires_grad_() for x in own]
    torch.manual_seed(5)
    value = distiller(maps, [torch.from_numpy(x) for x in wanted])
    value.backward()
    torch.manual_seed(5)
    masks = [(torch.rand(N, 1, *sides) >= 0.65).double().numpy() for sides in SIDES]
    assert value.item() == pytest.approx(mgd(distiller, own, wanted, masks), rel=1e-10)

    rng, step = np.random.default_rng(0), 1e-6

    def slope(array):
        """At one random entry, which is changed and put back."""
        place = tuple(rng.integers(side) for side in array.shape)
        kept = array[place]
        values = []
        for change in (step, -step):
            array[place] = kept + change
            values.append(mgd(distiller, own, wanted, masks))
        array[place] = kept
        return place, (values[0] - values[1]) / (2 * step)

    for level in range(3):
        place, expected = slope(own[level])
        assert maps[level].grad.numpy()[place] == pytest.approx(expected, rel=1e-4, abs=1e-10)
    for parameter in distiller.parameters():
        place, expected = slope(parameter.data.numpy())
        assert parameter.grad.numpy()[place] == pytest.approx(expected, rel=1e-4, abs=1e-10)


def test_a_mask_hides_whole_positions():
    kept = drawn_mask(torch.zeros(8, 3, 50, 50), ratio=0.65)
    assert kept.shape == (8, 1, 50, 50) and set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.35, abs=0.02)
    student, teacher = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    seen = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # Of one image the one position that is left is off by 2 in each of 2 channels, the hidden ones by 1.
    loss = masked_generative_loss(student, teacher, kept=seen, generate=lambda x: x + 1)
    assert loss.item() == 2 * (2**2 + 3 * 1**2)


def test_losses_by_hand():
    teacher = torch.tensor([[[[0.0, math.log(3.0)]]]])
    student = torch.zeros(1, 1, 1, 2)
    # Teacher 1/4, 3/4 against 1/2, 1/2.
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert channel_wise_loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert channel_wise_loss(student.repeat(4, 3, 1, 1), teacher.repeat(4, 3, 1, 1)).item() == pytest.approx(expected)
    assert mimic_loss(student, torch.tensor([[[[3.0, 1.0]]]])).item() == 5.0


def test_equal_maps_cost_nothing():
    """Nor do maps whose channels differ in mean and scale only; and of the student's maps the named one is taken."""
    maps = [torch.from_numpy(x) for x in numpy_maps(TEACHER, 2)]
    shapes = MapShapes((3,), (16,), (1,))
    distiller = Distiller(DistillConfig(levels=(4,)), student=shapes, teacher=shapes).double()
    distiller.align.load_state_dict({"0.weight": 3 * torch.eye(3)[:, :, None, None], "0.bias": torch.ones(3)})
    assert distiller(maps, [maps[1]]).item() == pytest.approx(0.0, abs=1e-9)


def test_what_is_learnt_and_saved():
    keys = set(distiller_of(DistillConfig()).state_dict())
    assert keys == {f"align.{level}.{name}" for level in range(3) for name in ("weight", "bias")}
    distiller = distiller_of(DistillConfig(method="mgd"))
    extra = {f"generate.{level}.{conv}.{name}" for level in range(3) for conv in (0, 2) for name in ("weight", "bias")}
    assert set(distiller.state_dict()) == keys | extra == {name for name, _ in distiller.named_parameters()}
    distiller.nothing().backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in distiller.parameters())


def test_the_batch_is_the_measure_in_any_mode():
    distiller = distiller_of(DistillConfig())
    own, wanted = ([torch.from_numpy(x) for x in numpy_maps(c, s)] for c, s in ((STUDENT, 1), (TEACHER, 2)))
    assert distiller.eval()(own, wanted).item() == distiller.train()(own, wanted).item()


def test_maps_of_a_network():
    model = Detector(tiny_structure(width=8))
    assert map_shapes(model, DistillConfig(), whose="student") == MapShapes((8, 8, 8), (8, 16, 32), (0, 1, 2))
    chosen = DistillConfig(features="backbone", levels=(3, 5))
    assert map_shapes(model, chosen, whose="student") == MapShapes((16, 16), (8, 32), (0, 2))
    with pytest.raises(
        ConfigError, match=r"level 6 \(stride 64\), which the teacher does not have: .*strides 8, 16, 32"
    ):
        map_shapes(model, DistillConfig(levels=(3, 6)), whose="teacher")


def test_weights_over_a_run():
    cosine = DistillConfig()
    assert [cosine.weight_at(done) for done in (0, 0.5, 1)] == pytest.approx([1.0, 0.55, 0.1])
    assert cosine.weight_at(1 / 3) == pytest.approx(1 - 0.9 * 0.25), "1 - cos 60 degrees, halved, is a quarter"
    linear = DistillConfig(schedule="linear", weight=2.0, final_ratio=0.25)
    assert [linear.weight_at(done) for done in (0, 0.5, 1)] == pytest.approx([2.0, 1.25, 0.5])
    assert [DistillConfig(schedule="constant", weight=0.5).weight_at(done) for done in (0, 0.7, 1)] == [0.5] * 3


def test_which_clipping_counts():
    assert DistillConfig().clipped_at(None) is None and DistillConfig().clipped_at(35.0) == 35.0
    taught = DistillConfig(teacher="t.safetensors")
    assert [taught.clipped_at(usual) for usual in (None, 35.0, 10.0)] == [30.0, 30.0, 10.0]
    assert DistillConfig(teacher="t.safetensors", clip_norm=None).clipped_at(35.0) == 35.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.method=kd"], r'distill\.method is "kd"; expected one of cwd, mimic, mgd'),
        (["distill.stop=never"], r'distill\.stop is "never"; expected one of end, no_aug'),
        (["distill.levels=[5, 4]"], r"distill\.levels is \[5, 4\]; expected levels from 1 to 7 in rising order"),
        (["distill.levels=[]"], r"distill\.levels is \[\]; expected levels"),
        (["distill.weight=-1"], r"distill\.weight is -1\.0; expected a number, 0 or more"),
        (
            ["distill.teacher=t.safetensors", "distill.weight=0"],
            r"distill\.weight is 0\.0; expected a number above 0 with a teacher",
        ),
        (["distill.temperature=0"], r"distill\.temperature is 0\.0; expected a number above 0"),
        (["distill.mask_ratio=1"], r"distill\.mask_ratio is 1\.0; expected a number from 0, below 1"),
        (["distill.clip_norm=0"], r"distill\.clip_norm is 0\.0; expected a number above 0"),
        (["distill.cache=ram"], r'distill\.cache is "ram"; expected none, or samples that come again: augment\.views'),
        (["distill.cache=ram", "augment.views=2"], r'distill\.cache is "ram"; expected none, or samples'),
    ],
)
def test_wrong_settings_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)


def test_maps_are_kept_where_samples_come_again():
    for again in ("augment.views=2", "augment.mosaic=0"):
        assert load_config(overrides=["distill.cache=ram", again, "augment.sada=false"]).distill.cache == "ram"
