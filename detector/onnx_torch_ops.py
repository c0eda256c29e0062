"""What each ONNX operator is in torch: those of our exports, of hand-built probes and of common image networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .onnx_torch_call import Call, Dynamic, Value, shape_of
from .onnx_torch_shapes import SHAPE_FUNCTIONS


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
    **SHAPE_FUNCTIONS,
    "Add": _binary(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": _same,
    "Elu": lambda call: call(F.elu, call.x, call.get("alpha", 1.0)),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
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
    "Pow": _binary(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _unary(F.relu),
    "Resize": _resize,
    "Sigmoid": _unary(torch.sigmoid),
    "Softmax": _softmax,
    "Softplus": _unary(F.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _sum,
    "Tanh": _unary(torch.tanh),
    "Upsample": _resize,
}
"""What is written for a node."""
