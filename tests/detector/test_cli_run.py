"""`maenas run` end to end: the plan, what it refuses, and a journey that is stopped, killed, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for module in ("safetensors", "cv2", "psutil", "faster_coco_eval", "onnx", "onnxruntime", "onnxscript", "sklearn"):
    pytest.importorskip(module)

from cli_cases import answer  # noqa: E402
from export_cases import quick_trace  # noqa: E402
from training_cases import tiny_structure, write_rectangles  # noqa: E402

from detector import export_graph  # noqa: E402
from detector.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import deploy  # noqa: E402
from maenas.cli.main import main  # noqa: E402
from maenas.latency.table_local import local_fingerprint  # noqa: E402
from maenas.structure import load_structure, save_structure  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
USUAL = ("--budget", "1.5ms", "--device", "t4", "--batch", "8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = Detector(tiny_structure(), class_names=("red", "blue"))
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), model.class_names), path)
    return path


@pytest.fixture
def maenas(tmp_path, monkeypatch, capfd):
    """Run `maenas run` in an empty folder without tables of one's own: (exit code, standard output, standard error)."""
    monkeypatch.setenv("MAENAS_TABLES", str(tmp_path / "tables"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments):
        return answer(capfd, "run", *arguments)

    return run


@pytest.fixture
def refused(maenas):
    """Run a command that must fail as a user's error; returns its one line."""

    def run(*arguments):
        code, out, err = maenas(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("maenas: error: ") and err.count("\n") == 1
        return err

    return run


def plan(out):
    """Names of the steps and their commands, as --dry-run --json prints them."""
    record = json.loads(out)
    return record, {step["name"]: step["command"] for step in record["steps"]}


def test_the_plan_for_another_machine(maenas, data):
    code, out, err = maenas(*USUAL, "--data", data, "--dry-run", "--json", "--set", "train.device=cpu")
    assert code == 0, err
    record, steps = plan(out)
    assert record["table"] == "t4" and record["is_measured"] is False
    assert record["out"] == f"runs/run/{data.parent.name}-t4-1.5ms"
    assert list(steps) == ["search", "front", "explain", "train", "eval", "export-fp16", "check-fp16", "plot"]
    # TensorRT runs on a GPU: the wide space, in the arithmetic of the table; classes are those of the data.
    assert steps["search"][3:9] == ["1.5ms", "--space", "res", "--num-classes", "2", "--device"]
    assert steps["train"][5:] == [
        "--recipe", "small-data", "--batch", "8", "--set", "train.device=cpu", "--out", f"{record['out']}/train",
    ]  # fmt: skip
    assert not Path("runs").exists()


def test_the_plan_for_this_machine(maenas, data):
    options = ("--data", data, "--batch", "4", "--dry-run", "--quick")
    code, out, err = maenas("--budget", "8ms", "--device", "local", *options)
    assert code == 0, err
    machine = local_fingerprint()[:4]
    name = f"-1t-res-small-320-2c-{machine}"
    lines = out.splitlines()
    assert lines[1].endswith(f"{name}, to be made; measured on this machine")
    assert "to do  profile: maenas profile --backend " in lines[2] and "--quick --work runs/run/" in lines[2]
    assert "--measure --out" in lines[3] and any("  benchmark: maenas benchmark " in line for line in lines)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (("--device", "t4"), "onnx"),
        (("--device", "local"), "onnx, psutil"),
        (("--device", "local", "--exported", "export"), "psutil"),
        (("--device", "local", "--precision", "fp32,int8", "--format", "openvino"), "onnx, psutil, nncf"),
    ],
)
def test_missing_packages_are_named_before_the_first_step(refused, data, monkeypatch, options, missing):
    gone = ("onnx", "psutil", "nncf")
    monkeypatch.setattr("maenas.cli.run_packages.find_spec", lambda name: None if name in gone else object())
    expected = f"maenas run needs the packages {missing}; install them with: pip install 'maenas[all]'"
    assert expected in refused("--budget", "8ms", "--data", data, *options)


