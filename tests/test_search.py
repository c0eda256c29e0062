"""Searches end to end, against brute force over structures, and against the reference tool's own problem.

The reference's optima need its operator library from `../shared`, which is no part of this repository; those tests are
skipped where it is absent.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from search_cases import (
    OFFICIAL,
    SHARED,
    all_judged,
    content_of,
    made_table,
    rows_for,
    write_space,
)

from maenas.budgets import Budget, format_amount
from maenas.errors import BudgetError, MaenasError, ScoreError, SpaceError
from maenas.front import front_budget, front_csv, search_front
from maenas.latency.import_tinynas import import_tinynas
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.lowering.detector import lower
from maenas.neighbours import nearest_published, published_candidates
from maenas.official_import import import_reference
from maenas.published import load_published
from maenas.reach import reachable_ops
from maenas.scores import SCORES, Score, deepmad, resolve_score
from maenas.search import describe_structure, resolve_request, search
from maenas.spaces import load_space

MADNAS = resolve_score("madnas")
FAMILIES = ("res", "csp", "mob", "kxkx")
# Slow arithmetic and memory, so that widths matter on small maps.
COEFFICIENTS = {
    "compute_tflop_s": 0.3,
    "memory_gb_s": 5.0,
    "launch_us": 3.0,
    "tile_penalty": 1.2,
    "pointwise_bytes": 0.3,
    "pointwise_launch": 0.3,
    "host_gb_s": 6.0,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return made_table(tmp_path_factory.mktemp("tables") / "made", coefficients=COEFFICIENTS)


class Case:
    """A tiny space with all its structures judged."""

    def __init__(self, content, folder, table, scope="detector", score=MADNAS):
        self.content, self.scope, self.score, self.table = content, scope, score, table
        self.space = load_space(write_space(folder, content))
        self.judged = all_judged(content, score, table, scope)

    def quantile(self, value, share):
        values = sorted(value(each) for each in self.judged)
        return values[int(share * (len(values) - 1))]

    def check(self, budgets, allowed, **changes):
        """The search's answer is the best allowed structure."""
        arguments = {"device": self.table, "scope": self.scope, "score": self.score, "top_k": 1} | changes
        result = search(self.space, budgets=budgets, **arguments)
        within = [each for each in self.judged if allowed(each)]
        assert within
        best = max(each.objective for each in within)
        assert result.best.objective == pytest.approx(best, rel=1e-9)
        assert result.best.structure.digest in {
            each.structure.digest for each in within if each.objective >= best - 1e-9 * abs(best)
        }
        own = next(each for each in within if each.structure.digest == result.best.structure.digest)
        assert result.best.score == pytest.approx(own.score, rel=1e-12)
        assert result.best.prediction.latency_ms == pytest.approx(own.prediction.latency_ms, rel=1e-12)
        assert (result.best.params, result.best.flops) == (own.params, own.flops)
        assert (result.best.layers, result.best.memory_bytes) == (own.layers, own.memory_bytes)
        certificate = result.certificate
        assert certificate.upper_bound >= best - 1e-9 * abs(best)
        assert certificate.upper_bound - result.best.objective <= 1e-6
        assert certificate.gap <= 1e-6
        assert certificate.lagrangian_bound >= best - 1e-9 * abs(best)
        return result


def latency(each, sigmas=0.0):
    return each.prediction.latency_ms + sigmas * each.prediction.sigma_ms


@pytest.fixture(scope="module")
def cases(tmp_path_factory, table):
    return {family: Case(content_of(family), tmp_path_factory.mktemp(family), table) for family in FAMILIES}


# The certified optimum against brute force over structures


