"""ONNX Runtime on a CPU: whole-network times, and layer times from a second session that profiles."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from maenas.errors import ProfileError
from maenas.extras import require
from maenas.layer_precision import onnxruntime_precisions
from maenas.profiling.backends.layers import LayerTime, complete_sources, typical_run
from maenas.profiling.backends.model_file import ModelFile, open_model_file, random_images
from maenas.profiling.backends.precision import check_ran
from maenas.profiling.host import cpu_model

_PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3
_EVENT = "_kernel_time"
_PROFILED_RUNS = (7, 20)
"""Fewest and most runs of the profiling session; it repeats what the plain one did in between."""
_WARM_UP = 3


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """The CPU provider; see `Backend`."""

    runtime: ModuleType
    version: str
    device_name: str
    threads: int
    batch: int
    precision: str = "fp32"
    name: str = "onnxruntime"
    accelerator: bool = False
    has_layer_times: bool = True

    def entry(
        self, onnx_path: Path, *, key: str, layers: bool, image_size: tuple[int, int] | None = None
    ) -> OnnxRuntimeEntry:
        """A network; see `Backend.entry`."""
        model, shape = open_model_file(onnx_path, batch=self.batch, image_size=image_size, precision=self.precision)
        return OnnxRuntimeEntry(key, self, model, shape, layers)


def open_backend(*, threads: int, precision: str, batch: int) -> OnnxRuntimeBackend:
    """The CPU provider with these settings; see `backends.open_backend`, errors too."""
    if precision not in ("fp32", "int8"):
        raise ProfileError(
            f"precision is {precision}, but ONNX Runtime computes in fp32 on CPUs, with casts around it; expected fp32"
        )
    runtime = require("onnxruntime", extra="onnx", purpose="profiling with ONNX Runtime")
    require("onnx", extra="onnx", purpose="profiling with ONNX Runtime")
    return OnnxRuntimeBackend(
        runtime=runtime,
        version=str(runtime.__version__),
        device_name=cpu_model(),
        threads=threads,
        batch=batch,
        precision=precision,
    )


@dataclass(frozen=True)
class OnnxRuntimeEntry:
    """A network whose session is made on opening."""

    key: str
    backend: OnnxRuntimeBackend
    model: ModelFile
    shape: tuple[int, int, int, int]
    with_layers: bool

    @contextmanager
    def open(self) -> Iterator[OnnxRuntimeRun]:
        """Make the session; one thread means the calling one."""
        images = random_images(self.shape, self.model.input_dtype)
        if self.backend.precision == "int8":
            with tempfile.TemporaryDirectory(prefix="maenas-") as folder:
                session, graph = self.optimised(self.options(), Path(folder))
            check_ran(onnxruntime_precisions(graph), "int8", self.model, "ONNX Runtime")
        else:
            session = self.session(self.options())
        yield OnnxRuntimeRun(self, session, {self.model.input_name: images})

    def options(self) -> Any:  # noqa: ANN401
        """Settings shared by the plain and the profiling session."""
        options = self.backend.runtime.SessionOptions()
        options.intra_op_num_threads = self.backend.threads
        options.inter_op_num_threads = 1
        # Worker threads would spin on after a run, and take the time of what is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = _ERRORS_ONLY
        for dim, length in zip(self.model.input_dims, self.shape, strict=True):
            if isinstance(dim, str) and dim:
                options.add_free_dimension_override_by_name(dim, length)
        return options

    def session(self, options: Any) -> Any:  # noqa: ANN401
        """A session of the file."""
        return self.backend.runtime.InferenceSession(self.model.source, options, providers=[_PROVIDER])

    def optimised(self, options: Any, folder: Path) -> tuple[Any, Any]:  # noqa: ANN401
        """A session, and the graph that it runs (an ONNX GraphProto without weights)."""
        path = folder / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        # Weights go to a second file, which is never read: the graph alone is wanted.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        session = self.session(options)
        onnx = require("onnx", extra="onnx", purpose="profiling with ONNX Runtime")
        return session, onnx.load(str(path), load_external_data=False).graph


@dataclass
class OnnxRuntimeRun:
    """A session; see `OpenEntry`."""

    entry: OnnxRuntimeEntry
    session: Any
    feeds: dict[str, Any]
    recent: int = field(default=0)

    def run(self) -> float:
        """One inference of the session that does not profile."""
        started = time.perf_counter()
        self.session.run(None, self.feeds)
        seconds = time.perf_counter() - started
        self.recent += 1
        return seconds

    def discard(self) -> None:
        """Let the runs so far count for nothing."""
        self.recent = 0

    def layers(self) -> tuple[LayerTime, ...] | None:
        """Layers of a profiling session that is run now, about as often as the plain one was since the last call.

        Writing events lengthens a run, so the plain session's times must not come from it.
        """
        if not self.entry.with_layers:
            return None
        low, high = _PROFILED_RUNS
        runs = min(max(self.recent, low), high)
        self.discard()
        with tempfile.TemporaryDirectory(prefix="maenas-") as folder:
            options = self.entry.options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session, graph = self.entry.optimised(options, Path(folder))
            for _ in range(_WARM_UP + runs):
                session.run(None, self.feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return read_profile(events, graph, self.entry.model, skip=_WARM_UP)


def read_profile(
    events: list[dict[str, Any]],
    graph: Any,  # noqa: ANN401
    model: ModelFile,
    *,
    skip: int,
) -> tuple[LayerTime, ...]:
    """Layer times from the events of a profiling session.

    Args:
        events: As the session wrote them.
        graph: The optimised graph that it ran (an ONNX GraphProto).
        model: The file that it was made of.
        skip: Runs at the start to leave out.

    Raises:
        ProfileError: The events hold no more than `skip` runs.
    """
    names = {node.name for node in graph.node}
    runs: list[dict[str, float]] = []
    # The run's event is written after its nodes', and on tiny networks bears the same microsecond as the first.
    ordered = sorted(
        (event for event in events if event.get("ph") == "X"),
        key=lambda event: (event["ts"], event["name"] != "model_run"),
    )
    for event in ordered:
        if event["name"] == "model_run":
            runs.append({})
        elif event.get("cat") == "Node" and event["name"].endswith(_EVENT) and runs:
            name = event["name"].removesuffix(_EVENT)
            # Nodes inside loops and branches are part of the loop's own event.
            if name in names:
                runs[-1][name] = runs[-1].get(name, 0.0) + event["dur"] / 1000
    timed = [run for run in runs[skip:] if run]
    if not timed:
        raise ProfileError(f"{model.path}: ONNX Runtime wrote {len(runs)} profiled runs; expected more than {skip}")
    ms = typical_run(timed)
    feeders = {tensor: node.name for node in graph.node if node.name in ms for tensor in node.output}
    by_name = {node.name: node.name for node in model.nodes}
    by_tensor = {tensor: node.name for node in model.nodes for tensor in node.outputs}
    layers = []
    for node in graph.node:
        if node.name in ms:
            source = None if node.op_type.startswith("Reorder") else _source(node, by_name, by_tensor)
            inputs = tuple(dict.fromkeys(feeders[tensor] for tensor in node.input if tensor in feeders))
            layers.append(LayerTime(node.name, node.op_type, (source,) if source else (), inputs, ms[node.name]))
    return complete_sources(layers, model.nodes)


def _source(node: Any, by_name: Mapping[str, str], by_tensor: Mapping[str, str]) -> str | None:  # noqa: ANN401
    """The ONNX node that an optimised node ends with.

    Kept tensors tell it. Blocked-layout nodes give their tensors new names, and are called after the tensor they made
    before (`x_nchwc`); fused ones after a node (`fused x`, `x/QuickGeluFusion/`); repeated names get `_token_<n>`.
    """
    for tensor in node.output:
        if tensor in by_tensor:
            return by_tensor[tensor]
    name = re.sub(r"_token_\d+$", "", node.name)
    if name.endswith("_nchwc"):
        name = name.removesuffix("_nchwc")
        return by_tensor.get(name) or by_name.get(name)
    name = name.removeprefix("fused ")
    while name:
        if name in by_name:
            return by_name[name]
        name = name.rpartition("/")[0]
    return None
