"""Is the exact solver exact? Brute force on thousands of random small problems, and a broken solver as a control.

Run from the repository root: `python experiments/exactness/run.py`. Writes result.json beside this file.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from platform import python_version
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
from rich.console import Console
from rich.table import Table
from solver_cases import brute_force, random_problem

from maenas.solver import solve as solve_module
from maenas.solver.problem import ChainProblem, Solution, evaluate_path
from maenas.solver.solve import Infeasible, Solved, solve

HERE = Path(__file__).parent
NUM_PROBLEMS = 3000
TOLERANCE = 1e-9
"""Largest relative difference of two objectives that counts as rounding."""


@dataclass(frozen=True, slots=True)
class Case:
    """One problem, its brute-force answer and what two solvers make of it.

    Attributes:
        seed: Seed of `random_problem`.
        problem: The problem.
        expected: Best path within all limits, by trying all of them; None if there is none.
        answer: The solver's answer.
        broken: The answer of a solver that accepts any non-empty pass.
    """

    seed: int
    problem: ChainProblem
    expected: Solution | None
    answer: Solved | Infeasible
    broken: Solved | Infeasible

    @property
    def num_costs(self) -> int:
        """Number of budgets."""
        return len(self.problem.metrics)

    @property
    def combinations(self) -> int:
        """Ways to combine widths and options, allowed or not: what brute force goes through."""
        return math.prod(len(decision.out_channels) * len(decision.layers) for decision in self.problem.decisions)


def main() -> None:
    """Solve every problem three times, print the counts, write the result."""
    start = time.process_time()
    cases = [_case(seed) for seed in range(NUM_PROBLEMS)]
    report: dict[str, Any] = {
        "question": "Does the exact solver return the brute-force optimum?",
        "conditions": {
            "date": date.today().isoformat(),
            "python": python_version(),
            "numpy": np.__version__,
            "cpu_seconds": round(time.process_time() - start, 1),
        },
        "problems": f"tests/solver_cases.py random_problem, seeds 0 to {NUM_PROBLEMS - 1}",
        "all": _summary(cases),
    }
    for name, chosen in _groups(cases).items():
        report[name] = _summary(chosen)
    (HERE / "result.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _print(report)
    if any(not _agrees(case, case.answer) for case in cases):
        raise SystemExit("the exact solver disagrees with brute force; see mismatching_seeds in result.json")


def _print(report: dict[str, Any]) -> None:
    table = Table("problems", "number", "with a solution", "mismatches", "mismatches of the broken solver")
    for name, entry in report.items():
        if isinstance(entry, dict) and "mismatches" in entry:
            solvable = entry["problems"] - entry["without_solution"]
            counts = (entry["problems"], solvable, entry["mismatches"], entry["broken_solver"]["mismatches"])
            table.add_row(name, *(f"{count:,}" for count in counts))
    Console(width=100).print(table)


def _case(seed: int) -> Case:
    problem = random_problem(seed)
    answer = solve(problem)
    with _accepting_any_pass():
        broken = solve(problem)
    return Case(seed, problem, brute_force(problem), answer, broken)


@contextmanager
def _accepting_any_pass() -> Iterator[None]:
    """Break the solver: it takes the best path of any non-empty pass, even below the pass's own threshold."""
    proven = solve_module.is_proven
    solve_module.is_proven = lambda best, threshold: bool(np.isfinite(best))
    try:
        yield
    finally:
        solve_module.is_proven = proven


def _agrees(case: Case, answer: Solved | Infeasible) -> bool:
    """The answer is the brute-force one, and its path, summed from scratch, has that objective within all limits."""
    if case.expected is None or isinstance(answer, Infeasible):
        return case.expected is None and isinstance(answer, Infeasible)
    checked = evaluate_path(case.problem, answer.solution.path)
    slack = TOLERANCE * (1.0 + abs(case.expected.objective))
    values = (answer.solution.objective, checked.objective)
    same = all(abs(value - case.expected.objective) <= slack for value in values)
    costs = zip(checked.cost, case.problem.limits, strict=True)
    return same and all(cost <= limit * (1.0 + TOLERANCE) for cost, limit in costs)


def _groups(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases by number of costs, and by what makes a problem harder."""
    groups = {f"{count} cost{'s' * (count > 1)}": [c for c in cases if c.num_costs == count] for count in (1, 2, 3)}
    groups["with tied values"] = [case for case in cases if case.seed % 3 == 1]
    groups["with a neck (tap)"] = [case for case in cases if case.problem.tap is not None]
    groups["with a layer limit"] = [case for case in cases if case.problem.max_layers is not None]
    return groups


def _summary(cases: Sequence[Case]) -> dict[str, object]:
    wrong = [case.seed for case in cases if not _agrees(case, case.answer)]
    misled = [case for case in cases if not _agrees(case, case.broken)]
    solved = [case for case in cases if isinstance(case.answer, Solved)]
    return {
        "problems": len(cases),
        "without_solution": sum(case.expected is None for case in cases),
        "mismatches": len(wrong),
        "mismatching_seeds": wrong,
        "broken_solver": _broken_summary(cases, misled),
        "combinations": _spread([case.combinations for case in solved]),
        "labels_kept": _spread([case.answer.certificate.labels for case in solved]),
        "labels_pruned": _spread([case.answer.certificate.pruned for case in solved]),
        "largest_certificate_gap": max(case.answer.certificate.gap for case in solved),
        "passes": {
            str(count): sum(case.answer.certificate.passes == count for case in solved)
            for count in sorted({case.answer.certificate.passes for case in solved})
        },
    }


def _broken_summary(cases: Sequence[Case], misled: Sequence[Case]) -> dict[str, object]:
    losses = [
        (case.expected.objective - case.broken.solution.objective) / abs(case.expected.objective)
        for case in misled
        if case.expected is not None and isinstance(case.broken, Solved)
    ]
    several = sum(isinstance(case.answer, Solved) and case.answer.certificate.passes > 1 for case in cases)
    return {
        "mismatches": len(misled),
        "problems_that_need_several_passes": several,
        "mean_loss": round(float(np.mean(losses)), 4) if losses else 0.0,
        "largest_loss": round(max(losses, default=0.0), 4),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    low, middle, high = (float(value) for value in np.percentile(values, (10, 50, 90)))
    return {"p10": low, "median": middle, "p90": high, "max": max(values), "sum": sum(values)}


if __name__ == "__main__":
    main()
