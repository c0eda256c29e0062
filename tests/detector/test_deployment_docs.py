"""The programs of docs/deployment.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cv2")
pil = pytest.importorskip("PIL.Image")

from export_cases import lively, quick_trace, small_structure  # noqa: E402

from detector import export_graph  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts  # noqa: E402
from detector.runtime import load  # noqa: E402
from detector.video import VideoWriter  # noqa: E402

pytestmark = pytest.mark.export

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def program(*words):
    """The one program that holds all these words and no other of the runtimes."""
    (found,) = [text for text in PROGRAMS if all(word in text for word in words)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page talks of: exported/, photo.jpg, street.mp4."""
    folder = tmp_path_factory.mktemp("page")
    model = lively(small_structure())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_graph, "trace", quick_trace)
        export_artifacts(
            model,
            folder / "exported",
            class_names=model.class_names,
            options=ExportOptions(outputs="nms"),
            checks=ExportChecks(verify=False),
        )
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    # Every pixel four times and nothing lost: any way to halve it gives the same image.
    pil.fromarray(noise.repeat(2, axis=0).repeat(2, axis=1)).save(folder / "photo.jpg", format="PNG")
    with VideoWriter(folder / "street.mp4", fps=25, size=(64, 96)) as writer:
        for index in range(4):
            writer.write(np.roll(noise, index, axis=1))
    return folder


def run(text, folder, monkeypatch):
    """The names that a program leaves."""
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(compile(text, str(PAGE), "exec"), names)
    return names


def test_every_program_is_run_by_a_test():
    assert len(PROGRAMS) == 5


def test_the_runtime_package(folder, monkeypatch, capsys):
    names = run(program("model.predict"), folder, monkeypatch)
    found = names["found"]
    assert len(found) > 0 and found.image_size == (128, 192)
    assert len(capsys.readouterr().out.splitlines()) == len(found)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_programs_without_this_package_find_the_same(folder, monkeypatch, runtime):
    pytest.importorskip(runtime)
    text = program(f"import {runtime}\n")
    assert "maenas" not in text.replace("maenas export", "") and "detector" not in text
    names = run(text, folder, monkeypatch)
    model = load(folder / "exported", runtime=runtime)
    wanted = model.predict(folder / "photo.jpg", score_threshold=model.card.nms.score_threshold, clip=False)
    count = int(names["count"][0, 0])
    assert count == len(wanted) > 5
    np.testing.assert_allclose(names["boxes"][0, :count] * names["back"], wanted.boxes, rtol=0, atol=0.01)
    np.testing.assert_allclose(names["scores"][0, :count], wanted.scores, rtol=0, atol=1e-5)
    assert names["classes"][0, :count].tolist() == wanted.labels.tolist()


def test_stages_in_python(folder, monkeypatch, capsys):
    names = run(program("Ahead"), folder, monkeypatch)
    assert names["prediction"].frame == 3 and len(capsys.readouterr().out.splitlines()) == 4


def test_tracking(folder, monkeypatch):
    pytest.importorskip("trackers")
    pytest.importorskip("supervision")
    names = run(program("ByteTrackTracker"), folder, monkeypatch)
    assert len(names["tracked"].tracker_id) == len(names["tracked"].xyxy) > 0
