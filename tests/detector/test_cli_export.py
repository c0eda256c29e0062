"""`maenas export`: what it writes and prints, and how it refuses."""

from __future__ import annotations

import argparse
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

from network_cases import random_structure, with_image_size  # noqa: E402

from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.errors import ExportError  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.runtimes import load_exported  # noqa: E402
from maenas.cli import export as verb  # noqa: E402
from maenas.errors import MaenasError, OutputError, StructureError  # noqa: E402
from maenas.structure import save_structure  # noqa: E402

pytestmark = pytest.mark.export


@pytest.fixture
def structure_file(tmp_path):
    path = tmp_path / "structure.json"
    save_structure(with_image_size(random_structure("kxkx", 10), 64, 64), path)
    return path


def call(*arguments):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(argument) for argument in arguments]))


def test_a_structure_is_exported_with_a_warning(structure_file, tmp_path, capsys):
    assert call(structure_file, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert "RANDOM" in shown.err
    assert "model.onnx" in shown.out and "onnxruntime" in shown.out and "boxes, px" in shown.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]
    card = load_exported(tmp_path / "out").card
    assert (card.form, card.provenance) == ("decoded", {"source": "structure.json", "weights": "random"})


def test_a_checkpoint_is_exported_without_one(tmp_path, capsys):
    structure = with_image_size(random_structure("kxkx", 10), 64, 64)
    names = tuple(f"thing {label}" for label in range(structure.head.num_classes))
    save_checkpoint(Checkpoint(structure, Detector(structure).state_dict(), names), tmp_path / "best.safetensors")
    options = ["--outputs", "nms", "--batch", "dynamic", "--score", "0.1", "--iou", "0.5", "--max-detections", "7"]
    options += ["--image-size", "32x96", "--json"]
    assert call(tmp_path / "best.safetensors", "--out", tmp_path / "out", *options) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    record = json.loads(shown.out)
    assert (record["random_weights"], record["outputs"], record["precision"]) == (False, "nms", "fp32")
    assert {check["runtime"] for check in record["verification"]} >= {"onnxruntime"}
    assert record["size_bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    card = load_exported(tmp_path / "out").card
    assert card.class_names == names
    assert card.input.shape == (None, 3, 32, 96)
    assert (card.nms.score_threshold, card.nms.iou_threshold, card.nms.max_detections) == (0.1, 0.5, 7)


def test_an_existing_export_is_kept_unless_forced(structure_file, tmp_path):
    arguments = [structure_file, "--out", tmp_path / "out", "--no-verify"]
    call(*arguments)
    before = (tmp_path / "out" / "model.onnx").read_bytes()
    with pytest.raises(OutputError, match=r"model.onnx: exists already; expected a new folder, or --force"):
        call(*arguments, "--precision", "fp16")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == before
    call(*arguments, "--precision", "fp16", "--force")
    assert load_exported(tmp_path / "out").card.precision == "fp16"


def test_the_default_folder_is_named_after_the_model(structure_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(structure_file, "--no-verify", "--image-size", "dynamic")
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert load_exported("runs/export/structure").card.input.shape == (1, 3, None, None)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (["--batch", "0"], MaenasError, "--batch is '0'; expected a whole number, 1 or more, or dynamic"),
        (["--image-size", "big"], MaenasError, "--image-size is 'big'"),
        (["--image-size", "100"], ExportError, "image height is 100; expected a multiple of 32"),
        (["--score", "0.2"], MaenasError, "--score is 0.2; expected it with --outputs nms only"),
        (["--outputs", "nms", "--iou", "2"], ExportError, "iou_threshold is 2.0; expected a number from 0 to 1"),
    ],
)
def test_wrong_options_are_refused(structure_file, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        call(structure_file, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(StructureError, match="did you mean damo-yolo-t"):
        call("damo-yolo-tt", "--out", tmp_path / "out")
    with pytest.raises(MaenasError, match=r"none.safetensors"):
        call(tmp_path / "none.safetensors", "--out", tmp_path / "out")