SHARES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.97, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimum_under_a_latency_budget(cases, family):
    case = cases[family]
    answers = set()
    for share in SHARES:
        # A hair more, so that the order of summing does not decide whether the last structure fits.
        limit = case.quantile(latency, share) * (1 + 1e-9)
        found = case.check([Budget("latency_ms", limit)], lambda each, limit=limit: latency(each) <= limit)
        answers.add(found.best.structure.digest)
    assert len(answers) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimum_under_combined_budgets(cases, family):
    case = cases[family]
    metrics = {
        "latency_ms": latency,
        "params": lambda each: each.params,
        "flops": lambda each: each.flops,
        "layers": lambda each: each.layers,
        "memory_bytes": lambda each: each.memory_bytes,
    }
    tried = 0
    for names in (("latency_ms", "params"), ("flops", "layers"), ("params", "flops", "memory_bytes"), tuple(metrics)):
        for shares in ((0.5, 0.6, 0.7, 0.8, 1.0), (0.8, 0.4, 0.6, 0.5, 0.5)):
            limits = {name: case.quantile(metrics[name], share) for name, share in zip(names, shares, strict=False)}
            limits = {name: limit * (1 + 1e-9) for name, limit in limits.items()}

            def allowed(each, limits=limits):
                return all(metrics[name](each) <= limit for name, limit in limits.items())

            if any(map(allowed, case.judged)):
                case.check([Budget(name, limit) for name, limit in limits.items()], allowed)
                tried += 1
    assert tried >= 6


@pytest.mark.parametrize("family", ["res", "csp", "mob"])
def test_the_optimum_of_the_backbone_alone(family, tmp_path, table):
    case = Case(content_of(family), tmp_path, table, "backbone")
    for share in (0.1, 0.5, 0.9):
        limit = case.quantile(latency, share) * (1 + 1e-9)
        case.check([Budget("latency_ms", limit)], lambda each, limit=limit: latency(each) <= limit)


@pytest.mark.parametrize("family", ["res", "mob"])
def test_the_optimum_under_soft_penalties(family, tmp_path, table):
    penalties = {"depth": 1.5, "growth": 30.0, "hidden": 20.0, "hidden_target": 0.4}
    case = Case(content_of(family, regularisers=penalties), tmp_path, table)
    for share in (0.3, 1.0):
        limit = case.quantile(latency, share) * (1 + 1e-9)
        found = case.check([Budget("latency_ms", limit)], lambda each, limit=limit: latency(each) <= limit)
        assert found.best.objective < found.best.score


def test_penalties_change_the_choice(cases, tmp_path, table):
    penalties = {"depth": 40.0, "growth": 0.0, "hidden": 0.0}
    case = Case(content_of("res", regularisers=penalties), tmp_path, table)
    flat = case.check([Budget("params", 1e12)], lambda each: True)
    free = cases["res"].check([Budget("params", 1e12)], lambda each: True)
    assert flat.best.layers < free.best.layers


def test_a_margin_bounds_value_plus_sigmas(cases):
    case = cases["res"]
    limit = case.quantile(latency, 0.7)
    plain = case.check([Budget("latency_ms", limit)], lambda each: latency(each) <= limit * (1 + 1e-12))
    margin = case.check([Budget("latency_ms", limit)], lambda each: latency(each, 0.5) <= limit, margin_sigmas=0.5)
    assert margin.best.score < plain.best.score
    assert latency(margin.best, 0.5) <= limit


@pytest.mark.parametrize("score", ["params", "flops", "madnas-w4a8"])
def test_the_optimum_of_other_scores(score, tmp_path, table):
    case = Case(content_of("csp"), tmp_path, table, score=resolve_score(score))
    limit = case.quantile(latency, 0.5) * (1 + 1e-9)
    case.check([Budget("latency_ms", limit)], lambda each: latency(each) <= limit)


def test_another_variant_changes_neck_and_head(tmp_path, table):
    content = content_of("res")
    other = {"name": "b", "neck": {"num_blocks": 2, "hidden_ratio": 1.0, "out_channels": [16, 32, 64]}}
    content["variants"].append({**other, "head": {"num_classes": 9, "reg_max": 4, "kernel_size": 1}})
    content["variants"].reverse()
    case = Case(content, tmp_path, table)
    limit = case.quantile(latency, 0.4) * (1 + 1e-9)
    result = case.check([Budget("latency_ms", limit)], lambda each: latency(each) <= limit, variant="b")
    assert result.best.structure.neck.out_channels == (16, 32, 64)
    assert result.best.structure.head.num_classes == 9


def test_the_answer_is_named_after_space_and_digest(cases):
    structure = cases["res"].check([Budget("params", 1e12)], lambda each: True).best.structure
    assert structure.name == f"tiny-res-{structure.digest}"


