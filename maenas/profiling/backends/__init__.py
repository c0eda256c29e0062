"""Runtimes that networks are timed in: one interface, one module per runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from maenas.errors import ProfileError
from maenas.profiling.backends.layers import LayerTime

__all__ = ["BACKENDS", "Backend", "Bridge", "Entry", "LayerTime", "OpenEntry", "open_backend"]

_TORCH = "maenas.profiling.backends.pytorch"
_TENSORRT = "maenas.profiling.backends.tensorrt"

BACKENDS = {
    "openvino": "maenas.profiling.backends.openvino",
    "onnxruntime": "maenas.profiling.backends.onnxruntime",
    "tensorrt": _TENSORRT,
    "torch-cpu": _TORCH,
    "torch-cuda": _TORCH,
    "torch-cpu-compiled": _TORCH,
    "torch-cuda-compiled": _TORCH,
}
"""Name to module; a module has open_backend(threads, precision, batch), that of TensorRT with the bridge, and that of
torch with the name too."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

Bridge = Callable[[str], ModuleType]
"""Gives a module of the package `detector`, which alone imports torch, by its name."""


class OpenEntry(Protocol):
    """A network ready to run."""

    def run(self) -> float:
        """One inference with its outputs fetched; returns wall seconds."""
        ...

    def discard(self) -> None:
        """Let the runs so far count for nothing (they were the warm-up)."""
        ...

    def layers(self) -> tuple[LayerTime, ...] | None:
        """Layers of a typical run since the last call of this or of `discard`; None where they were not asked for."""
        ...


class Entry(Protocol):
    """One unit of work of a campaign."""

    @property
    def key(self) -> str:
        """Names it in the campaign."""
        ...

    def open(self) -> AbstractContextManager[OpenEntry]:
        """Compile it; leaving the context frees it."""
        ...


class Backend(Protocol):
    """A runtime with its settings.

    Attributes:
        name: A key of `BACKENDS`.
        version: Of the runtime.
        precision: One of `PRECISIONS`; `int8` takes quantised files only, the others take none.
        threads: CPU threads that one inference may use.
        batch: Images per run.
        accelerator: Whether it computes elsewhere than on the CPU, whose threads decide nothing then.
        has_layer_times: Whether `layers` of its entries gives anything.
        device_name: The processor as the runtime names it.
    """

    name: str
    version: str
    precision: str
    threads: int
    batch: int
    accelerator: bool
    has_layer_times: bool
    device_name: str

    def entry(self, onnx_path: Path, *, key: str, layers: bool, image_size: tuple[int, int] | None = None) -> Entry:
        """A network of this runtime.

        Args:
            onnx_path: The file.
            key: Names the entry.
            layers: Whether its layers are to be timed.
            image_size: (height, width) for a file whose sides are free.

        Raises:
            ProfileError: The file cannot be read, does not take one batch of images of that size, or is quantised
                where the precision is not int8, or the reverse.
        """
        ...


def open_backend(
    name: str, *, threads: int, precision: str = "fp32", batch: int = 1, bridge: Bridge | None = None
) -> Backend:
    """A runtime by name.

    Args:
        name: One of `BACKENDS`.
        threads: CPU threads that one inference may use.
        precision: One of `PRECISIONS`, of the arithmetic.
        batch: Images per run.
        bridge: To the package `detector`; torch needs it, and TensorRT for engines that are built already.

    Raises:
        ProfileError: The name, a number or the precision is wrong, or the runtime lacks the precision on this device.
        MissingExtraError: The runtime is not installed.
    """
    if name not in BACKENDS:
        raise ProfileError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    for field, value in (("threads", threads), ("batch", batch)):
        if value < 1:
            raise ProfileError(f"{field} is {value}; expected 1 or more")
    if precision not in PRECISIONS:
        raise ProfileError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    module = importlib.import_module(BACKENDS[name])
    if BACKENDS[name] == _TORCH:
        return cast(
            Backend, module.open_backend(name, threads=threads, precision=precision, batch=batch, bridge=bridge)
        )
    if BACKENDS[name] == _TENSORRT:
        return cast(Backend, module.open_backend(threads=threads, precision=precision, batch=batch, bridge=bridge))
    return cast(Backend, module.open_backend(threads=threads, precision=precision, batch=batch))