def test_a_plan_with_given_weights(maenas, data, weights):
    code, out, err = maenas(*USUAL[:4], "--data", data, "--weights", weights, "--dry-run", "--json")
    assert code == 0, err
    _, steps = plan(out)
    assert list(steps) == ["explain", "eval", "export-fp16", "check-fp16", "plot"]
    assert steps["eval"][2] == str(weights)


def test_a_plan_with_a_given_search(maenas, refused, data, tmp_path):
    words = ("search", "--block", "res", "--device", "t4", "--budget", "2.5ms", "--out", str(tmp_path / "found"))
    assert main([*words, "--num-classes", "2"]) == 0
    options = (*USUAL, "--data", data, "--dry-run", "--searched", tmp_path / "found")
    code, out, err = maenas(*options, "--json")
    assert code == 0, err
    record, steps = plan(out[out.index("{") :])
    assert list(steps)[:3] == ["explain", "train", "eval"]
    assert steps["explain"][2] == f"{record['out']}/network/structure.json"
    assert "--structure is given, and so is --searched; expected one of them" in refused(
        *options, "--structure", "damo-yolo-t"
    )
    assert "--searched " in (message := refused(*options, "--image-size", "320"))
    assert "for 2 classes at 640x640 px; expected one for 2 classes at 320 px (maenas search" in message
    assert main([*words, "--force"]) == 0
    refused_for = refused(*options).partition("its network is ")[2]
    assert refused_for.startswith("for 80 classes at 640x640 px; expected one for 2 classes (maenas search")
    (tmp_path / "found" / "search.json").unlink()
    assert "search.json: cannot be read (No such file or directory)" in refused(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--device", "t4", "--batch", "4", "--backend", "openvino"),
            "--backend is given; expected it with --device local only",
        ),
        (("--device", "t4", "--threads", "0"), "--threads is 0; expected 1 or more"),
        (("--device", "t5"), "latency table 't5' is unknown"),
        (("--device", "t4", "--precision", "fp32,fp64"), "--precision is 'fp32,fp64'; expected one or more of fp32"),
        (("--device", "t4", "--block", "res", "--space", "res"), "give either --block .* or --space FILE"),
        (("--device", "t4", "--variant", "huge", "--block", "res"), "huge"),
        (("--device", "t4", "--structure", "damo-yolo-t", "--block", "res"), "--block or --space is given, and so is"),
        (
            ("--device", "t4", "--structure", "damo-yolo-t", "--max-params", "9M"),
            "--max-params is of the search, and",
        ),
        (("--device", "t4", "--structure", "damo-yolo-t", "--score", "params"), "--score is of the search, and the"),
        (("--device", "t4", "--structure", "damo-yolo-t", "--allow-extrapolation"), "--allow-extrapolation is of the"),
        (("--device", "t4", "--structure", "damo-yolo-t", "--image-size", "100"), "--image-size: .*multiple"),
        (("--device", "t4", "--structure", "gone.json"), "gone.json"),
        (("--device", "local", "--top-k", "0"), "--top-k is 0; expected 1 or more"),
        (("--device", "local", "--max-params", "many"), "params budget 'many' is not a number with a unit"),
        (("--device", "local", "--score", "best"), "unknown score 'best'"),
        (("--device", "local", "--score", "deepmad", "--solver", "exact"), "score deepmad is not separable"),
        (("--device", "t4", "--weights", "gone.safetensors"), "gone.safetensors"),
        (("--device", "t4", "--epochs", "5"), "train.epochs is 5; expected more than schedule.warmup_epochs"),
        (("--device", "t4", "--set", "train.epoch=5"), "train.epoch"),
        (("--device", "t4", "--recipe", "small"), "small"),
        (("--device", "t4"), "--batch is 16 by the recipe, and there are 12 training images; expected at most 12"),
        (("--device", "t4", "--batch", "13"), "--batch is 13, and there are 12 training images; expected at most 12"),
        (("--device", "t4", "--batch", "4", "--teacher", "gone.safetensors"), "gone.safetensors: cannot be read"),
        (("--device", "t4", "--exported", "."), "has no model.json; expected the folder of an export"),
        ((), "--device is missing; expected a latency table, such as t4, or local"),
    ],
)
def test_refusals(refused, data, options, message):
    import re

    assert re.search(message, refused("--budget", "1.5ms", "--data", data, "--dry-run", *options))


