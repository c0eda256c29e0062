"""ONNX operators that move or cut values, or make constants, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .onnx_torch_call import Call, Dynamic, Value, shape_of


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


SHAPE_FUNCTIONS: dict[str, Callable[[Call], Value | tuple[Value, ...]]] = {
    "Concat": lambda call: call(torch.cat, list(call.inputs), call.get("axis")),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""What is written for such a node."""
