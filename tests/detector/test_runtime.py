"""Predicting from an artifact with numpy and one runtime: the same detections, and no torch anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pil = pytest.importorskip("PIL.Image")

from export_cases import lively, quick_trace, small_structure  # noqa: E402

from detector import export_graph  # noqa: E402
from detector.errors import ExportError, InputError, MissingExtraError  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts  # noqa: E402
from detector.load import load_predictor  # noqa: E402
from detector.runtime import Detections, load  # noqa: E402
from detector.runtimes import is_installed  # noqa: E402

pytestmark = pytest.mark.export

ROOT = Path(__file__).resolve().parents[2]
READERS = {"onnx": "onnxruntime", "openvino": "openvino"}
FORMATS = [name for name, runtime in READERS.items() if is_installed(runtime)]
SCORE = 0.2

# Predicts with what is installed beside it, and writes down the very bits.
PREDICT = """
import json, sys
from detector.runtime import load

model = load(sys.argv[1], threads=1)
found = model.predict(sys.argv[2], score_threshold=float(sys.argv[3]))
loaded = sorted({name.partition(".")[0] for name in sys.modules})
record = {"type": f"{type(found).__module__}.{type(found).__name__}", "runtime": model.runtime, "loaded": loaded}
record |= {"boxes": found.boxes.tobytes().hex(), "scores": found.scores.tobytes().hex()}
record |= {"labels": found.labels.tolist(), "names": list(found.class_names), "image_size": list(found.image_size)}
print(json.dumps(record))
"""


@pytest.fixture(scope="module")
def model():
    return lively(small_structure())


@pytest.fixture(scope="module")
def artifacts(model, tmp_path_factory):
    """The network in every format, and a photo."""
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_graph, "trace", quick_trace)
        for name in FORMATS:
            export_artifacts(
                model,
                folder / name,
                class_names=model.class_names,
                formats=[name],
                options=ExportOptions(),
                checks=ExportChecks(verify=False),
            )
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    pil.fromarray(noise).save(folder / "photo.png")
    return folder


def same_bits(record, found):
    return (
        record["boxes"] == found.boxes.tobytes().hex()
        and record["scores"] == found.scores.tobytes().hex()
        and record["labels"] == found.labels.tolist()
        and record["names"] == list(found.class_names)
        and record["image_size"] == list(found.image_size)
    )


@pytest.mark.parametrize("name", FORMATS)
def test_an_artifact_opens_by_its_card_its_file_or_its_folder(model, artifacts, name):
    file = {"onnx": "model.onnx", "openvino": "model.xml"}[name]
    options = {"score_threshold": SCORE}
    found = [
        load(path, threads=1).predict(artifacts / "photo.png", **options)
        for path in (artifacts / name / "model.json", artifacts / name / file, artifacts / name)
    ]
    assert type(found[0]) is Detections and len(found[0]) > 3
    for other in found[1:]:
        assert np.array_equal(found[0].boxes, other.boxes) and np.array_equal(found[0].scores, other.scores)
    # Of the same type as torch's, with the same names, and the same objects.
    wanted = model.predict(artifacts / "photo.png", **options)
    assert type(wanted) is type(found[0]) and wanted.class_names == found[0].class_names
    assert wanted.labels.tolist() == found[0].labels.tolist()
    np.testing.assert_allclose(found[0].boxes, wanted.boxes, rtol=0, atol=0.01)
    np.testing.assert_allclose(found[0].scores, wanted.scores, rtol=0, atol=1e-5)


def test_a_predictor_opens_by_its_card_too(artifacts):
    assert load_predictor(artifacts / "onnx" / "model.json").path == artifacts / "onnx" / "model.onnx"


def test_a_card_may_be_used_in_another_runtime(artifacts):
    if "openvino" not in FORMATS:
        pytest.skip("needs OpenVINO")
    first = load(artifacts / "onnx" / "model.json")
    second = load(artifacts / "onnx" / "model.json", runtime="openvino")
    assert (first.runtime, second.runtime) == ("onnxruntime", "openvino")
    with pytest.raises(InputError, match=r"model\.xml: runtime is 'onnxruntime'; expected openvino for \.xml files"):
        load(artifacts / "openvino" / "model.json", runtime="onnxruntime")


@pytest.mark.parametrize("name", FORMATS)
def test_neither_torch_nor_anything_else_is_imported(artifacts, name):
    blocked = ("torch", "torchvision", "cv2", "safetensors", "onnx", "pandas", "scipy", "matplotlib")
    script = f"import sys\nfor name in {blocked!r}:\n    sys.modules[name] = None\n{PREDICT}"
    words = [str(artifacts / name / "model.json"), str(artifacts / "photo.png"), str(SCORE)]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["type"], record["runtime"]) == ("detector.types.Detections", READERS[name])
    assert READERS[name] in record["loaded"] and {"onnxruntime", "openvino"} - {READERS[name]} - set(record["loaded"])
    assert same_bits(record, load(artifacts / name, threads=1).predict(artifacts / "photo.png", score_threshold=SCORE))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_one_extra_alone_predicts(artifacts, name, tmp_path):
    """`pip install maenas[onnx]` or `[openvino]` in a new environment, from a package index."""
    source = tmp_path / "source"
    leftovers = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")
    for part in ("maenas", "detector", "search_spaces", "latency_tables"):
        shutil.copytree(ROOT / part, source / part, ignore=leftovers)
    for part in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / part, source / part)
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=300)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_"))}

    def run(*words, timeout=900):
        return subprocess.run(
            [python, *map(str, words)], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=timeout
        )

    done = run("-m", "pip", "install", "--quiet", "--no-compile", f"{source}[{name}]")
    if done.returncode and re.search(r"No matching distribution|Could not find a version|[Cc]onnection", done.stderr):
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1][:200]}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "No module named 'torch'" in run("-c", "import torch").stderr
    done = run("-c", PREDICT, artifacts / name / "model.json", artifacts / "photo.png", SCORE)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout)
    assert "torch" not in record["loaded"] and record["type"] == "detector.types.Detections"
    assert same_bits(record, load(artifacts / name, threads=1).predict(artifacts / "photo.png", score_threshold=SCORE))
    # The command line finds the same without torch.
    found = run("-m", "maenas", "predict", artifacts / name, artifacts / "photo.png", "--json", "--score", SCORE)
    assert found.returncode == 0, found.stderr[-3000:]
    assert len(json.loads(found.stdout)["detections"]) == len(record["labels"])


def test_the_command_line_takes_a_card_too(artifacts, tmp_path, monkeypatch, capsys):
    from maenas.cli.main import main

    monkeypatch.chdir(tmp_path)
    words = ["predict", artifacts / "onnx" / "model.json", artifacts / "photo.png", "--json", "--score", SCORE]
    assert main([str(word) for word in words]) == 0
    found = json.loads(capsys.readouterr().out)["detections"]
    assert len(found) == len(load(artifacts / "onnx").predict(artifacts / "photo.png", score_threshold=SCORE)) > 3


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_runtime_names_the_extra(artifacts, name, monkeypatch):
    monkeypatch.setitem(sys.modules, READERS[name], None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {READERS[name]}.*maenas\[{name}\]"):
        load(artifacts / name / "model.json", runtime=READERS[name])


def test_cards_that_lead_nowhere(artifacts, tmp_path):
    with pytest.raises(ExportError, match=r"model\.json: cannot be read \(No such file"):
        load(tmp_path / "model.json")
    shutil.copy(artifacts / "onnx" / "model.json", tmp_path)
    with pytest.raises(ExportError, match=r"model\.onnx: no such file"):
        load(tmp_path / "model.json")
    shutil.copy(artifacts / "onnx" / "model.onnx", tmp_path)
    with (tmp_path / "model.onnx").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"changed")
    with pytest.raises(ExportError, match=r"model\.onnx: sha256 is .*; expected .*, as model\.json says"):
        load(tmp_path / "model.json")
    (tmp_path / "model.json").unlink()
    with pytest.raises(ExportError, match=r"model\.onnx: has no model\.json beside it"):
        load(tmp_path / "model.onnx")
