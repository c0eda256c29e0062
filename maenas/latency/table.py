"""Latency tables: a folder with `table.json` (what was measured and how) and `rows.csv` (one operator a line).

`load_table` finds and checks a table, `LatencyTable.op_latency` answers for one `Op` or a whole grid of widths. A row
that matches the operator comes first, then the table's predictor; the status says which, and what lies outside the
predictor's range. A row may itself be a model's value, and says so. Nothing is filled in silently: an operator that
neither knows is NaN with status MISSING.

A table may not tell some attributes apart (an imported library knows one activation only). Its header then lists them
in `ignores`; they are left out of the key, so an operator matches whatever its value there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maenas.errors import LatencyTableError, reason_of
from maenas.files import expanded
from maenas.latency.table_header import HEADER_FILE, NETWORKS_FILE, RANGES, RAW_FILE, ROWS_FILE, nearest, read_header
from maenas.latency.table_local import LOCAL, local_fingerprint
from maenas.latency.table_networks import parse_networks
from maenas.latency.table_rows import ROW_STATUSES, TableRow, TableRows, list_rows, parse_rows
from maenas.latency.uncertainty import relative_sigma
from maenas.lowering.op import Op, Real
from maenas.resources import data_folder, user_table_folder

if TYPE_CHECKING:
    from maenas.latency.tinynas import TinyNasPredictor

EXACT, MODELLED, EXTRAPOLATED, MISSING = 0, 1, 2, 3
"""Status of a look-up: a row; a model (the predictor, or a row that a model made); one outside its range; nothing."""

Floats = NDArray[np.float64]
Statuses = NDArray[np.int8]

_OF_ROW = np.array([{"extrapolated": EXTRAPOLATED, "modelled": MODELLED}.get(s, EXACT) for s in ROW_STATUSES], np.int8)
"""Status of a look-up that a row answers, by the row's status."""


