"""Fit a few positive coefficients to a dozen published latencies, and say how wrong they are on rows left out.

A model gives the milliseconds of every row from its coefficients. The fit minimises squared log errors plus the squared
log distance of each coefficient from its prior, so with few rows a coefficient stays where physics puts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import spearmanr

Floats = NDArray[np.float64]

NOISE = 0.05
"""Assumed log error of one published latency under the right model; sets the weight of rows against priors."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a coefficient before any row: log-normal.

    Attributes:
        name: Coefficient, unit in the name.
        centre: Most likely value.
        spread: Standard deviation of the log; 0 holds the coefficient at its centre.
        why: Where centre and spread come from.
    """

    name: str
    centre: float
    spread: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """Rows to fit and the formula for them.

    Attributes:
        priors: One per coefficient.
        predict: Coefficients to the milliseconds of every row, shape (rows,).
        published_ms: Shape (rows,).
        groups: Family of each row.
        noise: Log error of one row that the fit assumes.
    """

    priors: tuple[Prior, ...]
    predict: Callable[[Mapping[str, float]], Floats]
    published_ms: Floats
    groups: tuple[str, ...]
    noise: float = NOISE


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors, predicted / published - 1, over `num_rows` rows; `spearman` is the rank correlation."""

    num_rows: int
    mean_abs: float
    rms: float
    max_abs: float
    spearman: float

    @staticmethod
    def of(predicted_ms: Floats, published_ms: Floats) -> Errors:
        """Compare two arrays of shape (rows,); the rank correlation of fewer than three rows is NaN."""
        errors = predicted_ms / published_ms - 1
        few = len(errors) < 3
        return Errors(
            num_rows=len(errors),
            mean_abs=float(np.mean(np.abs(errors))),
            rms=float(np.sqrt(np.mean(errors**2))),
            max_abs=float(np.max(np.abs(errors))),
            spearman=float("nan") if few else float(spearmanr(predicted_ms, published_ms).statistic),
        )


def fit(model: Model, weights: Floats | None = None) -> dict[str, float]:
    """The most probable coefficients.

    Args:
        model: What to fit.
        weights: How often each row counts, shape (rows,): 0 leaves a row out; one each where None.
    """
    free = [prior for prior in model.priors if prior.spread > 0]
    held = {prior.name: prior.centre for prior in model.priors if prior.spread == 0}
    centres = np.log([prior.centre for prior in free])
    spreads = np.array([prior.spread for prior in free])
    target = np.log(model.published_ms)
    scale = (np.ones_like(target) if weights is None else np.sqrt(weights)) / model.noise

    def coefficients(logs: Floats) -> dict[str, float]:
        return {prior.name: float(value) for prior, value in zip(free, np.exp(logs), strict=True)} | held

    def residuals(logs: Floats) -> Floats:
        misfit = scale * (np.log(model.predict(coefficients(logs))) - target)
        return np.concatenate([misfit, (logs - centres) / spreads])

    best = coefficients(least_squares(residuals, centres, x_scale="jac").x)
    return {prior.name: best[prior.name] for prior in model.priors}


def predict_left_out(model: Model, groups: Sequence[str]) -> Floats:
    """Milliseconds of each row from a fit without any row of its group, shape (rows,)."""
    predicted = np.empty_like(model.published_ms)
    labels = np.array(groups)
    for label in dict.fromkeys(groups):
        left_out = labels == label
        predicted[left_out] = model.predict(fit(model, (~left_out).astype(np.float64)))[left_out]
    return predicted


def leave_one_out(model: Model) -> Floats:
    """Milliseconds of each row from a fit without it, shape (rows,)."""
    return predict_left_out(model, [str(row) for row in range(len(model.published_ms))])


def leave_family_out(model: Model) -> Floats:
    """Milliseconds of each row from a fit without its family, shape (rows,)."""
    return predict_left_out(model, model.groups)


def bootstrap_spread(model: Model, *, num_refits: int = 100, seed: int = 0) -> dict[str, float]:
    """Standard deviation of each fitted coefficient's log over refits to resampled rows; 0 for a held one."""
    rng = np.random.default_rng(seed)
    num_rows = len(model.published_ms)
    free = [prior.name for prior in model.priors if prior.spread > 0]
    logs = []
    for _ in range(num_refits):
        drawn = np.bincount(rng.integers(num_rows, size=num_rows), minlength=num_rows)
        refit = fit(model, drawn.astype(np.float64))
        logs.append([np.log(refit[name]) for name in free])
    spread = dict(zip(free, np.std(logs, axis=0), strict=True))
    return {prior.name: float(spread.get(prior.name, 0.0)) for prior in model.priors}
