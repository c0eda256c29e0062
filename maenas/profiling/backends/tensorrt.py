"""TensorRT 10 and 11 on an NVIDIA GPU, behind a narrow adapter. Not run on hardware: tested with a fake adapter only.

TensorRT 11 takes the precision from the file; 10 may be asked for fp16 or bf16, and takes int8 from quantised files.
Either way the engine is asked afterwards what its convolutions really run in, and one that runs them in another
precision than was claimed is refused: TensorRT 11 then needs a file exported in fp16.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from maenas.errors import ProfileError
from maenas.extras import require
from maenas.layer_precision import tensorrt_precision
from maenas.profiling.backends import Bridge
from maenas.profiling.backends.layers import LayerTime, complete_sources, typical_run
from maenas.profiling.backends.model_file import ModelFile, open_model_file, random_images
from maenas.profiling.backends.precision import check_ran, heavy_nodes
from maenas.profiling.backends.tensorrt_engine import SUFFIX, EngineEntry, open_engine

_PROFILED_RUNS = (7, 50)
_WARM_UP = 3
_NODE = re.compile(r"\[ONNX Layer: ([^\]|]+?) *[\]|]")


class Engine(Protocol):
    """A built engine with its buffers."""

    def layer_information(self) -> str:
        """The engine inspector's JSON."""
        ...

    def execute(self, images: Any) -> None:  # noqa: ANN401
        """Copy the images in, run, copy all outputs back, and wait."""
        ...

    def profile(self, images: Any) -> list[tuple[str, float]]:  # noqa: ANN401
        """The same with a profiler: name and ms of each layer."""
        ...

    def close(self) -> None:
        """Free engine and buffers."""
        ...


class Adapter(Protocol):
    """All that is asked of TensorRT.

    Attributes:
        version: Of TensorRT.
        device_name: Of the GPU.
    """

    version: str
    device_name: str

    def build(self, model: ModelFile, shape: tuple[int, int, int, int], *, precision: str) -> Engine:
        """Build an engine.

        Raises:
            ProfileError: The file cannot be parsed or built; with TensorRT's reasons.
        """
        ...


