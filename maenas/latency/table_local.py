"""What of a latency table concerns the machine that uses it: which tables are its own, and whether one has aged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maenas.latency.table import LatencyTable

LOCAL = "local"
"""Stands for the measured table of this machine wherever a table's name is expected."""

PACKAGES = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "torch-cpu": ("torch",),
    "torch-cuda": ("torch",),
    "torch-cpu-compiled": ("torch",),
    "torch-cuda-compiled": ("torch",),
}
"""Backend to the distributions that may bring it."""


def local_fingerprint() -> str:
    """Twelve hex digits of what decides this machine's speed."""
    from maenas.profiling.host import describe_host, fingerprint

    return str(fingerprint(describe_host()))


def installed_version(backend: str) -> str | None:
    """Version of the backend's package, or None; reads metadata and imports nothing."""
    from importlib.metadata import PackageNotFoundError, version

    for distribution in PACKAGES.get(backend, ()):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def staleness(table: LatencyTable) -> str | None:
    """One line if a measured table is of an older backend than the one installed here, else None."""
    if table.provenance != "measured" or table.backend_version is None:
        return None
    here, then = installed_version(table.backend), _release(table.backend_version)
    if here is None or not then or then >= _release(here):
        return None
    return (
        f"table {table.name} was measured with {table.backend} {table.backend_version}; {here} is installed here: "
        "if the device runs that one too, profile it again (maenas profile)"
    )


def _release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with, without closing zeros: `2026.4.0-12-abc` is (2026, 4)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers.group().split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
