"""Random structures of a search space, spread over its sizes rather than over its number of members."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from maenas.errors import SpaceError
from maenas.lowering.backbone import lower_backbone
from maenas.lowering.costs import num_flops, num_layers
from maenas.lowering.detector import lower
from maenas.space_parts import Integers, StageSpace
from maenas.spaces import Choice, SearchSpace
from maenas.structure import Structure

ATTEMPTS = 400
"""Draws per structure asked for, before giving up."""


def random_structures(
    space: SearchSpace, count: int, *, seed: int, max_flops: float | None = None
) -> Iterator[Structure]:
    """Different structures of a space, over all its variants in turn.

    Widths are drawn log-uniformly between what the choices before them leave, depths uniformly.

    Args:
        space: Where to draw from.
        count: How many.
        seed: Equal seeds give equal structures.
        max_flops: Leave out detectors with more FLOPs (2 x MACs) than that.

    Raises:
        SpaceError: Too few structures fit the limits of the space and `max_flops`.
    """
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    for _ in range(ATTEMPTS * count):
        if len(seen) == count:
            return
        variant = space.variants[len(seen) % len(space.variants)]
        choice = _draw(space, space.stem_of(variant).out_channels.values, rng)
        if choice is None:
            continue
        structure = space.structure(choice, variant)
        structure = space.structure(choice, variant, name=f"{space.name}-{structure.digest}")
        layers = num_layers(lower_backbone(structure.backbone, space.image_size))
        if space.max_layers is not None and layers > space.max_layers:
            continue
        if max_flops is not None and num_flops(lower(structure)) > max_flops:
            continue
        if structure.digest not in seen:
            seen.add(structure.digest)
            yield structure
    if len(seen) < count:
        limit = "" if max_flops is None else f" and {max_flops / 1e9:.3g} GFLOPs"
        raise SpaceError(
            f"space {space.name} gave {len(seen)} of {count} random structures within its limits{limit}; "
            "expected a space, or a limit, that holds more"
        )


def _draw(space: SearchSpace, stems: Integers, rng: np.random.Generator) -> Choice | None:
    """One choice, or None where the widths drawn first leave nothing for a later stage."""
    channels = stem = _log_uniform(stems, rng)
    outs, hiddens, depths, kernels = [], [], [], []
    for stage in space.stages:
        widths = _widths_after(stage, channels)
        if not widths.size:
            return None
        channels = _log_uniform(widths, rng)
        low, high = stage.hidden_bounds(np.array([channels]))
        values = stage.hidden_channels.values
        outs.append(channels)
        hiddens.append(_log_uniform(values[(values >= low[0]) & (values <= high[0])], rng))
        depths.append(int(rng.choice(stage.depth.values)))
        kernels.append(int(rng.choice(stage.kernel_sizes)))
    return Choice(stem, tuple(outs), tuple(hiddens), tuple(depths), tuple(kernels))


def _widths_after(stage: StageSpace, channels: int) -> Integers:
    """Output widths of a stage that its growth allows and that leave it a hidden width."""
    widths = stage.out_channels.values
    growth = widths / channels
    widths = widths[(growth >= stage.min_growth) & (growth <= stage.max_growth)]
    low, high = stage.hidden_bounds(widths)
    hidden = stage.hidden_channels.values
    first = np.searchsorted(hidden, low)
    usable: Integers = widths[(first < len(hidden)) & (hidden[np.minimum(first, len(hidden) - 1)] <= high)]
    return usable


def _log_uniform(values: Integers, rng: np.random.Generator) -> int:
    """One of ascending values: the nearest to a log-uniform draw between the first and the last."""
    low, high = np.log(values[0]), np.log(values[-1])
    return int(values[np.abs(np.log(values) - rng.uniform(low, high)).argmin()])
