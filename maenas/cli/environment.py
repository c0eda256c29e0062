"""What is installed here: Python, the packages of every extra, the bundled detector, the devices that torch sees."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from typing import Any

from maenas import __version__
from maenas.cli.detector import BundleError, bundled

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^]]*)\])?([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def describe_environment() -> dict[str, Any]:
    """All of it as plain values for JSON; nothing here fails because something is missing."""
    bundle: dict[str, Any] = {"is_ours": True, "path": None, "error": None}
    try:
        bundle["path"] = str(bundled("errors").__file__).removesuffix("errors.py")
    except (BundleError, ImportError) as error:
        bundle |= {"is_ours": False, "error": str(error)}
    devices: list[dict[str, Any]] = []
    torch_error = None
    try:
        devices = bundled("environment").torch_devices()
    except Exception as error:  # a broken torch fails in many ways, and this report is to say so
        torch_error = str(error) or type(error).__name__
    return {
        "maenas": __version__,
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "detector": bundle,
        "devices": devices,
        "torch_error": torch_error,
        "extras": package_versions(),
    }


def package_versions() -> dict[str, dict[str, str | None]]:
    """For the core and every extra the packages it asks for, with their installed versions; None where missing."""
    try:
        requirements = importlib.metadata.requires("maenas") or []
    except importlib.metadata.PackageNotFoundError:
        # A checkout that is on the path, but not installed, has no list of requirements.
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        # An extra that is made of other extras asks for nothing of its own.
        if match is None or match[1].lower() == "maenas":
            continue
        extra = _EXTRA.search(match[4] or "")
        found.setdefault(extra[1] if extra else "(always)", {})[match[1]] = _version(match[1])
    found.pop("dev", None)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
