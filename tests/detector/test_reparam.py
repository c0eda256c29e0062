"""The deployed form: equal outputs, untouched original."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from network_cases import assert_same_outputs, filled_model, random_structure, random_structures, randomise_norms  # noqa: E402
from torch import nn  # noqa: E402

from detector.layers import ConvNormAct, RepConv, folded_kernel  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import deploy, fuse_reparam, is_deployed  # noqa: E402
from maenas.structure import FAMILIES  # noqa: E402


def random_model(structure, seed=0) -> Detector:
    torch.manual_seed(seed)
    model = Detector(structure).eval()
    randomise_norms(model, seed)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_deployed_outputs_are_equal(family):
    for seed, structure in enumerate(random_structures(family, 2)):
        model = random_model(structure, seed)
        images = torch.randn(2, 3, *structure.image_size)
        assert_same_outputs(model, fuse_reparam(model), images)
        assert_same_outputs(model, deploy(model), images)


@pytest.mark.parametrize("name", ["t", "m", "ns", "n"])
def test_deployed_published_models_have_equal_outputs(name):
    model = filled_model(name)
    assert_same_outputs(model, deploy(model), torch.randn(1, 3, 64, 96))


def test_the_original_is_untouched():
    model = random_model(random_structure("res", 3)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = deploy(model)
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    assert model.training and not folded.training
    assert not is_deployed(model) and is_deployed(folded)
    for parameter in folded.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_forms_hold_what_they_say():
    model = random_model(random_structure("csp", 1))
    fused, folded = fuse_reparam(model), deploy(model)
    assert not is_deployed(fused)
    assert all(module.merged for module in fused.modules() if isinstance(module, RepConv))
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in form.modules()) for form in (model, fused, folded)]
    assert norms[0] > norms[1] > norms[2] == 0


def test_deploying_twice_changes_nothing():
    once = deploy(random_model(random_structure("mob", 2)))
    twice = deploy(once)
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in once.state_dict().items())


def test_a_folded_layer_has_no_kernel_to_fold():
    layer = ConvNormAct(2, 3)
    layer.fold_norm()
    with pytest.raises(ValueError, match="folded already"):
        folded_kernel(layer)


def test_folding_by_hand():
    """Weight 2, norm scale 3 over a variance of 0.999 + eps 0.001, mean 0.5, shift 0.25: 6 x - 1.25."""
    layer = ConvNormAct(1, 1)
    layer.conv.weight.data.fill_(2.0)
    layer.norm.weight.data.fill_(3.0)
    layer.norm.bias.data.fill_(0.25)
    layer.norm.running_mean.fill_(0.5)
    layer.norm.running_var.fill_(0.999)
    layer.fold_norm()
    assert layer.conv.weight.item() == pytest.approx(6.0, rel=1e-6)
    assert layer.conv.bias.item() == pytest.approx(-1.25, rel=1e-6)
