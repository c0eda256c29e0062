"""The published lists of layers that were left in higher precision, by the names of our modules.

Source: the partial quantisation tool of the official DAMO-YOLO repository, which numbers the convolutions and max-pools
of the fused network in the order of its modules (T has 80, S 86, M 114) and lists those that are quantised:

- T: 0-23 and 74-79, that is all but the neck.
- S: all but 31, 41, 49, 51, 59, 61, 69, 71 and 79.
- M: 0-4, 6-14, 16-32, 34-45, 47 and 108-113, that is all but the neck and the shortcuts of its four CSP stages.

Published AP on COCO of float and partial int8: T 43.0 and 42.7, S 46.8 and 46.5 (33.6 with all layers in int8), M 50.0
and 49.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ExportError
from .quantise_layers import Layer


@dataclass(frozen=True, slots=True)
class Preset:
    """Layers that one published network leaves in higher precision.

    Attributes:
        operators: Convolutions and max-pools of that network.
        numbers: Official numbers of those in higher precision.
        modules: Modules of ours that hold exactly these.
    """

    operators: int
    numbers: tuple[int, ...]
    modules: tuple[str, ...]


PRESETS = {
    "official-t": Preset(80, tuple(range(24, 74)), ("neck",)),
    "official-s": Preset(
        86,
        (31, 41, 49, 51, 59, 61, 69, 71, 79),
        (
            "neck.nodes.merge_3.block.conv1",
            "neck.nodes.merge_4.block.conv1",
            "neck.nodes.merge_4.block.conv3",
            "neck.nodes.merge_5.block.conv2",
            "neck.nodes.merge_7.down.merge_5",
            "neck.nodes.merge_7.block.conv2",
            "neck.nodes.merge_6.down.merge_4",
            "neck.nodes.merge_6.block.conv1",
            "neck.nodes.merge_6.block.conv3",
        ),
    ),
    "official-m": Preset(
        114,
        (5, 15, 33, 46, *range(48, 108)),
        ("neck", *(f"backbone.stages.{index}.shortcut" for index in range(4))),
    ),
}


def preset_layers(name: str, layers: Sequence[Layer], *, operators: int) -> tuple[str, ...]:
    """Names of the layers that a preset leaves in higher precision.

    Args:
        name: In `PRESETS`.
        layers: Of the network.
        operators: Its convolutions and max-pools.

    Raises:
        ExportError: The preset is for another network.
    """
    preset = PRESETS[name]
    missing = [module for module in preset.modules if not any(_within(layer.name, module) for layer in layers)]
    if operators != preset.operators or missing:
        without = f" and no {missing[0]}" if missing else ""
        raise ExportError(
            f"int8 layers are {name!r}, for a network of {preset.operators} convolutions and max-pools; this one has "
            f"{operators}{without}: expected auto"
        )
    return tuple(layer.name for layer in layers if any(_within(layer.name, module) for module in preset.modules))


def _within(layer: str, module: str) -> bool:
    return layer == module or layer.startswith(f"{module}.")
