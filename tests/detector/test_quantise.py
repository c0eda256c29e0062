import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from export_cases import lively, quick_trace
from hypothesis import given
from hypothesis import strategies as st
from network_cases import published, random_structure, shared, with_image_size
from quantise_cases import FRAGILE, closeness, fragile_detector, graph_of, images, outputs, request
from torch import device, nn

from detector import export_graph, quantise
from detector.errors import ExportError
from detector.export_graph import Graph
from detector.export_reference import example_images
from detector.model import Detector
from detector.quantise import QuantiseSettings, make_quantiser
from detector.quantise_gate import Trial, fewest_returned
from detector.quantise_layers import Layer, count_operators, find_layers, float_nodes, share_int8
from detector.quantise_onnx import METHODS, batches, calibrate
from detector.quantise_plot import sensitivity_png
from detector.quantise_presets import PRESETS, preset_layers
from detector.quantise_sensitivity import Sensitivity, measure_sensitivity, sensitivity_csv
from detector.reparam import deploy
from detector.runtimes import OnnxRuntimeSession
from maenas.errors import MissingExtraError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def model() -> Detector:
    return fragile_detector()


@pytest.fixture(scope="module")
def graph(model) -> Graph:
    return graph_of(model)


def layer(name: str, macs: int = 1) -> Layer:
    return Layer(name, f"node_{name}", (), macs)


# Layers


def test_layers_are_the_convolutions_by_module_with_their_activations(model, graph):
    layers = find_layers(graph.proto, graph.card)
    convs = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {entry.name for entry in layers} == convs and len(layers) == len(convs)
    by_name = {entry.name: entry for entry in layers}
    kinds = {node.name: node.op_type for node in graph.proto.graph.node}
    assert [kinds[name] for name in by_name[FRAGILE].activations] == ["Sigmoid", "Mul"]  # SiLU
    assert [kinds[name] for name in by_name["backbone.stem.conv"].activations] == ["LeakyRelu"]
    assert by_name["head.box_convs.0"].activations == ()
    # 1x1 on 8x12 points: 5 channels to 32.
    assert by_name["head.box_convs.0"].macs == 8 * 12 * 5 * 32


def test_the_tail_stays_in_float(graph):
    kept = set(float_nodes(graph.proto))
    tail = {node.name for node in graph.proto.graph.node if node.name.startswith("tail_")}
    assert tail and tail <= kept
    assert not any(node.name in kept for node in graph.proto.graph.node if node.op_type == "Conv")


def test_share_counts_work():
    layers = [layer("a", 30), layer("b", 70)]
    assert share_int8(layers, ()) == 1 and share_int8(layers, ["b"]) == pytest.approx(0.3)


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_the_official_operators(name):
    preset, size = PRESETS[name], name[-1]
    with device("meta"):
        network = deploy(Detector(published(size)))
    modules = dict(network.named_modules()).items()
    operators = [(key, module) for key, module in modules if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    assert len(operators) == preset.operators == {"t": 80, "s": 86, "m": 114}[size]
    layers = [layer(key) for key, module in operators if isinstance(module, nn.Conv2d)]
    chosen = preset_layers(name, layers, operators=len(operators))
    assert list(chosen) == sorted(chosen, key=[key for key, _ in operators].index)
    assert tuple(operators.index((key, network.get_submodule(key))) for key in chosen) == preset.numbers
    with shared("spec/partial_quant_ops.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"] == size.upper()]
    assert tuple(int(row["op_index"]) for row in rows if row["int8"] == "0") == preset.numbers
    kinds = [type(module).__name__ for _, module in operators]
    assert kinds == [row["op_type"] for row in rows]


def test_number_31_of_s_is_the_first_branch_of_merge_3():
    assert dict(zip(PRESETS["official-s"].numbers, PRESETS["official-s"].modules, strict=True))[31] == (
        "neck.nodes.merge_3.block.conv1"
    )


def test_a_preset_refuses_another_network(graph, tmp_path):
    with pytest.raises(
        ExportError, match=r"'official-s', for a network of 86 convolutions and max-pools; this one has 33"
    ):
        make_quantiser(QuantiseSettings(layers="official-s"))(request(graph, tmp_path))


# The search


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_fewest_layers_are_found_in_few_measurements(needed, most):
    asked: list[int] = []

    def measure(count: int) -> float:
        asked.append(count)
        return 0.5 if count >= needed else 0.4

    best = fewest_returned(measure, least_ap=0.45, most=lambda: most)
    assert best == (Trial(needed, 0.5) if needed <= most else None)
    assert len(set(asked)) == len(asked) <= 2 * max(needed, most).bit_length() + 2
    assert max(asked) <= most


