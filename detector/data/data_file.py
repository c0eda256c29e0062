"""`data.yaml`, the file that describes a data set: where its splits are and what its classes are called."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.files import expanded
from maenas.records import is_count, parse_yaml, shown

from ..errors import DataError, did_you_mean

SPLITS = ("train", "val", "test")
_KEYS = (*SPLITS, "path", "names", "nc", "images", *(f"{split}_images" for split in SPLITS), "download")
# Written by Ultralytics, Roboflow and labelling tools; they say nothing about boxes.
_PASSED_OVER = (
    "author", "channels", "date", "description", "docs", "flip_idx", "kpt_names", "license", "minival", "roboflow",
    "task", "url", "version",
)  # fmt: skip
_LARGEST_FILE = 4_000_000
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder that a data file names.

    Attributes:
        path: Absolute.
        root: What images and labels must not leave: the data set's folder, or the place itself where the file
            explicitly names one outside of it.
    """

    path: Path
    root: Path


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file, its paths resolved.

    Attributes:
        root: The data set's folder.
        splits: The places of every split that is named.
        images: The folder that COCO files' `file_name` starts from, per split where it is given.
        class_names: In label order; None where the file gives none.
    """

    root: Path
    splits: dict[str, tuple[Place, ...]]
    images: dict[str, Place]
    class_names: tuple[str, ...] | None


def read_data_file(path: Path) -> DataFile:
    """Read a `data.yaml` as Ultralytics and Roboflow write it, or one that names COCO files or VOC lists.

    A `download` key is never carried out.

    Raises:
        DataError: Naming file and key: malformed, unknown, contradictory, or a place that does not exist.
    """
    content = parse_file(path)
    for key in content:
        if key not in _KEYS + _PASSED_OVER:
            raise DataError(f"{path}: {_unknown_key(str(key))}")
    values = {split: _places(content[split], f"{path}: {split}") for split in SPLITS if content.get(split) is not None}
    if not values:
        raise DataError(f"{path}: names no split; expected train, val or test")
    root = _root(path, content, [name for names in values.values() for name in names])
    splits = {}
    for split, names in values.items():
        splits[split] = tuple(_place(root, name, f"{path}: {split}", content) for name in names)
    images = {}
    for split in values:
        key = f"{split}_images" if content.get(f"{split}_images") is not None else "images"
        if content.get(key) is not None:
            (name,) = _places(content[key], f"{path}: {key}", most=1)
            images[split] = _place(root, name, f"{path}: {key}", content)
    if "download" in content:
        _LOGGER.warning("%s: download is never carried out; the images are here already", path)
    return DataFile(root, splits, images, _class_names(content, str(path)))


def parse_file(path: Path) -> dict[Any, Any]:
    """The keys of a short YAML file, as plain values.

    Raises:
        DataError: It cannot be read, is none, or holds anything but plain values.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"{path}: has {path.stat().st_size} bytes; expected a short YAML file")
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: is not valid YAML ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is {shown(content)}; expected keys such as train, val and names")
    return content


def _unknown_key(key: str) -> str:
    if key == "sources":
        return "sources makes this a union of data sets; expected one data set, as unions cannot be parts of others"
    if key == "kpt_shape":
        return "kpt_shape: labels of key points are not read; expected boxes or outlines"
    # Roboflow names its folder `valid`.
    near = "val" if key in ("valid", "validation") else key
    return f"{key} is not a key{did_you_mean(near, _KEYS) or '; expected ' + ', '.join(_KEYS)}"


def _places(value: object, where: str, *, most: int = 1000) -> list[str]:
    """One path or a list of them."""
    listed = value if isinstance(value, list) else [value]
    names = [name for name in listed if isinstance(name, str) and name.strip()]
    if not names or len(names) != len(listed) or len(names) > most:
        raise DataError(f"{where} is {shown(value)}; expected a path" + (" or a list of paths" if most > 1 else ""))
    for name in names:
        if "://" in name:
            raise DataError(f"{where} is {shown(name)}; nothing is fetched, expected a path")
    return names


def _root(path: Path, content: dict[Any, Any], names: list[str]) -> Path:
    """The data set's folder: `path`, from the file's folder; that folder itself where only it holds the splits.

    `path` was often written on another machine.
    """
    own = path.absolute().parent
    text = content.get("path")
    if text is None or text == "":
        return own
    if not isinstance(text, str):
        raise DataError(f"{path}: path is {shown(text)}; expected a folder")
    named = Path(os.path.normpath(own / expanded(text)))
    for folder in (named, own):
        if any(_find(folder, name) is not None for name in names):
            return folder
    if not os.path.isdir(named):
        raise DataError(f"{path}: path is {shown(text)}; no such folder{_not_downloaded(content)}")
    return named


def _place(root: Path, name: str, where: str, content: dict[Any, Any]) -> Place:
    found = _find(root, name)
    if found is None:
        raise DataError(f"{where} is {shown(name)}; no such file or folder in {root}{_not_downloaded(content)}")
    if found.is_relative_to(root):
        return Place(found, root)
    # Named in so many words, so it may be anywhere; labels lie in a folder beside that of the images.
    parts = found.parts
    if "images" in parts:
        return Place(found, Path(*parts[: len(parts) - 1 - parts[::-1].index("images")]))
    return Place(found, found if found.is_dir() else found.parent)


def _find(root: Path, name: str) -> Path | None:
    """A named place; Roboflow writes `../train/images` for what lies beside the file."""
    text = name.strip().replace("\\", "/")
    tries = [text]
    if text.startswith("../"):
        tries.insert(0, text.removeprefix("../"))
    for each in tries:
        path = Path(os.path.normpath(root / expanded(each)))
        if os.path.exists(path):  # not Path.exists, which fails on names that no system takes
            return path
    return None


def _not_downloaded(content: dict[Any, Any]) -> str:
    if content.get("download") is None:
        return ""
    return f"; its download key ({shown(content['download'])}) is never carried out, fetch the images yourself"


def _class_names(content: dict[Any, Any], source: str) -> tuple[str, ...] | None:
    names, count = content.get("names"), content.get("nc")
    if count is not None and not is_count(count):
        raise DataError(f"{source}: nc is {shown(count)}; expected a positive integer")
    if names is None:
        return None if count is None else tuple(f"class_{label}" for label in range(count))
    if isinstance(names, dict):
        wrong = [key for key in names if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < len(names)]
        if wrong:
            raise DataError(f"{source}: names has the key {shown(wrong[0])}; expected 0 ... {len(names) - 1}")
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{source}: names is {shown(names)}; expected a list of class names, or numbers with names")
    found: list[str] = []
    for label, name in enumerate(names):
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise DataError(
                f"{source}: names[{label}] is {shown(name)}; expected a text (in quotes, if YAML needs them)"
            )
        if str(name) in found:
            raise DataError(f"{source}: names[{label}] is {str(name)!r}, which an earlier class has; expected another")
        found.append(str(name))
    if count is not None and count != len(found):
        raise DataError(f"{source}: nc is {count}, but names has {len(found)}; expected the same number")
    return tuple(found)
