"""How much do exactness and a fast evaluator buy, on the reference tool's own problems?

Run from the repository root: `python experiments/exact_vs_evolution/run.py FOLDER`, where FOLDER is the reference
tool's operator library as imported by `maenas table import` (README.md says where it comes from). Writes result.json
and gap.png beside this file.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from platform import python_version
from statistics import median
from typing import Any

import numpy as np
from figure import draw
from reference_semantics import START, Config, Evaluator, Network, search
from rich.console import Console
from rich.table import Table

from maenas.budgets import Budget
from maenas.chain import choice_of
from maenas.evolve import Settings, evolve
from maenas.latency.table import LatencyTable, load_table
from maenas.profiling.host import cpu_model
from maenas.search import Request, build_request_chain, describe_structure, resolve_request
from maenas.solver.problem import ChainProblem, Steps, evaluate_path
from maenas.solver.solve import Solved, solve
from maenas.spaces import Choice, SearchSpace, load_space

HERE = Path(__file__).parent
MISSING = (
    "run.py: the folder of the imported operator library is missing; get the file conv_data.out.fp16.damoyolo from the "
    "reference tool's public repository (github.com/alibaba/lightweight-neural-architecture-search), import it with "
    "`maenas table import FILE --format tinynas --name damoyolo --out DIR`, and give DIR/damoyolo"
)
CITED_PER_CPU_SECOND = (20, 24)
"""Candidates per CPU second of the unmodified reference tool: noted on another day, NOT measured here."""

EXACT_REPEATS = 15
EVOLUTION_SEEDS = 10
MILESTONES = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000)
SMALL_RANGES = {2: (64, 128), 4: (128, 256), 5: (256, 512)}
TINY_RANGES = {2: (64, 96), 4: (128, 192), 5: (256, 384)}


@dataclass(frozen=True, slots=True)
class Case:
    """A problem: one of our spaces and the configuration of the reference tool that it declares."""

    space: str
    config: Config

    @property
    def title(self) -> str:
        """Space and budget."""
        return f"{self.space}, {1e3 * self.config.latency_ms:g} us"


CASES = (
    Case("tinynas-small", Config(1, 25, 0.12, SMALL_RANGES)),
    Case("tinynas-tiny", Config(1, 20, 0.08, TINY_RANGES)),
    Case("tinynas-medium", Config(3, 20, 0.4, SMALL_RANGES)),
    Case("tinynas-medium", Config(3, 20, 0.2, SMALL_RANGES)),
)


def main() -> None:
    """Run every case by every method, print the table, write result and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", metavar="FOLDER", help="imported operator library")
    parser.add_argument("--candidates", type=int, default=500_000, metavar="N", help="of a run with the tool's rules")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds of those runs")
    arguments = parser.parse_args()
    if arguments.table is None:
        parser.exit(2, MISSING + "\n")
    core = _pin_to_one_core()
    begin = time.process_time()
    table = load_table(arguments.table)
    loading = time.process_time() - begin
    report: dict[str, Any] = {
        "question": "Score against CPU time and candidates: exact solver, vectorised evolution, the reference's rules",
        "conditions": {
            "date": date.today().isoformat(),
            "cpu": cpu_model(),
            "cores_used": 1,
            "pinned": core is not None,
            "threads": 1,
            "python": python_version(),
            "numpy": np.__version__,
            "clock": "CPU seconds of the process (time.process_time); the machine was shared",
            "table": table.name,
            "table_hash": table.table_hash,
            "table_loading_cpu_seconds": round(loading, 3),
        },
        "cited": {
            "reference_tool_candidates_per_cpu_second": CITED_PER_CPU_SECOND,
            "source": "the tool itself, another day and machine; not measured by this script",
        },
        "cases": [_case(case, table, arguments.seeds, arguments.candidates) for case in CASES],
    }
    _print(report)
    (HERE / "result.json").write_text(_compact(report), encoding="utf-8")
    draw(report, HERE / "gap.png")


