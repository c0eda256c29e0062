"""Opening checkpoints, structures and what is neither."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from network_cases import published  # noqa: E402

from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.errors import CheckpointError, InputError  # noqa: E402
from detector.load import load_detector, load_predictor  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import is_deployed  # noqa: E402

NAMES = tuple(f"thing {label}" for label in range(80))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "ns.safetensors"
    torch.manual_seed(0)
    structure = published("ns")
    save_checkpoint(Checkpoint(structure, Detector(structure).state_dict(), NAMES), path)
    return path


def test_a_checkpoint_keeps_its_weights_and_names(checkpoint: Path):
    model, has_weights = load_detector(checkpoint)
    assert has_weights and model.class_names == NAMES and not model.training
    torch.manual_seed(0)
    expected = Detector(published("ns")).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_structure_has_random_weights(tmp_path: Path):
    path = tmp_path / "structure.json"
    path.write_text(json.dumps(published("ns").to_dict()), encoding="utf-8")
    for source in (path, str(path), published("ns")):
        model, has_weights = load_detector(source)
        assert not has_weights and model.structure.digest == published("ns").digest
    first, again = (load_detector(published("ns"))[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    path.with_suffix(".onnx").touch()
    with pytest.raises(InputError, match=r"describes the exported file beside it; expected a structure, or .*onnx"):
        load_detector(path)


def test_a_predictor_is_deployed_and_detects_like_its_network(checkpoint: Path):
    predictor = load_predictor(checkpoint, threads=1)
    assert isinstance(predictor, Detector) and is_deployed(predictor)
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 96)).astype(np.float32)
    options = {"score_threshold": 0.005, "iou_threshold": 0.7, "max_detections": 20}
    deployed = predictor.detect(images, **options)
    trained = Detector.from_checkpoint(checkpoint).detect(images, **options)
    assert [len(one) for one in deployed] == [20, 20]
    for one, other in zip(deployed, trained, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert one.image_size == (64, 96)


def test_detecting_keeps_the_mode_and_needs_no_gradient():
    model = Detector(published("ns")).train()
    model.detect(np.zeros((1, 3, 32, 32), np.float32))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "net.bin"}, r"net.bin: suffix is '.bin'; expected .safetensors \(a checkpoint\) or .json"),
        ({"source": "net.json", "runtime": "tvm"}, "runtime is 'tvm'; expected one of torch, onnxruntime, openvino"),
        ({"source": "net.json", "runtime": "openvino"}, "maenas export net.json"),
        ({"source": "net.onnx", "runtime": "torch"}, "net.onnx: is an exported file; expected a runtime that reads it"),
        (
            {"source": "net.onnx", "device": "cuda"},
            "expected a runtime that reads it and no device",
        ),
        ({"source": "net.json", "threads": 0}, "threads is 0; expected a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_opened_is_refused(arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        load_predictor(**arguments)


def test_an_official_checkpoint_is_pointed_at_the_converter(tmp_path: Path):
    with pytest.raises(CheckpointError, match="names no structure; convert it first: maenas convert weights"):
        load_detector(tmp_path / "damoyolo.pth")


def test_an_absent_device_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match="device is 'cuda'; cannot be used"):
        load_predictor(published("ns"), device="cuda")
    with pytest.raises(InputError, match="device is 'toaster'; cannot be used"):
        load_predictor(published("ns"), device="toaster")


def test_names_must_be_as_many_as_the_classes():
    with pytest.raises(InputError, match="class_names has 2 entries; expected 80"):
        Detector(published("ns"), class_names=["cat", "dog"])
    assert Detector(published("ns")).class_names[:2] == ("class_0", "class_1")
