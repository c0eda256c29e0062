"""`maenas front`: every network that no faster one beats, as CSV and PNG."""

from __future__ import annotations

import argparse

from maenas.cli.question import add_goal_arguments, add_space_arguments, request_from

HELP = "compute the whole score-latency front of a space, exactly, as CSV and PNG"
EXAMPLE = "maenas front --device t4 --block res --from 2ms --to 8ms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--from", dest="low", required=True, metavar="TIME", help="smallest latency, e.g. 2ms")
    parser.add_argument("--to", dest="high", required=True, metavar="TIME", help="largest latency, e.g. 8ms")
    add_space_arguments(parser)
    add_goal_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="folder of the result (default: runs/front/<question>)")
    parser.add_argument("--force", action="store_true", help="overwrite another front in --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Compute, write CSV and PNG, print a summary."""
    import json
    from pathlib import Path

    from maenas.budgets import parse_amount
    from maenas.cli.progress import progress_bars
    from maenas.files import write_text_atomically
    from maenas.front import front_csv, plot_front, search_front
    from maenas.results import FRONT_FILE, claim_run_dir, default_run_dir, request_record, table_record

    low = parse_amount("latency_ms", arguments.low)
    high = parse_amount("latency_ms", arguments.high)
    request = request_from(arguments, high)
    table = request.goal.table
    folder = Path(arguments.out) if arguments.out else Path("runs") / "front" / default_run_dir(request).name
    asked = {**request_record(request), "from_ms": low, "to_ms": high}
    claim_run_dir(folder, asked, force=arguments.force, record=FRONT_FILE)
    with progress_bars(fraction=True) as bars:
        task = bars.add("front", total=1.0)
        points = search_front(request, low, high, lambda fraction: bars.show(task, fraction))
    write_text_atomically(folder / "front.csv", front_csv(points))
    plot_front(request, points, folder / "front.png")
    summary = {
        "points": len(points),
        "first": {"latency_ms": points[0].latency_ms, "objective": points[0].objective},
        "last": {"latency_ms": points[-1].latency_ms, "objective": points[-1].objective},
        **table_record(table),
        "csv": str(folder / "front.csv"),
        "png": str(folder / "front.png"),
    }
    # Last, so that a folder that has it is complete.
    write_text_atomically(folder / FRONT_FILE, json.dumps({**summary, "request": asked}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(summary))
        return 0
    assert table is not None
    print(
        f"{len(points)} networks from {points[0].latency_ms:.4g} ms (score {points[0].objective:.3f}) "
        f"to {points[-1].latency_ms:.4g} ms (score {points[-1].objective:.3f}); "
        f"{table.provenance} table {table.name} {table.table_hash}"
    )
    print(f"written: {folder}/front.csv, front.png, front.json")
    return 0
