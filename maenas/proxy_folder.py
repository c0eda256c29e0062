"""The folder of `maenas eval-proxy`: which networks are compared, under which question, and what is known so far."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.errors import OutputError, reason_of
from maenas.files import make_folder, write_text_atomically
from maenas.structure import Structure, load_structure, save_structure

MEMBER_COLUMNS = ("group", "structure", "name", "predicted_ms", "measured_ms")


@dataclass(frozen=True, slots=True)
class Member:
    """A network that is compared.

    Attributes:
        group: `band`, `wide` or `given`: correlations are taken within a group.
        structure: The detector.
        predicted_ms: Latency by the table; None without one.
        measured_ms: Latency on this machine; None where it was not measured.
    """

    group: str
    structure: Structure
    predicted_ms: float | None = None
    measured_ms: float | None = None

    @property
    def digest(self) -> str:
        """Of the structure."""
        return self.structure.digest


@dataclass(frozen=True, slots=True)
class ProxyFolder:
    """Paths in the folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def question(self) -> Path:
        """What was asked; a resumed campaign must ask the same."""
        return self.path / "question.json"

    @property
    def members(self) -> Path:
        """The networks, a line each."""
        return self.path / "members.csv"

    @property
    def forward_scores(self) -> Path:
        """Proxies that run the network, as far as they were computed."""
        return self.path / "forward_scores.json"

    @property
    def points(self) -> Path:
        """A line per network and seed."""
        return self.path / "points.csv"

    @property
    def report(self) -> Path:
        """The figures; written last."""
        return self.path / "proxy.json"

    @property
    def measured(self) -> Path:
        """Journals of the latencies by which networks were drawn."""
        return self.path / "measured"

    def structure(self, digest: str) -> Path:
        """A network's file."""
        return self.path / "structures" / f"{digest}.json"

    def run(self, digest: str, seed: int) -> Path:
        """Folder of a training run."""
        return self.path / "runs" / f"{digest}-seed{seed}"

    def log(self, digest: str, seed: int) -> Path:
        """What a training run said."""
        return self.path / "logs" / f"{digest}-seed{seed}.txt"

    def plot(self, group: str, suffix: str) -> Path:
        """A group's picture."""
        return self.path / f"{group}.{suffix}"

    def check(self, question: Mapping[str, Any]) -> None:
        """Make sure that the folder, if it holds a campaign, belongs to the same question.

        Raises:
            OutputError: It belongs to another one; the first field that differs is named.
        """
        if not self.question.exists():
            return
        held = _read_json(self.question)
        for name in dict.fromkeys([*held, *question]):
            if held.get(name) != question.get(name):
                raise OutputError(
                    f"{self.path}: holds a campaign with other {name.replace('_', ' ')} ({held.get(name)!r} -> "
                    f"{question.get(name)!r}); expected another --out"
                )

    def begin(self, question: Mapping[str, Any], members: Sequence[Member]) -> None:
        """Write the networks, their list, and last the question: a folder that has it is ready for training.

        Raises:
            OutputError: Something cannot be written.
        """
        make_folder(self.path / "structures")
        for member in members:
            save_structure(member.structure, self.structure(member.digest))
        rows = [
            [each.group, each.digest, each.structure.name, _number(each.predicted_ms), _number(each.measured_ms)]
            for each in members
        ]
        write_text_atomically(self.members, csv_text(MEMBER_COLUMNS, rows))
        write_text_atomically(self.question, json.dumps(question, indent=1) + "\n")

    def drop_exports(self) -> None:
        """Remove the networks that were exported to be timed, several MB each; the journals stay."""
        for path in self.measured.glob("*.onnx"):
            path.unlink(missing_ok=True)

    def drop_pictures(self, groups: Collection[str]) -> None:
        """Remove pictures of an earlier report of groups that are in no new one."""
        for name in groups:
            for suffix in ("png", "svg"):
                self.plot(name, suffix).unlink(missing_ok=True)

    def load_members(self) -> list[Member] | None:
        """The networks that an earlier call began with; None if none did.

        Raises:
            OutputError: A structure is not the one in the list.
        """
        if not self.question.exists():
            return None
        try:
            return self._members()
        except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
            raise OutputError(f"{self.members}: cannot be read ({reason_of(error)}); expected another --out") from error

    def _members(self) -> list[Member]:
        members = []
        with self.members.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                structure = load_structure(self.structure(row["structure"]))
                if structure.digest != row["structure"]:
                    raise OutputError(
                        f"{self.structure(row['structure'])}: holds structure {structure.digest}; expected the one "
                        "that the campaign began with"
                    )
                predicted, measured = (float(row[k]) if row[k] else None for k in ("predicted_ms", "measured_ms"))
                members.append(Member(row["group"], structure, predicted, measured))
        if not members:
            raise ValueError("no network is listed")
        return members

    def remembered(self, name: str, function: Callable[[Structure], float]) -> Callable[[Structure], float]:
        """A slow score that is computed once for each network of the folder."""

        def value(structure: Structure) -> float:
            known = _read_json(self.forward_scores) if self.forward_scores.exists() else {}
            of_name = known.setdefault(name, {})
            try:
                if structure.digest in of_name:
                    return float(of_name[structure.digest])
            except (TypeError, ValueError):
                raise OutputError(f"{self.forward_scores}: {name} is damaged; remove the file") from None
            of_name[structure.digest] = repr(float(function(structure)))
            write_text_atomically(self.forward_scores, json.dumps(known, indent=1) + "\n")
            return float(of_name[structure.digest])

        return value


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A CSV file's content."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read as JSON ({reason_of(error)})") from error
    if not isinstance(content, dict):
        raise OutputError(f"{path}: is no JSON object; expected a file of maenas eval-proxy")
    return content
