"""OpenVINO on a CPU: whole-network times, and layer times from its performance counters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from maenas.errors import ProfileError
from maenas.extras import openvino_core, require
from maenas.layer_precision import openvino_fact, openvino_precisions
from maenas.profiling.backends.layers import LayerTime, complete_sources
from maenas.profiling.backends.model_file import ModelFile, open_model_file, random_images
from maenas.profiling.backends.precision import check_ran, heavy_nodes
from maenas.profiling.host import unpinned

_DEVICE = "CPU"
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""Arithmetic of what is not quantised."""

_LAYER_KIND = "layerType"
_SOURCES = "originalLayersNames"


@dataclass(frozen=True)
class OpenVinoBackend:
    """The CPU plugin; see `Backend`."""

    core: Any
    runtime: ModuleType
    version: str
    device_name: str
    threads: int
    precision: str
    batch: int
    name: str = "openvino"
    accelerator: bool = False
    has_layer_times: bool = True

    def entry(
        self, onnx_path: Path, *, key: str, layers: bool, image_size: tuple[int, int] | None = None
    ) -> OpenVinoEntry:
        """A network; see `Backend.entry`."""
        model, shape = open_model_file(
            onnx_path, batch=self.batch, image_size=image_size, precision=self.precision, reads_ir=True
        )
        return OpenVinoEntry(key, self, model, shape, layers)


def open_backend(*, threads: int, precision: str, batch: int) -> OpenVinoBackend:
    """The CPU plugin with these settings; see `backends.open_backend`, errors too."""
    openvino = require("openvino", extra="openvino", purpose="profiling with OpenVINO")
    core = openvino_core(purpose="profiling with OpenVINO")
    with unpinned():
        _count_cores(openvino, core)
    offered = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision.upper() not in offered:
        # The plugin would silently compute in fp32.
        raise ProfileError(
            f"precision is {precision}, but OpenVINO computes in {', '.join(offered)} on this CPU; expected fp32"
        )
    return OpenVinoBackend(
        core=core,
        runtime=openvino,
        version=str(openvino.get_version()).partition("-")[0],
        device_name=str(core.get_property(_DEVICE, "FULL_DEVICE_NAME")).strip(),
        threads=threads,
        precision=precision,
        batch=batch,
    )


def _count_cores(openvino: ModuleType, core: Any) -> None:  # noqa: ANN401
    """Let the plugin see every core: it counts once, at its first network, and never uses more than it saw then."""
    import numpy as np

    value = openvino.opset13.parameter([1], np.float32)
    core.compile_model(openvino.Model([openvino.opset13.relu(value)], [value]), _DEVICE)


@dataclass(frozen=True)
class OpenVinoEntry:
    """A network to be compiled on opening."""

    key: str
    backend: OpenVinoBackend
    model: ModelFile
    shape: tuple[int, int, int, int]
    with_layers: bool

    @contextmanager
    def open(self) -> Iterator[OpenVinoRun]:
        """Compile with one stream; the process is pinned from outside, not by the plugin.

        Raises:
            ProfileError: OpenVINO cannot read the file.
        """
        backend = self.backend
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[backend.precision],
            "INFERENCE_NUM_THREADS": backend.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "PERF_COUNT": self.with_layers,
        }
        try:
            model = backend.core.read_model(self.model.source)
        except RuntimeError as error:
            raise ProfileError(f"{self.model.path}: OpenVINO cannot read it ({_reason(error)})") from error
        if any(isinstance(dim, str) for dim in self.model.input_dims):
            model.reshape({self.model.input_name: list(self.shape)})
        compiled = backend.core.compile_model(model, _DEVICE, settings)
        if backend.precision != "fp32":
            ran = openvino_precisions(compiled.get_runtime_model(), heavy_nodes(self.model.nodes))
            check_ran(ran, backend.precision, self.model, "OpenVINO")
        request = compiled.create_infer_request()
        request.set_input_tensor(backend.runtime.Tensor(random_images(self.shape, self.model.input_dtype)))
        yield OpenVinoRun(self, compiled, request)


