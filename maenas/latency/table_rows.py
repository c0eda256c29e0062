"""Rows of a latency table, `rows.csv`: one operator a line; reading and checking the file, and finding operators in it.

Rows are grouped by all that an operator is but its channels; in a group the channels are sorted, so that a whole grid
of widths is found at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maenas.errors import LatencyTableError
from maenas.lowering.op import ACTIVATIONS, OP_KINDS, Op

PROVENANCES = ("measured", "calibrated", "imported")
ROW_STATUSES = (*PROVENANCES, "extrapolated", "modelled")
"""Where a row's value comes from. Two are no provenance of a table: `extrapolated`, evaluated outside what was
measured, and `modelled`, evaluated by the model that was fitted to the measurements of the same table."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class TableRow(NamedTuple):
    """One line of rows.csv; milliseconds of the whole batch, before the table's scale."""

    op: str
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    groups: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    activation: str
    residual: int
    ms: float
    sigma_ms: float
    status: str

    @classmethod
    def of(cls, op: Op, *, ms: float, sigma_ms: float, status: str) -> TableRow:
        """Row of an operator whose channels are plain numbers."""
        in_channels, out_channels = int(op.in_channels), int(op.out_channels)
        shape = (op.kernel_size, op.stride, in_channels if op.depthwise else 1, *op.in_size, *op.out_size)
        return cls(op.kind, in_channels, out_channels, *shape, op.activation, int(op.residual), ms, sigma_ms, status)


_WORDS: dict[str, tuple[str, ...]] = {"op": OP_KINDS, "activation": ACTIVATIONS, "status": ROW_STATUSES}
_VALUES = ("ms", "sigma_ms")
_BITS = {"in_channels": 31, "out_channels": 31, "groups": 31, "kernel_size": 12, "stride": 12, "residual": 1}
_SIDE_BITS = 15
_COLUMNS = np.dtype([(n, "S16" if n in _WORDS else np.float64 if n in _VALUES else np.int64) for n in TableRow._fields])
_Key = tuple[str, int, int, bool, int, int, int, int, str | None, bool | None]
"""kind, kernel, stride, depthwise, height and width in, height and width out, activation, residual."""


def rows_to_csv(rows: Iterable[TableRow]) -> bytes:
    """Content of rows.csv: sorted by number, milliseconds with nine digits, line feeds only."""
    lines = [",".join(TableRow._fields)]
    lines += [
        ",".join([*map(str, row[:12]), f"{row.ms:.9g}", f"{row.sigma_ms:.9g}", row.status]) for row in sorted(rows)
    ]
    return ("\n".join(lines) + "\n").encode()


class RowGroup(NamedTuple):
    """Rows that differ in their channels only; arrays of one length."""

    channels: Ints
    """in_channels << 32 | out_channels, ascending; repeats hold one value."""

    ms: Floats
    sigma_ms: Floats
    status: Ints
    """Places in ROW_STATUSES."""

    def find(self, in_channels: Ints, out_channels: Ints) -> tuple[Flags, Ints]:
        """Which of the widths have a row, and the places of those rows in this group."""
        wanted = in_channels << 32 | out_channels
        place = np.minimum(np.searchsorted(self.channels, wanted), len(self.channels) - 1)
        found = self.channels[place] == wanted
        return found, place[found]


