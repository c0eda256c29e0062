"""Torch on a CPU or a CUDA device, eager or compiled, behind an adapter that the package `detector` brings.

Nothing here imports torch: a caller hands in the bridge through which that package is reached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from maenas.errors import ProfileError
from maenas.extras import require
from maenas.profiling.backends import Bridge
from maenas.profiling.backends.layers import LayerTime, complete_sources, typical_run
from maenas.profiling.backends.model_file import ModelFile, open_model_file, random_images
from maenas.profiling.host import cpu_model, describe_host

_PROFILED_RUNS = (7, 50)
_WARM_UP = 3
_INSTRUCTIONS = {"fp32": (), "fp16": ("avx512_fp16", "fp16"), "bf16": ("avx512_bf16", "amx")}
"""Instruction sets of CPUs, one of which a precision needs; without, torch converts back and forth."""


class Call(Protocol):
    """A timed call of a network: see `detector.torch_timing.TimedCall`."""

    name: str
    kind: str
    sources: tuple[str, ...]
    inputs: tuple[str, ...]


class Network(Protocol):
    """A loaded network with its images.

    Attributes:
        calls: What is timed, in the order of execution.
    """

    calls: Sequence[Call]

    def run(self) -> None:
        """One inference with its outputs fetched, waited for."""
        ...

    def profile(self) -> list[float]:
        """The same with marks: milliseconds of each call."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class Adapter(Protocol):
    """All that is asked of torch."""

    @property
    def version(self) -> str:
        """Of torch."""
        ...

    @property
    def device_name(self) -> str:
        """Of the CUDA device."""
        ...

    def load(self, source: str | bytes, images: Any, *, where: str, layers: bool) -> Network:  # noqa: ANN401
        """A network that has run once."""
        ...


@dataclass(frozen=True)
class TorchBackend:
    """Torch with its settings; see `Backend`."""

    adapter: Adapter
    name: str
    version: str
    device_name: str
    accelerator: bool
    has_layer_times: bool
    precision: str
    threads: int
    batch: int

    def entry(
        self, onnx_path: Path, *, key: str, layers: bool, image_size: tuple[int, int] | None = None
    ) -> TorchEntry:
        """A network; see `Backend.entry`."""
        model, shape = open_model_file(onnx_path, batch=self.batch, image_size=image_size, precision=self.precision)
        return TorchEntry(key, self, model, shape, layers and self.has_layer_times)


def open_backend(name: str, *, threads: int, precision: str, batch: int, bridge: Bridge | None) -> TorchBackend:
    """Torch with these settings; see `backends.open_backend`, errors too.

    A compiled network is made of kernels that stand for no single node, so it has no layer times.
    """
    _, device, *mode = name.split("-")
    if bridge is None:
        raise ProfileError(f"backend {name} needs the package detector; expected a call from the command line")
    if precision == "int8":
        raise ProfileError(f"precision is int8, but {name} runs no quantised files; expected fp32, fp16 or bf16")
    require("torch", extra="detector", purpose="profiling with torch")
    require("onnx", extra="onnx", purpose="profiling with torch")
    if device == "cpu":
        _check_instructions(precision)
    adapter = bridge("torch_timing").open_adapter(
        device=device, compiled=bool(mode), precision=precision, threads=threads
    )
    return TorchBackend(
        adapter=adapter,
        name=name,
        version=adapter.version,
        device_name=adapter.device_name or cpu_model(),
        accelerator=device != "cpu",
        has_layer_times=not mode,
        precision=precision,
        threads=threads,
        batch=batch,
    )


def _check_instructions(precision: str) -> None:
    needed = _INSTRUCTIONS[precision]
    if needed and not set(needed).intersection(describe_host()["isa"]):
        raise ProfileError(
            f"precision is {precision}, but this CPU has none of the instructions {', '.join(needed)}: torch would "
            "convert to fp32 and back; expected fp32"
        )


@dataclass(frozen=True)
class TorchEntry:
    """A network that is loaded on opening."""

    key: str
    backend: TorchBackend
    model: ModelFile
    shape: tuple[int, int, int, int]
    with_layers: bool

    @contextmanager
    def open(self) -> Iterator[TorchRun]:
        """Load the file and run it once."""
        images = random_images(self.shape, self.model.input_dtype)
        network = self.backend.adapter.load(
            self.model.source, images, where=str(self.model.path), layers=self.with_layers
        )
        try:
            yield TorchRun(self, network)
        finally:
            network.close()


@dataclass
class TorchRun:
    """A loaded network; see `OpenEntry`."""

    entry: TorchEntry
    network: Network
    recent: int = 0

    def run(self) -> float:
        """One inference, copies to a CUDA device and back included."""
        started = time.perf_counter()
        self.network.run()
        seconds = time.perf_counter() - started
        self.recent += 1
        return seconds

    def discard(self) -> None:
        """Let the runs so far count for nothing."""
        self.recent = 0

    def layers(self) -> tuple[LayerTime, ...] | None:
        """Layers of runs with marks that are made now, about as often as plain ones were since the last call."""
        if not self.entry.with_layers:
            return None
        low, high = _PROFILED_RUNS
        count = min(max(self.recent, low), high)
        self.discard()
        calls = self.network.calls
        runs = [
            {call.name: ms for call, ms in zip(calls, self.network.profile(), strict=True)}
            for _ in range(_WARM_UP + count)
        ]
        ms = typical_run(runs[_WARM_UP:])
        layers = [LayerTime(call.name, call.kind, call.sources, call.inputs, ms[call.name]) for call in calls]
        return complete_sources(layers, self.entry.model.nodes)
