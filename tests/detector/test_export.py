"""Exported files: what they hold, that runtimes agree with torch, and that a wrong one is never written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import numpy as np  # noqa: E402
from export_cases import by_score, lively, quick_trace, small_structure  # noqa: E402
from network_cases import filled_model, published, random_structure, with_image_size  # noqa: E402

from detector import export_graph, export_parity, export_precision, onnx_tail, onnx_verify  # noqa: E402
from detector.artifact import METADATA_KEY, ModelCard  # noqa: E402
from detector.artifact_files import card_path, read_card  # noqa: E402
from detector.decode import box_frame, decode  # noqa: E402
from detector.errors import ExportError, MissingExtraError  # noqa: E402
from detector.export import export_onnx  # noqa: E402
from detector.export_reference import example_images  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.postprocess import postprocess  # noqa: E402
from detector.reparam import deploy  # noqa: E402
from detector.runtimes import is_installed, load_exported  # noqa: E402

pytestmark = pytest.mark.export

INSTALLED = [name for name in ("onnxruntime", "openvino") if is_installed(name)]


@pytest.fixture(autouse=True)
def trace_quickly(request, monkeypatch):
    """Tracing takes seconds: only tests that ask for it use torch's exporter."""
    if "traced" not in request.fixturenames:
        monkeypatch.setattr(export_graph, "trace", quick_trace)


@pytest.fixture
def traced():
    """For tests of the graph that users get."""


@pytest.fixture(scope="module")
def model():
    return lively(small_structure())


def save(model, path, **options):
    options = {"class_names": model.class_names, **options}
    return export_onnx(model, path, **options)


