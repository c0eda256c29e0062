"""Whole networks of a profiling campaign, `networks.csv`: predicted and measured latencies, and how far they differ."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maenas.errors import LatencyTableError, reason_of

ROLES = ("kernels", "calibration", "test", "foreign")
"""What a network is for: its layer times became rows; the line was fitted to it; nothing has seen it; the same, and it
is none of the search spaces'."""


class NetworkRow(NamedTuple):
    """One line of networks.csv; milliseconds of one inference, None where not measured.

    Attributes:
        network: Unique name.
        group: Networks that belong together, such as a space at one image size.
        family: Block family, or where a foreign network comes from.
        role: One of ROLES.
        num_ops: Operators of the network.
        num_extrapolated: Those outside the range of the measurements.
        measured_ms: The whole network, timed.
        measured_low_ms: Fastest pass.
        measured_high_ms: Slowest pass.
        predicted_ms: What the table says of the network.
        sum_ms: Sum of the table's rows, before the calibration line.
        isolated_sum_ms: Sum of the operators timed one by one.
        isolated_conv_sum_ms: The same, convolutions only.
        backend_layers_ms: Sum of the layer times the backend gave for this network.
    """

    network: str
    group: str
    family: str
    role: str
    num_ops: int
    num_extrapolated: int | None = None
    measured_ms: float | None = None
    measured_low_ms: float | None = None
    measured_high_ms: float | None = None
    predicted_ms: float | None = None
    sum_ms: float | None = None
    isolated_sum_ms: float | None = None
    isolated_conv_sum_ms: float | None = None
    backend_layers_ms: float | None = None


TEXTS = ("network", "group", "family", "role")
COUNTS = ("num_ops", "num_extrapolated")
PREDICTIONS = ("predicted_ms", "sum_ms", "isolated_sum_ms", "isolated_conv_sum_ms", "backend_layers_ms")
"""Columns that can be compared with measured_ms."""


def networks_to_csv(rows: Iterable[NetworkRow]) -> bytes:
    """Content of networks.csv in the order of `rows`, milliseconds with nine digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(NetworkRow._fields)
    for row in rows:
        writer.writerow(
            "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value) for value in row
        )
    return buffer.getvalue().encode()


def read_networks(path: Path) -> list[NetworkRow]:
    """The networks of a file.

    Raises:
        LatencyTableError: Names the file, the line, the column, its value and what was expected.
    """
    try:
        return parse_networks(path, path.read_bytes())
    except OSError as error:
        raise LatencyTableError(f"{path}: cannot be read: {reason_of(error)}") from error


def parse_networks(path: Path, data: bytes) -> list[NetworkRow]:
    """The networks in the content of a file; `path` is for messages. Errors as `read_networks`."""
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LatencyTableError(f"{path}: is not CSV in UTF-8: {error}") from error
    if not lines or lines[0] != list(NetworkRow._fields):
        found = ",".join(lines[0])[:200] if lines else ""
        raise LatencyTableError(f"{path}: line 1 is {found!r}; expected {','.join(NetworkRow._fields)}")
    rows, seen = [], set()
    for number, cells in enumerate(lines[1:], start=2):
        where = f"{path}: line {number}"
        if len(cells) != len(NetworkRow._fields):
            raise LatencyTableError(f"{where} has {len(cells)} fields; expected {len(NetworkRow._fields)}")
        fields: dict[str, Any] = {
            name: _value(where, name, cell) for name, cell in zip(NetworkRow._fields, cells, strict=True)
        }
        row = NetworkRow(**fields)
        if row.network in seen:
            raise LatencyTableError(f"{where}: network is {row.network!r}, as on a line above; expected unique names")
        low, middle, high = row.measured_low_ms, row.measured_ms, row.measured_high_ms
        known = [value for value in (low, middle, high) if value is not None]
        if known != sorted(known) or (known and middle is None):
            raise LatencyTableError(
                f"{where}: measured_low_ms, measured_ms, measured_high_ms are {low}, {middle}, {high}; "
                "expected them in rising order, the middle one not empty if another is given"
            )
        seen.add(row.network)
        rows.append(row)
    return rows


def _value(where: str, name: str, cell: str) -> str | int | float | None:
    """A checked cell."""
    if name in TEXTS:
        good, expected = cell != "" and (name != "role" or cell in ROLES), "text"
        if not good:
            expected = "one of " + ", ".join(ROLES) if name == "role" else expected
            raise LatencyTableError(f"{where}: {name} is {cell!r}; expected {expected}")
        return cell
    if cell == "" and name != "num_ops":
        return None
    count = name in COUNTS
    try:
        value: int | float = int(cell) if count else float(cell)
        good = cell.isascii() and "_" not in cell and (value >= 0 if count else 0 < value < math.inf)
    except ValueError:
        good = False
    if not good:
        expected = "a whole number, 0 or more" if count else "a finite number of milliseconds above 0, or nothing"
        raise LatencyTableError(f"{where}: {name} is {cell!r}; expected {expected}")
    return value


@dataclass(frozen=True, slots=True)
class ErrorStats:
    """Relative errors, predicted / measured - 1, over some networks.

    Attributes:
        n: Networks that have both figures; with none of them every other field is NaN.
        mean_abs: Mean of the absolute errors.
        max_abs: Largest absolute error.
        bias: Mean of the errors with their signs.
        spearman: Rank correlation; NaN below three networks.
    """

    n: int
    mean_abs: float
    max_abs: float
    bias: float
    spearman: float


def relative_error(row: NetworkRow, column: str = "predicted_ms") -> float | None:
    """What a network's prediction is off, as a share of the measured time; None where one of the two is not known."""
    predicted: float | None = getattr(row, column)
    if predicted is None or row.measured_ms is None:
        return None
    return predicted / row.measured_ms - 1.0


