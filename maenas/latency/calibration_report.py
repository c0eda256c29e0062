"""What a calibration knows: coefficients, every row's error, and the width of its predictions.

Here live the types that `maenas.latency.calibrate` returns, and the questions one can ask them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maenas.latency.calibrated import PREDICTORS
from maenas.latency.calibration_fit import Errors, Prior
from maenas.latency.uncertainty import relative_sigma
from maenas.lowering.op import Op, Real

if TYPE_CHECKING:
    from rich.table import Table

UNFITTED_SIGMA = 0.4
"""One sigma of an operator no fitted network contains: a judgement, between the median (20 %) and the ninetieth
percentile (64-81 %) error of an analytic form on 29 375 single measured kernels of a V100."""


@dataclass(frozen=True, slots=True)
class FittedRow:
    """A published latency beside three predictions of it: fitted with it, without it, without its family."""

    model: str
    family: str
    published_ms: float
    fitted_ms: float
    left_out_ms: float
    family_left_out_ms: float


@dataclass(frozen=True, slots=True)
class TestedNetwork:
    """A network that no fit has seen; `error` is predicted / published - 1."""

    __test__ = False  # not a test class, whatever its name

    name: str
    published_ms: float
    predicted_ms: float
    sigma_ms: float
    error: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted latency model and what is known about its errors.

    Attributes:
        device: `nvidia-t4` or `intel-8163`.
        predictor: Key of `PREDICTORS`.
        coefficients: For the predictor; without `fixed_ms`.
        fixed_ms: Cost of every network, whatever its operators.
        spread: Standard deviation of each coefficient's log over bootstrap refits; 0 where held.
        priors: What was believed before the fit.
        rows: Every fitted row.
        fit_errors: Of the fit itself; flattering, for reference.
        loo: Leave-one-out errors.
        lofo: Leave-family-out errors.
        baseline_loo: Leave-one-out errors of the earlier model, refitted on the same rows.
        baseline_lofo: Its leave-family-out errors.
        sigma: One-sigma relative error of a network of a fitted family: root mean square of leave-one-out, raised for
            the choice of the formula (`maenas.latency.calibrate.SELECTION`).
        sigma_new_family: The same for another family or beyond the fitted sizes: worst leave-family-out error.
        kinds: Operators that occur in the fit; `depthwise` apart from `conv`.
        valid_range: Lowest and highest of each quantity over the fitted operators.
        valid_latency_ms: Fastest and slowest fitted network.
    """

    device: str
    predictor: str
    coefficients: Mapping[str, float]
    fixed_ms: float
    spread: Mapping[str, float]
    priors: tuple[Prior, ...]
    rows: tuple[FittedRow, ...]
    fit_errors: Errors
    loo: Errors
    lofo: Errors
    baseline_loo: Errors
    baseline_lofo: Errors
    sigma: float
    sigma_new_family: float
    kinds: tuple[str, ...]
    valid_range: Mapping[str, tuple[int, int]]
    valid_latency_ms: tuple[float, float]

    def op_ms(self, op: Op) -> Real:
        """Milliseconds of one operator, without its count; follows the shape of its channels."""
        return PREDICTORS[self.predictor](op, self.coefficients)

    def op_relative_sigma(self, op: Op) -> Real:
        """One-sigma relative error to give an operator, so that sigmas summed over a network are the network's.

        Coefficient errors are shared by all operators, hence the plain sum. The value never falls when an operator
        grows, so "milliseconds + sigma" has no holes either.

        Returns:
            `sigma`; `sigma_new_family` above the fitted sizes; UNFITTED_SIGMA for a kind of operator no row has.
        """
        return relative_sigma(op, self.operator_uncertainty())

    def operator_uncertainty(self) -> dict[str, Any]:
        """What `relative_sigma` needs, as a table's header keeps it."""
        return {
            "relative": self.sigma,
            "new_family": self.sigma_new_family,
            "unfitted": UNFITTED_SIGMA,
            "fitted_kinds": list(self.kinds),
            "fitted_range": {name: list(bounds) for name, bounds in self.valid_range.items()},
        }

    def predict(self, ops: Iterable[Op]) -> tuple[Real, Real]:
        """Milliseconds and one sigma of a network; arrays where its operators hold arrays."""
        ms: Real = self.fixed_ms
        sigma: Real = self.fixed_ms * self.sigma
        for op in ops:
            cost = np.asarray(op.count) * self.op_ms(op)
            ms, sigma = ms + cost, sigma + cost * self.op_relative_sigma(op)
        return ms, sigma

    def evaluate(self, networks: Iterable[tuple[str, float, Sequence[Op]]]) -> tuple[TestedNetwork, ...]:
        """Compare with published latencies of networks that were not fitted.

        Args:
            networks: Name, published milliseconds, and operators of each network.
        """
        results = []
        for name, published_ms, ops in networks:
            ms, sigma = (float(value) for value in self.predict(ops))
            results.append(TestedNetwork(name, published_ms, ms, sigma, ms / published_ms - 1))
        return tuple(results)

    def to_dict(self) -> dict[str, object]:
        """The report as plain values for JSON; numbers to six digits."""
        plain = asdict(replace(self, coefficients=dict(self.coefficients), spread=dict(self.spread)))
        return {name: _rounded(value) for name, value in plain.items()}

    def table(self) -> Table:
        """The report's rows as a rich table, the error summary as its caption."""
        from rich.table import Table

        table = Table(title=f"{self.device}: published and predicted latency, ms", caption=self.summary())
        table.add_column("network")
        for heading in ("published", "fitted", "left out", "error", "family out", "error"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            loo, lofo = row.left_out_ms, row.family_left_out_ms
            table.add_row(
                row.model,
                *(f"{ms:.2f}" for ms in (row.published_ms, row.fitted_ms, loo)),
                f"{loo / row.published_ms - 1:+.1%}",
                f"{lofo:.2f}",
                f"{lofo / row.published_ms - 1:+.1%}",
            )
        return table

    def summary(self) -> str:
        """One line: mean absolute errors with their number of rows, and the earlier model's."""
        return (
            f"mean error over {self.loo.num_rows} rows, leave one out {self.loo.mean_abs:.1%} "
            f"(before {self.baseline_loo.mean_abs:.1%}), leave family out {self.lofo.mean_abs:.1%} "
            f"(before {self.baseline_lofo.mean_abs:.1%})"
        )


def _rounded(value: object) -> object:
    """The value with floats to six significant digits and NaN as None, ready for JSON."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
