"""The averaged network."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from network_cases import randomise_norms  # noqa: E402
from training_cases import tiny_structure  # noqa: E402

from detector.ema import EmaConfig, ModelEma  # noqa: E402
from detector.model import Detector  # noqa: E402


def test_the_decay_ramps_up():
    config = EmaConfig()
    assert config.decay_at(0) == 0.0
    assert config.decay_at(2000) == pytest.approx(0.9998 * (1 - math.exp(-1)))
    assert config.decay_at(10**6) == pytest.approx(0.9998)
    assert EmaConfig(ramp=0.0, decay=0.5).decay_at(0) == 0.5
    assert EmaConfig(enabled=False).decay_at(10**6) == 0.0


def test_the_first_update_copies_and_later_ones_average():
    torch.manual_seed(0)
    model = Detector(tiny_structure())
    ema = ModelEma(model, EmaConfig(decay=0.9, ramp=10.0))
    randomise_norms(model, 1)
    ema.update(model, step=0)
    for name, value in model.state_dict().items():
        assert torch.equal(ema.model.state_dict()[name], value), name
    before = {name: value.clone() for name, value in ema.model.state_dict().items()}
    randomise_norms(model, 2)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.num_batches_tracked += 1
    ema.update(model, step=5)
    decay = 0.9 * (1 - math.exp(-0.5))
    for name, value in ema.model.state_dict().items():
        if value.is_floating_point():
            expected = decay * before[name] + (1 - decay) * model.state_dict()[name]
            torch.testing.assert_close(value, expected)
        else:
            assert value == 0, "counters stay as they were"


def test_it_is_in_evaluation_and_without_gradients():
    model = Detector(tiny_structure()).train()
    ema = ModelEma(model, EmaConfig())
    assert not ema.model.training and not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_disabled_it_is_the_network():
    model = Detector(tiny_structure())
    ema = ModelEma(model, EmaConfig(enabled=False))
    randomise_norms(model, 1)
    ema.update(model, step=100)
    assert all(torch.equal(ema.model.state_dict()[name], value) for name, value in model.state_dict().items())
