"""How well a score orders networks by AP: rank correlations, regret, their intervals, and what seed noise allows.

Letters: n networks, k seeds, r resamples. Intervals are percentile bootstraps over networks: each resample draws n of
the n networks with replacement, so a network stays whole with all its seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]
"""Of rows of scores and rows of APs, both (r, n), a value per row (NaN where it has none)."""

RESAMPLES = 4000
LEVEL = 0.95
_BLOCK = 250_000
"""Pairs of networks that are compared at once; bounds memory."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its bootstrap interval.

    Attributes:
        value: Of all networks.
        low: Lower end; NaN where no resample has a value.
        high: Upper end.
        degenerate: Share of resamples without a value (a constant score or AP), which are left out.
    """

    value: float
    low: float
    high: float
    degenerate: float


@dataclass(frozen=True, slots=True)
class NoiseCeiling:
    """What a score that knew the true AP of every network would reach against APs of k seeds.

    Attributes:
        seed_std: Standard deviation of one run's AP about its network's true one, the seeds' common shifts taken out.
        network_std: Standard deviation of the true APs; 0 where the APs differ no more than seeds do.
        kendall: Mean tau-b with the interval of its chance; NaN where `network_std` is 0.
        spearman: The same of rho.
        between_seeds: Mean tau-b between the APs of two seeds; NaN where one has none.
    """

    seed_std: float
    network_std: float
    kendall: Interval
    spearman: Interval
    between_seeds: float


def kendall_tau(scores: ArrayLike, aps: ArrayLike) -> float:
    """Kendall's tau-b; NaN where one side is constant."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(aps, dtype=np.float64)
    return float("nan") if _constant(x) or _constant(y) else float(stats.kendalltau(x, y).statistic)


def tau_rows(scores: Floats, aps: Floats) -> Floats:
    """(r,) tau-b of every row of two (r, n) arrays; NaN where one side is constant."""
    step = max(1, _BLOCK // scores.shape[1] ** 2)
    parts = []
    for start in range(0, len(scores), step):
        x, y = _pair_signs(scores[start : start + step]), _pair_signs(aps[start : start + step])
        parts.append(_ratio((x * y).sum(axis=(1, 2)), np.abs(x).sum(axis=(1, 2)), np.abs(y).sum(axis=(1, 2))))
    return np.concatenate(parts)


def rho_rows(scores: Floats, aps: Floats) -> Floats:
    """(r,) Spearman's rho of every row of two (r, n) arrays; NaN where one side is constant."""
    x, y = stats.rankdata(scores, axis=1), stats.rankdata(aps, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    return _ratio((x * y).sum(axis=1), (x * x).sum(axis=1), (y * y).sum(axis=1))


def regret_rows(scores: Floats, aps: Floats) -> Floats:
    """(r,) regret of every row of two (r, n) arrays: AP lost by taking the network of the highest score.

    Compared with the best one; of several with the highest score, the mean of their APs counts.
    """
    picked = scores == scores.max(axis=1, keepdims=True)
    lost = aps.max(axis=1) - (aps * picked).sum(axis=1) / picked.sum(axis=1)
    positive: Floats = np.maximum(lost, 0.0)  # a mean of equal numbers may be rounded up
    return positive


def bootstrap(
    scores: ArrayLike, aps: ArrayLike, statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A statistic of all networks with its percentile interval over networks.

    Args:
        scores: (n,) finite values.
        aps: (n,) APs, averaged over seeds.
        statistic: Such as `tau_rows`.
        resamples: How many.
        seed: Equal seeds draw equal resamples, so statistics of one set are comparable pair by pair.
    """
    x, y = _as_rows(scores, aps)
    places = _places(x.shape[1], resamples, seed)
    return interval_of(float(statistic(x, y)[0]), statistic(x[0][places], y[0][places]))


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, aps: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """tau-b of the first score less that of the second, over the same resamples."""
    x, y = _as_rows(first, aps)
    z = np.asarray(second, dtype=np.float64)[None, :]
    places = _places(x.shape[1], resamples, seed)
    drawn = y[0][places]
    spread = tau_rows(x[0][places], drawn) - tau_rows(z[0][places], drawn)
    return interval_of(float((tau_rows(x, y) - tau_rows(z, y))[0]), spread)


def interval_of(value: float, draws: Floats) -> Interval:
    """The central `LEVEL` of the draws that are numbers."""
    finite = draws[np.isfinite(draws)]
    missing = 1.0 - len(finite) / len(draws)
    if not len(finite):
        return Interval(value, float("nan"), float("nan"), missing)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), missing)


def noise_ceiling(aps: ArrayLike, *, draws: int = RESAMPLES, seed: int = 0) -> NoiseCeiling | None:
    """What seed noise leaves of a perfect score; None with fewer than two seeds or networks.

    The variance of one run comes from the residuals of networks x seeds (two-way, so a seed that is good for all
    networks is no noise), (n - 1)(k - 1) degrees of freedom. The means are drawn together until their variance is what
    noise does not explain: these are taken for the true APs, noise is added again, and both are compared.

    Args:
        aps: (n, k).
        draws: Of noise.
        seed: Of the draws.
    """
    table = np.asarray(aps, dtype=np.float64)
    n, k = table.shape
    if n < 2 or k < 2:
        return None
    means = table.mean(axis=1)
    residuals = table - means[:, None] - table.mean(axis=0) + table.mean()
    noise = float((residuals**2).sum() / ((n - 1) * (k - 1)))
    spread = float(means.var(ddof=1))
    true = max(0.0, spread - noise / k)
    between = [kendall_tau(table[:, i], table[:, j]) for i in range(k) for j in range(i)]
    nothing = Interval(float("nan"), float("nan"), float("nan"), 1.0)
    kendall, spearman = nothing, nothing
    if true > 0.0:
        truth = np.tile(means.mean() + (means - means.mean()) * np.sqrt(true / spread), (draws, 1))
        rng = np.random.default_rng(seed)
        seen = truth + rng.normal(0.0, np.sqrt(noise / k), truth.shape)
        kendall, spearman = (
            interval_of(float(np.nanmean(v)), v) for v in (tau_rows(truth, seen), rho_rows(truth, seen))
        )
    return NoiseCeiling(float(np.sqrt(noise)), float(np.sqrt(true)), kendall, spearman, float(np.mean(between)))


def _constant(values: Floats) -> bool:
    return bool(np.all(values == values[0]))


def _as_rows(scores: ArrayLike, aps: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(aps, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"scores have shape {x.shape} and APs {y.shape}; expected the same number of values")
    return x[None, :], y[None, :]


def _places(n: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, n, (resamples, n))


def _pair_signs(rows: Floats) -> Floats:
    """(r, n, n) signs of the differences within each row."""
    signs: Floats = np.sign(rows[:, :, None] - rows[:, None, :])
    return signs


def _ratio(shared: Floats, first: Floats, second: Floats) -> Floats:
    """Quotients shared / sqrt(first second), NaN where that is 0 / 0."""
    below = np.sqrt(first * second)
    quotient: Floats = np.divide(shared, below, out=np.full(len(shared), np.nan), where=below > 0)
    return quotient
