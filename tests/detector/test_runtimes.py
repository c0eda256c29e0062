"""Exported files as predictors, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from export_cases import by_score, lively, quick_trace, small_structure  # noqa: E402

from detector import export_graph  # noqa: E402
from detector.artifact import NmsSettings  # noqa: E402
from detector.artifact_files import record_file  # noqa: E402
from detector.errors import ExportError, InputError, MissingExtraError  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts, export_onnx  # noqa: E402
from detector.export_reference import example_images  # noqa: E402
from detector.predict import predict  # noqa: E402
from detector.runtimes import is_installed, load_exported  # noqa: E402
from maenas.errors import StructureError  # noqa: E402

pytestmark = pytest.mark.export

INSTALLED = [name for name in ("onnxruntime", "openvino") if is_installed(name)]
SIZE = (64, 96)
NMS = {"score_threshold": 0.1, "iou_threshold": 0.6, "max_detections": 20}


@pytest.fixture(scope="module", autouse=True)
def _trace_quickly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_graph, "trace", quick_trace)
        yield


@pytest.fixture(scope="module")
def model():
    return lively(small_structure())


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """One file per form, made once; tests that change a file copy it."""
    folder = tmp_path_factory.mktemp("exported")
    shapes = {"raw": {"dynamic_size": True, "dynamic_batch": True}, "decoded": {"batch_size": 2}, "nms": NMS}
    for form, options in shapes.items():
        path = folder / form / "model.onnx"
        export_onnx(model, path, class_names=model.class_names, outputs=form, verify=False, **options)
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    """The folder of the decoded form, to be damaged."""
    shutil.copytree(exported / "decoded", tmp_path / "export")
    return tmp_path / "export"


def with_card(folder, change):
    """The card again with a changed record."""
    path = folder / "model.json"
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def sign(folder):
    """Make the card vouch for the files as they are now."""
    names = [file["name"] for file in json.loads((folder / "model.json").read_text(encoding="utf-8"))["files"]]
    files = [dataclasses.asdict(record_file(folder / name)) for name in names]
    with_card(folder, lambda record: {**record, "files": files})


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize("form, batch", [("raw", 3), ("decoded", 2), ("nms", 1)])
def test_every_form_finds_what_torch_finds(model, exported, runtime, form, batch):
    predictor = load_exported(exported / form, runtime=runtime, threads=1)
    size = (96, 64) if form == "raw" else SIZE
    images = example_images((batch, 3, *size))
    wanted = model.detect(images, **NMS)
    assert all(len(one) == 20 for one in wanted)
    for found, one in zip(predictor.detect(images, **NMS), wanted, strict=True):
        assert found.image_size == one.image_size == size
        assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
        np.testing.assert_allclose(by_score(found), by_score(one), rtol=0, atol=0.01)


def test_what_a_predictor_states(model, exported):
    free, fixed, nms = (load_exported(exported / form) for form in ("raw", "decoded", "nms"))
    assert (free.batch_limit, free.fixed_size, free.image_size) == (None, False, SIZE)
    assert (fixed.batch_limit, fixed.fixed_size, fixed.image_size) == (2, True, SIZE)
    assert nms.card.nms == NmsSettings(**NMS)
    assert fixed.class_names == model.class_names
    assert fixed.runtime == "onnxruntime"


def test_predict_goes_through_the_shared_path(exported):
    pytest.importorskip("PIL")
    image = np.full((50, 70, 3), 128, dtype=np.uint8)
    found = load_exported(exported / "decoded").predict(image, score_threshold=0.4)
    assert found.image_size == (50, 70)
    assert found.class_names == load_exported(exported / "decoded").class_names


def test_thresholds_of_the_nms_form(model, exported):
    predictor = load_exported(exported / "nms")
    images = example_images((1, 3, *SIZE))
    (every,) = predictor.detect(images, **NMS)
    stricter = {**NMS, "score_threshold": float(np.median(every.scores))}
    (found,) = predictor.detect(images, **stricter)
    (wanted,) = model.detect(images, **stricter)
    assert 0 < len(found) == len(wanted) < len(every)
    assert len(predictor.detect(images, **{**NMS, "max_detections": 4})[0]) == 4
    assert len(predictor.detect(images, **{**NMS, "max_detections": 400})[0]) == 20
    with pytest.raises(InputError, match=r"score_threshold is 0.03; expected at least 0.1, which is inside model.onnx"):
        predictor.detect(images, **{**NMS, "score_threshold": 0.03})
    with pytest.raises(InputError, match=r"iou_threshold is 0.7; expected 0.6, which is inside model.onnx"):
        predictor.detect(images, **{**NMS, "iou_threshold": 0.7})


def test_a_file_with_suppression_inside_needs_no_thresholds(model, exported):
    predictor = load_exported(exported / "nms")
    image = np.full((50, 70, 3), 128, dtype=np.uint8)
    wanted = predict(model, image, score_threshold=0.25, iou_threshold=0.6, max_detections=20)
    assert 0 < len(predictor.predict(image)) == len(wanted)
    with pytest.raises(InputError, match=r"iou_threshold is 0.7; expected 0.6"):
        predictor.predict(image, iou_threshold=0.7)


@pytest.mark.parametrize(
    "form, shape, message",
    [
        ("decoded", (1, 3, *SIZE), "the batch has 1 images; expected 2, which model.onnx is made for"),
        ("decoded", (2, 3, 96, 64), "images are 96x64; expected 64x96"),
        ("decoded", (2, 1, *SIZE), r"images have shape \(2, 1, 64, 96\); expected \(B, 3, H, W\)"),
        ("raw", (1, 3, 64, 100), "image width is 100; expected a multiple of 32"),
        ("raw", (0, 3, *SIZE), "images have shape"),
        ("raw", (3, 64, 96), "images have shape"),
    ],
)
def test_other_shapes_are_refused(exported, form, shape, message):
    with pytest.raises(InputError, match=message):
        load_exported(exported / form).run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_one_line(copied, keep):
    path = copied / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ExportError, match=r"model.onnx: sha256 is .*; expected .* as model.json says: .*cut") as caught:
        load_exported(copied)
    assert "\n" not in str(caught.value)


def test_a_changed_file_is_refused(copied):
    path = copied / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ExportError, match=r"model.onnx: sha256 is .* \((\d+) bytes\); expected .* \(\1 bytes\)"):
        load_exported(copied)


def test_files_without_their_card_are_refused(copied, tmp_path):
    (copied / "model.json").unlink()
    with pytest.raises(ExportError, match=r"model.onnx: has no model.json beside it.*maenas export"):
        load_exported(copied)
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(ExportError, match=r"model.xml: has no model.json beside it"):
        load_exported(tmp_path / "model.xml")


def test_other_files_are_refused(copied, tmp_path):
    with pytest.raises(ExportError, match=r"nothing.onnx: no such file"):
        load_exported(tmp_path / "nothing.onnx")
    with pytest.raises(ExportError, match=r"suffix is '.pt'; expected .onnx or .xml or .engine"):
        load_exported(tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"holds no exported file; expected model.onnx, or exactly one$"):
        load_exported(tmp_path / "empty")
    with pytest.raises(ExportError, match=r"exactly one, or one of its folders export$"):
        load_exported(tmp_path)
    (copied / "model.onnx").rename(copied / "other.onnx")
    (copied / "model.json").rename(copied / "other.json")
    with pytest.raises(ExportError, match=r"other.json: files lists model.onnx; expected other.onnx among them"):
        load_exported(copied / "other.onnx")


def test_the_card_of_another_export_is_refused(exported, copied):
    shutil.copy(exported / "raw" / "model.json", copied / "model.json")
    with pytest.raises(ExportError, match=r"model.onnx: sha256 is"):
        load_exported(copied)


def test_a_card_of_another_structure_is_refused(copied):
    with_card(copied, lambda record: {**record, "digest": "0" * 16})
    with pytest.raises(ExportError, match=r"model.json: digest is .*; expected .*, that of its structure"):
        load_exported(copied)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema_version": 99}, "schema_version is 99; expected 2: export again"),
        ({"format": "tflite"}, "format is 'tflite'; expected one of onnx, openvino, tensorrt"),
        ({"files": [{"name": "../x", "sha256": "", "size_bytes": 1}]}, 'files: name is "../x"; expected the name of'),
        ({"files": [3]}, "files: the card is 3; expected an object"),
        ({"engine": {"gpu": 3}}, "engine: tensorrt is missing"),
        ({"form": "boxes"}, "form is 'boxes'; expected one of raw, decoded, nms"),
        ({"class_names": ["a"] * 9}, "class_names has 9 entries; expected 3"),
        ({"image_size": [64]}, r"image_size is \[64\]; expected \[height, width\]"),
        ({"image_size": [64, 64]}, r"image_size is \[64, 64\]; expected \[64, 96\], the sides of the input"),
        ({"outputs": [{"name": "scores"}]}, "outputs: dtype is missing"),
        ({"opset": "18"}, 'opset is "18"; expected a whole number'),
        ({"new": 1}, "new is unknown"),
        (
            {"nms": {"score_threshold": 0.1, "iou_threshold": 0.1, "max_detections": 1}},
            "expected settings in the nms form",
        ),
        ({"preprocessing": None}, "preprocessing is null; expected an object"),
        ({"input": {"name": "images", "dtype": "float32", "shape": [1, -3, 64, 64]}}, "input: shape is"),
    ],
)
def test_a_malformed_card_names_the_field(copied, change, message):
    with_card(copied, lambda record: {**record, **change})
    with pytest.raises(ExportError, match=f"model.json: .*{message}|model.json: {message}") as caught:
        load_exported(copied)
    assert "\n" not in str(caught.value)


def test_other_preprocessing_is_refused(copied):
    def change(record):
        return {**record, "preprocessing": {**record["preprocessing"], "channels": "BGR"}}

    with_card(copied, change)
    with pytest.raises(ExportError, match='preprocessing: channels is "BGR"; expected "RGB"'):
        load_exported(copied)


def test_a_malformed_structure_in_the_card_is_named(copied):
    with_card(copied, lambda record: {**record, "structure": {}})
    with pytest.raises(StructureError, match=r"model.json: structure"):
        load_exported(copied)


def test_a_card_that_the_graph_contradicts_is_refused(copied):
    def change(record):
        return {**record, "outputs": [{**record["outputs"][0], "name": "other"}]}

    with_card(copied, change)
    with pytest.raises(ExportError, match="has inputs images and outputs scores, boxes; expected images and other"):
        load_exported(copied)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_graph_that_a_runtime_refuses_is_one_line(copied, runtime):
    path = copied / "model.onnx"
    proto = onnx.load(path)
    proto.graph.node[3].op_type = "NoSuchOperator"
    path.write_bytes(proto.SerializeToString())
    sign(copied)
    with pytest.raises(ExportError, match=f"model.onnx: cannot be opened in {runtime}: ") as caught:
        load_exported(copied, runtime=runtime)
    assert "\n" not in str(caught.value)


def test_unknown_runtimes_and_thread_counts_are_refused(exported):
    with pytest.raises(InputError, match="runtime is 'tvm'; expected one of onnxruntime, openvino, tensorrt"):
        load_exported(exported / "raw", runtime="tvm")
    with pytest.raises(InputError, match="threads is 0; expected a whole number, 1 or more"):
        load_exported(exported / "raw", threads=0)


@pytest.mark.parametrize("runtime, extra", [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_runtime_names_the_extra(exported, monkeypatch, runtime, extra):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {runtime}.*maenas\[{extra}\]"):
        load_exported(exported / "raw", runtime=runtime)


def test_openvino_serves_where_onnx_runtime_is_missing(exported, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert load_exported(exported / "raw").runtime == "openvino"


def test_openvino_files(model, exported, tmp_path):
    pytest.importorskip("openvino")
    options = ExportOptions(batch_size=2)
    checks = ExportChecks(verify=False)
    names = model.class_names
    export_artifacts(model, tmp_path, class_names=names, formats=["openvino"], options=options, checks=checks)
    predictor = load_exported(tmp_path, threads=1)
    images = example_images((2, 3, *SIZE))
    wanted = load_exported(exported / "decoded").run(images)
    assert (predictor.runtime, predictor.card.format) == ("openvino", "openvino")
    assert [file.name for file in predictor.card.files] == ["model.bin", "model.xml"]
    np.testing.assert_allclose(predictor.run(images)["boxes"], wanted["boxes"], rtol=0, atol=0.05)
    with pytest.raises(InputError, match=r"expected openvino for .xml files"):
        load_exported(tmp_path, runtime="onnxruntime")
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ExportError, match=r"model.bin: cannot be read \(No such file"):
        load_exported(tmp_path)


SIGNALLED = """
import os, signal, sys
from detector.model import Detector
from maenas.published import load_published

