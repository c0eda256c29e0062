"""The metadata of an ONNX file, read without the onnx package: a runtime alone is enough to use an export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .errors import ExportError

_METADATA_FIELD = 14
"""Number of `metadata_props` in the ONNX format's model message."""


def read_metadata(path: Path) -> dict[str, str]:
    """Names and texts in an ONNX file's metadata, read without the onnx package.

    Raises:
        ExportError: The file cannot be read, or is no whole ONNX file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        entries = [dict(_fields(entry)) for number, entry in _fields(content) if number == _METADATA_FIELD]
        pairs = {bytes(entry.get(1, b"")).decode(): bytes(entry.get(2, b"")).decode() for entry in entries}
    except (ValueError, IndexError) as error:
        raise ExportError(f"{path}: is no ONNX file, or is cut short") from error
    if not content:
        raise ExportError(f"{path}: is empty; expected an ONNX file")
    return pairs


def _fields(content: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every field of a protocol-buffer message; plain numbers come as no content."""
    view, position = memoryview(content), 0
    while position < len(view):
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if not number:
            raise ValueError("field number 0")
        length = 0
        if kind == 0:
            _, position = _varint(view, position)
        elif kind == 2:
            length, position = _varint(view, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(view):
            raise ValueError("cut short")
        yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("number too long")
