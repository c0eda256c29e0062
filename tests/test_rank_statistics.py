"""Rank correlations, regret, their intervals and the noise ceiling: by hand, against scipy, and on made-up noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from maenas.rank_statistics import (
    bootstrap,
    bootstrap_difference,
    interval_of,
    kendall_tau,
    noise_ceiling,
    regret_rows,
    rho_rows,
    tau_rows,
)

few = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=9)


def test_tau_and_rho_by_hand():
    # Of six pairs one is the wrong way round: (5 - 1) / 6. Squared rank differences add up to 2: 1 - 12 / 60.
    assert kendall_tau([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(4 / 6)
    assert rho_rows(np.array([[1, 2, 3, 4]]), np.array([[10, 30, 20, 40]])) == pytest.approx([0.8])
    # Four pairs agree, one ties in the score, one in AP: 4 / sqrt(5 * 5).
    assert kendall_tau([1, 2, 2, 3], [1, 2, 3, 3]) == pytest.approx(0.8)


def test_regret_by_hand():
    scores = np.array([[1, 5, 3], [1, 3, 5], [5, 5, 1]])
    aps = np.array([[0.5, 0.3, 0.6], [0.5, 0.3, 0.6], [0.2, 0.4, 0.6]])
    assert regret_rows(scores, aps) == pytest.approx([0.3, 0, 0.3])  # tied picks count with their mean


@given(few)
@settings(max_examples=60)
def test_rows_agree_with_scipy(pairs):
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(tau_rows(x[None], y[None])[0]) and math.isnan(rho_rows(x[None], y[None])[0])
        assert math.isnan(kendall_tau(x, y))
        return
    assert tau_rows(x[None], y[None])[0] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert rho_rows(x[None], y[None])[0] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@given(few)
@settings(max_examples=60)
def test_only_the_order_of_scores_counts(pairs):
    x, y = np.array(pairs, dtype=float).T
    moved = np.exp(x) - 7
    for statistic in (tau_rows, rho_rows, regret_rows):
        first, second = statistic(x[None], y[None])[0], statistic(moved[None], y[None])[0]
        assert first == pytest.approx(second, nan_ok=True)
    assert tau_rows(-x[None], y[None])[0] == pytest.approx(-tau_rows(x[None], y[None])[0], nan_ok=True)
    assert 0 <= regret_rows(x[None], y[None])[0] <= np.ptp(y)


def test_rows_in_blocks_are_those_of_single_rows(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 7, 6))
    monkeypatch.setattr("maenas.rank_statistics._BLOCK", 2 * 36)
    assert tau_rows(x, y) == pytest.approx([kendall_tau(a, b) for a, b in zip(x, y, strict=True)])


def test_degenerate_resamples_are_counted_and_left_out():
    # All three draws are the same network in 3 of 27 resamples; every other one orders a perfect score perfectly.
    found = bootstrap([1, 2, 3], [0.1, 0.2, 0.3], tau_rows, resamples=20_000)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.degenerate == pytest.approx(1 / 9, abs=0.01)
    none = interval_of(0.5, np.full(4, np.nan))
    assert math.isnan(none.low) and math.isnan(none.high) and none.degenerate == 1.0


def test_intervals_are_repeatable_narrow_with_more_networks_and_hold_the_value():
    rng = np.random.default_rng(1)
    widths = []
    for n in (8, 80):
        x = rng.normal(size=n)
        y = x + rng.normal(size=n)
        found = bootstrap(x, y, tau_rows, resamples=500)
        assert found == bootstrap(x, y, tau_rows, resamples=500)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    aps = rng.normal(size=12)
    noisy = aps + 3 * rng.normal(size=12)
    assert bootstrap_difference(noisy, noisy, aps, resamples=300).high == 0.0
    better = bootstrap_difference(aps, noisy, aps, resamples=300)
    assert better.value == pytest.approx(1 - kendall_tau(noisy, aps)) and better.low > 0
    worse = bootstrap_difference(noisy, aps, aps, resamples=300)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))


def test_seed_noise_by_hand():
    # Residuals of this table are all 1/2 in size, with one degree of freedom: the variance of a run is 1.
    found = noise_ceiling([[1, 3], [2, 2]])
    assert (found.seed_std, found.network_std) == (1.0, 0.0)
    assert math.isnan(found.kendall.value) and math.isnan(found.spearman.low)


def test_a_shift_of_a_whole_seed_is_no_noise():
    found = noise_ceiling([[0.10, 0.20], [0.30, 0.40], [0.50, 0.60]])
    assert found.seed_std == pytest.approx(0.0, abs=1e-12) and found.network_std == pytest.approx(0.2)
    assert found.kendall.value == found.kendall.low == found.between_seeds == 1.0


def test_the_ceiling_falls_with_noise():
    rng = np.random.default_rng(3)
    truth = np.linspace(0.3, 0.5, 40)
    ceilings = []
    for noise in (0.005, 0.05):
        found = noise_ceiling(truth[:, None] + rng.normal(0, noise, (40, 2)), draws=400)
        assert found.seed_std == pytest.approx(noise, rel=0.3)
        assert found.network_std == pytest.approx(truth.std(ddof=1), rel=0.25)
        ceilings.append(found.kendall.value)
        # What is drawn from the estimate is what the truth itself reaches against two seeds.
        reached = [kendall_tau(truth, truth + rng.normal(0, noise / math.sqrt(2), 40)) for _ in range(100)]
        assert found.kendall.value == pytest.approx(np.mean(reached), abs=0.1)
    assert ceilings[1] < ceilings[0] - 0.2


@pytest.mark.parametrize("table", [[[0.1], [0.2], [0.3]], [[0.1, 0.2]]])
def test_no_ceiling_without_two_seeds_and_two_networks(table):
    assert noise_ceiling(table) is None


def test_unequal_lengths():
    with pytest.raises(ValueError, match=r"scores have shape \(2,\) and APs \(3,\)"):
        bootstrap([1, 2], [1, 2, 3], tau_rows)
