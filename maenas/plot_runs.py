"""Points from run folders: AP and latencies that were found are joined by the digest of the structure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maenas.errors import LatencyTableError
from maenas.frontier import FrontierRow
from maenas.latency.predict import predict
from maenas.latency.table import LatencyTable, load_table
from maenas.lowering.costs import num_flops, num_params
from maenas.lowering.detector import lower
from maenas.plot_facts import EvaluationFact, RunFacts, SearchFact, TimingFact
from maenas.plot_files import read_runs
from maenas.plot_points import OWN, Conditions, Point, row_conditions
from maenas.published import PUBLISHED, load_published
from maenas.structure import Structure

RUNTIME_NAMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "torch": "PyTorch"}
LABORATORIES = {"t4-tensorrt-fp16": "damo-paper-t4", "intel8163-openvino": "damo-paper-8163"}
"""Calibrated tables and the protocols they predict: what the same people would have measured."""


@dataclass(frozen=True, slots=True)
class _Latency:
    """A latency of one structure."""

    ms: float
    low_ms: float
    high_ms: float
    status: str
    conditions: Conditions
    sha256: str
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Accuracy:
    """AP of one structure on some images, and what it is called there."""

    ap: float | None = None
    low: float | None = None
    high: float | None = None
    status: str = ""
    count: int = 0
    data: str = ""
    extra_data: str = "unspecified"
    distilled: str = "unspecified"
    mark: str = ""
    source: str = ""
    note: str = ""


def run_points(
    runs: Sequence[str], *, frontier: Sequence[FrontierRow], tables: Sequence[str] = ()
) -> tuple[list[Point], list[str]]:
    """Points of runs, and notes on what has none.

    Args:
        runs: Folders, files, or names of published networks (these have the AP that `frontier` states).
        frontier: Rows of points files; AP of a structure that nobody evaluated here is taken from them by its digest.
        tables: Latency tables that predict every structure in them.

    Raises:
        PlotError: As `read_runs`.
        LatencyTableError: An unknown table. One that lacks operators of a structure is a note.
    """
    names = [name for name in runs if name.lower() in PUBLISHED and not Path(name).exists()]
    facts = read_runs([Path(run) for run in runs if run not in names])
    for name in names:
        structure = load_published(name)
        facts.structures.setdefault(structure.digest, structure)
    loaded = [load_table(name) for name in tables]
    found = [
        *facts.structures,
        *(fact.digest for fact in facts.evaluations),
        *(fact.digest for fact in facts.timings),
        *(fact.digest for fact in facts.searches),
    ]
    points: list[Point] = []
    for digest in dict.fromkeys(found):
        points += _points_of(digest, facts, loaded, frontier)
    return _distinct_labels(points), facts.notes


def _points_of(
    digest: str, facts: RunFacts, tables: Sequence[LatencyTable], frontier: Sequence[FrontierRow]
) -> list[Point]:
    """Every pair of an AP and a latency of one structure."""
    structure = facts.structures.get(digest)
    latencies = _latencies(digest, structure, facts, tables, frontier)
    evaluations = [fact for fact in facts.evaluations if fact.digest == digest]
    if not latencies:
        what = "an AP but no latency" if evaluations else "neither AP nor latency"
        facts.notes.append(
            f"{_called(digest, structure)}: has {what}; expected a file of maenas benchmark for it, or --predict TABLE"
        )
    points = []
    for latency in latencies:
        accuracies = _accuracies(digest, latency, evaluations, facts.timings, frontier)
        if evaluations and not any(accuracy.data for accuracy in accuracies):
            facts.notes.append(f"{latency.source}: {digest} in {latency.conditions.precision} has no AP of its own")
        for accuracy in accuracies:
            points.append(_point(digest, structure, latency, accuracy))
    return points


def _called(digest: str, structure: Structure | None) -> str:
    """A structure for a note: by its name too, where it has one."""
    return f"structure {digest}" if structure is None else f"structure {structure.name} {digest}".replace("  ", " ")


def _latencies(
    digest: str,
    structure: Structure | None,
    facts: RunFacts,
    tables: Sequence[LatencyTable],
    frontier: Sequence[FrontierRow],
) -> list[_Latency]:
    """Latencies by their conditions: measured ones replace predictions for the same machine."""
    measured = _benchmarked([fact for fact in facts.timings if fact.digest == digest])
    predicted: dict[Conditions, _Latency] = {}
    for fact in facts.searches:
        if fact.digest == digest:
            latency = _searched(fact, frontier, facts.notes)
            if latency.status == "measured":
                measured.setdefault(latency.conditions, latency)
            else:
                predicted.setdefault(latency.conditions, latency)
    for table in tables:
        if structure is None:
            facts.notes.append(f"structure {digest}: is not in any of the runs; --predict {table.name} needs it")
            continue
        try:
            latency = _priced(structure, table, frontier)
        except LatencyTableError as error:
            facts.notes.append(f"{_called(digest, structure)}: has no prediction; {error}")
        else:
            predicted[latency.conditions] = latency
    return [*measured.values(), *(latency for how, latency in predicted.items() if how not in measured)]


def _benchmarked(timings: Sequence[TimingFact]) -> dict[Conditions, _Latency]:
    """Measured latencies; of files with and without decoding the former count, repeated ones give their median."""
    found: dict[Conditions, list[TimingFact]] = {}
    for fact in timings:
        conditions = Conditions(
            device=fact.device,
            runtime=f"{RUNTIME_NAMES.get(fact.runtime, fact.runtime)} {fact.runtime_version}",
            precision=fact.precision,
            batch=fact.batch,
            threads=fact.threads,
            nms="yes" if fact.form == "nms" else "no",
            protocol="maenas benchmark",
            measured_by=OWN,
        )
        found.setdefault(conditions, []).append(fact)
    latencies = {}
    for conditions, facts in found.items():
        decoded = [fact for fact in facts if fact.form != "raw"] or facts
        latencies[conditions] = _Latency(
            ms=statistics.median(fact.ms for fact in decoded),
            low_ms=min(fact.low_ms for fact in decoded),
            high_ms=max(fact.high_ms for fact in decoded),
            status="measured",
            conditions=conditions,
            sha256=decoded[0].sha256,
            source=decoded[0].source,
            note="; ".join(dict.fromkeys(fact.note for fact in decoded if fact.note)),
        )
    return latencies


def _searched(fact: SearchFact, frontier: Sequence[FrontierRow], notes: list[str]) -> _Latency:
    """What a search said of its answer."""
    try:
        table = load_table(fact.table)
    except LatencyTableError:
        # Made on another machine; its name is all that is known.
        conditions = Conditions(fact.table, "unspecified", "unspecified", 1, None, "no", "maenas search", OWN)
    else:
        conditions = table_conditions(table, frontier)
        if table.table_hash != fact.table_hash:
            notes.append(f"{fact.source}: its table {fact.table} was {fact.table_hash}, and is {table.table_hash} now")
    if fact.measured_ms is not None:
        ms = fact.measured_ms
        return _Latency(ms, ms, ms, "measured", conditions, "", fact.source, "measured by the search")
    return _Latency(
        ms=fact.ms,
        low_ms=fact.ms - fact.sigma_ms,
        high_ms=fact.ms + fact.sigma_ms,
        status="predicted",
        conditions=conditions,
        sha256="",
        source=fact.source,
        note=f"{fact.provenance} table {fact.table} {fact.table_hash}, bar: one sigma",
    )


def _priced(structure: Structure, table: LatencyTable, frontier: Sequence[FrontierRow]) -> _Latency:
    prediction = predict(lower(structure), table)
    return _Latency(
        ms=prediction.latency_ms,
        low_ms=prediction.latency_ms - prediction.sigma_ms,
        high_ms=prediction.latency_ms + prediction.sigma_ms,
        status="predicted",
        conditions=table_conditions(table, frontier),
        sha256="",
        source=f"latency table {table.name}",
        note=f"{table.provenance} table {table.name} {table.table_hash}, bar: one sigma",
    )


def table_conditions(table: LatencyTable, frontier: Sequence[FrontierRow]) -> Conditions:
    """What a table's predictions stand for: the measurements it was calibrated to, or our own on its device."""
    protocol = LABORATORIES.get(table.name)
    row = next((row for row in frontier if protocol is not None and row.protocol == protocol), None)
    if row is not None:
        return row_conditions(row)
    return Conditions(
        device=table.device,
        runtime=f"{RUNTIME_NAMES.get(table.backend, table.backend)} {table.backend_version or ''}".rstrip(),
        precision=table.precision,
        batch=table.batch,
        threads=table.threads,
        nms="no",
        protocol="maenas benchmark" if table.provenance == "measured" else f"table {table.name}",
        measured_by=OWN,
    )


