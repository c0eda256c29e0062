"""Errors that a user of the detector can cause; each is a `MaenasError`, so the command line prints it as one line."""

from __future__ import annotations

from maenas.errors import MaenasError, MissingExtraError, did_you_mean, first_line, reason_of

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "InputError",
    "MissingExtraError",
    "TrainingError",
    "did_you_mean",
    "first_line",
    "reason_of",
]


class CheckpointError(MaenasError, ValueError):
    """Weights that cannot be read, are no weights, or belong to another network."""


class InputError(MaenasError, ValueError):
    """Images or feature maps that a network cannot take."""


class ExportError(MaenasError, ValueError):
    """An exported file that cannot be made, read, or trusted to compute what the network does."""


class DataError(MaenasError, ValueError):
    """A data set, label file or image that cannot be trained on or evaluated with."""


class ConfigError(MaenasError, ValueError):
    """Training settings that are malformed or contradict each other."""


class TrainingError(MaenasError, RuntimeError):
    """A training run that cannot go on: diverged, in use by another process, or not resumable as asked."""
