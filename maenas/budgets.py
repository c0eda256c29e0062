"""Budgets: a metric, an upper limit, and the units a user may write it in."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from maenas.errors import BudgetError

_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS: dict[str, dict[str, float]] = {
    "latency_ms": {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3, "\u03bcs": 1e-3, "ns": 1e-6},
    "params": _COUNT,
    "flops": _COUNT | {f"{prefix}flops": factor for prefix, factor in _COUNT.items()},
    "layers": {"": 1.0},
    "memory_bytes": {"b": 1.0}
    | {f"{prefix}b": 1e3**power for power, prefix in enumerate("kmgt", start=1)}
    | {f"{prefix}ib": 1024.0**power for power, prefix in enumerate("kmgt", start=1)},
}
METRICS = tuple(_UNITS)
_AMOUNT = re.compile(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([a-zµ\u03bc]*)\s*", re.IGNORECASE)
_EXAMPLE = {"latency_ms": "3.8ms", "params": "9M", "flops": "20G", "layers": "25", "memory_bytes": "8MB"}


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper limit.

    Attributes:
        metric: One of METRICS.
        limit: In the metric's own unit: ms, parameters, FLOPs, convolutions, bytes.
    """

    metric: str
    limit: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise BudgetError(f"unknown metric {self.metric!r}; expected one of {', '.join(METRICS)}")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise BudgetError(f"{self.metric} budget is {self.limit}; expected a number above 0")


def parse_budget(metric: str, text: str) -> Budget:
    """A budget from what a user wrote, such as `3.8ms`, `120us`, `9M`, `20G` or `8MB`.

    Raises:
        BudgetError: Naming metric, text, unit and what was expected.
    """
    return Budget(metric, parse_amount(metric, text))


def parse_amount(metric: str, text: str) -> float:
    """A number with a unit, in the metric's own unit.

    Raises:
        BudgetError: Naming metric, text, unit and what was expected.
    """
    if metric not in METRICS:
        raise BudgetError(f"unknown metric {metric!r}; expected one of {', '.join(METRICS)}")
    units = _UNITS[metric]
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise BudgetError(f"{metric} budget {text!r} is not a number with a unit; expected e.g. {_EXAMPLE[metric]}")
    number, unit = float(match[1]), match[2].lower()
    if unit not in units:
        known = ", ".join(name or "(none)" for name in units)
        found = f"the unit {match[2]!r}" if match[2] else "no unit"
        raise BudgetError(f"{metric} budget {text!r} has {found}; expected one of {known}")
    if metric == "layers" and not number.is_integer():
        raise BudgetError(f"layers budget {text!r} is not a whole number; expected e.g. {_EXAMPLE[metric]}")
    return Budget(metric, number * units[unit]).limit


def format_amount(metric: str, value: float) -> str:
    """A value with its unit, for people."""
    if metric == "latency_ms":
        return f"{value:.3f} ms" if value >= 1.0 else f"{1e3 * value:.2f} us"
    if metric == "layers":
        return f"{value:.0f} layers"
    suffix = {"params": " params", "flops": "FLOPs", "memory_bytes": "B"}[metric]
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3f} {prefix}{suffix}"
    return f"{value:.0f} {suffix.strip()}"
