"""RepGFPN: its fusion graph is data, one module runs any of them.

The graphs equal those that the cost model lowers (`maenas.lowering.neck`); a test keeps the two alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maenas.structure import Neck

from .blocks import InvertedResidual, ReverseBlock
from .layers import ConvNormAct, DepthwiseSeparable

NUM_LEVELS = 3
COARSEST_LEVEL = 5
"""Level n has stride 2^n; the backbone's map of level 3 is the node b3."""

DEPTHWISE_EXPANSION = 3
DEPTHWISE_KERNEL_SIZE = 5


@dataclass(frozen=True, slots=True)
class Edge:
    """One input of a fusion node: `source` node, brought to the node's level by `same`, `up` (x2) or `down` (/2)."""

    source: str
    resample: str = "same"


@dataclass(frozen=True, slots=True)
class FusionNode:
    """Concat of the edges in order, then one fusion block.

    Attributes:
        name: Official module name.
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


def _node(name: str, level: int, width: str, *edges: str) -> FusionNode:
    """A node from edges such as `b4`, `b3 down`, `merge_3 up`."""
    return FusionNode(name, level, width, tuple(Edge(*edge.split()) for edge in edges))


GRAPHS = {
    "none": FusionGraph(
        (
            _node("merge_4", 4, "in", "b4", "b5 up"),
            _node("merge_5", 3, "out", "b3", "merge_4 up"),
            _node("merge_7", 4, "out", "merge_4", "merge_5 down"),
            _node("merge_6", 5, "out", "b5", "merge_7 down"),
        ),
        ("merge_5", "merge_7", "merge_6"),
    ),
    "down": FusionGraph(
        (
            _node("merge_3", 5, "in", "b5", "b4 down"),
            _node("merge_4", 4, "in", "b4", "b3 down", "merge_3 up"),
            _node("merge_5", 3, "out", "b3", "merge_4 up"),
            _node("merge_7", 4, "out", "merge_4", "merge_5 down"),
            _node("merge_6", 5, "out", "merge_3", "merge_4 down", "merge_7 down"),
        ),
        ("merge_5", "merge_7", "merge_6"),
    ),
    "up": FusionGraph(
        (
            _node("merge_4", 4, "in", "b4", "b5 up", "b5 up"),
            _node("merge_5", 3, "out", "b3", "merge_4 up", "b4 up"),
            _node("merge_7", 4, "out", "merge_4", "merge_5 down", "b5 up"),
            _node("merge_6", 5, "out", "b5", "merge_7 down"),
            _node("merge_8", 3, "out", "merge_5", "merge_4 up"),
        ),
        ("merge_8", "merge_7", "merge_6"),
    ),
    "both": FusionGraph(
        (
            _node("merge_3", 5, "in", "b5", "b4 down"),
            _node("merge_4", 4, "in", "b4", "b3 down", "merge_3 up", "b5 up"),
            _node("merge_5", 3, "out", "b3", "merge_4 up", "b4 up"),
            _node("merge_7", 4, "out", "merge_4", "merge_5 down", "merge_3 up"),
            _node("merge_6", 5, "out", "merge_3", "merge_4 down", "merge_7 down"),
            _node("merge_8", 3, "out", "merge_5", "merge_4 up"),
        ),
        ("merge_8", "merge_7", "merge_6"),
    ),
}
"""Queen-fusion variants of the paper's Table 4; `down` is the released one."""


def fusion_graph(extra_edges: str, num_levels: int) -> FusionGraph:
    """The graph of a neck; with four levels, one more node takes the finest output of three to stride 4.

    The other nodes do not read it: what a network of three levels has learnt stays true.
    """
    graph = GRAPHS[extra_edges]
    if num_levels == NUM_LEVELS:
        return graph
    fine = _node("merge_2", 2, "out", "b2", f"{graph.outputs[0]} up")
    return FusionGraph((*graph.nodes, fine), (fine.name, *graph.outputs))