def _accuracies(
    digest: str,
    latency: _Latency,
    evaluations: Sequence[EvaluationFact],
    timings: Sequence[TimingFact],
    frontier: Sequence[FrontierRow],
) -> list[_Accuracy]:
    """AP that belongs to a latency: of the same file, else of the same structure unless one of them is quantised."""
    same_file = [fact for fact in evaluations if fact.sha256 and fact.sha256 == latency.sha256]
    quantised = {timing.sha256 for timing in timings if timing.precision == "int8"}
    if latency.conditions.precision == "int8":
        fitting = same_file
    else:
        fitting = same_file or [fact for fact in evaluations if fact.sha256 not in quantised]
    by_data: dict[str, list[EvaluationFact]] = {}
    best = min((fact.rank for fact in fitting), default=0)
    for fact in fitting:
        if fact.rank == best:
            by_data.setdefault(fact.data, []).append(fact)
    if by_data:
        return [_evaluated(facts) for facts in by_data.values()]
    if evaluations:
        return [_Accuracy()]
    rows = {(row.model, row.ap, row.data): row for row in frontier if _digest_of(row) == digest}
    published = [
        _Accuracy(
            ap=row.ap,
            low=row.ap,
            high=row.ap,
            status="published",
            count=1,
            data=row.data,
            extra_data=row.extra_data,
            distilled=row.distilled,
            mark=" (distilled)" if row.distilled == "yes" else "",
            source=row.source,
            note="AP as published, not reproduced here",
        )
        for row in rows.values()
    ]
    return published or [_Accuracy()]


