"""The only way from the command line into the bundled package `detector`: loaded late, and checked to be ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from maenas.errors import MaenasError

if TYPE_CHECKING:
    from maenas.structure import Structure


class BundleError(MaenasError, ImportError):
    """The package `detector` that Python finds is not the bundled one, or its requirements are not installed."""


def bundled(module: str) -> ModuleType:
    """Import `detector.<module>`.

    Raises:
        BundleError: Another package of that name hides ours, or torch and its companions are missing.
    """
    try:
        package = importlib.import_module("detector")
        if getattr(package, "__bundled_by__", None) != "maenas":
            place = getattr(package, "__file__", None) or "an unknown place"
            raise BundleError(
                f"the package detector found at {place} is not the one of maenas; "
                "rename that file or use a clean environment"
            )
        return importlib.import_module(f"detector.{module}")
    except ModuleNotFoundError as error:
        if reason := missing_package(error):
            raise BundleError(reason) from error
        raise


def missing_package(error: ModuleNotFoundError) -> str | None:
    """What to say where torch or one of its companions is not installed; None if a module of ours is missing."""
    missing = (error.name or "").partition(".")[0]
    if missing in ("", "detector", "maenas"):
        return None
    return f"this needs the package {missing}; install it with: pip install 'maenas[detector]'"


def exporter(seed: int) -> Callable[[Structure, Path], None]:
    """Writes the deployed detector of a structure as a user would, with random weights, for timings."""

    def export(structure: Structure, path: Path) -> None:
        model = bundled("reparam").deploy(bundled("standardise").random_detector(structure, seed))
        bundled("timing_export").export_for_timing(model, path)

    return export