def test_refusals_about_given_weights(refused, data, weights, tmp_path):
    options = (*USUAL[:4], "--data", data, "--weights", weights, "--dry-run")
    assert "--epochs is of training, which --weights or --exported leave out" in refused(*options, "--epochs", "3")
    assert "--image-size is 96; expected none: the trained network has its own" in refused(
        *options, "--image-size", "96"
    )
    save_structure(tiny_structure(width=12), tmp_path / "other.json")
    message = refused(*options, "--structure", tmp_path / "other.json")
    assert "what was given is of different networks: --weights " in message


def test_refusals_about_given_exports(refused, data, tmp_path, monkeypatch):
    """Now, not after a search of minutes."""
    monkeypatch.setattr(export_graph, "trace", quick_trace)
    folder = tmp_path / "fp32"
    export_artifacts(
        deploy(Detector(tiny_structure())), folder, class_names=("red", "blue"), options=ExportOptions(),
        checks=ExportChecks(verify=False),
    )  # fmt: skip
    options = (*USUAL[:4], "--data", data, "--exported", folder, "--dry-run")
    assert "fp32/model.json: precision is fp32; expected files in one of fp32" in refused(
        *options[:-1], folder, "--dry-run"
    )
    with (folder / "model.onnx").open("r+b") as stream:
        stream.truncate(1000)
    assert "fp32/model.onnx: sha256 is" in refused(*options)
    (folder / "model.json").write_text("{}")
    assert "fp32/model.json: schema_version is" in refused(*options)


def test_a_teacher_that_is_none(refused, data, tmp_path):
    (tmp_path / "teacher.safetensors").write_text("none")
    message = refused(*USUAL, "--data", data, "--teacher", tmp_path / "teacher.safetensors", "--dry-run")
    assert "teacher.safetensors: cannot be read as a checkpoint" in message


def test_data_without_validation(refused, data):
    only = data.parent / "only-train.yaml"
    only.write_text("train: train.json\ntrain_images: train\n")
    assert "only-train.yaml: has no split val; expected train and val" in refused(*USUAL, "--data", only, "--dry-run")


def test_a_folder_of_something_else(refused, data):
    Path("thesis").mkdir()
    Path("thesis", "chapter.txt").touch()
    assert "thesis: holds files, but no run.json of a run" in refused(*USUAL, "--data", data, "--out", "thesis")


def test_a_failed_step_says_how_to_go_on(maenas, data):
    options = ("--budget", "0.001ms", "--device", "t4", "--data", data)
    options += ("--set", "train.batch_size=4", "eval.samples= 0")
    code, out, err = maenas(*options, "--out", "failed", "--json")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "[1/8] search: find the network" and "maenas: error: " in err
    assert lines[-1].startswith("maenas: step search ended with 2; once the cause is gone, go on with: maenas run ")
    assert lines[-1].endswith("--device t4 --set train.batch_size=4 'eval.samples= 0' --out failed")
    # Another question is not answered in the same folder.
    other = ("--budget", "2ms", "--device", "t4", "--data", data, "--out", "failed", "--dry-run")
    other += ("--set", "train.batch_size=6")
    code, _, err = maenas(*other)
    assert code == 2 and "--budget was 0.001ms, is 2ms" in err
    assert "--set was train.batch_size=4 eval.samples= 0, is train.batch_size=6" in err
    code, _, err = maenas(*other, "--force")
    assert code == 0, err


