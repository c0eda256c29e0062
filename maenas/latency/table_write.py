"""Writing a latency table folder: in one step, and never one that would not load again."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from maenas.errors import LatencyTableError, OutputError
from maenas.files import check_place
from maenas.latency.table import load_folder
from maenas.latency.table_header import (
    HEADER_FILE,
    NAME_FORM,
    RAW_FILE,
    ROWS_FILE,
    SCHEMA_VERSION,
    is_extra_name,
    is_name,
)
from maenas.latency.table_local import LOCAL
from maenas.latency.table_rows import TableRow, rows_to_csv


def check_target(folder: Path, *, force: bool) -> None:
    """Raise what `write_table` would raise about the place and its name, before the work of making rows."""
    if not is_name(folder.name):
        raise LatencyTableError(f"table name {folder.name!r} is not usable; expected {NAME_FORM}")
    if folder.name.lower() == LOCAL:
        raise LatencyTableError(f"table name {folder.name!r} is not usable: it stands for this machine's own table")
    if folder.exists() and not (force and (folder / HEADER_FILE).is_file()):
        what = "is no latency table, so it is not replaced" if force else "exists already; use force to replace it"
        raise OutputError(f"{folder}: {what}")
    check_place(folder)


def write_table(
    folder: Path,
    header: Mapping[str, object],
    rows: Iterable[TableRow],
    *,
    raw: bytes | None = None,
    extra: Mapping[str, bytes] | None = None,
    force: bool = False,
) -> Path:
    """Write a table folder in one step: after a failure or a crash it is absent, or still the old one.

    Args:
        folder: Its last part becomes the table's name.
        header: Fields of table.json; `schema_version`, `name` and the hashes are filled in here.
        rows: In any order.
        raw: Content of raw.csv, for the predictor kind tinynas.
        extra: Further files of the folder by plain name, such as networks.csv; the header records their hashes.
        force: Replace a table of that name.

    Raises:
        OutputError: The folder exists (and `force` is off, or it holds no table), or cannot be written.
        LatencyTableError: Header or rows would not load again.
    """
    check_target(folder, force=force)
    data = rows_to_csv(rows)
    full: dict[str, object] = {"schema_version": SCHEMA_VERSION, "name": folder.name, **header}
    full["rows_sha256"] = hashlib.sha256(data).hexdigest()
    full.pop("files_sha256", None)
    files = {ROWS_FILE: data}
    if extra:
        _check_extra(extra)
        full["files_sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(extra.items())}
        files |= extra
    if raw is not None:
        full["raw_sha256"] = hashlib.sha256(raw).hexdigest()
        files[RAW_FILE] = raw
    files[HEADER_FILE] = (json.dumps(full, indent=2, ensure_ascii=False) + "\n").encode()
    _replace_folder(folder, files)
    return folder


def _check_extra(extra: Mapping[str, bytes]) -> None:
    seen: set[str] = set()
    for name in extra:
        if not is_extra_name(name):
            raise LatencyTableError(
                f"extra file {name!r} is not usable; expected {NAME_FORM}, and none of {HEADER_FILE}, {ROWS_FILE}, "
                f"{RAW_FILE}"
            )
        if name.lower() in seen:
            raise LatencyTableError(f"extra file {name!r} is given twice (in another case)")
        seen.add(name.lower())


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write beside the folder, load that as a check, then swap the two by renaming."""
    mark = secrets.token_hex(4)
    fresh, old = folder.with_name(f".{folder.name}-{mark}.new"), folder.with_name(f".{folder.name}-{mark}.old")
    try:
        fresh.mkdir(parents=True)
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        load_folder(fresh, folder.name)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except LatencyTableError as error:
        raise LatencyTableError(str(error).replace(str(fresh), str(folder))) from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