def errors_of(rows: Sequence[NetworkRow], column: str = "predicted_ms") -> ErrorStats:
    """Errors over all `rows` of one of the columns in PREDICTIONS."""
    from scipy.stats import spearmanr

    pairs = [(row, error) for row in rows if (error := relative_error(row, column)) is not None]
    errors = np.array([error for _, error in pairs])
    if not pairs:
        return ErrorStats(0, math.nan, math.nan, math.nan, math.nan)
    predicted = [float(getattr(row, column)) for row, _ in pairs]
    measured = [float(row.measured_ms or math.nan) for row, _ in pairs]
    ranked = len(pairs) >= 3 and len(set(predicted)) > 1 and len(set(measured)) > 1
    return ErrorStats(
        n=len(pairs),
        mean_abs=float(np.mean(np.abs(errors))),
        max_abs=float(np.max(np.abs(errors))),
        bias=float(np.mean(errors)),
        spearman=float(spearmanr(predicted, measured).statistic) if ranked else math.nan,
    )


def error_stats(
    rows: Iterable[NetworkRow], *, by: str = "group", column: str = "predicted_ms"
) -> dict[str, ErrorStats]:
    """Errors apart by one of the text columns.

    Args:
        rows: Networks, of all roles that shall count together.
        by: `group`, `family` or `role`.
        column: One of PREDICTIONS.

    Returns:
        Sorted by key; keys whose networks lack the figures have n = 0.
    """
    parts: dict[str, list[NetworkRow]] = {}
    for row in rows:
        parts.setdefault(getattr(row, by), []).append(row)
    return {key: errors_of(parts[key], column) for key in sorted(parts)}


def worst_networks(rows: Iterable[NetworkRow], number: int) -> list[NetworkRow]:
    """The networks whose prediction is furthest off, the worst first."""
    known = [(abs(error), row) for row in rows if (error := relative_error(row)) is not None]
    return [row for _, row in sorted(known, key=lambda pair: (-pair[0], pair[1].network))[:number]]
