"""Single ONNX nodes as operators: which kinds of node there are, and the operator that one of them is nearest to."""

from __future__ import annotations

import math

from maenas.lowering.op import Op, OpKind
from maenas.profiling.onnx_graph import TRANSPARENT, Graph, GraphNode, Shape

Size = tuple[int, int]

ACTIVATIONS = {
    "Relu": ("relu", True),
    "LeakyRelu": ("leaky_relu", True),
    "Sigmoid": ("sigmoid", True),
    "HardSigmoid": ("hardsigmoid", True),
    "Swish": ("silu", True),
    "HardSwish": ("silu", False),
    "Mish": ("silu", False),
    "Gelu": ("silu", False),
    "Elu": ("silu", False),
    "Selu": ("silu", False),
    "Celu": ("silu", False),
    "Tanh": ("sigmoid", False),
    "Softplus": ("sigmoid", False),
    "Clip": ("relu", False),
    "PRelu": ("leaky_relu", False),
    "ThresholdedRelu": ("relu", False),
}
"""Activation nodes: the nearest activation an operator can have, and whether it is that very one."""

GATES = {"Sigmoid", "HardSigmoid", "Erf", "Tanh", "Softplus", "Clip", "Add", "Mul", "Div"}
"""Nodes between x and x * f(x); the last three only with a constant."""

SQUEEZES = {"GlobalAveragePool", "AveragePool", "ReduceMean"}
EXCITES = {"Conv", "Gemm", "MatMul"}
GATE_NODES = SQUEEZES | EXCITES | set(ACTIVATIONS) | {"Add", "Mul", "BatchNormalization"}

