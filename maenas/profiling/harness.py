"""Timing many networks: disturbed measurements are noticed, repeated or refused, and an interruption costs little.

Each pass runs all entries in an order of its own. A fixed reference network is timed before and after each entry, and
the load of other processes meanwhile. Every finished attempt is a line of a journal, from which a campaign resumes.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maenas.errors import DeviceBusyError, OutputError, ProfileError
from maenas.profiling.backends import Entry, LayerTime, OpenEntry
from maenas.profiling.host import LoadGuard, busiest_processes

SCHEMA_VERSION = 1
_REFERENCE_RUNS = 5
_FIRST_REFERENCES = 5
_QUIET_SECONDS = 1.0
_FREE_TO_CHANGE = ("attempts", "patience_s", "force")
"""Settings that change how long one waits, not what is measured; a journal may be continued with others."""

Progress = Callable[[int, int, float | None, str], None]
"""Called with measurements done, measurements in all, seconds left (None: unknown), and the key now measured."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        passes: Times that each entry is measured, each time among others.
        warmup: Runs that do not count.
        min_runs: Fewest runs of one measurement.
        min_seconds: Shortest time of one measurement.
        max_runs: Most runs of one measurement; ends it before `min_seconds`.
        drift: Relative departure of the reference that spoils a measurement.
        max_busy: Cores' worth of time that others may take.
        max_descheduled: Share of the wall time in which a single-threaded run may be off the processor.
        attempts: Times that a measurement is tried.
        patience_s: Longest wait for quiet for one measurement.
        seed: Of the orders.
        force: Keep the last attempt, marked, where none was undisturbed; there is no waiting for quiet then.
    """

    passes: int = 3
    warmup: int = 2
    min_runs: int = 5
    min_seconds: float = 0.5
    max_runs: int = 200
    drift: float = 0.05
    max_busy: float = 0.3
    max_descheduled: float = 0.03
    attempts: int = 8
    patience_s: float = 180.0
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("passes", "min_runs", "max_runs", "attempts"):
            if getattr(self, name) < 1:
                raise ProfileError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.max_runs < self.min_runs:
            raise ProfileError(f"max_runs is {self.max_runs}; expected min_runs or more, which is {self.min_runs}")
        for name in ("warmup", "min_seconds", "drift", "max_busy", "max_descheduled", "patience_s"):
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
    busy: float
    accepted: bool
    reason: str
    kept: bool
    started: str
    seconds: float


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


@dataclass(frozen=True)
class Machine:
    """Clocks and counters of the machine; tests give their own."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep
    guard: Callable[[], LoadGuard] = LoadGuard
    busiest: Callable[[], str] = busiest_processes


def run_campaign(
    entries: Iterable[Entry],
    *,
    settings: Settings,
    journal: Path,
    reference: Entry,
    progress: Progress | None = None,
    conditions: Mapping[str, Any] | None = None,
    single_thread: bool = False,
    machine: Machine | None = None,
) -> list[Record]:
    """Measure every entry in every pass, continuing what the journal holds.

    Args:
        entries: What to measure; keys must differ.
        settings: How.
        journal: File of finished attempts; made if it does not exist.
        reference: A fixed network of the same runtime, some milliseconds long.
        progress: Called before each measurement and at the end.
        conditions: What else must be equal for a journal to be continued: host, runtime, version, threads, ...
        single_thread: Whether the runs are all processor time of this process, so that time off it is a disturbance.
        machine: Clocks and counters.

    Returns:
        The kept record of every pass and entry, pass by pass, in the order of `entries`.

    Raises:
        DeviceBusyError: A measurement was disturbed in every attempt.
        ProfileError: An entry failed, or the journal belongs to another campaign.
    """
    todo: dict[str, Entry] = {}
    for entry in entries:
        if entry.key in todo:
            raise ProfileError(f"entry {entry.key!r} is given twice; expected different keys")
        todo[entry.key] = entry
    campaign = _Campaign(settings, reference, single_thread, machine or Machine(), progress)
    header = _header(settings, conditions or {}, list(todo), reference.key)
    with open_journal(journal, header) as book:
        campaign.first_references = book.references
        for record in book.records:
            campaign.remember(record)
        total = settings.passes * len(todo)
        if len(campaign.kept) < total:
            with _opened(reference) as campaign.reference_run:
                if not campaign.first_references:
                    campaign.first_references = campaign.establish()
                    book.append({"references_ms": campaign.first_references})
                for pass_index in range(settings.passes):
                    for key in pass_order(list(todo), settings.seed, pass_index):
                        if (key, pass_index) not in campaign.kept:
                            campaign.report(total, todo, key)
                            campaign.measure(todo[key], pass_index, book)
        campaign.report(total, todo, "")
    return [campaign.kept[key, index] for index in range(settings.passes) for key in todo]


