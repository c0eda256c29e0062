"""AP of artifacts beside torch's, and what a quantiser is given and may give back."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("faster_coco_eval")

import numpy as np  # noqa: E402
from evaluation_cases import NAMES, dataset, record  # noqa: E402
from export_cases import lively, quick_trace, small_structure  # noqa: E402
from PIL import Image  # noqa: E402

from detector import export_graph  # noqa: E402
from detector.artifact_files import read_card  # noqa: E402
from detector.errors import ExportError  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts  # noqa: E402
from detector.export_accuracy import Accuracy, ExportData  # noqa: E402
from detector.export_int8 import Quantised  # noqa: E402
from detector.images import read_image, to_input  # noqa: E402
from detector.runtimes import is_installed  # noqa: E402

pytestmark = pytest.mark.export

INSTALLED = [name for name in ("onnxruntime", "openvino") if is_installed(name)]


@pytest.fixture(autouse=True)
def _trace_quickly(monkeypatch):
    monkeypatch.setattr(export_graph, "trace", quick_trace)


@pytest.fixture(scope="module")
def model():
    network = lively(small_structure())
    network.class_names = NAMES
    return network


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    """Pictures of noise whose boxes the network itself has found, moved a little and partly under another class."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    records = []
    for number in range(5):
        path = folder / f"{number}.png"
        picture = rng.integers(0, 256, (8, 12, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(picture).save(path)
        (best,) = model.detect(to_input([read_image(path)], (64, 96)), score_threshold=0.3, max_detections=12)
        boxes = best.boxes * 2 + rng.normal(0, 4, best.boxes.shape)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
        labels = np.where(rng.random(len(best)) < 0.2, rng.integers(0, 3, len(best)), best.labels)
        records.append(record(boxes, labels, image_id=number, path=path, size=(128, 192)))
    return ExportData(dataset(*records), dataset(*records[:3]))


def export(model, folder, data, **options):
    given = {name: options.pop(name) for name in ("quantiser", "formats", "progress") if name in options}
    checks = ExportChecks(data=data, **{name: options.pop(name) for name in ("max_drop", "force") if name in options})
    names = model.class_names
    return export_artifacts(model, folder, class_names=names, options=ExportOptions(**options), checks=checks, **given)


@pytest.mark.parametrize("outputs", ["decoded", pytest.param("nms", marks=pytest.mark.slow)])
def test_ap_is_measured_in_every_runtime(model, data, tmp_path, outputs):
    (report,) = export(model, tmp_path, data, outputs=outputs, dynamic_batch=True)
    assert [entry.runtime for entry in report.accuracy] == INSTALLED
    for entry in report.accuracy:
        assert (entry.num_images, entry.data, entry.max_drop) == (5, "made up", 0.001)
        assert 0.1 < entry.torch_ap < 0.95 and entry.torch_ap < entry.torch_ap50
        assert entry.ap == pytest.approx(entry.torch_ap, abs=1e-3)
        assert entry.ap50 == pytest.approx(entry.torch_ap50, abs=1e-3)
    # Photographs are compared point by point as well.
    assert {check.source for check in report.parity} == {"made up", "photographs"}
    card = read_card(tmp_path / "model.onnx")
    assert card.parity["accuracy"] == [entry.to_dict() for entry in report.accuracy] and card.parity["passed"]


def test_ap_that_is_lost():
    entry = Accuracy("openvino", "cells", 24, torch_ap=0.412, ap=0.4, torch_ap50=0.6, ap50=0.6, max_drop=0.005)
    assert not entry.passed and dataclasses.replace(entry, max_drop=0.0121).passed
    assert entry.complaint() == (
        "AP in openvino is 40.00, 1.20 below torch's 41.20 on 24 images of cells; expected to lose at most 0.50"
    )


def test_a_quantiser_gets_what_it_needs(model, data, tmp_path):
    requests, lines = [], []

    def quantise(request):
        requests.append(request)
        first, second = ([image.sum() for image in request.images()] for _ in range(2))
        assert first == second and len(first) == request.num_images == 3
        image = next(request.images())
        assert (image.shape, image.dtype) == ((1, 3, 64, 96), np.float32)
        assert list(request.folder.iterdir()) == []
        shutil.copy(request.onnx_path, request.folder / "int8.onnx")
        # Nothing was quantised, so nothing is lost.
        assert request.evaluate(request.folder / "int8.onnx") == pytest.approx(request.reference_ap, abs=1e-3)
        return Quantised(request.folder / "int8.onnx", {"tool": "none", "kept": ["all"]})

    (report,) = export(model, tmp_path, data, precision="int8", quantiser=quantise, progress=lines.append)
    (request,) = requests
    assert (request.card.precision, request.format, request.max_drop) == ("fp32", "onnx", 0.005)
    weights = {tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert any(name.startswith("backbone") and name.endswith("weight") for name in weights)
    card = read_card(tmp_path / "model.onnx")
    assert (card.precision, card.quantisation) == ("int8", {"tool": "none", "kept": ["all"]})
    # It claims int8 and runs in float32: that is told.
    assert all("int8 was asked, but" in proof.complaint() for proof in report.proofs)
    assert [entry.max_drop for entry in report.accuracy] == [0.005] * len(INSTALLED)
    assert "measuring AP in torch" in lines


def test_a_quantiser_that_ruins_the_network_is_caught(model, data, tmp_path):
    def ruin(request):
        proto = onnx.load(request.onnx_path)
        for tensor in proto.graph.initializer:
            if "class_convs" in tensor.name and tensor.name.endswith("weight"):
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(values), tensor.name))
        onnx.save(proto, request.folder / "int8.onnx")
        return Quantised(request.folder / "int8.onnx")

    with pytest.raises(ExportError, match=r"score_error is off by .*; expected at most 0.5; no file was written"):
        export(model, tmp_path / "out", data, precision="int8", quantiser=ruin)
    assert not (tmp_path / "out").exists()
    (report,) = export(model, tmp_path / "out", data, precision="int8", quantiser=ruin, force=True)
    assert report.complaints and not read_card(tmp_path / "out" / "model.onnx").parity["passed"]


def test_a_loss_of_ap_is_refused_where_outputs_are_near_enough(model, data, tmp_path):
    def nudge(request):
        """Boxes that are off by less than rounding may move them, and by enough to count at strict overlaps."""
        proto = onnx.load(request.onnx_path)
        for tensor in proto.graph.initializer:
            if tensor.name == "box_corners":
                values = onnx.numpy_helper.to_array(tensor) + np.array([1, -1, 1, -1], np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(proto, request.folder / "int8.onnx")
        return Quantised(request.folder / "int8.onnx")

    with pytest.raises(ExportError, match=r"AP in onnxruntime is .* below torch's .*; expected to lose at most 0.50"):
        export(model, tmp_path, data, precision="int8", quantiser=nudge)
    assert not list(tmp_path.iterdir())
    assert export(model, tmp_path, data, precision="int8", quantiser=nudge, max_drop=0.9)[0].complaints == ()


def test_provenance_and_formats_are_checked_first(model, tmp_path):
    with pytest.raises(
        ExportError, match="formats is onnx, onnx; expected some of onnx, openvino, tensorrt, each once"
    ):
        export_artifacts(model, tmp_path, class_names=NAMES, formats=["onnx", "onnx"])
    with pytest.raises(ExportError, match="formats is empty"):
        export_artifacts(model, tmp_path, class_names=NAMES, formats=[])


def test_nodes_of_a_quantiser_are_put_in_order(model, data, tmp_path):
    def shuffle(request):
        proto = onnx.load(request.onnx_path)
        nodes = list(proto.graph.node)[::-1]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        path = request.folder / "int8.onnx"
        path.write_bytes(proto.SerializeToString())
        return Quantised(path)

    export(model, tmp_path, data, precision="int8", quantiser=shuffle)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))

    def cut(request):
        proto = onnx.load(request.onnx_path)
        del proto.graph.node[3]
        path = request.folder / "int8.onnx"
        path.write_bytes(proto.SerializeToString())
        return Quantised(path)

    with pytest.raises(ExportError, match=r"int8.onnx: .* reads tensors that no node makes; expected a whole graph"):
        export(model, tmp_path / "cut", data, precision="int8", quantiser=cut)
