"""The cost model without torch and the modules describe one and the same network."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest

torch = pytest.importorskip("torch")

from network_cases import (  # noqa: E402
    MODELS,
    assert_same_outputs,
    executed_convs,
    lowered_convs,
    published,
    random_structures,
    randomise_norms,
    with_image_size,
)
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from detector import neck as neck_module  # noqa: E402
from detector.layers import RepConv  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import deploy, fuse_reparam  # noqa: E402
from maenas.lowering import neck as lowering_neck  # noqa: E402
from maenas.lowering.costs import num_flops, num_params  # noqa: E402
from maenas.lowering.detector import lower  # noqa: E402
from maenas.structure import EXTRA_EDGES, FAMILIES, FUSION_STYLES, Structure  # noqa: E402

NUM_RANDOM = 30
# detector.md, section 12.1: parameters as trained and re-parameterised and with all norms folded (M), conv GFLOPs,
# two-branch convolutions.
MEASURED = {
    "t": (8.8757, 8.4796, 8.4739, 18.01, 24),
    "s": (16.9356, 16.2516, 16.2427, 37.62, 27),
    "m": (29.2417, 28.1782, 28.1641, 61.62, 33),
    "l": (43.8618, 42.0581, 42.0397, 97.12, 48),
    "ns": (1.4057, 1.4057, 1.3923, 1.498, 0),
    "nm": (2.7072, 2.7072, 2.6884, 3.582, 0),
    "nl": (5.6886, 5.6886, 5.6594, 5.909, 0),
    "n": (2.3473, 2.3473, 2.3309, 4.041, 0),
}


def shapes_only(structure: Structure) -> Detector:
    """A network without values: counting and following the shapes of a large one then takes no arithmetic."""
    with torch.device("meta"):
        return Detector(structure)


def blank(structure: Structure) -> torch.Tensor:
    return torch.empty(1, structure.backbone.stem.in_channels, *structure.image_size, device="meta")


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def check_small(structure: Structure) -> None:
    """Convolutions, parameters, and outputs of the deployed form."""
    model, ops = Detector(structure).eval(), lower(structure)
    randomise_norms(model, 0)
    assert count(model) == num_params(ops, "train"), structure
    deployed = deploy(model)
    assert count(deployed) == num_params(ops, "folded"), structure
    images = torch.randn(1, structure.backbone.stem.in_channels, *structure.image_size)
    assert executed_convs(deployed, images) == lowered_convs(ops), structure
    assert_same_outputs(model, deployed, images)


@pytest.mark.parametrize("name", ["t", "m", "nl"])
def test_other_image_sizes_run_the_lowered_convolutions(name):
    structure = with_image_size(published(name), 96, 416)
    assert executed_convs(deploy(shapes_only(structure)), blank(structure)) == lowered_convs(lower(structure))


@pytest.mark.parametrize("family", FAMILIES)
def test_random_structures_run_the_lowered_convolutions(family):
    seen = set()
    for structure in random_structures(family, NUM_RANDOM):
        check_small(structure)
        seen.update(options(structure))
    expected = {*FUSION_STYLES, *EXTRA_EDGES, "depthwise", "tower", "background", "focus", "conv stem", "spp"}
    expected |= {"projection"} if family in ("res", "kxkx") else {"se"} if family == "mob" else {"no units"}
    assert expected <= seen


def options(structure: Structure) -> set[str]:
    """The options that a random structure exercises."""
    backbone, neck, head = structure.backbone, structure.neck, structure.head
    widths = [backbone.stem.out_channels, *(stage.out_channels for stage in backbone.stages)]
    found = {neck.fusion, neck.extra_edges, "focus" if backbone.stem.kind == "focus" else "conv stem"}
    flags = {
        "depthwise": neck.depthwise,
        "tower": head.tower_depth > 1,
        "background": head.background_class,
        "spp": any(stage.spp for stage in backbone.stages),
        "se": any(stage.se for stage in backbone.stages),
        "no units": any(not stage.depth for stage in backbone.stages),
        "projection": any(
            stage.stride == 1 and before != stage.out_channels
            for before, stage in zip(widths, backbone.stages, strict=False)
        ),
    }
    return found | {name for name, present in flags.items() if present}


@pytest.mark.parametrize("fusion, edges", list(product(FUSION_STYLES, EXTRA_EDGES)))
def test_the_neck_variants_of_the_ablations_run_the_lowered_convolutions(fusion, edges):
    structure = next(random_structures("res", 1))
    neck = dataclasses.replace(structure.neck, depthwise=False, num_blocks=2, fusion=fusion, extra_edges=edges)
    check_small(dataclasses.replace(structure, neck=neck))


@pytest.mark.parametrize("name", MODELS)
def test_published_models_run_the_lowered_convolutions_and_have_the_measured_sizes(name):
    structure = published(name)
    model, ops = shapes_only(structure), lower(structure)
    fused = fuse_reparam(model)
    deployed = deploy(fused)
    with FlopCounterMode(display=False) as counter:
        assert executed_convs(deployed, blank(structure)) == lowered_convs(ops)
    counts = [count(model), count(fused), count(deployed)]
    assert counts == [num_params(ops, form) for form in ("train", "reparameterised", "folded")]
    flops = counter.get_total_flops()
    assert flops == num_flops(ops, "conv")
    *params, gigaflops, rep_convs = MEASURED[name]
    # The source's folded column fits all rows to the last digit without the three box scales.
    assert [counts[0] / 1e6, counts[1] / 1e6, (counts[2] - 3) / 1e6] == pytest.approx(params, abs=5.1e-5, rel=0)
    assert flops / 1e9 == pytest.approx(gigaflops, abs=5.1e-3 if gigaflops > 10 else 5.1e-4)
    assert sum(isinstance(module, RepConv) for module in model.modules()) == rep_convs


def test_both_packages_state_the_same_fusion_graphs():
    def plain(graphs):
        return {name: dataclasses.asdict(graph) for name, graph in graphs.items()}

    assert plain(neck_module.GRAPHS) == plain(lowering_neck.GRAPHS)


@pytest.mark.parametrize("channels", [1, 3, 4, 11, 12, 20, 60, 121, 122, 384])
def test_both_packages_round_alike(channels):
    assert neck_module.round_to_8(channels) == lowering_neck.round_to_8(channels)
