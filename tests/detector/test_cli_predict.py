"""`maenas predict` end to end: what it writes, prints and refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from cli_cases import answer  # noqa: E402
from network_cases import random_structure  # noqa: E402

from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.images import read_image  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.tiling import Tiling  # noqa: E402
from detector.types import Detections  # noqa: E402
from maenas.cli.main import COMMANDS  # noqa: E402
from maenas.structure import save_structure  # noqa: E402


@pytest.fixture(scope="module")
def structure():
    made = random_structure("res", 3)
    head = replace(made.head, num_classes=3, background_class=False)
    return replace(made, image_size=(64, 96), head=head)


@pytest.fixture(scope="module")
def model(structure, tmp_path_factory):
    """A checkpoint of a tiny network with three classes that finds something at low thresholds."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(Checkpoint(structure, Detector(structure).state_dict(), ("cat", "dog", "[red] fox")), path)
    return path


@pytest.fixture
def maenas(tmp_path, monkeypatch, capsys):
    """Run a command in an empty current folder: (exit code, standard output, standard error)."""
    monkeypatch.setitem(COMMANDS, "predict", "maenas.cli.predict")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments):
        return answer(capsys, "predict", *arguments)

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder with three photos, two broken ones, and a text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (50, 70)), ("a.jpg", (80, 60)), ("img2.png", (64, 96))):
        pil.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / name)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "notes.txt").write_text("hello")
    return folder


LOW = ("--score", "0.001", "--max-detections", "5")


def test_a_folder_with_broken_files(maenas, model, photos, tmp_path, structure):
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    code, out, err = maenas(model, photos, "--out", tmp_path / "found", *LOW)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        "a-2.jpg",
        "a.jpg",
        "img2.jpg",
        "predictions.json",
    ]
    record = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert record["complete"] is True and record["schema_version"] == 1
    assert record["model"] == {"source": str(model), "structure": structure.digest, "random_weights": False}
    assert record["settings"] == {
        "score_threshold": 0.001,
        "iou_threshold": 0.7,
        "max_detections": 5,
        "image_size": [64, 96],
        "classes": None,
        "tiling": None,
    }
    assert record["categories"][2] == {"id": 2, "name": "[red] fox"}
    assert [(i["id"], i["file_name"], i["height"], i["width"], i["drawn"]) for i in record["images"]] == [
        (1, str(photos / "a.jpg"), 80, 60, "a.jpg"),
        (2, str(photos / "a.png"), 50, 70, "a-2.jpg"),
        (3, str(photos / "img2.png"), 64, 96, "img2.jpg"),
    ]
    assert [entry["file_name"] for entry in record["skipped"]] == [str(photos / "empty.jpg"), str(photos / "text.jpg")]
    assert "is empty" in record["skipped"][0]["reason"]
    expected = Detector.from_checkpoint(model).predict(photos / "a.png", score_threshold=0.001, max_detections=5)
    of_second = [entry for entry in record["detections"] if entry["image_id"] == 2]
    assert len(expected) == len(of_second) == 5
    assert [entry["category_id"] for entry in of_second] == expected.labels.tolist()
    np.testing.assert_allclose([entry["score"] for entry in of_second], expected.scores, rtol=1e-3)
    assert read_image(tmp_path / "found" / "a-2.jpg").shape == (50, 70, 3)
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
    for text in ("images", "objects", "broken files", "other files, ignored", "empty.jpg: is empty", "text.jpg: is no"):
        assert text in out
    assert "3 drawn images" in out and "ms per image: read and resize" in err and "warning" not in err


def test_json_prints_the_record_only(maenas, model, photos, tmp_path):
    code, out, _ = maenas(model, photos / "a.png", "--json", "--no-images", "--classes", "dog", "2", *LOW)
    assert code == 0
    printed = json.loads(out)
    assert printed.pop("out") == "runs/predict/a"
    assert printed == json.loads((tmp_path / "work/runs/predict/a/predictions.json").read_text())
    assert {entry["category_id"] for entry in printed["detections"]} <= {1, 2}
    assert "drawn" not in printed["images"][0]
    assert [path.name for path in (tmp_path / "work/runs/predict/a").iterdir()] == ["predictions.json"]


