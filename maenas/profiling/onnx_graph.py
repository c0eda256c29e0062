"""An ONNX graph with every shape known and constants told apart from maps; weights are not kept.

Quantised networks are read as the plain ones that they stand for (`onnx_quantised`). Of batches the first image counts:
all operators are those of one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.errors import ProfileError, first_line
from maenas.extras import require
from maenas.profiling.onnx_quantised import plain_form

Shape = tuple[int, ...]
_SMALL = 1024
"""Constants with more elements than this are weights: no shape depends on their values."""

TRANSPARENT = ("Cast", "CastLike", "Dropout", "Identity")
"""Nodes that hand their first input on; what reads them counts as reading that input."""


@dataclass(frozen=True, slots=True, eq=False)
class GraphNode:
    """One node.

    Attributes:
        index: Place in the file, which is an order of execution.
        name: As in the file; a node without one is named after its first output.
        op_type: Such as `Conv`; with its domain in front where that is not ONNX's own.
        inputs: Names of tensors by position; empty where an optional one is left out. What a transparent node made
            is called as what it was made of.
        outputs: Names of tensors.
        attributes: By name, as plain values.
        quantised: Whether it computes in whole numbers.
    """

    index: int
    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    quantised: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes and what is known of the tensors between them.

    Attributes:
        nodes: In file order.
        shapes: Of the tensors whose shape is known to the last axis.
        constants: Tensors that do not depend on the images.
        outputs: Tensors that the network returns.
        producers: The node that makes a tensor.
        consumers: The nodes that read a tensor, once for every time they do; transparent nodes are left out.
    """

    nodes: tuple[GraphNode, ...]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    outputs: frozenset[str]
    producers: Mapping[str, GraphNode]
    consumers: Mapping[str, tuple[GraphNode, ...]]

    def only_consumer(self, tensor: str) -> GraphNode | None:
        """The one node that reads a tensor, if nothing else does."""
        nodes = self.consumers.get(tensor, ())
        return nodes[0] if len(nodes) == 1 and tensor not in self.outputs else None

    def maps(self, node: GraphNode) -> list[str]:
        """Inputs of a node that depend on the images."""
        return [tensor for tensor in node.inputs if tensor and tensor not in self.constants]


def read_graph(model: Any, *, image_size: tuple[int, int] | None = None) -> Graph:  # noqa: ANN401
    """Read a network.

    Args:
        model: Path of an ONNX file, or an ONNX ModelProto, which stays as it is.
        image_size: (height, width) for a network whose sides are free.

    Raises:
        ProfileError: The file cannot be read, or its image size is free and not given.
        MissingExtraError: The package onnx is not installed.
    """
    onnx = require("onnx", extra="profile", purpose="reading an ONNX file")
    where = "the ONNX model"
    if isinstance(model, str | Path):
        where = str(model)
        try:
            model = onnx.load(where, load_external_data=False)
        except OSError as error:
            raise ProfileError(f"{where}: cannot be read ({error.strerror or error}); expected an ONNX file") from error
        except Exception as error:
            # protobuf's DecodeError, whose module differs between its versions.
            raise ProfileError(f"{where}: cannot be read ({type(error).__name__}); expected an ONNX file") from error
    if not model.graph.node:
        raise ProfileError(f"{where}: has no nodes; expected an ONNX file of a network")
    nodes, whole = plain_form(onnx, model)
    light = _without_weights(onnx, model, nodes)
    _fix_free_axes(light.graph, where, image_size)
    try:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception as error:  # InferenceError, or what protobuf raises of a model that it cannot hold
        raise ProfileError(
            f"{where}: its shapes do not fit together ({first_line(error)}); expected a valid ONNX file"
        ) from error
    shapes = dict(_known_shapes([*graph.input, *graph.value_info, *graph.output]))
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return _linked(onnx, model, nodes, whole, shapes)


def _linked(
    onnx: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    plain: list[Any],
    whole: frozenset[str],
    shapes: Mapping[str, Shape],
) -> Graph:
    constants = {tensor.name for tensor in model.graph.initializer}
    producers: dict[str, GraphNode] = {}
    consumers: dict[str, tuple[GraphNode, ...]] = {}
    origins: dict[str, str] = {}
    nodes = []
    for index, raw in enumerate(plain):
        outputs = tuple(raw.output)
        name = raw.name or next(output for output in outputs if output)
        op_type = raw.op_type if raw.domain in ("", "ai.onnx") else f"{raw.domain}.{raw.op_type}"
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in raw.attribute}
        inputs = tuple(origins.get(tensor, tensor) for tensor in raw.input)
        node = GraphNode(index, name, op_type, inputs, outputs, attributes, name in whole)
        nodes.append(node)
        used = [tensor for tensor in node.inputs if tensor]
        if op_type in TRANSPARENT:
            origins.update(dict.fromkeys(outputs, used[0]))
            continue
        for output in outputs:
            producers[output] = node
        for tensor in used:
            consumers[tensor] = (*consumers.get(tensor, ()), node)
        # The shape of a tensor is fixed here, so it depends on no image.
        if op_type in ("Constant", "Shape", "Size") or (used and constants.issuperset(used)):
            constants.update(outputs)
    ends = frozenset(origins.get(value.name, value.name) for value in model.graph.output)
    return Graph(tuple(nodes), shapes, frozenset(constants), ends, producers, consumers)


def _without_weights(onnx: Any, model: Any, nodes: list[Any]) -> Any:  # noqa: ANN401
    """A copy in which weights are inputs: shape inference needs no more of them, and copies what it is given."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "network"
    graph.node.extend(nodes)
    # Plain operators take quantised weights and biases as if they were not.
    types = onnx.TensorProto
    whole = (types.INT8, types.UINT8, types.INT32)
    initialised = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in initialised)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        elements = 1
        for length in tensor.dims:
            elements *= length
        kind = types.FLOAT if tensor.data_type in whole else tensor.data_type
        if elements > _SMALL or kind != tensor.data_type:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, kind, list(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    return light


def _fix_free_axes(graph: Any, where: str, image_size: tuple[int, int] | None) -> None:  # noqa: ANN401
    """Set free axes of the inputs: a batch of one, sides as asked for. The outputs' follow from them."""
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis in (2, 3) and image_size is None:
                raise ProfileError(f"{where}: the size of its input {value.name} is free; expected an image size")
            dim.dim_value = image_size[axis - 2] if axis in (2, 3) and image_size else 1
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _known_shapes(values: list[Any]) -> Iterator[tuple[str, Shape]]:
    for value in values:
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") for dim in dims):
                yield value.name, tuple(dim.dim_value for dim in dims)
