"""Published points of accuracy against latency: one CSV format, shipped with facts, and open to a user's own rows.

Every column and the protocols of the shipped file: docs/plots.md.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from maenas.errors import PlotError, reason_of
from maenas.published import PUBLISHED
from maenas.resources import data_folder

SCHEMA_VERSION = 1
FRONTIER_FILE = "published_frontier.csv"
STATED = ("yes", "no", "unspecified")
MAX_FILE_BYTES = 5_000_000
MAX_ROWS = 10_000
MAX_TEXT = 200

_HEADER = re.compile(r"# maenas points, schema_version (\d{1,9})(,.*)?")


@dataclass(frozen=True, slots=True)
class FrontierRow:
    """One network as somebody measured it.

    Attributes:
        model: Name as printed; `*` marks distillation.
        family: Networks that form one curve.
        ap: Average precision on `data` in percent.
        latency_ms: Milliseconds of one run.
        device: Processor, such as `NVIDIA T4`.
        runtime: Runtime and its version where stated.
        precision: Such as `fp16`.
        batch: Images per run.
        threads: CPU threads; None where not stated, or on an accelerator.
        image_size: Side of the square input in pixels; None where it differs or is not stated.
        nms: Whether non-maximum suppression is part of the time: one of STATED.
        extra_data: Training data besides `data`, `none`, or `unspecified`.
        distilled: Whether a teacher was used: one of STATED.
        params_m: Parameters in millions, or None.
        gflops: 2 x multiply-accumulates / 1e9 by the source's rule, or None.
        data: Images that AP is measured on.
        protocol: Name of the way of measuring; rows of different protocols are not comparable.
        measured_by: Who measured the latency.
        source: Where the row is printed.
        structure: Published name of the network (`maenas.published.PUBLISHED`), or empty.
        note: What to know before trusting the row.
    """

    model: str
    family: str
    ap: float
    latency_ms: float
    device: str
    runtime: str
    precision: str
    batch: int
    threads: int | None
    image_size: int | None
    nms: str
    extra_data: str
    distilled: str
    params_m: float | None
    gflops: float | None
    data: str
    protocol: str
    measured_by: str
    source: str
    structure: str
    note: str


COLUMNS = tuple(field.name for field in fields(FrontierRow))
_MAY_BE_EMPTY = ("threads", "image_size", "params_m", "gflops", "structure", "note")


def load_frontier(path: str | Path | None = None) -> tuple[FrontierRow, ...]:
    """The rows of a file, in its order; the shipped file where None.

    Raises:
        PlotError: Naming the file, the line, the column and what was expected.
    """
    path = data_folder("latency_tables") / "facts" / FRONTIER_FILE if path is None else Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PlotError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; expected a CSV of points")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlotError(f"{path}: cannot be read as text ({reason_of(error)})") from error
    return parse_frontier(text, source=str(path))


def parse_frontier(text: str, *, source: str) -> tuple[FrontierRow, ...]:
    """The rows of a file's text.

    Raises:
        PlotError: As `load_frontier`.
    """
    first, _, rest = text.partition("\n")
    header = _HEADER.fullmatch(first.rstrip("\r"))
    if header is None:
        raise PlotError(f"{source}: line 1 is {first[:60]!r}; expected '# maenas points, schema_version 1'")
    if int(header[1]) != SCHEMA_VERSION:
        raise PlotError(f"{source}: schema_version is {header[1]}; expected {SCHEMA_VERSION}")
    reader = csv.DictReader(io.StringIO(rest, newline=""), strict=True)
    rows: list[FrontierRow] = []
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise PlotError(f"{source}: line 2 is {_shown(','.join(reader.fieldnames or ()))}; {_difference(reader)}")
        for record in reader:
            if len(rows) == MAX_ROWS:
                raise PlotError(f"{source}: has more than {MAX_ROWS} rows")
            rows.append(_row(record, f"{source}: line {reader.line_num + 1}"))
    except csv.Error as error:
        raise PlotError(f"{source}: is not CSV after line {reader.line_num + 1} ({error})") from error
    return tuple(rows)


def _difference(reader: csv.DictReader[str]) -> str:
    given = list(reader.fieldnames or ())
    missing = [name for name in COLUMNS if name not in given]
    unknown = [name for name in given if name not in COLUMNS]
    parts = [
        f"{label} {_shown(', '.join(names))}" for label, names in (("lacks", missing), ("unknown:", unknown)) if names
    ]
    return "; ".join(parts) or f"expected {','.join(COLUMNS)}"


def _row(record: dict[str | None, str | list[str] | None], place: str) -> FrontierRow:
    """One record, checked."""
    if None in record or None in record.values():
        raise PlotError(f"{place}: has another number of entries than the header; expected {len(COLUMNS)}")
    cells = {str(name): str(value) for name, value in record.items()}
    for name, value in cells.items():
        if not value.isprintable() or len(value) > MAX_TEXT:
            raise PlotError(f"{place}: {name} is {_shown(value)}; expected at most {MAX_TEXT} printable characters")
        if not value.strip() and name not in _MAY_BE_EMPTY:
            raise PlotError(f"{place}: {name} is empty")
    for name in ("nms", "distilled"):
        if cells[name] not in STATED:
            raise PlotError(f"{place}: {name} is {_shown(cells[name])}; expected one of {', '.join(STATED)}")
    return FrontierRow(
        model=cells["model"],
        family=cells["family"],
        ap=_number(cells, "ap", place, highest=100.0),
        latency_ms=_number(cells, "latency_ms", place),
        device=cells["device"],
        runtime=cells["runtime"],
        precision=cells["precision"],
        batch=_count(cells, "batch", place),
        threads=_count(cells, "threads", place) if cells["threads"] else None,
        image_size=_count(cells, "image_size", place) if cells["image_size"] else None,
        nms=cells["nms"],
        extra_data=cells["extra_data"],
        distilled=cells["distilled"],
        params_m=_number(cells, "params_m", place) if cells["params_m"] else None,
        gflops=_number(cells, "gflops", place) if cells["gflops"] else None,
        data=cells["data"],
        protocol=cells["protocol"],
        measured_by=cells["measured_by"],
        source=cells["source"],
        structure=_structure(cells["structure"], place),
        note=cells["note"],
    )


def _structure(name: str, place: str) -> str:
    if name and name not in PUBLISHED:
        raise PlotError(f"{place}: structure is {_shown(name)}; expected nothing, or one of {', '.join(PUBLISHED)}")
    return name


def _number(cells: dict[str, str], name: str, place: str, highest: float = 1e6) -> float:
    try:
        value = float(cells[name])
    except ValueError:
        value = math.nan
    if not 0.0 < value <= highest:
        raise PlotError(f"{place}: {name} is {_shown(cells[name])}; expected a number above 0, at most {highest:g}")
    return value


def _count(cells: dict[str, str], name: str, place: str) -> int:
    text = cells[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) > 0):
        raise PlotError(f"{place}: {name} is {_shown(text)}; expected a whole number, 1 or more")
    return int(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
