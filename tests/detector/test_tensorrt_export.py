"""Engines of TensorRT 10 and 11 with a stand-in for both: what is asked of them, and what is refused. No GPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np  # noqa: E402
from evaluation_cases import NAMES, write_scenes  # noqa: E402
from export_cases import by_score, lively, quick_trace, small_structure  # noqa: E402
from tensorrt_fake import FakeCuda, fake_tensorrt  # noqa: E402

from detector import export_graph, export_parity, export_precision, tensorrt_build, tensorrt_session  # noqa: E402
from detector.artifact_files import read_card, record_file  # noqa: E402
from detector.errors import ExportError, MissingExtraError  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts  # noqa: E402
from detector.export_reference import example_images  # noqa: E402
from detector.runtimes import is_installed, load_exported  # noqa: E402
from detector.tensorrt_build import EngineOptions  # noqa: E402
from detector.tensorrt_layers import layer_precisions  # noqa: E402
from maenas.cli.main import main  # noqa: E402
from maenas.profiling.backends import tensorrt_adapter  # noqa: E402

pytestmark = pytest.mark.export

NMS = {"score_threshold": 0.1, "iou_threshold": 0.6, "max_detections": 20}
VERSIONS = ["10.13.3.9", "11.4.0.106"]


@pytest.fixture(scope="module")
def model():
    return lively(small_structure())


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def install(monkeypatch, cuda):
    """Put a stand-in in TensorRT's place."""
    monkeypatch.setattr(export_graph, "trace", quick_trace)
    monkeypatch.setattr(tensorrt_build, "Cuda", lambda: cuda)
    monkeypatch.setattr(tensorrt_session, "Cuda", lambda: cuda)
    for module in (export_parity, export_precision):
        monkeypatch.setattr(module, "is_installed", lambda name: name == "tensorrt" or is_installed(name))

    def put(version=VERSIONS[0], **options):
        trt = fake_tensorrt(version, cuda, **options)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        return trt

    return put


def export(model, folder, *, verify=False, engine=None, **options):
    (report,) = export_artifacts(
        model,
        folder,
        class_names=model.class_names,
        formats=["tensorrt"],
        options=ExportOptions(**options),
        checks=ExportChecks(verify=verify),
        engine=engine,
    )
    return report


def asked(trt, kind):
    return [call[1:] for call in trt.calls if call[0] == kind]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_networks_are_strongly_typed_and_no_flag_asks_for_a_precision(model, tmp_path, install, version, precision):
    trt = install(version)
    export(model, tmp_path, precision=precision)
    assert asked(trt, "network") == [(2,)] and asked(trt, "flag") == []
    # TF32 would be on by default, and is no float32.
    assert asked(trt, "clear") == ([("TF32",)] if precision == "fp32" else [])
    assert asked(trt, "memory") == [("workspace", 4096 << 20)]
    assert asked(trt, "plugins") == [("",)] and asked(trt, "profile") == []
    card = read_card(tmp_path / "model.engine")
    assert card.engine.tensorrt == version == card.versions["tensorrt"]
    assert (card.engine.gpu, card.engine.compute_capability) == ("NVIDIA Fake 9000", "8.9")
    assert card.engine.smallest == card.engine.usual == card.engine.largest == (1, 3, 64, 96)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.json"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_inspector_proves_the_precision(model, tmp_path, install, version, precision):
    install(version)
    report = export(model, tmp_path, precision=precision, verify=True)
    (proof,) = report.proofs
    assert (proof.runtime, proof.device, proof.version) == ("tensorrt", "NVIDIA Fake 9000", version)
    # The decoding's product stays in float32.
    convs = report.nodes["Conv"]
    assert proof.layers == ({"fp32": convs + 1} if precision == "fp32" else {"fp16": convs, "fp32": 1})
    assert proof.complaint() is None and report.card.proofs == (proof.to_dict(),)
    assert all(not check.failures for check in report.parity) and report.parity[0].runtime == "tensorrt"


