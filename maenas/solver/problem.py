"""The chain problem: decisions linked by channels, a separable objective, and additive costs with limits.

Decision d chooses an output width and an option (hidden width, kernel, depth) given its input width, which is the
output width of decision d - 1. Gains and costs add up along the chain. The neck and the head cost what three of the
widths (C3, C4, C5) say; C5 is the last output, C4 the last input and C3 the output of an earlier decision, the tap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Steps = tuple[tuple[int, int], ...]
"""A path: for each decision (index of the output width, index of the option)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of the chain; options are sorted by `layers`.

    Attributes:
        in_channels: (I,) input widths, equal to the output widths of the decision before.
        out_channels: (O,) output widths.
        hidden: (P,) hidden width of each option.
        kernel: (P,) kernel of each option.
        depth: (P,) units of each option.
        layers: (P,) main-path convolutions of each option, ascending.
        gain: (I, O, P) objective; -inf where the option is not allowed.
        cost: (M, I, O, P) costs, finite and not negative everywhere.
    """

    in_channels: Integers
    out_channels: Integers
    hidden: Integers
    kernel: Integers
    depth: Integers
    layers: Integers
    gain: Floats
    cost: Floats


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """Decisions, tail and limits.

    Attributes:
        decisions: In order; the first has one input width.
        metrics: (M,) names of the costs.
        limits: (M,) upper limits of the total cost.
        fixed_cost: (M,) cost of every solution.
        tail_cost: (M, T, I, O) cost of neck and head by C3, C4 (input of the last decision) and C5 (its output); T is 1
            without a tap.
        tail_gain: (T, I, O) 0, or -inf where the combination is not allowed.
        tap: Decision whose output is C3, or None if no cost depends on it.
        max_layers: Limit on the sum of `layers`, or None.
    """

    decisions: tuple[Decision, ...]
    metrics: tuple[str, ...]
    limits: Floats
    fixed_cost: Floats
    tail_cost: Floats
    tail_gain: Floats
    tap: int | None = None
    max_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Solution:
    """One complete path.

    Attributes:
        objective: Sum of gains.
        cost: (M,) total costs, fixed cost and tail included.
        path: For each decision (index of the output width, index of the option).
    """

    objective: float
    cost: tuple[float, ...]
    path: Steps


def weigh(multipliers: Floats, cost: Floats) -> Floats:
    """Sum over metrics of multiplier times cost; (M,) and (M, ...) give (...).

    Written out rather than left to a matrix product: M is 1 to 3, and the result does not depend on BLAS threads.
    """
    total: Floats = multipliers[0] * cost[0]
    for multiplier, part in zip(multipliers[1:], cost[1:], strict=True):
        total = total + multiplier * part
    return total


def evaluate_path(problem: ChainProblem, path: Steps) -> Solution:
    """Objective and costs of a path, summed from scratch (used to check the solver)."""
    objective = 0.0
    cost = problem.fixed_cost.copy()
    came_in, third = 0, 0
    for index, (decision, (out, option)) in enumerate(zip(problem.decisions, path, strict=True)):
        objective += float(decision.gain[came_in, out, option])
        cost = cost + decision.cost[:, came_in, out, option]
        if index == problem.tap:
            third = out
        last_in, came_in = came_in, out
    objective += float(problem.tail_gain[third, last_in, came_in])
    cost = cost + problem.tail_cost[:, third, last_in, came_in]
    return Solution(objective, tuple(float(value) for value in cost), path)
