"""The graph written from modules holds, node by node and weight by weight, what torch's exporter makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from network_cases import (  # noqa: E402
    published,
    random_structures,
    randomise_norms,
    with_image_size,
)

from detector.errors import ExportError  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.onnx_direct import direct_graph  # noqa: E402
from detector.onnx_trace import map_names, trace  # noqa: E402
from detector.reparam import deploy  # noqa: E402
from detector.standardise import random_detector  # noqa: E402
from detector.timing_export import export_for_timing  # noqa: E402
from maenas.structure import FAMILIES, with_fine_level  # noqa: E402

pytestmark = pytest.mark.export


def canonical(graph, outputs):
    """Nodes in order: operator, attributes that are not defaults, inputs by number of the node that makes them."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {"images": "images", "": ""}
    nodes = []
    for node in graph.node:
        defaults = {
            name: onnx.helper.get_attribute_value(attribute.default_value)
            for name, attribute in onnx.defs.get_schema(node.op_type, 18).attributes.items()
            if attribute.default_value.name
        }
        # Defaults by meaning: the schema has no values for these.
        defaults |= {"dilations": [1, 1], "group": 1}
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        kept = {name: value for name, value in attributes.items() if defaults.get(name) != value}
        sources = [
            (values[name].shape, values[name].tobytes()) if name in values else made[name] for name in node.input
        ]
        made[node.output[0]] = len(nodes)
        nodes.append((node.op_type, sorted(kept.items()), sources))
    return nodes, [made[name] for name in outputs]


def check(structure):
    model = Detector(structure).eval()
    randomise_norms(model, 0)
    for conv in model.head.box_convs:
        # Torch's exporter leaves out biases of zero, which trained networks do not have.
        torch.nn.init.normal_(conv.bias)
    model = deploy(model).requires_grad_(False)
    slow = trace(model, batch=1, image_size=structure.image_size, precision="fp32", opset=18).graph
    names = [name for names in map_names(model.strides) for name in names]
    fast = direct_graph(model, input_name="images", output_names=names, opset=18).graph
    wanted, found = canonical(slow, names), canonical(fast, names)
    for expected, own in zip(wanted[0], found[0], strict=True):
        assert own == expected
    assert found[1] == wanted[1]


def gated(structure):
    stages = tuple(replace(stage, se=True) for stage in structure.backbone.stages)
    return replace(structure, backbone=replace(structure.backbone, stages=stages))


@pytest.mark.parametrize("name", ["t", "ns"])
def test_published_models_equal_torchs_export(name):
    check(with_image_size(published(name), 64, 96))


def test_gates_equal_torchs_export():
    check(gated(with_image_size(published("ns"), 64, 64)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s", "m", "l", "nm", "nl", "n"])
def test_other_published_models_equal_torchs_export(name):
    check(with_image_size(published(name), 64, 96))


@pytest.mark.slow
def test_a_level_at_stride_4_equals_torchs_export():
    check(with_fine_level(with_image_size(published("t"), 64, 96)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_random_structures_equal_torchs_export(family):
    for structure in random_structures(family, 2):
        check(structure)


def test_the_file_gives_torchs_maps(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    structure = with_image_size(published("ns"), 64, 96)
    model = deploy(random_detector(structure))
    for scale in model.head.scales:
        scale.data.fill_(1.3)
    export_for_timing(model, tmp_path / "net.onnx", batch_size=2)
    images = torch.rand(2, 3, 64, 96) * 255
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = [
            tensor.numpy()
            for classes, boxes in model.head.forward_maps(model.features(images))
            for tensor in (classes.sigmoid(), boxes)
        ]
    assert len(found) == len(expected) == 6
    for own, wanted in zip(found, expected, strict=True):
        assert abs(own - wanted).max() <= 1e-4 * max(1.0, abs(wanted).max())


def test_other_modules_and_unfused_networks_are_refused(tmp_path):
    structure = with_image_size(published("ns"), 64, 64)
    model = Detector(structure).eval()
    with pytest.raises(ExportError, match="the network is not deployed"):
        export_for_timing(model, tmp_path / "net.onnx")
    model = deploy(model)
    model.backbone.stem.act = torch.nn.Softsign()
    with pytest.raises(ExportError, match=r"backbone\.stem\.act is a Softsign, which has no direct form in ONNX"):
        export_for_timing(model, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
