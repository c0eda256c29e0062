"""RepGFPN as deployed operators; its fusion graph is data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maenas.lowering.op import Channels, Op, conv, glue
from maenas.structure import Neck

Size = tuple[int, int]
NUM_LEVELS = 3
COARSEST_LEVEL = 5
"""Level n has stride 2^n."""
FeatureChannels = tuple[Channels, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """One input of a fusion node: `source` node, brought to the node's level by `same`, `up` (x2) or `down` (/2)."""

    source: str
    resample: str = "same"


@dataclass(frozen=True, slots=True)
class FusionNode:
    """Concat of the edges in order, then one fusion block.

    Attributes:
        name: Official module name, kept for converted weights.
        level: n for stride 2^n.
        width: Output channels: `in` = the backbone's channels of that level, `out` = the neck's.
        edges: Inputs in concat order (the order matters for weights).
    """

    name: str
    level: int
    width: str
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class FusionGraph:
    """Fusion nodes in evaluation order, and the nodes the head reads, fine to coarse."""

    nodes: tuple[FusionNode, ...]
    outputs: tuple[str, ...]


_DOWN = FusionGraph(
    nodes=(
        FusionNode("merge_3", 5, "in", (Edge("b5"), Edge("b4", "down"))),
        FusionNode("merge_4", 4, "in", (Edge("b4"), Edge("b3", "down"), Edge("merge_3", "up"))),
        FusionNode("merge_5", 3, "out", (Edge("b3"), Edge("merge_4", "up"))),
        FusionNode("merge_7", 4, "out", (Edge("merge_4"), Edge("merge_5", "down"))),
        FusionNode("merge_6", 5, "out", (Edge("merge_3"), Edge("merge_4", "down"), Edge("merge_7", "down"))),
    ),
    outputs=("merge_5", "merge_7", "merge_6"),
)
_NONE = FusionGraph(
    nodes=(
        FusionNode("merge_4", 4, "in", (Edge("b4"), Edge("b5", "up"))),
        FusionNode("merge_5", 3, "out", (Edge("b3"), Edge("merge_4", "up"))),
        FusionNode("merge_7", 4, "out", (Edge("merge_4"), Edge("merge_5", "down"))),
        FusionNode("merge_6", 5, "out", (Edge("b5"), Edge("merge_7", "down"))),
    ),
    outputs=("merge_5", "merge_7", "merge_6"),
)
_UP = FusionGraph(
    nodes=(
        FusionNode("merge_4", 4, "in", (Edge("b4"), Edge("b5", "up"), Edge("b5", "up"))),
        FusionNode("merge_5", 3, "out", (Edge("b3"), Edge("merge_4", "up"), Edge("b4", "up"))),
        FusionNode("merge_7", 4, "out", (Edge("merge_4"), Edge("merge_5", "down"), Edge("b5", "up"))),
        FusionNode("merge_6", 5, "out", (Edge("b5"), Edge("merge_7", "down"))),
        FusionNode("merge_8", 3, "out", (Edge("merge_5"), Edge("merge_4", "up"))),
    ),
    outputs=("merge_8", "merge_7", "merge_6"),
)
_BOTH = FusionGraph(
    nodes=(
        FusionNode("merge_3", 5, "in", (Edge("b5"), Edge("b4", "down"))),
        FusionNode("merge_4", 4, "in", (Edge("b4"), Edge("b3", "down"), Edge("merge_3", "up"), Edge("b5", "up"))),
        FusionNode("merge_5", 3, "out", (Edge("b3"), Edge("merge_4", "up"), Edge("b4", "up"))),
        FusionNode("merge_7", 4, "out", (Edge("merge_4"), Edge("merge_5", "down"), Edge("merge_3", "up"))),
        FusionNode("merge_6", 5, "out", (Edge("merge_3"), Edge("merge_4", "down"), Edge("merge_7", "down"))),
        FusionNode("merge_8", 3, "out", (Edge("merge_5"), Edge("merge_4", "up"))),
    ),
    outputs=("merge_8", "merge_7", "merge_6"),
)
GRAPHS = {"none": _NONE, "down": _DOWN, "up": _UP, "both": _BOTH}
"""Queen-fusion variants of the paper's Table 4; `up` and `both` are the nearest known readings of it."""


def fusion_graph(extra_edges: str, num_levels: int) -> FusionGraph:
    """The graph of a neck; with four levels, one more node takes the finest output of three to stride 4.

    The other nodes do not read it: what a network of three levels has learnt stays true.
    """
    graph = GRAPHS[extra_edges]
    if num_levels == NUM_LEVELS:
        return graph
    fine = FusionNode("merge_2", 2, "out", (Edge("b2"), Edge(graph.outputs[0], "up")))
    return FusionGraph((*graph.nodes, fine), (fine.name, *graph.outputs))