FREE = {
    *TRANSPARENT,
    "Constant",
    "ConstantOfShape",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Views and changes of layout; where one does take time, it goes to the operator that it feeds."""

POOLS = {
    "MaxPool": "",
    "AveragePool": "average pooling",
    "LpPool": "pooling",
    "GlobalAveragePool": "average over the map",
    "GlobalMaxPool": "maximum over the map",
    "ReduceMean": "average",
    "ReduceMax": "maximum",
    "ReduceSum": "sum",
}
ADDS = {"Add", "Sub", "Sum", "Max", "Min", "Mean"}
PASSES = set(ACTIVATIONS) | {
    "Abs",
    "BatchNormalization",
    "Div",
    "Erf",
    "Exp",
    "Expand",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LogSoftmax",
    "LRN",
    "Neg",
    "Pow",
    "RMSNormalization",
    "Reciprocal",
    "Softmax",
    "Sqrt",
    "Where",
}
"""Nodes that read and write a map once or a few times: nearest to a multiplication."""

SLICES = {"Split", "Gather", "Pad", "SpaceToDepth", "DepthToSpace"}
CONVS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def single_op(node: GraphNode, graph: Graph) -> tuple[Op, list[str]] | None:
    """The operator that a node other than a convolution is nearest to, and what is only near about it; None: none."""
    maps = graph.maps(node)
    before = graph.shapes.get(maps[0]) if maps else None
    after = graph.shapes.get(node.outputs[0]) if node.outputs else None
    if before is None or after is None or len(before) < 2 or len(after) < 2:
        return None
    kind, notes = _kind(node, graph, before)
    if kind is None:
        return None
    (channels, size), (out_channels, out_size) = _map(before), _map(after)
    kernel, stride = 1, 1
    if kind == "pool":
        kernel, stride = _pool_form(node, size, out_size)
        if POOLS[node.op_type]:
            notes.append(POOLS[node.op_type])
        elif not _regular(node, size, out_size, kernel, stride):
            notes.append("pooling with a window that is not square or with odd padding")
    if kind in ("concat", "mul", "add"):
        channels, size = out_channels, out_size
    if len(before) != 4:
        notes.append(f"{node.op_type} of {len(before)} axes")
    elif kind not in ("concat", "mul", "add") and channels != out_channels and node.op_type != "Split":
        notes.append(f"{node.op_type} to other channels")
    if node.op_type == "Split":
        out_channels, out_size = channels, size
    return Op(kind, channels, out_channels, size, out_size, kernel, stride), notes


def _kind(node: GraphNode, graph: Graph, before: Shape) -> tuple[OpKind | None, list[str]]:
    """Kind of a node that is no convolution, and why it is only the nearest."""
    op_type = node.op_type
    if op_type in POOLS:
        return "pool", []
    if op_type in ("Resize", "Upsample"):
        mode = node.attributes.get("mode", b"nearest").decode()
        return "resize", [] if mode == "nearest" else [f"{mode} interpolation"]
    if op_type == "Concat":
        axis = int(node.attributes.get("axis", 1))
        return "concat", [] if axis in (1, 1 - len(before)) else [f"concat along axis {axis}"]
    if op_type == "Slice":
        return "slice", []
    if op_type in SLICES:
        return "slice", [f"{op_type} as slice"]
    if op_type in ADDS:
        same = {graph.shapes.get(name) for name in node.inputs} == {before}
        return "add", [] if op_type == "Add" and same else [f"{op_type} of values that are not two maps as add"]
    if op_type == "Mul":
        return "mul", []
    if op_type in PASSES:
        return "mul", [f"{op_type} as mul"]
    return None, []


def convolution_of(node: GraphNode, before: Shape, after: Shape, weight: Shape) -> tuple[Op, list[str]]:
    """A convolution node of maps with four axes, and what was approximated about it."""
    attributes = node.attributes
    groups = int(attributes.get("group", 1))
    strides = [int(value) for value in attributes.get("strides", [1, 1])]
    dilations = [int(value) for value in attributes.get("dilations", [1, 1])]
    kernels = list(weight[2:])
    in_channels, out_channels = before[1], after[1]
    in_size, out_size = (before[2], before[3]), (after[2], after[3])
    notes = []
    if node.op_type == "ConvTranspose":
        # Every output value sees kernel / stride taps a side.
        kernel = max(1, round(math.sqrt(math.prod(kernels) / math.prod(strides))))
        notes.append("transposed convolution as one on the larger map")
        return Op("conv", in_channels, out_channels, out_size, out_size, kernel), notes
    kernel, stride = round(math.sqrt(math.prod(kernels))), max(strides)
    if kernels[0] != kernels[1]:
        notes.append(f"kernel {kernels[0]}x{kernels[1]} as {kernel}x{kernel}")
    if strides[0] != strides[1]:
        notes.append(f"strides {strides[0]}, {strides[1]} as {stride}")
    if max(dilations) > 1:
        notes.append(f"dilation {max(dilations)}")
    if out_size != (-(-in_size[0] // stride), -(-in_size[1] // stride)):
        notes.append("other padding")
    depthwise = groups > 1 and groups == in_channels
    if depthwise and out_channels != in_channels:
        notes.append(f"{out_channels // in_channels} filters per channel")
        in_channels = out_channels
    elif groups > 1 and not depthwise:
        # As many multiply-accumulates, and the output's memory; the input's is too small.
        notes.append(f"{groups} groups as a dense convolution of {in_channels // groups} input channels")
        in_channels //= groups
    return Op("conv", in_channels, out_channels, in_size, out_size, kernel, stride, depthwise), notes


def matrix_size(shape: Shape) -> Size:
    """(height, width) of the rows of a matrix that channels are the last axis of; the first axis is the batch."""
    rows = shape[1:-1]
    return (rows[0], rows[1]) if len(rows) == 2 else (1, math.prod(rows))


def _map(shape: Shape) -> tuple[int, Size]:
    """Channels and (height, width) of a tensor; with three axes the last one is the channels."""
    if len(shape) == 2:
        return shape[1], (1, 1)
    if len(shape) == 3:
        return shape[2], (1, shape[1])
    return math.prod(shape[1:-2]), (shape[-2], shape[-1])


def _pool_form(node: GraphNode, size: Size, out_size: Size) -> tuple[int, int]:
    """Kernel and stride."""
    kernels = [int(value) for value in node.attributes.get("kernel_shape", ())]
    if not kernels:
        return max(size), max(1, size[0] // out_size[0])
    strides = [int(value) for value in node.attributes.get("strides", ())]
    return round(math.sqrt(math.prod(kernels))), max(strides, default=1)


def _regular(node: GraphNode, size: Size, out_size: Size, kernel: int, stride: int) -> bool:
    kernels = set(node.attributes.get("kernel_shape", ()))
    strides = set(node.attributes.get("strides", (1,)))
    fits = out_size == (-(-size[0] // stride), -(-size[1] // stride))
    return kernels == {kernel} and strides == {stride} and fits
