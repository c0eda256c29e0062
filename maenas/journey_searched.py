"""A finished search as the start of a journey: its network, and the proof that comes with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maenas.errors import reason_of
from maenas.journey import JourneyError
from maenas.records import is_count, is_number, shown
from maenas.results import SEARCH_FILE, STRUCTURE_FILE
from maenas.structure import Structure, load_structure

Check = Callable[[object], bool]


def read_searched(folder: Path) -> tuple[Structure, dict[str, Any]]:
    """The network and the record of a folder that `maenas search` wrote.

    The proof in it is not made again: it is as good as the file.

    Raises:
        MaenasError: The folder holds no search, or its files do not belong together.
    """
    path = folder / SEARCH_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JourneyError(f"{path}: cannot be read ({reason_of(error)}); expected what maenas search wrote") from None
    structure = load_structure(folder / STRUCTURE_FILE)
    _check_record(record, path)
    if record["digest"] != structure.digest:
        raise JourneyError(
            f"{path}: digest is {shown(record['digest'])}, and {STRUCTURE_FILE} beside it has {structure.digest}; "
            "expected the two files of one search"
        )
    return structure, record


def _check_record(record: object, path: Path) -> None:
    """Make sure that the report finds what it tells of a search."""
    _require(record, _FIELDS, str(path), "")
    assert isinstance(record, dict)
    _require(record["request"], _REQUEST, str(path), "request.")
    if record["request"]["scope"] != "detector" or "latency_ms" not in record["request"]["budgets"]:
        raise JourneyError(
            f"{path}: the search bounds {record['request']['scope']} by {', '.join(record['request']['budgets'])}; "
            "expected the latency of the whole detector, or --structure with its structure.json, without the proof"
        )
    for metric, limit in record["request"]["budgets"].items():
        _require({metric: limit}, {metric: (is_number, "a number")}, str(path), "request.budgets.")
    if record["certificate"] is not None:
        _require(record["certificate"], _CERTIFICATE, str(path), "certificate.")
    if record.get("evolution") is not None:
        _require(record["evolution"], {"candidates": _NUMBER}, str(path), "evolution.")
    for place, near in enumerate(record["shortlist"]):
        _require(near, _NEAR, str(path), f"shortlist[{place}].")
    if record["measured"] is not None:
        _require(record["measured"], _MEASURED, str(path), "measured.")
        for place, timed in enumerate(record["measured"]["timed"]):
            _require(timed, _TIMED, str(path), f"measured.timed[{place}].")


def _require(content: object, fields: Mapping[str, tuple[Check, str]], source: str, prefix: str) -> None:
    if not isinstance(content, dict):
        place = prefix.removesuffix(".") or "content"
        raise JourneyError(f"{source}: {place} is {shown(content)}; expected an object")
    for name, (check, expected) in fields.items():
        if name not in content:
            raise JourneyError(f"{source}: {prefix}{name} is missing; expected what maenas search wrote")
        if not check(content[name]):
            raise JourneyError(f"{source}: {prefix}{name} is {shown(content[name])}; expected {expected}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_size(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value))


_TEXT, _LIST, _NUMBER = (_is_text, "a text"), (_is_list, "a list"), (is_number, "a number")
_MAYBE_NUMBER = (_or_null(is_number), "a number or null")
_MAYBE_OBJECT = (_or_null(_is_object), "an object or null")

_FIELDS = {
    "digest": _TEXT, "score": _NUMBER, "objective": _NUMBER, "latency_ms": _MAYBE_NUMBER,
    "request": (_is_object, "an object"), "certificate": _MAYBE_OBJECT, "shortlist": _LIST, "measured": _MAYBE_OBJECT,
}  # fmt: skip
_REQUEST = {
    "space": _TEXT, "variant": _TEXT, "score": _TEXT, "scope": _TEXT, "image_size": (_is_size, "[height, width]"),
    "budgets": (_is_object, "an object"), "device": (_or_null(_is_text), "a text or null"),
}  # fmt: skip
_CERTIFICATE = {"upper_bound": _NUMBER, "gap": _NUMBER, "labels": _NUMBER, "pruned": _NUMBER}
_NEAR = {
    "digest": _TEXT, "score": _NUMBER, "latency_ms": _MAYBE_NUMBER, "params": _NUMBER, "flops": _NUMBER,
    "layers": _NUMBER,
}  # fmt: skip
_MEASURED = {
    "finalist": _TEXT, "rounds": _NUMBER, "bias": _NUMBER, "budget_ms": _NUMBER, "searched_ms": _NUMBER, "timed": _LIST,
}  # fmt: skip
_TIMED = {"digest": _TEXT, "predicted_ms": _NUMBER, "measured_ms": _NUMBER}
