"""Files that a data set names, found by listing each folder once, and never outside the data set's own folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from ..images import IMAGE_SUFFIXES


class Files:
    """Looks names up relative to a folder; no file is opened.

    Args:
        folder: What relative names start from.
        root: Nothing outside it is given out: neither by an absolute name, nor by `..`, nor through a link.
    """

    def __init__(self, folder: Path, *, root: Path) -> None:
        self._folder = os.path.abspath(folder)
        self._root = os.path.abspath(root)
        self._real_root = os.path.realpath(root)
        self._listings: dict[str, dict[str, bool]] = {}

    def find(self, name: str) -> Path | None:
        """The file of that name; None where there is none.

        Raises:
            DataError: The name leaves the root.
        """
        # Windows tools write backslashes.
        path = os.path.normpath(os.path.join(self._folder, name.replace("\\", "/")))
        if "\0" in name or not _inside(path, self._root):
            raise DataError(f"{shortened(name)!r} leads out of {self._root}; expected a file of the data set")
        parent, last = os.path.split(path)
        is_link = self._listing(parent).get(last)
        if is_link is None:
            return None
        if is_link:
            self._require_inside(path)
        return Path(path)

    def names(self, folder: Path) -> tuple[str, ...]:
        """File names in a folder, in order; empty where there is no such folder.

        Raises:
            DataError: A link leads to it from inside the root to outside.
        """
        return tuple(sorted(self._listing(os.path.abspath(folder))))

    def _listing(self, folder: str) -> dict[str, bool]:
        """Name to whether it is a link, for every file of a folder."""
        found = self._listings.get(folder)
        if found is None:
            self._require_inside(folder)
            try:
                with os.scandir(folder) as entries:
                    found = {entry.name: entry.is_symlink() for entry in entries if not entry.is_dir()}
            except (FileNotFoundError, NotADirectoryError):
                found = {}
            except OSError as error:
                raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error
            self._listings[folder] = found
        return found

    def _require_inside(self, path: str) -> None:
        real = os.path.realpath(path)
        if not _inside(real, self._real_root):
            raise DataError(f"{path}: is a link to {real}, outside of {self._root}; expected a file of the data set")


def images_below(folder: Path, *, root: Path) -> Iterator[Path]:
    """The images of a folder and of the folders in it, in order; linked folders are not entered.

    Raises:
        DataError: A link leads out of the root.
    """
    files = Files(folder, root=root)
    for parent, folders, _ in os.walk(folder):
        folders.sort()
        for name in files.names(Path(parent)):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                path = files.find(os.path.join(os.path.abspath(parent), name))
                if path is not None:
                    yield path


def shortened(text: str, length: int = 80) -> str:
    """A text from a file, cut for a message."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
