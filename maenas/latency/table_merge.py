"""Merge measured tables of one machine under one set of conditions into a larger one.

Rows are times of single operators before the calibration line, so they may be taken from either table. The line
(`fixed_ms`, `scale`) belongs to a whole table: it is merged as the mean of the lines, which at every sum is the mean of
their predictions, and only where the lines agree. Nothing is fitted again: modelled rows stay those of their table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from maenas.errors import LatencyTableError
from maenas.latency.table import LatencyTable
from maenas.latency.table_compare import RowKey, describe_row, differing_conditions, rows_by_key
from maenas.latency.table_rows import ROW_STATUSES, TableRow

MAX_FACTOR = 1.5
"""Two measurements of one operator may differ by this factor, or by SIGMAS of their own deviations."""

SIGMAS = 3.0
MAX_SHIFT = 1.1
"""Factor that the median over common measured operators, and the reference kernel, may differ by."""

MIN_COMMON = 10
"""Common measured operators from which on their median counts."""

MAX_SCALE, MAX_FIXED = 1.05, 0.05
"""Factor between scales; share of the larger fixed cost that fixed costs may differ by, where their sigmas say less."""

# A measured value goes before any other; then what was evaluated from measurements of the same machine.
_RANK = {"measured": 0, "modelled": 1, "calibrated": 2, "imported": 3, "extrapolated": 4}
assert set(_RANK) == set(ROW_STATUSES)

FORCED = "merged in spite of disagreement"
"""Flag of a campaign."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged table, ready for `write_table`.

    Attributes:
        header: Fields of table.json.
        rows: One per operator.
        num_common: Operators that more than one table has.
        disagreements: What `force` overrode; empty otherwise.
    """

    header: dict[str, object]
    rows: list[TableRow]
    num_common: int
    disagreements: tuple[str, ...]


def merge_tables(tables: Sequence[LatencyTable], *, max_factor: float = MAX_FACTOR, force: bool = False) -> Merged:
    """Merge two or more tables.

    Args:
        tables: Measured ones of one machine; texts of the header come from the first.
        max_factor: See MAX_FACTOR.
        force: Merge in spite of values that disagree; unlike conditions are refused all the same.

    Raises:
        LatencyTableError: Conditions differ (names the field and both values), or values disagree.
    """
    if len(tables) < 2:
        raise LatencyTableError(f"{len(tables)} table is given; expected two or more to merge")
    if not 1.0 < max_factor < math.inf:
        raise LatencyTableError(f"the largest factor is {max_factor:g}; expected a number above 1")
    _check_conditions(tables)
    rows = {table.table_hash: rows_by_key(table, table.ignores) for table in tables}
    problems = []
    for first, second in combinations(tables, 2):
        problems += _calibration_problems(first, second)
        problems += _row_problems(first, second, rows, max_factor)
    if problems and not force:
        raise LatencyTableError(f"{'; '.join(problems)}; --force merges them all the same")
    alike: dict[RowKey, list[TableRow]] = {}
    for found in rows.values():
        for key, row in found.items():
            alike.setdefault(key, []).append(row)
    return Merged(
        header=_merged_header(tables, forced=bool(problems)),
        rows=[_combined(group) for group in alike.values()],
        num_common=sum(len(group) > 1 for group in alike.values()),
        disagreements=tuple(problems),
    )


def _check_conditions(tables: Sequence[LatencyTable]) -> None:
    for table in tables:
        if table.provenance != "measured":
            raise LatencyTableError(
                f"table {table.name}: provenance is {table.provenance!r}; expected measured to merge"
            )
        if table.fingerprint is None:
            raise LatencyTableError(
                f"table {table.name}: fingerprint is missing; expected that of the machine to merge"
            )
        if table.predictor["kind"] != "rows":
            kind = table.predictor["kind"]
            raise LatencyTableError(f"table {table.name}: predictor.kind is {kind!r}; expected rows to merge")
    for first, second in combinations(tables, 2):
        if first.table_hash == second.table_hash:
            raise LatencyTableError(f"table {first.name} is given twice; expected different tables to merge")
        unlike = differing_conditions(first, second)
        if unlike:
            raise LatencyTableError(f"tables {first.name} and {second.name} cannot be merged: {'; '.join(unlike)}")


def _calibration_problems(first: LatencyTable, second: LatencyTable) -> list[str]:
    """Where the calibration lines or the machine's states disagree."""
    problems, names = [], f"tables {first.name} and {second.name} disagree"
    if _factor(first.scale, second.scale) > MAX_SCALE:
        problems.append(
            f"{names}: scale is {first.scale:g} and {second.scale:g}; expected a factor of {MAX_SCALE:g} at most"
        )
    sigma = math.hypot(first.fixed_sigma_ms, second.fixed_sigma_ms)
    allowed = max(SIGMAS * sigma, MAX_FIXED * max(first.fixed_ms, second.fixed_ms))
    if abs(first.fixed_ms - second.fixed_ms) > allowed:
        problems.append(
            f"{names}: fixed_ms is {first.fixed_ms:g} and {second.fixed_ms:g}; expected {allowed:.3g} apart at most"
        )
    one, other = first.reference_kernel_ms, second.reference_kernel_ms
    if one is not None and other is not None and _factor(one, other) > MAX_SHIFT:
        problems.append(
            f"{names}: reference_kernel_ms is {one:g} and {other:g}; expected a factor of {MAX_SHIFT:g} at most "
            "(the machine ran at another speed)"
        )
    return problems


