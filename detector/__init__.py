"""The detector package of maenas (network, training, deployment): bundled, not to be confused with a user's own.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from .load import load_predictor
    from .model import Detector, build_detector
    from .reparam import deploy
    from .types import Detections

__bundled_by__ = "maenas"
__all__ = [
    "Checkpoint",
    "Detections",
    "Detector",
    "build_detector",
    "deploy",
    "load_checkpoint",
    "load_predictor",
    "save_checkpoint",
]

_PLACES = {
    "Checkpoint": "checkpoint",
    "Detections": "types",
    "Detector": "model",
    "build_detector": "model",
    "deploy": "reparam",
    "load_checkpoint": "checkpoint",
    "load_predictor": "load",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