class RepGFPN(nn.Module):
    """Fuses the backbone's maps into as many of the widths that the head reads.

    Attributes:
        channels: Channels of the outputs.
        graph: The fusion graph it runs.
        inputs: Names of the backbone's maps in the graph.
    """

    def __init__(self, spec: Neck, in_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = spec.out_channels
        self.graph = fusion_graph(spec.extra_edges, len(in_channels))
        numbers = range(COARSEST_LEVEL + 1 - len(in_channels), COARSEST_LEVEL + 1)
        self.inputs = tuple(f"b{number}" for number in numbers)
        widths = {
            "in": dict(zip(numbers, in_channels, strict=True)),
            "out": dict(zip(numbers, spec.out_channels, strict=True)),
        }
        channels = dict(zip(self.inputs, in_channels, strict=True))
        self.nodes = nn.ModuleDict()
        for node in self.graph.nodes:
            width = widths[node.width][node.level]
            self.nodes[node.name] = NodeModule(spec, node, channels, width)
            channels[node.name] = width

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the levels.

        Args:
            features: Per level a map (B, in_channels[l], H / strides[l], W / strides[l]).

        Returns:
            Per level a map (B, channels[l], H / strides[l], W / strides[l]).
        """
        maps = dict(zip(self.inputs, features, strict=True))
        for name, node in self.nodes.items():
            maps[name] = node(maps)
        return [maps[name] for name in self.graph.outputs]


class NodeModule(nn.Module):
    """One fusion node: its stride-2 convolutions and its fusion block."""

    def __init__(self, spec: Neck, node: FusionNode, channels: dict[str, int], out_channels: int) -> None:
        super().__init__()
        self.edges = node.edges
        self.down = nn.ModuleDict()
        for edge in node.edges:
            if edge.resample == "down":
                self.down[edge.source] = make_downsampler(spec, channels[edge.source])
        total = sum(channels[edge.source] for edge in node.edges)
        if spec.fusion == "conv":
            self.block: nn.Module = ConvNormAct(total, out_channels, kernel_size=3, activation=spec.activation)
        else:
            self.block = FusionBlock(spec, total, out_channels)

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """The node's map (B, out, H, W) from the maps computed so far, by node name."""
        return self.block(torch.cat([self._resample(edge, maps[edge.source]) for edge in self.edges], dim=1))

    def _resample(self, edge: Edge, x: Tensor) -> Tensor:
        if edge.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.down[edge.source](x) if edge.resample == "down" else x


def make_downsampler(spec: Neck, channels: int) -> nn.Module:
    """Stride-2 3x3 convolution that keeps the channels; depthwise-separable (Kaiming initial values) if depthwise."""
    if not spec.depthwise:
        return ConvNormAct(channels, channels, kernel_size=3, stride=2, activation=spec.activation)
    layer = DepthwiseSeparable(channels, channels, kernel_size=3, stride=2, activation=spec.activation)
    for part in (layer.depthwise, layer.pointwise):
        nn.init.kaiming_normal_(part.conv.weight, mode="fan_out", nonlinearity="relu")
    return layer


class FusionBlock(nn.Module):
    """Two 1x1 branches of the concat, a chain of basic blocks on the second, concat of what is kept, 1x1.

    With ELAN-like aggregation the first branch and the output of every block are kept (not the second branch itself);
    otherwise the first branch and the end of the chain.
    """

    def __init__(self, spec: Neck, in_channels: int, out_channels: int) -> None:
        super().__init__()
        first = out_channels // 2
        mid = out_channels - first
        self.keeps_all = spec.fusion == "csp_elan"
        kept = spec.num_blocks if self.keeps_all else 1
        self.conv1 = ConvNormAct(in_channels, first, activation=spec.activation)
        # Without blocks, ELAN aggregation keeps nothing of the second branch.
        self.conv2 = ConvNormAct(in_channels, mid, activation=spec.activation) if kept else None
        self.blocks = nn.ModuleList(make_basic_block(spec, mid) for _ in range(spec.num_blocks))
        self.conv3 = ConvNormAct(first + kept * mid, out_channels, activation=spec.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        parts = [self.conv1(x)]
        if self.conv2 is None:
            return self.conv3(parts[0])
        chain = [self.conv2(x)]
        for block in self.blocks:
            chain.append(block(chain[-1]))
        parts += chain[1:] if self.keeps_all else chain[-1:]
        return self.conv3(torch.cat(parts, dim=1))


def make_basic_block(spec: Neck, channels: int) -> nn.Module:
    """One block of a fusion block's chain."""
    if spec.depthwise:
        hidden = round_to_8(DEPTHWISE_EXPANSION * channels)
        return InvertedResidual(
            channels, hidden, channels, kernel_size=DEPTHWISE_KERNEL_SIZE, activation=spec.activation
        )
    hidden = max(int(channels * spec.hidden_ratio), 1)
    return ReverseBlock(channels, hidden, activation=spec.activation, reparam=spec.fusion != "csp")


def round_to_8(channels: int) -> int:
    """Nearest multiple of 8 (halves up), at least 8, raised by 8 where that lost more than a tenth."""
    rounded = max((channels + 4) // 8 * 8, 8)
    return rounded + 8 if 10 * rounded < 9 * channels else rounded
