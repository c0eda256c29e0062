"""Official backbone files as structures: what the detector's wrappers imply is resolved once, here.

An official file describes a backbone only. Image size, activation, SPP, the nano stem, neck and head come from a
recipe: a published structure, or any structure of your own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from maenas.errors import StructureError
from maenas.lowering.neck import round_to_8
from maenas.official import OfficialBlock, OfficialNetwork, network_from_content, read_content
from maenas.published import load_published
from maenas.structure import Backbone, Stage, Stem, Structure

FAMILIES_OF_KIND = {"k1kx": ("res", "mob"), "kxkx": ("csp", "kxkx")}
"""Readings of a file by its block kind; the first is the default."""

DEFAULT_RECIPES = {"res": "damo-yolo-s", "csp": "damo-yolo-m", "kxkx": "damo-yolo-m", "mob": "damo-yolo-ns"}
CSP_STRIDES = (2, 2, 2, 1, 2)
MOB_KERNEL_SIZE = 5
FOCUS_CHANNELS = (3, 12)
"""A focus stem's `in`: the detector's files say 3 and multiply by four, searched files say 12."""


def import_official(
    path: str | Path, *, family: str | None = None, recipe: str | Structure | None = None, index: int = 0
) -> Structure:
    """Read an official backbone file as a whole detector.

    Args:
        path: File of any official form and dialect; its stem becomes the structure's name.
        family: `res` (default) or `mob` for k1kx files, `csp` (default) or `kxkx` for kxkx files.
        recipe: Published name or structure that gives everything but the backbone's layers: image size, activation,
            SPP in the last stage, focus or plain stem (mob only), neck and head. Neck outputs follow the imported
            backbone unless the recipe narrows them. Default: DEFAULT_RECIPES.
        index: Which entry of `best_structures`.

    Raises:
        StructureError: Naming file, entry, key, value and what was expected.
    """
    return structure_from_content(read_content(path), source=str(path), family=family, recipe=recipe, index=index)


def structure_from_content(
    content: object,
    *,
    source: str,
    family: str | None = None,
    recipe: str | Structure | None = None,
    index: int = 0,
) -> Structure:
    """`import_official` for content that `maenas.official.read_content` has parsed; the same errors."""
    network = network_from_content(content, source=source, index=index)
    choices = FAMILIES_OF_KIND[network.kind]
    family = choices[0] if family is None else family
    if family not in choices:
        message = f"family is {family}; expected {' or '.join(choices)} for a file of {network.kind} blocks"
        raise StructureError(f"{network.source}: {message}")
    if not isinstance(recipe, Structure):
        recipe = load_published(recipe or DEFAULT_RECIPES[family])
    return _assemble(network, family, recipe, _name(source, index))


def import_reference(path: str | Path, *, index: int = 0) -> Structure:
    """Read a file layer by layer, as the reference search tool costs it (`maenas.lowering.reference`).

    Returns:
        A structure of family res or kxkx at 640x640 (the stem's convolution at 320x320) without SPP; neck and head are
        the default recipe's and no part of the reference graph.

    Raises:
        StructureError: As `import_official`.
    """
    return reference_from_content(read_content(path), source=str(path), index=index)


def reference_from_content(content: object, *, source: str, index: int = 0) -> Structure:
    """The same for a file that has been read already."""
    network = network_from_content(content, source=source, index=index)
    family = "res" if network.kind == "k1kx" else "kxkx"
    recipe = load_published("damo-yolo-s")
    *stages, last = recipe.backbone.stages
    stages.append(dataclasses.replace(last, spp=False))
    recipe = dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, stages=tuple(stages)))
    return _assemble(network, family, recipe, _name(source, index))


def _name(source: str, index: int) -> str:
    stem = Path(source).stem
    return f"{stem}-{index}" if index else stem


def _assemble(network: OfficialNetwork, family: str, recipe: Structure, name: str) -> Structure:
    """The network in the recipe's detector; the structure's own checks get the file's name in front."""
    try:
        backbone = _backbone(network, family, recipe.backbone)
        neck = recipe.neck
        if neck.out_channels == recipe.backbone.out_channels:
            neck = dataclasses.replace(neck, out_channels=backbone.out_channels)
        return Structure(name, recipe.image_size, backbone, neck, recipe.head)
    except ValueError as error:
        raise StructureError(f"{network.source}: {error}") from None


def _backbone(network: OfficialNetwork, family: str, recipe: Backbone) -> Backbone:
    stages = _STAGE_READERS[family](network)
    if recipe.stages[-1].spp:
        stages[-1] = dataclasses.replace(stages[-1], spp=True)
    stem = _mob_stem(network, recipe.stem) if family == "mob" else _plain_stem(network)
    return Backbone(family, recipe.activation, stem, tuple(stages), last_stages_by_stride(stem, stages))


def last_stages_by_stride(stem: Stem, stages: list[Stage]) -> tuple[int, int, int]:
    """The last stages (counted from 1) at strides 8, 16 and 32: what the official wrappers hand to the neck.

    Raises:
        StructureError: A stride does not occur.
    """
    stride, last = stem.total_stride, {}
    for number, stage in enumerate(stages, start=1):
        stride *= stage.stride
        last[stride] = number
    if not {8, 16, 32} <= last.keys():
        found = ", ".join(str(stride) for stride in last)
        raise StructureError(f"s gives strides {found} after the blocks; expected 8, 16 and 32 among them")
    return last[8], last[16], last[32]


def _plain_stem(network: OfficialNetwork) -> Stem:
    """Stride 1 means a focus stem on a 3-channel image; stride 2 a plain convolution (classification nets)."""
    stem = network.stem
    if stem.stride == 1 and stem.in_channels in FOCUS_CHANNELS:
        return Stem("focus", 3, stem.out_channels, stem.kernel_size, 1)
    if stem.stride == 2 and stem.in_channels == 3:
        return Stem("conv", 3, stem.out_channels, stem.kernel_size, 2)
    expected = "3 or 12 with s 1 (a focus stem), 3 with s 2"
    raise StructureError(f"entry 0: in is {stem.in_channels} with s {stem.stride}; expected {expected}")


def _mob_stem(network: OfficialNetwork, recipe: Stem) -> Stem:
    """The nano wrapper forces 3 channels and stride 2, whatever the file says, unless the recipe has a focus stem."""
    if recipe.kind == "focus":
        return _plain_stem(network)
    return Stem("conv", 3, network.stem.out_channels, network.stem.kernel_size, 2)


def _plain_stages(network: OfficialNetwork) -> list[Stage]:
    """One stage per super-block, as written."""
    return [
        Stage(block.out_channels, (block.bottleneck_channels,) * block.num_units, block.stride, block.kernel_size)
        for block in network.blocks
    ]


def _csp_stages(network: OfficialNetwork) -> list[Stage]:
    """Blocks 3 and 4 become one stage of block 3's width; the down-sampler takes the place of a stride-2 unit."""
    strides = tuple(block.stride for block in network.blocks)
    if strides != CSP_STRIDES:
        raise StructureError(f"s of the blocks is {strides}; expected {CSP_STRIDES} for family csp")
    first, second, third, fourth, fifth = network.blocks
    stages = []
    for blocks in ((first,), (second,), (third, fourth), (fifth,)):
        hidden = tuple(block.bottleneck_channels for block in blocks for _ in range(_num_csp_units(block)))
        stages.append(Stage(blocks[0].out_channels, hidden, 2, blocks[0].kernel_size))
    if third.kernel_size != fourth.kernel_size:
        raise StructureError(f"entry 4: k is {fourth.kernel_size}; expected {third.kernel_size} as in entry 3 (csp)")
    return stages


def _num_csp_units(block: OfficialBlock) -> int:
    return block.num_units - 1 if block.stride == 2 else block.num_units


def _mob_stages(network: OfficialNetwork) -> list[Stage]:
    """Depthwise inverted residuals: btn and k are not read, the expansion follows the position of the block."""
    return [
        Stage(
            block.out_channels,
            (mob_hidden_channels(block.out_channels, number),) * block.num_units,
            block.stride,
            MOB_KERNEL_SIZE,
        )
        for number, block in enumerate(network.blocks, start=1)
    ]


def mob_hidden_channels(out_channels: int, number: int) -> int:
    """Hidden width of the nano wrapper's units: 3.5 times the output in block 1, 0.5 more in each following one."""
    hidden = round_to_8(math.ceil((3.5 + 0.5 * (number - 1)) * out_channels))
    assert isinstance(hidden, int)
    return hidden


_STAGE_READERS: dict[str, Callable[[OfficialNetwork], list[Stage]]] = {
    "res": _plain_stages,
    "kxkx": _plain_stages,
    "csp": _csp_stages,
    "mob": _mob_stages,
}
