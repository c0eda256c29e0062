"""Published end-to-end latencies and the fused operators of the networks behind them.

The two CSV files live in `latency_tables/facts/`; their README states columns and sources.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from maenas.errors import LatencyTableError
from maenas.lowering.op import OP_KINDS, Op, OpKind
from maenas.resources import data_folder

PUBLISHED_FILE = "published_latencies.csv"
NETWORKS_FILE = "networks.csv"
USES = ("fit", "test", "none")
Use = Literal["fit", "test", "none"]


@dataclass(frozen=True, slots=True)
class PublishedLatency:
    """One latency that somebody printed.

    Attributes:
        device: `nvidia-t4` or `intel-8163`.
        model: Name of the network as printed, with the ablation spelt out.
        family: Networks of one design; left out together in leave-family-out.
        image_size: Side of the square input, pixels.
        latency_ms: Milliseconds, batch 1, without non-maximum suppression.
        source: Paper and table.
        use: `fit`, `test` (known structure, never fitted) or `none` (structure not published).
        network: Name in networks.csv, or empty.
        published_gflops: As printed; 0 where it is not. For checks only.
        num_convs: Convolutions, where there is no operator list; else 0.
        num_others: Other kernels, where there is no operator list; else 0.
        gflops: 2 x multiply-accumulates / 1e9, where there is no operator list; else 0.
        ops: The operators of the network; empty where only the counts are known.
        note: What a reader should know before trusting the row.
    """

    device: str
    model: str
    family: str
    image_size: int
    latency_ms: float
    source: str
    use: Use
    network: str
    published_gflops: float
    num_convs: int
    num_others: int
    gflops: float
    ops: tuple[Op, ...]
    note: str


def read_published(device: str, *, use: Use, folder: Path | None = None) -> list[PublishedLatency]:
    """The published latencies of one device, in the order of the file.

    Args:
        device: `nvidia-t4` or `intel-8163`.
        use: Which rows.
        folder: Holds both files; the shipped facts where None.

    Raises:
        LatencyTableError: A field that cannot be read, a network without operators, or no such row at all.
    """
    folder = folder or data_folder("latency_tables") / "facts"
    networks = read_networks(folder)
    path = folder / PUBLISHED_FILE
    rows = []
    for place, record in _records(path):
        if record["use"] not in USES:
            raise LatencyTableError(f"{place}: use is {record['use']!r}; expected one of {', '.join(USES)}")
        if record["network"] and record["network"] not in networks:
            raise LatencyTableError(f"{place}: network is {record['network']!r}; expected a name of {NETWORKS_FILE}")
        if record["device"] == device and record["use"] == use:
            rows.append(
                PublishedLatency(
                    device=device,
                    model=record["model"],
                    family=record["family"],
                    image_size=_count(record, "image_size", place),
                    latency_ms=_number(record, "latency_ms", place),
                    source=record["source"],
                    use=use,
                    network=record["network"],
                    published_gflops=_number(record, "published_gflops", place),
                    num_convs=_count(record, "num_convs", place),
                    num_others=_count(record, "num_others", place),
                    gflops=_number(record, "gflops", place),
                    ops=networks.get(record["network"], ()),
                    note=record["note"],
                )
            )
    if not rows:
        raise LatencyTableError(f"{path}: no row has device {device!r} and use {use!r}")
    return rows


def read_networks(folder: Path) -> dict[str, tuple[Op, ...]]:
    """Operators of every network in `networks.csv`, equal operators merged by their count."""
    networks: dict[str, list[Op]] = {}
    for place, record in _records(folder / NETWORKS_FILE):
        networks.setdefault(record["network"], []).append(_op(record, place))
    return {name: tuple(ops) for name, ops in networks.items()}


def count_matrix(rows: Sequence[PublishedLatency]) -> NDArray[np.float64]:
    """Sums over operators as a matrix product: (rows, all operators of all rows), each operator's count in its row."""
    counts = np.zeros((len(rows), sum(len(row.ops) for row in rows)))
    start = 0
    for index, row in enumerate(rows):
        counts[index, start : start + len(row.ops)] = [op.count for op in row.ops]
        start += len(row.ops)
    return counts


def _op(record: Mapping[str, str], place: str) -> Op:
    kind = record["op"]
    if kind not in OP_KINDS:
        raise LatencyTableError(f"{place}: op is {kind!r}; expected one of {', '.join(OP_KINDS)}")
    count = _count(record, "count", place)
    if record["in_elements"]:
        # Data movement and arithmetic on whole maps: only the number of values counts, so a map is one cell.
        elements = _count(record, "in_elements", place), _count(record, "out_elements", place)
        return Op(cast(OpKind, kind), *elements, in_size=(1, 1), out_size=(1, 1), count=count)
    in_channels, groups = _count(record, "in_channels", place), _count(record, "groups", place)
    if groups not in (1, in_channels):
        raise LatencyTableError(f"{place}: groups is {groups}; expected 1 or in_channels ({in_channels})")
    return Op(
        cast(OpKind, kind),
        in_channels,
        _count(record, "out_channels", place),
        in_size=(_count(record, "in_height", place), _count(record, "in_width", place)),
        out_size=(_count(record, "out_height", place), _count(record, "out_width", place)),
        kernel_size=_count(record, "kernel_size", place),
        stride=_count(record, "stride", place),
        depthwise=groups > 1,
        activation=record["activation"],
        residual=record["residual"] == "1",
        count=count,
    )


def _records(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Each row of a CSV file with its place, `file:line`, for messages."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return [(f"{path}:{number}", record) for number, record in enumerate(csv.DictReader(lines), start=2)]
    except OSError as error:
        raise LatencyTableError(f"{path}: cannot be read ({error.strerror}); reinstall maenas") from error


def _number(record: Mapping[str, str], field: str, place: str) -> float:
    text = record[field]
    try:
        return float(text) if text else 0.0
    except ValueError:
        raise LatencyTableError(f"{place}: {field} is {text!r}; expected a number") from None


def _count(record: Mapping[str, str], field: str, place: str) -> int:
    value = _number(record, field, place)
    if value < 0 or value != int(value):
        raise LatencyTableError(f"{place}: {field} is {record[field]!r}; expected a whole number, 0 or more")
    return int(value)
