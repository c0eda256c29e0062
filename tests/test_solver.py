"""The exact solver against brute force, its certificate, shortlist and front."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from solver_cases import all_paths, brute_force, brute_front, random_problem

from maenas.solver import solve as solve_module
from maenas.solver.front import front
from maenas.solver.problem import evaluate_path
from maenas.solver.shortlist import depths_of, shortlist
from maenas.solver.solve import Infeasible, Solved, solve

NUM_SPACES = 260


def mismatches(num_spaces: int) -> list[int]:
    """Seeds whose exact answer is not the brute-force one."""
    wrong = []
    for seed in range(num_spaces):
        problem = random_problem(seed)
        expected, answer = brute_force(problem), solve(problem)
        if expected is None:
            agree = isinstance(answer, Infeasible)
        else:
            agree = isinstance(answer, Solved) and abs(answer.solution.objective - expected.objective) < 1e-9
        if not agree:
            wrong.append(seed)
    return wrong


def test_exact_solver_equals_brute_force_on_random_spaces():
    assert mismatches(NUM_SPACES) == []


def test_brute_force_catches_a_solver_that_accepts_any_non_empty_pass(monkeypatch):
    # The mistake to guard against: a pass below its own threshold may have dropped the optimum.
    monkeypatch.setattr(solve_module, "is_proven", lambda best, threshold: np.isfinite(best))
    assert len(mismatches(NUM_SPACES)) >= 5


@pytest.mark.parametrize("seed", [0, 2, 8, 12, 26])
def test_certificate_and_solution_are_consistent(seed):
    problem = random_problem(seed)
    answer = solve(problem)
    if isinstance(answer, Infeasible):
        assert brute_force(problem) is None
        return
    solution, certificate = answer.solution, answer.certificate
    checked = evaluate_path(problem, solution.path)
    assert checked.objective == pytest.approx(solution.objective, abs=1e-9)
    assert checked.cost == pytest.approx(solution.cost, abs=1e-9)
    assert all(cost <= limit for cost, limit in zip(solution.cost, problem.limits, strict=True))
    assert certificate.gap <= 1e-9
    assert solution.objective <= certificate.upper_bound <= certificate.lagrangian_bound + 1e-9
    assert certificate.labels > 0
    assert certificate.passes >= 1


def test_infeasible_reports_the_smallest_reachable_cost():
    checked = 0
    for seed in range(60):
        problem = random_problem(seed)
        if len(problem.metrics) != 1 or not all_paths(problem):
            continue
        smallest = min(solution.cost[0] for solution in all_paths(problem))
        answer = solve(replace(problem, limits=np.array([smallest * 0.999])))
        assert isinstance(answer, Infeasible)
        assert answer.smallest == pytest.approx((smallest,))
        assert isinstance(solve(replace(problem, limits=np.array([smallest * 1.000001]))), Solved)
        checked += 1
    assert checked > 10


def solvable_problem(min_front: int = 4):
    """The first problem with one cost whose front has a few points, solvable within its own limit."""
    for seed in range(200):
        problem = random_problem(seed)
        if len(problem.metrics) == 1 and brute_force(problem) and len(brute_front(problem)) >= min_front:
            return problem
    raise AssertionError("no such problem among 200 seeds")


def test_a_floor_above_the_optimum_finds_nothing_and_one_below_changes_nothing():
    problem = solvable_problem()
    answer = solve(problem)
    assert isinstance(answer, Solved)
    best = answer.solution.objective
    assert isinstance(solve(problem, floor=best + 1e-3), Infeasible)
    again = solve(problem, floor=best - 1e-3)
    assert isinstance(again, Solved)
    assert again.solution == answer.solution


def with_depths(problem, seed):
    """Give the options depths that follow their layers, so that shortlists have something to differ in."""
    rng = np.random.default_rng(seed)
    decisions = tuple(
        replace(decision, depth=np.sort(rng.integers(0, 3, len(decision.layers)))) for decision in problem.decisions
    )
    return replace(problem, decisions=decisions)


def test_shortlist_holds_the_best_of_the_best_depth_vectors():
    checked = 0
    for seed in range(80):
        problem = with_depths(random_problem(seed), seed)
        answer = solve(problem)
        if isinstance(answer, Infeasible):
            continue
        best_of: dict[tuple[int, ...], float] = {}
        for solution in all_paths(problem):
            if all(cost <= limit for cost, limit in zip(solution.cost, problem.limits, strict=True)):
                key = depths_of(problem, solution)
                best_of[key] = max(best_of.get(key, -np.inf), solution.objective)
        found = shortlist(problem, answer, 4, max_loss=1e6)
        expected = sorted(best_of.values(), reverse=True)[:4]
        assert [solution.objective for solution in found] == pytest.approx(expected)
        assert len({depths_of(problem, solution) for solution in found}) == len(found)
        checked += len(found) > 1
    assert checked > 20


def test_front_equals_brute_force():
    checked = 0
    for seed in range(90):
        problem = random_problem(seed)
        if len(problem.metrics) != 1 or not all_paths(problem):
            continue
        expected = brute_front(problem)
        low, high = expected[0][0], expected[-1][0] * 1.01
        points = front(problem, low, high)
        assert [(p.cost[0], p.objective) for p in points] == [pytest.approx(pair) for pair in expected], seed
        checked += len(expected) > 3
    assert checked > 15


def test_front_that_starts_inside_begins_with_the_optimum_there():
    problem = solvable_problem()
    expected = brute_front(problem)
    low = 0.5 * (expected[1][0] + expected[2][0])
    points = front(problem, low, expected[-1][0])
    assert [(p.cost[0], p.objective) for p in points] == [pytest.approx(pair) for pair in expected[1:]]


def test_a_front_out_of_reach_is_infeasible():
    problem = solvable_problem()
    assert isinstance(front(problem, 1e-9, 2e-9), Infeasible)


def awkward_problem(seed: int):
    """Rounded and negative gains, wide duality gaps: best paths far below the bound."""
    rng = np.random.default_rng(seed)
    problem = random_problem(int(rng.integers(0, 3000)))
    decisions = []
    for decision in problem.decisions:
        gain = np.round(rng.normal(0, 1, decision.gain.shape), 3)
        decisions.append(replace(decision, gain=np.where(np.isfinite(decision.gain), gain, -np.inf)))
    return replace(problem, decisions=tuple(decisions))


def test_the_solver_ends_where_rounding_would_keep_it_between_two_thresholds():
    # bound - (bound - best) may exceed best by one rounding; the next threshold must be the best itself.
    checked = 0
    for seed in range(400):
        problem = awkward_problem(seed)
        expected, answer = brute_force(problem), solve(problem)
        assert isinstance(answer, Solved) == (expected is not None)
        if isinstance(answer, Solved):
            assert answer.solution.objective == pytest.approx(expected.objective, abs=1e-9)
            assert answer.certificate.passes < 60
            checked += 1
    assert checked > 100
