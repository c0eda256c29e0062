"""The journal of a campaign: every finished attempt is a line, so an interruption loses only what was in progress."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from maenas.errors import OutputError, ProfileError
from maenas.profiling.backends import LayerTime
from maenas.profiling.measurement import Record, Settings

SCHEMA_VERSION = 2
_FREE_TO_CHANGE = ("attempts", "patience_s", "force")
"""Settings that change how long one waits, not what is measured; a journal may be continued with others."""


@dataclass
class Journal:
    """An open journal: what it held, and where the next line goes.

    Attributes:
        references: First times of the reference; empty before they were taken.
        records: All attempts.
    """

    path: Path
    descriptor: int
    references: list[float]
    records: list[Record]

    def append(self, content: Mapping[str, Any]) -> None:
        """Add a line and wait until the disk has it.

        Raises:
            OutputError: It cannot be written.
        """
        line = json.dumps(content, separators=(",", ":")) + "\n"
        try:
            # One write: an interruption from the keyboard cannot come between two halves of a line.
            os.write(self.descriptor, line.encode("utf-8"))
            os.fsync(self.descriptor)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def open_journal(path: Path, header: Mapping[str, Any]) -> Iterator[Journal]:
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
        journal = Journal(path, descriptor, [], [])
        lines = [_line(path, number, line) for number, line in enumerate(whole.splitlines(), start=1)]
        if lines:
            _compare(path, lines[0], header)
        else:
            journal.append(header)
        for number, line in enumerate(lines[1:], start=2):
            if "references_ms" in line:
                journal.references = _references(path, number, line)
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


def journal_header(
    settings: Settings, conditions: Mapping[str, Any], keys: list[str], reference: str
) -> dict[str, Any]:
    """The first line of a journal: all that must be equal for it to be continued."""
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
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: line {number} is damaged; expected a JSON object, or a path of no file")
    return content


def _references(path: Path, number: int, content: dict[str, Any]) -> list[float]:
    try:
        return [float(ms) for ms in content["references_ms"]]
    except (TypeError, ValueError, OverflowError) as error:
        raise ProfileError(f"{path}: line {number} holds no times; expected a path of no file") from error


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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
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
