"""An artifact on disk: its card beside its files, and whether they are still what was exported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .artifact import FileRecord, ModelCard
from .errors import ExportError


def card_path(path: Path) -> Path:
    """Where the card of an exported file lies: beside it, with the suffix .json."""
    return path.with_suffix(".json")


def read_card(path: str | Path) -> ModelCard:
    """The card of an artifact; its files are not looked at.

    Args:
        path: An .onnx, .xml or .engine file, or a card itself (.json).

    Raises:
        ExportError: No such file, no card beside it, or a malformed one.
        StructureError: The card's structure does not describe a detector.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _read_json(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an exported artifact")
    beside = card_path(path)
    if not beside.is_file():
        raise ExportError(
            f"{path}: has no {beside.name} beside it, which says what it is and how to use it; "
            "expected a folder that maenas export wrote"
        )
    return _read_json(beside)


def check_files(path: Path, card: ModelCard) -> None:
    """Refuse an artifact whose files are not those that were checked against torch when they were written.

    Args:
        path: The artifact's main file; the others lie beside it.
        card: Of the artifact.

    Raises:
        ExportError: A file is missing, changed, or not the one that the card is about.
    """
    names = [file.name for file in card.files]
    if path.name not in names:
        raise ExportError(
            f"{card_path(path)}: files lists {', '.join(names) or 'none'}; expected {path.name} among them: "
            "artifacts keep the names they were written with"
        )
    for file in card.files:
        beside = path.with_name(file.name)
        try:
            found = record_file(beside)
        except OSError as error:
            raise ExportError(f"{beside}: cannot be read ({error.strerror or error})") from error
        if found != file:
            raise ExportError(
                f"{beside}: sha256 is {found.sha256[:12]}... ({found.size_bytes} bytes); expected "
                f"{file.sha256[:12]}... ({file.size_bytes} bytes), as {card_path(path).name} says: "
                "changed or cut short after the export"
            )


def record_file(path: Path) -> FileRecord:
    """Name, hash and size of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(path.name, digest, stream.tell())


def _read_json(path: Path) -> ModelCard:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return ModelCard.from_dict(_decoded(text, str(path)), source=str(path))


def _decoded(text: str, source: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{source}: the card is not valid JSON ({error})") from error
