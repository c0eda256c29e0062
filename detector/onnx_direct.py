"""The ONNX graph of a deployed network written from its own modules, without torch's exporter.

Timing takes dozens of networks, and torch's exporter takes seconds for each. The modules of a detector are few: one
symbolic run lists them in order, and each has one form in ONNX, the same that torch's exporter gives it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from maenas.extras import require

from .errors import ExportError
from .model import Detector

_IR_VERSION = 10
_LARGEST = np.iinfo(np.int64).max
_MAP_AXES = 4


class _Maps(nn.Module):
    """The class maps of all levels, then the box maps; shapes are not checked, because a symbol has none."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.head.forward_maps(self.model.neck(self.model.backbone(images)))
        return (*(classes for classes, _ in maps), *(boxes for _, boxes in maps))


def direct_graph(model: Detector, *, input_name: str, output_names: Sequence[str], opset: int) -> Any:  # noqa: ANN401
    """An ONNX GraphProto and its constants, as a ModelProto without declared inputs and outputs.

    Args:
        model: Deployed, in evaluation mode, with box scales of 1.
        input_name: Of the images.
        output_names: Of the class maps of all levels, then of the box maps.
        opset: Version of the operator set, 18 or newer.

    Raises:
        ExportError: A module or function of the network has no form here.
        MissingExtraError: The package onnx is not installed.
    """
    onnx = require("onnx", extra="onnx", purpose="exporting to ONNX")
    root = _Maps(model)
    writer = _Writer(onnx, root)
    writer.write(fx.Tracer().trace(root), input_name, output_names)
    graph = onnx.helper.make_graph(writer.nodes, "detector", [], [], writer.constants)
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION, producer_name="maenas")


