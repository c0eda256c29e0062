"""Hand-built ONNX networks for timing: chains of random operators over wide ranges, and operators on their own.

A search space's own networks say little about other widths, kernels and map sizes. A probe is a plausible network (a
stem, levels of halving size, a way back up, outputs) whose every width is drawn log-uniformly. Weights are constants,
as runtimes fuse and re-order nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from maenas.errors import ProfileError
from maenas.lowering.op import Op
from maenas.profiling.network_builder import Builder, Map, Size

_ACTIVATIONS = ("relu", "relu", "relu", "silu", "silu", "none", "leaky_relu")

MIN_CONVS, MAX_CONVS = 25, 40
MIN_MACS, MAX_MACS = 1e9, 7e9
"""Work of a probe, drawn log-uniformly: some 20 to 150 ms on one core."""
LIGHT_MACS = (3e7, 6e8)
"""Work of a light probe: what small classifiers have, whose operators are over almost before they have begun."""
MAX_WEIGHTS = 12_000_000
"""Weights of a probe, 48 MB: more would only fill the disk."""
HEAVY = 0.08
"""Share of convolutions that may take most of what is left."""
_LARGEST_MAP = 128 * 320 * 320
_WIDEST = 2048


def probe_network(seed: int, *, image_side: int = 416, light: bool = False) -> Any:  # noqa: ANN401
    """A random network as an ONNX ModelProto with one input `images`, (1, 3, image_side, image_side).

    Args:
        seed: Equal seeds and sides give equal bytes.
        image_side: Height and width of the images, a multiple of 32.
        light: Little work (`LIGHT_MACS`), mostly inverted residuals, down to the smallest maps.

    Raises:
        ProfileError: The side is no multiple of 32.
        MissingExtraError: The package onnx is not installed.
    """
    return build_probe(seed, image_side=image_side, light=light).model()


def build_probe(seed: int, *, image_side: int = 416, light: bool = False) -> Builder:
    """The network of `probe_network`, with the list of its operators; the same errors."""
    if image_side < 64 or image_side % 32:
        raise ProfileError(f"image_side is {image_side}; expected a multiple of 32, at least 64")
    probe = _Probe(seed, image_side, light)
    probe.build()
    return probe.builder


class _Probe:
    """Draws a network within a budget of work, weights and convolutions."""

    def __init__(self, seed: int, image_side: int, light: bool) -> None:
        self.rng = random.Random(f"probe/{seed}/{image_side}" + ("/light" if light else ""))
        self.light = light
        self.builder = Builder((3, (image_side, image_side)), seed=seed)
        self.convs_left = self.rng.randint(MIN_CONVS, MAX_CONVS)
        self.macs_left = self.log_uniform(*(LIGHT_MACS if light else (MIN_MACS, MAX_MACS)))
        self.weights_left = float(MAX_WEIGHTS)
        self.activation = self.rng.choice(_ACTIVATIONS)

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.rng.uniform(math.log(low), math.log(max(low, high))))

    def act(self) -> str:
        """Mostly the probe's own activation: a network seldom mixes them."""
        return self.activation if self.rng.random() < 0.7 else self.rng.choice(_ACTIVATIONS)

    def width(self, size: Size, *, low: int = 8, high: float = _WIDEST) -> int:
        """A multiple of 8, log-uniform up to what a map of this size may hold."""
        cells = size[0] * size[1]
        high = min(high, _WIDEST, max(low, 128 * 320 / math.sqrt(cells)), max(low, _LARGEST_MAP / cells))
        return 8 * max(1, round(self.log_uniform(low, high) / 8))

    def conv(
        self,
        x: Map,
        out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: str | None = None,
        residual: Map | None = None,
    ) -> Map:
        """A convolution, narrowed to what is left of the budget where its width is not fixed by a residual."""
        if not depthwise and residual is None:
            cells = -(-x.size[0] // stride) * -(-x.size[1] // stride)
            per_channel = x.channels * kernel**2
            # Now and then one convolution may take much of the work, as in networks for larger machines.
            share = 0.75 if self.rng.random() < HEAVY else 2.5 / max(4, self.convs_left)
            most = min(share * self.macs_left / (per_channel * cells), share * self.weights_left / per_channel)
            out = min(out, max(8, int(most) // 8 * 8)) if out > 8 else out
        act = self.act() if activation is None else activation
        made = self.builder.conv(x, out, kernel, stride=stride, depthwise=depthwise, activation=act, residual=residual)
        op = self.builder.ops[-1]
        self.macs_left -= float(op.macs)
        self.weights_left -= float(op.weights)
        self.convs_left -= 1
        return made

    def build(self) -> None:
        x = self.stem()
        if self.rng.random() < 0.4:
            x = self.block(x)
        levels: list[Map] = []
        # More convolutions on the small maps, as in real networks; what is left then goes into the way up.
        while min(x.size) > 1 and self.convs_left > 6:
            share = (0.15, 0.2, 0.35, 0.35, 0.3)[min(len(levels), 4)]
            end = self.convs_left - max(2, round(share * self.convs_left))
            x = self.down(x)
            while self.convs_left > max(end, 6):
                x = self.block(x)
            levels.append(x)
            if min(x.size) <= 8 and (self.light or self.rng.random() < 0.6):
                break
        if self.rng.random() < 0.5:
            x = self.spp(x)
        if self.rng.random() < 0.75 and len(levels) > 1:
            x = self.up(x, levels)
        self.heads(x, levels)

    def stem(self) -> Map:
        image = self.builder.image
        kind = self.rng.choice(("conv", "conv", "wide", "focus"))
        half = image.size[0] // 2, image.size[1] // 2
        if kind == "focus":
            parts = []
            for odd_row in (False, True):
                rows = self.builder.glue("slice", [image], out_size=(half[0], image.size[1]), odd=odd_row)
                parts += [self.builder.glue("slice", [rows], out_size=half, odd=odd) for odd in (False, True)]
            joined = self.builder.glue("concat", parts)
            return self.conv(joined, self.width(half), self.rng.choice((1, 3, 3)))
        kernel = self.rng.choice((5, 7)) if kind == "wide" else 3
        return self.conv(image, self.width(half), kernel, stride=2)

    def down(self, x: Map) -> Map:
        kind = self.rng.choice(("conv", "conv", "conv", "depthwise", "pool"))
        target = -(-x.size[0] // 2), -(-x.size[1] // 2)
        if kind == "pool":
            x = self.builder.glue("pool", [x], kernel_size=self.rng.choice((2, 3)), stride=2)
            return self.conv(x, self.width(target), 1)
        if kind == "depthwise":
            x = self.conv(x, x.channels, self.rng.choice((3, 5)), stride=2, depthwise=True)
            return self.conv(x, self.width(target), 1)
        return self.conv(x, self.width(target), self.rng.choice((1, 3, 3, 3, 5)), stride=2)

    def block(self, x: Map) -> Map:
        kinds = (self.plain, self.plain, self.bottleneck, self.bottleneck, self.inverted, self.inverted, self.split)
        return self.inverted(x) if self.light and self.rng.random() < 0.6 else self.rng.choice(kinds)(x)

    def plain(self, x: Map) -> Map:
        return self.conv(x, self.width(x.size), self.rng.choice((1, 1, 3, 3, 3, 5)))

    def bottleneck(self, x: Map) -> Map:
        """Two convolutions and the addition of their input; the width it needs may not fit, and is then let go."""
        first, second = self.rng.choice(((1, 3), (3, 3), (3, 1), (1, 5)))
        hidden = self.conv(x, self.width(x.size), first)
        cost = hidden.channels * second**2 * x.channels
        fits = cost * x.size[0] * x.size[1] < self.macs_left / 4 and cost < self.weights_left / 4
        return self.conv(hidden, x.channels, second, residual=x if fits else None)

    def inverted(self, x: Map) -> Map:
        hidden = self.conv(x, self.width(x.size, low=min(x.channels, 512)), 1)
        hidden = self.conv(hidden, hidden.channels, self.rng.choice((3, 5, 5, 7)), depthwise=True)
        if self.rng.random() < 0.3:
            hidden = self.builder.glue("se", [hidden])
        residual = self.rng.random() < 0.5 and x.channels * hidden.channels * x.size[0] * x.size[1] < self.macs_left / 4
        out = x.channels if residual else self.width(x.size)
        return self.conv(hidden, out, 1, activation="none", residual=x if residual else None)

    def split(self, x: Map) -> Map:
        """Two 1x1 branches, one of them longer, concatenated."""
        short = self.conv(x, self.width(x.size), 1)
        long = self.conv(self.conv(x, self.width(x.size), 1), self.width(x.size), 3)
        return self.conv(self.builder.glue("concat", [long, short]), self.width(x.size), 1)

    def spp(self, x: Map) -> Map:
        x = self.conv(x, self.width(x.size, high=512), 1, activation="silu")
        pools = [self.builder.glue("pool", [x], kernel_size=kernel) for kernel in (5, 9, 13)]
        return self.conv(self.builder.glue("concat", [x, *pools]), self.width(x.size), 1, activation="silu")

    def up(self, x: Map, levels: Sequence[Map]) -> Map:
        """Back to larger maps, joining those of the way down."""
        for level in reversed(levels[-4:-1]):
            if level.size != (2 * x.size[0], 2 * x.size[1]) or self.convs_left < 2:
                break
            adds = self.rng.random() < 0.3
            if adds or x.channels > 256:
                x = self.conv(x, level.channels if adds else self.width(x.size, high=256), 1)
            adds = x.channels == level.channels
            resized = self.builder.glue("resize", [x], out_size=level.size)
            joined = self.builder.glue("add" if adds else "concat", [resized, level])
            x = self.conv(joined, self.width(level.size, high=512), self.rng.choice((1, 1, 3)))
        return x

    def heads(self, x: Map, levels: Sequence[Map]) -> None:
        """Outputs of any number of channels, some with a sigmoid, some scaled; or the tail of a classifier."""
        for level in (x, *levels[-2:]):
            for activation in ("sigmoid", "none"):
                out = self.conv(level, self.rng.randint(4, 100), self.rng.choice((1, 3)), activation=activation)
                scaled = activation == "none" and self.rng.random() < 0.3
                self.builder.output(self.builder.glue("mul", [out]) if scaled else out)
            if self.convs_left <= 1:
                break


def isolated_op(op: Op, *, seed: int = 0) -> Any:  # noqa: ANN401
    """One operator alone as an ONNX ModelProto with one input; weights, bias and other operands are constants.

    Args:
        op: Channels are plain numbers.
        seed: Of the weights.

    Raises:
        ProfileError: The operator's sizes do not fit its kind.
        MissingExtraError: The package onnx is not installed.
    """
    channels, size = int(op.in_channels), op.in_size
    second = channels // 2 if op.kind == "concat" else 0
    builder = Builder((channels - second, size), seed=seed)
    x = builder.image
    if op.kind == "conv":
        shape = (1, int(op.out_channels), *op.out_size)
        same = (x.channels, x.size) == (shape[1], op.out_size)
        residual = x if same else Map(builder.constant(shape), shape[1], op.out_size)
        out = builder.conv(
            x,
            int(op.out_channels),
            op.kernel_size,
            stride=op.stride,
            depthwise=op.depthwise,
            activation=op.activation,
            residual=residual if op.residual else None,
        )
    else:
        operands = [x]
        if op.kind == "add" or second:
            count = second or channels
            operands.append(Map(builder.constant((1, count, *size)), count, size))
        out = builder.glue(op.kind, operands, kernel_size=op.kernel_size, stride=op.stride, out_size=_free_size(op))
    if (out.channels, out.size) != (int(op.out_channels), op.out_size):
        made = f"{out.channels} channels at {out.size[0]}x{out.size[1]}"
        raise ProfileError(f"a {op.kind} from {op.in_size} to {op.out_size} cannot be built: it gives {made}")
    builder.output(out)
    return builder.model()


def _free_size(op: Op) -> Size | None:
    return op.out_size if op.kind in ("resize", "slice") else None
