"""Errors that a user of the detector can cause; each is a `MaenasError`, so the command line prints it as one line."""

from __future__ import annotations

from maenas.errors import MaenasError, MissingExtraError

__all__ = ["CheckpointError", "ExportError", "InputError", "MissingExtraError"]


class CheckpointError(MaenasError, ValueError):
    """Weights that cannot be read, are no weights, or belong to another network."""


class InputError(MaenasError, ValueError):
    """Images or feature maps that a network cannot take."""


class ExportError(MaenasError, ValueError):
    """An exported file that cannot be made, read, or trusted to compute what the network does."""
