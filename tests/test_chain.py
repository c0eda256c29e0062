"""The chain problem against the structures it stands for: gains, costs, layers, memory, coverage."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from search_cases import (
    Remembered,
    all_judged,
    all_structures,
    content_of,
    has_table,
    judge,
    made_table,
    penalty_of,
    random_path,
    rows_for,
    write_space,
)

from maenas.budgets import Budget
from maenas.chain import Goal, build_chain, choice_of
from maenas.errors import BudgetError, LatencyTableError
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.lowering.backbone import lower_backbone
from maenas.lowering.costs import num_layers
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.lowering.reference import lower_reference
from maenas.reach import reachable_ops
from maenas.scores import Score, resolve_score, separable
from maenas.solver.problem import evaluate_path
from maenas.solver.solve import solve
from maenas.space_parts import Regularisers
from maenas.spaces import SearchSpace, load_space
from maenas.structure import Structure

PATHS = 30
LOOSE = (Budget("latency_ms", 1e9), Budget("params", 1e15), Budget("flops", 1e18))
MADNAS = resolve_score("madnas")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A made table that predicts any operator, with uncertainties."""
    return made_table(tmp_path_factory.mktemp("tables") / "made")


def layers_of(structure: Structure, space: SearchSpace) -> int:
    """Main-path convolutions of a structure's backbone."""
    if space.graph == "reference":
        return int(num_layers(lower_reference(structure)))
    return int(num_layers(lower_backbone(structure.backbone, structure.image_size)))


def expected_penalty(space: SearchSpace, structure: Structure) -> float:
    content = {"regularisers": {name: getattr(space.regularisers, name) for name in ("depth", "growth", "hidden")}}
    content["regularisers"]["hidden_target"] = space.regularisers.hidden_target
    return penalty_of(content, structure)


def check_paths(space: SearchSpace, goal: Goal, *, variant: str | None = None, paths: int = PATHS) -> None:
    """Sums along random paths equal what the structures themselves give."""
    setting = space.variant(variant)
    problem = build_chain(space, setting, goal)
    assert problem.metrics == ("latency_ms", "params", "flops")
    rng = np.random.default_rng(7)
    kind = {"family": space.family, "graph": space.graph}
    table = Remembered(goal.table)
    for _ in range(paths):
        path = random_path(problem, rng)
        structure = space.structure(choice_of(problem, path), setting)
        assert structure in replace(space, max_layers=None)
        found = evaluate_path(problem, path)
        judged = judge(kind, structure, goal.score, table, goal.scope)
        latency = judged.prediction.latency_ms + goal.margin_sigmas * judged.prediction.sigma_ms
        assert found.objective == pytest.approx(judged.score - expected_penalty(space, structure), rel=1e-9)
        assert found.cost == pytest.approx((latency, judged.params, judged.flops), rel=1e-9)
        layers = sum(int(d.layers[option]) for d, (_, option) in zip(problem.decisions, path, strict=True))
        assert layers == layers_of(structure, space)


@pytest.mark.parametrize("name", ["res", "csp", "mob", "tinynas-small", "tinynas-medium"])
def test_sums_along_a_path_are_those_of_the_structure(name, table):
    space = load_space(name)
    check_paths(space, Goal(resolve_score("madnas", space.score_weights), LOOSE, table))


@pytest.mark.parametrize(("name", "variant"), [("res", "t"), ("csp", "l"), ("mob", "n-focus")])
def test_sums_under_another_variant(name, variant, table):
    check_paths(load_space(name), Goal(MADNAS, LOOSE, table), variant=variant, paths=10)


@pytest.mark.parametrize("name", ["res", "csp", "mob"])
@pytest.mark.parametrize(
    "changes",
    [{"margin_sigmas": 1.5}, {"scope": "backbone"}, {"scope": "backbone", "margin_sigmas": 1.0}],
    ids=["margin", "backbone", "both"],
)
def test_sums_with_margin_and_scope(name, changes, table):
    check_paths(load_space(name), Goal(MADNAS, LOOSE, table, **changes), paths=10)


@pytest.mark.parametrize("name", ["res", "csp", "mob"])
@pytest.mark.parametrize("score", ["params", "flops", "madnas-w4a8"])
def test_sums_of_other_scores(name, score, table):
    check_paths(load_space(name), Goal(resolve_score(score), LOOSE, table), paths=6)


