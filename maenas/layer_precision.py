"""What convolutions and products are computed in, told by what a runtime says of the layers that it executes.

The activations that a layer reads decide. Weights do not: they may be kept in half precision and be widened before use.
Runtimes are known by what they answer only; none is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_PLAIN = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WHOLE = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "DynamicQuantizeMatMul")
"""Operators of ONNX Runtime in whole numbers."""

_ONNX_TYPES = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 16: "bf16"}
"""Numbers of the element types in the ONNX format."""

_OPENVINO_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}

_TENSORRT_WORDS = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)
"""Words of a tensor's description, the most telling first: `float` stands in `bfloat16` too."""


def is_heavy(op_type: str) -> bool:
    """Whether an ONNX operator is a convolution or a product, fused or quantised ones included."""
    return op_type.removeprefix("Fused") in _PLAIN or op_type in _WHOLE


def onnxruntime_precisions(graph: Any) -> dict[str, str]:  # noqa: ANN401
    """Precision of every convolution and product that ONNX Runtime executes, by node; empty text where it is not told.

    Args:
        graph: The optimised graph (an ONNX GraphProto; contents of weights are not needed). What reaches the weights
            tells the arithmetic here: by then they were widened where the processor needs it.
    """
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    makers = {output: node for node in graph.node for output in node.output}
    heavy = [node for node in graph.node if is_heavy(node.op_type)]
    return {node.name or node.output[0]: _onnx_node(node, types, makers) for node in heavy}


def _onnx_node(node: Any, types: Mapping[str, int], makers: Mapping[str, Any]) -> str:  # noqa: ANN401
    if node.op_type in _WHOLE:
        return "int8"
    name = node.input[1]
    maker = makers.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        # A quantised layer that was not fused: its numbers are turned back before it computes.
        return "fp32"
    if name not in types and maker is not None and maker.op_type == "Cast":
        return _ONNX_TYPES.get(next(entry.i for entry in maker.attribute if entry.name == "to"), "")
    return _ONNX_TYPES.get(types.get(name, 0), "")


def openvino_precisions(graph: Any, heavy: Collection[str]) -> dict[str, str]:  # noqa: ANN401
    """Precision of the convolutions and products that OpenVINO executes, by their names in the file.

    The name of an executed primitive ends with the type that it reads, such as `brgconv_avx512_f32`. The field
    `runtimePrecision` speaks of the weights too: it says `f16` for compressed ones that are widened before use.

    Args:
        graph: The executed graph (`CompiledModel.get_runtime_model()`).
        heavy: Names of the operations in the file.
    """
    found = {}
    for operation in graph.get_ordered_ops():
        facts = dict(operation.get_rt_info())
        read = openvino_fact(facts, "primitiveType").lower().rpartition("_")[2]
        told = read if read in _OPENVINO_TYPES else openvino_fact(facts, "runtimePrecision").lower()
        for name in openvino_fact(facts, "originalLayersNames").split(","):
            if name in heavy:
                found[name] = _OPENVINO_TYPES.get(told, told)
    return found


def openvino_fact(facts: Mapping[str, Any], key: str) -> str:
    """A field of an operation's runtime information as text; empty where it is missing."""
    value = facts.get(key, "")
    return str(value.astype(str) if hasattr(value, "astype") else value)


def tensorrt_precision(layer: Mapping[str, Any]) -> str:
    """Precision of a layer of TensorRT's engine inspector: of the first tensor that tells it; else empty.

    Args:
        layer: Of an engine that was built with detailed verbosity: by TensorRT 10, where a tensor has
            `Format/Datatype`, or by 11, where it has `Format` and `DataType`. Maps come before what is added to them.
    """
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        told = str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format") or "").lower()
        for word, precision in _TENSORRT_WORDS:
            if word in told:
                return precision
    return ""