def test_tiles(maenas, model, photos):
    code, out, err = maenas(model, photos / "a.jpg", "--json", "--tile", "32x48", "--overlap", "0.3", "--whole", *LOW)
    assert code == 0, err
    printed = json.loads(out)
    assert printed["settings"]["tiling"] == {"tile": [32, 48], "overlap": 0.3, "whole": True}
    expected = Detector.from_checkpoint(model).predict(
        photos / "a.jpg", score_threshold=0.001, max_detections=5, tiling=Tiling((32, 48), 0.3, whole=True)
    )
    assert len(expected) == 5
    assert [entry["category_id"] for entry in printed["detections"]] == expected.labels.tolist()


def test_default_folders_are_named_after_the_source(maenas, model, photos, monkeypatch):
    assert maenas(model, photos)[1].endswith("written: runs/predict/photos/predictions.json, 3 drawn images\n")
    assert "runs/predict/images/predictions.json" in maenas(model, f"{photos}/*")[1]
    monkeypatch.chdir(photos)
    assert "runs/predict/photos/predictions.json" in maenas(model, ".")[1]


def test_results_need_a_new_folder_or_force(maenas, model, photos, tmp_path):
    out = tmp_path / "found"
    out.mkdir()
    (out / "precious.jpg").write_bytes(b"mine")
    code, _, err = maenas(model, photos, "--out", out)
    assert code == 2 and "found: holds files already; expected a new folder, or --force" in err
    assert [path.name for path in out.iterdir()] == ["precious.jpg"]
    assert maenas(model, photos, "--out", out, "--force")[0] == 0
    assert (out / "precious.jpg").read_bytes() == b"mine" and (out / "predictions.json").exists()


@pytest.mark.parametrize("source", [".", "a.jpg", "*.png"])
def test_sources_are_never_overwritten(maenas, model, photos, source, monkeypatch):
    monkeypatch.chdir(photos)
    before = (photos / "a.jpg").read_bytes()
    code, _, err = maenas(model, source, "--out", "../photos", "--force")
    assert code == 2 and "is where the images are read from" in err
    assert (photos / "a.jpg").read_bytes() == before and not (photos / "predictions.json").exists()


def test_a_single_broken_image_is_an_error_and_leaves_nothing(maenas, model, photos, tmp_path):
    code, out, err = maenas(model, photos / "text.jpg")
    assert (code, out) == (2, "") and "text.jpg: is no image that can be read" in err
    assert list((tmp_path / "work").iterdir()) == []


def test_broken_files_only_are_an_error(maenas, model, photos, tmp_path):
    code, _, err = maenas(model, f"{photos}/*t*.jpg")
    assert code == 2 and "none of its images can be read; first: " in err and "empty.jpg: is empty" in err
    assert list((tmp_path / "work").iterdir()) == []


def test_a_structure_has_random_weights_and_says_so(maenas, structure, photos, tmp_path):
    save_structure(structure, tmp_path / "tiny.json")
    code, out, err = maenas(tmp_path / "tiny.json", photos / "a.png", "--json")
    assert code == 0 and "warning: " in err and "RANDOM" in err
    assert json.loads(out)["model"]["random_weights"] is True


