"""Scores: hand arithmetic, the derivation, the numbers of the reference tool, and users' own functions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import OFFICIAL, ROOT, content_of, write_space

from maenas.errors import ScoreError
from maenas.lowering.backbone import StageShape, lower_stage
from maenas.lowering.costs import num_flops, num_params
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.official_import import import_reference
from maenas.published import load_published
from maenas.scores import (
    SCORES,
    Score,
    deepmad,
    effectiveness,
    levels_of,
    log_deviation,
    madnas,
    quantised_deviation,
    resolve_score,
    stage_view,
    stage_views,
)
from maenas.structure import Backbone, Head, Neck, Stage, Stem, Structure


def detector(family: str, stem: Stem, stages: tuple[Stage, ...], *, size=(64, 64), out_stages=(2, 3, 4)) -> Structure:
    backbone = Backbone(family, "relu", stem, stages, out_stages)
    neck = Neck(backbone.out_channels, 1, 0.5, "relu", family == "mob")
    return Structure("made", size, backbone, neck, Head(4, 4, 3))


FOCUS = Stem("focus", 3, 8, 3, 1)
TINY = detector(
    "res", FOCUS, (Stage(16, (8,), 2, 3), Stage(24, (8, 8), 2, 3), Stage(32, (16,), 2, 3), Stage(64, (32,), 2, 3))
)


def half_ln(*taps: int) -> float:
    """1/2 of the sum of the logarithms of fan-ins."""
    return sum(math.log(tap) for tap in taps) / 2


# Hand arithmetic


def test_madnas_of_a_small_residual_net_counted_on_paper():
    # Fan-ins: focus stem 12 x 9; a unit has 1x1 (in) and 3x3 (hidden x 9).
    stem = half_ln(12 * 9)
    first = stem + half_ln(8, 8 * 9)
    second = first + half_ln(16, 8 * 9, 24, 8 * 9)
    third = second + half_ln(24, 16 * 9)
    fourth = third + half_ln(32, 32 * 9)
    terms = [
        stem + math.log(8),
        first + math.log(16),
        second + math.log(24),
        third + math.log(32),
        fourth + math.log(64),
    ]
    expected = 2 * terms[0] + 3 * terms[1] + 5 * terms[2] + 7 * terms[3] + 11 * terms[4]
    score = Score("hand", stage_score=madnas((2.0, 3.0, 5.0, 7.0, 11.0)))
    assert score(TINY) == pytest.approx(expected, rel=1e-12)
    # The reference graph has the same main path for this family.
    assert score(TINY, graph="reference") == pytest.approx(expected, rel=1e-12)


def test_a_stage_of_stride_one_continues_its_level():
    stages = (
        Stage(16, (8,), 2, 3),
        Stage(16, (8,), 2, 3),
        Stage(24, (8,), 2, 3),
        Stage(32, (8,), 1, 3),
        Stage(48, (8,), 2, 3),
    )
    net = detector("res", FOCUS, stages, out_stages=(2, 4, 5))
    assert levels_of(tuple(stage.stride for stage in stages)) == (0, 1, 2, 3, 3, 4)
    # The level of stages 3 and 4 ends with the 32 channels of stage 4; the 24 of stage 3 are only a fan-in.
    before = half_ln(12 * 9, 8, 8 * 9, 16, 8 * 9)
    expected = before + half_ln(16, 8 * 9, 24, 8 * 9) + math.log(32)
    assert Score("one level", stage_score=madnas((0, 0, 0, 1, 0)))(net) == pytest.approx(expected, rel=1e-12)


def test_main_path_of_an_inverted_residual_net():
    stages = tuple(Stage(out, (2 * out,), 2, 5) for out in (8, 16, 24, 32))
    net = detector("mob", Stem("conv", 3, 8, 3, 2), stages)
    taps = [3 * 9]
    for came_in, out in ((8, 8), (8, 16), (16, 24), (24, 32)):
        taps += [came_in, 25, 2 * out]  # expand, depthwise, project
    expected = half_ln(*taps) + math.log(32)
    assert Score("last level", stage_score=madnas((0, 0, 0, 0, 1)))(net) == pytest.approx(expected, rel=1e-12)


def test_main_path_of_a_csp_net():
    stages = (Stage(16, (), 2, 3), Stage(16, (8,), 2, 3), Stage(32, (16, 16), 2, 3), Stage(64, (), 2, 3, spp=True))
    net = detector("csp", FOCUS, stages)
    taps = [12 * 9]
    taps += [8 * 9]  # no unit: the down-sampler alone
    taps += [16 * 9, 16, 8 * 9, 8 * 9, 16]  # down-sampler, start, two 3x3 convs of the unit, fuse
    taps += [16 * 9, 32, 16 * 9, 16 * 9, 16 * 9, 16 * 9, 32]
    taps += [32 * 9]  # SPP is not on the main path
    expected = half_ln(*taps) + math.log(64)
    assert Score("last level", stage_score=madnas((0, 0, 0, 0, 1)))(net) == pytest.approx(expected, rel=1e-12)


def test_baselines_count_the_backbone():
    ops = lower(TINY, scope="backbone")
    assert SCORES["params"](TINY) == num_params(ops)
    assert SCORES["flops"](TINY) == num_flops(ops)


def test_stage_views_describe_the_net():
    views = stage_views(TINY)
    assert [view.depth for view in views] == [0, 1, 2, 1, 1]
    assert [view.out_channels for view in views] == [8, 16, 24, 32, 64]
    assert [view.in_channels for view in views] == [12, 8, 16, 24, 32]
    assert [view.hidden_channels for view in views] == [0, 8, 8, 16, 32]
    assert [view.out_size for view in views] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert all(view.ends_level for view in views)
    assert {(view.num_stages, view.num_levels) for view in views} == {(4, 5)}


# The reference tool's numbers


REFERENCE_SCORES = {
    "t.v1.list.txt": 1015.144,
    "s.v2.list.txt": 1380.588,
    "m.v1.list.txt": 2293.56,
    "l.v2.result.txt": 3004.16,
    "n.v2.list.txt": 952.18,
    "ns.v1.result.json": 938.02,
    "nm.v2.result.json": 957.90,
    "nl.v1.list.txt": 1109.59,
    "tutorial.v1.result.json": 1399.2676,
    "start-k1kx.v1.result.txt": 613.02,
    "start-kxkx.v2.result.txt": 707.51,
}


@pytest.mark.parametrize(("file", "expected"), REFERENCE_SCORES.items())
def test_scores_of_the_published_structures(file, expected):
    digits = len(str(expected).split(".")[1])
    score = SCORES["madnas"](import_reference(OFFICIAL / file), graph="reference")
    assert score == pytest.approx(expected, abs=0.51 * 10**-digits)


@pytest.mark.parametrize(("name", "expected"), [("damo-yolo-s", 1380.588), ("damo-yolo-t", 1015.144)])
def test_the_deployed_graph_of_res_scores_the_same(name, expected):
    assert SCORES["madnas"](load_published(name)) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("damo-yolo-s", (5.81, 11.61, 40.43, 72.20, 79.25)), ("damo-yolo-t", (5.52, 15.54, 26.67, 51.51, 58.56))],
)
def test_terms_of_the_levels(name, expected):
    found, accumulated = [], 0.0
    for view in stage_views(load_published(name)):
        accumulated += float(log_deviation(view.ops))
        if view.ends_level:
            found.append(accumulated + math.log(float(view.out_channels)))
    assert found == pytest.approx(expected, abs=0.005)


def test_closed_form_of_the_published_main_paths():
    for name, expected in (("damo-yolo-t", 52.610), ("damo-yolo-s", 73.009)):
        total = sum(float(log_deviation(view.ops)) for view in stage_views(load_published(name)))
        assert total == pytest.approx(expected, abs=5e-4)


def convolved(op: Op, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(C, H, W) through a convolution with N(0, 1) weights and circular padding."""
    groups = op.in_channels if op.depthwise else 1
    weights = rng.standard_normal((op.out_channels, op.in_channels // groups, op.kernel_size, op.kernel_size))
    half = op.kernel_size // 2
    y = np.zeros((op.out_channels, *x.shape[1:]))
    for row in range(op.kernel_size):
        for column in range(op.kernel_size):
            moved = np.roll(x, (half - row, half - column), axis=(1, 2))
            tap = weights[:, :, row, column]
            y += tap[:, 0, None, None] * moved if op.depthwise else np.einsum("oi,ihw->ohw", tap, moved)
    return y[:, :: op.stride, :: op.stride]


# Wide enough that the deviation of one draw is close to the expected one.
WIDE = detector("res", Stem("focus", 3, 32, 3, 1), tuple(Stage(out, (48,) * 2, 2, 3) for out in (32, 48, 64, 64)))
FORWARD_NETS = {
    "res": WIDE,
    "kxkx": replace(WIDE, backbone=replace(WIDE.backbone, family="kxkx")),
    "mob": detector("mob", Stem("conv", 3, 16, 3, 2), tuple(Stage(out, (64,), 2, 5) for out in (16, 24, 32, 64))),
}


@pytest.mark.parametrize("name", FORWARD_NETS)
def test_closed_form_is_the_deviation_of_a_random_linear_forward_pass(name):
    # Linear, no shortcut, no normalisation; every output is rescaled to unit deviation and the logarithm kept.
    net = replace(FORWARD_NETS[name], image_size=(192, 192))
    path = [op for view in stage_views(net) for op in view.ops if op.main_path]
    measured = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((path[0].in_channels, *path[0].in_size))
        total = 0.0
        for op in path:
            x = convolved(op, x, rng)
            scale = float(np.sqrt(np.mean(x**2)))
            total, x = total + math.log(scale), x / scale
        measured.append(total)
    assert np.mean(measured) == pytest.approx(float(log_deviation(path)), abs=0.15)


# Quantisation entropy


@pytest.mark.parametrize(
    ("std", "bits", "expected"),
    [
        (1, 2, 1.0089194),
        (1, 8, 1.0408330),
        (4, 2, 1.7388229),
        (4, 4, 3.8504713),
        (8, 4, 5.7554341),
        (16, 5, 11.4981834),
    ],
)
def test_deviation_of_a_quantised_gaussian(std, bits, expected):
    assert quantised_deviation(std, bits) == pytest.approx(expected, abs=1e-7)


def test_quantisation_adds_the_same_term_to_every_convolution():
    gain = math.log(quantised_deviation(1, 8) * quantised_deviation(1, 4))
    # Convolutions up to the end of each level: 1, 3, 7, 9, 11.
    expected = SCORES["madnas"](TINY) + gain * (1 * 7 + 1 * 9 + 16 * 11)
    for name in ("madnas-w4a8", "madnas-w8a4"):
        assert resolve_score(name)(TINY) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "message"),
    [("madnas-w9a8", "weight_bits is 9; expected 2 to 8"), ("madnas-w8a1", "activation_bits is 1; expected 2 to 8")],
)
def test_bit_widths_out_of_range(name, message):
    with pytest.raises(ScoreError, match=message):
        resolve_score(name)


