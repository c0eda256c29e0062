"""A diverse near-optimal shortlist: the best solution of each of the best depth vectors.

Near-optimal networks cluster around the optimum, so a list of the next best ones would be one network many times over.
Two entries of this list differ in how many units some stage has.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from maenas.solver.problem import ChainProblem, Decision, Floats, Integers, Solution, weigh
from maenas.solver.relaxation import Relaxation, Values
from maenas.solver.solve import Infeasible, Solved, solve

MAX_VECTORS = 20_000
"""More depth vectors than this are not enumerated; the rest of the list is then left out."""


def shortlist(problem: ChainProblem, solved: Solved, count: int, *, max_loss: float = 0.05) -> list[Solution]:
    """The best solution of each of the `count` best depth vectors, best first.

    Args:
        problem: The problem that was solved.
        solved: Its optimum and tables.
        count: Entries wanted; the first is the optimum.
        max_loss: Stop this far below the optimum (relative).

    Returns:
        At most `count` solutions, each the certified optimum of its depth vector.
    """
    found = [solved.solution]
    own = depths_of(problem, solved.solution)
    floor = solved.solution.objective - max_loss * abs(solved.solution.objective)
    if count < 2:
        return found
    for bound, vector in _bounded_vectors(solved.relaxation, solved.values[0]):
        enough = len(found) >= count and bound <= found[count - 1].objective
        if enough or bound < floor:
            break
        if vector == own:
            continue
        worst = found[count - 1].objective if len(found) >= count else floor
        answer = _solve_at(problem, vector, worst)
        if answer is not None:
            found.append(answer)
            found.sort(key=lambda solution: -solution.objective)
    return found[:count]


def depths_of(problem: ChainProblem, solution: Solution) -> tuple[int, ...]:
    """Units of each decision of a solution."""
    pairs = zip(problem.decisions, solution.path, strict=True)
    return tuple(int(decision.depth[option]) for decision, (_, option) in pairs)


def _bounded_vectors(relaxation: Relaxation, values: Values) -> list[tuple[float, tuple[int, ...]]]:
    """Depth vectors within the layer limit and the bound of each, best first.

    A backward pass over widths alone, with one more axis that runs over the depth vectors of the decisions to come.
    """
    problem = relaxation.problem
    depths = [sorted(set(decision.depth.tolist())) for decision in problem.decisions]
    if np.prod([len(values) for values in depths]) > MAX_VECTORS:
        return []
    table: Floats = values.tables[-1][None, :, :, :]
    for index in range(len(problem.decisions) - 1, -1, -1):
        reduced = relaxation.reduced_gain(index, values.multipliers)
        if index < len(problem.decisions) - 1:
            own = np.arange(table.shape[1])
            table = (table[:, own, own][:, None] if index == problem.tap else table)[:, :, None, :]
        parts = []
        for depth in depths[index]:
            best = np.max(reduced[:, :, problem.decisions[index].depth == depth], axis=2)
            parts.append(np.max(best + table, axis=3))
        table = np.concatenate(parts)
    bounds = table[:, 0, 0] + weigh(values.multipliers, relaxation.room)
    vectors = itertools.product(*depths)
    listed = [
        (float(bound), vector)
        for bound, vector in zip(bounds, vectors, strict=True)
        if np.isfinite(bound) and _fits(problem, vector)
    ]
    return sorted(listed, key=lambda pair: (-pair[0], pair[1]))


def _fits(problem: ChainProblem, vector: tuple[int, ...]) -> bool:
    if problem.max_layers is None:
        return True
    pairs = zip(problem.decisions, vector, strict=True)
    return sum(int(decision.layers[decision.depth == depth][0]) for decision, depth in pairs) <= problem.max_layers


def _solve_at(problem: ChainProblem, vector: tuple[int, ...], floor: float) -> Solution | None:
    """The optimum among the solutions of one depth vector, if it is not below the floor."""
    chosen: list[Integers] = []
    decisions: list[Decision] = []
    for decision, depth in zip(problem.decisions, vector, strict=True):
        options = np.flatnonzero(decision.depth == depth)
        chosen.append(options)
        decisions.append(
            replace(
                decision,
                hidden=decision.hidden[options],
                kernel=decision.kernel[options],
                depth=decision.depth[options],
                layers=decision.layers[options],
                gain=decision.gain[:, :, options],
                cost=decision.cost[:, :, :, options],
            )
        )
    answer = solve(replace(problem, decisions=tuple(decisions)), floor=floor)
    if isinstance(answer, Infeasible):
        return None
    path = tuple((out, int(options[place])) for (out, place), options in zip(answer.solution.path, chosen, strict=True))
    return replace(answer.solution, path=path)