@pytest.mark.slow
def test_a_published_name_is_a_structure(maenas, photos):
    code, out, err = maenas("DAMO-YOLO-Ns", photos / "a.png", "--json", "--image-size", "64x96")
    assert code == 0 and "RANDOM" in err
    assert json.loads(out)["settings"]["image_size"] == [64, 96]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.jpg",), "none.jpg: no such file or folder"),
        (("PHOTO", "--score", "7"), "score_threshold is 7.0; expected 0 ... 1"),
        (("PHOTO", "--batch", "0"), "batch_size is 0"),
        (("PHOTO", "--max-images", "0"), "max_images is 0; expected at least 1"),
        (("98",), "camera 98: cannot be opened"),
        (("ftp://me:pw@host/a",), "ftp://host/a: is a URL of the kind ftp"),
        (("PHOTO", "--image-size", "100"), "image_size is (100, 100); expected"),
        (("PHOTO", "--image-size", "a"), "--image-size is 'a'"),
        (("PHOTO", "--classes", "dgo"), "did you mean 'dog'?"),
        (("PHOTO", "--tile", "16"), "tile is (16, 16); expected (height, width), at least 32 each"),
        (("PHOTO", "--tile", "a"), "--tile is 'a'"),
        (("PHOTO", "--overlap", "0.3"), "--overlap is given; expected it with --tile only"),
        (("PHOTO", "--whole"), "--whole is given"),
        (("PHOTO", "--threads", "0"), "threads is 0"),
        (("PHOTO", "--runtime", "openvino"), "expected torch, or an exported model"),
    ],
)
def test_wrong_options_are_one_line(maenas, model, photos, arguments, message, tmp_path):
    code, out, err = maenas(model, *(photos / "a.png" if part == "PHOTO" else part for part in arguments))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("damo-yolo-x", "is unknown; expected one of"),
        *(
            (name, f"{name}: no such file or folder")
            for name in ("a.safetensors", "a.pth", "a.onnx", "a.json", "a/int8")
        ),
    ],
)
def test_wrong_models_are_one_line(maenas, photos, name, message):
    code, out, err = maenas(name, photos / "a.png")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_an_interruption_keeps_what_is_done(maenas, model, photos, tmp_path, monkeypatch):
    drawn = []

    def draw(self, image):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(image)
        return image

    monkeypatch.setattr(Detections, "draw", draw)
    code, _, err = maenas(model, photos, "--out", tmp_path / "found", *LOW)
    assert code == 130 and "interrupted" in err
    record = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert record["complete"] is False and [entry["id"] for entry in record["images"]] == [1]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["a.jpg", "predictions.json"]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def clip(tmp_path):
    pytest.importorskip("cv2")
    from detector.video import VideoWriter

    path = tmp_path / "clips" / "walk.mp4"
    path.parent.mkdir()
    with VideoWriter(path, fps=10, size=(64, 96)) as writer:
        for index in range(5):
            writer.write(np.full((64, 96, 3), 50 * index, np.uint8))
    return path


