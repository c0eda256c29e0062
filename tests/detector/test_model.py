"""The network as a whole: shapes, sizes, initial values, foreign backbones, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from network_cases import example_input, filled_model, published, random_structure, random_structures  # noqa: E402
from torch import nn  # noqa: E402

from detector.blocks import CSPStage, InvertedResidual, ResidualUnit  # noqa: E402
from detector.errors import InputError  # noqa: E402
from detector.layers import SPP, DepthwiseSeparable, Focus, RepConv, SqueezeExcite, make_activation  # noqa: E402
from detector.model import Detector, build_detector  # noqa: E402
from detector.types import HeadOutput  # noqa: E402
from maenas.errors import StructureError  # noqa: E402
from maenas.structure import FAMILIES, save_structure  # noqa: E402

SMALL = random_structure("res", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_of_random_structures(family):
    for structure in random_structures(family, 8):
        model = Detector(structure).eval()
        height, width = 64, 96
        points = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
        with torch.no_grad():
            images = torch.rand(2, 3, height, width) * 255
            output = model(images)
            features = model.features(images)
        logits = structure.head.num_classes + structure.head.background_class
        assert output.cls_logits.shape == (2, points, logits)
        assert output.box_logits.shape == (2, points, 4, structure.head.reg_max + 1)
        assert output.level_shapes == ((8, 12), (4, 6), (2, 3))
        assert tuple(f.shape[1] for f in features) == structure.neck.out_channels == model.neck.channels
        scores, boxes = model.decode(output)
        assert scores.shape == (2, points, structure.head.num_classes) and boxes.shape == (2, points, 4)
        assert scores.isfinite().all() and boxes.isfinite().all()


def test_a_batch_equals_its_images_one_by_one():
    model, images = filled_model("ns"), example_input(2, 96, 160)
    with torch.no_grad():
        both = model(images)
        single = model(images[1:])
    torch.testing.assert_close(both.cls_logits[1:], single.cls_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 3, 64, 50), "image width is 50; expected a multiple of 32"),
        ((1, 3, 33, 64), "image height is 33; expected a multiple of 32"),
        ((1, 3, 0, 64), "image height is 0; expected a multiple of 32, at least 32"),
        ((3, 64, 64), r"images have shape \(3, 64, 64\); expected \(B, 3, H, W\)"),
        ((1, 4, 64, 64), r"images have shape \(1, 4, 64, 64\); expected \(B, 3, H, W\)"),
    ],
)
def test_images_of_another_shape_are_refused(shape, message):
    with pytest.raises(InputError, match=message):
        Detector(SMALL)(torch.zeros(shape))


def test_an_empty_batch_passes():
    with torch.no_grad():
        output = Detector(SMALL).eval()(torch.zeros(0, 3, 32, 32))
    assert output.cls_logits.shape[0] == 0


def test_training_reaches_every_parameter():
    for family in FAMILIES:
        structure = random_structure(family, 1)
        neck = replace(structure.neck, fusion="csp_elan", num_blocks=2, extra_edges="down")
        stages = len(structure.backbone.stages)
        model = Detector(replace(structure, neck=neck)).train()
        output = model(torch.randn(2, 3, 64, 64))
        (output.cls_logits.square().sum() + output.box_logits.square().sum()).backward()
        unread = tuple(f"backbone.stages.{i}." for i in range(structure.backbone.out_stages[-1], stages))
        without = [
            name for name, p in model.named_parameters() if p.grad is None and not name.startswith(unread or "-")
        ]
        assert not without


def test_every_batch_norm_has_the_official_settings():
    for name in ("t", "m", "ns"):
        with torch.device("meta"):
            model = Detector(published(name))
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms and all(norm.eps == 1e-3 and norm.momentum == 0.03 for norm in norms)


def test_initial_values_follow_the_official_rules():
    torch.manual_seed(0)
    model = Detector(published("ns"))
    for conv in model.head.class_convs:
        assert torch.allclose(conv.bias, torch.tensor(-4.59512), atol=1e-5)
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert all(not conv.bias.any() for conv in model.head.box_convs)
    assert all(scale.shape == () and scale.item() == 1.0 for scale in model.head.scales)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.bias == 1e-4) and torch.all(module.weight == 1)
    unit = next(module for module in model.backbone.modules() if isinstance(module, InvertedResidual))
    assert unit.depthwise.conv.weight.std().item() == pytest.approx(1.0, rel=0.1)
    assert unit.expand.conv.weight.std().item() == pytest.approx(1 / 16, rel=0.1)
    down = next(module for module in model.neck.modules() if isinstance(module, DepthwiseSeparable))
    assert down.depthwise.conv.weight.shape == (80, 1, 3, 3)
    assert down.pointwise.conv.weight.std().item() == pytest.approx((2 / 80) ** 0.5, rel=0.1)
    plain = Detector(published("t")).backbone
    assert not any(m.bias.any() for m in plain.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_focus_stem_orders_rows_before_columns():
    layer = Focus(1, 4, kernel_size=1, activation="relu").eval()
    layer.conv.conv.weight.data = torch.eye(4)[:, :, None, None]
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]  # even-even 1, even-odd 2, odd-even 3, odd-odd 4
    found = layer(x).flatten() * (1 + 1e-3) ** 0.5
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0, 2.0, 4.0]))


def test_a_stride_2_unit_has_no_shortcut_and_no_branch_is_an_identity():
    def unit(in_channels, stride):
        return ResidualUnit(
            in_channels, 4, 6, first_kernel_size=1, kernel_size=3, stride=stride, activation="relu"
        ).eval()

    x = torch.randn(1, 6, 8, 8)
    for stride, expected in ((1, x.relu()), (2, torch.zeros(1, 6, 4, 4))):
        layer = unit(6, stride)
        layer.conv2.dense.conv.weight.data.zero_()
        layer.conv2.pointwise.conv.weight.data.zero_()
        torch.testing.assert_close(layer(x), expected)
    assert not isinstance(unit(5, 1).projection, nn.Identity)
    assert isinstance(unit(5, 2).projection, nn.Identity)
    branches = [name for name, _ in RepConv(6, 6).named_children()]
    assert branches == ["dense", "pointwise", "act"]


def test_a_csp_stage_keeps_relu_outside_its_units_and_concatenates_the_units_first():
    backbone = published("m").backbone
    for stage in (backbone.stages[2], backbone.stages[3]):
        layer = CSPStage(backbone, stage, 4).eval()
        outside = (layer.downsample, layer.start, layer.shortcut, layer.fuse)
        assert all(isinstance(part.act, nn.ReLU) for part in outside)
        assert all(isinstance(unit.act, nn.SiLU) and isinstance(unit.conv1.act, nn.SiLU) for unit in layer.units)
        assert all(isinstance(unit.projection, nn.Identity) and unit.has_shortcut for unit in layer.units)
        x = torch.randn(1, 4, 8, 8)
        with torch.no_grad():
            before = layer.spp(layer.downsample(x))
            through, beside = layer.start(before), layer.shortcut(before)
            for unit in layer.units:
                through = unit(through)
            torch.testing.assert_close(layer(x), layer.fuse(torch.cat([through, beside], dim=1)))
    assert isinstance(layer.spp.reduce.act, nn.SiLU)


def test_relu_models_have_a_silu_pyramid():
    with torch.device("meta"):
        backbone = Detector(published("t")).backbone
    pyramids = [module for module in backbone.modules() if isinstance(module, SPP)]
    assert len(pyramids) == 1 and isinstance(pyramids[0].fuse.act, nn.SiLU)
    assert isinstance(backbone.stages[4].blocks[1], SPP)


def test_squeeze_and_excitation_scales_channels():
    layer = SqueezeExcite(8)
    layer.expand.weight.data.zero_()
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(layer(x), x * 0.5)  # hard sigmoid of 0


def test_unknown_activations_are_refused():
    with pytest.raises(ValueError, match="activation is 'gelu'; expected one of none, relu"):
        make_activation("gelu")


class Handmade(nn.Module):
    """The least that a neck needs."""

    def __init__(self, channels=(4, 6, 8), strides=(8, 16, 32)):
        super().__init__()
        self.channels, self.strides = channels, strides
        self.convs = nn.ModuleList(nn.Conv2d(3, c, s, s) for c, s in zip((4, 6, 8), (8, 16, 32), strict=True))

    def forward(self, images):
        return [conv(images) for conv in self.convs]


def test_a_handmade_backbone_fits():
    model = Detector(SMALL, backbone=Handmade()).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).cls_logits.shape[1] == 64 + 16 + 4


@pytest.mark.parametrize(
    "backbone, message",
    [
        (nn.Identity(), "Identity has no channels and strides"),
        (Handmade(strides=(4, 8, 16)), r"strides is \(4, 8, 16\); expected \(8, 16, 32\)"),
        (Handmade(channels=(4, 6)), r"channels is \(4, 6\); expected 3 positive integers"),
    ],
)
def test_backbones_that_do_not_fit_are_refused(backbone, message):
    with pytest.raises(InputError, match=message):
        Detector(SMALL, backbone=backbone)


def test_a_detector_is_built_from_a_file(tmp_path):
    save_structure(SMALL, tmp_path / "small.json")
    model = build_detector(tmp_path / "small.json")
    assert model.structure == SMALL and model.num_classes == SMALL.head.num_classes
    with pytest.raises(StructureError, match="nowhere"):
        build_detector(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "classes, boxes, shapes, message",
    [
        ((2, 5), (2, 5, 4, 3), ((1, 5),), r"cls_logits has shape \(2, 5\); expected \(B, P, C\)"),
        ((2, 5, 3), (2, 4, 4, 3), ((1, 5),), r"box_logits has shape \(2, 4, 4, 3\); expected \(2, 5, 4, R \+ 1\)"),
        ((2, 5, 3), (2, 5, 3, 3), ((1, 5),), "box_logits has shape"),
        ((2, 5, 3), (2, 5, 4, 3), ((2, 2),), "hold 4 points; expected 5"),
    ],
)
def test_head_outputs_check_their_shapes(classes, boxes, shapes, message):
    with pytest.raises(ValueError, match=message):
        HeadOutput(torch.zeros(classes), torch.zeros(boxes), shapes)
