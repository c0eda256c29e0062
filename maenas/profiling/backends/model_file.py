"""A file of a network as far as a backend has to know it: its nodes by name and its one input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maenas.errors import ProfileError, first_line
from maenas.extras import openvino_core, require
from maenas.profiling.onnx_quantised import is_quantised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOAT_TYPES = {1: "float32", 10: "float16"}
"""Numbers of the element types in the ONNX format that an input may have."""

_IR = ".xml"
METADATA_KEY = "maenas"
"""Under this name exports of ours have their card inside."""

_IR_TYPES = {"f32": "float32", "f16": "float16"}
_IR_OPERATORS = {
    "Convolution": "Conv",
    "GroupConvolution": "Conv",
    "ConvolutionBackpropData": "ConvTranspose",
    "GroupConvolutionBackpropData": "ConvTranspose",
    "FakeQuantize": "QuantizeLinear",
}
"""OpenVINO's operators by the names of the ONNX ones that mean the same here."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the graph.

    Attributes:
        name: As in the file; a node without one is named after its first output.
        op_type: Such as `Conv`.
        inputs: Names of tensors; the empty ones are left out.
        outputs: Names of tensors.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The graph of a file, without its weights.

    Attributes:
        path: The file.
        nodes: In file order, which is an order of execution.
        input_name: The one input.
        input_dtype: `float32` or `float16`.
        input_dims: A length per axis, or the name of a free axis (empty where it has none).
        metadata: Text values that the exporter left.
        content: The file again with names for all nodes, where some had none.
    """

    path: Path
    nodes: tuple[Node, ...]
    input_name: str
    input_dtype: str
    input_dims: tuple[int | str, ...]
    metadata: Mapping[str, str]
    content: bytes | None

    @property
    def source(self) -> str | bytes:
        """What a runtime should read."""
        return str(self.path) if self.content is None else self.content

    @property
    def quantised(self) -> bool:
        """Whether the file says how to compute in whole numbers."""
        return any(is_quantised(node.op_type) for node in self.nodes)

    def quantised_inputs(self) -> frozenset[str]:
        """Names of the nodes that are quantised operators, or whose first input one made."""
        quantised = {tensor for node in self.nodes if is_quantised(node.op_type) for tensor in node.outputs}
        return frozenset(
            node.name
            for node in self.nodes
            if is_quantised(node.op_type) or (node.inputs and node.inputs[0] in quantised)
        )


def read_model_file(path: Path | str) -> ModelFile:
    """Read a network with one floating-point input of four axes.

    Args:
        path: An ONNX file, or the .xml of OpenVINO with its .bin beside it.

    Raises:
        ProfileError: The file cannot be read or has other inputs.
        MissingExtraError: The package that reads it, onnx or OpenVINO, is not installed.
    """
    path = Path(path)
    if path.suffix == _IR:
        return _read_ir(path)
    if not path.is_file():
        raise ProfileError(f"{path}: no such file; expected an ONNX file")
    onnx = require("onnx", extra="profile", purpose="reading an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror or error}); expected an ONNX file") from error
    except Exception as error:
        # protobuf's DecodeError, whose module differs between its versions.
        raise ProfileError(f"{path}: cannot be read ({first_line(error)}); expected an ONNX file") from error
    if not model.graph.node:
        raise ProfileError(f"{path}: has no nodes; expected an ONNX file of a network")
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ProfileError(f"{path}: has {len(inputs)} inputs ({names}); expected one, the images")
    value = inputs[0]
    tensor_type = value.type.tensor_type
    dims = tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else str(axis.dim_param)
        for axis in tensor_type.shape.dim
    )
    if len(dims) != 4:
        raise ProfileError(
            f"{path}: input {value.name} has {len(dims)} axes ({shape_text(dims)}); expected 4: batch, 3, height, width"
        )
    dtype = _FLOAT_TYPES.get(tensor_type.elem_type)
    if dtype is None:
        kind = onnx.TensorProto.DataType.Name(tensor_type.elem_type).lower()
        raise ProfileError(f"{path}: input {value.name} is of type {kind}; expected float32 or float16")
    unnamed = [node for node in model.graph.node if not node.name]
    for node in unnamed:
        node.name = next(output for output in node.output if output)
    external = any(tensor.external_data for tensor in model.graph.initializer)
    return ModelFile(
        path=path,
        nodes=tuple(
            Node(node.name, node.op_type, tuple(name for name in node.input if name), tuple(node.output))
            for node in model.graph.node
        ),
        input_name=value.name,
        input_dtype=dtype,
        input_dims=dims,
        metadata={entry.key: entry.value for entry in model.metadata_props},
        # Weights in a second file are found beside the first only: such a network keeps its nameless nodes.
        content=model.SerializeToString() if unnamed and not external else None,
    )


def _read_ir(path: Path) -> ModelFile:
    """OpenVINO's own format; tensors are called after the nodes that make them."""
    core = openvino_core(purpose="reading an OpenVINO file")
    for part in (path, path.with_suffix(".bin")):
        if not part.is_file():
            raise ProfileError(f"{part}: no such file; expected the two files of an OpenVINO network")
    try:
        graph = core.read_model(str(path))
    except RuntimeError as error:
        raise ProfileError(f"{path}: cannot be read ({first_line(error)}); expected an OpenVINO file") from error
    if len(graph.inputs) != 1:
        names = ", ".join(value.any_name for value in graph.inputs) or "none"
        raise ProfileError(f"{path}: has {len(graph.inputs)} inputs ({names}); expected one, the images")
    value = graph.inputs[0]
    rank = value.partial_shape.rank
    if rank.is_dynamic or rank.get_length() != 4:
        raise ProfileError(f"{path}: input {value.any_name} is {value.partial_shape}; expected 4 axes")
    element = value.element_type.get_type_name()
    if element not in _IR_TYPES:
        raise ProfileError(f"{path}: input {value.any_name} is of type {element}; expected f32 or f16")
    nodes = []
    for operation in graph.get_ordered_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        sources = [port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()]
        nodes.append(Node(name, _IR_OPERATORS.get(kind, kind), tuple(sources), (name,)))
    return ModelFile(
        path=path,
        nodes=tuple(nodes),
        input_name=value.any_name,
        input_dtype=_IR_TYPES[element],
        input_dims=tuple("" if axis.is_dynamic else axis.get_length() for axis in value.partial_shape),
        metadata={METADATA_KEY: graph.get_rt_info(METADATA_KEY).astype(str)} if graph.has_rt_info(METADATA_KEY) else {},
        content=None,
    )


