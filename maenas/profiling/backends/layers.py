"""What a backend says about one layer that it ran, and the ONNX nodes that the layer stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maenas.profiling.backends.model_file import Node


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One executed layer of a compiled network.

    Attributes:
        name: The backend's name of it; unique within the network.
        kind: The backend's name of what it does, such as `Convolution` or `ReorderOutput`.
        sources: Names of the ONNX nodes it stands for, in file order; empty for a layout reorder.
        inputs: Names of the layers that feed it.
        ms: Its time in a typical run.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    inputs: tuple[str, ...]
    ms: float


def typical_run(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean time per layer over the faster half of runs: of whole runs, so that the sum stays a run's time."""
    ranked = sorted(runs, key=lambda run: sum(run.values()))
    faster = ranked[: (len(ranked) + 1) // 2]
    return {name: sum(run.get(name, 0.0) for run in faster) / len(faster) for name in faster[0]}


def complete_sources(layers: Sequence[LayerTime], nodes: Sequence[Node]) -> tuple[LayerTime, ...]:
    """Add the nodes that a backend merged into a layer without saying so.

    A merged node ran with the node that feeds it (an activation with its convolution), with two exceptions: the
    sigmoid of x * sigmoid(x) runs with its multiplication, and a convolution under a layer that is a convolution by
    kind but names none (a folded normalisation kept the name) runs there. What only the images feed runs with what
    it feeds. A node may stand in several layers: a convolution and the addition of its bias, say.
    """
    producer = {tensor: node for node in nodes for tensor in node.outputs}
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for tensor in node.inputs:
            if tensor in producer:
                users.setdefault(producer[tensor].name, []).append(node)
    op_types = {node.name: node.op_type for node in nodes}
    owner = {source: index for index, layer in enumerate(layers) for source in layer.sources}
    added: dict[str, int] = {}
    for node in nodes:
        if node.name in owner or node.op_type == "Constant":
            continue
        fed = users.get(node.name, [])
        user = owner.get(fed[0].name) if len(fed) == 1 else None
        feeders = [
            owner[producer[tensor].name]
            for tensor in node.inputs
            if tensor in producer and producer[tensor].name in owner
        ]
        if user is not None and (_gate(node, fed[0]) or _lacks(layers[user], node.op_type, op_types)):
            added[node.name] = owner[node.name] = user
        elif feeders:
            added[node.name] = owner[node.name] = max(feeders)
    for node in reversed(nodes):
        owners = {owner[user.name] for user in users.get(node.name, []) if user.name in owner}
        if node.name not in owner and node.op_type != "Constant" and len(owners) == 1:
            added[node.name] = owner[node.name] = owners.pop()
    found: dict[int, set[str]] = {index: set(layer.sources) for index, layer in enumerate(layers)}
    for name, index in added.items():
        found[index].add(name)
    order = {node.name: position for position, node in enumerate(nodes)}
    return tuple(
        replace(layer, sources=tuple(sorted(found[index], key=order.__getitem__))) for index, layer in enumerate(layers)
    )


def _gate(node: Node, user: Node) -> bool:
    return node.op_type in ("Sigmoid", "HardSigmoid") and user.op_type == "Mul"


def _lacks(layer: LayerTime, op_type: str, op_types: Mapping[str, str]) -> bool:
    """Whether a layer is of this type of operator, but stands for none of it yet."""
    kinds = {op_type, f"Fused{op_type}"} | ({"Convolution"} if op_type == "Conv" else set())
    return layer.kind in kinds and all(op_types[name] != op_type for name in layer.sources)