def pass_order(keys: Sequence[str], seed: int, pass_index: int) -> list[str]:
    """The keys in the order of one pass."""
    order = list(keys)
    random.Random(f"{seed}:{pass_index}").shuffle(order)
    return order


def summarize(records: Iterable[Record]) -> dict[str, Stats]:
    """Statistics of the kept records by key, in the order of first appearance."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        if record.kept:
            by_key.setdefault(record.key, []).append(record)
    return {key: _stats(kept) for key, kept in by_key.items()}


def _stats(records: Sequence[Record]) -> Stats:
    import numpy as np

    quarters = [float(np.percentile(record.ms, 25)) for record in records]
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


@dataclass
class _Campaign:
    """The state of a running campaign: what is kept, and what the reference took so far."""

    settings: Settings
    reference: Entry
    single_thread: bool
    machine: Machine
    progress: Progress | None
    first_references: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)
    kept: dict[tuple[str, int], Record] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=dict)
    reference_run: OpenEntry | None = None

    def remember(self, record: Record) -> None:
        """Count an attempt of this run or of the journal."""
        self.took.setdefault(record.key, []).append(record.seconds)
        if record.accepted:
            self.references.extend(record.reference_ms)
        if record.kept:
            self.kept[record.key, record.pass_index] = record

    def report(self, total: int, todo: Mapping[str, Entry], key: str) -> None:
        """Tell the progress; an entry measured before will take as long again, others the mean."""
        if self.progress is None:
            return
        left = None
        if self.took:
            typical = statistics.fmean(seconds for took in self.took.values() for seconds in took)
            left = sum(
                statistics.fmean(self.took.get(other) or [typical])
                for other in todo
                for index in range(self.settings.passes)
                if (other, index) not in self.kept
            )
        self.progress(len(self.kept), total, left, key)

    def establish(self) -> list[float]:
        """The first references, once they agree and nothing else runs.

        Raises:
            DeviceBusyError: Not within the patience.
        """
        patience = self.settings.patience_s
        while True:
            with self.machine.guard() as guard:
                first = [self._time_reference() for _ in range(_FIRST_REFERENCES)]
            spread = (max(first) - min(first)) / min(first)
            reason = _busy_reason(guard, self.settings)
            if not reason and spread > self.settings.drift:
                reason = f"the reference varied by {spread:.1%}; at most {self.settings.drift:.1%} is allowed"
            if not reason or self.settings.force:
                return first
            patience = self._wait(patience)
            if patience <= 0:
                raise DeviceBusyError(self._refusal("the reference", reason))

    def measure(self, entry: Entry, pass_index: int, book: _Journal) -> None:
        """Try until an attempt is undisturbed.

        Raises:
            DeviceBusyError: None was.
        """
        patience = self.settings.patience_s
        for attempt in range(1, self.settings.attempts + 1):
            last = attempt == self.settings.attempts
            record = self._attempt(entry, pass_index, keep=last and self.settings.force)
            book.append(asdict(record))
            self.remember(record)
            if record.kept:
                return
            if not self.settings.force and not last:
                patience = self._wait(patience)
                if not self.references and self._drift_reason(*record.reference_ms):
                    # Nothing agreed with the first references yet: they may be the ones that were disturbed.
                    self.first_references = self.establish()
                    book.append({"references_ms": self.first_references})
            if last or patience <= 0:
                where = f"{entry.key}: pass {pass_index + 1} was disturbed in {attempt} of {attempt} attempts"
                raise DeviceBusyError(self._refusal(where, record.reason))

    def _attempt(self, entry: Entry, pass_index: int, *, keep: bool) -> Record:
        machine = self.machine
        started, begun = datetime.now(UTC).isoformat(timespec="seconds"), machine.wall()
        with _opened(entry) as run:
            with machine.guard() as guard:
                before = self._time_reference()
                ms, cpu, wall = _time_runs(run, self.settings, machine)
                layers = run.layers()
                after = self._time_reference()
            seconds = machine.wall() - begun
        reason = _busy_reason(guard, self.settings) or self._drift_reason(before, after)
        away = 1 - cpu / wall if wall > 0 else 0.0
        if not reason and self.single_thread and away > self.settings.max_descheduled:
            reason = (
                f"off the processor for {away:.1%} of the time; at most {self.settings.max_descheduled:.1%} is allowed"
            )
        return Record(
            key=entry.key,
            pass_index=pass_index,
            ms=ms,
            cpu_ms=cpu / len(ms) * 1000,
            layers=None if layers is None else tuple(layers),
            reference_ms=(before, after),
            busy=guard.busy,
            accepted=not reason,
            reason=reason,
            kept=keep or not reason,
            started=started,
            seconds=seconds,
        )

    def _time_reference(self) -> float:
        assert self.reference_run is not None
        self.reference_run.run()
        return min(self.reference_run.run() for _ in range(_REFERENCE_RUNS)) * 1000

    def _drift_reason(self, before: float, after: float) -> str:
        usual = statistics.median(self.first_references + self.references)
        worst = max(before, after, key=lambda ms: abs(ms - usual))
        departure = worst / usual - 1
        if abs(departure) <= self.settings.drift:
            return ""
        return (
            f"the reference took {worst:.3f} ms, {departure:+.1%} from the campaign's {usual:.3f} ms; "
            f"at most {self.settings.drift:.1%} is allowed"
        )

    def _wait(self, patience: float) -> float:
        """Wait until others are quiet and the reference is as usual; returns what is left of the patience."""
        while patience > 0:
            with self.machine.guard() as guard:
                self.machine.sleep(min(_QUIET_SECONDS, patience))
            patience -= _QUIET_SECONDS
            if _busy_reason(guard, self.settings):
                continue
            now = self._time_reference()
            # Before a measurement agreed with the first references there is no usual.
            if not self.references or not self._drift_reason(now, now):
                return max(patience, 0.0)
        return 0.0

    def _refusal(self, where: str, reason: str) -> str:
        busiest = self.machine.busiest()
        now = f" (busiest now: {busiest})" if busiest else ""
        return f"{where}: {reason}{now}; expected a machine with nothing else to do: stop other work, or use force"


def _time_runs(run: OpenEntry, settings: Settings, machine: Machine) -> tuple[tuple[float, ...], float, float]:
    """Times of the runs in ms, and processor and wall seconds of the stretch."""
    for _ in range(settings.warmup):
        run.run()
    run.discard()
    ms: list[float] = []
    wall, cpu = machine.wall(), machine.cpu()
    while len(ms) < settings.max_runs and (len(ms) < settings.min_runs or machine.wall() - wall < settings.min_seconds):
        ms.append(run.run() * 1000)
    return tuple(ms), machine.cpu() - cpu, machine.wall() - wall


def _busy_reason(guard: LoadGuard, settings: Settings) -> str:
    if guard.busy <= settings.max_busy:
        return ""
    stolen = f", {guard.steal:.2f} of it withheld by the host of this virtual machine" if guard.steal > 0.01 else ""
    return f"others took {guard.busy:.2f} of a core{stolen}; at most {settings.max_busy:.2f} is allowed"


@contextmanager
def _opened(entry: Entry) -> Iterator[OpenEntry]:
    """An entry in use; whatever a runtime raises names the entry."""
    try:
        with entry.open() as run:
            yield run
    except (ProfileError, OutputError, MemoryError):
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ProfileError(f"{entry.key}: failed to run ({type(error).__name__}: {first})") from error


@dataclass
class _Journal:
    """An open journal: what it held, and where the next line goes."""

    path: Path
    descriptor: int
    references: list[float]
    records: list[Record]

    def append(self, content: Mapping[str, Any]) -> None:
        """Add a line and wait until the disk has it."""
        line = json.dumps(content, separators=(",", ":")) + "\n"
        try:
            # One write: an interruption from the keyboard cannot come between two halves of a line.
            os.write(self.descriptor, line.encode("utf-8"))
            os.fsync(self.descriptor)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def open_journal(path: Path, header: Mapping[str, Any]) -> Iterator[_Journal]:
    """Open a journal for continuing, or begin one.

    Raises:
        ProfileError: It belongs to another campaign, is damaged before its last line, or is in use.
        OutputError: It cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        _lock(descriptor, path)
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        # A torn last line would be glued to the next one.
        os.ftruncate(descriptor, len(whole))
        journal = _Journal(path, descriptor, [], [])
        lines = [_line(path, number, line) for number, line in enumerate(whole.splitlines(), start=1)]
        if lines:
            _compare(path, lines[0], header)
        else:
            journal.append(header)
        for number, line in enumerate(lines[1:], start=2):
            if "references_ms" in line:
                journal.references = [float(ms) for ms in line["references_ms"]]
            else:
                journal.records.append(_record(path, number, line))
        yield journal
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        # No such locks on this system: two campaigns on one journal stay the user's mistake.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ProfileError(f"{path}: is in use by another process; expected one campaign at a time") from error


