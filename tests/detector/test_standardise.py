"""Random weights that do not let signals die."""

import pytest

torch = pytest.importorskip("torch")

from network_cases import published  # noqa: E402

from detector.model import Detector  # noqa: E402
from detector.standardise import random_detector, random_images, standardise  # noqa: E402


@pytest.mark.parametrize("name", ["t", "m", "nl"])
def test_signals_have_order_one(name: str):
    model = random_detector(published(name))
    images = random_images(2, 3, 128, 128)
    with torch.no_grad():
        maps = model.features(images)
        plain = Detector(published(name)).eval().features(images)
    assert all(0.1 < float(each.std()) < 20 for each in maps)
    # Without it they die: this is what the function is for.
    assert min(float(each.std()) for each in plain) < 0.05


def test_the_seed_alone_decides_and_the_state_is_kept():
    before = torch.random.get_rng_state()
    first, again, other = (random_detector(published("ns"), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_momentum_and_mode_are_left_as_they_were():
    model = Detector(published("ns")).eval()
    standardise(model, random_images(2, 3, 64, 64))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert not model.training and norms and {norm.momentum for norm in norms} == {0.03}
