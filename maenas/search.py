"""From budgets to a detector: build the chain problem, solve it exactly or by evolution, and describe the answer."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from maenas.budgets import METRICS, Budget
from maenas.chain import Goal, build_chain, choice_of, graph_flops, graph_params
from maenas.errors import BudgetError, MaenasError, SpaceError
from maenas.evolve import Evolved, Settings, evolve
from maenas.infeasible import infeasible_error, memory_error
from maenas.latency.predict import Prediction, predict
from maenas.latency.table import LatencyTable, load_table
from maenas.lowering.costs import activation_memory, num_layers
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.lowering.reference import lower_reference
from maenas.scores import Score, effectiveness, resolve_score
from maenas.solver.problem import ChainProblem, Solution, Steps
from maenas.solver.shortlist import depths_of, shortlist
from maenas.solver.solve import Certificate, Infeasible, solve, without_gain
from maenas.space_parts import Variant
from maenas.spaces import SearchSpace, load_space
from maenas.structure import Structure

SOLVERS = ("exact", "evolution")


@dataclass(frozen=True, slots=True)
class Request:
    """A resolved question: what `search` answers.

    Attributes:
        space: Search space, image size and classes already applied.
        variant: Its neck and head setting.
        goal: Score, budgets, table, scope, margin.
        solver: `exact` or `evolution`.
        top_k: Entries of the shortlist.
        settings: Used by evolution only.
        workers: Processes that evaluate a user's non-separable score.
    """

    space: SearchSpace
    variant: Variant
    goal: Goal
    solver: str
    top_k: int
    settings: Settings
    workers: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One network with everything a user compares.

    Attributes:
        structure: The detector.
        score: Raw score, without soft penalties.
        objective: What was maximised (score less penalties).
        prediction: Predicted latency, or None without a table.
        params: Deployed parameters within the scope (on the reference graph: by its rule).
        flops: 2 x MACs within the scope (on the reference graph: 2 x its multiply-adds).
        layers: Main-path convolutions of the backbone.
        memory_bytes: Largest working set within the scope.
        effectiveness: DeepMAD's rho; high values mean deep and thin.
    """

    structure: Structure
    score: float
    objective: float
    prediction: Prediction | None
    params: int
    flops: int
    layers: int
    memory_bytes: int
    effectiveness: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer.

    Attributes:
        request: The question.
        best: The chosen network.
        shortlist: Near-optimal networks that differ in depths, best first; the first is `best`.
        certificate: Proof of optimality; None for evolution, which proves nothing.
        evolved: How evolution went; None for the exact solver.
    """

    request: Request
    best: Candidate
    shortlist: tuple[Candidate, ...]
    certificate: Certificate | None
    evolved: Evolved | None


def search(
    space: SearchSpace | str,
    *,
    budgets: Sequence[Budget],
    device: str | Path | LatencyTable | None = None,
    score: str | Score = "madnas",
    scope: str = "detector",
    margin_sigmas: float = 0.0,
    variant: str | None = None,
    top_k: int = 5,
    solver: str | None = None,
    settings: Settings | None = None,
    workers: int = 1,
    extrapolate: bool | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> SearchResult:
    """The network of the highest score within all budgets.

    Args:
        space: A search space, or the name of a shipped one, or a YAML file.
        budgets: At least one; at most one per metric.
        device: Table, or its name, alias or folder; needed by a latency budget.
        score: A score, its name, or `package.module:function`.
        scope: `detector` (the deployed detector end to end) or `backbone`.
        margin_sigmas: A latency budget bounds value + this many standard deviations.
        variant: Neck and head setting of the space; its first by default.
        top_k: Entries of the shortlist.
        solver: `exact` or `evolution`; by default exact for separable scores.
        settings: Seed and sizes of evolution.
        workers: Processes for a non-separable score.
        extrapolate: Allow operators outside the table's range; by default only on the reference graph.
        checkpoint: Where evolution saves its state, and resumes from.
        progress: Evolution calls it with the candidates drawn and the best objective.

    Raises:
        MaenasError: Anything the caller got wrong; a budget that cannot be met names the smallest reachable value.
    """
    request = resolve_request(
        space,
        budgets=budgets,
        device=device,
        score=score,
        scope=scope,
        margin_sigmas=margin_sigmas,
        variant=variant,
        top_k=top_k,
        solver=solver,
        settings=settings,
        workers=workers,
        extrapolate=extrapolate,
    )
    return run_request(request, checkpoint=checkpoint, progress=progress)


def resolve_request(
    space: SearchSpace | str,
    *,
    budgets: Sequence[Budget],
    device: str | Path | LatencyTable | None = None,
    score: str | Score = "madnas",
    scope: str = "detector",
    margin_sigmas: float = 0.0,
    variant: str | None = None,
    top_k: int = 5,
    solver: str | None = None,
    settings: Settings | None = None,
    workers: int = 1,
    extrapolate: bool | None = None,
) -> Request:
    """Load and check everything a search needs; arguments and errors as in `search`."""
    resolved = load_space(space) if isinstance(space, str) else space
    if not budgets:
        raise BudgetError("no budget is given; expected at least one, such as a latency of 3.8ms")
    for metric in METRICS:
        if sum(budget.metric == metric for budget in budgets) > 1:
            raise BudgetError(f"{metric} has more than one budget; expected one per metric")
    if scope not in ("detector", "backbone"):
        raise BudgetError(f"scope is {scope!r}; expected detector or backbone")
    table = load_table(device) if isinstance(device, str | Path) else device
    function = resolve_score(score, resolved.score_weights) if isinstance(score, str) else score
    solver = solver or ("exact" if function.separable else "evolution")
    if solver not in SOLVERS:
        raise BudgetError(f"solver is {solver!r}; expected one of {', '.join(SOLVERS)}")
    if solver == "exact" and not function.separable:
        raise BudgetError(f"score {function.name} is not separable; expected --solver evolution for it")
    reference = resolved.graph == "reference"
    goal = Goal(
        score=function,
        budgets=tuple(budgets),
        table=table,
        scope="backbone" if reference else scope,
        margin_sigmas=margin_sigmas,
        extrapolate=reference if extrapolate is None else extrapolate,
    )
    return Request(
        space=resolved,
        variant=resolved.variant(variant),
        goal=goal,
        solver=solver,
        top_k=top_k,
        settings=settings or Settings(),
        workers=workers,
    )


def run_request(
    request: Request,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> SearchResult:
    """Answer a resolved question."""
    problem = build_request_chain(request)
    if request.solver == "exact":
        solved = solve(problem)
        if isinstance(solved, Infeasible):
            raise _why(request, problem, solved)
        solutions = shortlist(problem, solved, request.top_k) if request.top_k > 1 else [solved.solution]
        certificate, evolved = solved.certificate, None
    else:
        evolved = _evolve(request, problem, checkpoint, progress)
        certificate, solutions = None, _distinct_depths(problem, evolved.solutions, request.top_k)
    candidates = tuple(describe(request, problem, solution) for solution in solutions)
    return SearchResult(request, candidates[0], candidates, certificate, evolved)


def _why(request: Request, problem: ChainProblem, why: Infeasible) -> MaenasError:
    return infeasible_error(request.space, request.variant, request.goal, problem, why)


def build_request_chain(request: Request) -> ChainProblem:
    """The chain problem of a request; a score that does not add up gets zero gains (the space alone)."""
    goal = request.goal
    if not goal.score.separable:
        goal = replace(goal, score=Score(goal.score.name, stage_score=lambda view: 0.0))
    try:
        return build_chain(request.space, request.variant, goal)
    except SpaceError as error:
        # A stage without options may be the memory limit's doing: then the smallest reachable value helps more.
        raise memory_error(request.space, request.variant, goal) or error from None


def describe(request: Request, problem: ChainProblem, solution: Solution) -> Candidate:
    """Everything a user compares about a solution, recomputed from its structure."""
    structure = request.space.structure(choice_of(problem, solution.path), request.variant)
    structure = replace(structure, name=f"{request.space.name}-{structure.digest}")
    return describe_structure(structure, request.goal, graph=request.space.graph, objective=solution.objective)


def describe_structure(
    structure: Structure,
    goal: Goal,
    *,
    graph: str = "deployed",
    objective: float | None = None,
    scored: bool = True,
) -> Candidate:
    """Everything a user compares about a structure, under a goal's score, table and scope; NaN where not scored."""
    ops = graph_ops(structure, graph, goal.scope)
    convs = [op for op in ops if op.kind == "conv"] if graph == "reference" else ops
    score = goal.score(structure, graph=graph) if scored else math.nan
    backbone = graph_ops(structure, graph, "backbone")
    return Candidate(
        structure=structure,
        score=score,
        objective=score if objective is None else objective,
        prediction=None if goal.table is None else predict(convs, goal.table),
        params=int(graph_params(ops, graph)),
        flops=int(graph_flops(ops, graph)),
        layers=int(num_layers(backbone)),
        memory_bytes=int(activation_memory(ops)),
        effectiveness=effectiveness(structure, graph=graph),
    )


