"""What TensorRT's engine inspector says about the precision of layers. Written from its documentation, not run here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from maenas.layer_precision import tensorrt_precision

from .errors import ExportError

_HEAVY = ("conv", "gemm", "matmul", "matrixmultiply")
_SET_ASIDE = ("reformat", "noop", "constant", "shapehostto")
_NAMED = re.compile(r"node_conv|__myl_\w*(conv|gemm|matm)", re.IGNORECASE)
"""Convolutions by the names that torch's exporter and TensorRT's own compiler give, for layers of another type."""


def layer_precisions(text: str) -> list[tuple[str, str]]:
    """Name and precision of every convolution and product of an engine, told by what it reads; empty if it is not.

    Args:
        text: The inspector's JSON about an engine that was built with detailed verbosity: of TensorRT 10, where a
            tensor has `Format/Datatype`, or of 11, where it has `Format` and `DataType`.

    Raises:
        ExportError: It is no such JSON, or holds names only.
    """
    try:
        layers = json.loads(text)["Layers"]
        if any(isinstance(layer, str) for layer in layers):
            raise ExportError("the engine inspector gave layer names only; expected an engine built with details")
        return [(str(layer["Name"]), tensorrt_precision(layer)) for layer in layers if _is_heavy(layer)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"the engine inspector's answer cannot be read ({error!r})") from error


def _is_heavy(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("LayerType", "")).lower()
    if any(word in kind for word in _SET_ASIDE):
        return False
    if any(word in kind for word in _HEAVY):
        return True
    return bool(_NAMED.search(f"{layer['Name']} {layer.get('Metadata', '')}"))
