"""`maenas export`: what it writes and prints, and how it refuses."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

from export_cases import quick_trace, run_export  # noqa: E402
from network_cases import random_structure, with_image_size  # noqa: E402

from detector import export_graph, onnx_tail  # noqa: E402
from detector.artifact_files import read_card  # noqa: E402
from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.errors import ExportError  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.runtimes import load_exported  # noqa: E402
from maenas.cli import export as verb  # noqa: E402
from maenas.errors import MaenasError, OutputError, StructureError  # noqa: E402
from maenas.structure import save_structure  # noqa: E402

pytestmark = pytest.mark.export


@pytest.fixture(autouse=True)
def _trace_quickly(monkeypatch):
    monkeypatch.setattr(export_graph, "trace", quick_trace)


@pytest.fixture
def structure_file(tmp_path):
    path = tmp_path / "structure.json"
    save_structure(with_image_size(random_structure("kxkx", 10), 64, 64), path)
    return path


def test_a_structure_is_exported_with_a_warning(structure_file, tmp_path, capsys):
    assert run_export(structure_file, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert "RANDOM" in shown.err
    assert "model.onnx" in shown.out and "onnxruntime" in shown.out and "differences from torch" in shown.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]
    card = load_exported(tmp_path / "out").card
    assert (card.form, card.provenance) == ("decoded", {"source": "structure.json", "weights": "random"})


def test_a_checkpoint_is_exported_without_one(tmp_path, capsys):
    structure = with_image_size(random_structure("kxkx", 10), 64, 64)
    names = tuple(f"thing {label}" for label in range(structure.head.num_classes))
    save_checkpoint(Checkpoint(structure, Detector(structure).state_dict(), names), tmp_path / "best.safetensors")
    options = ["--nms", "end2end", "--dynamic", "batch", "--score", "0.1", "--iou", "0.5", "--max-detections", "7"]
    options += ["--image-size", "32x96", "--json"]
    assert run_export(tmp_path / "best.safetensors", "--out", tmp_path / "out", *options) == 0
    shown = capsys.readouterr()
    assert "WARNING" not in shown.err and "comparing with torch" in shown.err
    whole = json.loads(shown.out)
    (record,) = whole["artifacts"]
    assert (whole["random_weights"], record["form"], record["precision"]) == (False, "nms", "fp32")
    assert {check["runtime"] for check in record["parity"]["artifact"]} >= {"onnxruntime"}
    assert record["proofs"][0]["share_layers"] == 1.0
    assert record["size_bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    card = load_exported(tmp_path / "out").card
    assert card.class_names == names
    assert card.input.shape == (None, 3, 32, 96)
    assert (card.nms.score_threshold, card.nms.iou_threshold, card.nms.max_detections) == (0.1, 0.5, 7)


def test_an_existing_export_is_kept_unless_forced(structure_file, tmp_path):
    arguments = [structure_file, "--out", tmp_path / "out", "--no-verify"]
    run_export(*arguments)
    before = (tmp_path / "out" / "model.onnx").read_bytes()
    with pytest.raises(OutputError, match=r"model.onnx: exists already; expected a new folder, or --force"):
        run_export(*arguments, "--precision", "fp16")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == before
    run_export(*arguments, "--precision", "fp16", "--force")
    assert load_exported(tmp_path / "out").card.precision == "fp16"


def test_another_format_by_force_leaves_nothing_of_the_first(structure_file, tmp_path):
    pytest.importorskip("openvino")
    assert run_export(structure_file, "--out", tmp_path / "out", "--no-verify") == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run_export(structure_file, "--out", tmp_path / "out", "--no-verify", "--format", "openvino", "--force") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.bin", "model.json", "model.xml", "notes.txt"]
    assert load_exported(tmp_path / "out").runtime == "openvino"


def test_a_place_that_cannot_be_written_is_said_at_once(structure_file, tmp_path, monkeypatch):
    monkeypatch.setattr(export_graph, "trace", None)  # nothing is traced
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"model\.onnx: cannot be written \(.*file is no folder\)"):
        run_export(structure_file, "--out", tmp_path / "file" / "below" / "out")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match=r"model\.onnx: cannot be written \(no permission to write in .*\)"):
        run_export(structure_file, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_default_folder_is_named_after_the_model(structure_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_export(structure_file, "--no-verify", "--dynamic", "size")
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert load_exported("runs/export/structure").card.input.shape == (1, 3, None, None)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (["--batch", "0"], ExportError, "batch_size is 0; expected a whole number, 1 or more"),
        (["--dynamic", "batch,width"], MaenasError, "--dynamic is 'batch,width'; expected one or more of batch,size"),
        (["--format", "onnx,onnx"], MaenasError, "--format is 'onnx,onnx'; expected one or more of onnx,openvino"),
        (["--format", "tflite"], MaenasError, "--format is 'tflite'; expected one or more of onnx,openvino,tensorrt"),
        (["--precision", "int8"], MaenasError, "--precision is int8; expected --data too: images to calibrate with"),
        (["--max-drop", "0.5"], MaenasError, "--max-drop is 0.5; expected it with --data only"),
        (["--max-drop", "nan", "--data", "x"], MaenasError, "--max-drop is nan; expected a number above 0"),
        (
            ["--precision", "int8", "--data", "x", "--sensitivity", f"{__file__}/x"],
            MaenasError,
            "sensitivity.csv: cannot be written",
        ),
        (["--data", "x", "--no-verify"], MaenasError, "--no-verify goes without --data"),
        (["--image-size", "big"], MaenasError, "--image-size is 'big'"),
        (["--image-size", "100"], ExportError, "image height is 100; expected a multiple of 32"),
        (["--score", "0.2"], MaenasError, "--score is 0.2; expected it with --nms end2end only"),
        (["--nms", "end2end", "--iou", "2"], ExportError, "iou_threshold is 2.0; expected a number from 0 to 1"),
    ],
)
def test_wrong_options_are_refused(structure_file, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run_export(structure_file, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(StructureError, match="did you mean damo-yolo-t"):
        run_export("damo-yolo-tt", "--out", tmp_path / "out")
    with pytest.raises(MaenasError, match=r"none.safetensors"):
        run_export(tmp_path / "none.safetensors", "--out", tmp_path / "out")


def test_several_formats_get_a_folder_each_and_half_precision_on_this_cpu_is_told(structure_file, tmp_path, capsys):
    pytest.importorskip("openvino")
    options = ["--format", "onnx,openvino", "--precision", "fp16", "--dynamic", "batch,size"]
    assert run_export(structure_file, "--out", tmp_path / "out", *options) == 0
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert found == {
        "onnx/model.onnx",
        "onnx/model.json",
        "openvino/model.xml",
        "openvino/model.bin",
        "openvino/model.json",
    }
    shown = capsys.readouterr()
    cards = [read_card(path) for path in sorted((tmp_path / "out").rglob("model.json"))]
    assert [(card.format, card.precision, card.input.shape) for card in cards] == [
        ("onnx", "fp16", (None, 3, None, None)),
        ("openvino", "fp16", (None, 3, None, None)),
    ]
    for card in cards:
        for proof in card.proofs:
            silent = proof["share_layers"] < 0.5 and "fp16 was asked, but" not in shown.err
            assert not silent and set(proof["layers"]) <= {"fp16", "fp32"}


def test_a_wrong_artifact_is_kept_by_force_only_and_says_so(structure_file, tmp_path, capsys, monkeypatch):
    frame = onnx_tail.box_frame

    def shifted(image_size, strides):
        corners, reach = frame(image_size, strides)
        return corners + 4, reach

    monkeypatch.setattr(onnx_tail, "box_frame", shifted)
    with pytest.raises(ExportError, match=r"boxes differs from torch by 4 in onnxruntime.*; no file was written"):
        run_export(structure_file, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run_export(structure_file, "--out", tmp_path / "out", "--force") == verb.DIFFERENT
    assert "is WRONG and was kept by --force: boxes differs from torch by 4" in capsys.readouterr().err
    parity = read_card(tmp_path / "out" / "model.onnx").parity
    assert not parity["passed"]
    assert any("all boxes are shifted by 4, 4, 4, 4 pixels" in line for line in parity["complaints"])
