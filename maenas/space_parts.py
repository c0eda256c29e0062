"""The parts of a search space: ranges of widths, stem, stages, soft penalties, neck and head settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maenas.records import require
from maenas.structure import Head, Stem

Integers = NDArray[np.int64]
MAX_WEIGHT = 1e6
"""Largest weight of a penalty or of a level; far above any use, far below what rounding could not carry."""


@dataclass(frozen=True, slots=True)
class Range:
    """All multiples of `divisor` from `min` to `max`; in a file a plain number fixes the value.

    Attributes:
        min: Smallest value.
        max: Largest value.
        divisor: Values are its multiples; a fixed value (min = max) need not be.
    """

    min: int
    max: int
    divisor: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.min <= self.max, "min", self.min, f"0 to max ({self.max})")
        require(self.max <= 65_536, "max", self.max, "at most 65536")
        require(self.divisor >= 1, "divisor", self.divisor, "at least 1")
        require(len(self.values) > 0, "divisor", self.divisor, f"one with a multiple from {self.min} to {self.max}")

    @classmethod
    def from_scalar(cls, value: float) -> Range:
        """A fixed value; anything but a whole number is refused."""
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"{value} is not a whole number")
        return cls(int(value), int(value))

    @property
    def values(self) -> Integers:
        """The values in ascending order."""
        if self.min == self.max:
            return np.array([self.min], dtype=np.int64)
        first = -(-self.min // self.divisor) * self.divisor
        return np.arange(first, self.max + 1, self.divisor, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class StemSpace:
    """Stem: `focus` or `conv`; only its width is searched."""

    kind: str
    stride: int
    kernel_size: int
    out_channels: Range
    in_channels: int = 3

    def __post_init__(self) -> None:
        Stem(self.kind, self.in_channels, max(1, self.out_channels.min), self.kernel_size, self.stride)
        require(self.out_channels.min >= 1, "out_channels.min", self.out_channels.min, "at least 1")


@dataclass(frozen=True, slots=True)
class StageSpace:
    """What one stage may be.

    Attributes:
        stride: 1 or 2.
        out_channels: Output widths.
        hidden_channels: Hidden widths (one per stage: all its units share it).
        min_hidden_ratio: Smallest hidden / out, rounded to the hidden divisor.
        max_hidden_ratio: Largest hidden / out, rounded to the hidden divisor.
        depth: Number of units.
        kernel_sizes: Choices for the spatial kernel.
        min_growth: Smallest out / in.
        max_growth: Largest out / in.
        spp: Spatial pyramid pooling in this stage.
        se: Squeeze-and-excitation in every unit (mob).
    """

    stride: int
    out_channels: Range
    hidden_channels: Range
    depth: Range
    kernel_sizes: tuple[int, ...] = (3,)
    min_hidden_ratio: float = 0.0
    max_hidden_ratio: float = 64.0
    min_growth: float = 1.0
    max_growth: float = 64.0
    spp: bool = False
    se: bool = False

    def __post_init__(self) -> None:
        require(self.stride in (1, 2), "stride", self.stride, "1 or 2")
        for name, values in (("out_channels", self.out_channels), ("hidden_channels", self.hidden_channels)):
            require(values.min >= 1, f"{name}.min", values.min, "at least 1")
        require(self.depth.max <= 64, "depth.max", self.depth.max, "at most 64")
        require(len(self.kernel_sizes) > 0, "kernel_sizes", self.kernel_sizes, "at least one odd number")
        for kernel in self.kernel_sizes:
            odd = kernel % 2 == 1 and 1 <= kernel <= 31
            require(odd, "kernel_sizes", self.kernel_sizes, "odd numbers from 1 to 31")
        ratios = 0 <= self.min_hidden_ratio <= self.max_hidden_ratio
        require(ratios, "min_hidden_ratio", self.min_hidden_ratio, f"0 to max_hidden_ratio ({self.max_hidden_ratio})")
        growths = 0 <= self.min_growth <= self.max_growth
        require(growths, "min_growth", self.min_growth, f"0 to max_growth ({self.max_growth})")

    def hidden_bounds(self, out_channels: Integers) -> tuple[Integers, Integers]:
        """Smallest and largest hidden width for each output width (ratio bounds are rounded to the divisor)."""
        step = self.hidden_channels.divisor
        low = np.maximum(step * np.round(self.min_hidden_ratio * out_channels / step), 1)
        high = np.maximum(step * np.round(self.max_hidden_ratio * out_channels / step), step)
        return low.astype(np.int64), high.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Regularisers:
    """Soft penalties, subtracted from the score while searching; 0 switches one off.

    Attributes:
        depth: mu: weight of the sum of squared stage depths.
        growth: nu: weight of ln^2(out / (g in)), with g = 2 at stride 2, else 1.
        hidden: nu of the hidden widths: weight of ln^2(hidden / (hidden_target out)).
        hidden_target: beta: preferred hidden / out.
    """

    depth: float = 0.0
    growth: float = 0.0
    hidden: float = 0.0
    hidden_target: float = 0.5

    def __post_init__(self) -> None:
        for name in ("depth", "growth", "hidden"):
            value = getattr(self, name)
            require(0 <= value <= MAX_WEIGHT, name, value, f"a number from 0 to {MAX_WEIGHT:g}")
        require(0 < self.hidden_target <= 64, "hidden_target", self.hidden_target, "a number above 0, at most 64")

    def penalty(
        self, stride: int, in_channels: Integers, out_channels: Integers, hidden: Integers, depth: int
    ) -> NDArray[np.float64]:
        """Penalty of a stage; channel arrays broadcast."""
        growth = np.log(out_channels / (stride * in_channels)) ** 2
        ratio = np.log(hidden / (self.hidden_target * out_channels)) ** 2
        total: NDArray[np.float64] = self.depth * depth**2 + self.growth * growth + self.hidden * ratio
        return total


@dataclass(frozen=True, slots=True)
class NeckSpace:
    """Neck settings of a variant; `out_channels` null follows the backbone's widths."""

    num_blocks: int
    hidden_ratio: float
    out_channels: tuple[int, int, int] | None = None
    depthwise: bool = False
    fusion: str = "csp_elan"
    extra_edges: str = "down"


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of neck and head (and, if given, of the stem) around the searched backbone.

    A backbone score cannot compare necks (it would always choose the cheapest), so a search uses one variant: the
    space's first, or the one asked for.
    """

    name: str
    neck: NeckSpace
    head: Head
    stem: StemSpace | None = None
