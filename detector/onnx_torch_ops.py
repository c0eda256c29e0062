"""What each ONNX operator is in torch: those of our exports, of hand-built probes and of common image networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from .errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Dynamic:
    """A value that depends on the images: the call that makes it, and an example without content."""

    node: fx.Node
    example: Tensor


Value = Dynamic | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One ONNX node to be written in torch.

    Attributes:
        name: Of the node.
        op_type: Such as `Conv`.
        opset: Version of the operator set.
        attributes: By name; tensors among them as torch's.
        inputs: By position; None where one is left out.
        num_outputs: How many the node has.
        emit: Calls a torch function (function, arguments, keyword arguments).
    """

    name: str
    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    num_outputs: int
    emit: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

    @property
    def x(self) -> Value:
        """The first input."""
        return self.given(0)

    def given(self, position: int) -> Value:
        """An input that has to be there."""
        value = self.input(position)
        if value is None:
            raise self.refuse(f"has no input {position}")
        return value

    def input(self, position: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """An attribute, text decoded."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def constant(self, position: int, attribute: str | None = None) -> list[Any] | None:
        """Numbers that older operator sets give as an attribute and newer ones as an input; None if left out."""
        value = self.input(position)
        if value is None:
            given = self.attributes.get(attribute) if attribute else None
            return None if given is None else [given] if isinstance(given, int | float) else list(given)
        if isinstance(value, Dynamic):
            raise self.refuse(f"has an input {position} that depends on the images")
        return value.reshape(-1).tolist()

    def refuse(self, reason: str) -> InputError:
        """An error that says what about this node is not known; the reader adds the file."""
        return InputError(f"node {self.name!r}, a {self.op_type}, {reason}: torch has no form of that here")

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a torch function."""
        return self.emit(function, args, kwargs)


def shape_of(value: Value) -> tuple[int, ...]:
    """Its lengths."""
    return tuple((value.example if isinstance(value, Dynamic) else value).shape)


def _pads(call: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Rows above, columns left, rows below, columns right."""
    automatic = call.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        return [0] * 4
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for side, size, stride, dilation in zip(shape_of(call.x)[2:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-side // stride) - 1) * stride + dilation * (size - 1) + 1 - side)
            small, large = total // 2, total - total // 2
            before.append(small if automatic == "SAME_UPPER" else large)
            after.append(large if automatic == "SAME_UPPER" else small)
        return before + after
    return list(call.get("pads", [0, 0, 0, 0]))


def _padded(call: Call, pads: Sequence[int], fill: float = 0.0) -> tuple[Value, tuple[int, int]]:
    """The input, and the padding that the operator itself can add: uneven padding is added before it."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return call.x, (top, left)
    return call(F.pad, call.x, [left, right, top, bottom], value=fill), (0, 0)


def _two_axes(call: Call) -> None:
    if len(shape_of(call.x)) != 4:
        raise call.refuse(f"is of a tensor of {len(shape_of(call.x))} axes")


def _conv(call: Call) -> Value:
    _two_axes(call)
    weight = call.given(1)
    strides, dilations = list(call.get("strides", [1, 1])), list(call.get("dilations", [1, 1]))
    pads = _pads(call, shape_of(weight)[2:], strides, dilations)
    x, padding = _padded(call, pads)
    return call(
        F.conv2d,
        x,
        weight,
        call.input(2),
        stride=strides,
        padding=padding,
        dilation=dilations,
        groups=call.get("group", 1),
    )


def _conv_transpose(call: Call) -> Value:
    _two_axes(call)
    top, left, bottom, right = call.get("pads", [0, 0, 0, 0])
    if call.get("auto_pad", "NOTSET") != "NOTSET" or call.get("output_shape") or (top, left) != (bottom, right):
        raise call.refuse("has automatic or uneven padding")
    return call(
        F.conv_transpose2d,
        call.x,
        call.given(1),
        call.input(2),
        stride=list(call.get("strides", [1, 1])),
        padding=(top, left),
        output_padding=list(call.get("output_padding", [0, 0])),
        groups=call.get("group", 1),
        dilation=list(call.get("dilations", [1, 1])),
    )


def _max_pool(call: Call) -> Value:
    _two_axes(call)
    if call.num_outputs > 1:
        raise call.refuse("returns places")
    kernel, strides = list(call.get("kernel_shape")), list(call.get("strides", [1, 1]))
    dilations = list(call.get("dilations", [1, 1]))
    pads = _pads(call, kernel, strides, dilations)
    x, padding = _padded(call, pads, -math.inf)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        x, padding = call(F.pad, call.x, [pads[1], pads[3], pads[0], pads[2]], value=-math.inf), (0, 0)
    return call(
        F.max_pool2d,
        x,
        kernel,
        stride=strides,
        padding=padding,
        dilation=dilations,
        ceil_mode=bool(call.get("ceil_mode", 0)),
    )


def _average_pool(call: Call) -> Value:
    _two_axes(call)
    kernel, strides = list(call.get("kernel_shape")), list(call.get("strides", [1, 1]))
    if list(call.get("dilations", [1, 1])) != [1, 1]:
        raise call.refuse("has dilations")
    top, left, bottom, right = _pads(call, kernel, strides, [1, 1])
    if (top, left) != (bottom, right):
        raise call.refuse("has uneven padding")
    return call(
        F.avg_pool2d,
        call.x,
        kernel,
        stride=strides,
        padding=(top, left),
        ceil_mode=bool(call.get("ceil_mode", 0)),
        count_include_pad=bool(call.get("count_include_pad", 0)),
    )


def _reduce(function: Any) -> Callable[[Call], Value]:  # noqa: ANN401
    def write(call: Call) -> Value:
        axes = call.constant(1, "axes")
        if not axes and call.get("noop_with_empty_axes", 0):
            return call.x
        return call(function, call.x, axes or list(range(len(shape_of(call.x)))), bool(call.get("keepdims", 1)))

    return write


def _global(function: Any) -> Callable[[Call], Value]:  # noqa: ANN401
    return lambda call: call(function, call.x, list(range(2, len(shape_of(call.x)))), True)


_MODES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


def _resize(call: Call) -> Value:
    """Nearest with whole factors, or linear and cubic between cell centres or corners, as image networks use them."""
    _two_axes(call)
    shape, old = shape_of(call.x), call.op_type == "Upsample"
    factors, sizes = call.constant(1 if old else 2, "scales"), None if old else call.constant(3)
    target = sizes or [math.floor(side * factor) for side, factor in zip(shape, factors or (), strict=True)]
    if not target or target[:2] != list(shape[:2]):
        raise call.refuse("changes other axes than height and width")
    mode = call.get("mode", "nearest")
    transform = "asymmetric" if old else call.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        whole = all(after % before == 0 for before, after in zip(shape[2:], target[2:], strict=True))
        plain = transform == "asymmetric" and call.get("nearest_mode", "round_prefer_floor") == "floor"
        if not (old or plain or whole):
            raise call.refuse(f"takes the nearest cell by {transform} with factors that are no whole numbers")
        return call(F.interpolate, call.x, size=target[2:], mode="nearest")
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners") or mode not in _MODES:
        raise call.refuse(f"interpolates {mode} by {transform}")
    if call.get("antialias", 0) or (mode == "cubic" and call.get("cubic_coeff_a", -0.75) != -0.75):
        raise call.refuse("smooths before it samples")
    return call(F.interpolate, call.x, size=target[2:], mode=_MODES[mode], align_corners=transform == "align_corners")


def _gemm(call: Call) -> Value:
    a, b, c = call.x, call.given(1), call.input(2)
    a = call(torch.t, a) if call.get("transA", 0) else a
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if isinstance(b, Tensor) and alpha == beta == 1.0 and (c is None or len(shape_of(c)) == 1):
        weight = b if call.get("transB", 0) else b.t().contiguous()
        return call(F.linear, a, weight, c)
    b = call(torch.t, b) if call.get("transB", 0) else b
    product = call(torch.matmul, a, b)
    if alpha != 1.0:
        product = call(torch.mul, product, alpha)
    if c is None:
        return product
    return call(torch.add, product, call(torch.mul, c, beta) if beta != 1.0 else c)


def _slice(call: Call) -> Value:
    starts, ends = call.constant(1, "starts"), call.constant(2, "ends")
    if starts is None or ends is None:
        raise call.refuse("has no starts and ends")
    axes, steps = call.constant(3, "axes") or list(range(len(starts))), call.constant(4) or [1] * len(starts)
    parts = [slice(None)] * len(shape_of(call.x))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise call.refuse("runs backwards")
        parts[axis] = slice(start, end, step)
    return call(_items, call.x, tuple(parts))


def _items(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    return x[parts]


def _reshape(call: Call) -> Value:
    target, shape = call.constant(1, "shape") or [], shape_of(call.x)
    if not call.get("allowzero", 0):
        target = [shape[axis] if length == 0 else length for axis, length in enumerate(target)]
    return call(torch.reshape, call.x, target)


def _flatten(call: Call) -> Value:
    shape, axis = shape_of(call.x), call.get("axis", 1)
    return call(torch.reshape, call.x, [math.prod(shape[:axis]), -1])


def _unsqueeze(call: Call) -> Value:
    axes, value = call.constant(1, "axes") or [], call.x
    rank = len(shape_of(value)) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = call(torch.unsqueeze, value, axis)
    return value


def _squeeze(call: Call) -> Value:
    axes = call.constant(1, "axes")
    if axes is None:
        return call(torch.squeeze, call.x)
    return call(torch.squeeze, call.x, tuple(axes))


def _transpose(call: Call) -> Value:
    rank = len(shape_of(call.x))
    return call(torch.permute, call.x, list(call.get("perm", range(rank - 1, -1, -1))))


def _split(call: Call) -> Value | tuple[Value, ...]:
    axis, sizes = call.get("axis", 0), call.constant(1, "split")
    length, parts = shape_of(call.x)[axis], call.num_outputs
    if sizes is None:
        size = -(-length // parts)
        sizes = [min(size, length - size * index) for index in range(parts)]
    return tuple(call(torch.split, call.x, sizes, axis))


def _pad(call: Call) -> Value:
    pads, axes = call.constant(1, "pads") or [], call.constant(3)
    fill, rank = call.constant(2, "value"), len(shape_of(call.x))
    mode = call.get("mode", "constant")
    half = len(pads) // 2
    both = {axis % rank: (pads[index], pads[half + index]) for index, axis in enumerate(axes or range(half))}
    last_first = [amount for axis in range(rank - 1, -1, -1) for amount in both.get(axis, (0, 0))]
    while last_first[-2:] == [0, 0]:
        del last_first[-2:]
    if not last_first:
        return call.x
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode not in modes:
        raise call.refuse(f"pads by {mode}")
    if mode == "constant":
        return call(F.pad, call.x, last_first, value=float(fill[0]) if fill else 0.0)
    return call(F.pad, call.x, last_first, mode=modes[mode])


def _gather(call: Call) -> Value:
    indices, axis, shape = call.given(1), call.get("axis", 0), shape_of(call.x)
    if isinstance(indices, Dynamic):
        raise call.refuse("takes places that depend on the images")
    places = indices.to(torch.int64) % shape[axis]
    if places.dim() == 0:
        return call(torch.select, call.x, axis, int(places))
    found = call(torch.index_select, call.x, axis, places.reshape(-1))
    axis %= len(shape)
    return call(torch.reshape, found, [*shape[:axis], *places.shape, *shape[axis + 1 :]])


def _batch_norm(call: Call) -> Value:
    if call.get("training_mode", 0):
        raise call.refuse("is in training mode")
    scale, bias, mean, variance = (call.given(position) for position in range(1, 5))
    return call(F.batch_norm, call.x, mean, variance, scale, bias, eps=call.get("epsilon", 1e-5))


def _layer_norm(call: Call) -> Value:
    shape, axis = shape_of(call.x), call.get("axis", -1)
    return call(F.layer_norm, call.x, list(shape[axis:]), call.given(1), call.input(2), eps=call.get("epsilon", 1e-5))


def _clip(call: Call) -> Value:
    low, high = call.constant(1, "min"), call.constant(2, "max")
    return call(torch.clamp, call.x, low[0] if low else None, high[0] if high else None)


def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call(F.hardsigmoid, call.x)
    return call(torch.clamp, call(torch.add, call(torch.mul, call.x, alpha), beta), 0.0, 1.0)


def _prelu(call: Call) -> Value:
    slope = call.given(1)
    return call(F.prelu, call.x, call(torch.reshape, slope, [-1]))


def _softmax(call: Call) -> Value:
    axis = call.get("axis", -1 if call.opset >= 13 else 1)
    if call.opset < 13 and axis % len(shape_of(call.x)) != len(shape_of(call.x)) - 1:
        raise call.refuse("is over several axes")
    return call(torch.softmax, call.x, axis)


def _cast(call: Call) -> Value:
    """Between floating-point types nothing changes: the network computes in one precision."""
    to = _TYPES.get(call.get("to"))
    if to is None:
        raise call.refuse(f"casts to the type number {call.get('to')}")
    floating = (call.x.example if isinstance(call.x, Dynamic) else call.x).is_floating_point()
    return call.x if floating and to.is_floating_point else call(Tensor.to, call.x, to)


_TYPES = {
    1: torch.float32,
    10: torch.float32,
    11: torch.float32,
    16: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
}
"""Element types by their number in the format."""


def _constant(call: Call) -> Value:
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if name in call.attributes:
            return torch.tensor(call.attributes[name], dtype=dtype)
    for name in ("value_int", "value_ints"):
        if name in call.attributes:
            return torch.tensor(call.attributes[name], dtype=torch.int64)
    if "value" not in call.attributes:
        raise call.refuse("holds neither numbers nor a tensor")
    return call.attributes["value"]


def _constant_of_shape(call: Call) -> Value:
    value = call.attributes.get("value", torch.zeros(1))
    return torch.full(call.constant(0) or [], value.item(), dtype=value.dtype)


def _shape(call: Call) -> Value:
    return torch.tensor(shape_of(call.x), dtype=torch.int64)[call.get("start", 0) : call.get("end")]


def _expand(call: Call) -> Value:
    shape, target = shape_of(call.x), call.constant(1) or []
    shape = (1,) * (len(target) - len(shape)) + shape
    target = [1] * (len(shape) - len(target)) + target
    return call(torch.broadcast_to, call.x, [max(pair) for pair in zip(shape, target, strict=True)])


def _depth_to_space(call: Call) -> Value:
    if call.get("mode", "DCR") != "CRD":
        raise call.refuse("has the order DCR")
    return call(F.pixel_shuffle, call.x, call.get("blocksize"))


def _sum(call: Call) -> Value:
    total = call.x
    for position in range(1, len(call.inputs)):
        total = call(torch.add, total, call.given(position))
    return total


def _div(call: Call) -> Value:
    whole = all(isinstance(each, Tensor) and not each.is_floating_point() for each in call.inputs)
    return call(torch.div, call.x, call.given(1), rounding_mode="trunc" if whole else None)


def _unary(function: Any, **fixed: Any) -> Callable[[Call], Value]:  # noqa: ANN401
    return lambda call: call(function, call.x, **fixed)


def _binary(function: Any) -> Callable[[Call], Value]:  # noqa: ANN401
    return lambda call: call(function, call.x, call.given(1))


def _same(call: Call) -> Value:
    return call.x


FUNCTIONS: dict[str, Callable[[Call], Value | tuple[Value, ...]]] = {
    "Add": _binary(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda call: call(torch.cat, list(call.inputs), call.get("axis")),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _same,
    "Elu": lambda call: call(F.elu, call.x, call.get("alpha", 1.0)),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda call: call(F.gelu, call.x, approximate=call.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": _same,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda call: call(F.leaky_relu, call.x, call.get("alpha", 0.01)),
    "MatMul": _binary(torch.matmul),
    "MaxPool": _max_pool,
    "Mish": _unary(F.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _binary(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _unary(F.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _unary(F.softplus),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _sum,
    "Tanh": _unary(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
"""What is written for a node."""
