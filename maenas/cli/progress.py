"""How far a long step is: bars on standard error where that is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Protocol, Self

LINE_SECONDS = 30.0
"""Between two lines: a log of an hour stays readable, and nobody takes the step for dead."""


class ProgressBars(Protocol):
    """What the verbs use of a progress display."""

    def __enter__(self) -> Self:
        """Show it."""

    def __exit__(self, *failure: object) -> None:
        """Remove it."""

    def add(self, description: str, total: float | None = None) -> int:
        """Begin a task; gives its number."""

    def show(
        self, task: int, done: float, total: float | None = None, *, description: str | None = None, left: str = ""
    ) -> None:
        """Say how far a task is.

        Args:
            task: What `add` gave.
            done: Units that are done.
            total: Units in all, if it has changed.
            description: Another text.
            left: How long it will take, where the step itself knows better than the speed so far.
        """


def progress_bars(*, fraction: bool = False, left: bool = False) -> ProgressBars:
    """A display on standard error.

    Args:
        fraction: Tasks count from 0 to 1 and are shown in percent; else in units.
        left: The time left comes with each `show`; else it follows from the speed so far.
    """
    return _Bars(fraction=fraction, left=left) if sys.stderr.isatty() else _Lines(fraction=fraction)


class _Bars:
    def __init__(self, *, fraction: bool, left: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        done = TaskProgressColumn() if fraction else MofNCompleteColumn()
        time_left = TextColumn("{task.fields[left]}") if left else TimeRemainingColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), done, time_left)
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._bars.stop()

    def add(self, description: str, total: float | None = None) -> int:
        return self._bars.add_task(description, total=total, left="")

    def show(
        self, task: int, done: float, total: float | None = None, *, description: str | None = None, left: str = ""
    ) -> None:
        from rich.progress import TaskID

        self._bars.update(TaskID(task), completed=done, total=total, description=description, left=left)


@dataclass(slots=True)
class _Task:
    description: str
    total: float | None


class _Lines:
    def __init__(self, *, fraction: bool) -> None:
        self._fraction = fraction
        self._tasks: list[_Task] = []
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def add(self, description: str, total: float | None = None) -> int:
        self._tasks.append(_Task(description, total))
        return len(self._tasks) - 1

    def show(
        self, task: int, done: float, total: float | None = None, *, description: str | None = None, left: str = ""
    ) -> None:
        known = self._tasks[task]
        known.description = description or known.description
        known.total = known.total if total is None else total
        now = time.monotonic()
        if now - self._told < LINE_SECONDS:
            return
        self._told = now
        of_all = "" if known.total is None else f"/{known.total:g}"
        how_far = f"{100 * done:.0f} %" if self._fraction else f"{done:g}{of_all}"
        print(f"maenas: {known.description} {how_far}{f', {left}' if left else ''}", file=sys.stderr, flush=True)
