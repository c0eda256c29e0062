"""`maenas train` end to end: options, what it prints, how it resumes and refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")

from cli_cases import answer  # noqa: E402
from training_cases import FAST, tiny_structure, write_rectangles  # noqa: E402

import detector.evaluate_sources as evaluate_sources  # noqa: E402
from detector.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from detector.config import load_config  # noqa: E402
from detector.model import Detector  # noqa: E402
from maenas.cli.train import _frozen_parts  # noqa: E402
from maenas.structure import save_structure  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture(scope="module")
def structure(tmp_path_factory):
    path = tmp_path_factory.mktemp("structure") / "tiny.json"
    save_structure(tiny_structure(num_classes=80), path)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe of one epoch."""
    import yaml

    content: dict = {}
    for name, value in {**FAST, "train.epochs": 1, "schedule.warmup_epochs": 0, "schedule.no_aug_epochs": 0}.items():
        section, _, field = name.partition(".")
        content.setdefault(section, {})[field] = value
    path = tmp_path_factory.mktemp("recipe") / "fast.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def maenas(tmp_path, monkeypatch, capsys):
    """Run `maenas train` in an empty current folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return answer(capsys, "train", *arguments)

    return run


def test_a_run(maenas, structure, data, recipe, tmp_path):
    code, out, err = maenas(structure, "--data", data, "--recipe", recipe, "--set", "train.seed=3", "eval.samples=1")
    assert code == 0, err
    folder = Path("runs/train/tiny")
    assert "best (epoch 1): ap 0.0" in out and f"written: {folder}/best.safetensors" in out
    assert "note: classes: 80 in the structure, 2 in the data; trained: 2" in err and "epoch 1/1, loss " in err
    assert load_checkpoint(folder / "best.safetensors").class_names == ("red", "blue")
    config = load_config(folder / "config.yaml")
    assert (config.train.seed, config.eval.samples, config.model.name, config.data.path) == (3, 1, "tiny", str(data))
    code, _, err = maenas(structure, "--data", data, "--recipe", recipe)
    assert code == 2 and f"{folder}: holds a run already" in err
    code, out, _ = maenas(
        structure, "--data", data, "--recipe", recipe, "--force", "--json", "--epochs", 2, "--seed", 1
    )
    summary = json.loads(out)
    assert code == 0 and summary["epochs"] == 2 and summary["ended_by"] == "completed" and "ap" in summary["best"]


def test_fine_tuning(maenas, data, recipe, tmp_path):
    torch.manual_seed(0)
    model = Detector(tiny_structure(num_classes=2), class_names=("blue", "green"))
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), model.class_names), "start.safetensors")
    save_structure(model.structure, "tiny.json")
    options = ("--data", data, "--recipe", recipe, "--freeze", "backbone", "neck")
    code, _, err = maenas("start.safetensors", *options, "--out", "a")
    assert code == 0 and "classes taken over: blue; new: red" in err, err
    code, _, err = maenas("tiny.json", *options, "--weights", "start.safetensors", "--new-head", "--out", "b")
    assert code == 0 and "its classes are not used, all 2 start anew" in err
    trained = load_checkpoint("a/last.safetensors")
    name = "neck.nodes.merge_3.block.conv1.conv.weight"
    assert torch.equal(trained.weights[name], model.state_dict()[name])
    assert trained.provenance["parent"] == "start.safetensors"
    code, _, err = maenas("start.safetensors", *options, "--weights", "start.safetensors", "--out", "c")
    assert code == 2 and "--weights is given, and start.safetensors has weights already" in err


def test_distillation(maenas, structure, data, recipe, tmp_path):
    torch.manual_seed(0)
    model = Detector(tiny_structure(width=12, num_classes=5)).eval()
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), model.class_names), "teacher.safetensors")
    options = (structure, "--data", data, "--recipe", recipe, "--out", "run")
    code, _, err = maenas(*options, "--teacher", "teacher.safetensors", "--set", "distill.method=mimic")
    assert code == 0, err
    assert "from teacher.safetensors; mimic at levels 3, 4, 5 of the neck, weight 1, cosine, to the end" in err
    assert re.search(r"epoch 1/1, loss \S+, lr \S+, \S+ images/s, teacher \d\.\d{3} x 0\.\d\d", err)
    assert load_config("run/config.yaml").distill.teacher == "teacher.safetensors"
    code, _, err = maenas(*options, "--teacher", "gone.safetensors", "--force", "--dry-run")
    assert code == 2 and "teacher gone.safetensors: cannot be read as a checkpoint" in err
    code, _, err = maenas(*options, "--teacher", "teacher.safetensors", "--set", "distill.weight=0")
    assert code == 2 and "distill.weight is 0.0; expected a number above 0 with a teacher, or no teacher" in err


def test_resuming(maenas, structure, data, recipe, monkeypatch):
    def stopped(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    evaluate = evaluate_sources.evaluate
    monkeypatch.setattr(evaluate_sources, "evaluate", stopped)
    options = ("--data", data, "--recipe", recipe, "--epochs", 2, "--out", "run")
    code, _, err = maenas(structure, *options)
    assert code == 143 and "stopped by SIGTERM; go on with: maenas train --resume --out run" in err
    monkeypatch.setattr(evaluate_sources, "evaluate", evaluate)
    code, _, err = maenas("--resume", "--out", "run", "--epochs", 3)
    assert code == 2 and "had other settings (train.epochs: 2 -> 3)" in err
    code, out, err = maenas("--resume", "--out", "run", "--workers", 1)
    assert code == 0 and "completed: 2 epochs, 6 steps" in out, err
    code, out, _ = maenas(structure, *options, "--resume", "--json")
    assert code == 0 and json.loads(out)["epochs"] == 2, "the same command goes on too"


def test_the_plan(maenas, structure, data, recipe, tmp_path):
    code, out, _ = maenas("damo-yolo-ns", "--data", data, "--batch", 4, "--image-size", "64x96", "--dry-run")
    assert code == 0 and "image size: [64, 96]" in out and "adamw, highest learning rate 6.25e-05" in out
    code, out, _ = maenas(structure, "--data", data, "--recipe", recipe, "--dry-run", "--json")
    plan = json.loads(out)
    assert plan["steps"] == 3 and plan["classes"] == ["red", "blue"] and plan["config"]["train"]["batch_size"] == 4
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_default_recipes(maenas, structure, data):
    for model, name in (("damo-yolo-t", "sgd"), ("damo-yolo-nm", "adamw"), (structure, "sgd")):
        code, out, _ = maenas(model, "--data", data, "--batch", 4, "--dry-run", "--json")
        assert code == 0 and json.loads(out)["config"]["optimizer"]["name"] == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "MODEL is missing"),
        (("damo-yolo-x", "--data", "DATA"), "structure 'damo-yolo-x' is unknown"),
        (("STRUCTURE",), "--data is missing; expected a data.yaml"),
        (("STRUCTURE", "--data", "gone"), "gone: no such file or folder"),
        (("STRUCTURE", "--data", "DATA", "--recipe", "smal-data"), "did you mean small-data?"),
        (("STRUCTURE", "--data", "DATA"), "train.batch_size is 256, but "),
        (("STRUCTURE", "--data", "DATA", "--set", "train.epoch=3"), "train.epoch is not a field; did you mean epochs?"),
        (("STRUCTURE", "--data", "DATA", "--image-size", "50"), "model.image_size[0] is 50; expected a multiple of 32"),
        (("STRUCTURE", "--data", "DATA", "--freeze", "head"), 'model.freeze[0] is "head"; expected backbone, neck or'),
        (("STRUCTURE", "--data", "DATA", "--resume"), "holds no run to resume (state.safetensors is missing)"),
        (("start.pth", "--data", "DATA"), "names no structure; expected it as --weights"),
        (("gone.safetensors", "--data", "DATA"), "gone.safetensors: cannot be read as a checkpoint"),
    ],
)
def test_refusals(arguments, message, maenas, structure, data, tmp_path):
    places = {"DATA": data, "STRUCTURE": structure}
    code, out, err = maenas(*(places.get(argument, argument) for argument in arguments))
    assert code == 2 and out == "" and err.startswith("maenas: error: ") and err.count("\n") == 1, err
    assert message in err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_missing_reporter_is_named(maenas, structure, data, recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, _, err = maenas(structure, "--data", data, "--recipe", recipe, "--tensorboard")
    assert code == 2 and "pip install 'maenas[tensorboard]'" in err


def test_frozen_parts_are_read():
    assert _frozen_parts(["neck", "stage", "2"]) == ["neck", "stage 2"]
    assert _frozen_parts(["stage 3"]) == ["stage 3"]
