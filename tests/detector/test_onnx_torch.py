"""ONNX files run in torch give what ONNX Runtime gives, and what has no form there is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from network_cases import published, with_image_size  # noqa: E402

from detector.errors import InputError  # noqa: E402
from detector.onnx_torch import read_onnx  # noqa: E402
from detector.reparam import deploy  # noqa: E402
from detector.standardise import random_detector  # noqa: E402
from detector.timing_export import export_for_timing  # noqa: E402

pytestmark = pytest.mark.export

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def one_node(op_type, shape, *constants, opset=18, outputs=1, domain="", **attributes):
    """A network of a single node; constants are further inputs, None one that is left out."""
    values = [None if value is None else np.asarray(value) for value in constants]
    names = ["x", *("" if value is None else f"c{index}" for index, value in enumerate(values))]
    made = [f"y{index}" for index in range(outputs)]
    node = onnx.helper.make_node(op_type, names, made, name="the_node", domain=domain, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info("x", FLOAT, list(shape))],
        [onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in made],
        [onnx.numpy_helper.from_array(v, f"c{i}") for i, v in enumerate(values) if v is not None],
    )
    imports = [onnx.helper.make_opsetid("", opset), *([onnx.helper.make_opsetid(domain, 1)] if domain else [])]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def compare(content, shape, *, tolerance=1e-5):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    images = np.random.default_rng(0).normal(0.3, 1.0, shape).astype(np.float32)
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: images})
    network = read_onnx(content, shape)
    with torch.inference_mode():
        found = network.module(torch.from_numpy(images.copy()))
    assert len(found) == len(expected)
    for own, wanted in zip(found, expected, strict=True):
        assert tuple(own.shape) == wanted.shape
        assert np.abs(own.numpy() - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())
    return network


def weights(*shape):
    return np.random.default_rng(1).normal(0, 0.5, shape).astype(np.float32)


def floats(*values):
    return np.array(values, dtype=np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


MAP = (2, 4, 9, 8)
CASES = {
    "conv": ("Conv", MAP, [weights(6, 4, 3, 3), weights(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "conv, uneven padding": ("Conv", MAP, [weights(6, 4, 2, 2)], {"pads": [0, 0, 1, 1]}),
    "conv, same upper": ("Conv", MAP, [weights(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv, same lower": ("Conv", MAP, [weights(6, 4, 4, 4)], {"auto_pad": "SAME_LOWER"}),
    "conv, groups and dilation": ("Conv", MAP, [weights(8, 2, 3, 3)], {"group": 2, "dilations": [2, 2]}),
    "conv, transposed": ("ConvTranspose", MAP, [weights(4, 3, 2, 2), weights(3)], {"strides": [2, 2]}),
    "max pool, uneven": ("MaxPool", MAP, [], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "max pool, ceil": ("MaxPool", MAP, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "average pool": ("AveragePool", MAP, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average pool with padding": (
        "AveragePool",
        MAP,
        [],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    "global average": ("GlobalAveragePool", MAP, [], {}),
    "global maximum": ("GlobalMaxPool", MAP, [], {}),
    "mean": ("ReduceMean", MAP, [ints(2, 3)], {"keepdims": 0}),
    "mean over all": ("ReduceMean", MAP, [], {}),
    "no mean": ("ReduceMean", MAP, [], {"noop_with_empty_axes": 1}),
    "sum": ("ReduceSum", MAP, [ints(1)], {}),
    "nearest": (
        "Resize",
        MAP,
        [None, floats(1, 1, 2, 2)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "nearest, half pixel": ("Resize", MAP, [None, floats(1, 1, 3, 2)], {"mode": "nearest"}),
    "linear to a size": ("Resize", MAP, [None, None, ints(2, 4, 13, 5)], {"mode": "linear"}),
    "linear, corners": (
        "Resize",
        MAP,
        [None, floats(1, 1, 2, 2)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "gemm": ("Gemm", (3, 4), [weights(5, 4), weights(5)], {"transB": 1}),
    "gemm, scaled": ("Gemm", (3, 4), [weights(4, 5), weights(3, 5)], {"alpha": 0.5, "beta": 2.0}),
    "matmul": ("MatMul", (2, 3, 4), [weights(4, 5)], {}),
    "slice": ("Slice", MAP, [ints(1, 0), ints(9, -1), ints(2, 3), ints(2, 3)], {}),
    "reshape": ("Reshape", MAP, [ints(0, -1, 8)], {}),
    "flatten": ("Flatten", MAP, [], {"axis": 2}),
    "unsqueeze": ("Unsqueeze", (2, 3), [ints(0, -1)], {}),
    "squeeze": ("Squeeze", (2, 1, 3, 1), [ints(1, -1)], {}),
    "transpose": ("Transpose", MAP, [], {"perm": [0, 2, 3, 1]}),
    "pad": ("Pad", MAP, [ints(0, 0, 1, 2, 0, 0, 3, 0), floats(1.5)], {}),
    "pad, reflected": ("Pad", MAP, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    "gather": ("Gather", MAP, [ints(3, 0)], {"axis": 1}),
    "gather one": ("Gather", MAP, [np.int64(-1)], {"axis": 2}),
    "batch norm": ("BatchNormalization", MAP, [weights(4), weights(4), weights(4), floats(1, 2, 3, 4)], {}),
    "layer norm": ("LayerNormalization", (2, 3, 4), [weights(4), weights(4)], {}),
    "clip": ("Clip", MAP, [floats(0).reshape(()), floats(1.5).reshape(())], {}),
    "hard sigmoid": ("HardSigmoid", MAP, [], {}),
    "hard sigmoid by six": ("HardSigmoid", MAP, [], {"alpha": 1 / 6}),
    "hard swish": ("HardSwish", MAP, [], {}),
    "leaky relu": ("LeakyRelu", MAP, [], {"alpha": 0.1}),
    "prelu": ("PRelu", MAP, [weights(4, 1, 1)], {}),
    "elu": ("Elu", MAP, [], {}),
    "softplus": ("Softplus", MAP, [], {}),
    "mish": ("Mish", MAP, [], {}),
    "tanh": ("Tanh", MAP, [], {}),
    "erf": ("Erf", MAP, [], {}),
    "softmax": ("Softmax", MAP, [], {"axis": 1}),
    "expand": ("Expand", (1, 4, 1, 1), [ints(2, 1, 3, 3)], {}),
    "depth to space": ("DepthToSpace", MAP, [], {"blocksize": 2, "mode": "CRD"}),
    "sum of three": ("Sum", MAP, [weights(*MAP), weights(4, 1, 1)], {}),
    "power": ("Pow", MAP, [floats(2).reshape(())], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(case):
    op_type, shape, constants, attributes = CASES[case]
    compare(one_node(op_type, shape, *constants, **attributes), shape)


def test_parts_of_a_map():
    compare(one_node("Split", MAP, ints(1, 3), outputs=2, axis=1), MAP)
    compare(one_node("Split", MAP, outputs=2, axis=3, num_outputs=2), MAP)


@pytest.mark.parametrize("seed", range(6))
def test_probes_give_what_onnx_runtime_gives(seed):
    from maenas.profiling.probes import build_probe

    probe = build_probe(seed, image_side=64)
    network = compare(probe.model().SerializeToString(), (1, 3, 64, 64), tolerance=1e-4)
    # No convolution is lost or run twice.
    assert sum(kind == "Conv" for kind in network.kinds.values()) >= sum(op.kind == "conv" for op in probe.ops)


@pytest.mark.parametrize(("name", "gated"), [("ns", True), ("t", False)])
def test_an_export_gives_the_networks_maps(name, gated, tmp_path):
    structure = with_image_size(published(name), 64, 96)
    if gated:
        stages = tuple(replace(stage, se=True) for stage in structure.backbone.stages)
        structure = replace(structure, backbone=replace(structure.backbone, stages=stages))
    model = deploy(random_detector(structure))
    export_for_timing(model, tmp_path / "net.onnx")
    network = read_onnx(tmp_path / "net.onnx", (1, 3, 64, 96))
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64) * 255
    with torch.no_grad():
        found = network.module.double()(images)
        maps = model.double().head.forward_maps(model.features(images))
    # The head returns float32 whatever it computes in.
    for own, wanted in zip(found[1::2], (boxes for _, boxes in maps), strict=True):
        assert torch.allclose(own, wanted.double(), rtol=1e-6, atol=1e-6)
    for own, wanted in zip(found[::2], (classes.double().sigmoid() for classes, _ in maps), strict=True):
        assert torch.allclose(own, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_classifiers_give_what_onnx_runtime_gives(name, tmp_path):
    models = pytest.importorskip("torchvision").models
    pytest.importorskip("onnxscript")
    shape = (1, 3, 64, 64)
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None).eval()
    torch.onnx.export(model, (torch.zeros(shape),), tmp_path / "net.onnx", dynamo=True, external_data=False)
    compare((tmp_path / "net.onnx").read_bytes(), shape, tolerance=1e-4)


def chain(nodes, *, outputs=("y",), constants=(), shape=MAP):
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, inputs, made, name=made[0], **attributes) for op, inputs, made, attributes in nodes],
        "chain",
        [onnx.helper.make_tensor_value_info("x", FLOAT, list(shape))],
        [onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString()


def test_a_gate_and_its_product_are_one_call_unless_something_else_reads_the_gate():
    gate, product = ("Sigmoid", ["x"], ["gate"], {}), ("Mul", ["x", "gate"], ["y"], {})
    network = compare(chain([gate, product]), MAP)
    assert list(network.sources.values()) == [("gate", "y")] and list(network.kinds.values()) == ["Mul"]
    network = compare(chain([gate, product], outputs=("y", "gate")), MAP)
    assert list(network.sources.values()) == [("gate",), ("y",)]


def test_activations_overwrite_only_what_nothing_else_reads():
    weight = ("w", weights(4, 4, 1, 1))
    conv, relu = ("Conv", ["x", "w"], ["conv"], {}), ("Relu", ["conv"], ["relu"], {})
    alone = compare(chain([conv, relu], outputs=("relu",), constants=[weight]), MAP)
    shared = compare(chain([conv, relu, ("Add", ["conv", "relu"], ["y"], {})], constants=[weight]), MAP)
    for network, in_place in ((alone, True), (shared, False)):
        call = next(node for node in network.module.graph.nodes if network.kinds.get(node.name) == "Relu")
        assert call.kwargs.get("inplace", False) is in_place
    # The images stay as they are.
    first = read_onnx(chain([("Relu", ["x"], ["y"], {})]), MAP)
    images = torch.full(MAP, -1.0)
    first.module(images)
    assert (images == -1).all()


def test_what_depends_on_shapes_alone_is_computed_once():
    nodes = [
        ("Shape", ["x"], ["shape"], {}),
        ("Gather", ["shape", "zero"], ["batch"], {"axis": 0}),
        ("Concat", ["batch", "rest"], ["target"], {"axis": 0}),
        ("Reshape", ["x", "target"], ["y"], {}),
    ]
    network = compare(chain(nodes, constants=[("zero", ints(0)), ("rest", ints(-1))]), MAP)
    assert list(network.sources) == ["reshape"]


def test_unknown_operators_are_named_with_node_and_file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(one_node("NonZero", MAP))
    with pytest.raises(InputError, match=r"net\.onnx: node 'the_node' is a NonZero, which torch has no form of here"):
        read_onnx(path, MAP)
    path.write_bytes(one_node("FusedConv", MAP, weights(4, 4, 1, 1), domain="com.microsoft"))
    with pytest.raises(InputError, match=r"net\.onnx: node 'the_node' is a FusedConv"):
        read_onnx(path, MAP)


def test_unknown_forms_and_shapes_are_named(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(one_node("Resize", MAP, None, floats(1, 1, 1.5, 1.5), mode="nearest"))
    with pytest.raises(InputError, match=r"net\.onnx: node 'the_node', a Resize, takes the nearest cell by half_pixel"):
        read_onnx(path, MAP)
    path.write_bytes(one_node("Conv", MAP, weights(6, 5, 3, 3)))
    with pytest.raises(InputError, match=r"net\.onnx: node 'the_node', a Conv, cannot be run in torch \("):
        read_onnx(path, MAP)
    path.write_bytes(b"no network")
    with pytest.raises(InputError, match=r"net\.onnx: cannot be read .*expected an ONNX file"):
        read_onnx(path, MAP)