def _digest_of(row: FrontierRow) -> str:
    return load_published(row.structure).digest if row.structure else ""


def _evaluated(facts: Sequence[EvaluationFact]) -> _Accuracy:
    """Mean of several evaluations, such as of several seeds."""
    values = [fact.ap for fact in facts]
    several = f"mean of {len(values)} evaluations, bar: lowest to highest" if len(values) > 1 else ""
    notes = [several, *(fact.note for fact in facts)]
    return _Accuracy(
        ap=statistics.fmean(values),
        low=min(values),
        high=max(values),
        status="measured",
        count=len(values),
        data=facts[0].data,
        source=", ".join(dict.fromkeys(fact.source for fact in facts)),
        note="; ".join(dict.fromkeys(note for note in notes if note)),
    )


def _point(digest: str, structure: Structure | None, latency: _Latency, accuracy: _Accuracy) -> Point:
    ops = None if structure is None else lower(structure)
    name = digest if structure is None else structure.name or digest
    size = "" if structure is None else f"{structure.image_size[0]}x{structure.image_size[1]}"
    return Point(
        label=name + accuracy.mark,
        series=OWN + accuracy.mark,
        own=True,
        latency_ms=latency.ms,
        latency_low_ms=min(latency.low_ms, latency.ms),
        latency_high_ms=max(latency.high_ms, latency.ms),
        latency_status=latency.status,
        conditions=latency.conditions,
        ap=accuracy.ap,
        ap_low=accuracy.low,
        ap_high=accuracy.high,
        ap_status=accuracy.status,
        num_evaluations=accuracy.count,
        data=accuracy.data,
        image_size=size,
        extra_data=accuracy.extra_data,
        distilled=accuracy.distilled,
        params_m=None if ops is None else float(num_params(ops)) / 1e6,
        gflops=None if ops is None else float(num_flops(ops)) / 1e9,
        digest=digest,
        source="; ".join(text for text in (latency.source, accuracy.source) if text),
        note="; ".join(text for text in (latency.note, accuracy.note) if text),
    )


def _distinct_labels(points: Sequence[Point]) -> list[Point]:
    """Points of different structures under one name get their digests; those of one structure keep it."""
    owners: dict[str, set[str]] = {}
    for point in points:
        owners.setdefault(point.label, set()).add(point.digest)
    return [
        replace(point, label=f"{point.label} {point.digest}") if len(owners[point.label]) > 1 else point
        for point in points
    ]