@dataclass(frozen=True, eq=False)
class TableRows:
    """All rows of a table, by operator.

    Attributes:
        ignores: Attributes of an operator that the table does not tell apart: `activation`, `residual`.
    """

    ignores: tuple[str, ...] = ()
    _groups: dict[_Key, RowGroup] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Number of rows."""
        return sum(len(group.channels) for group in self._groups.values())

    def group(self, op: Op) -> RowGroup | None:
        """The rows of this operator with whatever channels, if there are any."""
        activation = None if "activation" in self.ignores else op.activation
        residual = None if "residual" in self.ignores else op.residual
        form = op.kind, op.kernel_size, op.stride, op.depthwise
        return self._groups.get((*form, *op.in_size, *op.out_size, activation, residual))

    def map_sizes(self) -> set[tuple[int, int]]:
        """Input (height, width) of all rows."""
        return {(key[4], key[5]) for key in self._groups}

    def count_statuses(self) -> dict[str, int]:
        """Number of rows by status, those that occur."""
        codes = [group.status for group in self._groups.values()]
        counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *codes]), minlength=len(ROW_STATUSES)).tolist()
        return {status: number for status, number in zip(ROW_STATUSES, counts, strict=True) if number}


def parse_rows(path: Path, data: bytes, ignores: tuple[str, ...]) -> TableRows:
    """Rows from the content of rows.csv; `path` is for messages.

    Raises:
        LatencyTableError: Names the file, the line, the column, its value and what was expected.
    """
    columns = _read_columns(path, data)
    group, channels = _pack(columns, ignores)
    order = np.lexsort((channels, group))
    group, channels, columns = group[order], channels[order], {name: columns[name][order] for name in columns}
    ms, sigma, status = columns["ms"], columns["sigma_ms"], columns["status"]
    clash = np.flatnonzero((group[1:] == group[:-1]) & (channels[1:] == channels[:-1]) & (ms[1:] != ms[:-1]))
    if len(clash):
        at = clash[0]
        first, second = sorted((order[at] + 2, order[at + 1] + 2))
        both = f"{ms[at]:g} and {ms[at + 1]:g} ms"
        raise LatencyTableError(f"{path}: lines {first} and {second} give one operator {both}; expected one value")
    ends = [0, *(np.flatnonzero(group[1:] != group[:-1]) + 1).tolist(), len(group)]
    groups = {
        _row_key(columns, start, ignores): RowGroup(
            channels[start:end], ms[start:end], sigma[start:end], status[start:end]
        )
        for start, end in pairwise(ends)
        if start < end
    }
    return TableRows(ignores, groups)


def list_rows(path: Path, data: bytes) -> list[TableRow]:
    """The lines of rows.csv in their order, repeats included; errors as `parse_rows`."""
    columns = _read_columns(path, data)
    values: list[list[Any]] = [
        [_WORDS[name][place] for place in column.tolist()] if name in _WORDS else column.tolist()
        for name, column in columns.items()
    ]
    return [TableRow(*cells) for cells in zip(*values, strict=True)]


def _pack(columns: Mapping[str, NDArray[Any]], ignores: tuple[str, ...]) -> tuple[Ints, Ints]:
    """One integer for all that `_row_key` holds, and one for the channels."""
    form = np.zeros_like(columns["op"])
    for name, bits in (("op", 8), ("kernel_size", 12), ("stride", 12), ("activation", 8), ("residual", 1)):
        form = form << bits | (0 if name in ignores else columns[name])
    form = form << 1 | (columns["groups"] > 1)
    sizes = np.zeros_like(form)
    for name in ("in_height", "in_width", "out_height", "out_width"):
        sizes = sizes << _SIDE_BITS | columns[name]
    group = np.unique(sizes, return_inverse=True)[1].reshape(-1) << 42 | form
    return group, columns["in_channels"] << 32 | columns["out_channels"]


def _row_key(columns: Mapping[str, NDArray[Any]], row: int, ignores: tuple[str, ...]) -> _Key:
    """The same as `TableRows.group` makes for the operator of this row."""
    number = {name: int(column[row]) for name, column in columns.items() if name not in _VALUES}
    return (
        OP_KINDS[number["op"]],
        number["kernel_size"],
        number["stride"],
        number["groups"] > 1,
        number["in_height"],
        number["in_width"],
        number["out_height"],
        number["out_width"],
        None if "activation" in ignores else ACTIVATIONS[number["activation"]],
        None if "residual" in ignores else bool(number["residual"]),
    )


def _read_columns(path: Path, data: bytes) -> dict[str, NDArray[Any]]:
    """Columns by name: words as their place in `_WORDS`, whole numbers as int64, milliseconds as float64."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    head, _, body = text.partition("\n")
    names = head.split(",")
    if names != list(TableRow._fields):
        missing = [name for name in TableRow._fields if name not in names]
        problem = f"lacks the columns {', '.join(missing)}" if missing else f"is {head[:200]!r}"
        raise LatencyTableError(f"{path}: line 1 {problem}; expected {','.join(TableRow._fields)}")
    if not body.strip():
        return {name: np.zeros(0, np.float64 if name in _VALUES else np.int64) for name in names}
    try:
        # The C reader takes everything, or stops without a precise reason: then look line by line.
        table = np.loadtxt(StringIO(body), dtype=_COLUMNS, delimiter=",", comments=None, ndmin=1)
    except ValueError as error:
        raise _explain(path, body) or LatencyTableError(f"{path}: {error}") from None
    columns = {name: table[name] for name in names}
    for name, words in _WORDS.items():
        columns[name] = np.full(len(table), -1)
        for place, word in enumerate(words):
            columns[name][table[name] == word.encode()] = place
    good = len(table) == body.count("\n") + (not body.endswith("\n"))
    for name, column in columns.items():
        good &= bool(np.all((column >= _lowest(name)) & (column <= _highest(name))))
    groups, in_channels = columns["groups"], columns["in_channels"]
    if not good or ((groups != 1) & (groups != in_channels)).any():
        raise _explain(path, body) or LatencyTableError(f"{path}: is malformed")
    return columns


def _lowest(name: str) -> int:
    return 0 if name in _WORDS or name in _VALUES or name == "residual" else 1


def _highest(name: str) -> float:
    """Largest allowed value; of a word, its last place."""
    if name in _VALUES:
        return float(np.finfo(np.float64).max)
    return len(_WORDS[name]) - 1 if name in _WORDS else (1 << _BITS.get(name, _SIDE_BITS)) - 1


def _explain(path: Path, body: str) -> LatencyTableError | None:
    """What is wrong with the first malformed line below the header."""
    for number, line in enumerate(body.removesuffix("\n").split("\n"), start=2):
        cells = line.split(",")
        if len(cells) != len(TableRow._fields):
            expected = f"{len(TableRow._fields)} comma-separated fields"
            return LatencyTableError(f"{path}: line {number} is {line[:120]!r}; expected {expected}")
        for name, cell in zip(TableRow._fields, cells, strict=True):
            expected = _wrong_cell(name, cell)
            if name == "groups" and not expected and cell not in ("1", cells[1]):
                expected = "1, or in_channels for a depthwise convolution"
            if expected:
                return LatencyTableError(f"{path}: line {number}: {name} is {cell!r}; expected {expected}")
    return None


def _wrong_cell(name: str, cell: str) -> str:
    """What was expected instead of `cell`; empty when it is fine."""
    if name in _WORDS:
        return "" if cell in _WORDS[name] else "one of " + ", ".join(_WORDS[name])
    try:
        value: float = float(cell) if name in _VALUES else int(cell)
        good = cell.isascii() and "_" not in cell and _lowest(name) <= value <= _highest(name)
    except ValueError:
        good = False
    if good:
        return ""
    if name in _VALUES:
        return "a finite number of milliseconds, 0 or more"
    return f"a whole number from {_lowest(name)} to {_highest(name)}"
