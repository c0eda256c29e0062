"""What `maenas table` prints about rows, about whole networks and about two tables side by side."""

from __future__ import annotations

import json

from rich.table import Table
from rich.text import Text

from maenas.cli.report import console
from maenas.latency.table import LatencyTable
from maenas.latency.table_compare import TableDiff, check_rows
from maenas.latency.table_header import HEADER_FILE, RAW_FILE, ROWS_FILE
from maenas.latency.table_networks import NetworkRow, error_stats, errors_of, relative_error, worst_networks

NUM_WORST = 8
"""Networks that are listed one by one."""


def print_rows(table: LatencyTable) -> None:
    """Statuses, repeats, falls, the campaign's flags and files that the header does not list."""
    found = check_rows(table.list_rows())
    statuses = ", ".join(f"{number} {status}" for status, number in table.count_statuses().items())
    print(f"rows: {statuses}; {found.num_repeated} repeated, {found.num_zero} of 0 ms")
    line = f"times fall although channels double: {found.num_falls} of {found.num_compared} pairs of rows"
    print(line + (f"; the worst: {found.worst_fall}" if found.num_falls else ""))
    if table.campaign.get("flags"):
        print(f"flags of the campaign: {', '.join(table.campaign['flags'])}")
    listed = {HEADER_FILE, ROWS_FILE, *table.files_sha256} | ({RAW_FILE} if table.raw_sha256 else set())
    unlisted = sorted(path.name for path in table.folder.iterdir() if path.name not in listed)
    if unlisted:
        print(f"files that the header does not list, not checked: {', '.join(unlisted)}")


def print_networks(networks: list[NetworkRow]) -> None:
    """Errors by role and family, then the networks that are furthest off."""
    out = console()
    errors = Table(title="whole networks: predicted / measured - 1", title_justify="left")
    for heading in ("networks", "n", "mean abs %", "max abs %", "bias %", "Spearman"):
        errors.add_column(heading, justify="left" if heading == "networks" else "right")
    parts = {"test (seen by no fit)": "test", "foreign": "foreign", "calibration": "calibration", "kernels": "kernels"}
    for title, role in parts.items():
        own = [row for row in networks if row.role == role]
        families = error_stats(own, by="family") if role in ("test", "foreign") else {}
        lines = {title: errors_of(own)} if own else {}
        for name, stats in {**lines, **{f"  {family}": stats for family, stats in families.items()}}.items():
            shares = [f"{100 * value:.1f}" for value in (stats.mean_abs, stats.max_abs, stats.bias)]
            rank = "-" if stats.spearman != stats.spearman else f"{stats.spearman:.3f}"
            errors.add_row(Text(name), str(stats.n), *(shares if stats.n else ["-"] * 3), rank)
    out.print(errors)
    worst = Table(title="furthest off, of test and foreign networks", title_justify="left")
    for heading in ("network", "family", "measured ms", "predicted ms", "error %", "extrapolated operators"):
        worst.add_column(heading, justify="left" if heading in ("network", "family") else "right")
    for row in worst_networks([row for row in networks if row.role in ("test", "foreign")], NUM_WORST):
        error = relative_error(row)
        assert error is not None
        beyond = "" if row.num_extrapolated is None else str(row.num_extrapolated)
        worst.add_row(
            Text(row.network), Text(row.family), f"{row.measured_ms:.3f}", f"{row.predicted_ms:.3f}",
            f"{100 * error:+.1f}", beyond,
        )  # fmt: skip
    if worst.row_count:
        out.print(worst)


def print_diff(found: TableDiff) -> None:
    """Header fields, coverage, ratios, and the operators that are furthest apart."""
    out = console()
    for condition in found.conditions:
        out.print(f"UNLIKE CONDITIONS: {condition}", markup=False)
    if found.header:
        fields = Table(title="header", title_justify="left")
        for heading in ("field", found.first, found.second):
            fields.add_column(heading, max_width=50)
        for name, one, other in found.header:
            cells = ["-" if value is None else json.dumps(value, ensure_ascii=False) for value in (one, other)]
            fields.add_row(Text(name), *(Text(cell if len(cell) <= 100 else f"{cell[:97]}...") for cell in cells))
        out.print(fields)
    print(
        f"operators: {found.num_common} in both, {found.num_only_first} only in {found.first}, "
        f"{found.num_only_second} only in {found.second}; {found.num_zero} in both without a ratio (0 ms)"
    )
    for name, shown in ((found.first, found.only_first), (found.second, found.only_second)):
        if shown:
            print(f"  only in {name}, for example: {'; '.join(shown)}")
    if found.overall is None:
        return
    ratios = Table(title=f"{found.second} / {found.first}", title_justify="left")
    for heading in ("rows", "n", "median", "p10", "p90"):
        ratios.add_column(heading, justify="left" if heading == "rows" else "right")
    for name, part in {"all": found.overall, **found.by_kind, **found.by_status}.items():
        ratios.add_row(name, str(part.n), f"{part.median:.3f}", f"{part.p10:.3f}", f"{part.p90:.3f}")
    out.print(ratios)
    worst = Table(title="furthest apart", title_justify="left")
    for heading in ("operator", f"{found.first} ms", f"{found.second} ms", "ratio", "rows"):
        worst.add_column(heading, justify="left" if heading in ("operator", "rows") else "right")
    for each in found.worst:
        statuses = f"{each.first_status}/{each.second_status}"
        worst.add_row(each.operator, f"{each.first_ms:.4g}", f"{each.second_ms:.4g}", f"{each.ratio:.3f}", statuses)
    out.print(worst)
