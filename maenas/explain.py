"""Where the milliseconds of a structure go, and what one more or one less would buy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from maenas.budgets import Budget
from maenas.chain import Goal
from maenas.errors import MaenasError
from maenas.latency.predict import Prediction
from maenas.latency.table import LatencyTable
from maenas.lowering.costs import num_macs, num_params
from maenas.lowering.op import Op
from maenas.scores import MADNAS_WEIGHTS, SCORES, levels_of
from maenas.search import Candidate, describe_structure, graph_ops, resolve_request, run_request
from maenas.spaces import load_space
from maenas.structure import Structure


@dataclass(frozen=True, slots=True)
class Share:
    """Cost of a group of operators.

    Attributes:
        name: Stage, neck, head, or one operator.
        num_ops: Operators in the group.
        latency_ms: Their part of the predicted latency.
        params: Deployed parameters.
        macs: Multiply-accumulates.
    """

    name: str
    num_ops: int
    latency_ms: float
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Trade:
    """What the optimum of the family's space reaches at another latency.

    Attributes:
        latency_ms: Budget.
        optimum: Best network within it, or None if there is none.
        reason: Why there is none.
    """

    latency_ms: float
    optimum: Candidate | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Costs of a structure on a device.

    Attributes:
        candidate: The structure and its figures under the madnas score.
        ops: Its costed operators.
        groups: Stem, stages, neck and head.
        trades: Optima at the structure's own latency and at one step less and more.
    """

    candidate: Candidate
    ops: tuple[Op, ...]
    groups: tuple[Share, ...]
    trades: tuple[Trade, ...]

    @property
    def prediction(self) -> Prediction:
        """Latency of the whole."""
        assert self.candidate.prediction is not None
        return self.candidate.prediction

    @property
    def layers(self) -> list[Share]:
        """One share per operator, in execution order."""
        pairs = zip(self.ops, self.prediction.op_ms, strict=True)
        return [_share(op.name, [op], [ms]) for op, ms in pairs]


def explain(
    structure: Structure,
    table: LatencyTable,
    *,
    scope: str = "detector",
    graph: str = "deployed",
    step_ms: float = 1.0,
    trades: bool = True,
) -> Explanation:
    """Predicted latency of a structure, split by stage and operator.

    Args:
        structure: What to explain.
        table: Where latencies come from.
        scope: `detector` or `backbone`.
        graph: `deployed`, or `reference`: the reference tool's graph of the backbone, counted by its rules.
        step_ms: How much more and less latency the trades look at.
        trades: Also search the family's wide space at the structure's latency and one step around it.

    Raises:
        LatencyTableError: The table lacks operators of the structure.
    """
    if graph == "reference":
        scope, trades = "backbone", False
    goal = Goal(SCORES["madnas"], (), table, scope, extrapolate=True)
    strides = tuple(stage.stride for stage in structure.backbone.stages)
    # The score weighs five pyramid levels; a backbone with another number of them still has its costs.
    scored = levels_of(strides)[-1] + 1 == len(MADNAS_WEIGHTS)
    candidate = describe_structure(structure, goal, graph=graph, scored=scored)
    assert candidate.prediction is not None
    ops = [op for op in graph_ops(structure, graph, scope) if graph == "deployed" or op.kind == "conv"]
    op_ms = candidate.prediction.op_ms
    groups = []
    for stage in dict.fromkeys(op.stage for op in ops):
        members = [index for index, op in enumerate(ops) if op.stage == stage]
        groups.append(_share(stage, [ops[i] for i in members], [op_ms[i] for i in members]))
    found = _trades(structure, table, scope, candidate.prediction.latency_ms, step_ms) if trades and scored else ()
    return Explanation(candidate, tuple(ops), tuple(groups), found)


def _share(name: str, ops: list[Op], op_ms: list[float]) -> Share:
    return Share(name, len(ops), sum(op_ms), int(num_params(ops)), int(num_macs(ops)))


def _trades(
    structure: Structure, table: LatencyTable, scope: str, latency_ms: float, step_ms: float
) -> tuple[Trade, ...]:
    """Optima of the family's wide space around a latency, with the structure's own image size, neck and head."""
    if structure.backbone.family not in ("res", "csp", "mob"):
        return ()
    space = load_space(structure.backbone.family)
    variant = space.nearest_variant(structure)
    head = replace(variant.head, num_classes=structure.head.num_classes)
    space = replace(space, image_size=structure.image_size, variants=(replace(variant, head=head),))
    found = []
    # A hair above the own latency, so that an optimum is not lost to another order of summing.
    for limit in (latency_ms - step_ms, latency_ms * (1 + 1e-9), latency_ms + step_ms):
        try:
            request = resolve_request(space, budgets=[Budget("latency_ms", limit)], device=table, scope=scope, top_k=1)
            found.append(Trade(limit, run_request(request).best))
        except MaenasError as error:
            found.append(Trade(limit, None, str(error)))
    return tuple(found)