# DeepMAD


def deepmad_again(structure: Structure, weights: tuple[float, ...], penalty: float, side: float) -> float:
    """DeepMAD's score of a res net with one stage per level, computed from the structure alone."""
    stem, total, accumulated = structure.backbone.stem, 0.0, 0.0
    side /= 2
    accumulated += half_ln(4 * stem.in_channels * stem.kernel_size**2)
    total += weights[0] * (math.log(stem.out_channels) + math.log(side * side)) * accumulated
    came_in = stem.out_channels
    for weight, stage in zip(weights[1:], structure.backbone.stages, strict=True):
        side /= stage.stride
        for hidden in stage.hidden_channels:
            accumulated += half_ln(came_in, hidden * stage.kernel_size**2)
            came_in = stage.out_channels
        total += weight * (math.log(came_in) + math.log(side * side)) * accumulated
    depths = [stage.depth for stage in structure.backbone.stages]
    mean = sum(depths) / len(depths)
    deviation = math.sqrt(sum((depth - mean) ** 2 for depth in depths) / len(depths))
    return total - penalty * math.exp(deviation)


def test_deepmad_by_another_computation():
    assert deepmad(TINY) == pytest.approx(deepmad_again(TINY, (1, 1, 1, 1, 8), 10, 224), rel=1e-12)
    assert SCORES["deepmad"](TINY) == deepmad(TINY)
    own = deepmad(TINY, weights=(1, 2, 3, 4, 5), depth_penalty=2.5, image_size=None)
    assert own == pytest.approx(deepmad_again(TINY, (1, 2, 3, 4, 5), 2.5, 64), rel=1e-12)
    free = deepmad(TINY, depth_penalty=0.0)
    assert free == pytest.approx(deepmad_again(TINY, (1, 1, 1, 1, 8), 0, 224), rel=1e-12)


