"""Our checkpoint: one safetensors file whose header also holds what the weights belong to, as JSON.

Nothing in it can be executed; a reader needs the file alone to rebuild the network. Written through a temporary file
and a rename, and checked on load against the structure it names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maenas.files import write_bytes_atomically
from maenas.structure import Structure, structure_from_dict

from .errors import CheckpointError, reason_of
from .model import Detector
from .reparam import fuse_reparam

SCHEMA_VERSION = 1
METADATA_KEY = "maenas"
PREPROCESSING: dict[str, Any] = {"channels": "RGB", "range": [0, 255], "mean": [0, 0, 0], "std": [1, 1, 1]}
"""What the published networks expect of their input: no normalisation at all."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights and what they belong to.

    Attributes:
        structure: The network.
        weights: State dict of a `Detector` of that structure before `deploy`; two-branch convolutions may be merged.
        class_names: One name per class, in label order.
        preprocessing: Channel order, value range, mean and std of the input.
        metrics: Figures of the training run, such as AP.
        provenance: Where the weights come from: recipe, data set, version, parent checkpoint.
    """

    structure: Structure
    weights: Mapping[str, Tensor]
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any] = field(default_factory=lambda: dict(PREPROCESSING))
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = self.structure.head.num_classes
        if len(self.class_names) != wanted:
            raise CheckpointError(f"class_names has {len(self.class_names)} entries; expected {wanted}, as num_classes")

    def build(self) -> Detector:
        """The network with these weights, in evaluation mode.

        Raises:
            CheckpointError: The weights do not fit the structure; every key that does not is named.
        """
        model = _network(self.structure, self.weights, class_names=self.class_names)
        check_weights(model, self.weights, source="checkpoint")
        model.load_state_dict(dict(self.weights))
        return model.eval()


def is_merged(weights: Iterable[str]) -> bool:
    """Whether weights of these names belong to a network after `fuse_reparam`."""
    return any(".fused." in key for key in weights)


def _network(structure: Structure, weights: Iterable[str], *, class_names: tuple[str, ...] | None = None) -> Detector:
    """The network in the form, with two branches or merged ones, that weights of these names are for."""
    model = Detector(structure, class_names=class_names)
    return fuse_reparam(model) if is_merged(weights) else model


def check_weights(model: Detector, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Compare names and shapes with the network's own.

    Raises:
        CheckpointError: Naming the missing, unknown and misshapen keys.
    """
    own = model.state_dict()
    if _is_foreign(own, weights):
        raise CheckpointError(
            f"{source}: the weights have a backbone that is not the one of structure {model.structure.digest}; "
            "a detector with a backbone of its own has no checkpoint, because the structure cannot rebuild it: "
            "keep its state dict with torch.save"
        )
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in own]
    for key, value in weights.items():
        if key in own and value.shape != own[key].shape:
            problems.append(f"{key} is {tuple(value.shape)}, expected {tuple(own[key].shape)}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{source}: the weights do not fit structure {model.structure.digest}: {shown}")


def _is_foreign(own: Iterable[str], weights: Iterable[str]) -> bool:
    """Whether there is a backbone that shares no name with the structure's."""
    backbone = {key for key in weights if key.startswith("backbone.")}
    return bool(backbone) and backbone.isdisjoint(own)


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint; an existing file stays whole until the new one is complete.

    Raises:
        CheckpointError: The weights do not fit the structure, or a record is no plain JSON.
        OutputError: The file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    with torch.device("meta"):
        empty = _network(checkpoint.structure, checkpoint.weights)
    check_weights(empty, checkpoint.weights, source=str(path))
    record = {
        "schema_version": SCHEMA_VERSION,
        "structure": checkpoint.structure.to_dict(),
        "class_names": list(checkpoint.class_names),
        "image_size": list(checkpoint.structure.image_size),
        "preprocessing": dict(checkpoint.preprocessing),
        "metrics": dict(checkpoint.metrics),
        "provenance": dict(checkpoint.provenance),
    }
    try:
        text = json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: metrics and provenance must be plain JSON ({error})") from error
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in checkpoint.weights.items()}
    write_bytes_atomically(path, save(tensors, metadata={METADATA_KEY: text}))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: No such file, truncated, not ours, of another schema version, or not fitting its own structure.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            weights = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason_of(error)})") from error
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path}: is a safetensors file, but no checkpoint of ours: its header lacks {METADATA_KEY!r}"
        )
    record = _record(path, metadata[METADATA_KEY])
    structure = structure_from_dict(record["structure"], source=f"{path}: structure")
    checkpoint = Checkpoint(
        structure=structure,
        weights=weights,
        class_names=tuple(str(name) for name in record["class_names"]),
        preprocessing=record["preprocessing"],
        metrics=record["metrics"],
        provenance=record["provenance"],
    )
    with torch.device("meta"):
        empty = _network(structure, weights)
    check_weights(empty, weights, source=str(path))
    return checkpoint


def _record(path: str | Path, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header {METADATA_KEY!r} is not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: header {METADATA_KEY!r} is {type(record).__name__}; expected an object")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema_version is {json.dumps(version)}; expected {SCHEMA_VERSION}")
    kinds = {"structure": dict, "class_names": list, "preprocessing": dict, "metrics": dict, "provenance": dict}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            expected = "a list" if kind is list else "an object"
            raise CheckpointError(f"{path}: {name} is {json.dumps(record.get(name))[:60]}; expected {expected}")
    return record