def open_model_file(
    path: Path | str, *, batch: int, image_size: tuple[int, int] | None, precision: str, reads_ir: bool = False
) -> tuple[ModelFile, tuple[int, int, int, int]]:
    """A file and the shape to run it with, as a backend of one precision takes it.

    Args:
        path: The file.
        batch: Images per run.
        image_size: (height, width) for a file whose sides are free.
        precision: Of the backend.
        reads_ir: Whether the backend reads OpenVINO's own format.

    Raises:
        ProfileError: The file cannot be read, takes another batch or size, or is quantised where the precision is not
            int8, or the reverse.
        MissingExtraError: The package that reads the file is not installed.
    """
    if Path(path).suffix == _IR and not reads_ir:
        raise ProfileError(f"{path}: is an OpenVINO file; expected an ONNX file, or the backend openvino")
    model = read_model_file(path)
    if model.quantised and precision != "int8":
        raise ProfileError(f"{path}: is quantised, but the precision is {precision}; expected precision int8 for it")
    if precision == "int8" and not model.quantised:
        raise ProfileError(
            f"{path}: is not quantised, but the precision is int8; expected a file with QuantizeLinear and "
            "DequantizeLinear or QLinearConv nodes: maenas times quantised networks and makes none"
        )
    return model, input_shape(model, batch=batch, image_size=image_size)


def shape_text(dims: Sequence[int | str]) -> str:
    """Such as `1x3x416x416`, with `?` or the name for a free axis."""
    return "x".join(str(dim) or "?" for dim in dims)


def input_shape(model: ModelFile, *, batch: int, image_size: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """Shape to run with: the file's lengths, and what was asked for on its free axes.

    Args:
        model: The file.
        batch: Images per run.
        image_size: (height, width) for files whose sides are free; None: the file has to say it.

    Raises:
        ProfileError: The file takes another batch or size, or leaves the size open while none is asked for.
    """
    where = f"{model.path}: input {model.input_name} is {shape_text(model.input_dims)}"
    sizes: list[int] = []
    for axis, wanted, option in (
        (0, batch, "batch"),
        (1, 3, "number of channels"),
        (2, image_size[0] if image_size else None, "image height"),
        (3, image_size[1] if image_size else None, "image width"),
    ):
        given = model.input_dims[axis]
        if isinstance(given, str):
            if wanted is None:
                raise ProfileError(f"{where}, its size is free; expected an image size (height x width) to run it with")
            sizes.append(wanted)
        elif axis == 1 or wanted is None or wanted == given:
            sizes.append(given)
        else:
            raise ProfileError(f"{where}, but the {option} asked for is {wanted}; expected {given}")
    return sizes[0], sizes[1], sizes[2], sizes[3]


def random_images(shape: tuple[int, ...], dtype: str, *, seed: int = 0) -> NDArray[np.floating]:
    """Seeded images, uniform from 0 to 255: no value is so small that arithmetic with it is slow."""
    import numpy as np

    return np.random.default_rng(seed).uniform(0.0, 255.0, shape).astype(dtype)
