"""Why a budget cannot be met: the smallest reachable value, and what limits it."""

from __future__ import annotations

from dataclasses import replace

from maenas.budgets import Budget, format_amount
from maenas.chain import Goal, build_chain, choice_of
from maenas.errors import BudgetError, MaenasError, SpaceError
from maenas.lowering.costs import activation_memory
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.lowering.reference import lower_reference
from maenas.scores import Score
from maenas.solver.problem import ChainProblem, Steps
from maenas.solver.solve import Infeasible, solve
from maenas.space_parts import Variant
from maenas.spaces import SearchSpace

MEMORY_STEPS = 24
"""Bisections of the smallest reachable memory; the value reported is that of a network actually found."""


def infeasible_error(
    space: SearchSpace, variant: Variant, goal: Goal, problem: ChainProblem, why: Infeasible
) -> MaenasError:
    """The error to raise when a problem has no solution.

    Args:
        space: Where the search took place.
        variant: Neck and head setting.
        goal: What was asked.
        problem: The chain problem built from them.
        why: What the solver says.
    """
    place = f"in space {space.name} (variant {variant.name})"
    if problem.max_layers is not None and why.fewest_layers > problem.max_layers:
        return BudgetError(
            f"layers budget {problem.max_layers} cannot be met {place}: "
            f"the smallest reachable is {why.fewest_layers} layers (every stage at its least depth)"
        )
    if why.smallest is None:
        return memory_error(space, variant, goal) or SpaceError(f"space {space.name} holds no structure at all")
    parts = []
    for index, metric in enumerate(problem.metrics):
        smallest, limit = why.smallest[index], float(problem.limits[index])
        if smallest > limit:
            outside = _outside_backbone(problem, why.paths[index], index)
            parts.append(
                f"{metric} budget {format_amount(metric, limit)} cannot be met {place}: the smallest reachable is "
                f"{format_amount(metric, smallest)}, of which {format_amount(metric, outside)} are neck, head and "
                "fixed cost"
            )
    if parts:
        return BudgetError("; ".join(parts))
    wanted = ", ".join(
        f"{metric} {format_amount(metric, float(limit))} (alone down to {format_amount(metric, low)})"
        for metric, limit, low in zip(problem.metrics, problem.limits, why.smallest, strict=True)
    )
    return BudgetError(f"the budgets cannot be met together {place}: {wanted}; loosen one of them")


def memory_error(space: SearchSpace, variant: Variant, goal: Goal) -> BudgetError | None:
    """The error for a memory budget below the smallest reachable working set, or None if memory is not the reason."""
    wanted = goal.limit("memory_bytes")
    if wanted is None or _largest_working_set(space, variant, goal, wanted) is not None:
        return None
    low, high = wanted, 1e12
    best = _largest_working_set(space, variant, goal, high)
    if best is None:
        return None
    for _ in range(MEMORY_STEPS):
        high = float(_memory(best))
        middle = 0.5 * (low + high)
        found = _largest_working_set(space, variant, goal, middle)
        low, best = (middle, best) if found is None else (low, found)
    return BudgetError(
        f"memory budget {format_amount('memory_bytes', wanted)} cannot be met in space {space.name} (variant "
        f"{variant.name}): the smallest reachable is {format_amount('memory_bytes', _memory(best))}, at {best.name}"
    )


def _memory(op: Op) -> int:
    return int(activation_memory([op]))


def _largest_working_set(space: SearchSpace, variant: Variant, goal: Goal, limit: float) -> Op | None:
    """The operator with the largest working set of some network within a memory limit, or None if there is none."""
    plain = Goal(Score("any", stage_score=lambda view: 0.0), (Budget("memory_bytes", limit),), scope=goal.scope)
    try:
        problem = build_chain(space, variant, plain)
    except MaenasError:
        return None
    answer = solve(problem)
    if isinstance(answer, Infeasible):
        return None
    structure = space.structure(choice_of(problem, answer.solution.path), variant)
    ops = lower_reference(structure) if space.graph == "reference" else lower(structure, scope=goal.scope)
    return max((replace(op, count=1) for op in ops), key=_memory)


def _outside_backbone(problem: ChainProblem, path: Steps, index: int) -> float:
    third = path[problem.tap][0] if problem.tap is not None else 0
    return float(problem.fixed_cost[index] + problem.tail_cost[index, third, path[-2][0], path[-1][0]])
