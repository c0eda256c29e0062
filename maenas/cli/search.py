"""`maenas search`: from budgets to a certified detector."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maenas.cli.question import add_goal_arguments, add_space_arguments, request_from

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from maenas.measured_search import MeasuredSearch
    from maenas.search import Request, SearchResult
    from maenas.structure import Structure

HELP = "find the detector of the highest score within your budgets, with a proof"
EXAMPLE = "maenas search --budget 3.8ms --device t4 --block res"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--budget", metavar="TIME", help="latency per image, e.g. 3.8ms or 120us (needs --device)")
    add_space_arguments(parser)
    add_goal_arguments(parser)
    solver = parser.add_argument_group("solver")
    solver.add_argument("--solver", choices=["exact", "evolution"], help="default: exact where the score adds up")
    solver.add_argument("--top-k", type=int, default=5, metavar="N", help="shortlist of N depth vectors (default: 5)")
    solver.add_argument("--seed", type=int, default=0, help="evolution: same seed, same answer (default: 0)")
    solver.add_argument("--candidates", type=int, default=200_000, metavar="N", help="evolution: children to draw")
    solver.add_argument("--workers", type=int, default=1, metavar="N", help="evolution: processes for your own score")
    loop = parser.add_argument_group("device in the loop")
    loop.add_argument(
        "--measure",
        action="store_true",
        help="time the shortlist on this machine and pick by measured latency (needs --device local or its table)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="run folder (default: runs/search/<question>)")
    output.add_argument(
        "--force", action="store_true", help="overwrite another search in --out; with --measure keep disturbed timings"
    )
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Search, write the run folder, print the answer."""
    import json
    import time
    from pathlib import Path

    from maenas.results import claim_run_dir, default_run_dir, request_record, result_record, write_run

    started = time.perf_counter()
    request = _request(arguments)
    run_dir = Path(arguments.out) if arguments.out else default_run_dir(request)
    claim_run_dir(run_dir, request_record(request), force=arguments.force)
    measured = _search_measured(request, run_dir, force=arguments.force) if arguments.measure else None
    result = _search(request, run_dir) if measured is None else measured.result
    write_run(result, run_dir, measured)
    if arguments.json:
        print(json.dumps(result_record(result, run_dir, measured)))
    else:
        from maenas.cli.report import print_search

        print_search(result, run_dir, seconds=time.perf_counter() - started, measured=measured)
    return 0


def _request(arguments: argparse.Namespace) -> Request:
    from maenas.budgets import parse_amount
    from maenas.errors import BudgetError
    from maenas.evolve import Settings

    for option, value, low in (
        ("--top-k", arguments.top_k, 1),
        ("--candidates", arguments.candidates, 1),
        ("--workers", arguments.workers, 1),
        ("--seed", arguments.seed, 0),
    ):
        if value < low:
            raise BudgetError(f"{option} is {value}; expected at least {low}")
    latency_ms = None if arguments.budget is None else parse_amount("latency_ms", arguments.budget)
    return request_from(
        arguments,
        latency_ms,
        solver=arguments.solver,
        top_k=arguments.top_k,
        settings=Settings(seed=arguments.seed, num_candidates=arguments.candidates),
        workers=arguments.workers,
    )


def _search(request: Request, run_dir: Path) -> SearchResult:
    """Run the search; evolution shows its progress on standard error and can be resumed."""
    from maenas.cli.progress import progress_bars
    from maenas.search import run_request

    if request.solver == "exact":
        return run_request(request)
    with progress_bars() as bars:
        task = bars.add("evolution", total=request.settings.num_candidates)

        def show(done: int, best: float) -> None:
            bars.show(task, done, description=f"evolution, best {best:.3f}")

        return run_request(request, checkpoint=run_dir / "evolution.json", progress=show)


def _search_measured(request: Request, run_dir: Path, *, force: bool) -> MeasuredSearch:
    """Search and measure in turns, with progress on standard error."""
    from maenas.cli.detector import bundled, exporter
    from maenas.cli.progress import progress_bars
    from maenas.errors import BudgetError
    from maenas.measured_search import search_measured
    from maenas.profiling.device import LocalDevice
    from maenas.profiling.measurement import Settings

    if request.goal.table is None or request.goal.scope != "detector":
        raise BudgetError("--measure times whole detectors on a device; expected --device and --scope detector")
    with progress_bars() as bars:
        task = bars.add("exporting")
        device = LocalDevice(
            table=request.goal.table,
            folder=run_dir / "measured",
            export=exporter(seed=0),
            bridge=bundled,
            settings=Settings(force=force, min_seconds=1.0),
            progress=lambda done, total, left, key: bars.show(task, done, total, description="timing"),
        )

        def measure(structures: Sequence[Structure]) -> list[float]:
            label = "-".join(structure.digest[:4] for structure in structures)
            return [stats.ms_p25 for stats in device.time(structures, label=label)]

        return search_measured(request, measure)
