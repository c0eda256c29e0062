"""Milliseconds of operators that were not measured, learned from the ones that were.

A roofline (fixed start + arithmetic + memory traffic, fitted to the measurements) carries the size of the time; two
kinds of tree ensembles learn how far the device departs from it, as a factor. Boosted trees are the better ones between
measured sizes, extremely randomised trees near a measured one (experiments/kernel_model), so their logs are averaged.
Outside the measured range the factor is that of the nearest sizes and the roofline carries on; such answers are marked.

Fitting needs scikit-learn (extra `profile`). A model is not made to be kept: what a search uses are its values, written
as rows of a table, so that no other version of a library can change them later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maenas.errors import ProfileError
from maenas.extras import require
from maenas.latency.kernel_features import Scale, Sizes, feature_columns, sizes_of_all, sizes_of_one, take
from maenas.lowering.op import Op

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MIN_KERNELS = 20
"""Fewer measurements than this are refused: there is nothing to learn from."""

UNSEEN_FORM_SIGMA = 0.5
"""Relative sigma added (in squares) where no measured operator shares kind, kernel, stride, activation and residual."""

BEYOND_SIGMA = 0.25
"""Relative sigma added (in squares) per factor of e beyond the measured sizes."""

_BIN = 50
"""Least number of measurements behind one value of sigma."""

_MOST_BINS = 12
_EDGE = 1e-9
"""Rounding that does not yet count as outside a range of logarithms."""


class KernelPrediction(NamedTuple):
    """Predictions; arrays of one length, or of the broadcast shape of the operator's channels.

    Attributes:
        ms: Milliseconds of one run of the operator (its `count` is left out), always positive.
        relative_sigma: One standard deviation of `ms`, relative.
        extrapolated: No measured operator has this form, or sizes are outside those measured of the form.
    """

    ms: Floats
    relative_sigma: Floats
    extrapolated: Flags


class Roofline(NamedTuple):
    """Time in ms = start_ms + flops * ms_per_flop + bytes * ms_per_byte, and never below least_ms."""

    start_ms: float
    ms_per_flop: float
    ms_per_byte: float
    least_ms: float

    def ms(self, flops: Floats, traffic: Floats) -> Floats:
        """Milliseconds for arrays of operations and bytes."""
        total = self.start_ms + flops * self.ms_per_flop + traffic * self.ms_per_byte
        return np.maximum(total, self.least_ms)


@dataclass(frozen=True, eq=False)
class KernelModel:
    """A fitted predictor; made by `fit_kernel_model`.

    Attributes:
        roofline: The fitted constants.
        num_kernels: Measurements it was fitted to.
        cv_error: Mean absolute relative error of the cross-validation.
        batch: Images that an operator was measured with.
        precision_bytes: Bytes of one value.
    """

    roofline: Roofline
    num_kernels: int
    cv_error: float
    batch: int
    precision_bytes: int
    _learners: _Learners
    _sigma_edges: Floats  # inner edges of the bins of log predicted ms
    _sigmas: Floats
    _ranges: dict[tuple[int, ...], tuple[Floats, Floats]]

    def predict(self, ops: Op | Sequence[Op]) -> KernelPrediction:
        """Predict operators.

        Args:
            ops: One operator, whose channels may be arrays: the result has their broadcast shape. Or a sequence of
                operators with plain channels: the result has its length.

        Raises:
            ProfileError: A size is below one, or an operator of a sequence has channels that are arrays.
        """
        shape = (
            np.broadcast_shapes(np.shape(ops.in_channels), np.shape(ops.out_channels))
            if isinstance(ops, Op)
            else (len(ops),)
        )
        sizes = sizes_of_one(ops, self) if isinstance(ops, Op) else sizes_of_all(ops, self)
        log_ms = self._learners.log_ms(sizes, self.roofline)
        sigma = self._sigmas[np.searchsorted(self._sigma_edges, log_ms)]
        unseen, beyond = self._distance(sizes)
        sigma = np.sqrt(sigma**2 + (BEYOND_SIGMA * beyond) ** 2 + (UNSEEN_FORM_SIGMA * unseen) ** 2)
        outside = unseen | (beyond > _EDGE)
        return KernelPrediction(np.exp(log_ms).reshape(shape), sigma.reshape(shape), outside.reshape(shape))

    def _distance(self, sizes: Sizes) -> tuple[Flags, Floats]:
        """Whether the form is unmeasured, and the largest log distance from the measured range (the form's, or all)."""
        unseen, beyond = np.zeros(len(sizes.flops), dtype=np.bool_), np.zeros(len(sizes.flops))
        if not len(unseen):
            return unseen, beyond
        box = sizes.log_box
        forms, place = np.unique(sizes.form, axis=0, return_inverse=True)
        place = place.reshape(-1)  # numpy 2.0 gives it two axes
        for number, form in enumerate(forms.tolist()):
            at = place == number
            unseen[at] = tuple(form) not in self._ranges
            low, high = self._ranges.get(tuple(form), self._ranges[()])
            beyond[at] = np.maximum(np.maximum(low - box[at], box[at] - high), 0).max(axis=1)
        return unseen, beyond


def fit_kernel_model(
    ops: Sequence[Op],
    ms: NDArray[np.float64] | Sequence[float],
    *,
    seed: int = 0,
    batch: int = 1,
    precision_bytes: int = 4,
    flops_per_s: float | None = None,
    bytes_per_s: float | None = None,
    folds: int = 5,
) -> KernelModel:
    """Fit a model to measured operators; their order does not matter.

    Args:
        ops: Measured operators with plain channels; `name`, `stage` and `count` are left out of account.
        ms: Milliseconds of each, of the whole batch.
        seed: Draws the trees; the same measurements and seed give the same model.
        batch: Images of one run.
        precision_bytes: Bytes of one value, 4 for FP32.
        flops_per_s: Arithmetic rate of the roofline; fitted when left out.
        bytes_per_s: Memory rate of the roofline; fitted when left out.
        folds: Parts of the cross-validation that sigma comes from, two or more.

    Raises:
        ProfileError: Too few measurements, or one of them has no positive finite time or has sizes below one.
        MissingExtraError: scikit-learn is not installed.
    """
    times = np.asarray(ms, dtype=np.float64)
    _check(ops, times, folds)
    for name, value in (("flops_per_s", flops_per_s), ("bytes_per_s", bytes_per_s)):
        if value is not None and not 0 < value < np.inf:
            raise ProfileError(f"{name} is {value!r}; expected a positive number, or None to fit it")
    sizes = sizes_of_all(ops, Scale(batch, precision_bytes))
    order = np.lexsort((times, *feature_columns(sizes).T))  # so that the order of the input cannot matter
    sizes, times = take(sizes, order), times[order]
    roofline = _fit_roofline(sizes, times, flops_per_s, bytes_per_s)
    log_ms = np.log(times)
    learners = _fit_learners(sizes, log_ms, roofline, seed)
    held_out = _cross_validate(sizes, log_ms, roofline, seed, folds)
    edges, sigmas = _sigma_bins(held_out, log_ms)
    return KernelModel(
        roofline=roofline,
        num_kernels=len(times),
        cv_error=float(np.mean(np.abs(np.expm1(held_out - log_ms)))),
        batch=batch,
        precision_bytes=precision_bytes,
        _learners=learners,
        _sigma_edges=edges,
        _sigmas=sigmas,
        _ranges=_measured_ranges(sizes),
    )


@dataclass(frozen=True, eq=False)
class _Learners:
    """Trees that give the log of (time / roofline), from the features in `used`."""

    boosted: tuple[Any, ...]
    forest: Any
    used: Flags

    def log_ms(self, sizes: Sizes, roofline: Roofline) -> Floats:
        if not len(sizes.flops):
            return np.zeros(0)
        features = feature_columns(sizes)[:, self.used]
        boosted = np.mean([model.predict(features) for model in self.boosted], axis=0)
        factor: Floats = (boosted + self.forest.predict(features)) / 2
        return factor + np.log(roofline.ms(sizes.flops, sizes.traffic))


def _fit_learners(sizes: Sizes, log_ms: Floats, roofline: Roofline, seed: int) -> _Learners:
    ensemble = require("sklearn.ensemble", extra="profile", purpose="a kernel model")
    features = feature_columns(sizes)
    used = np.ptp(features, axis=0) > 0
    used[0] |= not used.any()  # every operator alike: trees still want a column
    factor = log_ms - np.log(roofline.ms(sizes.flops, sizes.traffic))
    boosted = tuple(
        ensemble.HistGradientBoostingRegressor(
            loss="absolute_error",  # a few kernels take several times longer than their like: they must not pull
            max_iter=400,
            learning_rate=0.07,
            max_leaf_nodes=63,
            min_samples_leaf=min(10, max(2, len(log_ms) // 20)),
            max_features=0.4,
            early_stopping=False,
            random_state=seed + number,
        ).fit(features[:, used], factor)
        for number in range(2)
    )
    forest = ensemble.ExtraTreesRegressor(n_estimators=120, max_features=0.5, random_state=seed).fit(
        features[:, used], factor
    )
    return _Learners(boosted, forest, used)


def _cross_validate(sizes: Sizes, log_ms: Floats, roofline: Roofline, seed: int, folds: int) -> Floats:
    """Log milliseconds of each measurement by a model that saw no measurement of that operator."""
    _, operator = np.unique(feature_columns(sizes), axis=0, return_inverse=True)
    operator = operator.reshape(-1)
    fold = np.random.default_rng(seed).permutation(int(operator.max()) + 1)[operator] % folds
    held_out = np.empty_like(log_ms)
    for number in range(folds):
        rest, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(rest) and len(test):
            learners = _fit_learners(take(sizes, rest), log_ms[rest], roofline, seed)
            held_out[test] = learners.log_ms(take(sizes, test), roofline)
        else:  # nothing but repeats of one operator
            held_out[test] = log_ms.mean()
    return held_out


def _sigma_bins(held_out: Floats, log_ms: Floats) -> tuple[Floats, Floats]:
    """Root mean square of the relative errors, by equally filled bins of the predicted time."""
    bins = int(np.clip(len(log_ms) // _BIN, 1, _MOST_BINS))
    edges = np.quantile(held_out, np.arange(1, bins) / bins)
    place = np.searchsorted(edges, held_out)
    square = (held_out - log_ms) ** 2
    whole = square.mean()
    sigmas = [square[place == b].mean() if (place == b).any() else whole for b in range(bins)]
    return edges, np.sqrt(np.array(sigmas))


def _fit_roofline(sizes: Sizes, ms: Floats, flops_per_s: float | None, bytes_per_s: float | None) -> Roofline:
    """Non-negative least squares on relative errors; given rates are taken as they are."""
    from scipy.optimize import nnls

    known = {1: flops_per_s, 2: bytes_per_s}
    rates = np.array([0.0, *(1e3 / rate if rate else 0.0 for rate in known.values())])
    columns = np.column_stack([np.ones(len(ms)), sizes.flops, sizes.traffic]) / ms[:, None]
    free = np.array([0, *(place for place, rate in known.items() if rate is None)])
    scale = columns[:, free].max(axis=0)
    rates[free], _ = nnls(columns[:, free] / scale, 1 - columns @ rates)
    rates[free] /= scale
    start_ms, ms_per_flop, ms_per_byte = rates.tolist()
    return Roofline(start_ms, ms_per_flop, ms_per_byte, least_ms=float(ms.min()) * 1e-3)


def _measured_ranges(sizes: Sizes) -> dict[tuple[int, ...], tuple[Floats, Floats]]:
    """Lowest and highest `log_box` of each form, and of all under ()."""
    box = sizes.log_box
    ranges: dict[tuple[int, ...], tuple[Floats, Floats]] = {(): (box.min(axis=0), box.max(axis=0))}
    for form in np.unique(sizes.form, axis=0):
        at = (sizes.form == form).all(axis=1)
        ranges[tuple(form.tolist())] = (box[at].min(axis=0), box[at].max(axis=0))
    return ranges


def _check(ops: Sequence[Op], ms: Floats, folds: int) -> None:
    if ms.shape != (len(ops),):
        raise ProfileError(f"{len(ops)} kernels came with times of shape {ms.shape}; expected one time for each kernel")
    if len(ops) < MIN_KERNELS:
        raise ProfileError(f"a kernel model was given {len(ops)} measurements; expected at least {MIN_KERNELS}")
    bad = np.flatnonzero(~((ms > 0) & (ms < np.inf)))
    if len(bad):
        op = ops[bad[0]]
        raise ProfileError(
            f"kernel {bad[0]} ({op.name or op.kind}): time is {ms[bad[0]]} ms; expected a positive finite number"
        )
    if not 2 <= folds <= len(ops):
        raise ProfileError(f"folds is {folds}; expected 2 to {len(ops)}")