def graph_ops(structure: Structure, graph: str, scope: str) -> list[Op]:
    """Operators of the deployed or of the reference graph."""
    return lower_reference(structure) if graph == "reference" else lower(structure, scope=scope)


def _evolve(
    request: Request, problem: ChainProblem, checkpoint: Path | None, progress: Callable[[int, float], None]
) -> Evolved:
    """Evolve from a path within all limits that was found without looking at the score."""
    start = solve(without_gain(problem))
    if isinstance(start, Infeasible):
        raise _why(request, problem, start)
    path, settings = start.solution.path, request.settings
    if request.goal.score.separable:
        return evolve(problem, path, settings, checkpoint=checkpoint, progress=progress)
    workers = request.workers
    pool: ProcessPoolExecutor | nullcontext[None]
    pool = _workers(workers) if workers > 1 else nullcontext()
    with pool as executor:
        return evolve(
            problem,
            path,
            settings,
            name=request.goal.score.name,
            evaluate=_evaluator(request, problem, executor),
            checkpoint=checkpoint,
            progress=progress,
        )


def _workers(count: int) -> ProcessPoolExecutor:
    """Processes that leave an interruption to their parent."""
    return ProcessPoolExecutor(count, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def _evaluator(
    request: Request, problem: ChainProblem, executor: Executor | None
) -> Callable[[Sequence[Steps]], list[float]]:
    """Scores of paths under a score that does not add up, in the order of the paths."""
    score = partial(request.goal.score, graph=request.space.graph)

    def evaluate(paths: Sequence[Steps]) -> list[float]:
        structures = [request.space.structure(choice_of(problem, path), request.variant) for path in paths]
        if executor is None:
            return [score(structure) for structure in structures]
        return list(executor.map(score, structures, chunksize=32))

    return evaluate


def _distinct_depths(problem: ChainProblem, solutions: Sequence[Solution], count: int) -> list[Solution]:
    """The best solution of each depth vector, best first."""
    kept: dict[tuple[int, ...], Solution] = {}
    for solution in solutions:
        kept.setdefault(depths_of(problem, solution), solution)
    return list(kept.values())[: max(1, count)]
