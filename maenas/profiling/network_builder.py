"""ONNX networks written node by node, with the list of the operators that they are meant to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require
from maenas.lowering.op import Op, OpKind, conv, glue

Size = tuple[int, int]

_OPSET, _IR_VERSION = 18, 9
_PIXEL = 128.0
_POOL = 4096
"""Distinct weights; a kernel repeats them, which no runtime notices and which is quick to make."""


@dataclass(frozen=True, slots=True)
class Map:
    """A tensor while a network is built: (batch, channels, height, width), of values around `magnitude`."""

    name: str
    channels: int
    size: Size
    magnitude: float = 1.0


class Builder:
    """Writes nodes and keeps a list of the operators that they are meant to be.

    Args:
        image: Channels and (height, width) of the network's input, called `images`.
        seed: Of the weights.
        batch: Images at once.

    Attributes:
        ops: What was added, in order.
        image: The input.
    """

    def __init__(self, image: tuple[int, Size], *, seed: int, batch: int = 1) -> None:
        self._batch = batch
        self._onnx = require("onnx", extra="profile", purpose="building networks to time")
        self._values: NDArray[np.float32] = np.random.default_rng(seed).standard_normal(_POOL).astype(np.float32)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._results: list[Map] = []
        self.ops: list[Op] = []
        self.image = Map("images", *image, magnitude=_PIXEL)

    def model(self) -> Any:  # noqa: ANN401
        """The network as an ONNX ModelProto."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        first, *rest = (
            helper.make_tensor_value_info(each.name, kind, [self._batch, each.channels, *each.size])
            for each in (self.image, *self._results)
        )
        graph = helper.make_graph(self._nodes, "probe", [first], rest, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="maenas")
        model.ir_version = _IR_VERSION
        return model

    def output(self, x: Map) -> None:
        """Return a map from the network."""
        self._results.append(x)

    def constant(self, shape: Sequence[int], scale: float = 1.0) -> str:
        """A tensor of random values with this standard deviation."""
        values = np.resize(self._values, math.prod(shape)).reshape(tuple(shape)) * np.float32(scale)
        return self._store(values)

    def node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:  # noqa: ANN401
        """Add a node; returns its output."""
        name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def activate(self, x: str, activation: str) -> str:
        """Add an activation, one of `lowering.op.ACTIVATIONS`."""
        if activation == "none":
            return x
        if activation == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if activation == "leaky_relu":
            return self.node("LeakyRelu", [x], alpha=0.1)
        return self.node({"relu": "Relu", "sigmoid": "Sigmoid", "hardsigmoid": "HardSigmoid"}[activation], [x])

    def conv(
        self,
        x: Map,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: str = "none",
        residual: Map | None = None,
    ) -> Map:
        """A convolution with a bias, an addition and an activation."""
        op = conv(
            x.channels,
            out_channels,
            x.size,
            kernel_size=kernel_size,
            stride=stride,
            depthwise=depthwise,
            activation=activation,
            residual=residual is not None,
            name="",
            stage="",
        )
        per_group = 1 if depthwise else x.channels
        # So that values neither vanish nor grow from layer to layer.
        gain = math.sqrt(1.5 / (per_group * kernel_size**2)) / x.magnitude
        weight = self.constant((out_channels, per_group, kernel_size, kernel_size), gain)
        bias = self.constant((out_channels,), 0.1)
        low, high = (kernel_size - 1) // 2, kernel_size // 2
        out = self.node(
            "Conv",
            [x.name, weight, bias],
            kernel_shape=[kernel_size, kernel_size],
            strides=[stride, stride],
            pads=[low, low, high, high],
            group=x.channels if depthwise else 1,
        )
        if residual is not None:
            out = self.node("Add", [out, residual.name])
        return self._add(op, self.activate(out, activation))

    def glue(
        self,
        kind: OpKind,
        inputs: Sequence[Map],
        *,
        kernel_size: int = 1,
        stride: int = 1,
        out_size: Size | None = None,
        odd: bool = False,
    ) -> Map:
        """An operator that keeps its channels: pool, resize, concat, add, mul, se or slice.

        Args:
            kind: Which.
            inputs: Two or more for concat, two for add, else one.
            kernel_size: Of a pool.
            stride: Of a pool.
            out_size: Of a resize or slice.
            odd: A slice takes the odd cells.
        """
        x = inputs[0]
        size = out_size or (-(-x.size[0] // stride), -(-x.size[1] // stride))
        channels = sum(each.channels for each in inputs) if kind == "concat" else x.channels
        names = [each.name for each in inputs]
        if kind == "pool":
            low, high = (kernel_size - 1) // 2, kernel_size // 2
            pads = [low, low, high, high]
            window = [kernel_size, kernel_size]
            out = self.node("MaxPool", names, kernel_shape=window, strides=[stride, stride], pads=pads)
        elif kind == "resize":
            factors = np.array([1, 1, size[0] / x.size[0], size[1] / x.size[1]], dtype=np.float32)
            form = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            out = self.node("Resize", [x.name, "", self._store(factors)], **form)
        elif kind == "concat":
            out = self.node("Concat", names, axis=1)
        elif kind == "slice":
            out = self._slice(x, size, odd)
        elif kind == "se":
            out = self._gate(x)
        elif kind == "mul":
            out = self.node("Mul", [x.name, self._store(np.array([1.25], dtype=np.float32))])
        else:
            out = self.node("Add", names)
        op = glue(kind, channels, x.size, size, name="", stage="", kernel_size=kernel_size, stride=stride)
        return self._add(op, out, x.magnitude)

    def _add(self, op: Op, out: str, magnitude: float = 1.0) -> Map:
        self.ops.append(op)
        return Map(out, int(op.out_channels), op.out_size, magnitude)

    def _store(self, values: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _slice(self, x: Map, size: Size, odd: bool) -> str:
        axes = [axis for axis in (0, 1) if size[axis] != x.size[axis]] or [0]
        steps = [x.size[axis] // size[axis] for axis in axes]
        starts = [int(odd and step > 1) for step in steps]
        ends = [x.size[axis] for axis in axes]
        parameters = (starts, ends, [axis + 2 for axis in axes], steps)
        return self.node("Slice", [x.name, *(self._store(np.array(each, dtype=np.int64)) for each in parameters)])

    def _gate(self, x: Map) -> str:
        squeezed = max(1, x.channels // 4)
        mean = self.node("GlobalAveragePool", [x.name])
        reduce = self.constant((squeezed, x.channels, 1, 1), math.sqrt(2 / x.channels))
        expand = self.constant((x.channels, squeezed, 1, 1), math.sqrt(2 / squeezed))
        hidden = self.node("Relu", [self.node("Conv", [mean, reduce])])
        return self.node("Mul", [x.name, self.node("HardSigmoid", [self.node("Conv", [hidden, expand])])])
