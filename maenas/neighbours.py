"""Published networks under the same score, table and scope, to set a result beside."""

from __future__ import annotations

from maenas.chain import Goal
from maenas.errors import MaenasError
from maenas.published import PUBLISHED, load_published, resolve_reference
from maenas.search import Candidate, Request, describe_structure


def published_candidates(goal: Goal, family: str, graph: str = "deployed") -> dict[str, Candidate]:
    """The published networks of a family, by name; those the table or the score cannot judge are left out.

    Scores of different block families are not comparable, so only one family is returned.
    """
    found = {}
    for name in PUBLISHED:
        try:
            structure = load_published(name) if graph == "deployed" else resolve_reference(name)
            if structure.backbone.family != family:
                continue
            found[name] = describe_structure(structure, goal, graph=graph)
        except MaenasError:
            continue
    return found


def nearest_published(request: Request) -> tuple[str, Candidate] | None:
    """The published network of the request's family whose predicted latency is nearest to the latency budget.

    Without a latency budget, the nearest in the first budgeted metric.
    """
    candidates = published_candidates(request.goal, request.space.family, request.space.graph)
    if not candidates:
        return None
    budgets = request.goal.budgets
    budget = next((each for each in budgets if each.metric == "latency_ms"), budgets[0])

    def distance(name: str) -> float:
        candidate = candidates[name]
        if budget.metric == "latency_ms":
            assert candidate.prediction is not None
            value = candidate.prediction.latency_ms
        else:
            value = float(getattr(candidate, budget.metric))
        return abs(value - budget.limit)

    name = min(candidates, key=distance)
    return name, candidates[name]
