"""Every score of a set of networks: what is compared, and that nothing disappears."""

from __future__ import annotations

import math

import pytest
from proxy_cases import NETWORKS, network
from search_cases import made_table

from maenas.errors import ScoreError
from maenas.latency.predict import predict
from maenas.lowering.detector import lower
from maenas.proxy_scores import raw_score, reference_reading, score_values
from maenas.published import load_published
from maenas.scores import SCORES, Score

MADNAS = SCORES["madnas"]


def found(structures, **options):
    return {each.name: each for each in score_values(structures, madnas=MADNAS, **options)}


def test_all_scores_of_residual_networks(tmp_path):
    table = made_table(tmp_path / "cpu", kind="cpu-linear")
    given = {NETWORKS[0].digest: 7.5}
    scores = found(NETWORKS, table=table, measured_ms=given, forward={"zen": lambda s: 2.0})
    assert list(scores) == [
        *("madnas", "madnas-reference", "deepmad", "params", "flops", "latency", "depth", "zen")
    ]  # fmt: skip
    for structure in NETWORKS:
        digest = structure.digest
        assert scores["madnas"].values[digest] == scores["madnas-reference"].values[digest]
        assert scores["madnas"].values[digest] == pytest.approx(MADNAS(structure), rel=1e-11)
        assert scores["params"].values[digest] == SCORES["params"](structure)
        assert scores["depth"].values[digest] == 1 + 2 * sum(stage.depth for stage in structure.backbone.stages)
    assert scores["latency"].values[NETWORKS[0].digest] == 7.5, "a measured latency goes before the table's"
    assert scores["latency"].values[NETWORKS[1].digest] == predict(lower(NETWORKS[1]), table).latency_ms


def test_the_reference_reading():
    medium = load_published("damo-yolo-m")
    scores = found([medium, load_published("damo-yolo-ns")])
    # The reference tool's own numbers of M; it has no reading of mobile networks.
    assert scores["madnas-reference"].values[medium.digest] == pytest.approx(2293.56, abs=0.01)
    assert scores["madnas"].values[medium.digest] == pytest.approx(2342.87, abs=0.01)
    (reason,) = scores["madnas-reference"].reasons.values()
    assert reason == "the reference graph covers no mob networks"
    assert reference_reading(medium).backbone.family == "kxkx" and reference_reading(NETWORKS[0]) is NETWORKS[0]


def test_what_cannot_be_computed_is_a_nan_with_a_reason():
    scores = found(NETWORKS[:2])
    assert all(math.isnan(value) for value in scores["latency"].values.values())
    assert set(scores["latency"].reasons.values()) == {"no latency table was given (--device)"}


def test_equal_scores_tie_whatever_the_order_of_summation():
    parts = {NETWORKS[0].digest: (0.1, 0.2, 0.3), NETWORKS[1].digest: (0.3, 0.2, 0.1)}
    assert len({sum(each) for each in parts.values()}) == 2, "floats differ in the last digit"
    own = Score("own:sum", structure_score=lambda structure: sum(parts[structure.digest]))
    assert set(found(NETWORKS[:2], own=[own])["own:sum"].values.values()) == {0.6}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.0])
def test_a_users_score_comes_as_it_is(value):
    whole = Score("own:whole", structure_score=lambda structure: value)
    terms = Score("own:terms", stage_score=lambda view: value)
    scores = found(NETWORKS[:1], own=[whole, terms])
    assert scores["own:whole"].values[NETWORKS[0].digest] == pytest.approx(value, nan_ok=True)
    assert scores["own:terms"].values[NETWORKS[0].digest] == pytest.approx(5 * value, nan_ok=True)


def test_infinities_of_both_signs_are_nan():
    mixed = Score("mixed", stage_score=lambda view: math.inf if view.index else -math.inf)
    assert math.isnan(raw_score(mixed, network(1, 1, 1, 1)))


def test_a_users_score_that_fails_stops():
    def broken(structure):
        return 1 / 0

    with pytest.raises(ScoreError, match=r"score own:broken raised ZeroDivisionError: .*test_proxy_scores.py"):
        found(NETWORKS[:1], own=[Score("own:broken", structure_score=broken)])
    with pytest.raises(ScoreError, match="score 'zen' is compared already"):
        found(NETWORKS[:1], forward={"zen": lambda s: 1.0}, own=[Score("zen", structure_score=lambda s: 1.0)])