@dataclass(frozen=True)
class EngineLayer:
    """A layer as the engine inspector describes it.

    Attributes:
        name: As the profiler reports it.
        kind: Such as `CaskConvolution` or `Reformat`.
        nodes: ONNX nodes that it stands for.
        inputs: Names of tensors.
        outputs: Names of tensors.
        precision: That it computes in; empty where the inspector does not tell.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str


@dataclass(frozen=True)
class TensorRtBackend:
    """The first GPU; see `Backend`."""

    adapter: Adapter
    precision: str
    batch: int
    threads: int
    bridge: Bridge | None = None
    name: str = "tensorrt"
    accelerator: bool = True
    has_layer_times: bool = True

    @property
    def version(self) -> str:
        """Of TensorRT."""
        return self.adapter.version

    @property
    def device_name(self) -> str:
        """Of the GPU."""
        return self.adapter.device_name

    def entry(
        self, onnx_path: Path, *, key: str, layers: bool, image_size: tuple[int, int] | None = None
    ) -> TensorRtEntry | EngineEntry:
        """A network, of which an engine is built, or an engine of an export; see `Backend.entry`."""
        if onnx_path.suffix == SUFFIX:
            return open_engine(
                onnx_path,
                key=key,
                precision=self.precision,
                batch=self.batch,
                image_size=image_size,
                bridge=self.bridge,
            )
        model, shape = open_model_file(onnx_path, batch=self.batch, image_size=image_size, precision=self.precision)
        return TensorRtEntry(key, self, model, shape, layers)


def open_backend(*, threads: int, precision: str, batch: int, bridge: Bridge | None) -> TensorRtBackend:
    """TensorRT with these settings; the number of threads is that of the host and changes nothing."""
    require("tensorrt", extra="tensorrt", purpose="profiling with TensorRT")
    from maenas.profiling.backends.tensorrt_adapter import open_adapter

    return TensorRtBackend(open_adapter(), precision, batch, threads, bridge)


@dataclass(frozen=True)
class TensorRtEntry:
    """A network whose engine is built on opening."""

    key: str
    backend: TensorRtBackend
    model: ModelFile
    shape: tuple[int, int, int, int]
    with_layers: bool

    @contextmanager
    def open(self) -> Iterator[TensorRtRun]:
        """Build the engine, and refuse it where it is not of the precision that was claimed."""
        precision = self.backend.precision
        engine = self.backend.adapter.build(self.model, self.shape, precision=precision)
        try:
            layers = read_layer_information(engine.layer_information(), self.model)
            if precision != "fp32":
                heavy = heavy_nodes(self.model.nodes)
                ran = {layer.name: layer.precision for layer in layers if heavy.intersection(layer.nodes)}
                check_ran(ran, precision, self.model, "TensorRT")
            yield TensorRtRun(self, engine, layers, random_images(self.shape, self.model.input_dtype))
        finally:
            engine.close()


@dataclass
class TensorRtRun:
    """An engine; see `OpenEntry`."""

    entry: TensorRtEntry
    engine: Engine
    information: tuple[EngineLayer, ...]
    images: Any
    recent: int = 0

    def run(self) -> float:
        """One inference, copies to the GPU and back included."""
        started = time.perf_counter()
        self.engine.execute(self.images)
        seconds = time.perf_counter() - started
        self.recent += 1
        return seconds

    def discard(self) -> None:
        """Let the runs so far count for nothing."""
        self.recent = 0

    def layers(self) -> tuple[LayerTime, ...] | None:
        """Layers of profiled runs that are made now: a profiler keeps the GPU waiting between layers."""
        if not self.entry.with_layers:
            return None
        low, high = _PROFILED_RUNS
        count = min(max(self.recent, low), high)
        self.discard()
        runs: list[dict[str, float]] = []
        for _ in range(_WARM_UP + count):
            run: dict[str, float] = {}
            for name, ms in self.engine.profile(self.images):
                run[name] = run.get(name, 0.0) + ms
            runs.append(run)
        return layer_times(self.information, typical_run(runs[_WARM_UP:]), self.entry.model)


def layer_times(information: Sequence[EngineLayer], ms: Mapping[str, float], model: ModelFile) -> tuple[LayerTime, ...]:
    """Times of the profiler with what the inspector says about its layers.

    Raises:
        ProfileError: The profiler reports layers that the engine does not have.
    """
    unknown = [name for name in ms if name not in {layer.name for layer in information}]
    if unknown:
        raise ProfileError(
            f"{model.path}: TensorRT timed the layer {unknown[0]!r}; expected one of the engine's layers"
        )
    feeds: dict[str, tuple[str, ...]] = {}
    found = []
    for layer in information:
        inputs = tuple(dict.fromkeys(name for tensor in layer.inputs for name in feeds.get(tensor, ())))
        timed = layer.name in ms
        for tensor in layer.outputs:
            feeds[tensor] = (layer.name,) if timed else inputs
        if timed:
            found.append(LayerTime(layer.name, layer.kind, layer.nodes, inputs, ms[layer.name]))
    return complete_sources(found, model.nodes)


def read_layer_information(text: str, model: ModelFile) -> tuple[EngineLayer, ...]:
    """The engine inspector's JSON, of TensorRT 10 (`Format/Datatype`) or 11 (`Format` and `DataType`).

    Raises:
        ProfileError: It is no such JSON, or holds names only because the engine was built without details.
    """
    try:
        layers = json.loads(text)["Layers"]
        if any(isinstance(layer, str) for layer in layers):
            raise ProfileError(f"{model.path}: TensorRT gave layer names only; expected an engine built with details")
        known = {node.name for node in model.nodes}
        return tuple(_layer(layer, known) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProfileError(f"{model.path}: TensorRT's layer information cannot be read ({error!r})") from error


def _layer(content: Mapping[str, Any], known: set[str]) -> EngineLayer:
    name = str(content["Name"])
    named = _NODE.findall(str(content.get("Metadata", "")))
    # Without metadata: the name lists nodes, as in `conv1 + PWN(sigmoid, mul)`.
    nodes = [node for node in named or re.split(r"[\s+(),]+", name) if node in known]
    return EngineLayer(
        name=name,
        kind=str(content.get("LayerType", "")),
        nodes=() if content.get("LayerType") == "Reformat" else tuple(dict.fromkeys(nodes)),
        inputs=tuple(str(tensor["Name"]) for tensor in content.get("Inputs", ())),
        outputs=tuple(str(tensor["Name"]) for tensor in content.get("Outputs", ())),
        precision=tensorrt_precision(content),
    )
