"""An ONNX file as a torch module, so that torch can be timed on the very files that other runtimes are timed on.

The input has a fixed shape, so every shape is a number: what depends on shapes and weights alone is computed here.
What is left becomes a graph of torch functions, in which each call says which ONNX nodes it stands for. As a network
written in torch would have it, x * sigmoid(x) is one function and activations work in place where nothing else reads.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from maenas.extras import require

from .errors import InputError, first_line
from .onnx_torch_call import Call, Dynamic, Value
from .onnx_torch_ops import FUNCTIONS

_IN_PLACE = (F.relu, F.silu, F.leaky_relu, F.hardsigmoid, F.hardswish)
_FRESH = (F.conv2d, F.conv_transpose2d, F.batch_norm, F.linear, torch.add, torch.sub, torch.mul, torch.div)
"""Functions whose result shares memory with nothing, so that what follows may overwrite it."""


@dataclass(frozen=True, slots=True, eq=False)
class OnnxNetwork:
    """A file that torch can run.

    Attributes:
        module: From images (B, 3, H, W) to a tuple of the file's outputs; weights are buffers in float32.
        sources: Names of the ONNX nodes behind each call of `module.graph`, by the call's name; a node without a name
            is called after its first output.
        kinds: Operator of the node that each call was made for.
    """

    module: fx.GraphModule
    sources: dict[str, tuple[str, ...]]
    kinds: dict[str, str]


def read_onnx(source: str | Path | bytes, shape: Sequence[int], *, where: str = "") -> OnnxNetwork:
    """Read a network with one floating-point input.

    Half-precision constants and casts between floating-point types are read as float32: the module computes in one
    precision, that of its weights.

    Args:
        source: Path or content of the file.
        shape: Of the input, all axes.
        where: What errors call the file; by default its path.

    Raises:
        InputError: The file cannot be read, or has an operator, or a form of one, that is not known here.
        MissingExtraError: The package onnx is not installed.
    """
    onnx = require("onnx", extra="onnx", purpose="running an ONNX file in torch")
    where = where or (str(source) if not isinstance(source, bytes) else "the ONNX file")
    try:
        model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(str(source))
    except Exception as error:
        # protobuf's DecodeError, whose module differs between its versions, or the file is missing.
        raise InputError(f"{where}: cannot be read ({first_line(error)}); expected an ONNX file") from error
    reader = _Reader(onnx, model, where)
    reader.read(tuple(shape))
    _use_silu(reader)
    _work_in_place(reader.graph)
    reader.graph.lint()
    module = fx.GraphModule(reader.root, reader.graph)
    left = {call.name for call in reader.graph.nodes}
    sources = {name: nodes for name, nodes in reader.sources.items() if name in left}
    return OnnxNetwork(module.eval(), sources, {name: reader.kinds[name] for name in sources})


class _Reader:
    """Turns nodes into calls, or into values where no images are needed for them."""

    def __init__(self, onnx: Any, model: Any, where: str) -> None:  # noqa: ANN401
        self.onnx = onnx
        self.model = model
        self.where = where
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.stored: dict[int, fx.Node] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.kinds: dict[str, str] = {}
        self.current = ("", "")

    def read(self, shape: tuple[int, ...]) -> None:
        """All nodes, then the outputs."""
        proto = self.model.graph
        values: dict[str, Value] = {each.name: self.tensor(each) for each in proto.initializer}
        inputs = [value.name for value in proto.input if value.name not in values]
        if len(inputs) != 1:
            raise InputError(f"{self.where}: has {len(inputs)} inputs; expected one, the images")
        images = self.graph.placeholder("images")
        values[inputs[0]] = Dynamic(images, torch.empty(shape, device="meta"))
        for node in proto.node:
            name = node.name or next(output for output in node.output if output)
            try:
                made = self.node(node, name, values)
            except InputError as error:
                raise InputError(f"{self.where}: {error}") from error
            except Exception as error:
                # Whatever torch says of shapes and types that do not fit.
                raise InputError(
                    f"{self.where}: node {name!r}, a {node.op_type}, cannot be run in torch ({first_line(error)})"
                ) from error
            values.update((output, value) for output, value in zip(node.output, made, strict=False) if output)
        ends = [values[output.name] for output in proto.output]
        self.graph.output(tuple(self.argument(end) for end in ends))

    def node(self, node: Any, name: str, values: dict[str, Value]) -> tuple[Value, ...]:  # noqa: ANN401
        """What a node makes."""
        known = FUNCTIONS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if known is None:
            raise InputError(
                f"node {name!r} is a {node.op_type}, which torch has no form of here; expected another operator"
            )
        attributes = {each.name: self.onnx.helper.get_attribute_value(each) for each in node.attribute}
        for key, value in attributes.items():
            if isinstance(value, self.onnx.TensorProto):
                attributes[key] = self.tensor(value)
        self.current = (name, node.op_type)
        call = Call(
            name=name,
            op_type=node.op_type,
            opset=self.opset(),
            attributes=attributes,
            inputs=tuple(values[each] if each else None for each in node.input),
            num_outputs=len(node.output),
            emit=self.emit,
        )
        made = known(call)
        return made if isinstance(made, tuple) else (made,)

    def opset(self) -> int:
        """Of ONNX's own operators."""
        return next((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), 1)

    def emit(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call a torch function: now if no argument depends on the images, else in the graph."""
        given = _leaves((args, kwargs))
        if not any(isinstance(each, Dynamic) for each in given):
            return function(*args, **kwargs)
        example = function(*_mapped(args, _example), **_mapped(kwargs, _example))
        node = self.graph.call_function(function, _mapped(args, self.argument), _mapped(kwargs, self.argument))
        name, self.kinds[node.name] = self.current
        self.sources[node.name] = (name,)
        if isinstance(example, list | tuple):
            parts = enumerate(example)
            return tuple(Dynamic(self.graph.call_function(operator.getitem, (node, i)), part) for i, part in parts)
        return Dynamic(node, example)

    def argument(self, value: Any) -> Any:  # noqa: ANN401
        """As the graph refers to it: constants become buffers of the module."""
        if isinstance(value, Dynamic):
            return value.node
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.stored:
            name = f"constant_{len(self.stored)}"
            self.root.register_buffer(name, value)
            with self.graph.inserting_before(next(iter(self.graph.nodes)).next):
                self.stored[id(value)] = self.graph.get_attr(name)
        return self.stored[id(value)]

    def tensor(self, proto: Any) -> Tensor:  # noqa: ANN401
        """A constant; floating-point ones as float32."""
        array = self.onnx.numpy_helper.to_array(proto, base_dir=str(Path(self.where).parent))
        value = torch.from_numpy(array.copy())
        return value.float() if value.is_floating_point() else value


def _example(value: Any) -> Any:  # noqa: ANN401
    """A stand-in without content, from which a function shows the shape of its result."""
    if isinstance(value, Dynamic):
        return value.example
    return value.to("meta") if isinstance(value, Tensor) else value


def _mapped(value: Any, change: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, change) for each in value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    return change(value)


def _leaves(value: Any) -> list[Any]:  # noqa: ANN401
    found: list[Any] = []
    _mapped(value, found.append)
    return found


def _use_silu(reader: _Reader) -> None:
    """Put x * sigmoid(x) in one call, and likewise x * hardsigmoid(x)."""
    graph, gates = reader.graph, {torch.sigmoid: F.silu, F.hardsigmoid: F.hardswish}
    for product in list(graph.nodes):
        if product.target is not torch.mul:
            continue
        for x, gate in (product.args, product.args[::-1]):
            fits = isinstance(gate, fx.Node) and gate.target in gates and gate.args == (x,) and len(gate.users) == 1
            if fits:
                with graph.inserting_before(product):
                    one = graph.call_function(gates[gate.target], (x,))
                product.replace_all_uses_with(one)
                graph.erase_node(product)
                graph.erase_node(gate)
                reader.sources[one.name] = (*reader.sources[gate.name], *reader.sources[product.name])
                reader.kinds[one.name] = reader.kinds[product.name]
                break


def _work_in_place(graph: fx.Graph) -> None:
    """Let activations overwrite what a convolution or a sum has just made, if they alone read it."""
    for call in graph.nodes:
        if call.target in _IN_PLACE:
            made = call.args[0]
            if made.op == "call_function" and made.target in _FRESH and len(made.users) == 1:
                call.kwargs = {**call.kwargs, "inplace": True}
