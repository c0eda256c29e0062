"""The whole front of objective against one cost, by windows of the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from maenas.solver.labels import sweep
from maenas.solver.problem import ChainProblem, Solution
from maenas.solver.relaxation import Relaxation, Values
from maenas.solver.solve import Infeasible, Solved, solve

WINDOW = 1.5e-3
"""Rise of the bound per window, relative; narrower windows repeat work, wider ones keep too many labels."""


def front(
    problem: ChainProblem, low: float, high: float, progress: Callable[[float], None] = lambda fraction: None
) -> list[Solution] | Infeasible:
    """Every solution with a cost of at most `high` that no cheaper or equally cheap one matches or beats.

    Args:
        problem: A problem with one cost; its own limit is not read.
        low: Start; the first entry is the optimum within this limit.
        high: Largest cost.
        progress: Called with the finished fraction of the range.

    Returns:
        Solutions by ascending cost, or why there is none.

    Raises:
        ValueError: The problem has another number of costs.
    """
    if len(problem.metrics) != 1:
        raise ValueError("a front needs exactly one cost")
    reachable = solve(_limited(problem, high))
    if isinstance(reachable, Infeasible):
        return reachable
    relaxation = Relaxation(_limited(problem, high), reachable.relaxation.grid)
    cheapest = (relaxation.cheapest(0),)
    # A hair above the smallest cost, so that rounding in another order of summing does not lose the cheapest path.
    low = max(low, float(problem.fixed_cost[0] - cheapest[0].root) * (1.0 + 1e-9))
    first = solve(_limited(problem, low))
    assert isinstance(first, Solved)
    points = [first.solution]
    values = _multiplier_grid(relaxation, solved=(first, reachable))
    limit, best = low, first.solution.objective
    while limit < high:
        chosen, following = _next_window(relaxation, values, limit, best, high)
        room = np.array([following]) - problem.fixed_cost
        found = sweep(relaxation, best, chosen, cheapest, room=room)
        for place in np.lexsort((-found.finals.objective, found.finals.cost[0])):
            # Ties up to rounding are one network met twice, not two points of the front.
            if found.finals.objective[place] > best + 1e-9 * (1.0 + abs(best)):
                best = float(found.finals.objective[place])
                points.append(found.solution(relaxation, int(place)))
        limit = following
        progress((limit - low) / (high - low))
    return points


def _limited(problem: ChainProblem, limit: float) -> ChainProblem:
    return replace(problem, limits=np.array([limit]))


def _multiplier_grid(relaxation: Relaxation, solved: tuple[Solved, Solved]) -> list[Values]:
    """Tables of multipliers from the steepest (low end) to the flattest (high end), a few per cent apart."""
    steep, flat = (float(each.values[0].multipliers[0]) for each in solved)
    grid = [0.0] if flat <= 0.0 else []
    flat = flat or steep * 1e-3
    if steep > 0.0:
        count = 2 + int(np.ceil(abs(np.log(steep / flat)) / 0.06))
        grid += [float(value) for value in np.geomspace(flat, steep, count)]
    return [relaxation.values(np.array([value])) for value in grid]


def _next_window(
    relaxation: Relaxation, values: list[Values], limit: float, best: float, high: float
) -> tuple[list[Values], float]:
    """Multipliers for the next window and its upper end: the largest limit whose bound rises by WINDOW at most."""
    fixed = float(relaxation.problem.fixed_cost[0])
    rise = WINDOW * (1.0 + abs(best))
    end = limit
    while end <= limit + 1e-4 * (high - limit) and end < high:
        # A multiplier proves bound(end) = root + lambda (end - fixed); each solves for the end it still allows.
        ends = [
            high if each.multipliers[0] == 0.0 and each.root <= best + rise
            else limit if each.multipliers[0] == 0.0
            else fixed + (best + rise - each.root) / float(each.multipliers[0])
            for each in values
        ]  # fmt: skip
        end = min(high, max(ends))
        rise *= 2.0
    tightest_at = {
        int(np.argmin([relaxation.bound(each, np.array([at - fixed])) for each in values])) for at in (limit, end)
    }
    return [values[place] for place in sorted(tightest_at)], end