def test_a_video_becomes_a_drawn_video(maenas, model, clip, tmp_path):
    from detector.video import VideoReader

    code, out, err = maenas(model, clip, "--out", tmp_path / "found", "--batch", "2", *LOW)
    assert code == 0, err
    assert names_in(tmp_path / "found") == ["predictions.json", "predictions.jsonl", "walk.mp4"]
    reader = VideoReader(tmp_path / "found" / "walk.mp4")
    assert (reader.fps, len(list(reader))) == (10, 5)
    images = json.loads((tmp_path / "found" / "predictions.json").read_text())["images"]
    assert [(entry["frame"], entry["time_s"]) for entry in images] == [(0, 0), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert "frames" in out and "frames per second" in out and "predictions.jsonl, walk.mp4" in out
    lines = [json.loads(line) for line in (tmp_path / "found" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["time_s"], line["image_size"]) for line in lines] == [
        (index, index / 10, [64, 96]) for index in range(5)
    ]
    record = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert sum(len(line["detections"]) for line in lines) == len(record["detections"]) > 0
    assert "stream" not in record


def test_an_interrupted_video_is_not_written(maenas, model, clip, tmp_path, monkeypatch):
    original, frames = Detections.draw, []

    def draw(self, image):
        frames.append(1)
        if len(frames) == 4:
            raise KeyboardInterrupt
        return original(self, image)

    monkeypatch.setattr(Detections, "draw", draw)
    assert maenas(model, clip, "--out", tmp_path / "found")[0] == 130
    assert names_in(tmp_path / "found") == ["predictions.json", "predictions.jsonl"]
    assert len((tmp_path / "found" / "predictions.jsonl").read_text().splitlines()) == 3
    record = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert record["complete"] is False and len(record["images"]) == 3 and "drawn" not in record["images"][0]


def test_the_terminal_stays_quiet_where_it_is_none(maenas, model, photos):
    assert not sys.stderr.isatty()
    _, _, err = maenas(model, photos)
    assert err.count("\n") == 1


def test_frames_as_pictures_with_an_overlay(maenas, model, clip, tmp_path):
    code, _, err = maenas(model, clip, "--out", tmp_path / "plain", "--pictures", "--score", "1")
    assert code == 0, err
    assert maenas(model, clip, "--out", tmp_path / "noted", "--pictures", "--overlay", "--score", "1")[0] == 0
    names = [f"walk-{index:06d}.jpg" for index in range(5)]
    assert (
        names_in(tmp_path / "plain")
        == names_in(tmp_path / "noted")
        == ["predictions.json", "predictions.jsonl", *names]
    )
    plain, noted = (read_image(tmp_path / folder / names[3]) for folder in ("plain", "noted"))
    changed = np.argwhere(np.abs(plain.astype(int) - noted).max(axis=2) > 60)
    assert len(changed) and changed.max(axis=0)[0] < 32


def test_a_limit_ends_a_video_early_and_completely(maenas, model, clip, tmp_path):
    code, _, err = maenas(model, clip, "--out", tmp_path / "found", "--max-images", "2", "--batch", "1")
    assert code == 0 and "warning" not in err
    record = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert record["complete"] is True and [entry["frame"] for entry in record["images"]] == [0, 1]


class Camera:
    """A camera in OpenCV's place: grey frames, of which the test decides when they come and how it ends."""

    def __init__(self, count, *, fps=10.0, gate=None, end="unplugged"):
        self.left, self.fps, self.gate, self.end = count, fps, gate, end

    def isOpened(self):
        return True

    def read(self):
        if self.gate is not None:
            self.gate.acquire(timeout=20)
        if self.left <= 0:
            if self.end == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(20)
            if self.end == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
                threading.Event().wait(20)
            return False, None
        self.left -= 1
        return True, np.full((64, 96, 3), 90, np.uint8)

    def get(self, what):
        return self.fps

    def release(self):
        pass


@pytest.fixture
def camera(monkeypatch):
    """Makes `maenas predict ... 0` see a camera whose frames come one at a time, each once the last one is written."""
    pytest.importorskip("cv2")
    from detector import live
    from maenas.cli import predict_output

    monkeypatch.setattr("detector.ahead.PATIENCE_S", 0.1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    gate = threading.Semaphore(1)
    add = predict_output.Tally.add

    def add_and_go_on(self, prediction, drawn):
        add(self, prediction, drawn)
        gate.release()

    monkeypatch.setattr(predict_output.Tally, "add", add_and_go_on)

    def plug_in(count, **options):
        monkeypatch.setattr(live, "open_capture", lambda address, timeout_s: Camera(count, gate=gate, **options))

    yield plug_in
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("end", ["interrupt", "terminate", "limit"])
def test_a_camera_is_ended_by_a_signal_or_a_limit_and_its_files_are_whole(maenas, model, camera, tmp_path, end):
    from detector.video import VideoReader

    camera(4 if end != "limit" else 99, end=end)
    limit = ("--max-images", "4") if end == "limit" else ()
    code, out, err = maenas(model, "0", "--out", tmp_path / "found", "--overlay", *limit, *LOW)
    assert code == 0, err
    assert names_in(tmp_path / "found") == ["camera-0.mp4", "predictions.json", "predictions.jsonl"]
    record = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert (record["complete"], record["source"], record["images"], record["detections"]) == (True, "camera 0", [], [])
    assert (record["stream"]["frames"], record["stream"]["dropped"]) == (4, 0)
    assert record["stream"]["fps"] > 0 and list(record["stream"]["latency_ms"]) == ["p50", "p90", "p99"]
    lines = [json.loads(line) for line in (tmp_path / "found" / "predictions.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2, 3] and all(len(line["detections"]) == 5 for line in lines)
    # Ten frames a second by the clock, whatever the network takes.
    assert len(list(VideoReader(tmp_path / "found" / "camera-0.mp4"))) == round(10 * lines[-1]["time_s"]) + 1
    assert "frames dropped" in out and "latency ms" in out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_camera_that_fails_is_an_error_but_what_it_gave_is_kept(maenas, model, camera, tmp_path):
    from detector.video import VideoReader

    camera(3)
    code, _, err = maenas(model, "0", "--out", tmp_path / "found")
    assert code == 2 and "camera 0: gives no more frames" in err
    assert names_in(tmp_path / "found") == ["camera-0.mp4", "predictions.json", "predictions.jsonl"]
    record = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert record["complete"] is False and record["stream"]["frames"] == 3
    assert list(VideoReader(tmp_path / "found" / "camera-0.mp4"))


def test_a_camera_without_any_frame_leaves_nothing(maenas, model, camera, tmp_path):
    camera(0)
    code, _, err = maenas(model, "0")
    assert code == 2 and "camera 0: was opened but gives no frame" in err
    assert list((tmp_path / "work").iterdir()) == []
