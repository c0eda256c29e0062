"""Which precision an artifact really runs in: asked of the runtimes, layer by layer.

A file in half precision on a processor that computes in float32 only gives right results and no error; here it is
told. Counted are convolutions and matrix products, which decide how long a network takes.
"""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from maenas.extras import openvino_core, require
from maenas.layer_precision import is_heavy, onnxruntime_precisions, openvino_precisions

from .artifact import ModelCard
from .artifact_files import read_card
from .runtimes import READERS, is_installed, openvino_hint

_OPENVINO_HEAVY = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")

UNKNOWN = "unknown"
"""Where a runtime does not tell."""


@dataclass(frozen=True, slots=True)
class PrecisionProof:
    """What a runtime says it computes an artifact in, on this machine.

    Attributes:
        runtime: Name of the runtime.
        version: Of the runtime.
        device: Processor or GPU.
        asked: Precision of the artifact.
        intended: How many convolutions the artifact holds in it, where it is int8; None: all.
        layers: Number of convolutions and products per precision that they ran in.
        macs: Their multiply-accumulates for one run at the size that was made for, per precision; empty where the
            runtime does not tell shapes.
    """

    runtime: str
    version: str
    device: str
    asked: str
    layers: Mapping[str, int]
    macs: Mapping[str, int]
    intended: int | None = None

    @property
    def share_layers(self) -> float:
        """Part of the layers that run in the asked precision."""
        return self.layers.get(self.asked, 0) / max(sum(self.layers.values()), 1)

    @property
    def share_macs(self) -> float | None:
        """Part of the work that runs in the asked precision; None where it is not known."""
        return self.macs.get(self.asked, 0) / sum(self.macs.values()) if self.macs else None

    def complaint(self) -> str | None:
        """One line if less than half of the layers that should run in the asked precision do; None otherwise."""
        total, ran = sum(self.layers.values()), self.layers.get(self.asked, 0)
        if 2 * ran >= (total if self.intended is None else self.intended):
            return None
        others = ", ".join(f"{count} in {name}" for name, count in self.layers.items() if name != self.asked)
        return (
            f"{self.asked} was asked, but {self.runtime} runs {ran} of {total} convolutions and products in it on "
            f"{self.device} ({others})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {**asdict(self), "share_layers": self.share_layers, "share_macs": self.share_macs}


def prove_precision(path: Path) -> tuple[PrecisionProof, ...]:
    """Ask every installed runtime that reads an artifact what it computes in.

    Args:
        path: Main file of an artifact with its card.

    Raises:
        ExportError: The artifact cannot be used.
    """
    card = read_card(path)
    return tuple(_PROVERS[name](path, card) for name in READERS[path.suffix] if is_installed(name))


def heavy_macs(proto: Any, shape: tuple[int, ...]) -> dict[str, int]:  # noqa: ANN401
    """Multiply-accumulates of the convolutions and products of an ONNX graph, by node name.

    Args:
        proto: A model with one input; stays as it is.
        shape: Of the input.
    """
    onnx = require("onnx", extra="onnx", purpose="counting what an export computes")
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for axis, length in zip(fixed.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = length
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    return _macs(graph, graph)


def _macs(heavy: Any, shapes: Any) -> dict[str, int]:  # noqa: ANN401
    """Work of the heavy nodes of one graph, with the shapes that another (or the same) one declares."""
    sizes = {tensor.name: list(tensor.dims) for tensor in shapes.initializer}
    for value in (*shapes.value_info, *shapes.input, *shapes.output):
        sizes.setdefault(value.name, [axis.dim_value for axis in value.type.tensor_type.shape.dim])
    found = {}
    for node in heavy.node:
        if is_heavy(node.op_type):
            weight = sizes.get(node.input[3 if node.op_type.startswith("QLinear") else 1], [])
            output = sizes.get(node.output[0], [])
            # A convolution's kernel is (out, in / groups, height, width), a product's (in, out).
            per_output = prod(weight[1:]) if "Conv" in node.op_type else (weight[0] if weight else 0)
            if output and per_output:
                found[node.name] = prod(output) * per_output
    return found


def _prove_onnxruntime(path: Path, card: ModelCard) -> PrecisionProof:
    """From the graph that is left after all optimisations but those of the memory layout."""
    runtime = require("onnxruntime", extra="onnx", purpose="asking what ONNX Runtime computes in")
    onnx = require("onnx", extra="onnx", purpose="asking what ONNX Runtime computes in")
    with tempfile.TemporaryDirectory(prefix="maenas-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimised)
        runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(str(optimised)).graph
    work = heavy_macs(onnx.load(str(path)), _shape(card))
    work |= {name: macs for name, macs in _macs(graph, graph).items() if name not in work}
    return _proof("onnxruntime", str(runtime.__version__), _cpu(), card, onnxruntime_precisions(graph).items(), work)


def _prove_openvino(path: Path, card: ModelCard) -> PrecisionProof:
    """From the graph that the plugin executes, compiled as `OpenVinoSession` does."""
    openvino = require("openvino", extra="openvino", purpose="asking what OpenVINO computes in")
    core = openvino_core(purpose="asking what OpenVINO computes in")
    graph = core.read_model(str(path))
    graph.reshape({card.input.name: list(_shape(card))})
    work = {}
    for operation in graph.get_ordered_ops():
        if operation.get_type_name() in _OPENVINO_HEAVY:
            work[operation.get_friendly_name()] = _openvino_macs(operation)
    settings = {"INFERENCE_PRECISION_HINT": openvino_hint(core, card.precision), "PERFORMANCE_HINT": "LATENCY"}
    executed = core.compile_model(graph, "CPU", settings).get_runtime_model()
    ran = openvino_precisions(executed, work)
    version = str(openvino.__version__).partition("-")[0]
    device = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
    return _proof("openvino", version, device, card, ran.items(), work)


def _openvino_macs(operation: Any) -> int:  # noqa: ANN401
    weight = list(operation.input(1).get_partial_shape().to_shape())
    output = list(operation.output(0).get_partial_shape().to_shape())
    kind = operation.get_type_name()
    if kind == "MatMul":
        return prod(output) * list(operation.input(0).get_partial_shape().to_shape())[-1]
    # Kernels are (out, in, height, width), with a group axis in front where there are groups.
    return prod(output) * prod(weight[2 if kind == "GroupConvolution" else 1 :])


def _prove_tensorrt(path: Path, card: ModelCard) -> PrecisionProof:
    """From the engine inspector."""
    from .tensorrt_layers import layer_precisions
    from .tensorrt_session import TensorRtSession

    session = TensorRtSession(path)
    assert card.engine is not None
    ran = layer_precisions(session.layer_information())
    return _proof("tensorrt", session.version, card.engine.gpu, card, ran, {})


def _proof(
    runtime: str,
    version: str,
    device: str,
    card: ModelCard,
    ran: Iterable[tuple[str, str]],
    work: Mapping[str, int],
) -> PrecisionProof:
    layers: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    names = [(name, precision or UNKNOWN) for name, precision in ran]
    for name, precision in names:
        layers[precision] += 1
        macs[precision] += work.get(name, 0)
    known = all(name in work for name, _ in names)
    made = card.quantisation or {}
    return PrecisionProof(
        runtime=runtime,
        version=version,
        device=device,
        asked=card.precision,
        layers=dict(layers),
        macs=dict(macs) if known and work else {},
        intended=made["num_layers"] - len(made.get("higher_precision", ())) if "num_layers" in made else None,
    )


def _shape(card: ModelCard) -> tuple[int, int, int, int]:
    return (card.batch or 1, card.input.shape[1] or 3, *card.image_size)


def _cpu() -> str:
    """Name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


_PROVERS = {"onnxruntime": _prove_onnxruntime, "openvino": _prove_openvino, "tensorrt": _prove_tensorrt}