@dataclass
class OpenVinoRun:
    """A compiled network; see `OpenEntry`."""

    entry: OpenVinoEntry
    compiled: Any
    request: Any
    seconds: list[float] = field(default_factory=list)
    seen_runs: int = 0
    seen_us: dict[str, float] = field(default_factory=dict)

    def run(self) -> float:
        """One synchronous inference."""
        started = time.perf_counter()
        self.request.infer()
        for index in range(len(self.compiled.outputs)):
            # A view: on this device the outputs lie in memory already.
            _ = self.request.get_output_tensor(index).data
        seconds = time.perf_counter() - started
        self.seconds.append(seconds)
        return seconds

    def discard(self) -> None:
        """Let the runs so far count for nothing."""
        self.seen_us = self._counters() if self.entry.with_layers else {}
        self.seen_runs = len(self.seconds)

    def layers(self) -> tuple[LayerTime, ...] | None:
        """Layers of the runs since the last call, scaled to a typical run.

        The counters are means over all runs since compilation, the first slow ones included, in whole microseconds;
        the sums before and after give the mean in between. It is scaled by the ratio of the 25th percentile of the
        runs' times to their mean.
        """
        if not self.entry.with_layers:
            return None
        recent, before = self.seconds[self.seen_runs :], self.seen_us
        if not recent:
            return ()
        self.discard()
        scale = _quarter(recent) / sum(recent)
        ms = {name: max(0.0, total - before.get(name, 0.0)) / 1000 * scale for name, total in self.seen_us.items()}
        return _layers(self.compiled.get_runtime_model(), ms, self.entry.model)

    def _counters(self) -> dict[str, float]:
        """Microseconds of every executed layer, summed over all runs since compilation."""
        # A mean is cut to whole microseconds; half of one is what was lost on average.
        runs = len(self.seconds)
        return {
            info.node_name: runs * (float(info.real_time.total_seconds()) * 1e6 + 0.5)
            for info in (self.request.profiling_info if runs else ())
            if info.status.name == "EXECUTED"
        }


def _reason(error: RuntimeError) -> str:
    """The line of a long message that names what failed: `-- <operator> ...`, else the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = next((index for index, line in enumerate(lines) if line.startswith("-- ")), len(lines) - 1)
    return lines[named].removeprefix("-- ").removesuffix(" with a message:")


def _quarter(seconds: Sequence[float]) -> float:
    import numpy as np

    return float(np.percentile(seconds, 25))


def _layers(graph: Any, ms: dict[str, float], model: ModelFile) -> tuple[LayerTime, ...]:  # noqa: ANN401
    """The timed layers of the executed graph; untimed ones (constants, reorders done once) are looked through."""
    by_name = {node.name: node.name for node in model.nodes}
    by_tensor = {tensor: node.name for node in model.nodes for tensor in node.outputs}
    feeds: dict[str, tuple[str, ...]] = {}
    layers: list[LayerTime] = []
    for operation in graph.get_ordered_ops():
        name = operation.get_friendly_name()
        parents = [port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()]
        inputs = tuple(dict.fromkeys(feeder for parent in parents for feeder in feeds.get(parent, ())))
        feeds[name] = (name,) if name in ms else inputs
        if name not in ms:
            continue
        facts = dict(operation.get_rt_info())
        originals = openvino_fact(facts, _SOURCES).split(",")
        sources = dict.fromkeys(
            source for source in (_source(original, by_name, by_tensor) for original in originals) if source
        )
        layers.append(LayerTime(name, openvino_fact(facts, _LAYER_KIND), tuple(sources), inputs, ms[name]))
    return complete_sources(layers, model.nodes)


def _source(original: str, by_name: dict[str, str], by_tensor: dict[str, str]) -> str | None:
    """The ONNX node behind a name of the plugin, which appends `/WithoutBiases` and the like to parts of a node."""
    while True:
        found = by_name.get(original) or by_tensor.get(original)
        if found or "/" not in original:
            return found
        original = original.rpartition("/")[0]
