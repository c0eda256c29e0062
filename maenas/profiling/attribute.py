"""Layer times of a runtime, distributed over the operators of a network.

A runtime fuses several nodes into one layer, runs one node as several, and adds layers of its own that change the
layout of a map. Every millisecond goes to one operator, or is reported as unassigned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maenas.profiling.onnx_ops import PlacedOp

if TYPE_CHECKING:
    from maenas.profiling.backends.layers import LayerTime


@dataclass(frozen=True, slots=True)
class Attribution:
    """Times of operators, in milliseconds; `sum(ms) + unassigned_ms` is the sum of the layers.

    Attributes:
        ms: One per operator.
        free: Per operator, whether no layer is its own: it ran inside another's layer, or not at all.
        reorder_ms: Part of `ms` that comes from layers of the runtime's own, such as changes of layout.
        unassigned_ms: Layers that stand for unsupported nodes, or that are connected to no operator.
    """

    ms: tuple[float, ...]
    free: tuple[bool, ...]
    reorder_ms: float
    unassigned_ms: float


def attribute(
    placed: Sequence[PlacedOp], layers: Sequence[LayerTime], *, unsupported: Collection[str] = ()
) -> Attribution:
    """Distribute layer times over operators.

    A layer belongs to the operators whose first nodes it stands for: where convolutions are among them, to these alone,
    in proportion to their multiply-accumulates; else in proportion to the values that they read and write. A layer of
    folded nodes only (an activation that was not fused) belongs to the operators they are folded into. A layer that
    stands for no operator belongs to the one that it feeds, over any number of such layers; else to the one that
    feeds it.

    Args:
        placed: Operators of the network (`onnx_ops.read_onnx_ops`).
        layers: Layers of one run.
        unsupported: Names of nodes without an operator; their layers are left unassigned.
    """
    firsts = {each.nodes[0]: index for index, each in enumerate(placed)}
    owners = {name: index for index, each in enumerate(placed) for name in each.nodes}
    without = set(unsupported)
    takers: list[tuple[int, ...]] = []
    nameless: list[int] = []
    for position, layer in enumerate(layers):
        own = _distinct(firsts.get(name) for name in layer.sources)
        convs = tuple(index for index in own if placed[index].op.kind == "conv")
        takers.append(convs or own or _distinct(owners.get(name) for name in layer.sources))
        if not takers[-1] and without.isdisjoint(layer.sources):
            nameless.append(position)
    neighbours = _neighbours(layers, takers, set(nameless))
    found = {position: neighbours(position) for position in nameless}
    ms = [0.0] * len(placed)
    reorder_ms = unassigned_ms = 0.0
    for position, layer in enumerate(layers):
        indices = takers[position] or found.get(position, ())
        for index, share in zip(indices, _shares([placed[index] for index in indices]), strict=True):
            ms[index] += layer.ms * share
        if not indices:
            unassigned_ms += layer.ms
        elif position in found:
            reorder_ms += layer.ms
    owned = {index for indices in takers for index in indices}
    return Attribution(tuple(ms), tuple(index not in owned for index in range(len(placed))), reorder_ms, unassigned_ms)


def _distinct(found: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(index for index in found if index is not None))


def _shares(ops: Sequence[PlacedOp]) -> list[float]:
    """Parts of one layer's time, adding up to 1."""
    if any(each.op.kind == "conv" for each in ops):
        work = [float(each.op.macs) for each in ops]
    else:
        work = [float(each.op.in_elements + each.op.out_elements) for each in ops]
    total = sum(work)
    return [value / total for value in work]


def _neighbours(
    layers: Sequence[LayerTime], takers: Sequence[tuple[int, ...]], nameless: Collection[int]
) -> Callable[[int], tuple[int, ...]]:
    """A function from a layer of no operator to the operators of the nearest layer it feeds, else that feeds it."""
    places = {layer.name: position for position, layer in enumerate(layers)}
    feeders = [[places[name] for name in layer.inputs if name in places] for layer in layers]
    fed: list[list[int]] = [[] for _ in layers]
    for position, sources in enumerate(feeders):
        for source in sources:
            fed[source].append(position)

    def nearest(start: int, edges: Sequence[Sequence[int]]) -> tuple[int, ...]:
        seen, front = {start}, [start]
        while front:
            reached = dict.fromkeys(position for place in front for position in edges[place] if position not in seen)
            for position in reached:
                if takers[position]:
                    return takers[position]
            seen.update(reached)
            front = [position for position in reached if position in nameless]
        return ()

    return lambda position: nearest(position, fed) or nearest(position, feeders)
