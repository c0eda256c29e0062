"""Structures as official backbone files: the inverse of `maenas.official_import`, or an error that says why not."""

from __future__ import annotations

import json
import pprint
from collections.abc import Callable

from maenas.errors import StructureError
from maenas.official import DIALECTS, FORMS, STEM_CLASS, SUPER_CLASSES, OfficialBlock, OfficialStem
from maenas.official_import import MOB_KERNEL_SIZE, last_stages_by_stride, mob_hidden_channels
from maenas.structure import Stage, Structure

KIND_OF_FAMILY = {"res": "k1kx", "mob": "k1kx", "csp": "kxkx", "kxkx": "kxkx"}


def export_official(structure: Structure, *, form: str = "list", dialect: str = "v1") -> str:
    """Write a structure's backbone as an official file.

    Neck, head, activation, SPP of the last stage and image size are no part of these files. Importing the text with the
    structure itself as the recipe gives the same structure again.

    Args:
        structure: What to write.
        form: `list` (bare Python literal, the detector's files), `text` (search result as a Python literal) or `json`.
        dialect: `v1` (detector, stem `in` 3) or `v2` (current search tool, stem `in` 12 when its stride is 1).

    Raises:
        StructureError: The form cannot express the structure; the message says which field stands in the way.
        ValueError: An unknown form or dialect.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    if dialect not in DIALECTS:
        raise ValueError(f"dialect is {dialect!r}; expected one of {', '.join(DIALECTS)}")
    try:
        records = _records(structure, dialect)
    except StructureError as error:
        raise StructureError(f"{structure.name}: cannot be written as an official file: {error}") from None
    if form == "list":
        return pprint.pformat(records, width=120, sort_dicts=False) + "\n"
    result = {"space_arch": "CnnNet", "best_structures": [records]}
    if form == "text":
        return pprint.pformat(result, width=120, sort_dicts=False) + "\n"
    return json.dumps(result, indent=2) + "\n"


def _records(structure: Structure, dialect: str) -> list[dict[str, object]]:
    """The stem's and the blocks' records."""
    family = structure.backbone.family
    _check_common(structure)
    stem = _stem(structure, dialect)
    blocks = _BLOCK_WRITERS[family](structure)
    name = SUPER_CLASSES[dialect][KIND_OF_FAMILY[family]]
    records: list[dict[str, object]] = [
        {"class": STEM_CLASS, "in": stem.in_channels, "out": stem.out_channels, "s": stem.stride, "k": stem.kernel_size}
    ]
    for block in blocks:
        records.append(
            {
                "class": name,
                "in": block.in_channels,
                "out": block.out_channels,
                "s": block.stride,
                "k": block.kernel_size,
                "L": block.num_units,
                "btn": block.bottleneck_channels,
                "inner_class": name.removeprefix("Super"),
            }
        )
    return records


def _check_common(structure: Structure) -> None:
    """Refuse what no official file can say."""
    backbone = structure.backbone
    if backbone.stem.in_channels != 3:
        raise StructureError(f"backbone.stem.in_channels is {backbone.stem.in_channels}; expected 3")
    for index, stage in enumerate(backbone.stages):
        field = f"backbone.stages[{index}]"
        if stage.se:
            raise StructureError(f"{field}.se is true; expected false (official files have no such key)")
        if stage.spp and stage is not backbone.stages[-1]:
            raise StructureError(f"{field}.spp is true; expected SPP in the last stage only")
    expected = last_stages_by_stride(backbone.stem, list(backbone.stages))
    if backbone.out_stages != expected:
        shown = list(backbone.out_stages)
        raise StructureError(f"backbone.out_stages is {shown}; expected {list(expected)}, the last of each stride")


def _stem(structure: Structure, dialect: str) -> OfficialStem:
    stem = structure.backbone.stem
    plain = stem.kind == "conv"
    if plain and stem.stride != 2:
        raise StructureError(f"backbone.stem.stride is {stem.stride}; expected 2 for a stem without focus")
    # The nano wrapper forces the stride of a plain stem itself; its published files say 1.
    stride = 2 if plain and structure.backbone.family != "mob" else 1
    in_channels = 12 if dialect == "v2" and stride == 1 else 3
    return OfficialStem(in_channels, stem.out_channels, stem.kernel_size, stride)


def _plain_blocks(structure: Structure) -> list[OfficialBlock]:
    blocks: list[OfficialBlock] = []
    channels = structure.backbone.stem.out_channels
    for index, stage in enumerate(structure.backbone.stages):
        bottleneck = _only_width(stage.hidden_channels, index)
        out, kernel = stage.out_channels, stage.kernel_size
        blocks.append(OfficialBlock(channels, out, bottleneck, kernel, stage.stride, stage.depth))
        channels = out
    return blocks


def _mob_blocks(structure: Structure) -> list[OfficialBlock]:
    """`btn` is not read back by the nano wrapper; half the output width stands in for it."""
    blocks: list[OfficialBlock] = []
    channels = structure.backbone.stem.out_channels
    for index, stage in enumerate(structure.backbone.stages):
        field = f"backbone.stages[{index}]"
        expected = mob_hidden_channels(stage.out_channels, index + 1)
        if set(stage.hidden_channels) != {expected}:
            shown = list(stage.hidden_channels)
            why = f"expected {expected} in every unit, the width that the official nano wrapper computes"
            raise StructureError(f"{field}.hidden_channels is {shown}; {why}")
        if stage.kernel_size != MOB_KERNEL_SIZE:
            why = f"expected {MOB_KERNEL_SIZE}, which the official nano wrapper always uses"
            raise StructureError(f"{field}.kernel_size is {stage.kernel_size}; {why}")
        bottleneck = max(1, stage.out_channels // 2)
        blocks.append(OfficialBlock(channels, stage.out_channels, bottleneck, 3, stage.stride, stage.depth))
        channels = stage.out_channels
    return blocks


def _csp_blocks(structure: Structure) -> list[OfficialBlock]:
    """Four stages as five blocks: the third one is split into a stride-2 and a stride-1 block."""
    backbone = structure.backbone
    if len(backbone.stages) != 4:
        raise StructureError(f"backbone.stages is {len(backbone.stages)} stages; expected 4 for family csp")
    blocks: list[OfficialBlock] = []
    channels = backbone.stem.out_channels
    for index, stage in enumerate(backbone.stages):
        parts = _split(stage.hidden_channels) if index == 2 else (stage.hidden_channels,)
        for part, hidden in enumerate(parts):
            blocks.append(_csp_block(stage, channels, hidden, index, stride=2 if part == 0 else 1))
            channels = stage.out_channels
    return blocks


def _csp_block(stage: Stage, channels: int, hidden: tuple[int, ...], index: int, *, stride: int) -> OfficialBlock:
    """A block's record: a stride-2 one counts the down-sampler as a unit; its `btn` is free where no unit is left."""
    bottleneck = _only_width(hidden, index) if hidden else max(1, stage.out_channels // 2)
    num_units = len(hidden) + 1 if stride == 2 else len(hidden)
    return OfficialBlock(channels, stage.out_channels, bottleneck, stage.kernel_size, stride, num_units)


def _split(hidden: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the units of the third csp stage are cut: in the middle, or where the width changes."""
    if not hidden:
        raise StructureError("backbone.stages[2].hidden_channels is []; expected at least one unit for file block 4")
    changes = [at for at in range(1, len(hidden)) if hidden[at] != hidden[at - 1]]
    if len(changes) > 1:
        shown = list(hidden)
        raise StructureError(f"backbone.stages[2].hidden_channels is {shown}; expected at most two runs of one width")
    cut = changes[0] if changes else len(hidden) // 2
    return hidden[:cut], hidden[cut:]


def _only_width(hidden: tuple[int, ...], index: int) -> int:
    if len(set(hidden)) != 1:
        shown = list(hidden)
        raise StructureError(f"backbone.stages[{index}].hidden_channels is {shown}; expected one width for all units")
    return hidden[0]


_BLOCK_WRITERS: dict[str, Callable[[Structure], list[OfficialBlock]]] = {
    "res": _plain_blocks,
    "kxkx": _plain_blocks,
    "csp": _csp_blocks,
    "mob": _mob_blocks,
}