@pytest.mark.parametrize("name", ["res", "mob", "csp"])
def test_sums_with_soft_penalties(name, table):
    space = replace(load_space(name), regularisers=Regularisers(depth=0.3, growth=2.0, hidden=1.5, hidden_target=0.4))
    check_paths(space, Goal(MADNAS, LOOSE, table), paths=12)


def test_a_score_that_is_not_linear_in_depth_is_summed_exactly(table):
    def squared(view):
        return float(view.depth) ** 2 + 0.01 * np.asarray(view.out_channels)

    for name in ("res", "csp"):
        check_paths(load_space(name), Goal(Score("squared", stage_score=separable(squared)), LOOSE, table), paths=10)


@pytest.mark.skipif(not has_table("t4-tensorrt-fp16"), reason="the t4 table has not been generated")
@pytest.mark.parametrize("name", ["res", "csp"])
def test_sums_with_the_t4_table(name):
    check_paths(load_space(name), Goal(MADNAS, LOOSE, load_table("t4"), extrapolate=True, margin_sigmas=1.0))


@pytest.mark.skipif(not has_table("intel8163-openvino"), reason="the intel table has not been generated")
def test_sums_with_the_intel_table():
    check_paths(load_space("mob"), Goal(MADNAS, LOOSE, load_table("intel-8163"), extrapolate=True, margin_sigmas=1.0))


# Which paths there are


def paths_of(problem):
    """All paths with a finite gain, within the layer limit, and their layers."""
    found = []

    def extend(path, came_in):
        if len(path) == len(problem.decisions):
            solution = evaluate_path(problem, tuple(path))
            layers = sum(int(d.layers[option]) for d, (_, option) in zip(problem.decisions, path, strict=True))
            if np.isfinite(solution.objective) and (problem.max_layers is None or layers <= problem.max_layers):
                found.append(tuple(path))
            return
        gain = problem.decisions[len(path)].gain[came_in]
        for out, option in np.argwhere(np.isfinite(gain)):
            extend([*path, (int(out), int(option))], int(out))

    extend([], 0)
    return found


def digests(space, problem):
    return sorted(space.structure(choice_of(problem, path), space.variant()).digest for path in paths_of(problem))


@pytest.mark.parametrize("family", ["res", "csp", "mob", "kxkx"])
def test_paths_are_the_structures_of_the_space(family, tmp_path):
    content = content_of(family)
    space = load_space(write_space(tmp_path, content))
    problem = build_chain(space, space.variant(), Goal(MADNAS, (Budget("params", 1e12),)))
    # Each structure exactly once: a stage without units has one option, not one per hidden width.
    assert digests(space, problem) == sorted(structure.digest for structure in all_structures(content))


def memory_content(family):
    """A tiny space where hidden widths at large maps decide the memory, or else the widths that the neck sees."""
    content = content_of(family)
    content["image_size"] = [64, 64]
    content["stem"] = {"kind": "conv", "stride": 2, "kernel_size": 3, "out_channels": 8}
    content["stages"][0] |= {"out_channels": 16, "hidden_channels": {"min": 16, "max": 48, "divisor": 16}, "depth": 1}
    content["stages"][0] |= {"min_hidden_ratio": 0.0, "max_hidden_ratio": 64.0}
    content["stages"][1] |= {"out_channels": {"min": 16, "max": 304, "divisor": 96}, "hidden_channels": 16, "depth": 1}
    content["stages"][1] |= {"min_hidden_ratio": 0.0, "max_growth": 64.0}
    for stage in content["stages"][2:]:
        stage |= {"out_channels": {"min": 320, "max": 640, "divisor": 320}, "hidden_channels": 32}
        stage |= {"depth": 1, "kernel_sizes": [3], "min_hidden_ratio": 0.0, "max_growth": 64.0}
    return content


