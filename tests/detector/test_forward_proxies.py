"""Zen score and NASWOT on the detector's modules: by hand where that is possible, and by what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from network_cases import random_structure  # noqa: E402
from torch import nn  # noqa: E402

from detector.backbone import Backbone  # noqa: E402
from detector.forward_proxies import (  # noqa: E402
    FORWARD_PROXIES,
    ProxySettings,
    chain_of,
    naswot_score,
    zen_score,
)
from maenas.structure import Backbone as BackboneSpec  # noqa: E402
from maenas.structure import Head, Neck, Stage, Stem, Structure  # noqa: E402

QUICK = ProxySettings(side=64, batch_size=4, draws=2)
FAMILIES = ("res", "kxkx", "csp", "mob")


def network(*depths: int, family: str = "res", width: int = 8) -> Structure:
    stages = tuple(Stage(width * (place + 1), (width,) * depth, 2, 3) for place, depth in enumerate(depths))
    backbone = BackboneSpec(family, "relu", Stem("focus", 3, width, 3, 1), stages, (2, 3, 4))
    return Structure("made", (64, 64), backbone, Neck((8, 8, 8), 1, 0.5, "relu", False), Head(2, 4, 3))


@pytest.mark.parametrize("name", FORWARD_PROXIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_value_that_repeats(name, family):
    structure, proxy = random_structure(family, 2), FORWARD_PROXIES[name]
    before = torch.random.get_rng_state()
    value = proxy(structure, settings=QUICK)
    assert math.isfinite(value) and torch.equal(torch.random.get_rng_state(), before)
    assert proxy(structure, settings=QUICK) == value
    assert proxy(structure, settings=replace(QUICK, seed=1)) != value


@pytest.mark.parametrize("name", FORWARD_PROXIES)
def test_neck_head_and_image_size_do_not_matter(name):
    structure = network(1, 1, 1, 1)
    other = replace(structure, image_size=(96, 128), head=Head(7, 9, 1), neck=replace(structure.neck, num_blocks=2))
    assert FORWARD_PROXIES[name](other, settings=QUICK) == FORWARD_PROXIES[name](structure, settings=QUICK)


def test_zen_grows_with_depth_and_width():
    values = [
        zen_score(s, settings=QUICK) for s in (network(1, 1, 1, 1), network(1, 1, 3, 1), network(1, 1, 3, 1, width=24))
    ]
    assert values[0] + 1 < values[1] < values[2]


def test_zen_restores_what_the_norms_take():
    """Norms undo any scale of a layer's input; the second term gives it back, so 10 times the weights add ln 10."""
    structure = network(1, 1, 1, 1)
    plain = zen_score(structure, settings=QUICK)
    real = nn.init.normal_

    def larger(weight: torch.Tensor) -> torch.Tensor:
        return real(weight).mul_(10.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.forward_proxies.nn.init.normal_", larger)
        scaled = zen_score(structure, settings=QUICK)
    num_convs = sum(isinstance(module, nn.Conv2d) for module in chain_of(structure).modules())
    # Each convolution is followed by a norm that is counted, so each one's factor comes back.
    assert scaled - plain == pytest.approx(num_convs * math.log(10.0), abs=0.1)


def test_the_chain_has_neither_shortcuts_nor_second_branches():
    structure = network(1, 2, 1, 1)
    chain, whole = chain_of(structure), Backbone(structure.backbone)
    kept = sum(isinstance(module, nn.Conv2d) for module in chain.modules())
    units = sum(stage.depth for stage in structure.backbone.stages)
    assert kept == 1 + 2 * units < sum(isinstance(module, nn.Conv2d) for module in whole.modules())
    assert not any(getattr(module, "has_shortcut", False) for module in chain.modules())


def test_naswot_counts_agreeing_activations(monkeypatch):
    """Two images: K has n on the diagonal and the number of agreements beside it."""
    structure, seen = network(1, 1, 1, 1), []

    class Spy(nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x > 0).flatten(1))
            return super().forward(x)

    monkeypatch.setattr("detector.layers.nn.ReLU", Spy)
    monkeypatch.setattr("detector.forward_proxies.ACTIVATIONS", (Spy,))
    value = naswot_score(structure, settings=ProxySettings(side=64, batch_size=2, draws=1))
    signs = torch.cat(seen, dim=1)
    total, agreeing = signs.shape[1], int((signs[0] == signs[1]).sum())
    assert 0 < agreeing < total
    assert value == pytest.approx(math.log(total**2 - agreeing**2), rel=1e-6)


def test_naswot_of_images_that_agree_everywhere(monkeypatch):
    monkeypatch.setattr("detector.forward_proxies._images", lambda *_: torch.ones(3, 3, 64, 64))
    assert naswot_score(network(1, 1, 1, 1), settings=ProxySettings(side=64, batch_size=3, draws=1)) == -math.inf
