"""Evolution: seeds, workers, budgets, checkpoints, and the exact optimum as its upper bound."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from search_cases import all_judged, content_of, made_table, rows_for, write_space
from solver_cases import all_paths, random_problem

from maenas import evolve as evolve_module
from maenas.budgets import Budget
from maenas.errors import BudgetError, OutputError, ScoreError
from maenas.evolve import Settings, evolve
from maenas.reach import reachable_ops
from maenas.scores import Score, deepmad, resolve_score
from maenas.search import search
from maenas.solver.problem import evaluate_path
from maenas.solver.solve import Infeasible, Solved, cheapest_path, solve
from maenas.spaces import load_space

SHORT = Settings(seed=5, num_candidates=4_000, population=64)
MADNAS = resolve_score("madnas")


def solvable(count: int) -> list[tuple[int, Solved]]:
    """Seeds of random problems with one cost and room to search, and their exact answers."""
    found = []
    for seed in range(400):
        problem = random_problem(seed)
        if len(problem.metrics) != 1 or len(all_paths(problem)) < 30:
            continue
        answer = solve(problem)
        if isinstance(answer, Solved):
            found.append((seed, answer))
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return made_table(tmp_path_factory.mktemp("tables") / "made")


@pytest.fixture(scope="module")
def judged(table):
    """All structures of the tiny res space."""
    return all_judged(content_of("res"), MADNAS, table)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return load_space(write_space(tmp_path_factory.mktemp("space"), content_of("res")))


def median_latency(judged) -> float:
    return sorted(each.prediction.latency_ms for each in judged)[len(judged) // 2]


def evolved(space, table, limit, **changes):
    fields = {"solver": "evolution", "settings": SHORT, "device": table} | changes
    return search(space, budgets=[Budget("latency_ms", limit)], **fields)


# On chain problems


@pytest.mark.parametrize(
    ("seed", "answer"), solvable(12), ids=lambda value: str(value) if isinstance(value, int) else ""
)
def test_evolution_reaches_the_optimum_of_a_small_problem_and_never_more(seed, answer):
    problem = random_problem(seed)
    start = cheapest_path(answer.relaxation, answer.cheapest[0]).path
    result = evolve(problem, start, Settings(seed=seed, num_candidates=3_000, population=32))
    best = result.solutions[0]
    assert best.objective == pytest.approx(answer.solution.objective, abs=1e-9)
    for solution in result.solutions:
        checked = evaluate_path(problem, solution.path)
        assert checked.objective == pytest.approx(solution.objective, abs=1e-9)
        assert checked.cost == pytest.approx(solution.cost, abs=1e-9)
        assert all(cost <= limit for cost, limit in zip(checked.cost, problem.limits, strict=True))
        layers = sum(int(d.layers[option]) for d, (_, option) in zip(problem.decisions, solution.path, strict=True))
        assert problem.max_layers is None or layers <= problem.max_layers
    objectives = [solution.objective for solution in result.solutions]
    assert objectives == sorted(objectives, reverse=True)
    assert len({solution.path for solution in result.solutions}) == len(objectives)


def test_a_run_is_never_better_than_the_exact_optimum_of_a_wide_space(table):
    exact = search("mob", budgets=[Budget("latency_ms", 3.0)], device=table, top_k=1)
    result = evolved("mob", table, 3.0, settings=Settings(num_candidates=20_000))
    assert result.best.prediction.latency_ms <= 3.0
    first = result.evolved.history[0][1]
    assert first < result.best.score <= exact.best.score + 1e-9
    assert result.certificate is None
    assert result.evolved.candidates == 20_000


def test_history_rises_and_counts(space, table, judged):
    result = evolved(space, table, median_latency(judged)).evolved
    done, best = zip(*result.history, strict=True)
    assert list(done) == sorted(done)
    assert list(best) == sorted(set(best))
    assert result.candidates == SHORT.num_candidates
    # Repeats and networks over budget are not evaluated.
    assert len(result.solutions) <= result.evaluations <= len(judged)


# Seeds and workers


def outcome(result):
    return [(each.structure.digest, each.objective) for each in result.shortlist], result.evolved


def test_the_same_seed_gives_the_same_answer(table):
    settings = Settings(seed=3, num_candidates=5_000)
    first, second = (outcome(evolved("res", table, 4.0, settings=settings)) for _ in range(2))
    assert first == second
    other = outcome(evolved("res", table, 4.0, settings=replace(settings, seed=4)))
    assert other != first


def test_the_number_of_workers_changes_nothing(table, space, judged):
    settings = replace(SHORT, num_candidates=1_500)
    limit = median_latency(judged)
    score = Score("deepmad", structure_score=deepmad)
    one, two = (
        outcome(evolved(space, table, limit, score=score, settings=settings, workers=workers)) for workers in (1, 2)
    )
    assert one == two


# Within the budgets


@pytest.mark.parametrize("score", ["madnas", "deepmad"])
def test_the_answer_is_the_best_within_the_budget(space, table, judged, score):
    limit = median_latency(judged)
    value = resolve_score(score)
    best = max(value(each.structure) for each in judged if each.prediction.latency_ms <= limit)
    result = evolved(space, table, limit, score=score)
    assert result.best.score == pytest.approx(best, rel=1e-12)
    assert result.best.prediction.latency_ms <= limit
    for candidate in result.shortlist:
        assert candidate.prediction.latency_ms <= limit


def test_shortlist_entries_differ_in_depths(space, table, judged):
    slowest = max(each.prediction.latency_ms for each in judged)
    result = evolved(space, table, slowest, top_k=3, settings=replace(SHORT, population=400))
    depths = [tuple(stage.depth for stage in each.structure.backbone.stages) for each in result.shortlist]
    assert len(depths) == len(set(depths)) == 3
    scores = [each.objective for each in result.shortlist]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("score", ["madnas", "deepmad", "params"])
def test_no_budget_is_exceeded_where_wide_networks_are_fast(space, tmp_path, score):
    # A dirty table: the wider, the faster. The fastest network then has the most parameters.
    dirty = made_table(
        tmp_path / "dirty", kind="rows", rows=rows_for(reachable_ops(space), ms=lambda op: 1.0 / (10 + float(op.macs)))
    )
    every = all_judged(content_of("res"), resolve_score(score), dirty)
    params = sorted(each.params for each in every)[len(every) // 3]
    budgets = [Budget("latency_ms", 1e3), Budget("params", params)]
    best = max(each.objective for each in every if each.params <= params)
    result = search(space, budgets=budgets, device=dirty, score=score, solver="evolution", settings=SHORT)
    assert all(candidate.params <= params for candidate in result.shortlist)
    assert result.best.objective == pytest.approx(best, rel=1e-12)


def test_a_budget_that_cannot_be_met_is_an_error_before_any_work(space, table, judged):
    fastest = min(each.prediction.latency_ms for each in judged)
    calls = []
    for score in ("madnas", "deepmad"):
        with pytest.raises(BudgetError, match="the smallest reachable is"):
            evolved(space, table, 0.9 * fastest, score=score, progress=lambda done, best: calls.append(done))
    assert calls == []


def test_a_score_that_fails_stops_the_run(space, table, judged):
    def failing(structure):
        return float("nan") if structure.backbone.stages[0].out_channels == 16 else 1.0

    with pytest.raises(ScoreError, match=r"failing gave nan for structure [0-9a-f]{12}"):
        evolved(space, table, median_latency(judged), score=Score("failing", structure_score=failing))


# Checkpoints


class Interruption(Exception):
    pass


@pytest.fixture
def often(monkeypatch):
    """Small steps, and a checkpoint after every second one."""
    monkeypatch.setattr(evolve_module, "CHILDREN_PER_STEP", 100)
    monkeypatch.setattr(evolve_module, "CHECKPOINT_EVERY", 2)


def interrupt_at(number):
    def progress(done, best):
        if done >= number:
            raise Interruption

    return progress


@pytest.mark.parametrize("score", ["madnas", "deepmad"])
@pytest.mark.parametrize("stop", [200, 300, 900])
def test_a_resumed_run_ends_like_an_uninterrupted_one(space, table, judged, tmp_path, often, stop, score):
    settings = Settings(seed=2, num_candidates=1_250, population=40)
    limit, checkpoint = median_latency(judged), tmp_path / "evolution.json"
    whole = outcome(evolved(space, table, limit, settings=settings, score=score))
    with pytest.raises(Interruption):
        evolved(
            space,
            table,
            limit,
            settings=settings,
            score=score,
            checkpoint=checkpoint,
            progress=interrupt_at(stop + 100),
        )
    saved = json.loads(checkpoint.read_text())["candidates"]
    assert 0 < saved <= stop + 100
    seen = []
    resumed = evolved(
        space, table, limit, settings=settings, score=score, checkpoint=checkpoint,
        progress=lambda done, best: seen.append(done),
    )  # fmt: skip
    assert outcome(resumed) == whole
    assert seen[0] == saved + 100  # it did go on from there
    assert not checkpoint.exists()


def saved_checkpoint(space, table, limit, path, settings=SHORT):
    with pytest.raises(Interruption):
        evolved(space, table, limit, settings=settings, checkpoint=path, progress=interrupt_at(400))
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "not json at all {",
        lambda content: "[1, 2]",
        lambda content: "null",
        lambda content: {**content, "outs": "x"},
        lambda content: {**content, "outs": [[0, 0]]},
        lambda content: {**content, "outs": [[99] * 5 for _ in content["outs"]]},
        lambda content: {**content, "options": content["options"][:1]},
        lambda content: {**content, "objective": content["objective"][:-1]},
        lambda content: {**content, "cost": []},
        lambda content: {**content, "rng": {"bit_generator": "MT19937"}},
        lambda content: {**content, "history": [[1]]},
        lambda content: {**content, "history": []},
        lambda content: {key: value for key, value in content.items() if key != "seen"},
        lambda content: {**content, "question": "0123456789ab"},
        lambda content: {**content, "outs": [[10**30] * 5 for _ in content["outs"]]},
    ],
    ids=[
        "no-json", "a-list", "null", "text", "too-few-decisions", "out-of-range", "fewer-options", "fewer-objectives",
        "no-costs", "another-generator", "short-history", "no-history", "missing-field", "another-question",
        "huge-numbers",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_a_clear_error(space, table, judged, tmp_path, often, change):
    limit, path = median_latency(judged), tmp_path / "evolution.json"
    content = change(saved_checkpoint(space, table, limit, path))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(OutputError, match=r"evolution\.json: cannot be resumed \(.*\); remove it to start anew"):
        evolved(space, table, limit, checkpoint=path)
    assert path.exists()


@pytest.mark.parametrize("change", ["budget", "score", "margin", "seed"])
def test_a_checkpoint_of_another_question_is_not_resumed(space, table, judged, tmp_path, often, change):
    limits, path = sorted(each.prediction.latency_ms for each in judged), tmp_path / "evolution.json"
    changes, limit = {}, 2 * limits[-1]
    saved_checkpoint(space, table, limit, path)
    if change == "budget":
        limit = limits[3]
    elif change == "score":
        changes["score"] = "params"
    elif change == "seed":
        changes["settings"] = replace(SHORT, seed=SHORT.seed + 1)
    else:
        changes["margin_sigmas"] = 1.0
    with pytest.raises(OutputError, match=r"cannot be resumed .* remove it to start anew"):
        evolved(space, table, limit, checkpoint=path, **changes)


def test_a_checkpoint_that_cannot_be_written_is_an_error(space, table, judged, tmp_path, often):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match=r"evolution\.json: cannot be written"):
        evolved(space, table, median_latency(judged), checkpoint=blocked / "evolution.json")


def test_infeasible_problems_have_no_start():
    problem = random_problem(0)
    answer = solve(replace(problem, limits=np.full(len(problem.metrics), 1e-9)))
    assert isinstance(answer, Infeasible)