def test_deepmad_counts_cells_of_maps_that_are_not_square():
    wide = replace(TINY, image_size=(32, 128))  # as many cells as 64 x 64, at every level
    assert deepmad(wide, image_size=None) == pytest.approx(deepmad(TINY, image_size=None), rel=1e-12)


@pytest.mark.parametrize(("score", "message"), [
    (lambda: Score("short", stage_score=madnas((1.0, 2.0)))(TINY), "2 level weights; the backbone has 5 levels"),
    (lambda: deepmad(TINY, weights=(1.0,)), "deepmad has 1 level weights; the backbone has 5 levels"),
])  # fmt: skip
def test_weights_must_match_the_levels(score, message):
    with pytest.raises(ScoreError, match=message):
        score()


# Effectiveness


def test_effectiveness_counted_on_paper():
    taps = [[12 * 9], [8, 72], [16, 72, 24, 72], [24, 144], [32, 288]]
    worst, so_far = 0.0, []
    for level in taps:
        so_far += level
        worst = max(worst, len(so_far) / math.prod(so_far) ** (1 / len(so_far)))
    assert effectiveness(TINY) == pytest.approx(worst, rel=1e-12)


def small_optimum() -> Structure:
    """The optimum of the reference's small configuration."""
    widths = ((32, 32, 1, 2), (128, 88, 2, 2), (256, 128, 3, 2), (256, 184, 3, 1), (512, 208, 3, 2))
    stages = tuple(Stage(out, (hidden,) * depth, stride, 3) for out, hidden, depth, stride in widths)
    return detector("res", Stem("focus", 3, 32, 3, 1), stages, size=(640, 640), out_stages=(2, 4, 5))