def test_an_engine_that_runs_in_another_precision_is_told(model, tmp_path, install):
    install(precision="fp32")
    (proof,) = export(model, tmp_path, precision="fp16", verify=True).proofs
    assert proof.share_layers == 0
    assert "fp16 was asked, but tensorrt runs 0 of" in proof.complaint() and "on NVIDIA Fake 9000" in proof.complaint()


def test_a_wrong_engine_is_not_kept(model, tmp_path, install):
    install(spoil=lambda found: {**found, "boxes": found["boxes"] + 3})
    with pytest.raises(ExportError, match=r"boxes is off by 3 from torch in tensorrt.*all boxes are shifted by 3"):
        export(model, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suppression", ["plugin", pytest.param("operators", marks=pytest.mark.slow)])
def test_detections_of_an_engine(model, tmp_path, install, suppression):
    install()
    options = {"outputs": "nms", "dynamic_batch": True, **NMS}
    report = export(model, tmp_path, engine=EngineOptions(suppression=suppression), verify=True, **options)
    card = report.card
    assert card.engine.suppression == suppression
    kind = "int32" if suppression == "plugin" else "int64"
    assert [output.dtype for output in card.outputs] == [kind, "float32", "float32", kind]
    assert all(check.figures["unmatched"] == 0 and check.num_detections > 10 for check in report.parity)
    images = example_images((2, 3, 64, 96))
    wanted = model.detect(images, **NMS)
    for found, one in zip(load_exported(tmp_path).detect(images, **NMS), wanted, strict=True):
        np.testing.assert_allclose(by_score(found), by_score(one), rtol=0, atol=0.01)
        assert found.labels.dtype == np.int64


def test_attributes_of_the_plugin(model, tmp_path, install):
    install()
    export(model, tmp_path, outputs="nms", **NMS)
    content = (tmp_path / "model.engine").read_bytes().split(b"\n", 1)[1]
    node = onnx.load_from_string(content).graph.node[-1]
    told = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    assert node.op_type == "EfficientNMS_TRT" and list(node.output) == ["num_dets", "boxes", "scores", "classes"]
    assert told == {
        "plugin_version": b"1",
        "background_class": -1,
        "box_coding": 0,
        "score_activation": 0,
        "max_output_boxes": 20,
        "score_threshold": pytest.approx(0.1),
        "iou_threshold": pytest.approx(0.6),
    }


def test_profiles_of_free_axes(model, tmp_path, install):
    trt = install()
    export(model, tmp_path, dynamic_batch=True, dynamic_size=True, engine=EngineOptions(usual_batch=4))
    assert asked(trt, "profile") == [(("images", (1, 3, 64, 64), (4, 3, 64, 96), (8, 3, 128, 192)),)]
    predictor = load_exported(tmp_path)
    assert predictor.run(example_images((3, 3, 96, 64)))["boxes"].shape == (3, 126, 4)
    with pytest.raises(ExportError, match="images has shape 9x3x64x96; the engine takes 1x3x64x64 to 8x3x128x192"):
        predictor.run(example_images((9, 3, 64, 96)))
    with pytest.raises(ExportError, match="expected none to be above the next in any axis"):
        export(model, tmp_path / "b", dynamic_batch=True, engine=EngineOptions(largest=(1, 3, 64, 64)))


def test_memory_is_kept_between_runs_and_given_back(model, tmp_path, install, cuda):
    install()
    export(model, tmp_path, dynamic_batch=True)
    session = tensorrt_session.TensorRtSession(tmp_path / "model.engine")
    for batch in (1, 1, 2):
        session.run({"images": example_images((batch, 3, 64, 96))})
    # Images, scores and boxes: once small, once larger.
    assert len(cuda.memory) == 6 and len(cuda.freed) == 3
    session.close()
    assert sorted(cuda.freed) == sorted(cuda.memory)


def test_the_timing_cache_is_read_and_written(model, tmp_path, install, caplog):
    install()
    cache = tmp_path / "cache" / "timings.bin"
    engine = EngineOptions(timing_cache=cache)
    export(model, tmp_path / "a", engine=engine)
    assert cache.read_bytes() == b"+timings"
    export(model, tmp_path / "b", engine=engine)
    assert cache.read_bytes() == b"+timings+timings"
    cache.write_bytes(b"foreign")
    export(model, tmp_path / "c", engine=engine)
    assert cache.read_bytes() == b"+timings" and "is of another GPU or TensorRT" in caplog.text


@pytest.mark.parametrize(
    "change, here",
    [
        ({"name": "NVIDIA Other"}, r"this machine has NVIDIA Other \(8.9\) with TensorRT 10.13.3.9"),
        ({"capability": "9.0"}, r"this machine has NVIDIA Fake 9000 \(9.0\) with TensorRT 10.13.3.9"),
        ({"version": VERSIONS[1]}, r"this machine has NVIDIA Fake 9000 \(8.9\) with TensorRT 11.4.0.106"),
    ],
)
def test_an_engine_of_another_machine_is_refused(model, tmp_path, install, cuda, change, here):
    install()
    export(model, tmp_path)
    install(change.pop("version", VERSIONS[0]))
    for name, value in change.items():
        setattr(cuda, name, value)
    built = r"model.engine: was built for NVIDIA Fake 9000 \(compute capability 8.9\) with TensorRT 10.13.3.9; "
    with pytest.raises(ExportError, match=built + here):
        load_exported(tmp_path)


def test_engines_that_cannot_be_read(model, tmp_path, install):
    install()
    export(model, tmp_path)
    path = tmp_path / "model.engine"
    path.write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"model.engine: sha256 is"):
        load_exported(tmp_path)
    card = dataclasses.replace(read_card(path), files=(record_file(path),))
    (tmp_path / "model.json").write_text(json.dumps(card.to_dict()))
    with pytest.raises(ExportError, match=r"model.engine: TensorRT 10.13.3.9 cannot read it; its log says why"):
        load_exported(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(dataclasses.replace(card, engine=None).to_dict()))
    with pytest.raises(ExportError, match="its card says nothing about an engine"):
        load_exported(tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.raises(ExportError, match=r"model.engine: has no model.json beside it"):
        load_exported(tmp_path)


def test_graphs_that_tensorrt_refuses(model, tmp_path, install):
    install(refuse="parse")
    with pytest.raises(ExportError, match=r"TensorRT 10.13.3.9 cannot parse the graph \(no importer for FancyOp\)"):
        export(model, tmp_path / "out")
    install(refuse="build")
    with pytest.raises(ExportError, match=r"TensorRT 10.13.3.9 cannot build an engine of the graph"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder)
    return folder


def test_the_verbs_run_an_engine(model, tmp_path, install, cells, capsys, monkeypatch):
    pytest.importorskip("faster_coco_eval")
    install()
    export(model, tmp_path)
    aware = dataclasses.replace(read_card(tmp_path / "model.engine"), class_names=NAMES)
    (tmp_path / "model.json").write_text(json.dumps(aware.to_dict()))
    words = ["predict", tmp_path, cells / "images", "--out", tmp_path / "found", "--runtime", "tensorrt", "--no-images"]
    assert main(list(map(str, words))) == 0
    words = ["eval", tmp_path / "model.json", "--data", cells, "--out", tmp_path / "eval", "--runtime", "tensorrt"]
    assert main(list(map(str, words))) == 0
    record = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert (record["model"]["runtime"], record["model"]["runtime_version"]) == ("tensorrt", VERSIONS[0])
    assert (record["timing"]["device"], record["timing"]["hardware"]) == ("cuda", "NVIDIA Fake 9000")
    assert main(["predict", str(cells), str(cells / "images"), "--runtime", "tensorrt"]) == 2
    capsys.readouterr()


class FakeAdapter:
    """Builds the reference network of a benchmark."""

    version, device_name = VERSIONS[0], FakeCuda.name

    def build(self, model, shape, *, precision):
        return self

    def layer_information(self):
        return json.dumps({"Layers": []})

    def execute(self, images):
        time.sleep(0.002)  # the reference is run until it has taken some time

    def close(self):
        pass


def benchmark(*words):
    return main(["benchmark", *map(str, words), "--passes", "1", "--seconds", "0", "--force", "--json"])


def test_an_engine_is_timed(model, tmp_path, install, capsys, monkeypatch):
    pytest.importorskip("psutil")
    install()
    monkeypatch.setattr(tensorrt_adapter, "open_adapter", FakeAdapter)
    export(model, tmp_path, precision="fp16", dynamic_batch=True)
    # No runtime and no precision need be named, and the others leave it out.
    assert benchmark(tmp_path, "--batch", 1, 2) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(line["backend"], line["precision"], line["batch"]) for line in report["lines"]] == [
        ("tensorrt", "fp16", 1),
        ("tensorrt", "fp16", 2),
    ]
    assert report["lines"][0]["digest"] == model.structure.digest
    assert benchmark(tmp_path, "--backend", "onnxruntime", "tensorrt") == 0
    (skipped,) = json.loads(capsys.readouterr().out)["skipped"]
    assert skipped["reason"].endswith("is a TensorRT engine; expected the backend tensorrt for it")


