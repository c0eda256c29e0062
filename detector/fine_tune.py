"""Starting from trained weights: classes matched by name, parts that stay as they are, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from maenas.structure import Structure

from .backbone import Backbone
from .checkpoint import Checkpoint, is_merged, load_checkpoint
from .coco_names import COCO_NAMES
from .errors import CheckpointError, ConfigError
from .model import Detector

_CLASS_CONV = re.compile(r"head\.class_convs\.\d+\.(weight|bias)$")
_HEAD_LEVEL = re.compile(r"head\.([a-z_]+)\.(\d+)")
_FINE_LEVEL = re.compile(r"neck\.nodes\.merge_2\.|head\.[a-z_]+\.0(\.|$)")


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a network took over from a checkpoint.

    Attributes:
        matched_classes: Classes whose weights were copied.
        new_classes: Classes that start from initial weights.
    """

    matched_classes: tuple[str, ...]
    new_classes: tuple[str, ...]

    def notes(self, source: str) -> tuple[str, ...]:
        """For the user: which classes begin where."""
        if not self.matched_classes:
            return (f"weights: from {source}; its classes are not used, all {len(self.new_classes)} start anew",)
        new = f"; new: {', '.join(self.new_classes)}" if self.new_classes else ""
        return (f"weights: from {source}; classes taken over: {', '.join(self.matched_classes)}{new}",)


def read_weights(path: str | Path, structure: Structure) -> Checkpoint:
    """A checkpoint of ours, or the weights of an official .pth, which names no structure, read as the given one's.

    Raises:
        CheckpointError: The file cannot be read, or the official weights do not fit the structure.
    """
    if Path(path).suffix != ".pth":
        return load_checkpoint(path)
    from .convert_official import from_official, read_official

    state = read_official(path)
    bias = state.get("head.gfl_cls.0.bias")
    channels = structure.head.num_classes if bias is None else int(bias.numel())
    # A file trained with `legacy` has a background channel, which inference ignores.
    legacy = channels == len(COCO_NAMES) + 1
    num_classes = channels - int(legacy)
    fitted = replace(structure, head=replace(structure.head, num_classes=num_classes, background_class=False))
    model = from_official(state, fitted, source=str(path), drop_background=legacy)
    names = COCO_NAMES if num_classes == len(COCO_NAMES) else model.class_names
    return Checkpoint(fitted, model.state_dict(), tuple(names))


def transfer_weights(model: Detector, checkpoint: Checkpoint, *, source: str, class_head: str = "match") -> Transfer:
    """Copy a checkpoint's weights into a network of the same structure; only classes and image size may differ.

    A network may also have one level more, at stride 4, than the checkpoint: that level keeps its initial weights.

    Args:
        model: Keeps its initial weights for classes that the checkpoint does not know.
        checkpoint: Where the weights come from.
        source: File name for messages.
        class_head: `match` copies the class weights of every name that both have; `new` copies none.

    Raises:
        CheckpointError: The weights are merged for deployment, or belong to another structure.
    """
    if is_merged(checkpoint.weights):
        raise CheckpointError(
            f"{source}: its two-branch convolutions are merged for deployment; "
            "expected a checkpoint as training writes it"
        )
    own = model.state_dict()
    theirs = checkpoint.weights
    if len(model.strides) == len(checkpoint.structure.strides) + 1:
        theirs = {_one_level_on(key): value for key, value in theirs.items()}
        own = {key: value for key, value in own.items() if not _FINE_LEVEL.match(key)}
    _check_structure(model, own, theirs, checkpoint.structure, source)
    pairs: list[tuple[int, int]] = []
    if class_head == "match":
        places = {name: label for label, name in enumerate(checkpoint.class_names)}
        pairs = [(label, places[name]) for label, name in enumerate(model.class_names) if name in places]
        if model.structure.head.background_class and checkpoint.structure.head.background_class:
            pairs.append((model.num_classes, len(checkpoint.class_names)))
    with torch.no_grad():
        for key, value in theirs.items():
            if not _CLASS_CONV.match(key):
                own[key].copy_(value)
            elif pairs:
                to, come_from = (torch.tensor(side) for side in zip(*pairs, strict=True))
                own[key][to] = value[come_from].to(own[key].dtype)
    matched = {label for label, _ in pairs}
    names = list(enumerate(model.class_names))
    return Transfer(
        tuple(name for label, name in names if label in matched),
        tuple(name for label, name in names if label not in matched),
    )


def _one_level_on(key: str) -> str:
    """Name of a weight of the head's level n as one of level n + 1; other names stay."""
    return _HEAD_LEVEL.sub(lambda found: f"head.{found[1]}.{int(found[2]) + 1}", key)


def _check_structure(
    model: Detector, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], structure: Structure, source: str
) -> None:
    problems = [f"{key} is missing" for key in own if key not in theirs]
    problems += [f"{key} is unknown" for key in theirs if key not in own]
    problems += [
        f"{key} is {_shape(theirs[key])}, expected {_shape(value)}"
        for key, value in own.items()
        if key in theirs and not _same_shape(key, value, theirs[key])
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{source}: holds weights of structure {structure.digest} ({structure.name}), which "
            f"do not fit {model.structure.digest} ({model.structure.name}): {'; '.join(problems[:3])}{more}; give the "
            "checkpoint itself in place of a structure to train its own network"
        )


def _same_shape(key: str, own: Tensor, other: Tensor) -> bool:
    if _CLASS_CONV.match(key):
        return own.shape[1:] == other.shape[1:]
    return own.shape == other.shape


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def frozen_modules(model: Detector, parts: Sequence[str]) -> list[nn.Module]:
    """Modules of the named parts, which get no gradient from now on.

    Args:
        model: Changed in place.
        parts: `backbone`, `neck`, or `stage N` for the stem and the first N stages.

    Raises:
        ConfigError: The network has no such stage.
    """
    modules: list[nn.Module] = []
    for part in parts:
        modules += _stem_and_stages(model.backbone, part) if part.startswith("stage ") else [getattr(model, part)]
    for module in modules:
        module.requires_grad_(False)
    return modules


def _stem_and_stages(backbone: nn.Module, part: str) -> list[nn.Module]:
    number = int(part.removeprefix("stage "))
    stages = list(backbone.stages) if isinstance(backbone, Backbone) else []
    if number > len(stages):
        raise ConfigError(f"freeze is {part!r}; the network has {len(stages)} stages")
    assert isinstance(backbone, Backbone)
    return [backbone.stem, *stages[:number]]
