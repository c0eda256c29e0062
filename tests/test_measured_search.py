"""Search with a device in the loop, the device being a made-up one."""

import pytest

from maenas.budgets import Budget
from maenas.errors import BudgetError
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.lowering.detector import lower
from maenas.measured_search import CLOSE, search_measured
from maenas.search import resolve_request

TABLE = load_table("t4")


def question(limit_ms: float, top_k: int = 3):
    return resolve_request("res", budgets=[Budget("latency_ms", limit_ms)], device=TABLE, top_k=top_k)


def device(factor: float, spread: float = 0.0):
    """Milliseconds of a machine that is `factor` times slower than the table, give or take a fixed spread per net."""

    def measure(structures):
        values = []
        for structure in structures:
            wobble = 1 + spread * (2 * (int(structure.digest, 16) % 997) / 996 - 1)
            values.append(factor * wobble * predict(lower(structure), TABLE).latency_ms)
        return values

    return measure


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("limit", [3.0, 4.5])
def test_the_finalist_is_close_below_the_budget(factor: float, limit: float):
    answer = search_measured(question(limit), device(factor, spread=0.01))
    assert CLOSE * limit <= answer.finalist.measured_ms <= limit
    assert answer.bias == pytest.approx(factor, rel=0.02)
    assert answer.result.best is answer.finalist.candidate
    assert answer.result.shortlist[0] is answer.finalist.candidate
    # The question on record stays the user's, not the corrected one.
    assert answer.result.request.goal.budgets[0].limit == limit


def test_a_good_table_needs_one_round_and_the_measured_best_wins():
    answer = search_measured(question(4.0, top_k=5), device(0.985))
    assert answer.rounds == 1 and len(answer.timed) == 5
    within = [each for each in answer.timed if each.measured_ms <= 4.0]
    assert answer.finalist.candidate.objective == max(each.candidate.objective for each in within)


def test_a_network_that_measures_too_slow_is_not_chosen():
    first = search_measured(question(4.0), device(0.985)).finalist.candidate.structure.digest
    plain = device(0.985)

    def measure(structures):
        values = plain(structures)
        return [2 * value if s.digest == first else value for s, value in zip(structures, values, strict=True)]

    answer = search_measured(question(4.0), measure)
    assert answer.finalist.candidate.structure.digest != first
    assert answer.finalist.measured_ms <= 4.0


def test_a_hopeless_budget_says_how_far_it_is():
    with pytest.raises(BudgetError, match=r"cannot be met|none of \d+ networks timed is within it; the fastest took"):
        search_measured(question(2.0), device(3.0))


def test_measuring_without_a_latency_budget_is_refused():
    request = resolve_request("res", budgets=[Budget("params", 9e6)])
    with pytest.raises(BudgetError, match="expected --budget and --device"):
        search_measured(request, device(1.0))
