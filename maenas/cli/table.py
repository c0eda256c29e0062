"""`maenas table`: list, show, validate and import latency tables, and refit the calibrated ones."""

from __future__ import annotations

import argparse
import sys

HELP = "list, show, validate, import and calibrate latency tables"
EXAMPLE = "maenas table show t4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's sub-commands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="tables at hand, shipped and the user's own")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    show = actions.add_parser("show", help="what a table is and where its figures come from")
    show.add_argument("table", metavar="TABLE", help="name, alias or folder")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    check = actions.add_parser("validate", help="check a table folder")
    check.add_argument("table", metavar="TABLE", help="name, alias or folder")
    bring = actions.add_parser("import", help="bring in a table of another tool")
    bring.add_argument("file", metavar="FILE", help="library text, or its CSV form (.csv, .csv.gz)")
    bring.add_argument("--format", required=True, choices=["tinynas"], help="format of FILE")
    bring.add_argument("--name", required=True, metavar="NAME", help="name of the new table")
    bring.add_argument("--out", metavar="DIR", help="folder that receives NAME/ (default: the user's table folder)")
    bring.add_argument("--batch", type=int, metavar="N", help="batch size to read, where FILE has several")
    bring.add_argument("--device-name", default="unstated", metavar="TEXT", help="device the figures come from")
    bring.add_argument("--precision", default="unstated", metavar="TEXT", help="e.g. fp16")
    bring.add_argument("--force", action="store_true", help="replace an existing table")
    fit = actions.add_parser("calibrate", help="refit a shipped calibrated table and print its errors")
    fit.add_argument("table", metavar="TABLE", help="t4 or intel-8163, or all", nargs="?", default="all")
    fit.add_argument("--json", action="store_true", help="print one JSON object")
    fit.add_argument("--out", metavar="DIR", help="also write the table folder(s) into DIR")
    fit.add_argument("--force", action="store_true", help="replace existing table folders in DIR")


def run(arguments: argparse.Namespace) -> int:
    """Run one sub-command."""
    actions = {
        "list": _list,
        "show": _show,
        "validate": _validate,
        "import": _import,
        "calibrate": _calibrate,
    }
    return actions[arguments.action](arguments)


def _list(arguments: argparse.Namespace) -> int:
    import json

    from maenas.latency.table import list_tables

    entries = list_tables()
    if arguments.json:
        print(json.dumps([{"name": e.name, "aliases": list(e.aliases), "folder": str(e.folder)} for e in entries]))
        return 0
    for entry in entries:
        aliases = f" ({', '.join(entry.aliases)})" if entry.aliases else ""
        print(f"{entry.name}{aliases}: {entry.folder}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    import json

    from maenas.latency.table import load_table

    table = load_table(arguments.table)
    record = {
        "name": table.name,
        "aliases": list(table.aliases),
        "table_hash": table.table_hash,
        "provenance": table.provenance,
        "device": table.device,
        "backend": table.backend,
        "backend_version": table.backend_version,
        "precision": table.precision,
        "batch": table.batch,
        "threads": table.threads,
        "method": table.method,
        "date": table.date,
        "rows": table.num_rows,
        "fixed_ms": table.fixed_ms,
        "uncertainty": dict(table.uncertainty),
        "predictor": dict(table.predictor),
        "calibration": dict(table.calibration),
        "sources": list(table.sources),
        "notes": list(table.notes),
        "license_note": table.license_note,
        "folder": str(table.folder),
    }
    if arguments.json:
        print(json.dumps(record))
        return 0
    for key, value in record.items():
        shown = json.dumps(value) if isinstance(value, dict | list) else value
        print(f"{key + ':':17} {shown}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from maenas.errors import LatencyTableError
    from maenas.latency.table import load_table, validate

    path = Path(arguments.table)
    folder = path if path.is_dir() else load_table(arguments.table).folder
    problems = validate(folder)
    if problems:
        raise LatencyTableError("; ".join(problems))
    print(f"{folder}: valid")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from maenas.latency.import_tinynas import import_tinynas
    from maenas.latency.table import load_table
    from maenas.resources import user_table_folder

    target = Path(arguments.out) if arguments.out else user_table_folder()
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("evaluating", total=1.0)
        folder = import_tinynas(
            arguments.file,
            arguments.name,
            target,
            arguments.batch,
            arguments.force,
            device=arguments.device_name,
            precision=arguments.precision,
            progress=lambda fraction: bars.update(task, completed=fraction),
        )
    table = load_table(folder)
    print(f"{folder}: {table.num_rows} rows, {table.provenance}, hash {table.table_hash}; use it as --device {folder}")
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from maenas.cli.report import console
    from maenas.latency.calibration_unseen import unseen_networks, unseen_table
    from maenas.latency.shipped import CALIBRATED, calibrate_shipped, shipped_name, write_shipped

    names = list(CALIBRATED) if arguments.table == "all" else [shipped_name(arguments.table)]
    records = {}
    for name in names:
        calibration = calibrate_shipped(name)
        unseen = unseen_networks(calibration)
        records[name] = {**calibration.to_dict(), "test_set": [network.to_dict() for network in unseen]}
        if not arguments.json:
            console().print(calibration.table())
            console().print(unseen_table(unseen))
        if arguments.out:
            folder = write_shipped(name, calibration, Path(arguments.out), force=arguments.force)
            if not arguments.json:
                print(f"{folder}: written")
    if arguments.json:
        print(json.dumps(records))
    return 0