def test_the_same_question_has_the_same_answer(cases, table):
    limit = cases["mob"].quantile(latency, 0.5)
    first, second = (search(cases["mob"].space, budgets=[Budget("latency_ms", limit)], device=table) for _ in range(2))
    assert (first.best, first.shortlist, first.certificate) == (second.best, second.shortlist, second.certificate)


# Shortlist


@pytest.mark.parametrize("family", ["res", "csp", "mob"])
def test_the_shortlist_is_the_best_of_each_depth_vector(cases, family, table):
    case = cases[family]
    limit = case.quantile(latency, 0.8) * (1 + 1e-9)
    best = {}
    for each in case.judged:
        if latency(each) <= limit:
            best[each.depths] = max(best.get(each.depths, -1e9), each.objective)
    ranked = sorted(best.values(), reverse=True)
    ranked = [value for value in ranked if value >= ranked[0] - 0.05 * abs(ranked[0])]
    result = search(case.space, budgets=[Budget("latency_ms", limit)], device=table, top_k=4)
    assert [each.objective for each in result.shortlist] == pytest.approx(ranked[:4], rel=1e-9)
    depths = [tuple(stage.depth for stage in each.structure.backbone.stages) for each in result.shortlist]
    assert len(set(depths)) == len(depths)
    assert result.shortlist[0] == result.best
    assert all(each.prediction.latency_ms <= limit for each in result.shortlist)


# What cannot be answered


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("latency_ms", latency),
        ("params", lambda each: each.params),
        ("flops", lambda each: each.flops),
        ("layers", lambda each: each.layers),
        ("memory_bytes", lambda each: each.memory_bytes),
    ],
)
@pytest.mark.parametrize("family", ["res", "csp", "mob"])
def test_a_budget_too_small_names_the_smallest_reachable_value(cases, table, family, metric, value):
    case = cases[family]
    smallest = min(value(each) for each in case.judged)
    limit = smallest - 1 if metric == "layers" else 0.9 * smallest
    message = f"the smallest reachable is {format_amount(metric, smallest)}"
    with pytest.raises(BudgetError, match=metric.split("_")[0]) as caught:
        search(case.space, budgets=[Budget(metric, limit)], device=table)
    assert message in str(caught.value)
    assert case.space.name in str(caught.value)
    # Exactly that value can be met.
    search(case.space, budgets=[Budget(metric, smallest * (1 + 1e-9))], device=table, top_k=1)


def test_budgets_that_exclude_each_other_are_told_so(tmp_path):
    # Wide networks are fast and narrow ones are small: each budget alone can be met.
    space = load_space(write_space(tmp_path, content_of("res")))
    rows = rows_for(reachable_ops(space), ms=lambda op: 1.0 / (10 + float(op.macs)))
    dirty = made_table(tmp_path / "dirty", kind="rows", rows=rows)
    judged = all_judged(content_of("res"), MADNAS, dirty)
    fastest, smallest = min(map(latency, judged)), min(each.params for each in judged)
    budgets = [Budget("latency_ms", fastest * (1 + 1e-9)), Budget("params", smallest)]
    with pytest.raises(
        BudgetError, match=r"the budgets cannot be met together in space tiny-res .*: latency_ms .*; loosen"
    ):
        search(space, budgets=budgets, device=dirty)


def test_a_generous_memory_budget_is_not_blamed_for_what_the_table_lacks(cases, tmp_path):
    narrow = made_table(tmp_path / "narrow", valid_range={"out_channels": [1, 4]})
    budgets = [Budget("latency_ms", 100.0), Budget("memory_bytes", 1e12)]
    with pytest.raises(MaenasError) as caught:
        search(cases["res"].space, budgets=budgets, device=narrow)
    assert "table" in str(caught.value)
    assert "memory budget" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budgets": []}, BudgetError, "no budget is given; expected at least one"),
        ({"budgets": [Budget("params", 1e6), Budget("params", 2e6)]}, BudgetError, "params has more than one budget"),
        ({"scope": "neck"}, BudgetError, "scope is 'neck'; expected detector or backbone"),
        ({"solver": "luck"}, BudgetError, "solver is 'luck'; expected one of exact, evolution"),
        (
            {"score": "deepmad", "solver": "exact"},
            BudgetError,
            "score deepmad is not separable; expected --solver evol",
        ),
        ({"score": "unheard"}, ScoreError, "unknown score 'unheard'"),
        ({"variant": "x"}, SpaceError, "space tiny-res has no variant 'x'; expected one of a"),
        ({"device": None}, BudgetError, "a latency budget needs a device"),
        ({"device": "toaster"}, MaenasError, "latency table 'toaster' is unknown"),
    ],
)
def test_questions_that_make_no_sense(cases, table, changes, error, message):
    arguments = {"budgets": [Budget("latency_ms", 10.0)], "device": table} | changes
    with pytest.raises(error, match=message):
        search(cases["res"].space, **arguments)


