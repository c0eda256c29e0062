"""Where verbs may write: what is there stays, unless the user says `--force`."""

from __future__ import annotations

from pathlib import Path

from maenas.errors import OutputError


def check_new_file(path: Path, *, force: bool) -> None:
    """Refuse a file that exists.

    Raises:
        OutputError: It does.
    """
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; expected a new file, or --force")


def check_new_folder(path: Path, *, force: bool) -> None:
    """Refuse a folder that holds anything.

    Raises:
        OutputError: It does.
    """
    if path.is_dir() and any(path.iterdir()) and not force:
        raise OutputError(f"{path}: holds files already; expected a new folder, or --force")