@dataclass(frozen=True, slots=True, eq=False)
class OpLatency:
    """Latency of one operator, or of a grid of widths (arrays of the channels' broadcast shape).

    Attributes:
        ms: Milliseconds times the table's scale, not times the operator's count; NaN where missing.
        sigma_ms: One standard deviation of `ms`; NaN where missing.
        status: EXACT, MODELLED, EXTRAPOLATED or MISSING.
    """

    ms: Real
    sigma_ms: Real
    status: int | Statuses


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """One device x backend x precision x batch; fields as in table.json, which `docs/latency-tables.md` describes.

    Attributes:
        folder: Where the table was read from.
        table_hash: Twelve hex digits over header and rows; equal hashes mean equal predictions.
        num_rows: Lines of rows.csv, without its header.
    """

    folder: Path
    table_hash: str
    num_rows: int
    rows_sha256: str
    name: str
    aliases: tuple[str, ...]
    device: str
    device_detail: Mapping[str, object]
    backend: str
    backend_version: str | None
    precision: str
    batch: int
    threads: int | None
    provenance: str
    method: str
    date: str
    fixed_ms: float
    fixed_sigma_ms: float
    scale: float
    uncertainty: Mapping[str, Any]
    predictor: Mapping[str, Any]
    calibration: Mapping[str, object]
    sources: tuple[str, ...]
    license_note: str
    raw_sha256: str | None = None
    ignores: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files_sha256: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, Any] | None = None
    fingerprint: str | None = None
    spaces: tuple[str, ...] = ()
    campaign: Mapping[str, Any] = field(default_factory=dict)
    reference_kernel_ms: float | None = None
    _rows: TableRows = field(default_factory=TableRows, repr=False)

    def op_latency(self, op: Op) -> OpLatency:
        """Latency of `op`; see the module's text for the order of sources."""
        in_channels, out_channels = np.broadcast_arrays(
            np.asarray(op.in_channels, dtype=np.int64), np.asarray(op.out_channels, dtype=np.int64)
        )
        shape, in_channels, out_channels = in_channels.shape, in_channels.ravel(), out_channels.ravel()
        ms, sigma = np.full(in_channels.size, np.nan), np.full(in_channels.size, np.nan)
        status = np.full(in_channels.size, MISSING, dtype=np.int8)
        rows = self._rows.group(op)
        if rows is not None:
            found, place = rows.find(in_channels, out_channels)
            ms[found], sigma[found] = rows.ms[place], rows.sigma_ms[place]
            status[found] = _OF_ROW[rows.status[place]]
        left = (status == MISSING) & (in_channels > 0) & (out_channels > 0)
        if left.any() and self.predictor["kind"] != "rows":
            rest = replace(op, in_channels=in_channels[left], out_channels=out_channels[left], count=1)
            ms[left], status[left] = self._predict(rest)
            sigma[left] = ms[left] * relative_sigma(rest, self.uncertainty)
        ms, sigma = ms * self.scale, sigma * self.scale
        if not shape:
            return OpLatency(float(ms[0]), float(sigma[0]), int(status[0]))
        return OpLatency(ms.reshape(shape), sigma.reshape(shape), status.reshape(shape))

    def map_sizes(self) -> set[tuple[int, int]]:
        """Input (height, width) of the operators that have rows."""
        return self._rows.map_sizes()

    def holds_form(self, op: Op) -> bool:
        """Whether there are rows of this operator with other channels, perhaps."""
        return self._rows.group(op) is not None

    def count_statuses(self) -> dict[str, int]:
        """Number of rows by the rows' status."""
        return self._rows.count_statuses()

    def list_rows(self) -> list[TableRow]:
        """The lines of rows.csv, read again: look-ups need less than a row holds."""
        path = self.folder / ROWS_FILE
        return list_rows(path, _read_checked(path, self.rows_sha256, "rows_sha256"))

    def _predict(self, op: Op) -> tuple[Floats, Statuses]:
        """Unscaled milliseconds and status from the predictor; the channels of `op` are flat arrays."""
        size = np.size(op.in_channels)
        outside = np.zeros(size, dtype=np.bool_)
        if self.predictor["kind"] == "tinynas":
            ms, outside = self._interpolate(op)
        else:
            from maenas.latency.calibrated import PREDICTORS

            formula = PREDICTORS[self.predictor["kind"]]
            ms = np.broadcast_to(np.asarray(formula(op, self.predictor["coefficients"]), dtype=np.float64), (size,))
        for name, (low, high) in self.predictor["valid_range"].items():
            value = np.asarray(RANGES[name](op))
            outside = outside | (value < low) | (value > high)
        status = np.where(np.isnan(ms), MISSING, np.where(outside, EXTRAPOLATED, MODELLED))
        return ms, status.astype(np.int8)

    def _interpolate(self, op: Op) -> tuple[Floats, NDArray[np.bool_]]:
        from maenas.latency.tinynas import ConvForm

        size = np.size(op.in_channels)
        if op.kind != "conv" or op.in_size[0] != op.in_size[1]:
            return np.full(size, np.nan), np.zeros(size, dtype=np.bool_)
        form = ConvForm(op.kernel_size, op.stride, op.residual, op.depthwise)
        return self._library.estimate(
            form, batch=self.batch, in_channels=op.in_channels, out_channels=op.out_channels, side=op.in_size[0]
        )

    @cached_property
    def _library(self) -> TinyNasPredictor:
        from maenas.latency.tinynas import TinyNasPredictor
        from maenas.latency.tinynas_library import read_library

        return TinyNasPredictor(read_library(self.folder / RAW_FILE, keep_order=True))


def _read_checked(path: Path, expected: str, name: str) -> bytes:
    if path.resolve().parent != path.parent.resolve():
        raise LatencyTableError(f"{path}: leads to {path.resolve()}; expected a file inside the table folder")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LatencyTableError(f"{path}: cannot be read: {reason_of(error)}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise LatencyTableError(
            f"{path}: its sha256 is {found}; expected {expected} ({HEADER_FILE}, {name}): the file was changed"
        )
    return data


def load_folder(folder: Path, name: str) -> LatencyTable:
    """Load the table in `folder`, which must call itself `name`.

    Raises:
        LatencyTableError: A file is absent, malformed or was changed.
    """
    header_path, rows_path = folder / HEADER_FILE, folder / ROWS_FILE
    header = read_header(header_path)
    if header["name"] != name:
        raise LatencyTableError(f"{header_path}: name is {header['name']!r}; expected the folder's name {name!r}")
    data = _read_checked(rows_path, header["rows_sha256"], "rows_sha256")
    if "raw_sha256" in header:
        _read_checked(folder / RAW_FILE, header["raw_sha256"], "raw_sha256")
    try:
        canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise LatencyTableError(f"{header_path}: holds {half!r}, which is half a character; expected text") from None
    rows = parse_rows(rows_path, data, tuple(header.get("ignores", ())))
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in header.items()}
    for unused in ("schema_version", "image_size"):
        del fields[unused]
    fields["table_hash"] = hashlib.sha256(canonical + data).hexdigest()[:12]
    fields["num_rows"] = len(rows)
    return LatencyTable(folder=folder, _rows=rows, **fields)


