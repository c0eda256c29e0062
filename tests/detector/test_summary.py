"""The printed summary counts what runs."""

import pytest

torch = pytest.importorskip("torch")

from network_cases import published  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from detector.errors import InputError  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import deploy  # noqa: E402


@pytest.mark.parametrize("name", ["t", "ns", "m"])
@pytest.mark.parametrize("deployed", [False, True])
def test_a_summary_agrees_with_the_flop_counter(name: str, deployed: bool):
    model = Detector(published(name))
    model = deploy(model) if deployed else model.eval()
    summary = model.summary((64, 96))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 96))
    assert 2 * summary.macs == counter.get_total_flops()
    assert sum(part.macs for part in summary.parts) == summary.macs
    assert summary.params == sum(parameter.numel() for parameter in model.parameters())
    assert summary.deployed is deployed
    # The head's three scales belong to no part.
    assert summary.params - sum(part.params for part in summary.parts) == 3
    assert summary.parts[0].out_shapes == ((1, model.structure.backbone.stem.out_channels, 32, 48),)
    assert ("deployed" if deployed else "training form") in str(summary).splitlines()[-1]


def test_a_summary_leaves_the_model_alone():
    model = Detector(published("ns"))
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.summary((32, 32))
    assert model.training and next(model.parameters()).device.type == "cpu"
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_summary_of_an_impossible_size_is_refused():
    with pytest.raises(InputError, match="image width is 100; expected a multiple of 32"):
        Detector(published("ns")).summary((64, 100))
