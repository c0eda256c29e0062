"""Operators read from ONNX graphs: those of our detectors equal the lowering, others get the nearest there are."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from profiling_cases import missing_ops  # noqa: E402

from maenas.errors import ProfileError  # noqa: E402
from maenas.latency.table_rows import TableRow  # noqa: E402
from maenas.lowering.detector import lower  # noqa: E402
from maenas.lowering.op import conv, glue  # noqa: E402
from maenas.profiling.onnx_ops import read_network_ops, read_onnx_ops  # noqa: E402
from maenas.structure import FAMILIES  # noqa: E402

helper = onnx.helper
FLOAT = onnx.TensorProto.FLOAT


def row(op):
    """All that a table tells operators apart by."""
    return TableRow.of(op, ms=0, sigma_ms=0, status="measured")[:12]


def network(nodes, *, constants=(), outputs=("y",), dims=(1, 8, 16, 16)):
    """A model with the input x; nodes are (type, inputs, outputs, attributes), constants are name: shape or array."""
    tensors = []
    for name, value in dict(constants).items():
        array = np.ones(value, dtype=np.float32) if isinstance(value, tuple) else np.asarray(value)
        tensors.append(onnx.numpy_helper.from_array(array, name))
    made = [
        helper.make_node(op_type, list(inputs), list(results), name=results[0].upper(), **attributes)
        for op_type, inputs, results, attributes in nodes
    ]
    graph = helper.make_graph(
        made,
        "tiny",
        [helper.make_tensor_value_info("x", FLOAT, list(dims))],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


CONV = ("Conv", ("x", "w"), ("c",), {"pads": [1, 1, 1, 1]})
WEIGHT = {"w": (16, 8, 3, 3)}


def only(model):
    (placed,) = read_onnx_ops(model)
    return placed


@pytest.mark.parametrize(
    ("nodes", "activation"),
    [
        ([("Identity", ("c",), ("y",), {})], "none"),
        ([("Relu", ("c",), ("y",), {})], "relu"),
        ([("LeakyRelu", ("c",), ("y",), {})], "leaky_relu"),
        ([("Sigmoid", ("c",), ("y",), {})], "sigmoid"),
        ([("HardSigmoid", ("c",), ("y",), {})], "hardsigmoid"),
        ([("Sigmoid", ("c",), ("s",), {}), ("Mul", ("c", "s"), ("y",), {})], "silu"),
        ([("Sigmoid", ("c",), ("s",), {}), ("Mul", ("s", "c"), ("y",), {})], "silu"),
        ([("Cast", ("c",), ("d",), {"to": FLOAT}), ("Sigmoid", ("d",), ("y",), {})], "sigmoid"),
    ],
)
def test_an_activation_belongs_to_its_convolution(nodes, activation):
    placed = only(network([CONV, *nodes], constants=WEIGHT))
    assert placed.exact and placed.op.activation == activation
    assert row(placed.op) == ("conv", 8, 16, 3, 1, 1, 16, 16, 16, 16, activation, 0)
    assert placed.nodes[0] == "C" and (activation == "none" or placed.nodes[-1] == "Y")


@pytest.mark.parametrize(
    ("nodes", "constants", "activation", "note"),
    [
        ([("HardSwish", ("c",), ("y",), {})], {}, "silu", "HardSwish as silu"),
        ([("Clip", ("c", "low", "high"), ("y",), {})], {"low": np.float32(0), "high": np.float32(6)}, "relu", "Clip"),
        ([("HardSigmoid", ("c",), ("s",), {}), ("Mul", ("c", "s"), ("y",), {})], {}, "silu", "x * HardSigmoid"),
        (
            [
                ("Div", ("c", "root"), ("d",), {}),
                ("Erf", ("d",), ("e",), {}),
                ("Add", ("e", "one"), ("f",), {}),
                ("Mul", ("c", "f"), ("g",), {}),
                ("Mul", ("g", "half"), ("y",), {}),
            ],
            {"root": np.float32(1.41), "one": np.float32(1), "half": np.float32(0.5)},
            "silu",
            "Div-Erf-Add",
        ),
    ],
)
def test_other_activations_are_the_nearest_and_say_so(nodes, constants, activation, note):
    placed = only(network([CONV, *nodes], constants=WEIGHT | constants))
    assert placed.op.activation == activation and not placed.exact
    assert len(placed.nodes) == 1 + len(nodes)
    assert note in placed.note


@pytest.mark.parametrize("order", [("x", "r"), ("r", "x")])
def test_the_addition_belongs_to_the_convolution_before_or_after_its_activation(order):
    weight = {"w": (8, 8, 3, 3)}
    after = [CONV, ("Relu", ("c",), ("r",), {}), ("Add", order, ("y",), {})]
    operands = ["c" if name == "r" else name for name in order]
    before = [CONV, ("Add", operands, ("a",), {}), ("Relu", ("a",), ("y",), {})]
    for nodes in (after, before):
        placed = only(network(nodes, constants=weight))
        assert placed.exact and placed.op.residual and placed.op.activation == "relu"
        assert set(placed.nodes) == {"C", "Y", nodes[1][2][0].upper()}


def test_of_two_added_convolutions_the_longer_branch_takes_the_addition():
    nodes = [
        ("Conv", ("x", "p"), ("projection",), {}),
        CONV,
        ("Relu", ("c",), ("r",), {}),
        ("Conv", ("r", "v"), ("second",), {}),
        ("Add", ("projection", "second"), ("y",), {}),
    ]
    placed = read_onnx_ops(network(nodes, constants=WEIGHT | {"p": (4, 8, 1, 1), "v": (4, 16, 1, 1)}))
    assert [(each.nodes[0], each.op.residual) for each in placed] == [
        ("PROJECTION", False),
        ("C", False),
        ("SECOND", True),
    ]


def test_a_map_that_is_read_twice_keeps_what_follows_on_its_own():
    nodes = [CONV, ("Relu", ("c",), ("r",), {}), ("Add", ("c", "r"), ("y",), {})]
    placed = read_onnx_ops(network(nodes, constants=WEIGHT))
    assert [(each.op.kind, each.op.activation) for each in placed] == [
        ("conv", "none"),
        ("mul", "none"),
        ("add", "none"),
    ]
    # Returned from the network, the map before the activation has to be written as well.
    returned = read_onnx_ops(network([CONV, ("Relu", ("c",), ("y",), {})], constants=WEIGHT, outputs=("c", "y")))
    assert [each.op.kind for each in returned] == ["conv", "mul"]


def test_constants_after_a_convolution_change_its_weights_only():
    norm = ("BatchNormalization", ("c", "n", "n", "n", "n"), ("b",), {})
    shift = ("Add", ("b", "shift"), ("y",), {})
    placed = only(network([CONV, norm, shift], constants=WEIGHT | {"n": (16,), "shift": (1, 16, 1, 1)}))
    assert placed.exact and placed.nodes == ("C", "B", "Y") and not placed.op.residual
    scaled = read_onnx_ops(network([CONV, ("Mul", ("c", "s"), ("y",), {})], constants=WEIGHT | {"s": (1,)}))
    assert [row(each.op)[0] for each in scaled] == ["conv", "mul"] and scaled[1].exact


def gate_nodes(hidden, *, last="HardSigmoid"):
    nodes = [
        ("ReduceMean", ("c", "axes"), ("m",), {"keepdims": 0}),
        ("MatMul", ("m", "reduce"), ("h",), {}),
        ("Relu", ("h",), ("hr",), {}),
        ("MatMul", ("hr", "expand"), ("e",), {}),
        (last, ("e",), ("g",), {}),
        ("Reshape", ("g", "shape"), ("g4",), {}),
        ("Mul", ("c", "g4"), ("z",), {}),
        ("Relu", ("z",), ("y",), {}),
    ]
    constants = {
        "axes": np.array([2, 3]),
        "shape": np.array([1, 16, 1, 1]),
        "reduce": (16, hidden),
        "expand": (hidden, 16),
    }
    return [CONV, *nodes], WEIGHT | constants


def test_squeeze_and_excitation_is_one_operator():
    nodes, constants = gate_nodes(4)
    first, gate = read_onnx_ops(network(nodes, constants=constants))
    assert row(first.op)[10:] == ("none", 0) and first.nodes == ("C",)
    assert row(gate.op) == row(glue("se", 16, (16, 16), name="", stage="")) and gate.exact
    assert gate.nodes == ("M", "H", "HR", "E", "G", "Z", "Y")
    nodes, constants = gate_nodes(8, last="Sigmoid")
    gate = read_onnx_ops(network(nodes, constants=constants))[1]
    assert not gate.exact and gate.note == "gate through 8 channels, not 4"


def test_glue_operators():
    nodes = [
        ("Slice", ("x", "start", "end", "axis", "step"), ("s",), {}),
        ("MaxPool", ("s",), ("p",), {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}),
        ("Concat", ("s", "p"), ("k",), {"axis": 1}),
        ("Resize", ("k", "", "scales"), ("u",), {"mode": "nearest"}),
        ("Add", ("u", "u"), ("y",), {}),
    ]
    constants = {
        "start": np.array([1]),
        "end": np.array([16]),
        "axis": np.array([2]),
        "step": np.array([2]),
        "scales": np.array([1, 1, 2, 2], dtype=np.float32),
    }
    placed = read_onnx_ops(network(nodes, constants=constants))
    expected = [
        glue("slice", 8, (16, 16), (8, 16), name="", stage=""),
        glue("pool", 8, (8, 16), kernel_size=5, name="", stage=""),
        glue("concat", 16, (8, 16), name="", stage=""),
        glue("resize", 16, (8, 16), (16, 32), name="", stage=""),
        glue("add", 16, (16, 32), name="", stage=""),
    ]
    assert [row(each.op) for each in placed] == [row(op) for op in expected]
    assert all(each.exact for each in placed)


@pytest.mark.parametrize(
    ("weight", "attributes", "expected", "note"),
    [
        ((8, 1, 3, 3), {"group": 8, "pads": [1] * 4, "strides": [2, 2]}, ("conv", 8, 8, 3, 2, 8, 16, 16, 8, 8), ""),
        ((16, 1, 3, 3), {"group": 8, "pads": [1] * 4}, ("conv", 16, 16, 3, 1, 16, 16, 16, 16, 16), "2 filters"),
        ((16, 4, 3, 3), {"group": 2, "pads": [1] * 4}, ("conv", 4, 16, 3, 1, 1, 16, 16, 16, 16), "2 groups"),
        ((16, 8, 1, 9), {"pads": [0, 4, 0, 4]}, ("conv", 8, 16, 3, 1, 1, 16, 16, 16, 16), "kernel 1x9"),
        ((16, 8, 3, 3), {"dilations": [2, 2], "pads": [2] * 4}, ("conv", 8, 16, 3, 1, 1, 16, 16, 16, 16), "dilation"),
        ((16, 8, 3, 3), {}, ("conv", 8, 16, 3, 1, 1, 16, 16, 14, 14), "padding"),
        ((16, 8, 4, 4), {"strides": [4, 4]}, ("conv", 8, 16, 4, 4, 1, 16, 16, 4, 4), ""),
    ],
)
def test_convolutions_that_are_not_plain(weight, attributes, expected, note):
    placed = only(network([("Conv", ("x", "w"), ("y",), attributes)], constants={"w": weight}))
    assert row(placed.op)[:10] == expected
    assert placed.exact == (not note) and note in placed.note


def test_a_classifier_ends_with_a_pool_and_a_1x1_convolution():
    nodes = [
        ("GlobalAveragePool", ("x",), ("p",), {}),
        ("Flatten", ("p",), ("f",), {}),
        ("Gemm", ("f", "w", "b"), ("g",), {"transB": 1}),
        ("Relu", ("g",), ("y",), {}),
    ]
    found = read_network_ops(network(nodes, constants={"w": (10, 8), "b": (10,)}))
    assert [row(each.op) for each in found.placed] == [
        ("pool", 8, 8, 16, 16, 1, 16, 16, 1, 1, "none", 0),
        ("conv", 8, 10, 1, 1, 1, 1, 1, 1, 1, "relu", 0),
    ]
    assert not any(each.exact for each in found.placed) and found.free == ("F",) and not found.unsupported


def test_every_node_is_accounted_for():
    nodes = [
        ("BatchNormalization", ("x", "n", "n", "n", "n"), ("b",), {}),
        ("Relu", ("b",), ("r",), {}),
        ("Split", ("r",), ("s", "t"), {"axis": 1, "num_outputs": 2}),
        ("Transpose", ("s",), ("u",), {"perm": [0, 1, 3, 2]}),
        ("MatMul", ("u", "t"), ("y",), {}),
    ]
    found = read_network_ops(network(nodes, constants={"n": (8,)}))
    assert [(each.op.kind, each.nodes, each.exact) for each in found.placed] == [
        ("mul", ("B", "R"), False),
        ("slice", ("S",), False),
    ]
    assert found.free == ("U",) and found.unsupported == ("MatMul Y",)


def test_nameless_nodes_are_called_after_their_output():
    model = network([CONV, ("Relu", ("c",), ("y",), {})], constants=WEIGHT)
    model.graph.node[0].name = ""
    before = model.SerializeToString()
    assert only(model).nodes == ("c", "Y")
    assert model.SerializeToString() == before


def test_a_free_size_has_to_be_given(tmp_path):
    model = network([CONV, ("Relu", ("c",), ("y",), {})], constants=WEIGHT, dims=("n", 8, "h", "w"))
    path = tmp_path / "free.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ProfileError, match=r"free\.onnx: the size of its input x is free; expected an image size"):
        read_onnx_ops(path)
    (placed,) = read_onnx_ops(path, image_size=(32, 64))
    assert placed.op.in_size == (32, 64)


def test_files_that_are_no_networks_are_refused(tmp_path):
    path = tmp_path / "bad.onnx"
    with pytest.raises(ProfileError, match=r"bad\.onnx: cannot be read"):
        read_onnx_ops(path)
    path.write_bytes(b"\xff\xfe not a network")
    with pytest.raises(ProfileError, match=r"bad\.onnx: (cannot be read|has no nodes)"):
        read_onnx_ops(path)


def test_missing_operators_are_counted():
    placed = read_onnx_ops(network([CONV, ("Relu", ("c",), ("y",), {})], constants=WEIGHT))
    there = conv(8, 16, (16, 16), kernel_size=3, activation="relu", name="a", stage="")
    scale = glue("mul", 16, (16, 16), name="scale", stage="")
    assert missing_ops([there, scale], placed) == [scale]
    assert missing_ops([there, replace(there, name="b")], placed)[0].name == "b"


# Detectors as they are exported.


def exported(structure, *, dynamo):
    """The deployed network up to class maps with their sigmoid and scaled box maps.

    The exporter that traces graphs is the one in use; the older one takes a sixth of the time and leaves more nodes.
    """
    import torch
    from network_cases import randomise_norms
    from torch import nn

    from detector.model import Detector
    from detector.reparam import deploy

    class Maps(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            maps = self.model.head.forward_maps(self.model.features(images))
            return (*(classes.sigmoid() for classes, _ in maps), *(boxes for _, boxes in maps))

    model = Detector(structure).eval()
    randomise_norms(model, 0)
    for scale in model.head.scales:
        scale.data.fill_(1.3)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.zeros(1, 3, *structure.image_size)
        maps = Maps(deploy(model)).eval()
        if dynamo:
            return torch.onnx.export(maps, (images,), dynamo=True, verbose=False).model_proto
        buffer = io.BytesIO()
        torch.onnx.export(maps, (images,), buffer, dynamo=False, opset_version=18)
        return onnx.load_from_string(buffer.getvalue())


def check_detector(structure, *, dynamo=False):
    # Stages after the last one that the neck reads are not in the graph.
    backbone = structure.backbone
    stages = backbone.stages[: backbone.out_stages[-1]]
    structure = replace(structure, backbone=replace(backbone, stages=stages))
    found = read_network_ops(exported(structure, dynamo=dynamo))
    assert not found.unsupported and all(each.exact for each in found.placed)
    ops = [op for op in lower(structure) for _ in range(int(op.count))]
    # This exporter enlarges a map once however often it is used.
    absent, enlarged = [], set()
    for op in ops:
        source = op.name.rpartition(".up_")[2]
        if dynamo and op.kind == "resize" and source in enlarged:
            absent.append(op)
        enlarged.add(source)
    expected = Counter(map(row, ops))
    assert Counter(row(each.op) for each in found.placed) == expected - Counter(map(row, absent)), structure
    assert Counter(map(row, missing_ops(ops, found.placed))) == Counter(map(row, absent))
    convs = [row(op) for op in ops if op.kind == "conv"]
    assert [row(each.op) for each in found.placed if each.op.kind == "conv"] == convs, structure


@pytest.fixture
def cases():
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    folder = str(Path(__file__).resolve().parents[1] / "detector")
    if folder not in sys.path:
        sys.path.append(folder)
    import network_cases

    return network_cases


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("name", ["t", "s", "m", "l", "ns", "nm", "nl", "n"])
def test_published_detectors_are_read_as_lowered(cases, name):
    check_detector(cases.with_image_size(cases.published(name), 64, 96), dynamo=name in ("t", "ns"))


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("family", FAMILIES)
def test_random_detectors_are_read_as_lowered(cases, family):
    for structure in cases.random_structures(family, 12):
        check_detector(structure)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("family", FAMILIES)
def test_random_detectors_of_the_other_exporter_are_read_as_lowered(cases, family):
    check_detector(cases.random_structure(family, 0), dynamo=True)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_networks_of_others_are_accounted_for(cases, name):
    import torch

    models = pytest.importorskip("torchvision").models
    model = getattr(models, name)(weights=None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), dynamo=True, verbose=False).model_proto
    found = read_network_ops(proto)
    names = [*(name for each in found.placed for name in each.nodes), *found.free]
    assert sorted(names) == sorted(node.name for node in proto.graph.node) and not found.unsupported
    kinds = Counter(each.op.kind for each in found.placed)
    convs = sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in model.modules())
    gates = 2 * kinds["se"]
    assert kinds["conv"] + gates == convs