def _pin_to_one_core() -> int | None:
    """Keep to one core where the system can; returns it."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def _case(case: Case, table: LatencyTable, seeds: int, num_candidates: int) -> dict[str, Any]:
    space = load_space(case.space)
    request = _request(space, case, table)
    optimum, exact = _exact(request)
    evolution = [_evolution(request, seed) for seed in range(EVOLUTION_SEEDS)]
    runs: dict[str, list[dict[str, Any]]] = {"evolution": evolution, "reference v1": [], "reference v2": []}
    for seed in range(seeds):
        for name, last_mutable in (("reference v1", True), ("reference v2", False)):
            run = _reference(case, request, seed, num_candidates, last_mutable=last_mutable)
            runs[name].append(run)
            print(
                f"{case.title}: {name}, seed {seed}: {run['score']:.3f} in {run['cpu_seconds']:.1f} CPU s", flush=True
            )
    wider = _any_hidden(space)
    reachable = _exact(_request(_frozen_last(wider), case, table))[1]
    widened = _exact(_request(wider, case, table))[1]
    return {
        "title": case.title,
        "space": case.space,
        "latency_budget_ms": case.config.latency_ms,
        "exact": exact,
        "exact_with_any_hidden_width": {name: widened[name] for name in ("score", "latency_ms", "choice")},
        "exact_with_last_block_frozen": {name: reachable[name] for name in ("score", "latency_ms", "choice")},
        "summary": {name: _summary(optimum, entries) for name, entries in runs.items()},
        "runs": runs,
    }


def _request(space: SearchSpace, case: Case, table: LatencyTable) -> Request:
    return resolve_request(space, budgets=[Budget("latency_ms", case.config.latency_ms)], device=table, top_k=1)


def _frozen_last(space: SearchSpace) -> SearchSpace:
    """As v2 leaves it: the last block keeps its width and depth, and its hidden width can only fall."""
    out, hidden, depth = START[-1]
    last = space.stages[-1]
    last = replace(
        last,
        out_channels=replace(last.out_channels, min=out, max=out),
        hidden_channels=replace(last.hidden_channels, max=hidden),
        depth=replace(last.depth, min=depth, max=depth),
    )
    return replace(space, stages=(*space.stages[:-1], last))


def _any_hidden(space: SearchSpace) -> SearchSpace:
    """The space with hidden widths above the output width too, which the tool's rules can come to."""
    return replace(space, stages=tuple(replace(stage, max_hidden_ratio=64.0) for stage in space.stages))


def _exact(request: Request) -> tuple[float, dict[str, Any]]:
    """The certified optimum, and how long building the problem and solving it took."""
    building, solving = [], []
    for _ in range(EXACT_REPEATS):
        begin = time.process_time()
        problem = build_request_chain(request)
        middle = time.process_time()
        answer = solve(problem)
        building.append(middle - begin)
        solving.append(time.process_time() - middle)
        assert isinstance(answer, Solved)
    certificate = answer.certificate
    score = answer.solution.objective
    return score, {
        "score": score,
        "latency_ms": answer.solution.cost[0],
        "choice": asdict(choice_of(problem, answer.solution.path)),
        "cpu_seconds": round(median(building) + median(solving), 4),
        "cpu_seconds_building": round(median(building), 4),
        "cpu_seconds_solving": round(median(solving), 4),
        "repeats": EXACT_REPEATS,
        "labels": certificate.labels,
        "pruned": certificate.pruned,
        "gap": certificate.gap,
    }


def _evolution(request: Request, seed: int) -> dict[str, Any]:
    """The vectorised evolution, from the reference's starting structure; building its tables counts too."""
    begin = time.process_time()
    problem = build_request_chain(request)
    start = _path_of(problem, START)
    trace = [(time.process_time() - begin, 0, evaluate_path(problem, start).objective)]

    def watch(candidates: int, best: float) -> None:
        if best > trace[-1][2]:
            trace.append((time.process_time() - begin, candidates, best))

    found = evolve(problem, start, Settings(seed=seed), progress=watch)
    best = found.solutions[0]
    trace.append((time.process_time() - begin, found.candidates, best.objective))
    choice = choice_of(problem, best.path)
    return _record(seed, trace, best.cost[0], choice, inside=True) | {"evaluations": found.evaluations}


def _path_of(problem: ChainProblem, network: Network) -> Steps:
    """Where a network's widths, hidden widths and depths stand in the problem's decisions."""
    path = []
    for decision, (out, hidden, depth) in zip(problem.decisions, network, strict=True):
        option = np.flatnonzero((decision.hidden == hidden) & (decision.depth == depth))
        path.append((int(np.flatnonzero(decision.out_channels == out)[0]), int(option[0])))
    return tuple(path)


