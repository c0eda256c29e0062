"""Files: written so that an interruption leaves the old one or the new one, never half of one; hashes, home folders."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from maenas.errors import OutputError


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary file in the same folder and a rename.

    Raises:
        OutputError: Naming the path and the reason.
    """
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file through a temporary file in the same folder and a rename.

    Raises:
        OutputError: Naming the path and the reason.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C too leaves no half a file behind
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def expanded(name: str) -> Path:
    """A path with `~` replaced; as written where there is no such home folder (a container's user, say)."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def sha256_of(*paths: Path) -> str:
    """SHA-256 in hex of what files hold, one after the other.

    Raises:
        OSError: One cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_place(path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold; nothing is made.

    Args:
        path: The file; its folder need not exist.

    Raises:
        OutputError: Its folder cannot be made or written in.
    """
    folder = next(place for place in path.absolute().parents if place.exists())
    if not folder.is_dir():
        raise OutputError(f"{path}: cannot be written ({folder} is no folder)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: cannot be written (no permission to write in {folder})")


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        OutputError: Naming the path and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: the folder cannot be created ({error.strerror or error})") from error
