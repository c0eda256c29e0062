"""Weight decay groups and optimisers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from network_cases import published, random_structure  # noqa: E402

from detector.model import Detector  # noqa: E402
from detector.optim import (  # noqa: E402
    OptimizerConfig,
    build_optimizer,
    optimizer_tensors,
    parameter_groups,
    restore_optimizer,
    set_learning_rate,
)


@pytest.fixture(scope="module")
def model():
    return Detector(random_structure("res", 3))


def names_of(model, parameters):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in parameters}


def test_no_decay_on_biases_and_norms(model):
    decayed, spared = parameter_groups(model, weight_decay=5e-4)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (5e-4, 0.0)
    kept = names_of(model, spared["params"])
    assert kept == {name for name, _ in model.named_parameters() if name.endswith("bias") or ".norm." in name}
    assert {"head.scales.0", "head.class_convs.0.weight"} <= names_of(model, decayed["params"])


def test_published_network_is_split_completely():
    with torch.device("meta"):
        network = Detector(published("s"))
    decayed, spared = parameter_groups(network, weight_decay=5e-4)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(network.parameters()))
    # Counted on the module tree: everything of two or more dimensions, and the three scales.
    shapes = [parameter.ndim for parameter in decayed["params"]]
    assert shapes.count(0) == 3 and all(ndim in (0, 4) for ndim in shapes)
    assert all(parameter.ndim == 1 for parameter in spared["params"])


def test_scales_can_be_spared(model):
    decayed, spared = parameter_groups(model, weight_decay=0.1, decay_scales=False)
    assert {f"head.scales.{level}" for level in range(3)} <= names_of(model, spared["params"])
    assert not any(parameter.ndim == 0 for parameter in decayed["params"])


def test_frozen_parameters_are_left_out():
    model = Detector(random_structure("res", 3))
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert not any(name.startswith("backbone") for name in names_of(model, parameters))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        build_optimizer(model, OptimizerConfig())


def test_learning_rate_by_batch():
    assert OptimizerConfig().highest_lr(64) == pytest.approx(0.01)
    assert OptimizerConfig(lr=0.5).highest_lr(64) == 0.5


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimiser_goes_on_where_it_was(name):
    first, second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)
    config = OptimizerConfig(name=name)
    optimizer = build_optimizer(first, config)
    set_learning_rate(optimizer, 0.1)
    step(first, optimizer, 0)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, config)
    set_learning_rate(resumed, 0.1)
    restore_optimizer(resumed, second, optimizer_tensors(optimizer, first))
    for model, its_optimizer in ((first, optimizer), (second, resumed)):
        step(model, its_optimizer, 1)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_a_foreign_state_is_refused():
    model = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match="names 'other', which is no parameter"):
        restore_optimizer(build_optimizer(model, OptimizerConfig()), model, {"other|momentum_buffer": torch.zeros(1)})


def test_decay_and_nesterov_by_hand():
    """One step of SGD: v = g + d w, w -= lr (g + d w + momentum v), without decay on the bias."""
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(2.0)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    model.weight.grad, model.bias.grad = torch.ones(1, 1), torch.ones(1)
    optimizer.step()
    assert float(model.weight.detach()) == pytest.approx(2.0 - 0.5 * 1.2 * 1.9)
    assert float(model.bias.detach()) == pytest.approx(2.0 - 0.5 * 1.0 * 1.9)
