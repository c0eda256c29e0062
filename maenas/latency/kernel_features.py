"""Operators as columns of numbers: what a model of kernels knows of one before it is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from maenas.errors import ProfileError
from maenas.lowering.op import ACTIVATIONS, OP_KINDS, Op

Floats = NDArray[np.float64]


class Scale(NamedTuple):
    """What turns operators into work: images at once, and bytes of one value."""

    batch: int
    precision_bytes: int


class HasScale(Protocol):
    """A `Scale`, or a model that was fitted at one."""

    @property
    def batch(self) -> int:
        """Images at once."""
        ...

    @property
    def precision_bytes(self) -> int:
        """Bytes of one value."""
        ...


@dataclass(frozen=True, eq=False)
class Sizes:
    """Operators as columns of one length."""

    form: NDArray[np.int64]  # (n, 6): kind, depthwise, kernel, stride, activation, residual
    in_channels: Floats
    out_channels: Floats
    in_pixels: Floats
    out_pixels: Floats
    aspect: Floats
    flops: Floats
    traffic: Floats
    weights: Floats

    @property
    def log_box(self) -> Floats:
        """(n, 7) logarithms of the sizes whose measured range bounds what is called known."""
        ratio = self.in_channels / self.out_channels
        return np.log(
            np.column_stack(
                [self.in_channels, self.out_channels, self.in_pixels, self.aspect, ratio, self.flops, self.traffic]
            )
        )


def sizes_of_all(ops: Sequence[Op], scale: HasScale) -> Sizes:
    """Of operators with plain channels, one row each.

    Raises:
        ProfileError: A size is below one, a name unknown, or channels are arrays.
    """
    for number, op in enumerate(ops):
        if np.ndim(op.in_channels) or np.ndim(op.out_channels):
            raise ProfileError(
                f"kernel {number} ({op.name or op.kind}): channels are arrays; expected plain numbers in a sequence"
            )
    columns = np.array(
        [(*_form(op), op.in_channels, op.out_channels, *op.in_size, *op.out_size) for op in ops], dtype=np.int64
    )
    return _sizes(columns.reshape(len(ops), 12), scale)


def sizes_of_one(op: Op, scale: HasScale) -> Sizes:
    """Of one operator, a row for each of its channels.

    Raises:
        ProfileError: A size is below one, or a name unknown.
    """
    in_channels, out_channels = np.broadcast_arrays(op.in_channels, op.out_channels)
    columns = np.empty((in_channels.size, 12), dtype=np.int64)
    columns[:, :6] = _form(op)
    columns[:, 6], columns[:, 7] = in_channels.ravel(), out_channels.ravel()
    columns[:, 8:] = (*op.in_size, *op.out_size)
    return _sizes(columns, scale)


def _form(op: Op) -> tuple[int, ...]:
    for name, value, known in (("kind", op.kind, OP_KINDS), ("activation", op.activation, ACTIVATIONS)):
        if value not in known:
            raise ProfileError(f"{name} of a kernel is {value!r}; expected one of {', '.join(known)}")
    kind, activation = OP_KINDS.index(op.kind), ACTIVATIONS.index(op.activation)
    return kind, int(op.depthwise), op.kernel_size, op.stride, activation, int(op.residual)


def _sizes(columns: NDArray[np.int64], scale: HasScale) -> Sizes:
    """From columns of the form, both channels, and the heights and widths of input and output."""
    small = np.flatnonzero((columns[:, [2, 3, *range(6, 12)]] < 1).any(axis=1))
    if len(small):
        raise ProfileError(f"kernel {small[0]} has a kernel, stride, channel or map size below 1; expected at least 1")
    kind, depthwise, kernel, _, _, residual = columns[:, :6].T
    in_c, out_c, in_h, in_w, out_h, out_w = columns[:, 6:].T.astype(np.float64)
    conv, gate = kind == OP_KINDS.index("conv"), kind == OP_KINDS.index("se")
    fan_in = np.where(depthwise, 1, in_c) * kernel**2
    in_pixels, out_pixels = in_h * in_w * scale.batch, out_h * out_w * scale.batch
    weights = np.where(conv, fan_in * out_c, np.where(gate, in_c**2 / 2, 0.0))
    flops = np.where(conv, 2 * fan_in, kernel**2) * out_c * out_pixels
    inputs = np.where(kind == OP_KINDS.index("add"), 2, 1) * in_c * in_pixels
    values = inputs + (1 + residual) * out_c * out_pixels + weights
    return Sizes(
        form=columns[:, :6],
        in_channels=in_c,
        out_channels=out_c,
        in_pixels=in_pixels,
        out_pixels=out_pixels,
        aspect=in_h / in_w,
        flops=flops,
        traffic=values * scale.precision_bytes,
        weights=np.maximum(weights, 1.0),
    )


def take(sizes: Sizes, rows: NDArray[np.int64]) -> Sizes:
    """Some of the rows, by their (n,) indices."""
    return Sizes(**{name: getattr(sizes, name)[rows] for name in Sizes.__dataclass_fields__})


def feature_columns(sizes: Sizes) -> Floats:
    """(n, features) of the trees; some may be the same for all operators."""
    kind, depthwise, kernel, stride, activation, residual = sizes.form.T
    fan_in = np.where(depthwise, 1, sizes.in_channels) * kernel**2
    logs = [
        *map(np.log, (sizes.in_channels, sizes.out_channels, sizes.in_pixels, sizes.out_pixels)),
        *map(np.log, (fan_in, sizes.flops, sizes.traffic, sizes.weights)),
    ]
    other = [
        np.log(sizes.flops / sizes.traffic),
        np.log(sizes.in_channels / sizes.out_channels),
        np.log(sizes.aspect),
        sizes.in_channels % 8 == 0,
        sizes.in_channels % 16 == 0,
        sizes.out_channels % 8 == 0,
        sizes.out_channels % 16 == 0,
        _padding(sizes.out_channels, 64),
        _padding(sizes.out_channels, 128),
        _padding(fan_in, 32),
        _padding(sizes.out_pixels, 64),
        _padding(sizes.out_pixels, 128),
        *(
            np.ceil(sizes.out_pixels / rows) * np.ceil(sizes.out_channels / columns)  # tiles of a matrix product
            for rows, columns in ((64, 64), (128, 64), (128, 128))
        ),
    ]
    form = [
        kernel,
        stride,
        depthwise,
        residual,
        *(kind == number for number in range(len(OP_KINDS))),
        *(activation == number for number in range(len(ACTIVATIONS))),
    ]
    return np.column_stack([*logs, *other, *form]).astype(np.float64)


def _padding(values: Floats, multiple: int) -> Floats:
    """Log of how much more work there is when `values` are filled up to a multiple."""
    return np.log(np.ceil(values / multiple) * multiple / values)
