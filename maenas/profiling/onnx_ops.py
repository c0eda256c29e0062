"""From an ONNX graph to the operators of `maenas.lowering`, each with the nodes it stands for.

For a detector that this project exported the list is that of `lower(structure)`. Other networks get the nearest
operators there are, marked as not exact, so that a table can say something about them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maenas.lowering.op import Op
from maenas.profiling.onnx_graph import Graph, GraphNode, Shape, read_graph
from maenas.profiling.onnx_nodes import (
    ACTIVATIONS,
    CONVS,
    EXCITES,
    FREE,
    GATE_NODES,
    GATES,
    SQUEEZES,
    convolution_of,
    matrix_size,
    single_op,
)


@dataclass(frozen=True, slots=True)
class PlacedOp:
    """An operator and the nodes that it stands for.

    Attributes:
        op: The operator; channels are plain numbers, count 1, named after its first node.
        nodes: Names of its nodes. The first does the work (a convolution); the others, in file order, are folded into
            it (batch norm, activation, residual addition).
        exact: Whether the operator is the one that the nodes compute, and not the nearest to it.
        note: What was approximated, or empty.
        quantised: Whether the first node computes in whole numbers.
    """

    op: Op
    nodes: tuple[str, ...]
    exact: bool
    note: str
    quantised: bool = False


@dataclass(frozen=True, slots=True)
class NetworkOps:
    """Every node of a graph is in exactly one of the three.

    Attributes:
        placed: Operators, in the order of their first nodes.
        free: Names of nodes that cost nothing of their own: constants, views, changes of layout.
        unsupported: Nodes for which there is no operator, as `type name`.
    """

    placed: tuple[PlacedOp, ...]
    free: tuple[str, ...]
    unsupported: tuple[str, ...]


def read_onnx_ops(model: Any, *, image_size: tuple[int, int] | None = None) -> list[PlacedOp]:  # noqa: ANN401
    """The operators of a network; see `read_network_ops`, which also lists the other nodes."""
    return list(read_network_ops(model, image_size=image_size).placed)


def read_network_ops(model: Any, *, image_size: tuple[int, int] | None = None) -> NetworkOps:  # noqa: ANN401
    """All nodes of a network, sorted into operators, free nodes and unsupported ones.

    Args:
        model: Path of an ONNX file, or an ONNX ModelProto.
        image_size: (height, width) for a network whose sides are free.

    Raises:
        ProfileError: The file cannot be read, or its image size is free and not given.
        MissingExtraError: The package onnx is not installed.
    """
    reader = _Reader(read_graph(model, image_size=image_size))
    reader.free_nodes()
    reader.gates()
    reader.convolutions()
    reader.residuals()
    reader.others()
    return reader.result()


@dataclass(slots=True)
class _Draft:
    """An operator while its nodes are gathered; `tail` is the tensor it ends with."""

    op: Op
    nodes: list[GraphNode]
    tail: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Activation:
    name: str
    nodes: tuple[GraphNode, ...]
    tail: str
    note: str


class _Reader:
    """Claims nodes for operators, one pattern after the other."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.drafts: list[_Draft] = []
        self.claimed: set[int] = set()
        self.free: list[GraphNode] = []
        self.unsupported: list[GraphNode] = []
        self.depths: dict[str, int] = {}
        for node in graph.nodes:
            depth = 1 + max((self.depths.get(tensor, 0) for tensor in node.inputs), default=0)
            self.depths.update(dict.fromkeys(node.outputs, depth))

    def result(self) -> NetworkOps:
        placed = []
        for draft in sorted(self.drafts, key=lambda draft: draft.nodes[0].index):
            first, *rest = draft.nodes
            # A quantised node may stand for several plain ones.
            names = dict.fromkeys((first.name, *(node.name for node in sorted(rest, key=lambda node: node.index))))
            notes = "; ".join(dict.fromkeys(draft.notes))
            op = replace(draft.op, name=first.name)
            placed.append(PlacedOp(op, tuple(names), not notes, notes, first.quantised))
        taken = {name for each in placed for name in each.nodes}
        return NetworkOps(
            tuple(placed),
            tuple(dict.fromkeys(node.name for node in self.free if node.name not in taken)),
            tuple(f"{node.op_type} {node.name}" for node in self.unsupported),
        )

    def shape(self, tensor: str) -> Shape | None:
        return self.graph.shapes.get(tensor)

    def left(self, node: GraphNode | None) -> bool:
        return node is not None and node.index not in self.claimed

    def claim(self, op: Op, nodes: Sequence[GraphNode], tail: str, *notes: str) -> _Draft:
        """Add an operator; `nodes` begin with the one that does the work."""
        draft = _Draft(op, list(nodes), tail, [note for note in notes if note])
        self.drafts.append(draft)
        self.claimed.update(node.index for node in nodes)
        return draft

    # Nodes that cost nothing.

    def free_nodes(self) -> None:
        for node in self.graph.nodes:
            if node.op_type in FREE or self.graph.constants.issuperset(node.outputs) or self.keeps(node):
                self.free.append(node)
                self.claimed.add(node.index)

    def keeps(self, node: GraphNode) -> bool:
        """Whether a node is there for other image sizes only and changes nothing at this one."""
        if node.op_type not in ("Expand", "Pad", "Slice") or not node.inputs:
            return False
        before = self.shape(node.inputs[0])
        return before is not None and before == self.shape(node.outputs[0])

    # Squeeze-and-excitation: x * f(mean of x).

    def gates(self) -> None:
        for node in self.graph.nodes:
            if node.op_type == "Mul" and self.left(node) and len(self.graph.maps(node)) == 2:
                for x, gate in (node.inputs, node.inputs[::-1]):
                    if self.gate(node, x, gate):
                        break

    def gate(self, product: GraphNode, x: str, gate: str) -> bool:
        shape, gate_shape = self.shape(x), self.shape(gate)
        if shape is None or gate_shape is None or len(shape) != 4:
            return False
        if len(gate_shape) != 4 or gate_shape[1:] != (shape[1], 1, 1):
            return False
        branch = self.branch(x, gate)
        squeezes = [node for node in branch if node.op_type in SQUEEZES]
        excites = [node for node in branch if node.op_type in EXCITES]
        if len(squeezes) != 1 or not excites:
            return False
        nodes = [squeezes[0], *(node for node in branch if node is not squeezes[0] and self.left(node)), product]
        width = self.shape(excites[0].outputs[0]) or (0, 0)
        size = shape[2], shape[3]
        op = Op("se", shape[1], shape[1], size, size)
        note = "" if width[1] == shape[1] // 4 else f"gate through {width[1]} channels, not {shape[1] // 4}"
        draft = self.claim(op, nodes, product.outputs[0], note)
        # The gate stands between a batch norm and its activation.
        found = self.activation(draft.tail)
        if found is not None:
            draft.nodes += found.nodes
            draft.tail = found.tail
            self.claimed.update(node.index for node in found.nodes)
        return True

    def branch(self, x: str, gate: str) -> list[GraphNode]:
        """The nodes between x and a gate, in file order; none where other maps come in or go out."""
        found: dict[int, GraphNode] = {}
        waiting = [gate]
        while waiting:
            tensor = waiting.pop()
            if tensor == x or tensor in self.graph.constants:
                continue
            node = self.graph.producers.get(tensor)
            if node is None or node.op_type not in GATE_NODES | FREE:
                return []
            if node.index not in found:
                found[node.index] = node
                waiting += [name for name in node.inputs if name]
        users = [user for node in found.values() for tensor in node.outputs for user in self.graph.consumers[tensor]]
        outside = [user for user in users if user.index not in found]
        return [found[index] for index in sorted(found)] if len(outside) == 1 else []

    # Convolutions with what runtimes fold into them.

    def convolutions(self) -> None:
        for node in self.graph.nodes:
            if node.op_type in CONVS and self.left(node):
                made = self.convolution(node)
                if made is not None:
                    op, notes = made
                    draft = self.claim(op, [node], node.outputs[0], *notes)
                    self.fold_constants(draft)
                    self.fold_activation(draft)

    def convolution(self, node: GraphNode) -> tuple[Op, list[str]] | None:
        if len(self.graph.maps(node)) != 1 or node.inputs[0] in self.graph.constants:
            return None
        before, after = self.shape(node.inputs[0]), self.shape(node.outputs[0])
        weight = self.shape(node.inputs[1])
        if before is None or after is None or weight is None:
            return None
        if node.op_type in ("Gemm", "MatMul"):
            if len(weight) != 2 or len(before) < 2:
                return None
            size = matrix_size(before)
            op = Op("conv", before[-1], after[-1], size, size)
            return op, [f"{node.op_type} as a 1x1 convolution"]
        if len(before) != 4:
            return None
        return convolution_of(node, before, after, weight)

    def fold_constants(self, draft: _Draft) -> None:
        """Batch norms and additions of a constant: they change weights and bias only."""
        while (node := self.graph.only_consumer(draft.tail)) is not None and self.left(node):
            norm = node.op_type == "BatchNormalization"
            bias = node.op_type == "Add" and len(self.graph.maps(node)) == 1
            sizes = [math.prod(self.shape(name) or ()) for name in node.inputs if name in self.graph.constants]
            if not norm and not (bias and sizes[0] in (1, draft.op.out_channels)):
                return
            self.extend(draft, (node,), node.outputs[0])

    def fold_activation(self, draft: _Draft) -> None:
        found = self.activation(draft.tail)
        if found is None:
            return
        if draft.op.activation != "none":
            draft.notes.append("two activations")
        draft.op = replace(draft.op, activation=found.name)
        if found.note:
            draft.notes.append(found.note)
        self.extend(draft, found.nodes, found.tail)

    def extend(self, draft: _Draft, nodes: Sequence[GraphNode], tail: str) -> None:
        draft.nodes += nodes
        draft.tail = tail
        self.claimed.update(node.index for node in nodes)

    def activation(self, tensor: str) -> _Activation | None:
        """The activation that follows a tensor, if it is all that reads it."""
        users = self.graph.consumers.get(tensor, ())
        if tensor in self.graph.outputs or not users or not all(self.left(user) for user in users):
            return None
        if len(users) == 1:
            node = users[0]
            known = ACTIVATIONS.get(node.op_type)
            if known is None or node.inputs[0] != tensor:
                return None
            name, exact = known
            return _Activation(name, (node,), node.outputs[0], "" if exact else f"{node.op_type} as {name}")
        products = [user for user in users if user.op_type == "Mul"]
        return self.gated(tensor, products[-1]) if len(users) == 2 and products else None

    def gated(self, tensor: str, product: GraphNode) -> _Activation | None:
        """The activation x * f(x)."""
        others = [name for name in product.inputs if name != tensor]
        if len(others) != 1:
            return None
        chain: list[GraphNode] = []
        current = others[0]
        while current != tensor:
            node = self.graph.producers.get(current)
            if node is None or not self.left(node) or node.op_type not in GATES or len(chain) == 4:
                return None
            maps = self.graph.maps(node)
            if len(maps) != 1 or self.graph.only_consumer(current) is None:
                return None
            chain.insert(0, node)
            current = maps[0]
        nodes, tail = [*chain, product], product.outputs[0]
        types = [node.op_type for node in chain]
        if types == ["Sigmoid"]:
            return _Activation("silu", tuple(nodes), tail, "")
        # The factor of a half, or of a sixth.
        factor = self.graph.only_consumer(tail)
        if factor is not None and factor.op_type in ("Mul", "Div") and len(self.graph.maps(factor)) == 1:
            nodes.append(factor)
            tail = factor.outputs[0]
        return _Activation("silu", tuple(nodes), tail, f"x * {'-'.join(types)} as silu")

    def residuals(self) -> None:
        """Additions to the output of a convolution; of two convolutions the one further from the images takes it."""
        tails = {draft.tail: draft for draft in self.drafts if draft.op.kind == "conv"}
        for node in self.graph.nodes:
            if node.op_type != "Add" or not self.left(node):
                continue
            if len({self.shape(name) for name in (*node.inputs, *node.outputs)}) != 1:
                continue
            candidates = [
                name
                for name in node.inputs
                if name in tails and not tails[name].op.residual and self.graph.only_consumer(name) is node
            ]
            if candidates:
                draft = tails.pop(max(candidates, key=self.depths.__getitem__))
                draft.op = replace(draft.op, residual=True)
                self.extend(draft, (node,), node.outputs[0])
                self.fold_activation(draft)
                tails[draft.tail] = draft

    # Everything else.

    def others(self) -> None:
        for node in self.graph.nodes:
            if not self.left(node):
                continue
            made = single_op(node, self.graph)
            if made is None:
                self.unsupported.append(node)
                self.claimed.add(node.index)
                continue
            op, notes = made
            nodes, tail = [node], node.outputs[0]
            if node.op_type in ("Sigmoid", "HardSigmoid"):
                # A silu on its own.
                user = self.graph.only_consumer(tail)
                if user is not None and user.op_type == "Mul" and set(user.inputs) == {node.inputs[0], tail}:
                    nodes, tail = [user, node], user.outputs[0]
            elif node.op_type != "Concat":
                found = self.activation(tail)
                if found is not None and (op.kind == "add" or node.op_type == "BatchNormalization"):
                    nodes += found.nodes
                    tail = found.tail
                    notes.append(f"with {found.name}")
            self.claim(op, nodes, tail, *notes)
