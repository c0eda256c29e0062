"""Weights of the official models: one table from our names to theirs, read in both directions.

Names inside published models are confirmed against their key lists. Those of parts that no published model has
(projections, SE, towers) follow the same habits.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from maenas.errors import OutputError
from maenas.files import write_bytes_atomically
from maenas.structure import Structure

from .errors import CheckpointError, first_line
from .layers import ConvNormAct
from .model import Detector
from .reparam import fuse_reparam

Names = tuple[tuple[str, str], ...]


def _layer(ours: str, official: str, *, conv: str = "conv", norm: str = "bn") -> Names:
    """The names of one convolution with its batch norm."""
    return ((f"{ours}conv.", f"{official}{conv}."), (f"{ours}norm.", f"{official}{norm}."))


def _numbered(ours: str, official: str) -> Names:
    return _layer(ours, official, conv="conv1", norm="bn1")


def _rep_conv(ours: str, official: str) -> Names:
    return (
        *_layer(f"{ours}dense.", f"{official}rbr_dense."),
        *_layer(f"{ours}pointwise.", f"{official}rbr_1x1."),
        (f"{ours}fused.", f"{official}rbr_reparam."),
    )


def _inverted_residual(official: str, indices: tuple[int, int, int]) -> Names:
    """Convolutions by their index in the official sequence; each batch norm follows its convolution."""
    names: Names = ()
    for part, index in zip(("expand.", "depthwise.", "project."), indices, strict=True):
        names += _layer(part, official, conv=str(index), norm=str(index + 1))
    return names


_SPP = _layer("reduce.", "conv1.") + _layer("fuse.", "conv2.")
_SE: Names = (("se.reduce.", "conv.5.fc.0."), ("se.expand.", "conv.5.fc.2."))
_RESIDUAL = _numbered("conv1.", "conv1.") + _rep_conv("conv2.", "conv2.") + _numbered("projection.", "residual_proj.")
_CSP = (
    *_numbered("downsample.", "downsampler.conv."),
    *((f"spp.{ours}", f"spp.{official}") for ours, official in _SPP),
    *_numbered("start.", "conv_start.conv."),
    *_numbered("shortcut.", "conv_shortcut.conv."),
    *_numbered("fuse.", "conv_fuse.conv."),
)
# The official block calls its second convolution conv1 and its first conv2.
_REVERSE = _layer("last.", "conv1.") + _rep_conv("first.", "conv2.") + _layer("first.", "conv2.")
_FUSION = (*_layer("conv1.", "conv1."), *_layer("conv2.", "conv2."), *_layer("conv3.", "conv3."), *_layer("", ""))
_SEPARABLE: Names = (
    ("depthwise.conv.", "depthwise."),
    ("depthwise.norm.", "dwnorm."),
    ("pointwise.conv.", "pointwise."),
    ("pointwise.norm.", "pwnorm."),
)
_DOWN_EDGES = {
    "merge_3.down.b4": "bu_conv13",
    "merge_4.down.b3": "bu_conv24",
    "merge_7.down.merge_5": "bu_conv57",
    "merge_6.down.merge_4": "bu_conv46",
    "merge_6.down.merge_7": "bu_conv76",
}
_BLOCKS = _RESIDUAL + _SPP + _SE + _inverted_residual("conv.", (0, 3, 7))
_NECK_BLOCKS = _REVERSE + _inverted_residual("conv.conv.", (0, 3, 6))

TABLE: tuple[tuple[str, str, Names], ...] = (
    (r"backbone\.stem\.conv\.(?=conv|norm)", "backbone.{stages}.0.conv.", _layer("", "")),
    (r"backbone\.stem\.", "backbone.{stages}.0.conv.", _numbered("", "")),
    (r"backbone\.stages\.(?P<stage>\d+)\.blocks\.(\d+)\.", "backbone.{stages}.{stage}.block_list.{1}.", _BLOCKS),
    (r"backbone\.stages\.(?P<stage>\d+)\.units\.(\d+)\.", "backbone.{stages}.{stage}.convstem.{1}.", _RESIDUAL),
    (r"backbone\.stages\.(?P<stage>\d+)\.", "backbone.{stages}.{stage}.", _CSP),
    (r"neck\.nodes\.(?P<edge>\w+\.down\.\w+)\.(?=conv|norm)", "neck.{edge}.", _layer("", "")),
    (r"neck\.nodes\.(?P<edge>\w+\.down\.\w+)\.", "neck.{edge}.", _SEPARABLE),
    (r"neck\.nodes\.(\w+)\.block\.blocks\.(\d+)\.", "neck.{0}.convs.{1}.", _NECK_BLOCKS),
    (r"neck\.nodes\.(\w+)\.block\.", "neck.{0}.", _FUSION),
    (r"head\.class_towers\.(\d+)\.(\d+)\.", "head.cls_convs.{0}.{1}.", _layer("", "")),
    (r"head\.box_towers\.(\d+)\.(\d+)\.", "head.reg_convs.{0}.{1}.", _layer("", "")),
    (r"head\.class_convs\.", "head.gfl_cls.", (("", ""),)),
    (r"head\.box_convs\.", "head.gfl_reg.", (("", ""),)),
    (r"head\.scales\.(\d+)$", "head.scales.{0}.scale", (("", ""),)),
)
"""Our prefix (a pattern; the first that matches counts), the official one, and the names below it."""

_BINS = "head.integral.project"

CONTAINERS = ("ema", "model", "state_dict")
"""Where a file may keep its weights, the first that is there counts."""


def official_names(model: Detector) -> dict[str, str]:
    """Our state-dict keys to the official ones, in the official order; with or without merged branches.

    Raises:
        CheckpointError: The model is deployed (no official form has folded batch norms), or has a foreign backbone.
    """
    for name, module in model.named_modules():
        if isinstance(module, ConvNormAct) and module.conv.bias is not None:
            raise CheckpointError(f"{name}: its batch norm is folded; expected a model before deploy()")
    stages = "csp_stage" if model.structure.backbone.family == "csp" else "block_list"
    names = {key: _official_name(key, stages) for key in model.state_dict()}
    return dict(sorted(names.items(), key=_file_order(list(names.values()))))


def _official_name(key: str, stages: str) -> str:
    for pattern, template, table in TABLE:
        match = re.match(pattern, key)
        if match is None:
            continue
        fields = match.groupdict()
        if "stage" in fields:
            fields["stage"] = str(int(fields["stage"]) + 1)
        if "edge" in fields:
            fields["edge"] = _DOWN_EDGES[fields["edge"]]
        tail = key[match.end() :]
        for ours, official in table:
            if tail.startswith(ours):
                prefix = template.format(*match.groups(), stages=stages, **fields)
                return prefix + official + tail[len(ours) :]
    raise CheckpointError(f"{key}: has no official name; expected a backbone, neck and head built from a structure")


def _file_order(names: list[str]) -> Callable[[tuple[str, str]], tuple[int, bool]]:
    """Sort key: our order, but a depthwise-separable layer's two kernels come before its norms."""
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        first.setdefault(_separable(name) or name, position)

    def rank(item: tuple[str, str]) -> tuple[int, bool]:
        name = item[1]
        return first[_separable(name) or name], "norm." in name

    return rank