@pytest.mark.parametrize("case", ["precision", "gpu", "changed", "no card"])
def test_an_engine_that_is_not_what_it_says_is_not_timed(model, tmp_path, install, cuda, capsys, monkeypatch, case):
    pytest.importorskip("psutil")
    install(precision="fp32" if case == "precision" else None)
    monkeypatch.setattr(tensorrt_adapter, "open_adapter", FakeAdapter)
    export(model, tmp_path, precision="fp16")
    path = tmp_path / "model.engine"
    if case == "gpu":
        cuda.name = "NVIDIA Other"
    if case == "changed":
        path.write_bytes(path.read_bytes() + b"x")
    if case == "no card":
        (tmp_path / "model.json").unlink()
    assert benchmark(path) == 2
    said = capsys.readouterr().err
    assert {
        "precision": "fp16 was asked, but tensorrt runs 0 of",
        "gpu": "was built for NVIDIA Fake 9000",
        "changed": "changed or cut short after the export",
        "no card": "has no model.json beside it",
    }[case] in said
    assert len(said.strip().splitlines()) == 1


def test_without_tensorrt(model, tmp_path, install, monkeypatch):
    install()
    export(model, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"needs the package tensorrt.*maenas\[tensorrt\]"):
        load_exported(tmp_path)
    with pytest.raises(MissingExtraError, match=r"building a TensorRT engine needs the package tensorrt"):
        export(model, tmp_path / "other")
    code = "import sys, detector.tensorrt_build, detector.runtimes; print('tensorrt' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("field, value", [("suppression", "magic"), ("workspace_mb", 0), ("usual_batch", 0)])
