"""Quantised ONNX files in the form of the plain network that they stand for.

Quantisers write a network in one of three ways: QuantizeLinear and DequantizeLinear around plain operators, operators
of their own (QLinearConv, ...), or ConvInteger with the scales multiplied afterwards. All three become plain operators
here, so that everything else reads a quantised network as it reads any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_INTEGER = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
"""Operators whose sums are multiplied by scales afterwards."""

_WITH_SCALES: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "QLinearConv": lambda names: [names[0], names[3], *names[8:9]],
    "QLinearMatMul": lambda names: [names[0], names[3]],
    "QGemm": lambda names: [names[0], names[3], *names[6:7]],
    "QLinearAdd": lambda names: [names[0], names[3]],
    "QLinearMul": lambda names: [names[0], names[3]],
    "QLinearConcat": lambda names: list(names[2::3]),
    "QLinearSigmoid": lambda names: [names[0]],
    "QLinearLeakyRelu": lambda names: [names[0]],
    "QLinearSoftmax": lambda names: [names[0]],
    "QLinearAveragePool": lambda names: [names[0]],
    "QLinearGlobalAveragePool": lambda names: [names[0]],
}
"""The inputs of an operator without their scales and zero points."""

_ZERO_POINT = {
    "QuantizeLinear": 2,
    "DequantizeLinear": 2,
    "QLinearConv": 7,
    "QLinearMatMul": 7,
    "QGemm": 8,
    "QLinearAdd": 7,
}
"""Place of the result's zero point among the inputs."""

_SUMS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}
_OWN_ATTRIBUTES = {"channels_last", "opset"}


def plain_form(onnx: Any, model: Any) -> tuple[list[Any], frozenset[str]]:  # noqa: ANN401
    """The nodes of a network without quantisation.

    Quantisers leave out a ReLU before a result whose zero point is its type's lowest value, because nothing below zero
    is kept; it is put back, as a node of the same name.

    Args:
        onnx: The package.
        model: An ONNX ModelProto, which stays as it is.

    Returns:
        Nodes, each called as the one it stands for, and the names of those that compute in whole numbers. The nodes of
        a plain network are its own.
    """
    if not any(is_quantised(node.op_type) for node in model.graph.node):
        return list(model.graph.node), frozenset()
    writer = _Writer(onnx, model)
    for node in model.graph.node:
        writer.add(node)
    return writer.nodes, frozenset(writer.whole_nodes)


def is_quantised(op_type: str) -> bool:
    """Whether an operator is there because a network is quantised."""
    return (
        op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QGemm")
        or op_type in _INTEGER
        or op_type.startswith("QLinear")
    )


