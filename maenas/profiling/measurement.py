"""What one measurement is: how it is taken, what it records, what many of them amount to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from maenas.errors import ProfileError
from maenas.profiling.backends import LayerTime


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        passes: Times that each entry is measured, each time among others.
        extra_passes: Further times at most, for an entry of which fewer than `passes` passes agree.
        agreement: Relative difference within which passes agree.
        warmup: Runs that do not count.
        min_runs: Fewest runs of one measurement.
        min_seconds: Shortest time of one measurement.
        max_runs: Most runs of one measurement; ends it before `min_seconds`.
        drift: Relative departure of the reference that spoils a measurement.
        max_change: Largest lasting change of the machine's speed that a campaign goes on with.
        max_busy: Cores' worth of time that others may take.
        max_descheduled: Share of the wall time in which a single-threaded run may be off the processor.
        attempts: Times that a measurement is tried.
        patience_s: Longest wait for quiet for one measurement.
        seed: Of the orders.
        force: Keep the last attempt, marked, where none was undisturbed; there is no waiting for quiet then.
    """

    passes: int = 3
    extra_passes: int = 3
    agreement: float = 0.05
    warmup: int = 2
    min_runs: int = 5
    min_seconds: float = 0.5
    max_runs: int = 200
    drift: float = 0.05
    max_change: float = 0.25
    max_busy: float = 0.3
    max_descheduled: float = 0.03
    attempts: int = 30
    patience_s: float = 180.0
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("passes", "min_runs", "max_runs", "attempts"):
            if getattr(self, name) < 1:
                raise ProfileError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.max_runs < self.min_runs:
            raise ProfileError(f"max_runs is {self.max_runs}; expected min_runs or more, which is {self.min_runs}")
        for name in (
            "extra_passes",
            "agreement",
            "warmup",
            "min_seconds",
            "drift",
            "max_change",
            "max_busy",
            "max_descheduled",
            "patience_s",
        ):
            if not getattr(self, name) >= 0:
                raise ProfileError(f"{name} is {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True)
class Record:
    """One attempt at one measurement.

    Attributes:
        key: Of the entry.
        pass_index: From 0.
        ms: Wall time of each run.
        cpu_ms: Processor time of this process per run.
        layers: Layers of a typical run, or None.
        reference_ms: The reference before and after.
        usual_ms: What the reference took at that time while nothing disturbed.
        busy: Cores' worth of time that others took.
        accepted: Whether nothing disturbed it.
        reason: What did.
        kept: Whether it counts: accepted, or forced.
        started: Date and time in ISO form, UTC.
        seconds: What it took, compilation included.
    """

    key: str
    pass_index: int
    ms: tuple[float, ...]
    cpu_ms: float
    layers: tuple[LayerTime, ...] | None
    reference_ms: tuple[float, float]
    usual_ms: float
    busy: float
    accepted: bool
    reason: str
    kept: bool
    started: str
    seconds: float


def at_common_speed(records: Sequence[Record]) -> list[Record]:
    """The records as if the machine had never changed its speed.

    A virtual machine or a warm laptop may run at one speed for minutes and at another for the next ones. The times of a
    record are divided by how much longer the reference took then than usually: than the median over all records.
    """
    if not records:
        return []
    middle = statistics.median(record.usual_ms for record in records)
    return [_scaled(record, middle / record.usual_ms) for record in records]


def speed_range(records: Sequence[Record]) -> float:
    """Relative difference between the machine's fastest and slowest speed while the records were taken."""
    usual = [record.usual_ms for record in records]
    return max(usual) / min(usual) - 1 if usual else 0.0


def _scaled(record: Record, factor: float) -> Record:
    if factor == 1:
        return record
    layers = record.layers
    return replace(
        record,
        ms=tuple(ms * factor for ms in record.ms),
        cpu_ms=record.cpu_ms * factor,
        layers=None if layers is None else tuple(replace(layer, ms=layer.ms * factor) for layer in layers),
    )


def quarter(record: Record) -> float:
    """25th percentile of the runs, in ms: what a pass says of its entry."""
    import numpy as np

    return float(np.percentile(record.ms, 25))


def passes_agree(records: Sequence[Record], settings: Settings) -> bool:
    """Whether as many passes as `settings.passes` are within `settings.agreement` of each other."""
    values = sorted(quarter(record) for record in records)
    windows = zip(values, values[settings.passes - 1 :], strict=False)
    return any(high / low - 1 <= settings.agreement for low, high in windows)


@dataclass(frozen=True)
class Stats:
    """The kept measurements of one entry.

    Attributes:
        ms_min: Over all runs.
        ms_p25: Median over the passes of the 25th percentile within a pass: the value of the entry.
        ms_median: Median over the passes of the median within a pass.
        n: Number of runs.
        passes: Number of passes.
        rel_spread: (largest - smallest) / median of the passes' 25th percentiles.
        undisturbed: Whether every pass was accepted.
    """

    ms_min: float
    ms_p25: float
    ms_median: float
    n: int
    passes: int
    rel_spread: float
    undisturbed: bool


def summarize(records: Iterable[Record]) -> dict[str, Stats]:
    """Statistics of the kept records by key, in the order of first appearance."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        if record.kept:
            by_key.setdefault(record.key, []).append(record)
    return {key: _stats(kept) for key, kept in by_key.items()}


def _stats(records: Sequence[Record]) -> Stats:
    quarters = [quarter(record) for record in records]
    value = statistics.median(quarters)
    return Stats(
        ms_min=min(min(record.ms) for record in records),
        ms_p25=value,
        ms_median=statistics.median(statistics.median(record.ms) for record in records),
        n=sum(len(record.ms) for record in records),
        passes=len(records),
        rel_spread=(max(quarters) - min(quarters)) / value,
        undisturbed=all(record.accepted for record in records),
    )
