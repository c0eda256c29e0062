"""Header of a latency table, `table.json`: which fields it has, what each may hold, and reading it with checks."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from maenas.errors import LatencyTableError, reason_of
from maenas.latency.table_rows import PROVENANCES
from maenas.latency.uncertainty import FITTED_SIZES
from maenas.lowering.op import Op
from maenas.records import is_count, is_number

SCHEMA_VERSION = 1
LARGEST = 1e12
"""Beyond this a number in a header is a mistake, and sums would lose their digits."""
HEADER_FILE, ROWS_FILE, RAW_FILE = "table.json", "rows.csv", "raw.csv"
NETWORKS_FILE = "networks.csv"
"""Extra file of a measured table: whole networks, predicted and measured."""
NAME_FORM = "a plain name of letters, digits, '.', '_' and '-'"

RANGES: dict[str, Callable[[Op], Any]] = {
    "in_channels": lambda op: op.in_channels,
    "out_channels": lambda op: op.out_channels,
    "kernel_size": lambda op: op.kernel_size,
    "stride": lambda op: op.stride,
    "in_height": lambda op: op.in_size[0],
    "in_width": lambda op: op.in_size[1],
    "out_height": lambda op: op.out_size[0],
    "out_width": lambda op: op.out_size[1],
    "macs": lambda op: op.macs,
}
"""What a predictor's valid_range may limit; each is a pair [lowest, highest]."""

# A JSON value, its test and what the message says was expected.
_Check = tuple[Callable[[Any], bool], str]
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IGNORABLE = ("activation", "residual")


def is_name(value: Any) -> bool:  # noqa: ANN401
    """Whether `value` may be the name of a table."""
    return isinstance(value, str) and _PLAIN_NAME.fullmatch(value) is not None


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return is_number(value) and -LARGEST <= value <= LARGEST


def _is_range(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


def _list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _object_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


def _is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str)


