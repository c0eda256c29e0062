"""`run.json` of a journey: what was asked, which steps are done, with the identities of what they read and wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from maenas import __version__
from maenas.errors import OutputError, reason_of
from maenas.files import make_folder, sha256_of, write_text_atomically
from maenas.journey import Journey, JourneyError, Step
from maenas.records import build, require

RUN_FILE = "run.json"
SCHEMA_VERSION = 1
OUT, DATA = "{out}", "{data}"
"""Stand in kept commands for the run's folder and the data set, which may move."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A name and what it stood for: an option and its value, or a file and its SHA-256."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A step that was begun.

    Attributes:
        name: Of the step.
        key: Its command, with OUT and DATA for folders that may move.
        inputs: Identities of what it reads.
        seconds: Wall time of all attempts so far; of one that was killed, up to the last sign of life.
        attempts: How often it was begun.
    """

    name: str
    key: tuple[str, ...]
    inputs: tuple[Entry, ...]
    seconds: float = 0.0
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """A step that ended well.

    Attributes:
        name: Of the step.
        command: As a user would type it.
        key: As in `Attempt`.
        inputs: Identities of what it read.
        outputs: Identities of what it wrote.
        seconds: Wall time of all attempts.
        attempts: How often it was begun.
        maenas_version: That ran it.
        ended: Date and time in ISO form, UTC.
    """

    name: str
    command: tuple[str, ...]
    key: tuple[str, ...]
    inputs: tuple[Entry, ...]
    outputs: tuple[Entry, ...]
    seconds: float
    attempts: int
    maenas_version: str
    ended: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The file.

    Attributes:
        asked: Options that the user gave, and the identities of the files that they name.
        table: Latency table that was chosen, so that another one of this machine changes nothing.
        profiled: Whether the run makes that table.
        steps: Finished ones, in their order.
        running: The one that was begun last and has not ended well.
    """

    schema_version: int
    maenas_version: str
    asked: tuple[Entry, ...]
    table: str
    profiled: bool
    steps: tuple[Finished, ...] = ()
    running: Attempt | None = None

    def __post_init__(self) -> None:
        require(self.schema_version == SCHEMA_VERSION, "schema_version", self.schema_version, f"{SCHEMA_VERSION}")

    def finished(self, name: str) -> Finished | None:
        """The record of a finished step."""
        return next((step for step in self.steps if step.name == name), None)


def new_record(asked: Sequence[Entry], *, table: str, profiled: bool) -> RunRecord:
    """The record of a journey before its first step."""
    return RunRecord(SCHEMA_VERSION, __version__, tuple(asked), table, profiled)


def read_record(folder: Path) -> RunRecord | None:
    """The record in a run's folder; None where there is none.

    Raises:
        JourneyError: The folder holds something else, or the file is malformed.
    """
    path = folder / RUN_FILE
    if not path.exists():
        if folder.is_dir() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise JourneyError(f"{folder}: holds files, but no {RUN_FILE} of a run; expected a new folder")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JourneyError(
            f"{path}: cannot be read ({reason_of(error)}); expected the record of a run".replace("\n", " ")
        ) from error
    return build(RunRecord, content, source=str(path), error=JourneyError)


def write_record(record: RunRecord, folder: Path) -> None:
    """Write run.json; the former one stays until the new one is whole."""
    make_folder(folder)
    write_text_atomically(folder / RUN_FILE, json.dumps(asdict(record), indent=1) + "\n")


def check_same_question(record: RunRecord, asked: Sequence[Entry], folder: Path) -> None:
    """Refuse to go on with a run that was asked something else.

    Raises:
        JourneyError: Naming everything that differs.
    """
    before, now = ({entry.name: entry.value for entry in entries} for entries in (record.asked, asked))
    changes = [
        f"{name} {_was(before.get(name))}, {_is(now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise JourneyError(
            f"{folder}: holds a run of another question: {'; '.join(changes)}; expected another --out, or --force, "
            "which makes anew what depends on it"
        )


def _was(value: str | None) -> str:
    return "was not given" if value is None else f"was {value}" if value else "was given"


def _is(value: str | None) -> str:
    return "is not now" if value is None else f"is {value}" if value else "is given"


