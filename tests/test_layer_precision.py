"""What layers are computed in, from hand-written answers of runtimes and from what OpenVINO really says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from maenas.errors import ProfileError
from maenas.layer_precision import onnxruntime_precisions, openvino_precisions, tensorrt_precision


def executed(**facts):
    return SimpleNamespace(get_rt_info=lambda: facts)


def graph_of(*operations):
    return SimpleNamespace(get_ordered_ops=lambda: operations)


@pytest.mark.parametrize(
    ("kernel", "weights", "precision"),
    [
        ("brgconv_avx512_f32", "f16", "fp32"),
        ("brgconv_avx512_amx_f16", "f16", "fp16"),
        ("jit_avx512_bf16", "f32", "bf16"),
        ("brgconv_avx512_vnni_I8", "u8", "int8"),
        ("gemm_acl", "f16", "fp16"),
        ("ref_any_i4", "i4", "i4"),
        ("", "", ""),
    ],
)
def test_openvino_is_believed_about_what_a_kernel_reads(kernel, weights, precision):
    layer = executed(primitiveType=kernel, runtimePrecision=weights, originalLayersNames="conv,conv/WithoutBiases")
    reorder = executed(primitiveType="ref_any_f32", runtimePrecision="f32", originalLayersNames="")
    assert openvino_precisions(graph_of(reorder, layer), {"conv", "other"}) == {"conv": precision}


@pytest.mark.export
def test_onnx_runtime_is_believed_about_what_reaches_the_weights():
    onnx = pytest.importorskip("onnx")
    make, types = onnx.helper, onnx.TensorProto
    nodes = [
        make.make_node("Cast", ["half"], ["cast"], to=types.FLOAT),
        make.make_node("DequantizeLinear", ["whole", "scale"], ["back"]),
        make.make_node("FusedConv", ["x", "plain"], ["a"], name="widened", domain="com.microsoft"),
        make.make_node("Conv", ["x", "half"], ["b"], name="half"),
        make.make_node("Conv", ["x", "cast"], ["c"], name="cast"),
        make.make_node("Conv", ["x", "back"], ["d"], name="not fused"),
        make.make_node("QLinearConv", ["x", "s", "z", "whole"], ["e"], name="whole"),
        make.make_node("MatMul", ["x", "d"], ["f"]),
        make.make_node("Relu", ["x"], ["g"], name="light"),
    ]
    weights = [
        make.make_tensor("plain", types.FLOAT, [1], [1.0]),
        make.make_tensor("half", types.FLOAT16, [1], [1.0]),
        make.make_tensor("whole", types.INT8, [1], [1]),
    ]
    graph = make.make_graph(nodes, "net", [], [], weights)
    assert onnxruntime_precisions(graph) == {
        "widened": "fp32",
        "half": "fp16",
        "cast": "fp32",
        "not fused": "fp32",
        "whole": "int8",
        "f": "",
    }


@pytest.mark.parametrize(
    ("tensors", "precision"),
    [
        ([{"Format/Datatype": "Row major linear FP16 format"}, {"Format/Datatype": "FP32"}], "fp16"),
        ([{"Format": "kLINEAR", "DataType": "Int8"}, {"DataType": "Half"}], "int8"),
        ([{"DataType": "BFloat16"}], "bf16"),
        ([{"DataType": "Float"}], "fp32"),
        ([{"Format": "kLINEAR"}, {"DataType": "Half"}], "fp16"),
        ([], ""),
    ],
)
def test_tensorrt_is_believed_about_the_first_tensor_that_tells(tensors, precision):
    assert tensorrt_precision({"Name": "conv", "Inputs": tensors[:1], "Outputs": tensors[1:]}) == precision


@pytest.mark.export
def test_compressed_weights_are_not_timed_as_half_precision(tmp_path):
    """OpenVINO's field says f16 for them, on processors that compute in float32 only."""
    openvino = pytest.importorskip("openvino")
    np = pytest.importorskip("numpy")
    from maenas.profiling.backends import open_backend
    from maenas.profiling.backends.openvino import OpenVinoBackend

    ops = openvino.opset13
    images = ops.parameter([1, 3, 64, 64], np.float32, name="images")
    weights = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
    pads = ([1, 1], [1, 1], [1, 1], [1, 1])
    convolved = ops.convolution(images, ops.constant(weights), *pads)
    again = np.random.default_rng(1).normal(size=(16, 16, 3, 3)).astype(np.float32)
    network = openvino.Model([ops.convolution(ops.relu(convolved), ops.constant(again), *pads)], [images])
    openvino.save_model(network, str(tmp_path / "half.xml"), compress_to_fp16=True)
    plain = open_backend("openvino", threads=1)
    if "FP16" in plain.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor computes in half precision")
    backend = OpenVinoBackend(plain.core, plain.runtime, plain.version, plain.device_name, 1, "fp16", 1)
    entry = backend.entry(tmp_path / "half.xml", key="half", layers=False)
    with pytest.raises(ProfileError, match="2 of 2 convolutions and products run in another precision"), entry.open():
        pass
