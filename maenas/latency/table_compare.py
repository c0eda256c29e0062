"""Comparing the rows of two tables, and looking over the rows of one.

Latencies compare only where the conditions of the measurement do: device, backend and its version, precision, batch and
threads. Which of them differ is said before any ratio is.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maenas.errors import LatencyTableError
from maenas.latency.table import LatencyTable
from maenas.latency.table_header import HEADER_FILE, read_header
from maenas.latency.table_rows import TableRow

RISE = 2.0
"""Channels that grow by this factor should not make an operator faster ..."""

FALL = 0.95
"""... than this share of its time."""

_OF_ITSELF = ("schema_version", "name", "aliases", "rows_sha256", "raw_sha256", "files_sha256")
"""Header fields that differ between any two tables."""

RowKey = tuple[object, ...]


def row_key(row: TableRow, ignores: Sequence[str] = ()) -> RowKey:
    """What identifies the operator of a row, in the order of the columns."""
    activation = "" if "activation" in ignores else row.activation
    residual = "" if "residual" in ignores else row.residual
    return (*row[:10], activation, residual)


def rows_by_key(table: LatencyTable, ignores: Sequence[str] = ()) -> dict[RowKey, TableRow]:
    """The rows of a table by operator; of repeated ones the first."""
    found: dict[RowKey, TableRow] = {}
    for row in table.list_rows():
        found.setdefault(row_key(row, ignores), row)
    return found


def describe_row(row: TableRow) -> str:
    """An operator in a few words, for messages."""
    extra = (f" {row.activation}" if row.activation != "none" else "") + (" +add" if row.residual else "")
    kernel = f" {row.kernel_size}x{row.kernel_size}/{row.stride}" if row.op in ("conv", "pool") else ""
    return f"{kind_of_row(row)}{kernel}{extra} {row.in_channels}->{row.out_channels} at {row.in_height}x{row.in_width}"


def kind_of_row(row: TableRow) -> str:
    """The operator's kind, `depthwise` apart from `conv`."""
    return "depthwise" if row.op == "conv" and row.groups > 1 else row.op


def differing_conditions(first: LatencyTable, second: LatencyTable) -> list[str]:
    """Conditions that two tables do not share, each with both values; of tables that do not compare."""
    names = ["device", "backend", "backend_version", "precision", "batch", "threads", "ignores"]
    if first.fingerprint or second.fingerprint:
        # The machine around an accelerator; of a CPU, the name alone says too little.
        names.insert(0, "fingerprint")
    values = [(name, getattr(first, name), getattr(second, name)) for name in names]
    return [f"{name} is {_shown(one)} and {_shown(other)}" for name, one, other in values if one != other]


def _shown(value: object) -> str:
    return json.dumps(value)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Times of the second table over those of the first, over `n` operators whose times are above 0."""

    n: int
    median: float
    p10: float
    p90: float

    @staticmethod
    def of(values: Sequence[float]) -> Ratios:
        """Quantiles of at least one ratio."""
        p10, median, p90 = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
        return Ratios(len(values), median, p10, p90)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An operator that two tables time differently; milliseconds with the tables' scales."""

    operator: str
    first_ms: float
    second_ms: float
    ratio: float
    first_status: str
    second_status: str