def expected(model, images):
    with torch.inference_mode():
        raw = model(torch.from_numpy(images))
        scores, boxes = model.decode(raw)
    tensors = {
        "cls_logits": raw.cls_logits[..., : model.num_classes],
        "box_logits": raw.box_logits,
        "scores": scores,
        "boxes": boxes,
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def check_tensors(found, wanted, *, scores=1e-4, boxes=0.05, logits=1e-4):
    limits = {"scores": scores, "boxes": boxes}
    for name, values in found.items():
        scale = 1 if name in limits else np.abs(wanted[name]).max()
        np.testing.assert_allclose(values, wanted[name], rtol=0, atol=limits.get(name, logits) * scale, err_msg=name)


@pytest.mark.parametrize("outputs", ["raw", "decoded"])
def test_runtimes_compute_what_torch_does(model, tmp_path, outputs):
    report = save(model, tmp_path / "model.onnx", outputs=outputs, batch_size=2)
    images = np.random.default_rng(7).uniform(0, 255, (2, 3, 64, 96)).astype(np.float32)
    for runtime in INSTALLED:
        found = load_exported(report.path, runtime=runtime, threads=1).run(images)
        assert list(found) == [output.name for output in report.card.outputs]
        assert [values.shape for values in found.values()] == [output.shape for output in report.card.outputs]
        check_tensors(found, expected(model, images))
    assert [check.runtime for check in report.checks] == INSTALLED


def test_the_background_channel_is_dropped(model, tmp_path):
    report = save(model, tmp_path / "model.onnx", outputs="raw", verify=False)
    assert model.head.num_logits == 4
    assert [output.shape[2] for output in report.card.outputs] == [3, 4]


@pytest.mark.parametrize(
    "free",
    [
        pytest.param({"dynamic_batch": True}, marks=pytest.mark.slow),
        pytest.param({"dynamic_size": True}, marks=pytest.mark.slow),
        {"dynamic_batch": True, "dynamic_size": True},
    ],
)
def test_free_axes(model, tmp_path, free):
    report = save(model, tmp_path / "model.onnx", **free)
    shape = report.card.input.shape
    assert (shape[0] is None, shape[2] is None, shape[3] is None) == (
        "dynamic_batch" in free,
        "dynamic_size" in free,
        "dynamic_size" in free,
    )
    assert len(report.checks) == 2 * len(INSTALLED)
    batches = (1, 3) if "dynamic_batch" in free else (1,)
    sizes = ((32, 32), (64, 96), (160, 32)) if "dynamic_size" in free else ((64, 96),)
    for runtime in INSTALLED:
        session = load_exported(report.path, runtime=runtime, threads=1)
        for batch in batches:
            for size in sizes:
                images = example_images((batch, 3, *size))
                check_tensors(session.run(images), expected(model, images))


@pytest.mark.slow
def test_free_axes_of_a_traced_graph(model, tmp_path, traced):
    report = save(model, tmp_path / "model.onnx", dynamic_batch=True, dynamic_size=True)
    for runtime in INSTALLED:
        session = load_exported(report.path, runtime=runtime, threads=1)
        for shape in ((1, 3, 32, 32), (3, 3, 64, 96), (2, 3, 160, 32)):
            images = example_images(shape)
            check_tensors(session.run(images), expected(model, images))


@pytest.mark.parametrize("free", [{"batch_size": 2}, {"dynamic_batch": True, "dynamic_size": True}])
def test_the_nms_form_gives_the_detections_of_postprocess(model, tmp_path, free):
    settings = {"score_threshold": 0.2, "iou_threshold": 0.4, "max_detections": 40}
    report = save(model, tmp_path / "model.onnx", outputs="nms", **free, **settings)
    images = example_images((2, 3, 64, 96)) if "batch_size" in free else example_images((3, 3, 96, 64))
    tensors = expected(model, images)
    wanted = postprocess(
        torch.from_numpy(tensors["scores"]), torch.from_numpy(tensors["boxes"]), image_size=images.shape[2:], **settings
    )
    pairs = [int((scores > 0.2).sum()) for scores in tensors["scores"]]
    # The case is worth something: boxes are suppressed, and some are left.
    assert all(5 < len(one) < count for one, count in zip(wanted, pairs, strict=True))
    for runtime in INSTALLED:
        session = load_exported(report.path, runtime=runtime, threads=1)
        for found, one in zip(session.detect(images, **settings), wanted, strict=True):
            assert len(found) == len(one)
            np.testing.assert_allclose(by_score(found), by_score(one), rtol=0, atol=0.01)
        raw = session.run(images)
        counts = raw["num_dets"][:, 0]
        assert raw["num_dets"].dtype == raw["classes"].dtype == np.int64
        for image, count in enumerate(counts):
            assert (raw["classes"][image, count:] == -1).all() and (raw["classes"][image, :count] >= 0).all()
            assert not raw["boxes"][image, count:].any() and not raw["scores"][image, count:].any()
    assert all(check.num_detections > 10 for check in report.checks)


def test_more_rows_than_points_and_nothing_found(model, tmp_path):
    options = {"outputs": "nms", "max_detections": 1000, "score_threshold": 1.0, "dynamic_batch": True}
    report = save(model, tmp_path / "model.onnx", **options)
    for runtime in INSTALLED:
        found = load_exported(report.path, runtime=runtime).run(example_images((2, 3, 64, 96)))
        assert found["boxes"].shape == (2, 1000, 4)
        assert not found["num_dets"].any() and (found["classes"] == -1).all()


def test_half_precision(model, tmp_path, traced):
    full = save(model, tmp_path / "full.onnx")
    half = save(model, tmp_path / "half.onnx", precision="fp16")
    assert half.size_bytes < 0.75 * full.size_bytes
    images = example_images((1, 3, 64, 96))
    for runtime in INSTALLED:
        found = load_exported(half.path, runtime=runtime).run(images)
        assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
        check_tensors(found, expected(model, images), scores=0.03, boxes=2.0)
    proto = onnx.load(half.path)
    kinds = {t.name: t.data_type for t in proto.graph.initializer if t.name.startswith("model.")}
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}


def test_a_network_that_overflows_half_precision_is_refused(model, tmp_path):
    loud = deploy(model)
    with torch.no_grad():
        next(module for module in loud.backbone.modules() if isinstance(module, torch.nn.Conv2d)).weight.mul_(1e4)
    with pytest.raises(ExportError, match=r"\w gives values up to .*; half precision holds up to 65504: use fp32"):
        save(loud, tmp_path / "model.onnx", precision="fp16")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 20])
def test_other_opsets(model, tmp_path, opset, traced):
    report = save(model, tmp_path / "model.onnx", opset=opset, outputs="nms")
    assert [entry.version for entry in onnx.load(report.path).opset_import if not entry.domain] == [opset]


@pytest.mark.slow
@pytest.mark.parametrize("name, nodes", [("t", 208), ("ns", 268)])
def test_static_graphs_are_minimal(tmp_path, name, nodes, traced):
    model = filled_model(name)
    report = save(deploy(model), tmp_path / "model.onnx", image_size=(64, 96))
    assert sum(report.nodes.values()) <= nodes
    unwanted = {"Identity", "BatchNormalization", "Shape", "Constant", "Cast", "Gather", "Unsqueeze", "Dropout"}
    assert not unwanted & report.nodes.keys()
    # Three maps of each kind: one flattening each, one concatenation and one turn to point by channel.
    assert (report.nodes["Reshape"], report.nodes["Transpose"]) == (6, 2)
    graph = onnx.load(report.path).graph
    assert not any("/" in value for node in graph.node for value in (node.doc_string, *node.output))
    for check in report.checks:
        assert check.differences.keys() == {"cls_logits", "box_logits", "scores", "boxes"}


