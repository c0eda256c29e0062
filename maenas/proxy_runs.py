"""Many training runs as child processes: one per core, each resumed where it was stopped.

If one fails the others go on. Whoever kills the parent leaves children that finish the run they are at; the next call
waits for them.
"""

from __future__ import annotations

import csv
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maenas.files import make_folder

FINISHED = ("completed", "patience")
STATE_FILE = "state.safetensors"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.csv"
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One call of `maenas train`.

    Attributes:
        name: For messages.
        folder: Of the run.
        log: Receives what it prints.
        arguments: After the verb, without `--out` and how to begin.
    """

    name: str
    folder: Path
    log: Path
    arguments: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return result_of(self.folder) is not None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run reached; APs between 0 and 1, of its last evaluation."""

    ap: float
    ap50: float
    ap75: float
    epochs: int
    iterations: int
    seconds: float


@dataclass(slots=True)
class _Campaign:
    """What the worker threads share."""

    waiting: queue.SimpleQueue[TrainingRun]
    is_locked: Callable[[Path], bool]
    note: Callable[[TrainingRun, str | None], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)


def result_of(folder: Path) -> RunResult | None:
    """The figures of a run that came to its end; None of any other folder."""
    try:
        content: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if content["ended_by"] not in FINISHED:
            return None
        with (folder / METRICS_FILE).open(newline="", encoding="utf-8") as stream:
            rated = [row for row in csv.DictReader(stream) if row["ap"]]
        ap, ap50, ap75 = (float(rated[-1][name]) for name in ("ap", "ap50", "ap75"))
        return RunResult(ap, ap50, ap75, int(content["epochs"]), int(content["iterations"]), float(content["seconds"]))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def run_all(
    runs: Sequence[TrainingRun],
    *,
    is_locked: Callable[[Path], bool],
    cores: Sequence[int] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, str]:
    """Make all runs that are not finished yet.

    An interruption stops the children after the step under way, saved, and waits for them. A child that outlived a
    killed parent is waited for.

    Args:
        runs: In the order in which they are begun.
        is_locked: Whether another process trains in a folder.
        cores: A process at a time is pinned to each; without any, one process runs anywhere.
        progress: Called with a line for each run that ends.

    Returns:
        By name, why a run has no result; empty if all are finished.
    """
    todo = [run for run in runs if not run.finished]
    campaign = _Campaign(queue.SimpleQueue(), is_locked, _reporter(len(runs), len(runs) - len(todo), progress))
    for run in todo:
        campaign.waiting.put(run)
    places: list[int | None] = [*cores] or [None]
    threads = [threading.Thread(target=_work, args=(campaign, core), daemon=True) for core in places[: len(todo)]]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(_POLL_SECONDS / 5)
    except BaseException:  # Ctrl-C most often: no child may outlive this process
        campaign.stopped.set()
        with campaign.guard:
            for child in campaign.children:
                child.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        raise
    return campaign.failures


def _reporter(total: int, done: int, progress: Callable[[str], None]) -> Callable[[TrainingRun, str | None], None]:
    began, fresh, guard = time.monotonic(), 0, threading.Lock()

    def note(run: TrainingRun, failure: str | None) -> None:
        nonlocal fresh
        with guard:
            fresh += 1
            left = (time.monotonic() - began) / fresh * (total - done - fresh) / 60
            result = result_of(run.folder)
            said = (
                f"failed: {failure}" if result is None else f"AP {100 * result.ap:.1f} in {result.seconds / 60:.1f} min"
            )
            progress(f"[{done + fresh}/{total}] {run.name}: {said}; about {left:.0f} min left")

    return note


def _work(campaign: _Campaign, core: int | None) -> None:
    """Runs from the queue, one after the other, until it is empty; children inherit this thread's core."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    while not campaign.stopped.is_set():
        try:
            run = campaign.waiting.get_nowait()
        except queue.Empty:
            return
        try:
            failure = _make(campaign, run, pinned=core is not None)
        except OSError as error:
            failure = str(error)
        if campaign.stopped.is_set():
            return
        if failure is not None:
            campaign.failures[run.name] = failure
        campaign.note(run, failure)


def _make(campaign: _Campaign, run: TrainingRun, *, pinned: bool) -> str | None:
    """One run to its end; None, or why it did not get there."""
    while run.folder.exists() and campaign.is_locked(run.folder) and not campaign.stopped.is_set():
        time.sleep(_POLL_SECONDS)
    if run.finished or campaign.stopped.is_set():
        return None
    make_folder(run.folder)
    make_folder(run.log.parent)
    begin = "--resume" if (run.folder / STATE_FILE).exists() else "--force"
    command = [sys.executable, "-m", "maenas", "train", *run.arguments, "--out", str(run.folder), begin]
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if pinned else {})}
    with run.log.open("ab") as log:
        # A session of its own: Ctrl-C reaches the parent only, which then stops it once, gently.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        with campaign.guard:
            campaign.children.add(child)
            if campaign.stopped.is_set():
                child.send_signal(signal.SIGTERM)
        code = child.wait()
        with campaign.guard:
            campaign.children.discard(child)
    if run.finished:
        return None
    lines = run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"maenas train ended with {code}: {lines[-1] if lines else 'it said nothing'} ({run.log})"
