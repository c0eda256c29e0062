"""Exact optimum with a certificate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maenas.solver.labels import Sweep, sweep
from maenas.solver.problem import ChainProblem, Solution, evaluate_path
from maenas.solver.relaxation import Relaxation, Values, feasible, layer_grid, tightest

NUM_BOUNDS = 3
"""Multiplier vectors used to bound labels; more prune better and cost more."""

FIRST_WINDOW = 2e-4
"""First guess of the duality gap, relative to the bound."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Proof of optimality.

    Attributes:
        upper_bound: No allowed solution has a larger objective.
        gap: upper_bound - objective of the solution (0 up to rounding when solved to optimality).
        lagrangian_bound: The bound before label setting; its distance is the duality gap that labels had to close.
        multipliers: Objective per unit of each cost at that bound: what one more ms would buy.
        labels: Partial paths kept in the final pass.
        pruned: Partial paths dropped by bounds and dominance in the final pass.
        passes: Forward passes until the acceptance test held.
    """

    upper_bound: float
    gap: float
    lagrangian_bound: float
    multipliers: tuple[float, ...]
    labels: int
    pruned: int
    passes: int


@dataclass(frozen=True, slots=True)
class Solved:
    """An optimum, its proof, and the tables it came from (for shortlists and fronts)."""

    solution: Solution
    certificate: Certificate
    relaxation: Relaxation
    values: tuple[Values, ...]
    cheapest: tuple[Values, ...]


@dataclass(frozen=True, slots=True)
class Infeasible:
    """Why there is no solution.

    Attributes:
        smallest: Smallest reachable value of each cost on its own (fixed cost included); None if nothing is allowed.
        paths: The path that reaches it, per cost.
        fewest_layers: Fewest main-path convolutions of any path.
    """

    smallest: tuple[float, ...] | None
    paths: tuple[tuple[tuple[int, int], ...], ...]
    fewest_layers: int


def solve(problem: ChainProblem, *, floor: float = -np.inf) -> Solved | Infeasible:
    """Maximise the objective within all limits.

    Args:
        problem: What to solve.
        floor: Objectives below this are of no interest; if the optimum is lower, the answer is `Infeasible`.

    Returns:
        The certified optimum, or why there is none. Deterministic: ties go to the first path in lexicographic order of
        the internal arrays.
    """
    grid = layer_grid(problem)
    fewest = sum(int(decision.layers[0]) for decision in problem.decisions)
    if grid is None:
        return Infeasible(None, (), fewest)
    relaxation = Relaxation(problem, grid)
    cheapest = tuple(relaxation.cheapest(metric) for metric in range(len(problem.metrics)))
    if any(not np.isfinite(each.root) for each in cheapest):
        return Infeasible(None, (), fewest)
    smallest = tuple(float(f - each.root) for f, each in zip(problem.fixed_cost, cheapest, strict=True))
    if any(value > limit for value, limit in zip(smallest, problem.limits, strict=True)):
        return _infeasible(relaxation, smallest, cheapest, fewest)
    tried, incumbent = tightest(relaxation)
    values = _spread(tried)
    bound = relaxation.bound(tried[0])
    incumbent = _first_feasible(problem, relaxation, cheapest, incumbent, tried[0])
    window = FIRST_WINDOW * (1.0 + abs(bound))
    if incumbent is not None:
        window = min(window, bound - incumbent.objective)
    return _label_passes(relaxation, values, cheapest, bound, window, floor, smallest, fewest)


def _label_passes(
    relaxation: Relaxation,
    values: tuple[Values, ...],
    cheapest: tuple[Values, ...],
    bound: float,
    window: float,
    floor: float,
    smallest: tuple[float, ...],
    fewest: int,
) -> Solved | Infeasible:
    """Widen the window below the bound until the best path found proves that nothing better was dropped."""
    passes = 0
    exhaustive = False
    threshold = max(floor, bound - window)
    while True:
        passes += 1
        found = sweep(relaxation, threshold, () if exhaustive else values, cheapest)
        best = float(np.max(found.finals.objective)) if len(found.finals) else -np.inf
        if is_proven(best, threshold):
            return _accept(relaxation, values, cheapest, bound, found, passes)
        if exhaustive or threshold == floor > -np.inf:
            return _infeasible(relaxation, smallest, cheapest, fewest)
        # Accepting a non-empty pass below its threshold would be wrong: better paths may have been dropped. The next
        # threshold is that path's own objective, not bound - (bound - best), which rounding can put above it for ever.
        if np.isfinite(best):
            threshold = max(floor, best)
            continue
        window = max(2.0 * window, 1e-9 * (1.0 + abs(bound)))
        exhaustive = window > 1e3 * (1.0 + abs(bound))
        threshold = max(floor, -np.inf if exhaustive else bound - window)


def is_proven(best: float, threshold: float) -> bool:
    """Whether the best path of a pass is the optimum: nothing at or above the threshold was dropped."""
    return bool(np.isfinite(best)) and best >= threshold


def _accept(
    relaxation: Relaxation,
    values: tuple[Values, ...],
    cheapest: tuple[Values, ...],
    bound: float,
    found: Sweep,
    passes: int,
) -> Solved:
    solution = found.solution(relaxation, int(np.argmax(found.finals.objective)))
    checked = evaluate_path(relaxation.problem, solution.path)
    # Every path that the pass dropped is worse than, or as good as, the best one: the optimum is its own bound.
    certificate = Certificate(
        upper_bound=solution.objective,
        gap=abs(solution.objective - checked.objective),
        lagrangian_bound=bound,
        multipliers=tuple(float(value) for value in values[0].multipliers),
        labels=found.kept,
        pruned=found.pruned,
        passes=passes,
    )
    return Solved(solution, certificate, relaxation, values, cheapest)


def _spread(tried: list[Values]) -> tuple[Values, ...]:
    """The best multipliers and a few different ones, which bound labels that spent more or less than average."""
    chosen = tried[:1]
    for values in tried[1:]:
        near = any(np.allclose(values.multipliers, other.multipliers, rtol=0.02, atol=0.0) for other in chosen)
        if len(chosen) < NUM_BOUNDS and not near:
            chosen.append(values)
    return tuple(chosen)


def _first_feasible(
    problem: ChainProblem,
    relaxation: Relaxation,
    cheapest: tuple[Values, ...],
    incumbent: Solution | None,
    best: Values,
) -> Solution | None:
    """A feasible path to start from: the best of the known ones, and of paths at slightly higher prices."""
    known = [cheapest_path(relaxation, each) for each in cheapest]
    if incumbent is None or len(problem.metrics) > 1:
        steeper = [relaxation.values(best.multipliers * factor) for factor in (1.005, 1.02, 1.06, 1.2, 1.6)]
        known += [relaxation.trace(values) for values in steeper]
    for path in known:
        if feasible(problem, path) and (incumbent is None or path.objective > incumbent.objective):
            incumbent = path
    return incumbent


def cheapest_path(relaxation: Relaxation, values: Values) -> Solution:
    """The path of the smallest cost, from the tables of `Relaxation.cheapest`."""
    flat = Relaxation(without_gain(relaxation.problem), relaxation.grid)
    path = flat.trace(values).path
    return evaluate_path(relaxation.problem, path)


def without_gain(problem: ChainProblem) -> ChainProblem:
    """The same problem where every allowed path is equally good: its solution is any path within the limits."""
    flat = tuple(
        replace(decision, gain=np.where(np.isneginf(decision.gain), -np.inf, 0.0)) for decision in problem.decisions
    )
    return replace(problem, decisions=flat)


def _infeasible(
    relaxation: Relaxation, smallest: tuple[float, ...], cheapest: tuple[Values, ...], fewest: int
) -> Infeasible:
    paths = tuple(cheapest_path(relaxation, each).path for each in cheapest)
    return Infeasible(smallest, paths, fewest)