@pytest.mark.parametrize("scope", ["detector", "backbone"])
@pytest.mark.parametrize("family", ["res", "csp", "mob"])
def test_a_memory_limit_keeps_exactly_what_fits(family, scope, tmp_path, table):
    content = memory_content(family)
    judged = all_judged(content, MADNAS, table, scope)
    sizes = sorted({each.memory_bytes for each in judged})
    assert len(sizes) > 2
    space = load_space(write_space(tmp_path, content))
    for limit in (sizes[0], sizes[len(sizes) // 2], sizes[-2] + 1):
        goal = Goal(MADNAS, (Budget("params", 1e12), Budget("memory_bytes", limit)), scope=scope)
        expected = sorted(each.structure.digest for each in judged if each.memory_bytes <= limit)
        assert 0 < len(expected) < len(judged)
        assert digests(space, build_chain(space, space.variant(), goal)) == expected


def test_the_neck_counts_for_the_memory_of_a_detector(table):
    content = memory_content("res")
    whole = all_judged(content, MADNAS, table, "detector")
    part = all_judged(content, MADNAS, table, "backbone")
    assert any(one.memory_bytes > other.memory_bytes for one, other in zip(whole, part, strict=True))


def test_a_memory_limit_beyond_two_units(tmp_path):
    content = content_of("res")
    content["stages"][2]["depth"] = {"min": 3, "max": 5}
    content |= {"max_layers": 100}
    content["stages"][1]["depth"] = 1
    judged = all_judged(content, MADNAS, made_table(tmp_path / "made"))
    sizes = sorted({each.memory_bytes for each in judged})
    space = load_space(write_space(tmp_path, content))
    goal = Goal(MADNAS, (Budget("params", 1e12), Budget("memory_bytes", sizes[0])))
    expected = sorted(each.structure.digest for each in judged if each.memory_bytes <= sizes[0])
    assert digests(space, build_chain(space, space.variant(), goal)) == expected


def test_a_csp_stage_may_have_no_unit(tmp_path):
    space = load_space(write_space(tmp_path, content_of("csp")))
    problem = build_chain(space, space.variant(), Goal(MADNAS, (Budget("params", 1e12),)))
    bare = problem.decisions[1].depth == 0
    assert problem.decisions[1].layers[bare].tolist() == [1] * int(bare.sum())
    assert np.isfinite(problem.decisions[1].gain[:, :, bare]).sum(axis=2).max() == 1


def test_a_stage_without_units_pays_no_penalty_for_a_hidden_width(tmp_path, table):
    penalties = {"depth": 0.3, "growth": 2.0, "hidden": 1.5, "hidden_target": 0.4}
    space = load_space(write_space(tmp_path, content_of("csp", regularisers=penalties)))
    check_paths(space, Goal(MADNAS, LOOSE, table))


def test_the_layer_limit_is_the_smaller_of_space_and_budget(tmp_path):
    space = load_space(write_space(tmp_path, content_of("res")))
    for limit, expected in ((11.0, 11), (99.0, 13)):
        goal = Goal(MADNAS, (Budget("params", 1e12), Budget("layers", limit)))
        assert build_chain(space, space.variant(), goal).max_layers == expected
    open_space = replace(space, max_layers=None)
    assert build_chain(open_space, space.variant(), Goal(MADNAS, (Budget("params", 1e12),))).max_layers is None


# Tables that do not cover a space


@pytest.fixture(scope="module")
def small_space(tmp_path_factory):
    return load_space(write_space(tmp_path_factory.mktemp("space"), content_of("res")))


def latency_goal(table, **changes):
    return Goal(MADNAS, (Budget("latency_ms", 1e9),), table, **changes)


def test_a_latency_budget_needs_a_table(small_space):
    with pytest.raises(BudgetError, match="a latency budget needs a device; expected --device"):
        build_chain(small_space, small_space.variant(), latency_goal(None))


def test_a_table_of_all_reachable_operators_is_enough(small_space, tmp_path):
    complete = made_table(tmp_path / "rows", kind="rows", rows=rows_for(reachable_ops(small_space)))
    check_paths(small_space, Goal(MADNAS, LOOSE, complete), paths=10)
    only = made_table(tmp_path / "backbone", kind="rows", rows=rows_for(reachable_ops(small_space, scope="backbone")))
    check_paths(small_space, Goal(MADNAS, LOOSE, only, scope="backbone"), paths=5)
    with pytest.raises(LatencyTableError, match="table backbone lacks"):
        build_chain(small_space, small_space.variant(), latency_goal(only))


def _is_wide_relu(op: Op) -> bool:
    return op.kind == "conv" and op.kernel_size == 3 and op.in_size == (16, 24) and op.activation == "relu"


def test_missing_operators_are_named_with_their_number(small_space, tmp_path):
    ops = reachable_ops(small_space)
    absent = [op for op in ops if _is_wide_relu(op) and op.stride == 2]
    pools = [op for op in ops if op.kind == "pool" and op.kernel_size == 9]
    assert absent
    assert pools
    kept = [op for op in ops if op not in absent and op not in pools]
    table = made_table(tmp_path / "holes", kind="rows", rows=rows_for(kept))
    for extrapolate in (False, True):
        with pytest.raises(LatencyTableError) as caught:
            build_chain(small_space, small_space.variant(), latency_goal(table, extrapolate=extrapolate))
        message = str(caught.value)
        total = len(absent) + len(pools)
        assert message.startswith(f"table holes lacks {total} operators of 2 forms that space tiny-res needs: ")
        assert f"conv 3x3/2 relu at 16x24 ({len(absent)} widths)" in message
        assert f"pool 9x9/1 at 2x3 ({len(pools)} widths)" in message


def test_only_the_first_forms_are_listed(small_space, tmp_path):
    table = made_table(tmp_path / "empty", kind="rows", rows=[])
    with pytest.raises(
        LatencyTableError, match=r"table empty lacks \d+ operators of (\d+) forms .*; and (\d+) more$"
    ) as caught:
        build_chain(small_space, small_space.variant(), latency_goal(table))
    forms, more = (int(number) for number in re.search(r"of (\d+) forms .* and (\d+) more", str(caught.value)).groups())
    assert forms - more == str(caught.value).count("widths)")


def test_operators_outside_the_range_are_left_out_unless_allowed(small_space, tmp_path):
    content = content_of("res")
    largest = [max(op.macs for op in lower(each, scope="backbone")) for each in all_structures(content)]
    limited = made_table(tmp_path / "limited", valid_range={"macs": [0, sorted(largest)[len(largest) // 3]]})
    backbones = all_judged(content, MADNAS, limited, "backbone")
    within = sorted(each.structure.digest for each in backbones if not each.prediction.num_extrapolated)
    assert 0 < len(within) < len(backbones)
    goal = latency_goal(limited, scope="backbone")
    assert digests(small_space, build_chain(small_space, small_space.variant(), goal)) == within
    allowed = build_chain(small_space, small_space.variant(), replace(goal, extrapolate=True))
    assert digests(small_space, allowed) == sorted(each.structure.digest for each in backbones)


def test_nothing_within_the_range_is_an_error(small_space, tmp_path):
    limited = made_table(tmp_path / "narrow", valid_range={"out_channels": [1, 4]})
    wanted = r"space tiny-res: stem has no option within the range of table narrow; \d+ operators lie outside: conv"
    with pytest.raises(LatencyTableError, match=wanted + ".*--allow-extrapolation uses them, flagged"):
        build_chain(small_space, small_space.variant(), latency_goal(limited))
    build_chain(small_space, small_space.variant(), latency_goal(limited, extrapolate=True))


# Operators a space can reach


def form(op: Op) -> tuple[object, ...]:
    return (
        op.kind, int(op.in_channels), int(op.out_channels), op.in_size, op.out_size, op.kernel_size, op.stride,
        op.depthwise, op.activation, op.residual,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["res", "csp", "mob", "tinynas-small"])
def test_reachable_operators_cover_random_structures(name):
    space = load_space(name)
    reachable = [form(op) for op in reachable_ops(space)]
    known = set(reachable)
    assert len(reachable) == len(known)
    backbone = {form(op) for op in reachable_ops(space, scope="backbone")}
    assert backbone <= known
    rng = np.random.default_rng(3)
    for variant in space.variants:
        problem = build_chain(space, variant, Goal(MADNAS, (Budget("params", 1e15),)))
        for _ in range(15):
            structure = space.structure(choice_of(problem, random_path(problem, rng)), variant)
            ops = lower_reference(structure) if space.graph == "reference" else lower(structure)
            assert {form(op) for op in ops} <= known
            if space.graph == "deployed":
                assert {form(op) for op in lower(structure, scope="backbone")} <= backbone


@pytest.mark.parametrize("family", ["res", "csp", "mob"])
def test_reachable_operators_are_all_needed_where_nothing_is_limited(family, tmp_path):
    content = content_of(family)
    content["max_layers"] = 100
    for stage in content["stages"]:
        for limit in ("min_hidden_ratio", "max_hidden_ratio", "max_growth"):
            stage.pop(limit, None)
        stage["min_growth"] = 0.0
    needed = {form(op) for structure in all_structures(content) for op in lower(structure)}
    assert {form(op) for op in reachable_ops(load_space(write_space(tmp_path, content)))} == needed


def test_predictions_add_up(table, small_space):
    problem = build_chain(small_space, small_space.variant(), latency_goal(table))
    answer = solve(problem)
    structure = small_space.structure(choice_of(problem, answer.solution.path), small_space.variant())
    prediction = predict(lower(structure), table)
    assert prediction.latency_ms == pytest.approx(prediction.fixed_ms + sum(prediction.op_ms), rel=1e-12)
    assert answer.solution.cost[0] == pytest.approx(prediction.latency_ms, rel=1e-12)