def _is_date(value: Any) -> bool:  # noqa: ANN401
    if not (isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value)):
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_hash(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_extra_name(value: Any) -> bool:  # noqa: ANN401
    """Whether `value` may be the name of an extra file in a table folder."""
    own = (HEADER_FILE, ROWS_FILE, RAW_FILE)  # in any case: some file systems do not tell cases apart
    return is_name(value) and value.lower() not in own


def _is_files(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, dict) and all(map(is_extra_name, value)) and all(map(_is_hash, value.values()))


_TEXT: _Check = _is_text, "text"
_AMOUNT: _Check = lambda v: _is_number(v) and v >= 0, "a finite number, 0 or more"
_OBJECT: _Check = lambda v: isinstance(v, dict), "an object"
_HASH: _Check = _is_hash, "a sha256 in hex"

_HEADER: dict[str, _Check] = {
    "schema_version": (lambda v: is_count(v) and v == SCHEMA_VERSION, str(SCHEMA_VERSION)),
    "name": (is_name, NAME_FORM),
    "aliases": (_list_of(is_name), "a list of plain names"),
    "device": _TEXT,
    "device_detail": _OBJECT,
    "backend": _TEXT,
    "backend_version": (lambda v: v is None or _is_text(v), "text or null"),
    "precision": _TEXT,
    "batch": (is_count, "a whole number, 1 or more"),
    "threads": (lambda v: v is None or is_count(v), "a whole number, 1 or more, or null"),
    "image_size": (lambda v: v is None, "null"),
    "provenance": (lambda v: v in PROVENANCES, "one of " + ", ".join(PROVENANCES)),
    "method": _TEXT,
    "date": (_is_date, "a date YYYY-MM-DD"),
    "fixed_ms": _AMOUNT,
    "fixed_sigma_ms": _AMOUNT,
    "scale": (lambda v: _is_number(v) and 0 < v <= 1e6, "a number above 0, at most 1000000"),
    "uncertainty": _OBJECT,
    "uncertainty.relative": _AMOUNT,
    "uncertainty.how": _TEXT,
    "predictor": _OBJECT,
    "predictor.kind": _TEXT,
    "predictor.coefficients": (_object_of(_is_number), "an object of finite numbers"),
    "predictor.valid_range": (_object_of(_is_range), "an object of pairs [lowest, highest]"),
    "calibration": _OBJECT,
    "sources": (_list_of(_is_text), "a list of texts"),
    "license_note": _TEXT,
    "rows_sha256": _HASH,
}
_OPTIONAL: dict[str, _Check] = {
    "uncertainty.new_family": _AMOUNT,
    "uncertainty.unfitted": _AMOUNT,
    "uncertainty.fitted_kinds": (_list_of(_is_text), "a list of texts"),
    "uncertainty.fitted_range": (_object_of(_is_range), "an object of pairs [lowest, highest]"),
    "ignores": (_list_of(lambda v: v in _IGNORABLE), "a list of " + " or ".join(_IGNORABLE)),
    "notes": (_list_of(_is_text), "a list of texts"),
    "raw_sha256": _HASH,
    "files_sha256": (_is_files, "an object of plain file names, none of the table's own, each a sha256 in hex"),
    "host": _OBJECT,
    "fingerprint": (lambda v: _is_text(v) and re.fullmatch("[0-9a-f]{12}", v) is not None, "12 hex digits"),
    "spaces": (_list_of(_is_text), "a list of texts"),
    "campaign": _OBJECT,
    "campaign.seed": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "campaign.flags": (_list_of(_is_text), "a list of texts"),
    "reference_kernel_ms": (lambda v: _is_number(v) and v > 0, "a finite number above 0"),
}
MEASURED_ONLY = ("host", "fingerprint", "spaces", "campaign", "reference_kernel_ms")
"""Optional fields that say how a machine was profiled."""

_BY_OPERATOR = ("new_family", "unfitted", "fitted_kinds", "fitted_range")


def read_header(path: Path) -> dict[str, Any]:
    """Parsed and checked table.json.

    Raises:
        LatencyTableError: Names the file, the field, its value and what was expected.
    """
    try:
        header = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise LatencyTableError(f"{path}: not found; a table folder holds {HEADER_FILE} and {ROWS_FILE}") from None
    except OSError as error:
        raise LatencyTableError(f"{path}: cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise LatencyTableError(f"{path}: is not JSON: {reason_of(error)}") from error
    if not isinstance(header, dict):
        raise LatencyTableError(f"{path}: holds {type(header).__name__}; expected an object")
    allowed = [name for name in (*_HEADER, *_OPTIONAL) if "." not in name]
    for name, (test, expected) in (_HEADER | _OPTIONAL).items():
        value: Any = header
        for part in name.split("."):
            value = value.get(part, _HEADER) if isinstance(value, dict) else _HEADER
        if value is _HEADER:
            if name in _HEADER:
                raise LatencyTableError(f"{path}: {name} is missing; expected {expected}")
        elif not test(value):
            raise LatencyTableError(f"{path}: {name} is {json.dumps(value)[:80]}; expected {expected}")
    for name in header:
        if name not in allowed:
            raise LatencyTableError(f"{path}: field {name!r} is unknown{nearest(name, allowed)}")
    for name in MEASURED_ONLY:
        if name in header and header["provenance"] != "measured":
            raise LatencyTableError(
                f"{path}: field {name!r} belongs to measured tables; provenance is {header['provenance']!r}"
            )
    _check_predictor(path, header)
    _check_uncertainty(path, header["uncertainty"])
    return header


def _check_uncertainty(path: Path, uncertainty: Mapping[str, Any]) -> None:
    """What `maenas.latency.uncertainty.relative_sigma` reads comes whole or not at all."""
    given = [name for name in _BY_OPERATOR if name in uncertainty]
    missing = [name for name in _BY_OPERATOR if name not in uncertainty]
    if given and missing:
        raise LatencyTableError(
            f"{path}: uncertainty has {given[0]} but lacks {', '.join(missing)}; expected all or none"
        )
    lacking = [name for name in FITTED_SIZES if given and name not in uncertainty["fitted_range"]]
    if lacking:
        raise LatencyTableError(f"{path}: uncertainty.fitted_range lacks {', '.join(lacking)}")


def _check_predictor(path: Path, header: Mapping[str, Any]) -> None:
    kind, limits = header["predictor"]["kind"], header["predictor"]["valid_range"]
    if kind not in ("rows", "tinynas"):
        from maenas.latency.calibrated import COEFFICIENTS, PREDICTORS

        if kind not in PREDICTORS:
            known = ", ".join(["rows", "tinynas", *PREDICTORS])
            raise LatencyTableError(f"{path}: predictor.kind is {kind!r}; expected one of {known}")
        for name in COEFFICIENTS[kind]:
            value = header["predictor"]["coefficients"].get(name)
            if value is None or value <= 0:
                raise LatencyTableError(
                    f"{path}: predictor.coefficients.{name} is {json.dumps(value)}; expected a number above 0"
                )
    for name in limits:
        if name not in RANGES:
            known = ", ".join(RANGES)
            raise LatencyTableError(f"{path}: predictor.valid_range names {name!r}; expected some of {known}")
    if (kind == "tinynas") != ("raw_sha256" in header):
        raise LatencyTableError(f"{path}: raw_sha256 and the predictor kind tinynas belong together; kind is {kind!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the known name most like `name`, or nothing when none is."""
    close = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
