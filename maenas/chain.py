"""From a search space, a score, a latency table and budgets to the solver's chain problem.

Every gain and cost comes from the one lowering, run on arrays of candidate widths: a stage is lowered with one unit and
with two; further units repeat the second one, so costs are linear in depth from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from maenas.budgets import Budget
from maenas.errors import BudgetError, LatencyTableError, ScoreError, SpaceError
from maenas.grids import grid_shapes, lower_grid, lower_tail, stem_ops, with_depth
from maenas.latency.table import EXTRAPOLATED, MISSING, LatencyTable
from maenas.latency.table_missing import missing_hint
from maenas.lowering.backbone import StageShape
from maenas.lowering.costs import activation_memory, num_flops, num_layers, num_params
from maenas.lowering.op import Channels, Op
from maenas.lowering.reference import (
    reference_macs,
    reference_params,
)
from maenas.scores import Score, StageView, failed_score, levels_of, stage_view
from maenas.solver.problem import ChainProblem, Decision, Floats, Integers
from maenas.space_parts import Regularisers, StageSpace, Variant
from maenas.spaces import Choice, SearchSpace

ADDITIVE = ("latency_ms", "params", "flops")
"""Metrics that add up along the network; `layers` is a resource of its own and `memory_bytes` a local filter."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What to maximise and within what.

    Attributes:
        score: A separable score.
        budgets: Limits, one per metric at most.
        table: Latency table, needed by a latency budget.
        scope: `detector` or `backbone`: which part the budgets bound.
        margin_sigmas: Latency is value + this many standard deviations.
        extrapolate: Allow operators outside the table's range (they stay flagged); else they are left out.
    """

    score: Score
    budgets: tuple[Budget, ...]
    table: LatencyTable | None = None
    scope: str = "detector"
    margin_sigmas: float = 0.0
    extrapolate: bool = False

    def limit(self, metric: str) -> float | None:
        """The limit of a metric, if there is one."""
        for budget in self.budgets:
            if budget.metric == metric:
                return budget.limit
        return None


def graph_params(ops: Sequence[Op], graph: str) -> Channels:
    """Parameters by the graph's own rule: deployed (folded), or the reference tool's."""
    return reference_params(ops) if graph == "reference" else num_params(ops)


def graph_flops(ops: Sequence[Op], graph: str) -> Channels:
    """FLOPs by the graph's own rule: 2 x MACs of the convolutions, or 2 x the reference tool's multiply-adds."""
    return 2 * reference_macs(ops) if graph == "reference" else num_flops(ops)


@dataclass(slots=True)
class Coverage:
    """Operators the table lacks or only extrapolates: per form, the (in, out) widths met while costs are made."""

    missing: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    extrapolated: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    lacking: list[Op] = field(default_factory=list)
    """Operators with a missing entry, as they were asked for."""

    def note(self, op: Op, status: Integers) -> None:
        """Remember the grid entries of an operator that are missing or extrapolated."""
        ins, outs, count, code = np.broadcast_arrays(op.in_channels, op.out_channels, op.count, status)
        for wanted, forms in ((MISSING, self.missing), (EXTRAPOLATED, self.extrapolated)):
            chosen = (code == wanted) & (count > 0)
            pairs = set(zip(ins[chosen].tolist(), outs[chosen].tolist(), strict=True))
            if pairs:
                forms.setdefault(describe_form(op), set()).update(pairs)
                if wanted == MISSING:
                    self.lacking.append(op)


def _listed(forms: dict[str, set[tuple[int, int]]]) -> str:
    """The forms with the most widths, and how many more there are."""
    counts = sorted(((form, len(pairs)) for form, pairs in forms.items()), key=lambda item: -item[1])
    shown = "; ".join(f"{form} ({number} widths)" for form, number in counts[:4])
    return shown + (f"; and {len(counts) - 4} more" if len(counts) > 4 else "")


def describe_form(op: Op) -> str:
    """An operator without its widths, for messages."""
    kind = "depthwise conv" if op.depthwise else op.kind
    kernel = f" {op.kernel_size}x{op.kernel_size}/{op.stride}" if op.kind in ("conv", "pool") else ""
    extra = (f" {op.activation}" if op.activation != "none" else "") + (" +add" if op.residual else "")
    return f"{kind}{kernel}{extra} at {op.in_size[0]}x{op.in_size[1]}"


def build_chain(space: SearchSpace, variant: Variant, goal: Goal) -> ChainProblem:
    """The chain problem of a space under a goal.

    Raises:
        BudgetError: A latency budget without a table.
        LatencyTableError: The table lacks operators the space needs (it says which and how many).
        SpaceError: A stage without any allowed option.
    """
    metrics = tuple(metric for metric in ADDITIVE if goal.limit(metric) is not None)
    if not metrics:
        metrics = ("params",)
    if "latency_ms" in metrics and goal.table is None:
        raise BudgetError("a latency budget needs a device; expected --device with a table name, alias or folder")
    coster = _Coster(space, goal, metrics)
    decisions = [_stem_decision(space, variant, coster)]
    shapes = grid_shapes(space, variant)
    for index, (stage, shape) in enumerate(zip(space.stages, shapes, strict=True), start=1):
        decisions.append(_stage_decision(space, index, stage, shape, coster))
    tail_cost, tail_gain, tap = _tail(space, variant, coster)
    coster.check_coverage()
    for index, decision in enumerate(decisions):
        if not np.isfinite(decision.gain).any():
            place = "stem" if index == 0 else f"stages[{index - 1}]"
            coster.check_range(place)
            raise SpaceError(f"space {space.name}: {place} has no allowed option (ratios, growths, memory and table)")
    if not np.isfinite(tail_gain).any():
        coster.check_range("neck and head")
    fixed = coster.fixed_cost()
    most = fixed + tail_cost.max(axis=(1, 2, 3)) + sum(each.cost.max(axis=(1, 2, 3)) for each in decisions)
    limits = [goal.limit(metric) for metric in metrics]
    return ChainProblem(
        decisions=tuple(decisions),
        metrics=metrics,
        # A metric without a budget gets a limit that nothing reaches; the solver wants finite ones.
        limits=np.array(
            [2.0 * high + 1.0 if limit is None else limit for limit, high in zip(limits, most, strict=True)]
        ),
        fixed_cost=fixed,
        tail_cost=tail_cost,
        tail_gain=tail_gain,
        tap=tap,
        max_layers=_max_layers(space, goal),
    )


def choice_of(problem: ChainProblem, path: tuple[tuple[int, int], ...]) -> Choice:
    """The widths, depths and kernels that a path stands for."""
    pairs = list(zip(problem.decisions, path, strict=True))
    stages = pairs[1:]
    return Choice(
        stem_channels=int(pairs[0][0].out_channels[pairs[0][1][0]]),
        out_channels=tuple(int(decision.out_channels[out]) for decision, (out, _) in stages),
        hidden_channels=tuple(int(decision.hidden[option]) for decision, (_, option) in stages),
        depths=tuple(int(decision.depth[option]) for decision, (_, option) in stages),
        kernel_sizes=tuple(int(decision.kernel[option]) for decision, (_, option) in stages),
    )


def _max_layers(space: SearchSpace, goal: Goal) -> int | None:
    limits = [limit for limit in (space.max_layers, goal.limit("layers")) if limit is not None]
    return int(min(limits)) if limits else None


@dataclass(slots=True)
class _Coster:
    """Costs of operator lists in the chosen metrics."""

    space: SearchSpace
    goal: Goal
    metrics: tuple[str, ...]
    coverage: Coverage = field(default_factory=Coverage)

    def fixed_cost(self) -> Floats:
        """(M,) cost of every network."""
        table, sigmas = self.goal.table, self.goal.margin_sigmas
        fixed = 0.0 if table is None else table.fixed_ms + sigmas * table.fixed_sigma_ms
        return np.array([fixed if metric == "latency_ms" else 0.0 for metric in self.metrics])

    def costs(self, ops: Sequence[Op], shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        """(M, *shape) costs, and (*shape) 0 or -inf where memory or the table does not allow an entry."""
        allowed = np.zeros(shape)
        cost = np.zeros((len(self.metrics), *shape))
        for place, metric in enumerate(self.metrics):
            if metric == "params":
                cost[place] += graph_params(ops, self.space.graph)
            elif metric == "flops":
                cost[place] += graph_flops(ops, self.space.graph)
            else:
                self._add_latency(ops, cost[place], allowed)
        memory = self.goal.limit("memory_bytes")
        if memory is not None:
            allowed[np.broadcast_to(np.asarray(activation_memory(ops)) > memory, shape)] = -np.inf
        return cost, allowed

    def _add_latency(self, ops: Sequence[Op], cost: Floats, allowed: Floats) -> None:
        table = self.goal.table
        assert table is not None
        for op in ops:
            if self.space.graph == "reference" and op.kind != "conv":
                continue  # the reference's latency is that of its convolutions
            found = table.op_latency(op)
            count, status = np.asarray(op.count), np.asarray(found.status)
            if status.max() >= EXTRAPOLATED:
                self.coverage.note(op, status)
            barred = status == MISSING if self.goal.extrapolate else status >= EXTRAPOLATED
            if barred.any():
                allowed[np.broadcast_to(barred & (count > 0), allowed.shape)] = -np.inf
            value = np.asarray(found.ms) + self.goal.margin_sigmas * np.asarray(found.sigma_ms)
            cost += count * np.nan_to_num(value, nan=0.0)

    def check_coverage(self) -> None:
        """Refuse a table that lacks whole operator forms.

        Raises:
            LatencyTableError: Naming the forms and how many widths of each are missing.
        """
        missing = self.coverage.missing
        if missing:
            assert self.goal.table is not None
            total = sum(len(pairs) for pairs in missing.values())
            raise LatencyTableError(
                f"table {self.goal.table.name} lacks {total} operators of {len(missing)} forms that space "
                f"{self.space.name} needs: {_listed(missing)}{missing_hint(self.goal.table, self.coverage.lacking)}"
            )

    def check_range(self, place: str) -> None:
        """Say that a part of the space is empty because of the table's range, if it is.

        Raises:
            LatencyTableError: Naming the forms outside the range and how many widths of each.
        """
        outside = self.coverage.extrapolated
        if outside and not self.goal.extrapolate:
            assert self.goal.table is not None
            total = sum(len(pairs) for pairs in outside.values())
            raise LatencyTableError(
                f"space {self.space.name}: {place} has no option within the range of table {self.goal.table.name}; "
                f"{total} operators lie outside: {_listed(outside)}; --allow-extrapolation uses them, flagged"
            )


def _stem_decision(space: SearchSpace, variant: Variant, coster: _Coster) -> Decision:
    stem = space.stem_of(variant)
    widths = stem.out_channels.values
    ops = stem_ops(space, variant)
    levels = levels_of(tuple(stage.stride for stage in space.stages))
    view = stage_view(0, levels, ops, None, widths[None, :, None])
    cost, allowed = coster.costs(ops, (1, len(widths), 1))
    one, none = np.array([1], dtype=np.int64), np.array([0], dtype=np.int64)
    return Decision(
        in_channels=none,
        out_channels=widths,
        hidden=none,
        kernel=np.array([stem.kernel_size], dtype=np.int64),
        depth=none,
        layers=one,
        gain=_gain(coster.goal.score, view, (1, len(widths), 1), allowed),
        cost=cost,
    )


def _gain(score: Score, view: StageView, shape: tuple[int, ...], allowed: Floats) -> Floats:
    """(I, O, P) gains, -inf where not allowed.

    Raises:
        ScoreError: The score gives something else than numbers, or no finite one somewhere it is allowed.
    """
    assert score.stage_score is not None
    try:
        value = np.broadcast_to(np.asarray(score.stage_score(view), dtype=np.float64), shape)
    except ScoreError:
        raise
    except Exception as error:  # the function may be a user's own and fail in any way
        raise failed_score(score.name, error) from error
    wrong = np.isfinite(allowed) & ~np.isfinite(value)
    if wrong.any():
        place = "the stem" if view.index == 0 else f"stage {view.index}"
        raise ScoreError(f"score {score.name} gave {value[wrong][0]} at {place}; expected a finite number")
    return np.where(np.isfinite(allowed), value, -np.inf)


def _stage_decision(space: SearchSpace, index: int, stage: StageSpace, shape: StageShape, coster: _Coster) -> Decision:
    """All options of one stage: kernels x depths x hidden widths, sorted by layers."""
    ins, outs = np.asarray(shape.in_channels), np.asarray(shape.out_channels)
    hidden = np.asarray(shape.hidden_channels[0])
    grid = (ins.shape[0], outs.shape[1], hidden.shape[2])
    levels = levels_of(tuple(each.stride for each in space.stages))
    base = np.where(_allowed_widths(stage, ins, outs, hidden), 0.0, -np.inf)
    gains, costs, columns = [], [], []
    for kernel in stage.kernel_sizes:
        priced: dict[int, tuple[Floats, Floats]] = {}
        for depth in stage.depth.values.tolist():
            ops = lower_grid(space, shape, kernel, depth)
            cost, allowed = _cost_at_depth(space, shape, kernel, depth, grid, coster, priced)
            view = stage_view(index, levels, ops, with_depth(shape, kernel, depth))
            gain = _gain(coster.goal.score, view, grid, allowed + (base if depth else _only_first(base)))
            gain -= _penalty(space.regularisers, stage, ins, outs, hidden, depth)
            layers = int(np.max(num_layers(ops)))
            gains.append(gain)
            costs.append(cost)
            columns.append((layers, kernel, depth))
    order = sorted(range(len(columns)), key=lambda place: columns[place][0])
    size = hidden.shape[2]
    return Decision(
        in_channels=ins[:, 0, 0],
        out_channels=outs[0, :, 0],
        hidden=np.tile(hidden[0, 0], len(columns)),
        kernel=np.repeat([columns[place][1] for place in order], size),
        depth=np.repeat([columns[place][2] for place in order], size),
        layers=np.repeat([columns[place][0] for place in order], size),
        gain=np.concatenate([gains[place] for place in order], axis=2),
        cost=np.concatenate([costs[place] for place in order], axis=3),
    )


def _only_first(base: Floats) -> Floats:
    """Without units the hidden width means nothing: keep the first entry as the one option."""
    only = np.full_like(base, -np.inf)
    reachable = np.isfinite(base).any(axis=2)
    only[..., 0] = np.where(reachable, 0.0, -np.inf)
    return only


def _allowed_widths(stage: StageSpace, ins: Integers, outs: Integers, hidden: Integers) -> np.ndarray:
    low, high = stage.hidden_bounds(outs)
    growth = outs / ins
    grows = (growth >= stage.min_growth) & (growth <= stage.max_growth)
    allowed: np.ndarray = grows & (hidden >= low) & (hidden <= high)
    return allowed


def _penalty(
    regularisers: Regularisers, stage: StageSpace, ins: Integers, outs: Integers, hidden: Integers, depth: int
) -> Floats | float:
    if not (regularisers.depth or regularisers.growth or regularisers.hidden):
        return 0.0
    if depth == 0:
        regularisers = replace(regularisers, hidden=0.0)  # without units there is no hidden width to punish
    return regularisers.penalty(stage.stride, ins, outs, hidden, depth)


def _cost_at_depth(
    space: SearchSpace,
    shape: StageShape,
    kernel: int,
    depth: int,
    grid: tuple[int, int, int],
    coster: _Coster,
    priced: dict[int, tuple[Floats, Floats]],
) -> tuple[Floats, Floats]:
    """Costs at a depth, extended linearly beyond two units; `priced` keeps the depths already lowered."""
    for known in (depth,) if depth <= 2 else (1, 2):
        if known not in priced:
            priced[known] = coster.costs(lower_grid(space, shape, kernel, known), grid)
    if depth <= 2:
        return priced[depth]
    (one, _), (two, allowed) = priced[1], priced[2]
    return one + (depth - 1) * (two - one), allowed


def _tail(space: SearchSpace, variant: Variant, coster: _Coster) -> tuple[Floats, Floats, int | None]:
    """Cost of neck and head on the grid of C3, C4, C5 widths, and the decision that C3 comes from."""
    third, fourth, fifth = (space.stages[index - 1].out_channels.values for index in space.out_stages)
    if coster.goal.scope == "backbone" or space.graph == "reference":
        grid = (1, len(fourth), len(fifth))
        return np.zeros((len(coster.metrics), *grid)), np.zeros(grid), None
    cost, allowed = coster.costs(lower_tail(space, variant), (len(third), len(fourth), len(fifth)))
    return cost, allowed, space.out_stages[0]
