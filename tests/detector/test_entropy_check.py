"""The closed form of the entropy score against random forward passes of the detector's own modules."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from network_cases import MODELS, published, random_structure  # noqa: E402

from detector.entropy_check import ForwardEntropy, forward_entropy, linear_path  # noqa: E402
from maenas.lowering.op import Op  # noqa: E402
from maenas.sampling import random_structures  # noqa: E402
from maenas.scores import log_deviation, stage_views  # noqa: E402
from maenas.spaces import load_space  # noqa: E402
from maenas.structure import Structure  # noqa: E402

TOLERANCE = 0.15
"""Nats, for ln std of every output: the stem's and each stage's."""

LIGHT = 12e9
"""Random networks have at most so many FLOPs; wider ones take longer and agree better."""

FAMILIES = {"res": "res", "kxkx": "res", "csp": "csp", "mob": "mob"}
"""Family to the space that its networks are drawn from."""


def closed_form(structure: Structure, term=log_deviation) -> list[float]:
    """S after the stem and every stage, from the lowered operators that the score reads."""
    total, found = 0.0, []
    for view in stage_views(structure):
        total += float(term(view.ops))
        found.append(total)
    return found


def largest_gap(structure: Structure, measured: ForwardEntropy, term=log_deviation) -> float:
    pairs = zip(measured.log_std, closed_form(structure, term), strict=True)
    return max((left - right for left, right in pairs), key=abs)


def drawn(family: str, count: int) -> list[Structure]:
    found = random_structures(
        load_space(FAMILIES[family]), count, seed=0, max_flops=LIGHT if family != "csp" else 2 * LIGHT
    )
    return [replace(s, backbone=replace(s.backbone, family=family)) for s in found]


def check(structure: Structure) -> None:
    measured = forward_entropy(structure, accuracy=0.04)
    assert max(measured.standard_error) < 0.04, "too noisy to tell anything"
    assert abs(largest_gap(structure, measured)) < TOLERANCE, structure.name


@pytest.mark.parametrize("name", ["t", "ns"])
def test_closed_form_of_published_networks(name):
    check(published(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_form_of_a_random_network(family):
    check(drawn(family, 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("t", "ns")])
def test_closed_form_of_all_published_networks(name):
    check(published(name))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_form_of_thirty_random_networks(family):
    for structure in drawn(family, 30):
        check(structure)


# The check can fail


def without_groups(ops: list[Op]) -> float:
    """A depthwise convolution taken for a dense one."""
    return log_deviation([replace(op, depthwise=False) for op in ops])


def with_projections(ops: list[Op]) -> float:
    return log_deviation([replace(op, main_path=True) if op.kind == "conv" else op for op in ops])


def without_kernels(ops: list[Op]) -> float:
    return log_deviation([replace(op, kernel_size=1) for op in ops])


def one_unit_less(ops: list[Op]) -> float:
    return log_deviation([op for op in ops if ".unit2" not in op.name])


BROKEN = {
    "groups": ("ns", without_groups),
    "projections": ("s", with_projections),
    "kernels": ("t", without_kernels),
    "units": ("s", one_unit_less),
    "halved widths": ("t", lambda ops: log_deviation(ops) - 0.2),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_closed_form_is_caught(name):
    model, term = BROKEN[name]
    structure = published(model)
    measured = forward_entropy(structure, accuracy=0.06, max_draws=6)
    assert abs(largest_gap(structure, measured, term)) > TOLERANCE


def test_broken_modules_are_caught(monkeypatch):
    """A network that pads with zeros, keeps its activations or its shortcuts is not what the closed form describes."""
    structure = published("t")

    def zero_padded(spec: Structure):
        backbone = linear_path(spec)
        for module in backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.padding_mode = "zeros"
        return backbone

    def with_shortcuts(spec: Structure):
        backbone = linear_path(spec)
        for stage in backbone.stages:
            for unit in stage.blocks[1:]:
                if hasattr(unit, "has_shortcut"):
                    unit.has_shortcut = True
        return backbone

    for broken in (zero_padded, with_shortcuts):
        monkeypatch.setattr("detector.entropy_check.linear_path", broken)
        assert abs(largest_gap(structure, forward_entropy(structure, accuracy=0.06, max_draws=6))) > TOLERANCE


# Mechanics


def test_all_options_of_the_format_run():
    for family in FAMILIES:
        structure = random_structure(family, 3)
        measured = forward_entropy(structure, max_draws=4)
        assert len(measured.log_std) == len(structure.backbone.stages) + 1 and measured.draws == 4


def test_equal_seeds_give_equal_values_and_leave_the_generator_alone():
    structure = random_structure("res", 0)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = forward_entropy(structure, max_draws=4, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert forward_entropy(structure, max_draws=4, seed=1) == first != forward_entropy(structure, max_draws=4, seed=2)


def test_draws_go_on_until_the_accuracy_is_reached():
    rough, fine = (forward_entropy(published("t"), accuracy=accuracy) for accuracy in (0.1, 0.025))
    assert fine.draws > rough.draws and max(fine.standard_error) < 0.025
