"""Networks with QuantizeLinear / DequantizeLinear pairs, made by ONNX Runtime's quantiser, for two kinds of reader.

ONNX Runtime and OpenVINO on x86 processors compute quickly with unsigned activations and signed weights only: signed
activations run as slowly as float32 there. TensorRT takes signed numbers around zero only, and its documentation wants
the inputs of convolutions rounded and shortcuts before a sum, but not what a convolution gives, nor its bias.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .export_int8 import QuantiseRequest
from .quantise_layers import Layer, float_nodes

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""How the range of a map is found from those of the calibration images, and ONNX Runtime's names for it."""

OPERATORS = (
    "Conv",
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Mul",
    "Add",
    "Concat",
    "MaxPool",
    "Resize",
)
"""Kinds of nodes that are quantised for processors: fewer were slower, see experiments/quantisation."""

SILU = ("Sigmoid", "Mul")
"""What SiLU is made of; TensorRT gets it in full precision, as it would stand behind a convolution."""

_CHUNK = 8


@dataclass(frozen=True, slots=True)
class OnnxQuantiser:
    """A float network with the ranges of its maps, from which quantised ones are built.

    Attributes:
        proto: The float network; stays as it is.
        layers: Its convolutions.
        ranges: Of every map, as ONNX Runtime's calibrator gives them.
        signed: For TensorRT.
        seven_bits: Weights in 7 bits, for processors without VNNI, whose 16-bit sums overflow.
        operators: Kinds of nodes that are quantised.
    """

    proto: Any
    layers: Sequence[Layer]
    ranges: Any = field(repr=False)
    signed: bool
    seven_bits: bool
    operators: tuple[str, ...] = OPERATORS

    def write(self, path: Path, higher: Collection[str] = ()) -> None:
        """Write the network in int8, but for the layers named `higher`.

        Args:
            path: An .onnx file.
            higher: Names of layers that stay in float32, with their activations.
        """
        excluded = [node for layer in self.layers if layer.name in higher for node in layer.nodes]
        _onnx().save(self._quantised(exclude=[*float_nodes(self.proto), *excluded]), str(path))

    def only(self, layer: Layer) -> Any:  # noqa: ANN401
        """The network with one layer in int8, as a proto."""
        return self._quantised(include=layer.nodes)

    def _quantised(self, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Any:  # noqa: ANN401
        tools = _tools()
        proto = _onnx().ModelProto()
        proto.CopyFrom(self.proto)
        kind = tools.QuantType.QInt8 if self.signed else tools.QuantType.QUInt8
        with _quiet():
            quantiser = tools.QDQQuantizer(
                proto,
                True,  # per channel
                self.seven_bits,
                tools.QuantType.QInt8,
                kind,
                self.ranges,
                list(include),
                list(exclude),
                list(self.operators),
                _TENSORRT if self.signed else {},
            )
            quantiser.quantize_model()
        result = quantiser.model.model
        if self.signed:
            _unround_convolutions(result.graph)
        # Not in the standard; the quantiser declares it whether it is used or not.
        if not any(node.domain == "com.microsoft" for node in result.graph.node):
            kept = [entry for entry in result.opset_import if entry.domain != "com.microsoft"]
            del result.opset_import[:]
            result.opset_import.extend(kept)
        return result


_TENSORRT = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "DedicatedQDQPair": True,
    "OpTypesToExcludeOutputQuantization": list(OPERATORS),
}


def calibrate(request: QuantiseRequest, layers: Sequence[Layer], *, method: str, seven_bits: bool) -> OnnxQuantiser:
    """Run the float network on the calibration images and note the ranges of its maps.

    Args:
        request: What is to be quantised.
        layers: Its convolutions.
        method: In `METHODS`.
        seven_bits: Weights in 7 bits.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    tools = _tools()
    calibration = require("onnxruntime.quantization.calibrate", extra="onnx", purpose="quantising a network")
    signed = request.format == "tensorrt"
    with tempfile.TemporaryDirectory(prefix="maenas-") as folder, _quiet():
        calibrator = calibration.create_calibrator(
            str(request.onnx_path),
            list(OPERATORS),
            augmented_model_path=str(Path(folder) / "ranges.onnx"),
            calibrate_method=getattr(tools.CalibrationMethod, METHODS[method]),
            extra_options={"symmetric": signed},
        )
        # By and by: the calibrator keeps every map of what it is given at once.
        for chunk in _chunks(request):
            calibrator.collect_data(_reader(tools, chunk))
        ranges = calibrator.compute_data()
    proto = _onnx().load(str(request.onnx_path))
    operators = tuple(name for name in OPERATORS if name not in SILU) if signed else OPERATORS
    return OnnxQuantiser(proto, tuple(layers), ranges, signed, seven_bits, operators)


def batches(request: QuantiseRequest) -> Iterator[NDArray[np.float32]]:
    """Calibration images (B, 3, H, W), in 0 ... 255, as the network takes them: one by one where B is free.

    Where it is not, the last image is repeated.
    """
    size = request.card.batch or 1
    waiting: list[NDArray[np.float32]] = []
    for image in request.images():
        waiting.append(image)
        if len(waiting) == size:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting + waiting[-1:] * (size - len(waiting)))


def _unround_convolutions(graph: Any) -> None:  # noqa: ANN401
    """Take away the pairs directly behind convolutions, whose results go into sums in full precision."""
    made = {output for node in graph.node if node.op_type == "Conv" for output in node.output}
    first = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in made}
    second = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in first]
    sources = {node.output[0]: first[node.input[0]].input[0] for node in second}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = sources.get(name, name)
    for node in (*first.values(), *second):
        graph.node.remove(node)


def _chunks(request: QuantiseRequest) -> Iterator[list[Mapping[str, NDArray[Any]]]]:
    chunk: list[Mapping[str, NDArray[Any]]] = []
    for batch in batches(request):
        chunk.append({request.card.input.name: batch})
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _reader(tools: Any, chunk: Sequence[Mapping[str, NDArray[Any]]]) -> Any:  # noqa: ANN401
    """ONNX Runtime's own kind of iterator."""

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(chunk)

        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(self.left, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the quantiser prints, and its advice to run its own simplifier, which would rename what we know."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger().setLevel(level)


def _tools() -> Any:  # noqa: ANN401
    require("onnx", extra="onnx", purpose="quantising a network")
    return require("onnxruntime.quantization", extra="onnx", purpose="quantising a network")


def _onnx() -> Any:  # noqa: ANN401
    return require("onnx", extra="onnx", purpose="quantising a network")
