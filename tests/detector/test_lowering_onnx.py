"""The exported graph holds the convolutions that the cost model lists, in its order, and no leftovers of training."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from network_cases import (  # noqa: E402
    lowered_convs,
    published,
    random_structures,
    randomise_norms,
    with_image_size,
)

from detector.model import Detector  # noqa: E402
from detector.onnx_trace import trace  # noqa: E402
from detector.reparam import deploy  # noqa: E402
from maenas.lowering.detector import lower  # noqa: E402
from maenas.structure import FAMILIES  # noqa: E402

pytestmark = pytest.mark.export

NUM_RANDOM = 8  # per family; tracing takes a second or more
# What a deployed network is made of; Gemm, ReduceMean and HardSigmoid are the squeeze-and-excite gate's.
PLAIN = {"Conv", "Relu", "LeakyRelu", "Sigmoid", "Mul", "Add", "Concat", "Slice", "MaxPool", "Resize"}
GATE = {"ReduceMean", "MatMul", "Gemm", "HardSigmoid", "Reshape", "Unsqueeze"}


def without_unread_stages(structure):
    """The structure up to the last stage that the neck reads: the exporter drops what feeds nothing."""
    backbone = structure.backbone
    stages = backbone.stages[: max(backbone.out_stages)]
    return dataclasses.replace(structure, backbone=dataclasses.replace(backbone, stages=stages))


def traced(structure, seed=0):
    model = Detector(structure).eval()
    randomise_norms(model, seed)
    with torch.no_grad():
        for scale in model.head.scales:
            scale.fill_(1.3)
    return trace(deploy(model), batch=1, image_size=structure.image_size, precision="fp32", opset=18)


def graph_convs(proto):
    """The convolutions of a static graph as `ConvKey`s, in the graph's order."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    keys = []
    for node in graph.node:
        if node.op_type == "Conv":
            fields = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            out_channels, per_group, *kernel = weights[node.input[1]]
            size = tuple(d.dim_value for d in values[node.input[0]].type.tensor_type.shape.dim)[2:]
            groups = fields.get("group", 1)
            stride = fields.get("strides", [1, 1])
            assert kernel[0] == kernel[1] and stride[0] == stride[1]
            keys.append((per_group * groups, out_channels, kernel[0], stride[0], groups, size))
    return keys


def check(structure):
    proto = traced(structure)
    assert graph_convs(proto) == lowered_convs(lower(structure)), structure
    kinds = {node.op_type for node in proto.graph.node}
    gate = any(stage.se for stage in structure.backbone.stages)
    assert kinds <= PLAIN | (GATE if gate else set()), structure
    made = {name for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        # Weights and biases are constants; through another node, runtimes would not fuse them.
        assert node.op_type != "Conv" or not made & set(node.input[1:]), structure
        assert not node.metadata_props and not node.doc_string


@pytest.mark.parametrize("name", ["t", "ns"])
def test_published_models_are_exported_as_lowered(name):
    check(with_image_size(published(name), 64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s", "m", "l", "nm", "nl", "n"])
def test_other_published_models_are_exported_as_lowered(name):
    check(with_image_size(published(name), 64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_random_structures_are_exported_as_lowered(family):
    for structure in random_structures(family, NUM_RANDOM):
        check(without_unread_stages(structure))