def test_the_solver_follows_the_score(cases, table):
    budgets = [Budget("latency_ms", 10.0)]
    space = cases["res"].space
    assert resolve_request(space, budgets=budgets, device=table).solver == "exact"
    assert resolve_request(space, budgets=budgets, device=table, score="deepmad").solver == "evolution"
    own = Score("own", structure_score=deepmad)
    assert resolve_request(space, budgets=budgets, device=table, score=own).solver == "evolution"
    assert resolve_request(space, budgets=budgets, device=table, solver="evolution").solver == "evolution"


def test_a_wrong_number_of_level_weights_is_an_error(table):
    content_weights = Score("short", stage_score=resolve_score("madnas", (1.0, 1.0)).stage_score)
    with pytest.raises(ScoreError, match="score has 2 level weights; the backbone has 5 levels"):
        search("res", budgets=[Budget("latency_ms", 4.0)], device=table, score=content_weights)


# The front


def brute_front(judged):
    """(latency, objective) of every structure that no faster or equally fast one matches or beats."""
    front = []
    for each in sorted(judged, key=lambda each: (latency(each), -each.objective)):
        if not front or each.objective > front[-1][1] + 1e-9 * abs(front[-1][1]):
            front.append((latency(each), each.objective))
    return front


@pytest.mark.parametrize("family", ["res", "csp", "mob"])
def test_the_front_of_a_small_space_is_complete(cases, family, table):
    case = cases[family]
    low, high = case.quantile(latency, 0.0) * 0.5, case.quantile(latency, 1.0) * 1.01
    request = resolve_request(case.space, budgets=[front_budget(high)], device=table)
    points = search_front(request, low, high)
    expected = brute_front(case.judged)
    assert len(points) == len(expected)
    for point, (ms, objective) in zip(points, expected, strict=True):
        assert (point.latency_ms, point.objective) == pytest.approx((ms, objective), rel=1e-9)
        assert predict(lower(point.structure), table).latency_ms == pytest.approx(ms, rel=1e-9)


def test_a_front_starts_and_ends_where_it_is_asked_to(cases, table):
    case = cases["res"]
    low, high = case.quantile(latency, 0.3), case.quantile(latency, 0.7)
    request = resolve_request(case.space, budgets=[front_budget(high)], device=table)
    done = []
    points = search_front(request, low, high, progress=done.append)
    best = {limit: max(e.objective for e in case.judged if latency(e) <= limit * (1 + 1e-12)) for limit in (low, high)}
    assert points[0].objective == pytest.approx(best[low], rel=1e-9)
    assert points[-1].objective == pytest.approx(best[high], rel=1e-9)
    assert points[-1].latency_ms <= high
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1.0)


def test_front_rows(cases, table):
    case = cases["csp"]
    high = case.quantile(latency, 1.0)
    points = search_front(resolve_request(case.space, budgets=[front_budget(high)], device=table), 0.01, high)
    lines = front_csv(points).splitlines()
    assert lines[0] == "latency_ms,objective,digest,stem,out_channels,hidden_channels,depths"
    assert len(lines) == len(points) + 1
    for line, point in zip(lines[1:], points, strict=True):
        ms, objective, digest, stem, outs, _, depths = line.split(",")
        assert (float(ms), float(objective)) == (point.latency_ms, point.objective)
        assert digest == point.structure.digest
        assert int(stem) == point.structure.backbone.stem.out_channels
        assert outs.split() == [str(stage.out_channels) for stage in point.structure.backbone.stages]
        assert depths.split() == [str(stage.depth) for stage in point.structure.backbone.stages]


