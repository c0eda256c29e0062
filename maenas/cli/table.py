"""`maenas table`: list, show, validate, compare, merge and import latency tables, and refit the calibrated ones."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maenas.latency.table import LatencyTable
    from maenas.latency.table_networks import NetworkRow

HELP = "list, show, validate, compare, merge, import and calibrate latency tables"
EXAMPLE = "maenas table show t4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's sub-commands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="tables at hand, shipped and the user's own")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    show = actions.add_parser("show", help="what a table is and where its figures come from")
    show.add_argument("table", metavar="TABLE", help="name, alias or folder")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    check = actions.add_parser("validate", help="check a table folder; errors of a measured table on whole networks")
    check.add_argument("table", metavar="TABLE", help="name, alias or folder")
    check.add_argument("--plot", metavar="FILE.png", help="draw predicted against measured networks")
    diff = actions.add_parser("diff", help="what two tables differ in, operator by operator")
    diff.add_argument("first", metavar="A", help="name, alias or folder")
    diff.add_argument("second", metavar="B", help="name, alias or folder; ratios are B / A")
    diff.add_argument("--json", action="store_true", help="print one JSON object")
    diff.add_argument("--force", action="store_true", help="compare in spite of unlike conditions")
    merge = actions.add_parser("merge", help="one table of several measured ones of a machine")
    merge.add_argument("tables", nargs="+", metavar="TABLE", help="names, aliases or folders, two or more")
    merge.add_argument("--name", required=True, metavar="NAME", help="name of the new table")
    merge.add_argument("--out", metavar="DIR", help="folder that receives NAME/ (default: the user's table folder)")
    merge.add_argument(
        "--max-factor",
        type=float,
        metavar="X",
        help="how much two measurements of an operator may differ (default: 1.5)",
    )
    merge.add_argument(
        "--force", action="store_true", help="merge values that disagree, flagged, and replace an existing table"
    )
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
        "diff": _diff,
        "merge": _merge,
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

    from maenas.cli.question import warn_if_stale
    from maenas.latency.table import load_table

    table = load_table(arguments.table)
    record: dict[str, object] = {
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
    if table.provenance == "measured":
        record |= _measured_record(table)
    warn_if_stale(table)
    if arguments.json:
        print(json.dumps(record))
        return 0
    for key, value in record.items():
        shown = json.dumps(value) if isinstance(value, dict | list) else value
        print(f"{key + ':':17} {shown}")
    return 0


def _measured_record(table: LatencyTable) -> dict[str, object]:
    """What only measured tables have."""
    return {
        "rows_by_status": table.count_statuses(),
        "fingerprint": table.fingerprint,
        "host": None if table.host is None else dict(table.host),
        "spaces": list(table.spaces),
        "campaign": dict(table.campaign),
        "reference_kernel_ms": table.reference_kernel_ms,
        "files": sorted(table.files_sha256),
    }


def _validate(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from maenas.cli.question import warn_if_stale
    from maenas.cli.table_report import print_networks, print_rows
    from maenas.errors import LatencyTableError
    from maenas.latency.table import load_folder, load_table, validate

    path = Path(arguments.table)
    folder = path if path.is_dir() else load_table(arguments.table).folder
    problems = validate(folder)
    if problems:
        raise LatencyTableError("; ".join(problems))
    table = load_folder(folder, folder.resolve().name)
    networks = _networks(table)
    if arguments.plot:
        from maenas.latency.table_plot import plot_networks

        if not networks:
            raise LatencyTableError(f"{folder}: has no networks.csv of whole networks; there is nothing to draw")
        plot_networks(networks, Path(arguments.plot), title=f"table {table.name} (hash {table.table_hash})")
    if table.num_rows:
        print_rows(table)
    if networks:
        print_networks(networks)
    if arguments.plot:
        print(f"{arguments.plot}: written")
    warn_if_stale(table)
    print(f"{folder}: valid")
    return 0


def _networks(table: LatencyTable) -> list[NetworkRow]:
    """Whole networks that the table's errors were measured on; none where the folder has no such file."""
    from maenas.latency.table_header import NETWORKS_FILE
    from maenas.latency.table_networks import read_networks

    return read_networks(table.folder / NETWORKS_FILE) if NETWORKS_FILE in table.files_sha256 else []


def _diff(arguments: argparse.Namespace) -> int:
    import json

    from maenas.cli.table_report import print_diff
    from maenas.latency.table import load_table
    from maenas.latency.table_compare import diff_tables

    first, second = load_table(arguments.first), load_table(arguments.second)
    found = diff_tables(first, second, force=arguments.force)
    if arguments.json:
        print(json.dumps(found.to_dict()))
    else:
        print_diff(found)
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from maenas.latency.table import load_table
    from maenas.latency.table_merge import MAX_FACTOR, merge_tables
    from maenas.latency.table_write import check_target, write_table
    from maenas.resources import user_table_folder

    folder = (Path(arguments.out) if arguments.out else user_table_folder()) / arguments.name
    check_target(folder, force=arguments.force)
    tables = [load_table(name) for name in arguments.tables]
    factor = MAX_FACTOR if arguments.max_factor is None else arguments.max_factor
    merged = merge_tables(tables, max_factor=factor, force=arguments.force)
    for problem in merged.disagreements:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {problem}", markup=False)
    table = load_table(write_table(folder, merged.header, merged.rows, force=arguments.force))
    statuses = ", ".join(f"{number} {status}" for status, number in table.count_statuses().items())
    print(
        f"{folder}: {table.num_rows} rows ({statuses}), {merged.num_common} of them in several tables, "
        f"hash {table.table_hash}; use it as --device {folder}"
    )
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from maenas.cli.progress import progress_bars
    from maenas.latency.import_tinynas import import_tinynas
    from maenas.latency.table import load_table
    from maenas.resources import user_table_folder

    target = Path(arguments.out) if arguments.out else user_table_folder()
    with progress_bars(fraction=True) as bars:
        task = bars.add("evaluating", total=1.0)
        folder = import_tinynas(
            arguments.file,
            arguments.name,
            target,
            arguments.batch,
            arguments.force,
            device=arguments.device_name,
            precision=arguments.precision,
            progress=lambda fraction: bars.show(task, fraction),
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