def step_key(step: Step, journey: Journey) -> tuple[str, ...]:
    """A step's command without the places that may move, and without leave to keep disturbed timings."""
    return tuple(_placeless(word, journey) for word in step.command if word != "--force")


def _placeless(word: str, journey: Journey) -> str:
    out = str(journey.out)
    if word == journey.data:
        return DATA
    return OUT + word[len(out) :] if word == out or word.startswith(f"{out}/") else word


def step_inputs(step: Step, journey: Journey) -> tuple[Entry, ...]:
    """Identities of what a step reads.

    Raises:
        JourneyError: A file is missing or cannot be read.
    """
    return identities(step.inputs, journey) + tuple(Entry(name, value) for name, value in step.identities.items())


def identities(paths: Iterable[Path], journey: Journey) -> tuple[Entry, ...]:
    """Names and SHA-256 of files; those in the run's folder by their place in it.

    Raises:
        JourneyError: One is missing or cannot be read.
    """
    return tuple(Entry(_placeless(str(path), journey), file_sha256(path)) for path in paths)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        JourneyError: It is missing or cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise JourneyError(f"{path}: cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a step is.

    Attributes:
        done: Whether nothing is left to do.
        stale: Why what was done does not count any more; empty where it was never done, or its files are gone.
    """

    done: bool
    stale: str = ""


def standing(step: Step, journey: Journey, record: RunRecord) -> Standing:
    """Whether a step is done, from its record and the files."""
    finished = record.finished(step.name)
    if finished is None or not all(path.exists() for path in step.outputs):
        return Standing(done=False)
    if finished.key != step_key(step, journey):
        return Standing(done=False, stale=f"its command was: {' '.join(('maenas', *finished.command))}")
    if not all(path.exists() for path in step.inputs):
        return Standing(done=False, stale="what it reads is gone")
    changed = _changed(finished.inputs, step_inputs(step, journey))
    if changed:
        return Standing(done=False, stale=f"what it reads has changed: {', '.join(changed)}")
    changed = _changed(finished.outputs, identities(step.outputs, journey))
    if changed:
        return Standing(done=False, stale=f"what it wrote was changed since: {', '.join(changed)}")
    return Standing(done=True)


def _changed(before: Iterable[Entry], now: Iterable[Entry]) -> list[str]:
    old, new = ({entry.name: entry.value for entry in entries} for entries in (before, now))
    return [name.replace(f"{OUT}/", "") for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def begun(step: Step, journey: Journey, record: RunRecord) -> tuple[RunRecord, bool]:
    """The record with a step begun, and whether that goes on with an attempt of the same step before."""
    key, inputs = step_key(step, journey), step_inputs(step, journey)
    last = record.running
    again = last is not None and (last.name, last.key, last.inputs) == (step.name, key, inputs)
    attempt = Attempt(step.name, key, inputs)
    if again and last is not None:
        attempt = replace(last, attempts=last.attempts + 1)
    kept = tuple(finished for finished in record.steps if finished.name != step.name)
    return replace(record, steps=kept, running=attempt), again


def ended(step: Step, journey: Journey, record: RunRecord, *, now: str) -> RunRecord:
    """The record with the running step finished.

    Raises:
        OutputError: It did not write what it should have.
    """
    running = record.running
    assert running is not None and running.name == step.name
    missing = [str(path) for path in step.outputs if not path.exists()]
    if missing:
        raise OutputError(f"step {step.name} ended well, but did not write {', '.join(missing)}")
    finished = Finished(
        name=step.name,
        command=step.command,
        key=running.key,
        inputs=running.inputs,
        outputs=identities(step.outputs, journey),
        seconds=round(running.seconds, 3),
        attempts=running.attempts,
        maenas_version=__version__,
        ended=now,
    )
    return replace(record, steps=(*record.steps, finished), running=None)


def lived(record: RunRecord, seconds: float) -> RunRecord:
    """The record with wall time of the running step."""
    assert record.running is not None
    return replace(record, running=replace(record.running, seconds=seconds))


def as_mapping(entries: Iterable[Entry]) -> Mapping[str, str]:
    """Names to values."""
    return {entry.name: entry.value for entry in entries}
