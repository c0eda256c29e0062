"""Going through the steps of a journey: what is done stays, what was begun goes on, what has changed is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from maenas.files import make_folder
from maenas.journey import Journey, JourneyError, Step, plan_steps
from maenas.journey_process import Ended, Output, run_child
from maenas.journey_record import RunRecord, begun, ended, lived, standing, write_record

TRAINING_STATE = "state.safetensors"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a journey came.

    Attributes:
        record: What is done.
        failed: The step that did not end well, or None.
        end: How that one ended.
    """

    record: RunRecord
    failed: Step | None = None
    end: Ended | None = None


def run_steps(
    journey: Journey,
    record: RunRecord,
    *,
    lock: int | None,
    force: bool,
    quiet: bool,
    tell: Callable[[Step, str], None],
) -> Outcome:
    """Do what is left of a journey.

    Args:
        journey: What is asked for.
        record: What is done; run.json follows every change of it.
        lock: Descriptor of the folder's lock, for the children.
        force: Make anew what has changed instead of refusing.
        quiet: Keep standard output free.
        tell: Called with each step and what is done about it: `done`, `begin` or `continue`.

    Raises:
        JourneyError: What a finished step read or wrote was changed, and `force` is off.
        OutputError: A file cannot be written.
    """
    write_record(record, journey.out)
    anew = False  # whether a step was done in this call, so that those after it may have changed
    for number in range(len(plan_steps(journey))):
        # Planned again, because a command may name what the step before it found.
        step = plan_steps(journey)[number]
        state = standing(step, journey, record)
        if state.done:
            tell(step, "done")
            continue
        if state.stale and not (force or anew):
            raise JourneyError(
                f"{journey.out}: step {step.name} does not count any more: {state.stale}; "
                "expected another --out, or --force, which makes it anew"
            )
        record, again = begun(step, journey, record)
        write_record(record, journey.out)
        if not (again and step.last is not None and all(path.exists() for path in step.outputs)):
            words = _prepared(step, again=again)
            tell(step, "continue" if again else "begin")
            before = record.running.seconds if record.running is not None else 0.0

            def tick(seconds: float, before: float = before) -> None:
                nonlocal record
                record = lived(record, before + seconds)
                write_record(record, journey.out)

            target = (Output.KEEP if step.stdout else Output.SHOW) if step.shows else Output.DROP
            if quiet and target is Output.SHOW:
                target = Output.BESIDE
            end = run_child(words, output=target, file=step.stdout, lock=lock, tick=tick)
            tick(end.seconds)
            if end.code != 0 or end.stopped_by is not None:
                return Outcome(record, step, end)
        record = ended(step, journey, record, now=datetime.now(UTC).isoformat(timespec="seconds"))
        write_record(record, journey.out)
        anew = True
    return Outcome(record)


def _prepared(step: Step, *, again: bool) -> tuple[str, ...]:
    """The words to run a step with, its folder made ready: emptied unless the command goes on from what is in it."""
    if again and step.name == "train" and (step.folder / TRAINING_STATE).exists():
        return (*step.command, "--resume")
    if not (again and step.continues and step.name != "train") and step.folder.is_dir():
        shutil.rmtree(step.folder)
    make_folder(step.folder)
    return step.command