def _header(settings: Settings, conditions: Mapping[str, Any], keys: list[str], reference: str) -> dict[str, Any]:
    measured = {name: value for name, value in asdict(settings).items() if name not in _FREE_TO_CHANGE}
    header = {
        "schema_version": SCHEMA_VERSION,
        "settings": measured,
        "conditions": dict(conditions),
        "reference": reference,
        "entries": keys,
    }
    content: dict[str, Any] = json.loads(json.dumps(header))
    return content


def _compare(path: Path, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Refuse a journal that another question filled."""
    for name in header:
        old, new = found.get(name), header[name]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            name, old, new = next(
                (f"{name}.{part}", old.get(part), new.get(part))
                for part in sorted({*old, *new})
                if old.get(part) != new.get(part)
            )
        elif isinstance(old, list) and isinstance(new, list):
            differing = (
                (f"{name}[{at}]", *pair) for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]
            )
            name, old, new = next(differing, (f"number of {name}", len(old), len(new)))
        raise ProfileError(
            f"{path}: belongs to another campaign: {name} is {old!r}; expected {new!r}, or a path of no file"
        )


def _line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: line {number} is damaged; expected a JSON object, or a path of no file")
    return content


def _record(path: Path, number: int, content: dict[str, Any]) -> Record:
    names = {part.name for part in fields(Record)}
    try:
        layers = content["layers"]
        values = {
            **content,
            "ms": tuple(float(ms) for ms in content["ms"]),
            "reference_ms": tuple(float(ms) for ms in content["reference_ms"]),
            "layers": None if layers is None else tuple(_layer(layer) for layer in layers),
        }
        if set(values) != names or not values["ms"] or len(values["reference_ms"]) != 2:
            raise ValueError
        return Record(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(
            f"{path}: line {number} is no record of a measurement; expected a path of no file"
        ) from error


def _layer(content: Mapping[str, Any]) -> LayerTime:
    return LayerTime(
        name=str(content["name"]),
        kind=str(content["kind"]),
        sources=tuple(content["sources"]),
        inputs=tuple(content["inputs"]),
        ms=float(content["ms"]),
    )
