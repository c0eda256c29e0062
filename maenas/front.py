"""The whole front of score against latency of a space, as rows, CSV and a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maenas.budgets import Budget
from maenas.chain import choice_of
from maenas.errors import BudgetError
from maenas.infeasible import infeasible_error
from maenas.neighbours import published_candidates
from maenas.search import Candidate, Request, build_request_chain
from maenas.solver.front import front as solve_front
from maenas.solver.solve import Infeasible
from maenas.structure import Structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One network that no faster one beats.

    Attributes:
        latency_ms: Predicted latency (with the request's margin, if any).
        objective: Score less soft penalties.
        structure: The detector.
    """

    latency_ms: float
    objective: float
    structure: Structure


def search_front(
    request: Request, low_ms: float, high_ms: float, progress: Callable[[float], None] = lambda fraction: None
) -> list[FrontPoint]:
    """All non-dominated networks of a request's space between two latencies, exactly.

    Args:
        request: A question whose only budget is a latency (its value is not read).
        low_ms: Start; a start below the fastest network begins there.
        high_ms: End.
        progress: Called with the finished fraction.

    Raises:
        BudgetError: No network is that fast, or the request has other budgets than latency.
    """
    if any(budget.metric in ("params", "flops") for budget in request.goal.budgets):
        raise BudgetError("a front trades score against latency alone; expected no --max-params or --max-flops")
    if not request.goal.score.separable:
        raise BudgetError(f"score {request.goal.score.name} is not separable; a front needs a separable score")
    if low_ms >= high_ms:
        raise BudgetError(f"--from is {low_ms:g} ms and --to is {high_ms:g} ms; expected --from below --to")
    problem = build_request_chain(request)
    points = solve_front(problem, low_ms, high_ms, progress)
    if isinstance(points, Infeasible):
        raise infeasible_error(request.space, request.variant, request.goal, problem, points)
    return [
        FrontPoint(
            latency_ms=point.cost[0],
            objective=point.objective,
            structure=request.space.structure(choice_of(problem, point.path), request.variant),
        )
        for point in points
    ]


def front_csv(points: list[FrontPoint]) -> str:
    """One line per point; the structure is written as its numbers per stage."""
    lines = ["latency_ms,objective,digest,stem,out_channels,hidden_channels,depths"]
    for point in points:
        backbone = point.structure.backbone
        outs = " ".join(str(stage.out_channels) for stage in backbone.stages)
        hidden = " ".join(str(stage.hidden_channels[0] if stage.depth else 0) for stage in backbone.stages)
        depths = " ".join(str(stage.depth) for stage in backbone.stages)
        lines.append(
            f"{point.latency_ms!r},{point.objective!r},{point.structure.digest},"
            f"{backbone.stem.out_channels},{outs},{hidden},{depths}"
        )
    return "\n".join(lines) + "\n"


def front_budget(high_ms: float) -> Budget:
    """The budget to put into the request of a front."""
    return Budget("latency_ms", high_ms)


def plot_front(request: Request, points: list[FrontPoint], path: Path) -> None:
    """Draw the front with the published networks of the family under the same table.

    Raises:
        OutputError: The file cannot be written.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from maenas.files import write_bytes_atomically

    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    table = request.goal.table
    assert table is not None
    unit, factor = ("ms", 1.0) if points[-1].latency_ms >= 1.0 else ("us", 1e3)
    latencies = [factor * point.latency_ms for point in points]
    axes.step(latencies, [point.objective for point in points], where="post", color="#1f5fa8", lw=1.6)
    axes.set_xlabel(f"predicted latency [{unit}], {request.goal.scope}, {table.name} ({table.provenance})")
    axes.set_ylabel(f"{request.goal.score.name} score")
    axes.set_title(f"exact front of space {request.space.name}: {len(points)} networks", fontsize=10)
    axes.grid(alpha=0.3, lw=0.5)
    span = (latencies[0], latencies[-1])
    neighbours = published_candidates(request.goal, request.space.family, request.space.graph)
    _mark_published(axes, neighbours, span, factor)
    axes.annotate(
        f"table hash {table.table_hash}", (0.99, 0.01), xycoords="axes fraction", ha="right", va="bottom", fontsize=7,
        color="#666666",
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes_atomically(path, buffer.getvalue())


def _mark_published(axes: Axes, candidates: dict[str, Candidate], span: tuple[float, float], factor: float) -> None:
    """Dots and names of the published networks inside the latency range; names alternate so that neighbours fit."""
    placed = []
    for name, candidate in candidates.items():
        assert candidate.prediction is not None
        latency = factor * candidate.prediction.latency_ms
        if span[0] * 0.9 <= latency <= span[1] * 1.1:
            placed.append((latency, candidate.score, name))
    for index, (latency, score, name) in enumerate(sorted(placed)):
        axes.plot(latency, score, "o", color="#c4402f", ms=5)
        offset = (6, -10) if index % 2 == 0 else (6, 5)
        axes.annotate(name, (latency, score), xytext=offset, textcoords="offset points", fontsize=8)
