"""Our checkpoint format: round trip, and every way a file can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from network_cases import random_structure  # noqa: E402
from torch import nn  # noqa: E402

from detector.checkpoint import METADATA_KEY, Checkpoint, is_merged, load_checkpoint, save_checkpoint  # noqa: E402
from detector.errors import CheckpointError  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import deploy, fuse_reparam  # noqa: E402
from maenas import files  # noqa: E402
from maenas.errors import OutputError, StructureError  # noqa: E402
from maenas.published import load_published  # noqa: E402

NAMES = tuple(f"class {index}" for index in range(80))


@pytest.fixture(scope="module")
def checkpoint():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    structure = load_published("damo-yolo-ns")
    return Checkpoint(
        structure, Detector(structure).state_dict(), NAMES, metrics={"ap": 0.323}, provenance={"recipe": "none"}
    )


@pytest.fixture
def saved(checkpoint, tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(checkpoint, path)
    return path


def rewrite(path, change):
    """The file again with a changed header record."""
    weights = safetensors_torch.load_file(path)
    with safetensors_torch.safe_open(path, framework="pt") as stream:
        record = json.loads(stream.metadata()[METADATA_KEY])
    safetensors_torch.save_file(weights, path, metadata={METADATA_KEY: json.dumps(change(record))})


def test_round_trip_is_exact(checkpoint, saved):
    loaded = load_checkpoint(saved)
    assert loaded.structure == checkpoint.structure
    assert loaded.class_names == NAMES
    assert (loaded.metrics, loaded.provenance) == ({"ap": 0.323}, {"recipe": "none"})
    assert loaded.preprocessing["range"] == [0, 255]
    assert loaded.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(value, checkpoint.weights[key]) for key, value in loaded.weights.items())
    model = loaded.build()
    assert not model.training
    image = torch.rand(1, 3, 64, 64) * 255
    original = Detector(checkpoint.structure)
    original.load_state_dict(dict(checkpoint.weights))
    with torch.inference_mode():
        assert torch.equal(model(image).cls_logits, original.eval()(image).cls_logits)


@pytest.mark.parametrize("family", ["res", "csp"])
def test_merged_branches_make_the_round_trip_too(family, tmp_path):
    structure = random_structure(family, 0)
    model = fuse_reparam(Detector(structure))
    assert is_merged(model.state_dict()) and not is_merged(Detector(structure).state_dict())
    save_checkpoint(Checkpoint(structure, model.state_dict(), model.class_names), tmp_path / "fused.safetensors")
    again = load_checkpoint(tmp_path / "fused.safetensors").build()
    assert not again.training and again.class_names == model.class_names
    assert again.state_dict().keys() == model.state_dict().keys()
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.equal(again(image).cls_logits, model(image).cls_logits)


class Tiny(nn.Module):
    channels, strides = (3, 3, 3), (8, 16, 32)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 8, 8)

    def forward(self, images):
        x = self.conv(images)
        return [x, x[:, :, ::2, ::2], x[:, :, ::4, ::4]]


def test_a_foreign_backbone_has_no_checkpoint(tmp_path):
    structure = random_structure("res", 0)
    model = Detector(structure, backbone=Tiny())
    with pytest.raises(CheckpointError, match=r"backbone that is not the one of structure .*: keep its state dict"):
        save_checkpoint(Checkpoint(structure, model.state_dict(), model.class_names), tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_deployed_network_has_no_checkpoint(tmp_path):
    structure = random_structure("res", 0)
    model = deploy(Detector(structure))
    with pytest.raises(CheckpointError, match=r"do not fit structure .* is missing"):
        save_checkpoint(Checkpoint(structure, model.state_dict(), model.class_names), tmp_path / "net.safetensors")


def test_a_truncated_file_is_named(saved):
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"net\.safetensors: cannot be read as a checkpoint"):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95pickle", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load_checkpoint(path)


def test_foreign_safetensors_are_refused(tmp_path):
    safetensors_torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of ours"):
        load_checkpoint(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda record: {**record, "schema_version": 9}, CheckpointError, "schema_version is 9; expected 1"),
        (lambda record: {**record, "metrics": []}, CheckpointError, r"metrics is \[\]; expected an object"),
        (lambda record: [], CheckpointError, "is list; expected an object"),
        (lambda record: {**record, "class_names": ["a"]}, CheckpointError, "class_names has 1 entries; expected 80"),
        (lambda record: {**record, "structure": {}}, StructureError, "schema_version is null"),
    ],
)
def test_a_wrong_header_names_its_field(saved, change, error, message):
    rewrite(saved, change)
    with pytest.raises(error, match=message):
        load_checkpoint(saved)


def test_weights_of_another_structure_are_named(checkpoint, tmp_path):
    other = replace(checkpoint, structure=load_published("damo-yolo-nm"))
    with pytest.raises(CheckpointError, match=r"do not fit structure .*: backbone\..* is .*; and \d+ more"):
        save_checkpoint(other, tmp_path / "other.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_number_of_classes_is_named(checkpoint):
    structure = replace(checkpoint.structure, head=replace(checkpoint.structure.head, num_classes=20))
    with pytest.raises(CheckpointError, match="class_names has 80 entries; expected 20"):
        replace(checkpoint, structure=structure)
    narrow = replace(checkpoint, structure=structure, class_names=NAMES[:20])
    with pytest.raises(CheckpointError, match="head"):
        narrow.build()


def test_records_must_be_plain(checkpoint, tmp_path):
    for metrics in ({"ap": float("nan")}, {"ap": object()}):
        with pytest.raises(CheckpointError, match="must be plain JSON"):
            save_checkpoint(replace(checkpoint, metrics=metrics), tmp_path / "net.safetensors")


def test_a_failed_write_keeps_the_old_file(checkpoint, saved, monkeypatch):
    before = saved.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(checkpoint, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