@dataclass(frozen=True, slots=True)
class TableDiff:
    """What two tables differ in.

    Attributes:
        first: Name of the first table.
        second: Name of the second.
        conditions: Conditions they do not share; empty for tables that compare.
        header: Header fields with unlike values, dotted where nested: (field, first, second), None where absent.
        num_common: Operators in both.
        num_only_first: Operators in the first only.
        num_only_second: Operators in the second only.
        only_first: Some of those, in words.
        only_second: Some of those, in words.
        num_zero: Common operators without a ratio, because a time is 0.
        overall: Ratios over all common operators; None without any.
        by_kind: Ratios by kind of operator.
        by_status: Ratios by the two rows' statuses, such as `measured/modelled`.
        worst: Common operators with the largest and smallest ratios, the worst first.
    """

    first: str
    second: str
    conditions: tuple[str, ...]
    header: tuple[tuple[str, Any, Any], ...]
    num_common: int
    num_only_first: int
    num_only_second: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    num_zero: int
    overall: Ratios | None
    by_kind: dict[str, Ratios]
    by_status: dict[str, Ratios]
    worst: tuple[Disagreement, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def diff_tables(
    first: LatencyTable, second: LatencyTable, *, force: bool = False, num_worst: int = 10, num_shown: int = 5
) -> TableDiff:
    """Compare two tables over their common operators.

    Args:
        first: Table whose times divide.
        second: Table whose times are divided by them.
        force: Compare in spite of unlike conditions.
        num_worst: Length of `worst`.
        num_shown: Length of `only_first` and `only_second`.

    Raises:
        LatencyTableError: The conditions differ and `force` is off; names every field with both values.
    """
    conditions = differing_conditions(first, second)
    if conditions and not force:
        raise LatencyTableError(
            f"tables {first.name} and {second.name} do not compare: {'; '.join(conditions)}; "
            "--force compares them all the same"
        )
    ignores = sorted({*first.ignores, *second.ignores})
    left, right = rows_by_key(first, ignores), rows_by_key(second, ignores)
    pairs = [(left[key], right[key]) for key in left if key in right]
    found: list[tuple[float, TableRow, TableRow]] = []
    by_kind: dict[str, list[float]] = {}
    by_status: dict[str, list[float]] = {}
    for one, other in pairs:
        if one.ms > 0 and other.ms > 0:
            ratio = (other.ms * second.scale) / (one.ms * first.scale)
            found.append((ratio, one, other))
            by_kind.setdefault(kind_of_row(one), []).append(ratio)
            by_status.setdefault(f"{one.status}/{other.status}", []).append(ratio)
    worst = sorted(found, key=lambda item: (-abs(math.log(item[0])), item[1][:12]))[:num_worst]
    only_first = [row for key, row in left.items() if key not in right]
    only_second = [row for key, row in right.items() if key not in left]
    return TableDiff(
        first=first.name,
        second=second.name,
        conditions=tuple(conditions),
        header=_header_differences(first, second),
        num_common=len(pairs),
        num_only_first=len(only_first),
        num_only_second=len(only_second),
        only_first=tuple(describe_row(row) for row in only_first[:num_shown]),
        only_second=tuple(describe_row(row) for row in only_second[:num_shown]),
        num_zero=len(pairs) - len(found),
        overall=Ratios.of([ratio for ratio, _, _ in found]) if found else None,
        by_kind={kind: Ratios.of(by_kind[kind]) for kind in sorted(by_kind)},
        by_status={statuses: Ratios.of(by_status[statuses]) for statuses in sorted(by_status)},
        worst=tuple(
            Disagreement(
                describe_row(one), one.ms * first.scale, other.ms * second.scale, ratio, one.status, other.status
            )
            for ratio, one, other in worst
        ),
    )


def _header_differences(first: LatencyTable, second: LatencyTable) -> tuple[tuple[str, Any, Any], ...]:
    left, right = (_flat(read_header(table.folder / HEADER_FILE)) for table in (first, second))
    names = sorted(name for name in {**left, **right} if name.partition(".")[0] not in _OF_ITSELF)
    return tuple((name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name))


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested objects as dotted names."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{before}{name}.") if isinstance(inner, dict) else {f"{before}{name}": inner}
    return found


@dataclass(frozen=True, slots=True)
class RowCheck:
    """What can be seen in a table's rows; none of it makes a table unusable.

    Attributes:
        statuses: Rows by status.
        num_repeated: Lines whose operator is on a line above.
        num_zero: Rows of 0 ms: operators that the backend merges into others.
        num_compared: Pairs of rows that differ in one width only (in both where they are equal), by RISE or more.
        num_falls: Those where the wider one takes less than FALL of the time.
        worst_fall: The largest fall in words, or nothing.
    """

    statuses: dict[str, int]
    num_repeated: int
    num_zero: int
    num_compared: int
    num_falls: int
    worst_fall: str


def check_rows(rows: Sequence[TableRow]) -> RowCheck:
    """Look over the rows of one table."""
    compared, falls, worst, text = 0, 0, 1.0, ""
    for line in _lines_of_widths(rows):
        line.sort(key=lambda pair: pair[0])
        widths = [width for width, _ in line]
        for width, narrow in line:
            place = bisect_left(widths, RISE * width)
            if place == len(line) or narrow.ms <= 0:
                continue
            compared += 1
            share = line[place][1].ms / narrow.ms
            falls += share < FALL
            if share < min(worst, FALL):
                wide, worst = line[place][1], share
                widths_then = f"{wide.in_channels}->{wide.out_channels}"
                text = f"{describe_row(narrow)} {narrow.ms:.4g} ms, {widths_then} {wide.ms:.4g} ms"
    return RowCheck(
        statuses=dict(Counter(row.status for row in rows)),
        num_repeated=len(rows) - len({row_key(row) for row in rows}),
        num_zero=sum(row.ms == 0 for row in rows),
        num_compared=compared,
        num_falls=falls,
        worst_fall=text,
    )


def _lines_of_widths(rows: Iterable[TableRow]) -> list[list[tuple[int, TableRow]]]:
    """Rows that differ in one width only, with that width: of dense convolutions in either, of others in both."""
    lines: dict[RowKey, dict[int, TableRow]] = {}
    for row in rows:
        form = (kind_of_row(row), row.kernel_size, row.stride, *row[6:12])
        if row.op == "conv" and row.groups == 1:
            lines.setdefault((*form, "in", row.in_channels), {}).setdefault(row.out_channels, row)
            lines.setdefault((*form, "out", row.out_channels), {}).setdefault(row.in_channels, row)
        else:
            lines.setdefault(form, {}).setdefault(row.in_channels, row)
    return [list(line.items()) for line in lines.values()]