class _Writer:
    def __init__(self, onnx: Any, model: Any) -> None:  # noqa: ANN401
        self.onnx = onnx
        self.zeros = {tensor.name: tensor for tensor in model.graph.initializer if not tensor.dims}
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.producers = {tensor: node for node in model.graph.node for tensor in node.output}
        self.nodes: list[Any] = []
        self.whole_nodes: set[str] = set()
        # Tensors of whole numbers, and those that were such until a DequantizeLinear.
        self.whole: set[str] = set()
        self.sums: set[str] = set()

    def add(self, node: Any) -> None:  # noqa: ANN401
        name = node.name or next(output for output in node.output if output)
        kind, inputs = node.op_type, list(node.input)
        if kind == "QuantizeLinear":
            made = self.producers.get(inputs[0])
            clips = made is not None and self.may_be_negative(made) and self.keeps_no_negatives(node)
            self.write("Relu" if clips else "Identity", inputs[:1], node.output, name)
            self.whole.update(node.output)
        elif kind == "DequantizeLinear":
            self.write("Identity", inputs[:1], node.output, name)
            # A weight is one from the start.
            self.whole.update(node.output)
        elif kind == "DynamicQuantizeLinear":
            self.write("Identity", inputs[:1], node.output[:1], name)
            one = self.onnx.helper.make_tensor("one", self.onnx.TensorProto.FLOAT, [], [1.0])
            for scale in node.output[1:]:
                self.nodes.append(self.onnx.helper.make_node("Constant", [], [scale], name=name, value=one))
                self.constants.add(scale)
            self.whole.add(node.output[0])
        elif kind in _INTEGER:
            self.write(_INTEGER[kind], inputs[:2], node.output, name, node)
            self.whole_nodes.add(name)
            self.sums.update(node.output)
        elif kind in _WITH_SCALES:
            self.with_scales(node, name)
        elif kind in ("Cast", "Mul") and self.sums.intersection(inputs):
            # The sums become numbers again: part of the convolution.
            self.write("Identity", [next(tensor for tensor in inputs if tensor in self.sums)], node.output, name)
            self.sums.update(node.output)
        else:
            self.plain(node, name)

    def with_scales(self, node: Any, name: str) -> None:  # noqa: ANN401
        kind, inputs = self.plain_kind(node.op_type), _WITH_SCALES[node.op_type](node.input)
        self.whole_nodes.add(name)
        self.whole.update(node.output)
        if self.may_be_negative(node) and self.keeps_no_negatives(node):
            between = f"{node.output[0]}/sum"
            self.write(kind, inputs, [between], name, node)
            self.write("Relu", [between], node.output, name)
        else:
            self.write(kind, inputs, node.output, name, node)

    def plain(self, node: Any, name: str) -> None:  # noqa: ANN401
        self.nodes.append(node)
        given = [tensor for tensor in node.input if tensor]
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            given = given[:2]
        elif node.op_type != "Concat":
            given = [tensor for tensor in given if tensor not in self.constants]
        if given and self.whole.issuperset(given):
            self.whole_nodes.add(name)
            if all(self.is_stored_whole(tensor) for tensor in given):
                self.whole.update(node.output)

    def is_stored_whole(self, tensor: str) -> bool:
        """Whether a tensor holds whole numbers: what comes out of a DequantizeLinear does not."""
        made = self.producers.get(tensor)
        return tensor in self.whole and (made is None or made.op_type != "DequantizeLinear")

    def may_be_negative(self, node: Any) -> bool:  # noqa: ANN401
        """Whether a node is a sum, of which not all parts are known to be positive."""
        kind = self.plain_kind(node.op_type)
        if kind != "Add":
            return kind in _SUMS
        if node.op_type == "QLinearAdd":
            return not (self.is_lowest(node, 2) and self.is_lowest(node, 5))
        parts = [self.producers.get(tensor) for tensor in node.input]
        return not all(part is not None and self.keeps_no_negatives(part) for part in parts)

    def keeps_no_negatives(self, node: Any) -> bool:  # noqa: ANN401
        """Whether the result's zero point is the lowest value of its type."""
        place = _ZERO_POINT.get(node.op_type)
        return place is not None and self.is_lowest(node, place)

    def is_lowest(self, node: Any, place: int) -> bool:  # noqa: ANN401
        """Whether an input is a zero point that is the lowest value of its type."""
        if len(node.input) <= place:
            return False
        zero = self.zeros.get(node.input[place])
        types = self.onnx.TensorProto
        lowest = {types.UINT8: 0, types.INT8: -128, types.UINT16: 0, types.INT16: -32768}
        if zero is None or zero.data_type not in lowest:
            return False
        return int(self.onnx.numpy_helper.to_array(zero)) == lowest[zero.data_type]

    def plain_kind(self, op_type: str) -> str:
        return "Gemm" if op_type == "QGemm" else op_type.removeprefix("QLinear")

    def write(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        attributes_of: Any = None,  # noqa: ANN401
    ) -> None:
        made = self.onnx.helper.make_node(op_type, inputs, outputs, name=name)
        if attributes_of is not None:
            made.attribute.extend(each for each in attributes_of.attribute if each.name not in _OWN_ATTRIBUTES)
        self.nodes.append(made)