def test_effectiveness_of_known_nets():
    assert effectiveness(small_optimum()) == pytest.approx(0.057, abs=5e-4)
    assert effectiveness(load_published("damo-yolo-s")) == pytest.approx(0.073, abs=5e-4)


def test_score_of_the_small_optimum():
    assert SCORES["madnas"](small_optimum(), graph="reference") == pytest.approx(1400.1972, abs=1e-4)


# A user's own score


USER_MODULE = """
import math
from maenas.scores import separable

def width_of(structure):
    return float(sum(stage.out_channels for stage in structure.backbone.stages))

@separable
def width(view):
    return 1.0 * view.out_channels

def broken(structure):
    return float("nan")

@separable
def broken_stage(view):
    return math.inf * view.out_channels

constant = 3.0
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module in the current folder, forgotten afterwards."""
    (tmp_path / "made_scores.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "made_scores"
    sys.modules.pop("made_scores", None)


def test_a_users_own_score_is_found_in_the_current_folder(user_module):
    whole = resolve_score(f"{user_module}:width_of")
    assert not whole.separable
    assert whole(TINY) == 16 + 24 + 32 + 64
    staged = resolve_score(f"{user_module}:width")
    assert staged.separable
    assert staged(TINY) == 8 + 16 + 24 + 32 + 64
    assert (whole.name, staged.name) == ("made_scores:width_of", "made_scores:width")


@pytest.mark.parametrize("function", ["broken", "broken_stage"])
def test_a_value_that_is_not_finite_stops_with_the_digest(user_module, function):
    with pytest.raises(ScoreError, match=rf"{function} gave (nan|inf) for structure {TINY.digest}; expected a finite"):
        resolve_score(f"{user_module}:{function}")(TINY)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("made_scores:absent", "made_scores has no function 'absent'"),
        ("made_scores:constant", "made_scores has no function 'constant'"),
        ("made_scores:", "made_scores has no function ''"),
        ("no_such_module_here:f", "module 'no_such_module_here' cannot be imported"),
        ("made_scores.inner:f", "module 'made_scores.inner' cannot be imported"),
        (":f", "module '' cannot be imported"),
        (".relative:f", "module '.relative' cannot be imported"),
        ("madness", "unknown score 'madness'; expected one of madnas, deepmad, params, flops"),
        ("madnas-w8", "unknown score 'madnas-w8'"),
    ],
)
def test_scores_that_cannot_be_had(user_module, name, message):
    with pytest.raises(ScoreError, match=message):
        resolve_score(name)


