"""The layers of an exported network that int8 is about: its convolutions, each with the activation that follows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .artifact import ModelCard
from .export_precision import heavy_macs

_ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Clip", "Mul")
_COUNTED = ("Conv", "MaxPool")
_TAIL = "tail_"


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution.

    Attributes:
        name: Of its module in the detector, such as `neck.nodes.merge_3.block.conv1.conv`.
        node: Of its node in the graph.
        activations: Nodes that make its activation.
        macs: Multiply-accumulates of one run.
    """

    name: str
    node: str
    activations: tuple[str, ...]
    macs: int

    @property
    def nodes(self) -> tuple[str, ...]:
        """All its nodes."""
        return (self.node, *self.activations)


def find_layers(proto: Any, card: ModelCard) -> tuple[Layer, ...]:  # noqa: ANN401
    """The convolutions of a graph that `detector.export` wrote, in the order in which they run.

    Args:
        proto: The ONNX model.
        card: Of it.
    """
    graph = proto.graph
    macs = heavy_macs(proto, (card.batch or 1, card.input.shape[1] or 3, *card.image_size))
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers = []
    for node in graph.node:
        if node.op_type == "Conv":
            activations = _activations(readers.get(node.output[0], []), node.output[0], readers)
            layers.append(Layer(module_name(node.input[1]), node.name, activations, macs[node.name]))
    return tuple(layers)


def module_name(weight: str) -> str:
    """The module that a weight of a graph belongs to."""
    return weight.removeprefix("model.").removesuffix(".weight")


def count_operators(proto: Any) -> int:  # noqa: ANN401
    """Convolutions and max-pools, as the official lists number them."""
    return sum(node.op_type in _COUNTED for node in proto.graph.node)


def float_nodes(proto: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Nodes that are never quantised: what follows the head's maps, and what sorts pixels for the first convolution.

    Boxes and scores need more than 8 bits. The input is rounded once, behind the sorting of a focus stem, and not slice
    by slice.
    """
    slices = {output for node in proto.graph.node if node.op_type == "Slice" for output in node.output}
    found = [node.name for node in proto.graph.node if node.name.startswith(_TAIL) or node.op_type == "Slice"]
    sorts = [node for node in proto.graph.node if node.op_type == "Concat" and slices.issuperset(node.input)]
    return tuple(dict.fromkeys([*found, *(node.name for node in sorts)]))


def share_int8(layers: Sequence[Layer], higher: Collection[str]) -> float:
    """Part of the layers' multiply-accumulates that are in int8, where the layers named `higher` are not."""
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if layer.name not in higher) / max(total, 1)


def _activations(found: Sequence[Any], made: str, readers: dict[str, list[Any]]) -> tuple[str, ...]:
    """Nodes that turn a convolution's result into its activation: one, or a sigmoid and the product with it."""
    names = []
    for node in found:
        if node.op_type not in _ACTIVATIONS or node.name.startswith(_TAIL):
            continue
        if node.op_type != "Mul":
            names.append(node.name)
        products = [node] if node.op_type == "Mul" else readers.get(node.output[0], [])
        names += [product.name for product in products if product.op_type == "Mul" and made in product.input]
    return tuple(dict.fromkeys(names))
