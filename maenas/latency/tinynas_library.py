"""Files of the operator latency libraries of the reference search tool.

A library is a list of measured convolutions, one a line: `{type,batch,in_c,in_h,in_w,out_c,kernel,stride,fused} ms`,
or the same as a CSV file. The order of the lines is part of the data, because the interpolation between them depends on
it (`maenas.latency.tinynas`): raw text keeps its own. A CSV file has been sorted somewhere on its way, so its lines are
put back into the order in which the libraries are published: side descending, then out_channels descending.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maenas.errors import LatencyTableError, reason_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FAILED = -1.0
"""Milliseconds of a setting that could not be measured."""

LARGEST = 65_536
"""Largest size of a line; beyond it a number is a mistake."""

CSV_FIELDS = ("conv_type", "batch", "in_c", "in_h", "in_w", "out_c", "kernel", "stride", "fused", "latency_ms")
_CONV_TYPES = {"Regular": False, "Depthwise": True}
_LINE = re.compile(r"\{(\w+)," + r"(\d+)," * 7 + r"([01])\} +(\S+)")
_LINE_FORM = "{type,batch,in_c,in_h,in_w,out_c,kernel,stride,fused} milliseconds"


@dataclass(frozen=True, eq=False)
class TinyNasLibrary:
    """Measured convolutions as columns of one length; order matters, repeats and failures are included."""

    source: str
    depthwise: Flags
    batch: Ints
    in_channels: Ints
    side: Ints
    out_channels: Ints
    kernel_size: Ints
    stride: Ints
    fused: Flags
    latency_ms: Floats

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.batch)

    @property
    def failed(self) -> Flags:
        """Lines whose measurement failed."""
        return np.equal(self.latency_ms, FAILED)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes of the lines that did not fail, ascending."""
        return tuple(int(b) for b in np.unique(self.batch[~self.failed]))

    def select(self, keep: Flags | Ints) -> TinyNasLibrary:
        """The lines where `keep` holds, in their order; or those whose numbers it lists, in its order."""
        return TinyNasLibrary(
            self.source, self.depthwise[keep], self.batch[keep], self.in_channels[keep], self.side[keep],
            self.out_channels[keep], self.kernel_size[keep], self.stride[keep], self.fused[keep], self.latency_ms[keep],
        )  # fmt: skip

    def in_published_order(self) -> TinyNasLibrary:
        """The lines by side, then out_channels, both descending; lines equal in both keep their order.

        Within each kernel and kind, the published libraries have this order. One known exception: a side that was drawn
        twice is there in two passes, one after the other. Here the passes mingle, which moves single operators near
        that side (6 in the DAMO-YOLO library), but no network at detector sizes.
        """
        return self.select(np.lexsort((-self.out_channels, -self.side)))

    def to_csv(self) -> str:
        """The lines in the CSV form and their own order; floats are written so that they are read back unchanged."""
        types = np.where(self.depthwise, "Depthwise", "Regular").tolist()
        side = self.side.tolist()
        columns = zip(
            types, self.batch.tolist(), self.in_channels.tolist(), side, side, self.out_channels.tolist(),
            self.kernel_size.tolist(), self.stride.tolist(), self.fused.astype(int).tolist(), self.latency_ms.tolist(),
            strict=True,
        )  # fmt: skip
        return "\n".join([",".join(CSV_FIELDS), *(",".join(map(str, line)) for line in columns)]) + "\n"


def read_library(file: Path | str, *, keep_order: bool = False) -> TinyNasLibrary:
    """Read a library; the form (raw text or CSV, gzip or not) is told from the content.

    Args:
        file: Raw text keeps its order; a CSV file is taken for a sorted one and put `in_published_order`.
        keep_order: Keep that of a CSV file too: it is one that `to_csv` wrote.

    Raises:
        LatencyTableError: Names the file, and for a malformed line its number, its text and what was expected.
    """
    path = Path(file)
    if path.is_dir():
        raise LatencyTableError(f"{path}: is a folder; expected a library file, such as one of {_some_files(path)}")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise LatencyTableError(f"{path}: cannot be read as (gzip) UTF-8 text: {reason_of(error)}") from error
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("{"):
        rows, sort = _parse_raw(path, lines), False
    elif first.startswith("conv_type"):
        rows, sort = _parse_csv(path, lines), not keep_order
    else:
        raise LatencyTableError(
            f"{path}: line 1 is {first[:80]!r}; expected `{_LINE_FORM}` or a CSV header that starts with conv_type"
        )
    if not rows:
        raise LatencyTableError(f"{path}: holds no measurement; expected at least one line")
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    depthwise, batch, in_c, side, out_c, kernel, stride, fused, ms = columns
    fused = fused.astype(bool)
    library = TinyNasLibrary(path.name, depthwise, batch, in_c, side, out_c, kernel, stride, fused, ms)
    return library.in_published_order() if sort else library


_Row = tuple[bool, int, int, int, int, int, int, int, float]


def _parse_raw(path: Path, lines: Sequence[str]) -> list[_Row]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise _bad_line(path, number, line, f"`{_LINE_FORM}` with whole numbers and fused 0 or 1")
        rows.append(_row(path, number, line, match.groups()))
    return rows


def _parse_csv(path: Path, lines: Sequence[str]) -> list[_Row]:
    """The columns may come in any order and further columns (such as precision) are left alone."""
    header = lines[0].strip().split(",")
    missing = [name for name in CSV_FIELDS if name not in header]
    if missing:
        raise LatencyTableError(
            f"{path}: line 1 lacks the columns {', '.join(missing)}; expected {','.join(CSV_FIELDS)}"
        )
    places = [header.index(name) for name in CSV_FIELDS]
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.strip().split(",")
        if len(cells) != len(header):
            raise _bad_line(path, number, line, f"{len(header)} comma-separated fields as in line 1")
        rows.append(_row(path, number, line, [cells[place] for place in places]))
    return rows


def _some_files(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    return ", ".join(names[:3]) or "(none in there)"


def _row(path: Path, number: int, line: str, cells: Sequence[str]) -> _Row:
    if cells[0] not in _CONV_TYPES:
        raise _bad_line(path, number, line, f"the type to be one of {', '.join(_CONV_TYPES)}")
    try:
        batch, in_c, height, width, out_c, kernel, stride, fused = (int(cell) for cell in cells[1:9])
        ms = float(cells[9])
    except ValueError:
        raise _bad_line(path, number, line, "whole numbers followed by milliseconds") from None
    if min(batch, in_c, height, out_c, kernel, stride) < 1 or fused not in (0, 1):
        raise _bad_line(path, number, line, "positive sizes, and fused 0 or 1")
    if max(batch, in_c, height, width, out_c, kernel, stride) > LARGEST:
        raise _bad_line(path, number, line, f"sizes of at most {LARGEST}")
    if height != width:
        raise _bad_line(path, number, line, "a square map, in_h equal to in_w")
    if not (0 < ms < np.inf or ms == FAILED):
        raise _bad_line(path, number, line, "positive milliseconds, or -1 for a failed measurement")
    return _CONV_TYPES[cells[0]], batch, in_c, height, out_c, kernel, stride, fused, ms


def _bad_line(path: Path, number: int, line: str, expected: str) -> LatencyTableError:
    return LatencyTableError(f"{path}: line {number}: {line.strip()[:120]!r}; expected {expected}")