def _row_problems(
    first: LatencyTable, second: LatencyTable, rows: dict[str, dict[RowKey, TableRow]], max_factor: float
) -> list[str]:
    """Where the measured rows of two tables disagree: all by a common factor, or single ones."""
    left, right = rows[first.table_hash], rows[second.table_hash]
    common = [(left[key], right[key]) for key in left if key in right]
    pairs = [(one, other) for one, other in common if one.status == other.status == "measured"]
    problems, names = [], f"tables {first.name} and {second.name} disagree"
    ratios = [other.ms / one.ms for one, other in pairs if one.ms > 0 and other.ms > 0]
    if len(ratios) >= MIN_COMMON:
        median = float(np.median(ratios))
        if _factor(median, 1.0) > MAX_SHIFT:
            problems.append(
                f"{names}: the median over {len(ratios)} operators measured in both is a factor of {median:.3g}; "
                f"expected {MAX_SHIFT:g} at most"
            )
    apart = [
        (one, other)
        for one, other in pairs
        if _factor(one.ms, other.ms) > max_factor
        and abs(one.ms - other.ms) > SIGMAS * math.hypot(one.sigma_ms, other.sigma_ms)
    ]
    if apart:
        one, other = max(apart, key=lambda pair: _factor(pair[0].ms, pair[1].ms))
        problems.append(
            f"{names} on {len(apart)} of {len(pairs)} operators measured in both, by more than a factor of "
            f"{max_factor:g} and {SIGMAS:g} sigma; the worst is {describe_row(one)}: {one.ms:.4g} and {other.ms:.4g} ms"
        )
    return problems


def _factor(one: float, other: float) -> float:
    """How many times the larger is the smaller; 1 where both are 0."""
    low, high = sorted((one, other))
    if high == 0:
        return 1.0
    return high / low if low > 0 else math.inf


def _combined(rows: Sequence[TableRow]) -> TableRow:
    """One row of several for one operator: the best status wins; alike ones are weighted by 1 / sigma^2.

    The variance is the mean one plus that between the values. It does not fall with their number: what two campaigns
    have in common, the machine and the method, is in the errors of both.
    """
    best = min(rows, key=lambda row: _RANK[row.status]).status
    chosen = [row for row in rows if row.status == best]
    if len(chosen) == 1:
        return chosen[0]
    values, sigmas = np.array([row.ms for row in chosen]), np.array([row.sigma_ms for row in chosen])
    weights = 1.0 / sigmas**2 if (sigmas > 0).all() else np.ones(len(chosen))
    mean = float(np.average(values, weights=weights))
    variance = float(np.average(sigmas**2 + (values - mean) ** 2, weights=weights))
    return chosen[0]._replace(ms=mean, sigma_ms=math.sqrt(variance))


def _merged_header(tables: Sequence[LatencyTable], *, forced: bool) -> dict[str, object]:
    first = tables[0]
    fixed = np.array([table.fixed_ms for table in tables])
    spread = np.array([table.fixed_sigma_ms for table in tables])
    flags = [flag for table in tables for flag in table.campaign.get("flags", ())] + ([FORCED] if forced else [])
    names, methods = ", ".join(table.name for table in tables), _joined(table.method for table in tables)
    widest = max(tables, key=lambda table: float(table.uncertainty["relative"]))
    header: dict[str, Any] = {
        "aliases": [],
        "device": first.device,
        "device_detail": dict(first.device_detail),
        "backend": first.backend,
        "backend_version": first.backend_version,
        "precision": first.precision,
        "batch": first.batch,
        "threads": first.threads,
        "image_size": None,
        "provenance": "measured",
        "method": f"merged from {names}; of each: {methods}",
        "date": max(table.date for table in tables),
        "fixed_ms": float(fixed.mean()),
        "fixed_sigma_ms": math.sqrt(float(np.mean(spread**2) + fixed.var())),
        "scale": float(np.mean([table.scale for table in tables])),
        "uncertainty": {
            "relative": widest.uncertainty["relative"],
            "how": f"largest of the merged tables, that of {widest.name}: {widest.uncertainty['how']}",
        },
        "predictor": {"kind": "rows", "coefficients": {}, "valid_range": {}},
        "calibration": {"of_merged_tables": {_label(table): dict(table.calibration) for table in tables}},
        "sources": _unique([*(f"table {_label(table)}" for table in tables), *(s for t in tables for s in t.sources)]),
        "license_note": _joined(table.license_note for table in tables),
        "notes": _unique(
            [
                "fixed_ms and scale are the means of the merged tables'; errors of whole networks were measured for "
                "the parts only",
                *(note for table in tables for note in table.notes),
            ]
        ),
        "fingerprint": first.fingerprint,
        "spaces": _unique(text for table in tables for text in table.spaces),
        "campaign": {
            "merged": [
                {
                    "table": table.name,
                    "table_hash": table.table_hash,
                    "date": table.date,
                    "campaign": dict(table.campaign),
                }
                for table in tables
            ],
            "flags": _unique(flags),
        },
    }
    if first.ignores:
        header["ignores"] = list(first.ignores)
    if first.host is not None:
        header["host"] = dict(first.host)
    kernels = [table.reference_kernel_ms for table in tables if table.reference_kernel_ms is not None]
    if kernels:
        header["reference_kernel_ms"] = float(np.mean(kernels))
    return header


def _label(table: LatencyTable) -> str:
    return f"{table.name} {table.table_hash}"


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(_unique(texts))
