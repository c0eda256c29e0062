"""Small random chain problems and a brute-force solver to hold the exact one against."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from maenas.solver.problem import ChainProblem, Decision, Solution, evaluate_path


def random_problem(seed: int) -> ChainProblem:
    """A problem of 2 to 4 decisions with 1 to 3 costs; every third one has ties, some forbid options or cap layers."""
    rng = np.random.default_rng(seed)
    num_costs = 1 + int(seed % 3 == 2) + int(seed % 9 == 8)
    num = int(rng.integers(2, 5))
    widths = [1] + [int(rng.integers(1, 4)) for _ in range(num)]
    tied = seed % 3 == 1
    decisions = []
    for index in range(num):
        options = int(rng.integers(1, 5))
        shape = (widths[index], widths[index + 1], options)
        layers = np.sort(rng.integers(1, 4, options)) * 2
        gain = rng.normal(0, 3, shape) + 2 * layers
        cost = rng.gamma(2, 1, (num_costs, *shape)) * layers
        if tied:
            gain, cost = np.round(gain), np.round(cost)
        gain[rng.random(shape) < 0.1] = -np.inf
        zeros = np.zeros(options, dtype=np.int64)
        names = np.arange(widths[index]), np.arange(widths[index + 1])
        decisions.append(Decision(*names, zeros, zeros, zeros, layers.astype(np.int64), gain, cost))
    tap = num - 3 if seed % 2 == 0 and num >= 3 else None
    thirds = widths[-3] if tap is not None else 1
    tail = (thirds, widths[-2], widths[-1])
    tail_cost = rng.gamma(2, 1, (num_costs, *tail))
    tail_gain = np.where(rng.random(tail) < 0.1, -np.inf, 0.0)
    max_layers = int(rng.integers(2 * num, 6 * num)) if seed % 4 != 3 else None
    limits = np.full(num_costs, 1e9)
    metrics = tuple("abc"[:num_costs])
    problem = ChainProblem(
        tuple(decisions), metrics, limits, rng.random(num_costs), tail_cost, tail_gain, tap, max_layers
    )
    free = brute_force(problem)
    if free is None:
        return problem
    return replace(problem, limits=np.array(free.cost) * rng.uniform(0.4, 1.05, num_costs))


def all_paths(problem: ChainProblem) -> list[Solution]:
    """Every path that the space allows, whatever it costs."""
    ranges = [
        list(itertools.product(range(len(decision.out_channels)), range(len(decision.layers))))
        for decision in problem.decisions
    ]
    found = []
    for path in itertools.product(*ranges):
        layers = sum(int(d.layers[option]) for d, (_, option) in zip(problem.decisions, path, strict=True))
        if problem.max_layers is not None and layers > problem.max_layers:
            continue
        solution = evaluate_path(problem, path)
        if np.isfinite(solution.objective):
            found.append(solution)
    return found


def brute_force(problem: ChainProblem) -> Solution | None:
    """The best path within the limits, by trying all."""
    within = [
        solution
        for solution in all_paths(problem)
        if all(cost <= limit for cost, limit in zip(solution.cost, problem.limits, strict=True))
    ]
    return max(within, key=lambda solution: solution.objective, default=None)


def brute_front(problem: ChainProblem) -> list[tuple[float, float]]:
    """(cost, objective) of every path that no cheaper or equally cheap one matches or beats."""
    front: list[tuple[float, float]] = []
    for solution in sorted(all_paths(problem), key=lambda s: (s.cost[0], -s.objective)):
        if not front or solution.objective > front[-1][1] + 1e-9 * (1 + abs(front[-1][1])):
            front.append((solution.cost[0], solution.objective))
    return front
