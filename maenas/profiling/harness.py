"""Timing many networks: disturbed measurements are noticed, repeated or refused, and an interruption costs little.

Each pass runs all entries in an order of its own. A fixed reference network is timed before and after each entry, and
the load of other processes meanwhile. A measurement whose reference was slower than usual, or changed meanwhile, is
repeated; where the reference stays at another level with nobody else at work, the machine itself has changed its speed,
and that level becomes the usual one. Every finished attempt is a line of a journal, from which a campaign resumes.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maenas.errors import DeviceBusyError, OutputError, ProfileError, first_line
from maenas.profiling.backends import Entry, OpenEntry
from maenas.profiling.host import LoadGuard, busiest_processes, usable_cores
from maenas.profiling.journal import Journal, journal_header, open_journal
from maenas.profiling.measurement import Record, Settings, at_common_speed, passes_agree

_REFERENCE_RUNS, _REFERENCE_SECONDS = 5, 0.05
"""Least runs and time of one reading of the reference: longer than the bursts that come and go."""

_FIRST_REFERENCES = 5
_QUIET_SECONDS = 1.0
_SILENT_SECONDS = 5.0
"""Nothing is said of shorter waits."""

_FORCED_ATTEMPTS, _FORCED_ATTEMPTS_WHILE_BUSY = 8, 2
"""With force: at most so many, and so many where those of the measurement before were all disturbed."""

_LEVEL_READINGS, _LEVEL_QUANTILE = 24, 0.25
"""The usual time of the reference: this quantile of its latest readings. Disturbances only ever slow it."""

MAX_BUSY_WITHOUT_SPARE = 0.1
"""Cores' worth of time that others may take where every core is measured: one thread waits for the slowest."""

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, float | None, str], None]
"""Called with measurements done, measurements in all, seconds left (None: unknown), and the key now measured."""


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
    threads: int | None = None,
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
        threads: CPU threads of a run, where its time is all processor time of this process: time off the processor
            is then a disturbance for a single thread, and others may take next to nothing where no core is left to
            them. None for an accelerator, which works while the process waits.
        machine: Clocks and counters.

    Returns:
        The kept record of every pass and entry, pass by pass, in the order of `entries`, all at the machine's middle
        speed (`maenas.profiling.measurement.at_common_speed`).

    Raises:
        DeviceBusyError: A measurement was disturbed in every attempt.
        ProfileError: An entry failed, or the journal belongs to another campaign.
    """
    todo: dict[str, Entry] = {}
    for entry in entries:
        if entry.key in todo:
            raise ProfileError(f"entry {entry.key!r} is given twice; expected different keys")
        todo[entry.key] = entry
    campaign = _Campaign(_for_threads(settings, threads), reference, threads == 1, machine or Machine(), progress)
    header = journal_header(settings, conditions or {}, list(todo), reference.key)
    with open_journal(journal, header) as book:
        campaign.readings.extend(book.references)
        for record in book.records:
            campaign.remember(record)
        if campaign.unfinished(todo):
            with _opened(reference) as campaign.reference_run:
                if not campaign.readings:
                    campaign.readings.extend(campaign.establish())
                    book.append({"references_ms": list(campaign.readings)})
                for pass_index in range(settings.passes + settings.extra_passes):
                    for key in campaign.wanting(pass_order(list(todo), settings.seed, pass_index), pass_index):
                        campaign.report(todo, key)
                        campaign.measure(todo[key], pass_index, book)
        campaign.report(todo, "")
    order = ((key, index) for index in range(settings.passes + settings.extra_passes) for key in todo)
    return at_common_speed([campaign.kept[place] for place in order if place in campaign.kept])


def _for_threads(settings: Settings, threads: int | None) -> Settings:
    """Settings as strict as a campaign needs that leaves no core to others."""
    if threads is None or threads < usable_cores():
        return settings
    return replace(settings, max_busy=min(settings.max_busy, MAX_BUSY_WITHOUT_SPARE))


def pass_order(keys: Sequence[str], seed: int, pass_index: int) -> list[str]:
    """The keys in the order of one pass."""
    order = list(keys)
    random.Random(f"{seed}:{pass_index}").shuffle(order)
    return order


@dataclass
class _Campaign:
    """The state of a running campaign: what is kept, and what the reference took lately."""

    settings: Settings
    reference: Entry
    single_thread: bool
    machine: Machine
    progress: Progress | None
    readings: deque[float] = field(default_factory=lambda: deque(maxlen=_LEVEL_READINGS))
    kept: dict[tuple[str, int], Record] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=dict)
    reference_run: OpenEntry | None = None
    quiet: bool = True

    def remember(self, record: Record) -> None:
        """Count an attempt of this run or of the journal."""
        self.took.setdefault(record.key, []).append(record.seconds)
        self.readings.extend(record.reference_ms)
        if record.kept:
            self.kept[record.key, record.pass_index] = record
            self.quiet = record.accepted

    @property
    def usual_ms(self) -> float:
        """What the reference takes while nothing disturbs."""
        return sorted(self.readings)[int(_LEVEL_QUANTILE * (len(self.readings) - 1))]

    def wanting(self, keys: Iterable[str], pass_index: int) -> list[str]:
        """Those of the entries that this pass is to measure: all in the first passes, then where passes disagree."""
        extra = pass_index >= self.settings.passes
        return [
            key
            for key in keys
            if (key, pass_index) not in self.kept and not (extra and self._agree(key, before=pass_index))
        ]

    def unfinished(self, keys: Iterable[str]) -> bool:
        """Whether any pass is still to be made."""
        keys = list(keys)
        return any(self.wanting(keys, index) for index in range(self.settings.passes + self.settings.extra_passes))

    def _agree(self, key: str, *, before: int) -> bool:
        passes = [self.kept[key, index] for index in range(before) if (key, index) in self.kept]
        return passes_agree(at_common_speed(passes), self.settings)

    def report(self, todo: Mapping[str, Entry], key: str) -> None:
        """Tell the progress; an entry measured before will take as long again, others the mean."""
        if self.progress is None:
            return
        missing = [other for other in todo for index in range(self.settings.passes) if (other, index) not in self.kept]
        # What further passes will be needed is not known before the first ones are made.
        if key and not missing:
            missing = [key]
        left = None
        if self.took:
            typical = statistics.fmean(seconds for took in self.took.values() for seconds in took)
            left = sum(statistics.fmean(self.took.get(other) or [typical]) for other in missing)
        self.progress(len(self.kept), len(self.kept) + len(missing), left, key)

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
            patience = self._wait(patience, reason)
            if patience <= 0:
                raise DeviceBusyError(self._refusal("the reference", reason))

    def measure(self, entry: Entry, pass_index: int, book: Journal) -> None:
        """Try until an attempt is undisturbed.

        Raises:
            DeviceBusyError: None was.
        """
        patience = self.settings.patience_s
        attempts = self.settings.attempts
        if self.settings.force:
            # Nothing waits for quiet then, so many more attempts would only cost time.
            attempts = min(attempts, _FORCED_ATTEMPTS if self.quiet else _FORCED_ATTEMPTS_WHILE_BUSY)
        for attempt in range(1, attempts + 1):
            last = attempt == attempts
            record = self._attempt(entry, pass_index, keep=last and self.settings.force)
            book.append(asdict(record))
            self.remember(record)
            if record.kept:
                return
            if not self.settings.force and not last:
                patience = self._wait(patience, record.reason)
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
        reason = _busy_reason(guard, self.settings) or self._drift_reason(before, after) or self._change_reason()
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
            # Both readings below the usual one: the machine has become faster, and the usual is not up to date.
            usual_ms=min(self.usual_ms, max(before, after)),
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
        self.reference_run.discard()
        times: list[float] = []
        while len(times) < _REFERENCE_RUNS or sum(times) < _REFERENCE_SECONDS:
            times.append(self.reference_run.run())
        return min(times) * 1000

    def _drift_reason(self, before: float, after: float) -> str:
        """Why a measurement between two readings of the reference is disturbed; empty if it is not."""
        slowest, usual = max(before, after), self.usual_ms
        departure, change = slowest / usual - 1, slowest / min(before, after) - 1
        allowed = f"at most {self.settings.drift:.1%} is allowed"
        if departure > self.settings.drift:
            return f"the reference took {slowest:.3f} ms, {departure:+.1%} from its usual {usual:.3f} ms; {allowed}"
        if change > self.settings.drift:
            return f"the reference changed by {change:.1%} meanwhile, to {after:.3f} ms; {allowed}"
        return ""

    def _change_reason(self) -> str:
        """Why the machine is too different now from what it was; empty if it is not."""
        kept = [record.usual_ms for record in self.kept.values()]
        change = self.usual_ms / statistics.median(kept) - 1 if kept else 0.0
        if abs(change) <= self.settings.max_change:
            return ""
        return (
            f"the reference has become {change:+.1%} different from most of the campaign; "
            f"at most {self.settings.max_change:.1%} is allowed"
        )

    def _wait(self, patience: float, reason: str) -> float:
        """Wait until others are quiet and the reference is as usual, which a lasting change of speed moves.

        Returns:
            What is left of the patience.
        """
        waited = 0.0
        while patience > 0:
            with self.machine.guard() as guard:
                self.machine.sleep(min(_QUIET_SECONDS, patience))
            patience -= _QUIET_SECONDS
            waited += _QUIET_SECONDS
            if waited == _SILENT_SECONDS:
                _log.warning("other work disturbs the timings (%s); waiting, up to %.0f s more", reason, patience)
            if _busy_reason(guard, self.settings):
                continue
            # Before the first readings there is no usual.
            if not self.readings:
                return max(patience, 0.0)
            now = self._time_reference()
            usual = not self._drift_reason(now, now)
            self.readings.append(now)
            if usual:
                return max(patience, 0.0)
        return 0.0

    def _refusal(self, where: str, reason: str) -> str:
        busiest = self.machine.busiest()
        now = f" (busiest now: {busiest})" if busiest else ""
        expected = "stop other work, or keep disturbed timings with --force (maenas run: --keep-disturbed)"
        return f"{where}: {reason}{now}; expected a machine with nothing else to do: {expected}"


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
    except Exception as error:  # every runtime has its own errors, some of them plain RuntimeErrors
        raise ProfileError(f"{entry.key}: failed to run ({type(error).__name__}: {first_line(error)})") from error
