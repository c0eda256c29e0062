"""Networks of about equal latency that differ a lot: optima of random separable objectives under one budget.

Everything that a stage may have more of (entropy, width, FLOPs) gets a positive random weight, so an optimum uses up
the budget and lies at the upper edge of the band; which stage gets the milliseconds, and whether as depth or as width,
is up to the weights. Of more networks than are wanted, those farthest from each other are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maenas.budgets import Budget
from maenas.chain import choice_of
from maenas.errors import BudgetError
from maenas.infeasible import infeasible_error
from maenas.latency.predict import predict
from maenas.lowering.costs import num_flops
from maenas.lowering.detector import lower
from maenas.lowering.op import Real
from maenas.scores import Score, StageView, log_deviation
from maenas.search import Request, build_request_chain
from maenas.solver.problem import ChainProblem
from maenas.solver.solve import Infeasible, solve, without_gain
from maenas.space_parts import Regularisers
from maenas.structure import Structure

POOL = 4
"""Networks drawn per network wanted."""
ATTEMPTS = 12
"""Objectives tried per network of the pool, before giving up."""
ROUNDS = 4
"""Corrections of the predicted band by what was measured."""
DRIFT = 0.1
"""How far from the budget a measured band may lie, as a share. A machine's speed changes by as much between two rounds:
only networks of one round can be compared, and a band at the budget exactly would be chased for ever."""

Measure = Callable[[Sequence[Structure]], Sequence[float]]
"""Measured milliseconds of some networks."""


@dataclass(frozen=True, slots=True)
class Band:
    """A range of latencies.

    Attributes:
        low_ms: Smallest.
        high_ms: Largest: the budget.
    """

    low_ms: float
    high_ms: float

    def __contains__(self, latency_ms: float) -> bool:
        return self.low_ms <= latency_ms <= self.high_ms

    @classmethod
    def below(cls, budget_ms: float, width: float) -> Band:
        """From the budget down to `width` (a share of it) less.

        Raises:
            BudgetError: The width is not between 0 and 1.
        """
        if not 0.0 < width < 1.0:
            raise BudgetError(f"width of the latency band is {100 * width:g} %; expected a number above 0, below 100")
        return cls(budget_ms * (1.0 - width), budget_ms)


@dataclass(frozen=True, slots=True)
class DrawnNetwork:
    """A network of a band.

    Attributes:
        structure: The detector.
        predicted_ms: Latency by the table.
        measured_ms: On this machine; None where it was not measured.
    """

    structure: Structure
    predicted_ms: float
    measured_ms: float | None = None


def draw_band(
    request: Request, band: Band, count: int, *, seed: int, taken: Sequence[str] = (), measure: Measure | None = None
) -> list[DrawnNetwork]:
    """Different networks of a space whose latency lies in a band, sorted by digest.

    Args:
        request: Space, variant, table and further budgets; its score and its latency budget are not looked at.
        band: Of the predicted latency. With `measure`, its width is that of the measured latencies, whose band lies
            within 10 % of this one.
        count: How many.
        seed: Equal seeds give equal networks (with `measure`, as far as measurements repeat).
        taken: Digests that must not be drawn.
        measure: Times networks; of all that were timed together, the densest band is taken. The predicted band is moved
            until that holds enough of them.

    Raises:
        BudgetError: Too few different networks in the band were found, or nothing in the space is as fast.
    """
    pool = _predicted_pool(request, band, POOL * count, seed, taken)
    if measure is not None:
        pool = _measured_pool(request, band, count, seed, taken, measure, pool)
    if len(pool) < count:
        raise BudgetError(
            f"{len(pool)} different networks of space {request.space.name} were found between {band.low_ms:.4g} and "
            f"{band.high_ms:.4g} ms; expected {count}: use a wider band, another budget, or fewer structures"
        )
    return sorted(_farthest(pool, count), key=lambda each: each.structure.digest)


def draw_wide(
    request: Request,
    low_ms: float,
    high_ms: float,
    count: int,
    *,
    width: float,
    seed: int,
    taken: Sequence[str] = (),
) -> list[DrawnNetwork]:
    """Networks at latencies evenly spread (in logarithm) over a range, fastest first; each within its own band.

    Raises:
        BudgetError: The range is empty, or holds too few networks.
    """
    if not 0.0 < low_ms < high_ms:
        raise BudgetError(f"wide range is {low_ms:.4g} to {high_ms:.4g} ms; expected the smaller latency first")
    drawn: list[DrawnNetwork] = []
    for place, limit in enumerate(np.geomspace(low_ms, high_ms, count)):
        known = [*taken, *(each.structure.digest for each in drawn)]
        drawn += draw_band(request, Band.below(float(limit), width), 1, seed=seed + 1000 * (place + 1), taken=known)
    return drawn


def _predicted_pool(request: Request, band: Band, count: int, seed: int, taken: Sequence[str]) -> list[DrawnNetwork]:
    """Up to `count` different networks whose predicted latency lies in the band."""
    table = request.goal.table
    assert table is not None
    found: dict[str, DrawnNetwork] = {}
    for structure in _optima(request, band.high_ms, ATTEMPTS * count, seed):
        if structure.digest not in found and structure.digest not in taken:
            latency = predict(lower(structure), table).latency_ms
            if latency in band:
                found[structure.digest] = DrawnNetwork(structure, latency)
        if len(found) == count:
            break
    return list(found.values())


def _measured_pool(
    request: Request,
    band: Band,
    count: int,
    seed: int,
    taken: Sequence[str],
    measure: Measure,
    pool: list[DrawnNetwork],
) -> list[DrawnNetwork]:
    """Networks timed in one round, within the band's width of each other; the predicted band follows what was timed.

    Empty if no round had enough of them near the budget.
    """
    width, ratios = 1.0 - band.low_ms / band.high_ms, list[float]()
    for round_index in range(ROUNDS):
        if not pool:
            break
        values = measure([each.structure for each in pool])
        timed = [replace(each, measured_ms=float(value)) for each, value in zip(pool, values, strict=True)]
        within = _densest(timed, width)
        if len(within) >= count and abs(_measured(within[-1]) / band.high_ms - 1.0) <= DRIFT:
            return within
        ratios += [_measured(each) / each.predicted_ms for each in timed]
        bias = float(np.median(ratios))
        moved = Band(band.low_ms / bias, band.high_ms / bias)
        try:
            pool = _predicted_pool(request, moved, POOL * count, seed + 100 * (round_index + 1), taken)
        except BudgetError:
            break  # out of reach
    return []


def _densest(timed: Sequence[DrawnNetwork], width: float) -> list[DrawnNetwork]:
    """As many as possible of these, at least one, with measured latencies in one band of that width, fastest first."""
    ordered = sorted(timed, key=_measured)
    latencies = np.array([_measured(each) for each in ordered])
    starts = np.searchsorted(latencies, (1.0 - width) * latencies)
    last = int(np.argmax(np.arange(len(ordered)) - starts))
    return ordered[starts[last] : last + 1]


def _measured(network: DrawnNetwork) -> float:
    assert network.measured_ms is not None
    return network.measured_ms


def _optima(request: Request, limit_ms: float, attempts: int, seed: int) -> Iterator[Structure]:
    """Optima of random objectives within a latency, each with a random limit on the layers."""
    space = replace(request.space, regularisers=Regularisers())
    others = [budget for budget in request.goal.budgets if budget.metric != "latency_ms"]
    goal = replace(request.goal, budgets=(Budget("latency_ms", limit_ms), *others))
    problems = [
        build_request_chain(replace(request, space=space, goal=replace(goal, score=Score(name, stage_score=term))))
        for name, term in TERMS.items()
    ]
    first = problems[0]
    start = solve(without_gain(first))
    if isinstance(start, Infeasible):
        raise infeasible_error(space, request.variant, goal, first, start)
    fewest = sum(int(decision.layers.min()) for decision in first.decisions)
    most = sum(int(decision.layers.max()) for decision in first.decisions)
    most = most if first.max_layers is None else min(most, first.max_layers)
    rng = np.random.default_rng([seed, round(1e6 * limit_ms)])
    for _ in range(attempts):
        problem = replace(_mixed(problems, rng), max_layers=int(rng.integers(fewest, most + 1)))
        solved = solve(problem)
        if not isinstance(solved, Infeasible):
            structure = space.structure(choice_of(problem, solved.solution.path), request.variant)
            yield replace(structure, name=f"{space.name}-{structure.digest}")


def _mixed(problems: Sequence[ChainProblem], rng: np.random.Generator) -> ChainProblem:
    """A problem whose gains are the terms', each stage's scaled to 1 at most, times positive random weights."""
    shares = rng.dirichlet(np.full(len(problems), 0.6))
    decisions = []
    for parts in zip(*(problem.decisions for problem in problems), strict=True):
        weight = math.exp(rng.normal(0.0, 1.0))
        gain = np.zeros_like(parts[0].gain)
        for share, part in zip(shares, parts, strict=True):
            scale = float(np.abs(part.gain[np.isfinite(part.gain)]).max())
            gain = gain + weight * (share + 1e-3) * part.gain / max(scale, 1e-12)
        decisions.append(replace(parts[0], gain=gain))
    return replace(problems[0], decisions=tuple(decisions))


def _entropy_term(view: StageView) -> Real:
    return log_deviation(view.ops)


def _width_term(view: StageView) -> Real:
    # The stem and stages without units have no hidden width.
    width: Real = np.log(np.float64(1.0) * view.out_channels) + np.log(np.maximum(view.hidden_channels, 1))
    return width


def _flops_term(view: StageView) -> Real:
    return np.float64(1.0) * num_flops(view.ops)


TERMS: dict[str, Callable[[StageView], Real]] = {
    "entropy": _entropy_term,
    "width": _width_term,
    "flops": _flops_term,
}
"""What random objectives are made of: depth above all, width whatever the depth, and both."""


def _farthest(pool: Sequence[DrawnNetwork], count: int) -> list[DrawnNetwork]:
    """Greedily those farthest from the ones kept, in standardised depths and logarithms of widths."""
    features = np.array([_features(each.structure) for each in pool])
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    kept = [int(np.linalg.norm(features, axis=1).argmax())]
    while len(kept) < count:
        gaps = np.linalg.norm(features[:, None] - features[kept], axis=2).min(axis=1)
        gaps[kept] = -1.0
        kept.append(int(gaps.argmax()))
    return [pool[place] for place in kept]


def _features(structure: Structure) -> NDArray[np.float64]:
    backbone = structure.backbone
    numbers = [math.log(backbone.stem.out_channels)]
    for stage in backbone.stages:
        hidden = stage.hidden_channels[0] if stage.hidden_channels else 1
        numbers += [float(stage.depth), math.log(stage.out_channels), math.log(hidden)]
    return np.array(numbers)