Detector(load_published("damo-yolo-ns")).export(sys.argv[1], image_size=(64, 64))
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
os.kill(os.getpid(), signal.SIGTERM)
print("received", len(received))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
def test_signals_are_survived_after_openvino_has_run(tmp_path):
    """Without a Core that is kept, OpenVINO leaves signal handlers a stack that is no memory any more."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "net.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip().endswith("received 1"), done.stderr[-500:]


CORES_OF_OTHERS = """
import os, signal
import numpy as np, openvino
from maenas.extras import keeping_signal_stack, openvino_core
value = openvino.opset13.parameter([1, 3], np.float32)
network = openvino.Model([openvino.opset13.relu(value)], [value])
openvino_core(purpose="a test").compile_model(network, "CPU")
with keeping_signal_stack():
    first, second = openvino.Core(), openvino.Core()
    for core in (first, second):
        core.compile_model(network, "CPU")
    core = None
    del first
    del second
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
os.kill(os.getpid(), signal.SIGTERM)
print("received", len(received))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the stack is put back on Linux only")
def test_signals_are_survived_after_other_packages_used_openvino():
    """NNCF has Cores of its own; two that end in the order in which they began leave a stack that is no memory."""
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", CORES_OF_OTHERS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip().endswith("received 1"), done.stderr[-500:]
