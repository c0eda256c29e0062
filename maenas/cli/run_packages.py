"""Packages that the steps of `maenas run` need, asked for before the first of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.util import find_spec

from maenas.errors import MissingExtraError
from maenas.latency.table_local import LOCAL


def check_packages(arguments: argparse.Namespace) -> None:
    """Say now what the export would miss after hours of training.

    Raises:
        MissingExtraError: Packages are not installed; names all of them.
    """
    missing = [name for name in _needed(arguments) if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"maenas run needs the packages {', '.join(missing)}; install them with: pip install 'maenas[all]'"
        )


def _needed(arguments: argparse.Namespace) -> Iterator[str]:
    """As they are imported."""
    yield from ("torch", "safetensors", "cv2", "faster_coco_eval")
    if not arguments.exported:
        yield from ("onnx", "onnxruntime", "onnxscript")
    if str(arguments.device).lower() == LOCAL:
        yield from ("psutil", "sklearn")
    if arguments.format == "openvino":
        yield "openvino"
        if "int8" in (arguments.precision or ""):
            yield "nncf"
