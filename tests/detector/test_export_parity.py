"""Artifacts that were broken on purpose are found out by what comes out of their files."""

from __future__ import annotations

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np  # noqa: E402
from export_cases import lively, quick_trace, small_structure  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from detector import export_graph  # noqa: E402
from detector.artifact import TensorSpec  # noqa: E402
from detector.artifact_files import read_card, record_file  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts  # noqa: E402
from detector.export_parity import INT8_SHIFT, ParityCheck, check_parity, point_figures  # noqa: E402
from detector.export_precision import PrecisionProof, heavy_macs, prove_precision  # noqa: E402
from detector.export_reference import example_images, make_references  # noqa: E402
from detector.runtimes import is_installed  # noqa: E402

pytestmark = pytest.mark.export

INSTALLED = [name for name in ("onnxruntime", "openvino") if is_installed(name)]
SIZE = (64, 96)
TWO = TensorSpec("images", "float32", (2, 3, *SIZE))


@pytest.fixture(scope="module")
def model():
    return lively(small_structure())


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """Sound artifacts, unchecked: one of each form that users choose."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_graph, "trace", quick_trace)
        for form in ("decoded", "nms"):
            made[form] = tmp_path_factory.mktemp(form)
            export_artifacts(
                model,
                made[form],
                class_names=model.class_names,
                options=ExportOptions(outputs=form, score_threshold=0.1, iou_threshold=0.6),
                checks=ExportChecks(verify=False),
            )
    return made


@pytest.fixture(scope="module")
def references(model, folders):
    return make_references(model, read_card(folders["decoded"] / "model.onnx"))


def first(node, *arguments, **attributes):
    """A change that puts a node between the images and everything that reads them."""

    def change(proto):
        graph = proto.graph
        for reader in graph.node:
            for index, name in enumerate(reader.input):
                if name == "images":
                    reader.input[index] = "images_changed"
        for name, values in arguments:
            graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        inputs = ["images", *(name for name, _ in arguments)]
        graph.node.insert(0, onnx.helper.make_node(node, inputs, ["images_changed"], **attributes))

    return change


def shifted(proto, by=8.0):
    """Boxes of all points, moved by some pixels; in the nms form too."""
    for tensor in proto.graph.initializer:
        if tensor.name == "box_corners":
            values = onnx.numpy_helper.to_array(tensor) + np.float32(by)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            return
    raise AssertionError("no such constant")


BREAKS = {
    "bgr": (first("Gather", ("order", np.array([2, 1, 0])), axis=1), "it takes BGR images, not RGB"),
    "halved": (first("Mul", ("half", np.array(0.5, np.float32))), "it halves its input"),
    "scaled": (first("Div", ("most", np.array(255, np.float32))), "it divides its input by 255"),
    "shifted": (shifted, "all boxes are shifted by 8, 8, 8, 8 pixels"),
}


def broken(folder, tmp_path, change, precision="fp32"):
    """A copy with a changed graph whose card vouches for it."""
    proto = onnx.load(folder / "model.onnx")
    change(proto)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    card = dataclasses.replace(
        read_card(folder / "model.onnx"), files=(record_file(path),), precision=precision, format="onnx"
    )
    (tmp_path / "model.json").write_text(json.dumps(card.to_dict()), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["decoded", "nms"])
def test_a_sound_artifact_passes(folders, model, references, form):
    checks = check_parity(folders[form] / "model.onnx", model, references)
    assert [check.runtime for check in checks] == INSTALLED
    for check in checks:
        assert not check.failures and check.cause is None
        assert check.figures["scores"] < 1e-4 and check.figures["boxes"] < 0.05
        assert (check.num_detections or 0) > 10 or form == "decoded"
        assert check.figures.get("unmatched", 0) == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_artifact_is_caught_and_explained(folders, model, references, tmp_path, name, precision):
    change, cause = BREAKS[name]
    checks = check_parity(broken(folders["decoded"], tmp_path, change, precision), model, references)
    assert len(checks) == len(INSTALLED)
    for check in checks:
        assert check.failures and check.cause == cause
        assert f"expected at most {check.limits[check.failures[0]]:.3g} ({cause})" in check.complaint()


@pytest.mark.parametrize("name", ["bgr", "shifted"])
def test_detections_of_a_broken_artifact_are_caught_too(folders, model, references, tmp_path, name):
    change, cause = BREAKS[name]
    for check in check_parity(broken(folders["nms"], tmp_path, change), model, references):
        assert check.cause == cause and "boxes" in check.failures
        assert check.figures["unmatched"] > check.limits["unmatched"]


def test_half_a_pixel_is_too_much_for_all_boxes_at_once(folders, model, references, tmp_path):
    path = broken(folders["decoded"], tmp_path, lambda proto: shifted(proto, by=0.5), "fp16")
    for check in check_parity(path, model, references):
        assert check.failures == ("box_shift",) and check.limits["boxes"] > 0.5
        assert check.cause == "all boxes are shifted by 0.5, 0.5, 0.5, 0.5 pixels"


def test_the_shift_that_int8_may_have_costs_one_step_of_overlap():
    side = 80.0
    left = side - INT8_SHIFT * side
    overlap = left**2 / (2 * side**2 - left**2)
    assert overlap == pytest.approx(0.95, abs=0.002)


def photographs(model, folders, images):
    return make_references(model, read_card(folders["decoded"] / "model.onnx"), images)


def test_all_photographs_are_compared_by_a_file_for_one(folders, model):
    images = example_images((3, 3, *SIZE))
    for check in check_parity(folders["decoded"] / "model.onnx", model, photographs(model, folders, images))[1::2]:
        assert (check.source, check.shape) == ("photographs", (3, 3, *SIZE)) and not check.failures
    batches = make_references(
        model, dataclasses.replace(read_card(folders["decoded"] / "model.onnx"), input=TWO), images
    )
    assert [len(reference.images) for reference in batches] == [2, 2, 2]
    np.testing.assert_array_equal(batches[-1].images, images[[2, 0]])


def test_int8_is_judged_by_whether_a_mistake_does_more_than_rounding(folders, model, tmp_path):
    """Swapped channels of grey photographs change nothing, so they are no reason to refuse a file for rounding."""
    grey = np.repeat(example_images((1, 3, *SIZE))[:, :1], 3, axis=1)
    path = broken(folders["decoded"], tmp_path, BREAKS["bgr"][0], "int8")
    for check in check_parity(path, model, photographs(model, folders, grey)):
        assert not check.failures and check.figures["mistake"] <= 1.001
    coloured = photographs(model, folders, example_images((1, 3, *SIZE)))
    for check in check_parity(path, model, coloured):
        assert check.failures[0] == "mistake" and check.cause == BREAKS["bgr"][1]


def test_points_count_as_much_as_torch_is_sure():
    """Of two points the one with half the score has a quarter of the weight."""
    scores = np.array([[[0.8], [0.4]]], np.float32)
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 10]]], np.float32).repeat(42, axis=1)
    moved = boxes.copy()
    moved[:, 42:] += 5
    figures = point_figures((scores.repeat(42, axis=1), moved), (scores.repeat(42, axis=1), boxes), (64, 64))
    assert figures["box_shift"] == pytest.approx(5 / (1 + 4), rel=1e-5)


def test_predictions_that_are_no_numbers_fail(folders, model, references, tmp_path):
    def spoil(proto):
        shifted(proto, by=np.nan)

    for check in check_parity(broken(folders["decoded"], tmp_path, spoil), model, references):
        assert "boxes" in check.failures and check.to_dict()["figures"]["boxes"] is None


@settings(max_examples=25)
@given(
    noise=st.floats(0.0, 1.0),
    shift=st.tuples(*[st.integers(-20, 20)] * 4),
    seed=st.integers(0, 2**16),
)
def test_figures_measure_what_they_say(noise, shift, seed):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.01, 0.99, (2, 84, 3)).astype(np.float32)
    boxes = rng.uniform(-50, 150, (2, 84, 4)).astype(np.float32)
    moved = boxes + np.array(shift, np.float32)
    figures = point_figures((scores, moved), (scores, boxes), (64, 64))
    assert figures["scores"] == figures["score_error"] == 0
    assert figures["boxes"] == pytest.approx(max(map(abs, shift)), abs=1e-4)
    assert figures["box_shift"] == pytest.approx(max(map(abs, shift)), abs=1e-4)
    logits = np.log(scores / (1 - scores))
    weights = np.square(scores.astype(np.float64).max(axis=-1, keepdims=True)).repeat(3, axis=-1)
    spread = np.sqrt(np.cov(logits.ravel(), aweights=weights.ravel(), bias=True))
    other = (1 / (1 + np.exp(-(logits + noise * spread)))).astype(np.float32)
    error = point_figures((other, boxes), (scores, boxes), (64, 64))["score_error"]
    assert error == pytest.approx(noise, abs=2e-3)


def test_a_check_without_a_figure_above_its_limit_has_passed():
    check = ParityCheck("r", "1", "made up", (1, 3, 64, 64), {"scores": 0.1, "boxes": 9.0}, {"scores": 0.1})
    assert check.failures == () and check.to_dict()["passed"]


def test_macs_by_hand():
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = [
        onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w"),
        onnx.numpy_helper.from_array(np.zeros((8, 1, 3, 3), np.float32), "d"),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["a"], name="first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["a", "d"], ["b"], name="depthwise", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
    ]
    values = [helper.make_tensor_value_info(name, kind, [None] * 4) for name in ("images", "c")]
    proto = helper.make_model(helper.make_graph(nodes, "net", values[:1], values[1:], weights))
    # 16 x 16 outputs; 8 channels from 3 by a 3 x 3 kernel, then 8 channels from one each.
    assert heavy_macs(proto, (2, 3, 32, 32)) == {"first": 2 * 256 * 8 * 27, "depthwise": 2 * 256 * 8 * 9}
    assert not proto.graph.value_info


def test_what_runs_in_single_precision_is_proved_so(folders, model):
    path = folders["decoded"] / "model.onnx"
    proofs = prove_precision(path)
    convs = sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)
    assert [proof.runtime for proof in proofs] == INSTALLED
    work = set()
    for proof in proofs:
        # The convolutions, and the product with the bins of the box distributions.
        assert proof.layers == {"fp32": convs + 1}
        assert proof.share_layers == proof.share_macs == 1.0 and proof.complaint() is None
        work.add(sum(proof.macs.values()))
    assert len(work) == 1 and work.pop() > 10_000


def test_half_precision_that_runs_in_single_is_told():
    proof = PrecisionProof("openvino", "1", "a CPU", "fp16", {"fp32": 27, "fp16": 3}, {"fp32": 99, "fp16": 1})
    assert (proof.share_layers, proof.share_macs) == (0.1, 0.01)
    assert proof.complaint() == (
        "fp16 was asked, but openvino runs 3 of 30 convolutions and products in it on a CPU (27 in fp32)"
    )
    partial = dataclasses.replace(proof, asked="int8", layers={"fp32": 27, "int8": 3}, intended=6)
    assert partial.complaint() is None
    assert dataclasses.replace(partial, intended=8).complaint().startswith("int8 was asked, but openvino runs 3 of 30")
    unknown = dataclasses.replace(proof, layers={"fp16": 30}, macs={})
    assert unknown.share_macs is None and unknown.complaint() is None


def test_compressed_weights_are_not_taken_for_half_precision(model, tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    from maenas.extras import openvino_core

    monkeypatch.setattr(export_graph, "trace", quick_trace)
    options = ExportOptions(precision="fp16")
    names = model.class_names
    (report,) = export_artifacts(model, tmp_path, class_names=names, formats=["openvino"], options=options)
    (proof,) = report.proofs
    offers_half = "FP16" in openvino_core(purpose="a test").get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert set(proof.layers) == ({"fp16", "fp32"} if offers_half else {"fp32"})
    constants = {
        str(operation.output(0).get_element_type())
        for operation in openvino_core(purpose="a test").read_model(tmp_path / "model.xml").get_ordered_ops()
        if operation.get_type_name() == "Constant" and operation.get_friendly_name().endswith("weight_compressed")
    }
    assert constants == {str(openvino.Type.f16)}
