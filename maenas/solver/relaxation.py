"""Lagrangian relaxation of a chain problem: a dynamic programme per multiplier vector.

`V[d][t, i, k]` is the best objective - lambda * cost from decision d on, given C3 index t, input width index i and k
units of layers left. t has length 1 up to and including the tap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from maenas.solver.problem import ChainProblem, Floats, Integers, Solution, evaluate_path, weigh


@dataclass(frozen=True, slots=True)
class LayerGrid:
    """The layer limit as a small integer resource: `capacity` units, of which an option uses `steps[d][option]`."""

    capacity: int
    steps: tuple[Integers, ...]
    levels: tuple[Integers, ...]
    starts: tuple[Integers, ...]


def layer_grid(problem: ChainProblem) -> LayerGrid | None:
    """Units of layers that options use above each decision's minimum; None if even the minimum is too deep."""
    excess = [decision.layers - decision.layers[0] for decision in problem.decisions]
    if problem.max_layers is None:
        excess = [np.zeros_like(steps) for steps in excess]
        capacity = 0
    else:
        spare = problem.max_layers - sum(int(decision.layers[0]) for decision in problem.decisions)
        if spare < 0:
            return None
        unit = math.gcd(*(int(value) for steps in excess for value in steps)) or 1
        excess = [steps // unit for steps in excess]
        capacity = min(spare // unit, sum(int(steps[-1]) for steps in excess))
    starts = [np.flatnonzero(np.diff(steps, prepend=-1)) for steps in excess]
    levels = [steps[first] for steps, first in zip(excess, starts, strict=True)]
    return LayerGrid(capacity, tuple(excess), tuple(levels), tuple(starts))


@dataclass(frozen=True, slots=True)
class Values:
    """Tables of one multiplier vector.

    Attributes:
        multipliers: (M,) lambda.
        tables: V[d] for each decision, then the tail's own (T, I, O) value as the last entry.
    """

    multipliers: Floats
    tables: tuple[Floats, ...]

    @property
    def root(self) -> float:
        """Best relaxed value of the whole chain."""
        return float(self.tables[0][0, 0, -1])


@dataclass(slots=True)
class Relaxation:
    """Value tables of a problem, cached by multipliers.

    Attributes:
        problem: The chain problem.
        grid: Its layer resource.
        cache: Tables already computed.
    """

    problem: ChainProblem
    grid: LayerGrid
    cache: dict[tuple[float, ...], Values] = field(default_factory=dict)

    @property
    def room(self) -> Floats:
        """(M,) limits less the fixed cost."""
        return self.problem.limits - self.problem.fixed_cost

    def values(self, multipliers: Floats) -> Values:
        """Tables for a multiplier vector (M,) of non-negative numbers."""
        key = tuple(float(value) for value in multipliers)
        if key not in self.cache:
            self.cache[key] = self._backward(multipliers, 1.0)
        return self.cache[key]

    def cheapest(self, metric: int) -> Values:
        """Tables whose negated entries are the smallest completions of one cost alone."""
        return self._backward(np.eye(len(self.problem.metrics))[metric], 0.0)

    def bound(self, values: Values, room: Floats | None = None) -> float:
        """Upper bound of the objective that the tables prove."""
        return float(weigh(values.multipliers, self.room if room is None else room)) + values.root

    def reduced_gain(self, index: int, multipliers: Floats, scale: float = 1.0) -> Floats:
        """(I, O, P) gain less the multipliers' share of the cost; scale 0 keeps only what is allowed."""
        decision = self.problem.decisions[index]
        gain = decision.gain if scale else np.where(np.isneginf(decision.gain), -np.inf, 0.0)
        return gain - weigh(multipliers, decision.cost)

    def next_values(self, values: Values, index: int) -> Floats:
        """(T, O, K) value after decision `index`, by C3, output width and layers left; not for the last decision."""
        following = values.tables[index + 1]
        if index == self.problem.tap:
            own = np.arange(following.shape[0])
            return following[own, own][None]
        return following

    def trace(self, values: Values) -> Solution:
        """The path that attains the root value (it may exceed the limits)."""
        problem, grid = self.problem, self.grid
        path: list[tuple[int, int]] = []
        third, came_in, left = 0, 0, grid.capacity
        for index, decision in enumerate(problem.decisions):
            reduced = decision.gain[came_in] - weigh(values.multipliers, decision.cost[:, came_in])
            after = left - grid.steps[index]
            if index == len(problem.decisions) - 1:
                ahead = np.broadcast_to(values.tables[-1][third, came_in][:, None], reduced.shape)
            else:
                ahead = self.next_values(values, index)[third][:, np.maximum(after, 0)]
            total = np.where(after >= 0, reduced + ahead, -np.inf)
            out, option = divmod(int(np.argmax(total)), len(decision.layers))
            path.append((out, option))
            left -= int(grid.steps[index][option])
            third, came_in = (out if index == problem.tap else third), out
        return evaluate_path(problem, tuple(path))

    def _backward(self, multipliers: Floats, scale: float) -> Values:
        problem = self.problem
        tail = problem.tail_gain - weigh(multipliers, problem.tail_cost)
        tables: list[Floats] = [tail]
        for index in range(len(problem.decisions) - 1, -1, -1):
            reduced = self.reduced_gain(index, multipliers, scale)
            best = np.maximum.reduceat(reduced, self.grid.starts[index], axis=2)
            if index == len(problem.decisions) - 1:
                table = self._last_table(best, tail)
            else:
                ahead = self.next_values(Values(multipliers, ((),) * (index + 1) + tuple(tables)), index)  # type: ignore[arg-type]
                table = self._table(index, best, ahead)
            tables.insert(0, table)
        return Values(multipliers, tuple(tables))

    def _last_table(self, best: Floats, tail: Floats) -> Floats:
        capacity, levels = self.grid.capacity, self.grid.levels[-1]
        by_level = np.max(best[None] + tail[..., None], axis=2)
        table = np.full((tail.shape[0], tail.shape[1], capacity + 1), -np.inf)
        for place, level in enumerate(levels):
            if level <= capacity:
                table[..., level:] = np.maximum(table[..., level:], by_level[..., place, None])
        return table

    def _table(self, index: int, best: Floats, ahead: Floats) -> Floats:
        capacity = self.grid.capacity
        table = np.full((ahead.shape[0], best.shape[0], capacity + 1), -np.inf)
        for place, level in enumerate(self.grid.levels[index]):
            if level <= capacity:
                through = best[None, :, :, place, None] + ahead[:, None, :, : capacity + 1 - level]
                table[..., level:] = np.maximum(table[..., level:], np.max(through, axis=2))
        return table


def tightest(relaxation: Relaxation, max_steps: int = 60) -> tuple[list[Values], Solution | None]:
    """Multipliers that (nearly) minimise the bound, best first, and the best feasible path met on the way."""
    if len(relaxation.problem.metrics) == 1:
        return _line_search(relaxation, max_steps)
    return _cutting_planes(relaxation, max_steps)


def _better(a: Solution | None, b: Solution) -> Solution:
    return b if a is None or b.objective > a.objective else a


def feasible(problem: ChainProblem, solution: Solution) -> bool:
    """All limits kept, and the path allowed."""
    within = all(cost <= limit for cost, limit in zip(solution.cost, problem.limits, strict=True))
    return within and solution.objective > -np.inf


def _line_search(relaxation: Relaxation, max_steps: int) -> tuple[list[Values], Solution | None]:
    """One budget: intersect the lines of an over-budget and a within-budget path until they are the same two."""
    limit = float(relaxation.problem.limits[0])
    values = relaxation.values(np.zeros(1))
    over = relaxation.trace(values)
    if over.cost[0] <= limit:
        return [values], over
    incumbent: Solution | None = None
    multiplier = max(1e-9, abs(over.objective) / over.cost[0])
    within: Solution | None = None
    tried: list[Values] = []
    for _ in range(max_steps):
        values = relaxation.values(np.array([multiplier]))
        tried.append(values)
        found = relaxation.trace(values)
        reached = found.objective - multiplier * found.cost[0]
        if found.cost[0] > limit:
            known = over
            over = found
        else:
            known = within or found
            within = found
            incumbent = _better(incumbent, found)
        if within is None:
            multiplier *= 4.0
            continue
        slope = over.cost[0] - within.cost[0]
        if slope <= 0.0:
            break
        following = (over.objective - within.objective) / slope
        attained = known.objective - multiplier * known.cost[0] >= reached - 1e-12 * (1.0 + abs(reached))
        if (attained and known is not found) or following == multiplier or following < 0.0:
            break
        multiplier = following
    tried.sort(key=relaxation.bound)
    return tried, incumbent


def _cutting_planes(relaxation: Relaxation, max_steps: int) -> tuple[list[Values], Solution | None]:
    """Several budgets: Kelley's method on the bound, one linear programme per step."""
    from scipy.optimize import linprog

    problem = relaxation.problem
    limits = problem.limits
    num = len(limits)
    incumbent: Solution | None = None
    cuts: list[Solution] = []
    tried: list[Values] = []
    multipliers, ceiling = np.zeros(num), np.full(num, np.inf)
    for _ in range(max_steps):
        values = relaxation.values(multipliers)
        found = relaxation.trace(values)
        tried.append(values)
        if feasible(problem, found):
            incumbent = _better(incumbent, found)
        if not cuts:
            ceiling = 1e3 * (1.0 + abs(found.objective)) / np.maximum(limits, 1e-12)
        cuts.append(found)
        # Minimise theta subject to theta >= objective + lambda (limit - cost) for every path met so far.
        slack = np.array([limits - np.array(cut.cost) for cut in cuts])
        scaled = slack / limits
        left = np.column_stack([-np.ones(len(cuts)), scaled])
        right = -np.array([cut.objective for cut in cuts])
        boxes = [(None, None)] + [(0.0, float(top)) for top in ceiling * limits]
        answer = linprog(np.eye(num + 1)[0], A_ub=left, b_ub=right, bounds=boxes, method="highs")
        if not answer.success or answer.x is None:
            break
        best = min(relaxation.bound(each) for each in tried)
        if best - answer.x[0] <= 1e-6 * (1.0 + abs(best)):
            break
        multipliers = answer.x[1:] / limits
    tried.sort(key=relaxation.bound)
    return tried, incumbent