def _reference(case: Case, request: Request, seed: int, num_candidates: int, *, last_mutable: bool) -> dict[str, Any]:
    """The reference's rules; its own integer evaluator must agree with ours on the best network."""
    assert request.goal.table is not None
    run, population = search(
        case.config, request.goal.table, seed=seed, num_candidates=num_candidates, last_mutable=last_mutable
    )
    stem, *stages = run.best
    columns = [tuple(column) for column in zip(*stages, strict=True)]
    choice = Choice(stem[0], columns[0], columns[1], columns[2], (3,) * len(stages))
    structure = request.space.structure(choice, request.variant)
    known = describe_structure(structure, request.goal, graph="reference")
    assert known.prediction is not None
    ours = (known.score, known.prediction.latency_ms)
    theirs = Evaluator(request.goal.table, case.config.first_kernel)(run.best)
    if not np.allclose(ours, theirs, rtol=1e-9, atol=0.0):
        raise SystemExit(f"the two evaluators disagree on {run.best}: {theirs} and {ours}")
    record = _record(seed, run.trace, known.prediction.latency_ms, choice, inside=structure in request.space)
    outside = sum(any(hidden > out for out, hidden, _ in network[1:]) for _, network in population.ranked)
    shares = {"over_latency": run.over_latency, "over_layers": run.over_layers, "repeats": run.repeats}
    record |= {name: round(count / run.candidates, 4) for name, count in shares.items()}
    return record | {"final_population_outside_space": round(outside / len(population.ranked), 4)}


def _record(
    seed: int, trace: Sequence[tuple[float, int, float]], latency_ms: float, choice: Choice, *, inside: bool
) -> dict[str, Any]:
    seconds, candidates, scores = zip(*trace, strict=True)
    return {
        "seed": seed,
        "score": scores[-1],
        "latency_ms": latency_ms,
        "choice": asdict(choice),
        "inside_declared_space": inside,
        "cpu_seconds": round(seconds[-1], 3),
        "candidates": candidates[-1],
        "trace_cpu_seconds": [round(value, 4) for value in seconds],
        "trace_candidates": list(candidates),
        "trace_score": [round(value, 4) for value in scores],
    }


def _summary(optimum: float, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Middle and range over the seeds; a figure that not every seed reached is null."""
    gaps = sorted(optimum - run["score"] for run in runs)

    def first(axis: str, share: float) -> list[float]:
        wanted = optimum * (1.0 - share) - 1e-4
        reached = (zip(run[axis], run["trace_score"], strict=True) for run in runs)
        return [next((at for at, score in pairs if score >= wanted), math.inf) for pairs in reached]

    def middle(values: Sequence[float]) -> float | None:
        return median(values) if all(math.isfinite(value) for value in values) else None

    return {
        "score_median": round(median(run["score"] for run in runs), 4),
        "gap_lowest": round(gaps[0], 4),
        "gap_median": round(median(gaps), 4),
        "gap_highest": round(gaps[-1], 4),
        "cpu_seconds": round(median(run["cpu_seconds"] for run in runs), 2),
        "candidates_per_cpu_second": round(median(run["candidates"] / run["cpu_seconds"] for run in runs)),
        "seeds_at_optimum": sum(gap <= 1e-4 for gap in gaps),
        "cpu_seconds_to_within": {name: middle(first("trace_cpu_seconds", share)) for name, share in _SHARES.items()},
        "candidates_to_within": {name: middle(first("trace_candidates", share)) for name, share in _SHARES.items()},
        "score_after_candidates": {
            str(limit): [round(_best_by(run, limit), 2) for run in runs]
            for limit in MILESTONES
            if limit <= runs[0]["candidates"]
        },
    }


_SHARES = {"1 %": 0.01, "0.1 %": 0.001, "optimum": 0.0}


def _best_by(run: dict[str, Any], limit: int) -> float:
    pairs = zip(run["trace_candidates"], run["trace_score"], strict=True)
    return max(score for count, score in pairs if count <= limit)


def _print(report: dict[str, Any]) -> None:
    table = Table(
        "problem", "method", "score, median", "gap to optimum", "CPU s", "candidates / CPU s", "CPU s to 0.1 %"
    )
    for case in report["cases"]:
        exact = case["exact"]
        table.add_row(case["title"], "exact", f"{exact['score']:.3f}", "0, certified", f"{exact['cpu_seconds']:.3f}")
        for name, entry in case["summary"].items():
            gaps = f"{entry['gap_median']:.2f} ({entry['gap_lowest']:.2f} to {entry['gap_highest']:.2f})"
            rate, close = entry["candidates_per_cpu_second"], entry["cpu_seconds_to_within"]["0.1 %"]
            seconds = f"{entry['cpu_seconds']:.1f}"
            table.add_row("", name, f"{entry['score_median']:.3f}", gaps, seconds, f"{rate:,}", _or_never(close))
    Console(width=130).print(table)


def _or_never(seconds: float | None) -> str:
    return "not all seeds" if seconds is None else f"{seconds:.2f}"


def _compact(report: dict[str, Any]) -> str:
    """JSON with every list of plain values on one line."""
    join: Callable[[re.Match[str]], str] = lambda match: "[" + " ".join(match[1].split()) + "]"  # noqa: E731
    return re.sub(r"\[([^\[\]{}]*)\]", join, json.dumps(report, indent=2, allow_nan=False)) + "\n"


if __name__ == "__main__":
    main()