@pytest.mark.parametrize(
    ("changes", "low", "high", "message"),
    [
        ({}, 5.0, 5.0, "--from is 5 ms and --to is 5 ms; expected --from below --to"),
        ({"score": "deepmad"}, 1.0, 5.0, "score deepmad is not separable; a front needs a separable score"),
        ({"budgets": [Budget("latency_ms", 5.0), Budget("params", 1e9)]}, 1.0, 5.0, "expected no --max-params or"),
        ({}, 1e-6, 1e-5, "latency_ms budget 0.01 us cannot be met .* the smallest reachable is"),
    ],
)
def test_fronts_that_make_no_sense(cases, table, changes, low, high, message):
    arguments = {"budgets": [Budget("latency_ms", high)], "device": table} | changes
    request = resolve_request(cases["res"].space, **arguments)
    with pytest.raises(BudgetError, match=message):
        search_front(request, low, high)


# Published networks beside an answer


def test_published_networks_under_the_same_question(table):
    request = resolve_request("res", budgets=[Budget("latency_ms", 3.0)], device=table)
    found = published_candidates(request.goal, "res")
    assert set(found) == {"damo-yolo-t", "damo-yolo-s"}
    for name, candidate in found.items():
        structure = load_published(name)
        assert candidate.structure == structure
        assert candidate.score == pytest.approx(SCORES["madnas"](structure))
        assert latency(candidate) == pytest.approx(predict(lower(structure), table).latency_ms)
    for name, candidate in found.items():
        own = resolve_request("res", budgets=[Budget("latency_ms", latency(candidate))], device=table)
        assert nearest_published(own)[0] == name
    by_params = resolve_request("res", budgets=[Budget("params", found["damo-yolo-t"].params)])
    assert nearest_published(by_params)[0] == "damo-yolo-t"
    assert set(published_candidates(request.goal, "csp")) == {"damo-yolo-m", "damo-yolo-l"}


# The reference tool's own problem


LIBRARY = SHARED / "latency" / "tinynas_raw" / "conv_data.out.fp16.damoyolo"
needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason="the published library is not in ../shared")


@pytest.fixture(scope="module")
def damoyolo(tmp_path_factory):
    """The reference's table, imported once."""
    return load_table(import_tinynas(LIBRARY, "damoyolo", tmp_path_factory.mktemp("tables")))


OPTIMA = [
    ("tinynas-small", 0.12, 1400.1972, 119.894),
    ("tinynas-tiny", 0.08, 1040.2246, 79.922),
    ("tinynas-medium", 0.4, 1305.5167, 286.418),
    ("tinynas-medium", 0.2, 1272.8165, None),
]


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(("space", "limit", "score", "latency_us"), OPTIMA)
def test_known_optima_of_the_reference_spaces(damoyolo, space, limit, score, latency_us):
    result = search(space, budgets=[Budget("latency_ms", limit)], device=damoyolo, top_k=1)
    assert result.best.score == pytest.approx(score, abs=1e-3)
    assert result.certificate.upper_bound - result.best.objective <= 1e-6
    assert result.best.prediction.latency_ms <= limit
    if latency_us is not None:
        assert 1e3 * result.best.prediction.latency_ms == pytest.approx(latency_us, abs=1e-3)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(
    ("space", "limit", "outs", "hidden", "depths"),
    [
        ("tinynas-small", 0.12, (32, 128, 256, 256, 512), (32, 88, 128, 184, 208), (1, 2, 3, 3, 3)),
        ("tinynas-tiny", 0.08, (32, 96, 160, 160, 384), (32, 72, 160, 160, 184), (1, 2, 2, 2, 2)),
        ("tinynas-medium", 0.4, (128, 128, 256, 256, 512), (128, 128, 256, 256, 512), (1, 2, 2, 2, 2)),
    ],
)
def test_known_widths_of_the_reference_optima(damoyolo, space, limit, outs, hidden, depths):
    backbone = search(space, budgets=[Budget("latency_ms", limit)], device=damoyolo, top_k=1).best.structure.backbone
    assert backbone.stem.out_channels == 32
    assert tuple(stage.out_channels for stage in backbone.stages) == outs
    assert tuple(stage.depth for stage in backbone.stages) == depths
    assert tuple(stage.hidden_channels[0] for stage in backbone.stages) == hidden