def test_layers_are_not_ranked_where_the_ap_holds_at_once():
    def most() -> int:
        raise AssertionError

    assert fewest_returned(lambda count: 0.5, least_ap=0.5, most=most) == Trial(0, 0.5)


def test_what_was_measured_counts_not_what_should_hold():
    # More layers in float32 are worse here: 2 hold, 1 does not, 3 do not.
    found = {0: 0.1, 1: 0.2, 2: 0.5, 3: 0.3}
    assert fewest_returned(found.__getitem__, least_ap=0.5, most=lambda: 3) == Trial(2, 0.5)


# ONNX


@pytest.mark.parametrize("method", METHODS)
def test_int8_answers_are_close(graph, tmp_path, method):
    wanted = request(graph, tmp_path)
    quantiser = calibrate(wanted, find_layers(graph.proto, graph.card), method=method, seven_bits=False)
    path = wanted.folder / "model.onnx"
    quantiser.write(path, [FRAGILE])
    expected, found = outputs(graph.proto.SerializeToString()), outputs(path)
    assert found.keys() == expected.keys()
    error = np.abs(found["boxes"] - expected["boxes"]).mean()
    assert 0 < error < 0.1 * expected["boxes"].std()


def test_activations_are_unsigned_and_weights_signed_per_channel(graph, tmp_path):
    proto = _written(graph, request(graph, tmp_path))
    weight = _constant(proto, f"model.{FRAGILE}.weight_quantized")
    assert weight.dtype == np.int8
    assert _constant(proto, f"model.{FRAGILE}.weight_scale").shape == (len(weight),)
    kinds = {_constant(proto, node.input[2]).dtype for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {np.dtype(np.uint8)}
    assert {entry.domain for entry in proto.opset_import} == {""}


def test_seven_bits_leave_room_for_sums(graph, tmp_path):
    proto = _written(graph, request(graph, tmp_path), seven_bits=True)
    assert np.abs(_constant(proto, f"model.{FRAGILE}.weight_quantized")).max() <= 64


def test_tensorrt_gets_signed_numbers_around_zero_and_no_rounded_bias(graph, tmp_path):
    proto = _written(graph, request(graph, tmp_path, format="tensorrt"))
    makers = {output: node for node in proto.graph.node for output in node.output}
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero = _constant(proto, node.input[2])
        assert zero.dtype == np.int8 and not zero.any()
    constants = {entry.name for entry in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Conv":
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert node.input[2] in constants
            follow = [reader.op_type for reader in proto.graph.node if node.output[0] in reader.input]
            assert follow and "QuantizeLinear" not in follow
    # A pair belongs to one reader.
    for node in pairs:
        if node.op_type == "DequantizeLinear":
            assert sum(list(reader.input).count(node.output[0]) for reader in proto.graph.node) == 1


def test_layers_in_higher_precision_keep_their_weights(graph, tmp_path):
    wanted = request(graph, tmp_path)
    layers = find_layers(graph.proto, graph.card)
    quantiser = calibrate(wanted, layers, method="minmax", seven_bits=False)
    path = wanted.folder / "model.onnx"
    quantiser.write(path, [FRAGILE, "head.class_convs.0"])
    kept = {entry.node for entry in layers if entry.name in (FRAGILE, "head.class_convs.0")}
    assert _rounded_layers(onnx.load(str(path))) == {entry.node for entry in layers} - kept


def test_batches_are_as_large_as_the_file_wants(graph, tmp_path):
    whole = request(graph, tmp_path, count=6)
    wanted = replace(whole, card=replace(graph.card, input=replace(graph.card.input, shape=(4, 3, 64, 96))))
    found = list(batches(wanted))
    assert [batch.shape for batch in found] == [(4, 3, 64, 96)] * 2
    np.testing.assert_array_equal(found[1][2], found[1][3])  # the last image again
    np.testing.assert_array_equal(np.concatenate(found)[:6], np.concatenate(images(6)))


@pytest.mark.parametrize(("family", "seed"), [("res", 1), ("csp", 0), ("mob", 0), ("mob", 3)])
def test_every_family_becomes_int8(tmp_path, monkeypatch, family, seed):
    monkeypatch.setattr(export_graph, "trace", quick_trace)
    model = lively(with_image_size(random_structure(family, seed), 64, 96))
    names = [f"thing {label}" for label in range(model.num_classes)]
    graph = graph_of(model, names=names)
    wanted = request(graph, tmp_path)
    path = wanted.folder / "model.onnx"
    quantiser = calibrate(wanted, find_layers(graph.proto, graph.card), method="minmax", seven_bits=False)
    quantiser.write(path)
    assert _rounded_layers(onnx.load(str(path))) == {entry.node for entry in quantiser.layers}
    expected, found = outputs(graph.proto.SerializeToString()), outputs(path)
    # Made-up weights in narrow layers amplify rounding; a wrong axis or scale would leave nothing in common.
    assert np.corrcoef(found["scores"].ravel(), expected["scores"].ravel())[0, 1] > 0.5


def test_free_axes_stay_free(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export_graph, "trace", quick_trace)
    graph = graph_of(model, outputs="nms", dynamic_batch=True, dynamic_size=True)
    wanted = request(graph, tmp_path)
    path = wanted.folder / "model.onnx"
    calibrate(wanted, find_layers(graph.proto, graph.card), method="minmax", seven_bits=False).write(path)
    found = OnnxRuntimeSession(path, threads=1).run({"images": example_images((2, 3, 96, 32))})
    assert found["boxes"].shape == (2, 100, 4) and found["num_dets"].dtype == np.int64


# Sensitivity and gate


def test_the_fragile_layer_is_the_most_sensitive(graph, tmp_path):
    wanted = request(graph, tmp_path)
    quantiser = calibrate(wanted, find_layers(graph.proto, graph.card), method="minmax", seven_bits=False)
    ranking = measure_sensitivity(wanted, quantiser)
    assert ranking[0].layer.name == FRAGILE and ranking[0].value > 3 * ranking[1].value
    assert [entry.value for entry in ranking] == sorted((entry.value for entry in ranking), reverse=True)
    assert {entry.layer for entry in ranking} == set(quantiser.layers)


def test_the_fragile_layer_alone_is_returned(graph, tmp_path):
    folder = tmp_path / "sensitivity"
    wanted = request(graph, tmp_path, evaluate=closeness(graph), max_drop=_middle(graph, tmp_path))
    result = make_quantiser(QuantiseSettings(sensitivity=folder))(wanted)
    assert result.details["higher_precision"] == [FRAGILE]
    assert [trial["returned"] for trial in result.details["trials"]] == [0, 1]
    assert result.details["drop"] == pytest.approx(0.5 - closeness(graph)(result.path))
    assert result.details["drop"] <= wanted.max_drop
    layers = find_layers(graph.proto, graph.card)
    assert result.details["share_macs"] == share_int8(layers, [FRAGILE]) < 1
    assert result.details["calibration"] == {"method": "minmax", "num_images": 6}
    json.dumps(result.details)
    rows = list(csv.DictReader((folder / "sensitivity-onnx.csv").open(encoding="utf-8")))
    assert (rows[0]["layer"], rows[0]["precision"]) == (FRAGILE, "float") and len(rows) == len(layers)
    assert all(row["precision"] == "int8" for row in rows[1:])
    assert (folder / "sensitivity-onnx.png").read_bytes().startswith(b"\x89PNG")


def test_all_layers_in_int8_where_the_ap_holds(graph, tmp_path):
    result = make_quantiser()(request(graph, tmp_path))
    assert result.details["higher_precision"] == [] and result.details["share_macs"] == 1
    assert result.details["sensitivities"] == {}


def test_an_ap_that_cannot_be_kept_is_an_error_that_says_what_was_reached(graph, tmp_path):
    measured: list[float] = []

    def evaluate(path) -> float:
        measured.append(0.4 + 0.001 * len(measured))
        return measured[-1]

    wanted = request(graph, tmp_path, evaluate=evaluate)
    with pytest.raises(
        ExportError, match=r"int8 loses [0-9.]+ AP points at best \(AP 40.[0-9]+ instead of 50.00\), with"
    ) as e:
        make_quantiser(QuantiseSettings(sensitivity=tmp_path / "why"))(wanted)
    assert "expected at most 0.50" in str(e.value) and f"AP {100 * max(measured):.2f} instead" in str(e.value)
    assert (tmp_path / "why" / "sensitivity-onnx.csv").exists()


def test_all_means_all(graph, tmp_path):
    wanted = request(graph, tmp_path, evaluate=lambda path: 0.45)
    with pytest.raises(ExportError, match=r"loses 5.00 AP points at best .* with 0 of 27 layers"):
        make_quantiser(QuantiseSettings(layers="all"))(wanted)


def test_table_and_picture_of_many_layers():
    entries = [Sensitivity(layer(f"layer.{index}", 7), 0.1 / (index + 1), 0.2 / (index + 1)) for index in range(90)]
    rows = sensitivity_csv(entries, ["layer.1"]).splitlines()
    assert rows[0] == "layer,sensitivity,class_error,box_error,macs,precision"
    assert rows[2] == "layer.1,0.111803,0.05,0.1,7,float" and len(rows) == 91
    assert sensitivity_png(entries, ["layer.1"], title="many").startswith(b"\x89PNG")


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "some"}, "layers is 'some'; expected one of auto, all, official-t"),
        ({"method": "guess"}, "method is 'guess'; expected one of minmax, entropy, percentile"),
        ({"accuracy_aware": True, "layers": "all"}, "layers is 'all'; expected auto"),
    ],
)
def test_settings_say_what_they_expect(changes, message):
    with pytest.raises(ExportError, match=message):
        QuantiseSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"max_drop": -0.005}, {}, "max_drop is -0.005; expected a number from 0 to 1"),
        ({"count": 0}, {}, "there is no image to calibrate with"),
        ({}, {"accuracy_aware": True}, "format is onnx; expected openvino with an accuracy-aware search"),
    ],
)
def test_requests_that_cannot_be_met(graph, tmp_path, changes, settings, message):
    with pytest.raises(ExportError, match=message):
        make_quantiser(QuantiseSettings(**settings))(request(graph, tmp_path, **changes))


