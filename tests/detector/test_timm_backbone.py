"""Backbones of timm: the contract of an extractor, training and deployment, and what is refused."""

import sys

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from network_cases import random_structure  # noqa: E402

from detector.backbone import FeatureExtractor, check_extractor  # noqa: E402
from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.convert_official import to_official  # noqa: E402
from detector.errors import CheckpointError, InputError, MissingExtraError  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import deploy  # noqa: E402
from detector.timm_backbone import timm_backbone  # noqa: E402

NAMES = {"resnet18": (128, 256, 512), "mobilenetv3_small_100": (24, 48, 576)}
STRUCTURE = random_structure("res", 0)


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return timm_backbone(request.param)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255


def test_it_is_a_feature_extractor(backbone, images):
    assert isinstance(backbone, FeatureExtractor) and check_extractor(backbone) is backbone
    assert backbone.channels in NAMES.values() and backbone.training
    shapes = [tuple(x.shape) for x in backbone(images)]
    assert shapes == [(2, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (8, 16, 32), strict=True)]


def test_a_detector_takes_it_trains_it_and_deploys(backbone, images):
    model = Detector(STRUCTURE, backbone=backbone)
    output = model(images)
    assert output.cls_logits.shape[:2] == (2, 8 * 12 + 4 * 6 + 2 * 3)
    (output.cls_logits.sum() + output.box_logits.square().sum()).backward()
    gradients = [value.grad for value in backbone.parameters()]
    assert all(gradient is not None for gradient in gradients) and gradients[0].any() and gradients[-1].any()
    deployed = deploy(model)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in deployed.backbone.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in deployed.neck.modules())
    with torch.no_grad():
        expected, actual = model.eval()(images), deployed(images)
    torch.testing.assert_close(actual.cls_logits, expected.cls_logits, atol=1e-4, rtol=1e-4)
    assert model.summary().params == sum(value.numel() for value in model.parameters())


def test_the_input_is_normalised_as_timm_does(images):
    torch.manual_seed(0)
    ours = timm_backbone("resnet18").eval()
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", features_only=True).eval()
    config = timm.data.resolve_model_data_config(theirs)
    mean, std = (torch.tensor(config[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected, actual = theirs((images / 255 - mean) / std)[2:], ours(images)
        raw = theirs(images)[2:]
    for first, second, other in zip(expected, actual, raw, strict=True):
        torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(other, first, atol=1e-2)
    assert not [key for key in ours.state_dict() if not key.startswith("network.")]


def test_maps_with_channels_last_and_images_of_one_channel(images):
    with torch.no_grad():
        swin = timm_backbone("swin_tiny_patch4_window7_224", strict_img_size=False).eval()
        assert [tuple(x.shape) for x in swin(images)] == [(2, 192, 8, 12), (2, 384, 4, 6), (2, 768, 2, 3)]
        grey = timm_backbone("mobilenetv3_small_100", in_channels=1)
        assert grey(images[:, :1])[0].shape == (2, 24, 8, 12)


def test_the_maps_can_be_named(images):
    named = timm_backbone("mobilenetv3_small_100", out_indices=(2, 3, 4))
    assert named.channels == NAMES["mobilenetv3_small_100"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224", {}, "strides 16, 16, 16; expected maps at strides 8, 16 and 32"),
        ("mobilenetv3_small_100", {"output_stride": 16}, r"strides 2, 4, 8, 16, 16; expected maps at strides"),
        (
            "mobilenetv3_small_100",
            {"out_indices": (1, 2, 3)},
            "picks maps at strides 4, 8, 16; expected one each at 8, 16 and 32",
        ),
        ("mobilenetv3_small_100", {"out_indices": (2, 3, 99)}, "cannot be made by timm"),
        ("mobilenetv3_small_100", {"colour": "red"}, "cannot be made by timm .*colour"),
        ("resnet_18", {}, "backbone is 'resnet_18'; expected a network of timm .*; did you mean resnet18?"),
        ("maxvit_pico_rw_256", {}, "cannot take an image of 64 x 96 .*; expected a network for images of any size"),
    ],
)
def test_what_is_no_backbone_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        timm_backbone(name, **options)


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"maenas\[timm\]"):
        timm_backbone("resnet18")


def test_files_that_would_lie_about_it_are_refused(backbone, tmp_path):
    pytest.importorskip("safetensors")
    model = Detector(STRUCTURE, backbone=backbone)
    with pytest.raises(CheckpointError, match="has no checkpoint, because the structure cannot rebuild it"):
        save_checkpoint(Checkpoint(STRUCTURE, model.state_dict(), model.class_names), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"backbone\.network\..*: has no official name"):
        to_official(model)


@pytest.mark.export
@pytest.mark.slow
def test_it_exports_to_onnx(images, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    model = timm_backbone("resnet18").eval()
    path = str(tmp_path / "backbone.onnx")
    torch.onnx.export(model, (images,), path, input_names=["images"], dynamo=True, verbose=False)
    actual = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    with torch.no_grad():
        for value, expected in zip(actual, model(images), strict=True):
            torch.testing.assert_close(torch.from_numpy(value), expected, atol=1e-3, rtol=1e-3)