def test_wrong_options_are_refused(field, value):
    with pytest.raises(ExportError, match=f"{field} is {value!r}; expected"):
        EngineOptions(**{field: value})


def test_answers_of_the_inspector():
    def layer(name, kind, said, metadata=""):
        tensors = [{"Name": "x", **said}]
        return {"Name": name, "LayerType": kind, "Inputs": tensors, "Outputs": [], "Metadata": metadata}

    layers = [
        layer("node_conv2d + relu", "CaskConvolution", {"Format/Datatype": "Thirty-two wide channel Int8 format"}),
        layer("fused", "kgen", {"Format": "kHWC8", "DataType": "Half"}, "[ONNX Layer: node_conv2d_3]"),
        layer("mm", "gemm", {"Format/Datatype": "Row major linear BFloat16 format"}),
        layer("Reformatting CopyNode for Input Tensor 0 to node_conv2d", "Reformat", {"Format/Datatype": "FP32"}),
        layer("pool", "CaskPooling", {"Format/Datatype": "FP32"}),
        layer("node_conv2d_9", "CaskConvolution", {"Format": "N/A"}),
    ]
    assert layer_precisions(json.dumps({"Layers": layers})) == [
        ("node_conv2d + relu", "int8"),
        ("fused", "fp16"),
        ("mm", "bf16"),
        ("node_conv2d_9", ""),
    ]
    with pytest.raises(ExportError, match="layer names only; expected an engine built with details"):
        layer_precisions(json.dumps({"Layers": ["node_conv2d"]}))
    for text in ("", "[]", "{}", '{"Layers": [{}]}', '{"Layers": 3}'):
        with pytest.raises(ExportError, match="the engine inspector's answer cannot be read"):
            layer_precisions(text)