def _separable(name: str) -> str | None:
    match = re.match(r"neck\.bu_conv\d+\.(?=depthwise|pointwise|dwnorm|pwnorm)", name)
    return match.group() if match else None


def to_official(model: Detector) -> dict[str, Tensor]:
    """The state dict under official names, in official order; tensors are shared with the model, not copied.

    Raises:
        CheckpointError: As `official_names`.
    """
    state, official = model.state_dict(), {}
    for ours, name in official_names(model).items():
        if name.startswith("head.") and _BINS not in official:
            official[_BINS] = torch.arange(model.head.reg_max + 1, dtype=torch.float32)
        official[name] = state[ours]
    return official


def from_official(
    state: Mapping[str, Tensor], structure: Structure, *, source: str = "checkpoint", drop_background: bool = False
) -> Detector:
    """A detector with official weights, in evaluation mode.

    Args:
        state: Official state dict, as trained or with merged branches; keys may start with `module.`.
        structure: The network they belong to.
        source: File name for messages.
        drop_background: Leave out the background channel of a file trained with `legacy`, which inference ignores; the
            file must have one. Such a file also loads whole into a structure with `head.background_class`.

    Returns:
        A detector whose branches are merged if those of the file are.

    Raises:
        CheckpointError: Naming every key that is missing, too many, or of another shape.
    """
    state = _plain_keys(state, source)
    model = Detector(structure).eval()
    if any(".rbr_reparam." in key for key in state):
        model = fuse_reparam(model)
    if drop_background:
        state = _without_background(state, structure.head.num_classes, source)
    problems = _differences(state, to_official(model))
    if problems:
        problems = [*_class_problem(state, structure), *problems]
        raise CheckpointError(f"{source}: does not fit structure {structure.name!r}: {'; '.join(problems)}")
    names = official_names(model)
    model.load_state_dict({ours: state[name] for ours, name in names.items()}, strict=True)
    return model


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {', '.join(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {', '.join(unexpected)}")
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {', '.join(shapes)}")
    if not problems and not torch.equal(state[_BINS].float().cpu(), expected[_BINS]):
        problems.append(f"{_BINS} is {state[_BINS].tolist()}, expected 0, 1, ..., {len(expected[_BINS]) - 1}")
    return problems


def _class_channels(state: Mapping[str, Tensor]) -> int | None:
    """Channels of the file's class convolutions, a background channel included."""
    bias = state.get("head.gfl_cls.0.bias")
    return int(bias.numel()) if bias is not None and bias.dim() == 1 else None


def _without_background(state: Mapping[str, Tensor], num_classes: int, source: str) -> dict[str, Tensor]:
    channels = _class_channels(state)
    if channels != num_classes + 1:
        raise CheckpointError(
            f"{source}: has {channels} class channels; expected {num_classes + 1} "
            f"({num_classes} classes and the background channel to drop)"
        )
    return {key: value[:num_classes] if key.startswith("head.gfl_cls.") else value for key, value in state.items()}


def _class_problem(state: Mapping[str, Tensor], structure: Structure) -> list[str]:
    """What to change where the number of classes does not fit."""
    channels, head = _class_channels(state), structure.head
    if channels is None or channels == head.num_classes + head.background_class:
        return []
    if channels == head.num_classes + 1:
        return [
            "one class channel too many: a file trained with legacy keeps a background channel; set "
            "head.background_class in the structure, or leave it out with drop_background (--drop-background); "
            f"if it is a class, set head.num_classes to {channels} (--num-classes {channels})"
        ]
    if channels == head.num_classes and head.background_class:
        return [f"the file has {channels} class channels and no background: unset head.background_class"]
    classes = channels - head.background_class
    return [
        f"the file has {classes} classes, the structure {head.num_classes}; "
        f"expected head.num_classes {classes} (--num-classes {classes})"
    ]


def _plain_keys(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Without the prefix that parallel training puts before every key."""
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: {key!r} is {type(value).__name__}; expected a tensor under a text key")
        name = key.removeprefix("module.")
        if name in plain:
            raise CheckpointError(f"{source}: {name} occurs twice, with and without the prefix module.")
        plain[name] = value
    return plain


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The weights in an official file, on the CPU: a bare state dict or a dict that holds one.

    The published files hold averaged weights as `model`; of a file that keeps both, the averaged ones (`ema`) are read.
    Only tensors and plain values are ever unpickled.

    Raises:
        CheckpointError: The file cannot be read, holds anything else, or would run code.
    """
    # Newer torch would read such a file by its suffix.
    if _is_safetensors(path):
        raise CheckpointError(
            f"{path}: is a safetensors file; expected an official checkpoint (.pth); "
            "the way back is maenas convert weights --to official"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged pickles fail in the reader in many ways, none of them ours.
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot be read as weights ({first_line(error)}); expected tensors only"
        ) from error
    if isinstance(content, Mapping):
        held = [content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        content = held[0] if held else content
    if not isinstance(content, Mapping) or not content:
        places = ", ".join(map(repr, CONTAINERS))
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}; expected a state dict, bare or under one of {places}"
        )
    return _plain_keys(content, str(path))


def _is_safetensors(path: str | Path) -> bool:
    """Whether it begins with the length of a header, eight bytes, and then JSON."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(9)
            return start[8:] == b"{" and int.from_bytes(start[:8], "little") < Path(path).stat().st_size
    except OSError:
        return False


def load_official(path: str | Path, structure: Structure, *, drop_background: bool = False) -> Detector:
    """A detector with the weights of an official file; see `read_official` and `from_official`.

    Raises:
        CheckpointError: The file cannot be read or does not fit the structure.
    """
    return from_official(read_official(path), structure, source=str(path), drop_background=drop_background)


def save_official(model: Detector, path: str | Path) -> None:
    """Write an official file, `{"model": state dict}`; the old one stays whole until the new one is complete.

    Raises:
        CheckpointError: The model has no official form, or the file cannot be written.
    """
    path = Path(path)
    state = {key: value.detach().cpu() for key, value in to_official(model).items()}
    content = io.BytesIO()
    torch.save({"model": state}, content)
    try:
        write_bytes_atomically(path, content.getvalue())
    except OutputError as error:
        raise CheckpointError(str(error)) from error