COLUMNS = {
    # layers, parameters in M, GMACs, score, microseconds per image
    "t.v1.list.txt": (19, 1.903, 3.997, 1015.14, 83.78),
    "s.v2.list.txt": (25, 3.054, 8.188, 1380.59, 119.96),
    "m.v1.list.txt": (35, 16.648, 32.769, 2293.56, 400.37),
    "l.v2.result.txt": (45, 32.407, 63.021, 3004.16, 704.82),
    "n.v2.list.txt": (19, 0.882, 2.320, 952.18, 69.38),
    "ns.v1.result.json": (19, 0.973, 1.498, 938.02, 65.97),
    "nm.v2.result.json": (19, 1.104, 2.359, 957.90, 67.34),
    "nl.v1.list.txt": (21, 2.242, 3.332, 1109.59, 79.00),
    "tutorial.v1.result.json": (25, 5.832, 7.351, 1399.27, 119.92),
    "start-k1kx.v1.result.txt": (11, 1.132, 2.107, 613.02, 49.14),
    "start-kxkx.v2.result.txt": (11, 1.601, 4.480, 707.51, 79.77),
}


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("file", COLUMNS)
def test_figures_of_published_structures_on_the_reference_graph(damoyolo, file):
    layers, params, gmacs, score, us = COLUMNS[file]
    goal = resolve_request("tinynas-small", budgets=[Budget("latency_ms", 1.0)], device=damoyolo).goal
    found = describe_structure(import_reference(OFFICIAL / file), goal, graph="reference")
    assert found.layers == layers
    assert found.params / 1e6 == pytest.approx(params, abs=0.00051)
    assert found.flops / 2e9 == pytest.approx(gmacs, abs=0.00051)
    assert found.score == pytest.approx(score, abs=0.0051)
    assert 1e3 * found.prediction.latency_ms == pytest.approx(us, abs=0.0051)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(
    ("file", "space", "expected"),
    [("s.v2.list.txt", "tinynas-small", 1400.197), ("t.v1.list.txt", "tinynas-tiny", 1046.984)],
)
def test_optima_at_the_latency_of_a_published_structure(damoyolo, file, space, expected):
    own = import_reference(OFFICIAL / file)
    goal = resolve_request(space, budgets=[Budget("latency_ms", 1.0)], device=damoyolo).goal
    published = describe_structure(own, goal, graph="reference")
    limit = published.prediction.latency_ms
    result = search(space, budgets=[Budget("latency_ms", limit)], device=damoyolo, top_k=1)
    assert result.best.score > published.score
    assert result.best.score == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@needs_library
def test_the_front_of_the_small_reference_space(damoyolo):
    request = resolve_request("tinynas-small", budgets=[Budget("latency_ms", 0.15)], device=damoyolo)
    points = search_front(request, 0.06, 0.15)
    assert len(points) > 1_000
    for before, after in itertools.pairwise(points):
        assert after.latency_ms > before.latency_ms
        assert after.objective > before.objective
    for limit, place in ((0.06, 0), (0.15, -1)):
        single = search("tinynas-small", budgets=[Budget("latency_ms", limit)], device=damoyolo, top_k=1)
        assert points[place].objective == pytest.approx(single.best.objective, rel=1e-9)
        assert points[place].latency_ms <= limit
    at = [point for point in points if point.latency_ms <= 0.12][-1]
    assert at.objective == pytest.approx(1400.1972, abs=1e-3)


@pytest.mark.slow
@needs_library
def test_a_coarser_step_loses_little(damoyolo):
    space = load_space("tinynas-small")
    coarse = tuple(
        replace(
            stage,
            out_channels=replace(stage.out_channels, divisor=16),
            hidden_channels=replace(stage.hidden_channels, divisor=16),
        )
        for stage in space.stages
    )
    stem = replace(space.stem, out_channels=replace(space.stem.out_channels, divisor=16))
    result = search(
        replace(space, stages=coarse, stem=stem), budgets=[Budget("latency_ms", 0.12)], device=damoyolo, top_k=1
    )
    assert result.best.score == pytest.approx(1399.567, abs=1e-3)