class TableEntry(NamedTuple):
    """A table folder that was found; its header may still turn out to be broken, then there are no aliases."""

    name: str
    aliases: tuple[str, ...]
    folder: Path
    shipped: bool
    fingerprint: str | None = None
    """The machine that a measured table is of."""


def list_tables() -> list[TableEntry]:
    """Shipped tables, then the user's own, each sorted by name; reads headers but no rows."""
    entries = []
    bases = {data_folder("latency_tables").resolve(): True}
    bases.setdefault(user_table_folder().resolve(), False)
    for base, shipped in bases.items():
        headers = sorted(base.glob(f"[!.]*/{HEADER_FILE}")) if base.is_dir() else []
        for path in headers:
            try:
                header = read_header(path)
            except LatencyTableError:  # loading it will say why; the other tables stay usable
                header = {"aliases": ()}
            aliases, machine = tuple(header["aliases"]), header.get("fingerprint")
            entries.append(TableEntry(path.parent.name, aliases, path.parent, shipped, machine))
    return entries


def load_table(name_or_path: str | Path) -> LatencyTable:
    """Load a table by name or alias (in any case), by the path of its folder, or as `local`: this machine's own.

    Raises:
        LatencyTableError: No such table (lists the known ones), or a file of it is malformed.
    """
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or "/" in text or os.sep in text or text.startswith((".", "~"))
    entries = [] if is_path else list_tables()
    wanted = text.lower()
    if wanted == LOCAL and not is_path:
        return _load_local(entries)
    matches = [entry for entry in entries if entry.name.lower() == wanted]
    matches = matches or [entry for entry in entries if wanted in (alias.lower() for alias in entry.aliases)]
    if len(matches) > 1:
        places = ", ".join(str(entry.folder) for entry in matches)
        raise LatencyTableError(f"latency table {text!r} is ambiguous: {places}; give the folder's path")
    if matches:
        return load_folder(matches[0].folder, matches[0].name)
    folder = expanded(text)
    if is_path or (folder / HEADER_FILE).is_file():
        return load_folder(folder, folder.resolve().name)
    names = sorted({name for entry in entries for name in (entry.name, *entry.aliases)}, key=str.lower)
    hint = nearest(wanted, (name.lower() for name in names))
    known = ", ".join(names) or "none"
    raise LatencyTableError(f"latency table {text!r} is unknown{hint}; known: {known}, or the path of a table folder")


def _load_local(entries: Iterable[TableEntry]) -> LatencyTable:
    """The one measured table of this machine."""
    machine = local_fingerprint()
    matches = [entry for entry in entries if entry.fingerprint == machine]
    if not matches:
        raise LatencyTableError(
            f"latency table 'local': none is of this machine (fingerprint {machine}); `maenas profile` makes one"
        )
    if len(matches) > 1:
        names = ", ".join(sorted(entry.name for entry in matches))
        raise LatencyTableError(
            f"latency table 'local' is ambiguous: {names} are all of this machine (fingerprint {machine}); name one"
        )
    return load_folder(matches[0].folder, matches[0].name)


def validate(folder: Path) -> list[str]:
    """What is wrong with a table folder, raw measurements and extra files included; empty when it is sound."""
    try:
        table = load_folder(folder, folder.resolve().name)
        if table.predictor["kind"] == "tinynas":
            _ = table._library  # reading it is the check
    except LatencyTableError as error:
        return [str(error)]
    problems = []
    for name, expected in table.files_sha256.items():
        try:
            data = _read_checked(folder / name, expected, f"files_sha256.{name}")
            if name == NETWORKS_FILE:
                parse_networks(folder / name, data)
        except LatencyTableError as error:
            problems.append(str(error))
    return problems
