"""Packages that only some uses need, imported when they are used."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import sys
from collections.abc import Generator
from types import ModuleType
from typing import Any

from maenas.errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a package of an optional extra.

    Args:
        module: Name to import, such as `onnxruntime`.
        extra: The extra of this distribution that brings it.
        purpose: What needs it; begins the message.

    Raises:
        MissingExtraError: It is not installed; says how to install it. A package that is there but fails to import
            keeps its own message.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            reason = f"needs the package {package}; install it with: pip install 'maenas[{extra}]'"
        else:
            reason = f"needs the package {package}, which fails to import: {error}"
        raise MissingExtraError(f"{purpose} {reason}") from error


def openvino_core(*, purpose: str) -> Any:  # noqa: ANN401
    """OpenVINO's one Core of this process, kept to its end.

    Its CPU plugin gives signal handlers a stack of its own, and what it leaves behind when the last Core goes is no
    memory any more: the next Ctrl-C or SIGTERM would crash the process (seen with OpenVINO 2026.4).

    Raises:
        MissingExtraError: OpenVINO is not installed; `purpose` begins the message.
    """
    return _core_of(require("openvino", extra="openvino", purpose=purpose))


@functools.cache
def _core_of(openvino: ModuleType) -> Any:  # noqa: ANN401
    return openvino.Core()


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def keeping_signal_stack() -> Generator[None]:
    """Leave the stack of this thread's signal handlers as it was, whatever is done meanwhile.

    Each OpenVINO Core puts back the stack that was there before it; Cores of another package that do not end in the
    order of their beginning put back one that is no memory any more, and the next signal would crash the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        gc.collect()  # a Core that ended later would do it then
        libc.sigaltstack(ctypes.byref(before), None)
