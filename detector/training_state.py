"""The file that a run resumes from: tensors as safetensors, everything else as JSON in its header. Nothing executes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from maenas.files import write_bytes_atomically

from .errors import CheckpointError, reason_of

SCHEMA_VERSION = 1
METADATA_KEY = "maenas-training"
PARTS = ("learner", "ema", "optimizer", "rng")


@dataclass(frozen=True, slots=True)
class TrainingState:
    """A run between two steps.

    Attributes:
        tensors: Per part (see `PARTS`) tensors by name.
        record: Plain values: settings, digests, iteration, progress, bests, sums of the epoch under way.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    record: Mapping[str, Any]


def save_training_state(state: TrainingState, path: Path) -> None:
    """Write a state; an existing file stays whole until the new one is complete.

    Raises:
        OutputError: The file cannot be written.
    """
    from safetensors.torch import save

    flat = {
        f"{part}/{name}": value.detach().cpu().contiguous().clone()
        for part, tensors in state.tensors.items()
        for name, value in tensors.items()
    }
    record = json.dumps({"schema_version": SCHEMA_VERSION, **state.record})
    write_bytes_atomically(path, save(flat, metadata={METADATA_KEY: record}))


def load_training_state(path: Path) -> TrainingState:
    """Read a state, on the CPU.

    Raises:
        CheckpointError: No such file, truncated, no training state, or of another schema version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            flat = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a training state ({reason_of(error)})") from error
    try:
        record = json.loads(metadata[METADATA_KEY])
        version = record["schema_version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: is no training state of ours; expected the file of a run folder") from None
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema_version is {json.dumps(version)}; expected {SCHEMA_VERSION}")
    tensors: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, value in flat.items():
        part, _, name = key.partition("/")
        if part not in tensors:
            raise CheckpointError(f"{path}: holds {key!r}; expected names that begin with one of {', '.join(PARTS)}")
        tensors[part][name] = value
    return TrainingState(tensors, record)