def lower_neck(
    neck: Neck, in_channels: FeatureChannels, sizes: tuple[Size, ...], out_channels: FeatureChannels
) -> list[Op]:
    """All operators of the neck, in execution order.

    Args:
        neck: Settings; its own out_channels are not read, so that a grid of candidates can be lowered.
        in_channels: Backbone channels of the levels (integers or broadcasting arrays), at strides 8, 16, 32 or
            4, 8, 16, 32.
        sizes: (height, width) of the levels.
        out_channels: Neck channels of the levels.
    """
    numbers = range(COARSEST_LEVEL + 1 - len(in_channels), COARSEST_LEVEL + 1)
    graph = fusion_graph(neck.extra_edges, len(in_channels))
    size_of = dict(zip(numbers, sizes, strict=True))
    widths = {
        "in": dict(zip(numbers, in_channels, strict=True)),
        "out": dict(zip(numbers, out_channels, strict=True)),
    }
    channels: dict[str, Channels] = {f"b{number}": width for number, width in widths["in"].items()}
    levels = {f"b{number}": number for number in numbers} | {node.name: node.level for node in graph.nodes}
    ops: list[Op] = []
    for node in graph.nodes:
        for edge in sorted(node.edges, key=lambda edge: edge.resample != "up"):
            source, size = channels[edge.source], size_of[levels[edge.source]]
            ops += _resample(neck, edge, source, size, size_of[node.level], node)
        total: Channels = sum(channels[edge.source] for edge in node.edges)
        width, size = widths[node.width][node.level], size_of[node.level]
        ops.append(glue("concat", total, size, name=f"neck.{node.name}.concat", stage="neck"))
        ops += _fusion_block(neck, total, width, size, f"neck.{node.name}")
        channels[node.name] = width
    return ops


def _resample(neck: Neck, edge: Edge, channels: Channels, size: Size, target: Size, node: FusionNode) -> list[Op]:
    """Bring an edge to its node's level: nearest x2 upwards, a stride-2 3x3 conv downwards, keeping the channels."""
    name = f"neck.{node.name}.{edge.resample}_{edge.source}"
    if edge.resample == "same":
        return []
    if edge.resample == "up":
        return [glue("resize", channels, size, target, name=name, stage="neck")]
    act = neck.activation
    if not neck.depthwise:
        return [conv(channels, channels, size, kernel_size=3, stride=2, activation=act, name=name, stage="neck")]
    depthwise = conv(
        channels,
        channels,
        size,
        kernel_size=3,
        stride=2,
        depthwise=True,
        activation=act,
        name=f"{name}.depthwise",
        stage="neck",
    )
    pointwise = conv(channels, channels, target, kernel_size=1, activation=act, name=f"{name}.pointwise", stage="neck")
    return [depthwise, pointwise]


def _fusion_block(neck: Neck, channels: Channels, out: Channels, size: Size, name: str) -> list[Op]:
    """One fusion block: two 1x1 branches, a chain of basic blocks, concat, 1x1."""
    act = neck.activation
    if neck.fusion == "conv":
        return [conv(channels, out, size, kernel_size=3, activation=act, name=f"{name}.conv", stage="neck")]
    first = out // 2
    mid = out - first
    blocks = neck.num_blocks
    # Without blocks, ELAN aggregation keeps only the first branch, and CSP passes the second one through.
    kept = blocks if neck.fusion == "csp_elan" else 1
    ops = [conv(channels, first, size, kernel_size=1, activation=act, name=f"{name}.conv1", stage="neck")]
    if kept:
        ops.append(conv(channels, mid, size, kernel_size=1, activation=act, name=f"{name}.conv2", stage="neck"))
    for index in range(blocks):
        ops += _basic_block(neck, mid, size, f"{name}.block{index + 1}")
    total = first + kept * mid
    if kept:
        ops.append(glue("concat", total, size, name=f"{name}.elan" if kept > 1 else f"{name}.csp", stage="neck"))
    ops.append(conv(total, out, size, kernel_size=1, activation=act, name=f"{name}.conv3", stage="neck"))
    return ops


def _basic_block(neck: Neck, mid: Channels, size: Size, name: str) -> list[Op]:
    """Re-parameterisable 3x3 then plain 3x3, shortcut after the last activation; or an inverted residual."""
    act = neck.activation
    if neck.depthwise:
        hidden = round_to_8(3 * mid)
        return [
            conv(mid, hidden, size, kernel_size=1, activation=act, name=f"{name}.expand", stage="neck"),
            conv(
                hidden,
                hidden,
                size,
                kernel_size=5,
                depthwise=True,
                activation=act,
                name=f"{name}.depthwise",
                stage="neck",
            ),
            conv(hidden, mid, size, kernel_size=1, residual=True, name=f"{name}.project", stage="neck"),
        ]
    hidden = floor_ratio(mid, neck.hidden_ratio)
    reparam = neck.fusion != "csp"
    return [
        conv(mid, hidden, size, kernel_size=3, activation=act, name=f"{name}.conv1", stage="neck", reparam=reparam),
        conv(hidden, mid, size, kernel_size=3, activation=act, residual=True, name=f"{name}.conv2", stage="neck"),
    ]


def floor_ratio(channels: Channels, ratio: float) -> Channels:
    """Channels times a ratio, rounded down, at least 1."""
    scaled = np.maximum(np.floor(np.asarray(channels) * ratio), 1).astype(np.int64)
    return scaled if scaled.ndim else int(scaled)


def round_to_8(channels: Channels) -> Channels:
    """Nearest multiple of 8 (halves up), at least 8, raised by 8 where that lost more than a tenth."""
    value = np.asarray(channels)
    rounded = np.maximum((value + 4) // 8 * 8, 8)
    rounded = np.where(10 * rounded < 9 * value, rounded + 8, rounded).astype(np.int64)
    return rounded if rounded.ndim else int(rounded)