def begin(options, log):
    """`maenas run` in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "maenas", "run", *map(str, options)], stderr=log, stdout=log)


def wait_for(condition, process, seconds=120.0):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"it never happened; exit status {process.poll()}")


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_journey_that_is_stopped_and_killed_on_the_way(maenas, tmp_path):
    """From pictures to a report for a T4, with a tiny training; SIGTERM and SIGKILL cost nothing that was done."""
    assert main(["sample-data", "shapes", "--images", "24"]) == 0
    options = (
        "--budget", "0.6ms", "--device", "t4", "--data", "shapes/data.yaml", "--space", "res-small",
        "--image-size", 96, "--max-layers", 15, "--allow-extrapolation", "--precision", "fp32",
        "--epochs", 12, "--batch", 4, "--out", "journey",
        "--set", "train.device=cpu", "data.workers=0", "eval.every=4", "schedule.warmup_epochs=1",
        "schedule.no_aug_epochs=1",
    )  # fmt: skip
    out, record = Path("journey"), Path("journey", "run.json")
    metrics = out / "train" / "metrics.csv"
    with Path("log.txt").open("w") as log:
        first = begin(options, log)
        wait_for(lambda: metrics.exists(), first)
        first.send_signal(signal.SIGTERM)
        assert first.wait() == 128 + signal.SIGTERM
    text = Path("log.txt").read_text()
    assert "maenas: stopped by SIGTERM in step train; go on with: maenas run --budget 0.6ms" in text
    assert [step["name"] for step in json.loads(record.read_text())["steps"]] == ["search", "front", "explain"]
    searched = (out / "search" / "search.json").stat().st_mtime_ns
    epochs = len(metrics.read_text().splitlines())
    with Path("log.txt").open("w") as log:
        second = begin(options, log)
        wait_for(lambda: len(metrics.read_text().splitlines()) > epochs, second)
        second.kill()
        second.wait()
    code, printed, err = maenas(*options, "--json")
    assert code == 0, err
    assert "[1/8] search: done already" in err and "(goes on)" in err
    facts = json.loads(printed)
    train = next(step for step in facts["steps"] if step["name"] == "train")
    assert train["attempts"] == 3 and facts["training"]["epochs"] == 12 and "--resume" not in train["command"]
    assert (out / "search" / "search.json").stat().st_mtime_ns == searched
    assert facts["latency"]["verdict"] == "not measured" and 0 < facts["latency"]["predicted_ms"] <= 0.6
    assert facts["artifacts"][0]["ap"] == pytest.approx(facts["accuracy"]["metrics"]["ap"], abs=0.01)
    structure = load_structure(out / "search" / "structure.json")
    assert load_checkpoint(out / "train" / "best.safetensors").structure.digest == structure.digest
    page = (out / "report.html").read_text()
    assert facts["network"]["digest"] == structure.digest and structure.digest in page
    assert page.count("<svg") == len(list((out / "pictures").glob("*.png"))) and "data:image/jpeg" in page
    assert json.loads((out / "report.json").read_text()) == facts
    # Once more: nothing is left to do. Another precision: only that is.
    code, printed, err = maenas(*options)
    assert code == 0 and err.count("done already") == 8 and "written: journey/report.html" in printed
    more = [("fp32,fp16" if option == "fp32" else option) for option in options]
    code, _, err = maenas(*more)
    assert code == 2 and "--precision was fp32, is fp32,fp16" in err
    code, printed, err = maenas(*more, "--force")
    assert code == 0, err
    assert err.count("done already") == 8 and "fp16:    journey/export/fp16, AP " in printed
    # The search and the files given to another journey: the same network with the same proof, nothing searched.
    given = ("--searched", out / "search", "--exported", out / "export" / "fp32")
    code, printed, err = maenas(*options[:6], *given, "--out", "given", "--json")
    assert code == 0, err
    again = json.loads(printed)
    assert [step["name"] for step in again["steps"]] == ["explain", "eval", "check-fp32", "plot"]
    assert again["choice"] == facts["choice"] | {"given": True, "front": []}
    assert [one["what"] for one in again["given"]] == ["latency table", "search", "fp32 files"]
    table = f"table <code>{facts['device']['table']}</code>"
    assert f"This search was made before, with {table}, and given" in Path("given/report.html").read_text()
