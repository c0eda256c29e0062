"""Packages that only some uses need, imported when they are used."""

from __future__ import annotations

import functools
import importlib
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