def test_the_file_carries_its_card_and_the_json_beside_it_says_the_same(model, tmp_path):
    names = ("cat", "hund", "ptáček")
    provenance = {"recipe": "none", "epochs": 3}
    report = save(model, tmp_path / "new" / "model.onnx", class_names=names, provenance=provenance)
    assert sorted(path.name for path in report.path.parent.iterdir()) == ["model.json", "model.onnx"]
    card = read_card(report.path)
    assert card == report.card == read_card(report.card_path)
    assert [(file.name, file.size_bytes) for file in card.files] == [("model.onnx", report.path.stat().st_size)]
    assert card.files[0].sha256 == hashlib.sha256(report.path.read_bytes()).hexdigest()
    assert card.structure == model.structure
    assert (card.class_names, card.provenance, card.image_size) == (names, provenance, (64, 96))
    assert (card.parity["passed"], card.parity["complaints"], card.parity["accuracy"]) == (True, [], [])
    assert [entry["runtime"] for entry in card.parity["graph"]] == INSTALLED
    assert set(card.parity["graph"][0]["differences"]) == {"cls_logits", "box_logits", "scores", "boxes"}
    assert [(entry["runtime"], entry["passed"]) for entry in card.parity["artifact"]] == [
        (name, True) for name in INSTALLED
    ]
    assert [(entry["runtime"], entry["share_layers"]) for entry in card.proofs] == [(name, 1.0) for name in INSTALLED]
    metadata = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    inside = ModelCard.from_dict(json.loads(metadata[METADATA_KEY]), source="x")
    assert inside == dataclasses.replace(card, files=(), parity=None, proofs=())
    assert json.loads(metadata["names"])["1"] == "hund"
    assert (metadata["imgsz"], metadata["stride"]) == ("[64, 96]", "32")
    assert str(tmp_path) not in report.path.read_bytes().decode("latin-1")
    assert report.size_bytes == report.path.stat().st_size
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict())), source="x") == card
    onnx.checker.check_model(str(report.path), full_check=True)


def test_another_file_name_names_the_card(model, tmp_path):
    report = save(model, tmp_path / "foo.onnx", verify=False)
    assert report.card_path == card_path(tmp_path / "foo.onnx") == tmp_path / "foo.json"
    assert report.checks == report.parity == report.proofs == () and report.card.parity is None


def test_exporting_leaves_the_network_alone(model, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save(model, tmp_path / "model.onnx", precision="fp16")
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())


@pytest.mark.slow
def test_equal_networks_give_equal_files(model, tmp_path, traced):
    first, second = (save(model, tmp_path / name, verify=False) for name in ("a.onnx", "b.onnx"))
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"outputs": "boxes"}, "outputs is 'boxes'; expected one of raw, decoded, nms"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected one of fp32, fp16, int8"),
        ({"precision": "int8"}, "precision is 'int8'; expected a quantiser and data to calibrate"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, 1 or more"),
        ({"image_size": (64, 100)}, "image width is 100; expected a multiple of 32"),
        ({"image_size": (0, 64)}, "image height is 0"),
        ({"opset": 11}, "opset is 11; expected one of 17"),
        ({"score_threshold": 1.5}, "score_threshold is 1.5; expected a number from 0 to 1"),
        ({"score_threshold": 10**400}, "score_threshold is 1000"),
        ({"iou_threshold": float("nan")}, "iou_threshold is nan"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"class_names": ["one"]}, "class_names has 1 entries; expected 3"),
        ({"provenance": {"x": object()}, "verify": False}, "provenance must be plain JSON"),
    ],
)
def test_wrong_options_are_refused(model, tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        save(model, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_an_unfused_network_and_another_suffix_are_refused(model, tmp_path):
    with pytest.raises(ExportError, match=r"not deployed.*deploy"):
        save(Detector(model.structure).eval(), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"suffix is '.pb'; expected .onnx"):
        save(model, tmp_path / "model.pb")
    assert not list(tmp_path.iterdir())


def shifted_frame(image_size, strides):
    corners, reach = box_frame(image_size, strides)
    return corners + np.abs(reach) / 2, reach


@pytest.mark.parametrize("outputs", ["decoded", "nms"])
def test_points_off_by_half_a_cell_are_noticed(model, tmp_path, monkeypatch, outputs):
    monkeypatch.setattr(onnx_tail, "box_frame", shifted_frame)
    with pytest.raises(
        ExportError, match=r"boxes differs from torch by (16|1[56]\.\d*) in onnxruntime; expected at most 0.05"
    ):
        save(model, tmp_path / "model.onnx", outputs=outputs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("outputs", ["raw", "decoded", "nms"])
def test_wrong_weights_are_noticed_even_where_an_untrained_network_scores_alike(tmp_path, monkeypatch, outputs):
    # Without training all scores are about 0.01, and boxes hardly depend on the logits: only these show it.
    torch.manual_seed(0)
    structure = with_image_size(random_structure("kxkx", 26), 64, 64)
    untrained = deploy(Detector(structure).eval())

    def wrong(*arguments, **options):
        proto = quick_trace(*arguments, **options)
        for tensor in proto.graph.initializer:
            if "class_convs" in tensor.name and tensor.name.endswith("weight"):
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.97) * values, tensor.name))
        return proto

    monkeypatch.setattr(export_graph, "trace", wrong)
    with pytest.raises(ExportError, match="cls_logits differs from torch by"):
        save(untrained, tmp_path / "model.onnx", outputs=outputs)
    assert not list(tmp_path.iterdir())


