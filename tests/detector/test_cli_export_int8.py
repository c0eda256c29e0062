"""`maenas export --precision int8`: from a checkpoint and a data set to an artifact that passed the gate."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

from evaluation_cases import write_scenes  # noqa: E402
from export_cases import lively_in_training, quick_trace, run_export, small_structure  # noqa: E402

from detector import export_graph, export_parity  # noqa: E402
from detector.artifact_files import read_card  # noqa: E402
from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from maenas.errors import MaenasError  # noqa: E402

pytestmark = pytest.mark.export


def test_a_checkpoint_becomes_int8(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_graph, "trace", quick_trace)
    # Random weights suffer more from rounding than trained ones do.
    monkeypatch.setattr(export_parity, "INT8_SHIFT", 1.0)
    data = write_scenes(tmp_path / "scenes")
    annotations = tmp_path / "scenes" / "annotations"
    shutil.copy(annotations / "instances_val.json", annotations / "instances_train.json")
    model = lively_in_training(small_structure())
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), data.class_names), tmp_path / "best.safetensors")
    options = ["--precision", "int8", "--data", tmp_path / "scenes", "--calibration-images", "3", "--json"]
    options += ["--sensitivity", tmp_path / "sensitivity", "--max-drop", "1", "--seven-bits"]
    assert run_export(tmp_path / "best.safetensors", "--out", tmp_path / "out", *options) == 0
    shown = capsys.readouterr()
    assert "calibrating with 3 images" in shown.err and "int8 keeps AP" in shown.err
    (record,) = json.loads(shown.out)["artifacts"]
    assert record["precision"] == "int8"
    told = read_card(tmp_path / "out" / "model.onnx").quantisation
    assert told["calibration"] == {"method": "minmax", "num_images": 3}
    assert told["drop"] <= told["max_drop"] == 0.01
    assert told["weights"] == "int8, per output channel, 7 bits" and told["share_macs"] == 1.0
    with (tmp_path / "sensitivity" / "sensitivity-onnx.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == told["num_layers"] == len(told["sensitivities"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8-layers", "all"], "--int8-layers is given; expected it with --precision int8 only"),
        (["--seven-bits"], "--seven-bits is given; expected it with --precision int8 only"),
        (["--precision", "int8", "--data", "x", "--accuracy-aware"], "with --format onnx; expected openvino"),
        (
            ["--precision", "int8", "--data", "x", "--calibration-images", "0"],
            "--calibration-images is 0; expected a whole number, 1 or more",
        ),
        (["--precision", "int8", "--data", "x", "--max-drop", "-0.5"], "--max-drop is -0.5; expected a number above 0"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(MaenasError) as error:
        run_export("damo-yolo-t", "--out", tmp_path / "out", *options)
    assert message in str(error.value)
