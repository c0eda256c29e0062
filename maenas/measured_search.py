"""Search with the device in the loop: the shortlist is timed, and the answer is picked by what was measured.

A table is a model. Near one budget, in one corner of a space, it is off by a factor that a few measurements reveal.
So the search is asked for a budget divided by that factor until a network is found whose *measured* latency lies within
the budget and close below it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from maenas.budgets import Budget
from maenas.errors import BudgetError
from maenas.search import Candidate, Request, SearchResult, run_request
from maenas.structure import Structure

AIM = 0.985
"""Share of the budget that corrected searches aim at: room for the spread of the measurements."""
CLOSE = 0.95
"""A finalist at or above this share of the budget ends the rounds."""
ROUNDS = 4

Measure = Callable[[Sequence[Structure]], Sequence[float]]
"""Measured milliseconds of some networks, timed together so that they compare."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A network, what the table said, and what the device said.

    Attributes:
        candidate: The network with its predicted figures.
        measured_ms: Median latency on the device.
        round_index: In which round it was found, from 0.
    """

    candidate: Candidate
    measured_ms: float
    round_index: int

    @property
    def ratio(self) -> float:
        """Measured over predicted latency."""
        assert self.candidate.prediction is not None
        return self.measured_ms / self.candidate.prediction.latency_ms


@dataclass(frozen=True, slots=True)
class MeasuredSearch:
    """The answer of a search with measurements.

    Attributes:
        result: The last round's search; its `best` is the finalist and its shortlist all that was timed within the
            budget, best score first.
        budget_ms: The latency budget.
        finalist: The best-scored network whose measured latency is within the budget.
        timed: Every network timed, in the order of the rounds.
        searched_ms: Limit on the predicted latency in the last search: the budget corrected by the bias.
        bias: Median of measured over predicted latency: what the table is off by in this region.
        rounds: Rounds of search and measurement.
    """

    result: SearchResult
    budget_ms: float
    finalist: Timed
    timed: tuple[Timed, ...]
    searched_ms: float
    bias: float
    rounds: int


def search_measured(
    request: Request, measure: Measure, *, progress: Callable[[int, int], None] = lambda round_index, count: None
) -> MeasuredSearch:
    """Search, time the shortlist, correct the budget, and pick by measured latency.

    Args:
        request: A question with a latency budget and the table of the device that `measure` runs on.
        measure: Times networks.
        progress: Called before each round's measurement with the round and the number of new networks.

    Raises:
        BudgetError: There is no latency budget; or no network within it was found, with the fastest one measured.
    """
    budget_ms = _latency_budget(request)
    timed: dict[str, Timed] = {}
    limit = searched_ms = budget_ms
    result, rounds = None, 0
    for round_index in range(ROUNDS):
        try:
            result = run_request(_with_latency(request, limit))
        except BudgetError:
            if round_index == 0:
                raise
            break  # the corrected budget is out of reach: what was timed so far has to do
        searched_ms = limit
        fresh = [candidate for candidate in result.shortlist if candidate.structure.digest not in timed]
        rounds += 1
        if fresh:
            progress(round_index, len(fresh))
            values = measure([candidate.structure for candidate in fresh])
            for candidate, value in zip(fresh, values, strict=True):
                timed[candidate.structure.digest] = Timed(candidate, float(value), round_index)
        within = [each for each in timed.values() if each.measured_ms <= budget_ms]
        # The bias where it matters: of the networks that the last search found.
        bias = statistics.median(timed[each.structure.digest].ratio for each in result.shortlist)
        best = max(within, key=lambda each: each.candidate.objective, default=None)
        if best is not None and best.measured_ms >= CLOSE * budget_ms:
            break
        corrected = AIM * budget_ms / bias
        if not fresh and math.isclose(corrected, limit, rel_tol=1e-3):
            break
        limit = corrected
    assert result is not None
    if best is None:
        fastest = min(timed.values(), key=lambda each: each.measured_ms)
        raise BudgetError(
            f"latency_ms budget {budget_ms:.3f} ms: none of {len(timed)} networks timed is within it; the fastest took "
            f"{fastest.measured_ms:.3f} ms where the table predicts {fastest.measured_ms / fastest.ratio:.3f} ms"
        )
    ranked = sorted(within, key=lambda each: -each.candidate.objective)
    shortlist = tuple(each.candidate for each in ranked)
    return MeasuredSearch(
        result=replace(result, request=request, best=best.candidate, shortlist=shortlist),
        budget_ms=budget_ms,
        finalist=best,
        timed=tuple(timed.values()),
        searched_ms=searched_ms,
        bias=statistics.median(each.ratio for each in timed.values()),
        rounds=rounds,
    )


def _latency_budget(request: Request) -> float:
    limits = [budget.limit for budget in request.goal.budgets if budget.metric == "latency_ms"]
    if not limits or request.goal.table is None:
        raise BudgetError("measuring needs a latency budget and its device; expected --budget and --device")
    return limits[0]


def _with_latency(request: Request, limit_ms: float) -> Request:
    budgets = tuple(Budget("latency_ms", limit_ms) if b.metric == "latency_ms" else b for b in request.goal.budgets)
    return replace(request, goal=replace(request.goal, budgets=budgets))