def test_without_nncf_it_says_what_to_install(graph, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(
        MissingExtraError, match=r"needs the package nncf; install it with: pip install 'maenas\[int8\]'"
    ):
        make_quantiser()(request(graph, tmp_path, format="openvino"))


# OpenVINO


@pytest.mark.slow
def test_nncf_plain_and_with_accuracy_control(graph, tmp_path):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    wanted = request(graph, tmp_path, format="openvino", evaluate=closeness(graph), max_drop=_middle(graph, tmp_path))
    result = make_quantiser()(wanted)
    assert result.path.suffix == ".xml" and result.path.with_suffix(".bin").exists()
    assert result.details["tool"].startswith("nncf ")
    assert result.details["higher_precision"] == [FRAGILE]
    assert result.details["drop"] <= wanted.max_drop
    assert set(outputs(result.path)) == {"scores", "boxes"}
    searched = make_quantiser(QuantiseSettings(accuracy_aware=True))(wanted)
    assert searched.details["calibration"]["method"] == "accuracy-aware"
    assert FRAGILE in searched.details["higher_precision"] and searched.details["drop"] <= wanted.max_drop


@pytest.mark.parametrize(("returned", "fits"), [(1, True), (26, False)])
def test_what_nncf_finds_must_deserve_the_name_too(graph, tmp_path, monkeypatch, returned, fits):
    class Search:
        """Ends with so many layers in float32, whatever their work is."""

        tool = "nncf 0"

        def __init__(self, request, layers, *, seven_bits):
            self.layers = layers

        def write_with_accuracy_control(self, path):
            return tuple(layer.name for layer in self.layers[:returned])

    monkeypatch.setattr(quantise, "OpenVinoQuantiser", Search)
    quantiser = make_quantiser(QuantiseSettings(accuracy_aware=True))
    if fits:
        assert len(quantiser(request(graph, tmp_path, format="openvino")).details["higher_precision"]) == 1
        return
    with pytest.raises(ExportError, match=r"leaves [0-9]+ % of the work in int8, with 26 of 27 layers"):
        quantiser(request(graph, tmp_path, format="openvino"))


def _middle(graph: Graph, folder) -> float:
    """A drop between that of all layers in int8 and that with the fragile one in float32."""
    wanted = request(graph, folder)
    quantiser = calibrate(wanted, find_layers(graph.proto, graph.card), method="minmax", seven_bits=False)
    drops = []
    for higher in ((), (FRAGILE,)):
        quantiser.write(wanted.folder / "trial.onnx", higher)
        drops.append(0.5 - closeness(graph)(wanted.folder / "trial.onnx"))
    assert drops[0] > 1.5 * drops[1]
    return sum(drops) / 2


def _written(graph: Graph, wanted, *, seven_bits: bool = False):
    layers = find_layers(graph.proto, graph.card)
    path = wanted.folder / "model.onnx"
    calibrate(wanted, layers, method="minmax", seven_bits=seven_bits).write(path)
    return onnx.load(str(path))


def _constant(proto, name: str):
    return onnx.numpy_helper.to_array(next(entry for entry in proto.graph.initializer if entry.name == name))


def _rounded_layers(proto) -> set[str]:
    """Convolutions whose weights and input come out of DequantizeLinear."""
    makers = {output: node.op_type for node in proto.graph.node for output in node.output}
    return {
        node.name
        for node in proto.graph.node
        if node.op_type == "Conv" and {makers.get(name) for name in node.input[:2]} == {"DequantizeLinear"}
    }


def test_operators_are_counted_as_the_authors_do(graph):
    pools = sum(node.op_type == "MaxPool" for node in graph.proto.graph.node)
    assert count_operators(graph.proto) == 27 + pools == 33