class _Writer:
    """Turns symbolic calls into nodes; `names` holds the tensor that a call made."""

    def __init__(self, onnx: Any, root: _Maps) -> None:  # noqa: ANN401
        self.onnx = onnx
        self.root = root
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: dict[fx.Node, str] = {}
        self.shared: dict[tuple[str, bytes], str] = {}
        self.written: dict[str, str] = {}

    def write(self, graph: fx.Graph, input_name: str, output_names: Sequence[str]) -> None:
        """Every call that a map depends on, in the order of execution."""
        end = next(call for call in graph.nodes if call.op == "output")
        outputs = list(end.args[0])
        needed = _needed(outputs)
        for call in graph.nodes:
            if call.op == "placeholder":
                self.names[call] = input_name
            elif call.op not in ("output", "get_attr") and call in needed:
                self.names[call] = self.call(call)
        renamed = {self.names[call]: name for call, name in zip(outputs, output_names, strict=True)}
        for node in self.nodes:
            for tensors in (node.input, node.output):
                for index, tensor in enumerate(tensors):
                    tensors[index] = renamed.get(tensor, tensor)

    def call(self, call: fx.Node) -> str:
        """Write one call; returns the tensor it makes."""
        if call.op == "call_module":
            module = self.root.get_submodule(str(call.target))
            if type(module) not in _MODULES:
                raise ExportError(f"{self.path(call)} is a {type(module).__name__}, which has no direct form in ONNX")
            return _MODULES[type(module)](self, call, module)
        if call.target not in _FUNCTIONS:
            raise ExportError(f"{call.name} calls {call.target}, which has no direct form in ONNX")
        return _FUNCTIONS[call.target](self, call)

    def node(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node called after the tensor that it makes; one that does the same serves again."""
        given = {key: value for key, value in attributes.items() if value is not None}
        key = repr((op_type, list(inputs), given))
        if key not in self.written:
            self.nodes.append(self.onnx.helper.make_node(op_type, list(inputs), [name], name=name, **given))
            self.written[key] = name
        return self.written[key]

    def first(self, call: fx.Node) -> str:
        """The tensor that a call reads first."""
        return self.names[call.args[0]]  # type: ignore[index]

    def path(self, call: fx.Node) -> str:
        """Where a module is in the network."""
        return str(call.target).removeprefix("model.")

    def weight(self, values: Tensor, name: str) -> str:
        """A constant of its own."""
        self.constants.append(self.onnx.numpy_helper.from_array(values.detach().numpy(), name))
        return name

    def parameter(self, values: Sequence[float], dtype: type) -> str:
        """A small constant, which equal ones share."""
        array: NDArray[Any] = np.array(values, dtype=dtype)
        key = str(array.dtype), array.tobytes()
        if key not in self.shared:
            self.shared[key] = f"constant_{len(self.shared)}"
            self.constants.append(self.onnx.numpy_helper.from_array(array, self.shared[key]))
        return self.shared[key]


def _needed(outputs: Sequence[fx.Node]) -> set[fx.Node]:
    """What outputs depend on: stages that nothing reads are part of the network, but never run."""
    found: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        call = waiting.pop()
        if call not in found:
            found.add(call)
            waiting += call.all_input_nodes
    return found


def _conv(writer: _Writer, call: fx.Node, conv: nn.Conv2d) -> str:
    name = writer.path(call)
    inputs = [writer.first(call), writer.weight(conv.weight, f"{name}.weight")]
    if conv.bias is not None:
        inputs.append(writer.weight(conv.bias, f"{name}.bias"))
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise ExportError(
            f"{name} has the padding {conv.padding} {conv.padding_mode}, which has no direct form in ONNX"
        )
    return writer.node(
        "Conv",
        inputs,
        name,
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
        dilations=list(conv.dilation),
        group=conv.groups,
    )


def _linear(writer: _Writer, call: fx.Node, linear: nn.Linear) -> str:
    name = writer.path(call)
    inputs = [writer.first(call), writer.weight(linear.weight, f"{name}.weight")]
    if linear.bias is not None:
        inputs.append(writer.weight(linear.bias, f"{name}.bias"))
    return writer.node("Gemm", inputs, name, transB=1)


def _max_pool(writer: _Writer, call: fx.Node, pool: nn.MaxPool2d) -> str:
    kernel, stride, padding = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))
    return writer.node(
        "MaxPool",
        [writer.first(call)],
        writer.path(call),
        kernel_shape=kernel,
        strides=stride,
        pads=[*padding, *padding],
    )


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _silu(writer: _Writer, call: fx.Node, _module: nn.Module | None = None) -> str:
    x = writer.first(call)
    gate = writer.node("Sigmoid", [x], f"{call.name}.gate")
    return writer.node("Mul", [x, gate], call.name)


def _same(writer: _Writer, call: fx.Node, _module: nn.Module | None = None) -> str:
    return writer.first(call)


_MODULES: dict[type[nn.Module], Callable[..., str]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.ReLU: lambda writer, call, module: writer.node("Relu", [writer.first(call)], call.name),
    nn.LeakyReLU: lambda writer, call, module: writer.node(
        "LeakyRelu", [writer.first(call)], call.name, alpha=module.negative_slope
    ),
    nn.SiLU: _silu,
    nn.Identity: _same,
}
"""What is written for a module."""


def _binary(op_type: str) -> Callable[[_Writer, fx.Node], str]:
    def write(writer: _Writer, call: fx.Node) -> str:
        kept = [argument for argument in call.args if not _is_one(writer, argument)]
        names = [writer.names[argument] for argument in kept]  # type: ignore[index]
        return names[0] if len(names) == 1 else writer.node(op_type, names, call.name)

    return write


def _is_one(writer: _Writer, argument: Any) -> bool:  # noqa: ANN401
    """Whether a factor is a parameter that was folded elsewhere."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return False
    if float(operator.attrgetter(str(argument.target))(writer.root)) != 1.0:
        raise ExportError(f"{argument.target} is not 1; expected box scales folded into their convolutions")
    return True


def _concat(writer: _Writer, call: fx.Node) -> str:
    axis = call.kwargs["dim"] if "dim" in call.kwargs else call.args[1]
    return writer.node("Concat", [writer.names[part] for part in call.args[0]], call.name, axis=axis)  # type: ignore[union-attr, index]


def _mean(writer: _Writer, call: fx.Node) -> str:
    axes = writer.parameter(call.kwargs["dim"], np.int64)  # type: ignore[arg-type]
    return writer.node("ReduceMean", [writer.first(call), axes], call.name, keepdims=0)


def _resize(writer: _Writer, call: fx.Node) -> str:
    given = {key: value for key, value in call.kwargs.items() if value}
    if set(given) != {"scale_factor", "mode"} or given["mode"] != "nearest":
        raise ExportError(f"{call.name} resizes with {given}; expected a scale factor and the mode nearest")
    factor = float(call.kwargs["scale_factor"])  # type: ignore[arg-type]
    inputs = [writer.first(call), "", writer.parameter([1.0, 1.0, factor, factor], np.float32)]
    form = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return writer.node("Resize", inputs, call.name, **form)


def _item(writer: _Writer, call: fx.Node) -> str:
    """Every n-th row or column, or new axes of length 1 at the end."""
    index = call.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts[-1] is None and all(part == slice(None) for part in parts if part is not None):
        axes = [position for position, part in enumerate(parts) if part is None]
        return writer.node("Unsqueeze", [writer.first(call), writer.parameter(axes, np.int64)], call.name)
    if parts[0] is Ellipsis:
        parts = [slice(None)] * (_MAP_AXES - len(parts) + 1) + parts[1:]
    name = writer.first(call)
    for axis, part in enumerate(parts):
        if not isinstance(part, slice):
            raise ExportError(f"{call.name} takes {index} of a map, which has no direct form in ONNX")
        if part != slice(None):
            limits = (part.start or 0, _LARGEST if part.stop is None else part.stop, axis, part.step or 1)
            name = writer.node("Slice", [name, *(writer.parameter([limit], np.int64) for limit in limits)], call.name)
    return name


_FUNCTIONS: Mapping[Any, Callable[[_Writer, fx.Node], str]] = {
    operator.add: _binary("Add"),
    operator.mul: _binary("Mul"),
    operator.getitem: _item,
    torch.cat: _concat,
    F.relu: lambda writer, call: writer.node("Relu", [writer.first(call)], call.name),
    F.hardsigmoid: lambda writer, call: writer.node(
        "HardSigmoid", [writer.first(call)], call.name, alpha=1 / 6, beta=0.5
    ),
    F.interpolate: _resize,
    "mean": _mean,
    "float": _same,
}
"""What is written for a function, or for a method by its name."""