PARTLY = """
import numpy as np
from maenas.scores import separable

@separable
def partly(view):
    out = np.asarray(view.out_channels)
    return np.where(out >= 48, np.nan, 1.0 * out)
"""


def test_a_separable_score_that_is_not_finite_somewhere_stops_the_search(tmp_path):
    # In a process of its own, with a time limit: a solver that meets a NaN may never end.
    (tmp_path / "made_partly.py").write_text(PARTLY)
    space = write_space(tmp_path, content_of("res"))
    command = [sys.executable, "-m", "maenas", "search", "--space", space, "--max-params", "1G"]
    command += ["--score", "made_partly:partly"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "maenas: error: score made_partly:partly gave nan" in done.stderr
    assert "expected a finite number" in done.stderr


# Arrays


WIDTHS = st.integers(1, 512)
FAMILIES = st.sampled_from(["res", "kxkx", "csp", "mob"])
STAGE_SCORES = {
    "madnas": madnas((1.0, 2.0, 3.0)),
    "madnas-w4a8": resolve_score("madnas-w4a8", (1.0, 2.0, 3.0)).stage_score,
    "params": SCORES["params"].stage_score,
    "flops": SCORES["flops"].stage_score,
}


@settings(max_examples=40)
@given(
    family=FAMILIES,
    name=st.sampled_from(sorted(STAGE_SCORES)),
    ins=st.lists(WIDTHS, min_size=1, max_size=3),
    outs=st.lists(WIDTHS.map(lambda width: 2 * width), min_size=1, max_size=3),
    hidden=st.lists(WIDTHS, min_size=1, max_size=3),
    depth=st.integers(1, 3),
)
def test_a_stage_score_on_arrays_is_that_of_each_entry(family, name, ins, outs, hidden, depth):
    stage_score = STAGE_SCORES[name]

    def term(came_in, out, width):
        size, kernel = (16, 24), 3
        shape = StageShape(family, "relu", came_in, out, (width,) * depth, 2, kernel, False, True, size, "stage1")
        return stage_score(stage_view(1, (0, 1, 2), lower_stage(shape), shape))

    i, o, h = (np.array(values) for values in (ins, outs, hidden))
    grid = np.broadcast_to(term(i[:, None, None], o[None, :, None], h[None, None, :]), (len(i), len(o), len(h)))
    for place in np.ndindex(grid.shape):
        single = term(int(i[place[0]]), int(o[place[1]]), int(h[place[2]]))
        assert grid[place] == pytest.approx(float(single), rel=1e-12)