def test_wrong_suppression_is_noticed(model, tmp_path, monkeypatch):
    def wrong(graph, tail, settings):
        onnx_tail.append_nms(graph, tail, dataclasses.replace(settings, iou_threshold=0.9))

    monkeypatch.setattr(export_graph, "append_nms", wrong)
    with pytest.raises(ExportError, match="detections of onnxruntime are not those"):
        save(model, tmp_path / "model.onnx", outputs="nms", iou_threshold=0.4)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime.*maenas\[onnx\]"):
        save(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    save(model, tmp_path / "model.onnx", verify=False)


def test_only_onnx_runtime_is_asked_for(model, tmp_path, monkeypatch):
    for module in (export_parity, export_precision, onnx_verify):
        monkeypatch.setattr(module, "is_installed", lambda runtime: runtime == "onnxruntime")
    report = save(model, tmp_path / "model.onnx")
    for entries in (report.checks, report.parity, report.proofs):
        assert [entry.runtime for entry in entries] == ["onnxruntime"]


def test_numpy_decoding_is_torchs(model):
    images = example_images((2, 3, 96, 64))
    wanted = expected(model, images)
    scores, boxes = decode(wanted["cls_logits"], wanted["box_logits"], (96, 64))
    assert scores.dtype == boxes.dtype == np.float32
    np.testing.assert_allclose(scores, wanted["scores"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(boxes, wanted["boxes"], rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["res", "kxkx", "csp", "mob"])
@pytest.mark.parametrize("outputs", ["decoded", "nms"])
def test_random_structures_are_exported_and_verified(tmp_path, family, outputs):
    for seed in range(2):
        report = save(lively(random_structure(family, seed)), tmp_path / f"{seed}.onnx", outputs=outputs, batch_size=2)
        assert len(report.checks) == len(INSTALLED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s", "nm", "nl", "n"])
def test_published_models_are_exported_and_verified(tmp_path, name):
    structure = with_image_size(published(name), 96, 64)
    report = save(lively(structure), tmp_path / "model.onnx", dynamic_batch=True)
    assert len(report.checks) == 2 * len(INSTALLED)


def test_no_two_convolutions_share_a_bias(tmp_path):
    """Merged, equal biases would not be fused by runtimes, and the network would run slower than a trained one."""
    model = deploy(Detector(published("ns")))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.bias.fill_(0.5)
    model.export(tmp_path / "model.onnx", image_size=(64, 64), verify=False)
    graph = onnx.load(tmp_path / "model.onnx").graph
    biases = [node.input[2] for node in graph.node if node.op_type == "Conv"]
    assert len(biases) == 91 and len(set(biases)) == 91
    assert set(biases) <= {constant.name for constant in graph.initializer}


def test_the_card_tells_of_a_foreign_backbone(tmp_path, traced):
    class Pooled(torch.nn.Module):
        """Three maps of averaged pixels, eight channels each."""

        channels, strides = (8, 8, 8), (8, 16, 32)

        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Conv2d(3, 8, 1)

        def forward(self, images):
            x = self.mix(images)
            return [torch.nn.functional.avg_pool2d(x, stride) for stride in self.strides]

    own = save(deploy(Detector(small_structure())), tmp_path / "own.onnx", verify=False)
    foreign = save(deploy(Detector(small_structure(), backbone=Pooled())), tmp_path / "foreign.onnx", verify=False)
    assert "backbone" not in own.card.provenance
    assert foreign.card.provenance["backbone"] == "Pooled, not the one of the structure"
