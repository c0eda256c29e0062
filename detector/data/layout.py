"""What kind of data set a path leads to, and where its splits are; no annotation is read yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import DataError
from .coco import coco_base
from .data_file import SPLITS, DataFile, Place, read_data_file

DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
ROBOFLOW_COCO = "_annotations.coco.json"
Kind = Literal["coco", "yolo", "voc"]

_EXPECTED = (
    "a data.yaml, a COCO .json, or a folder with data.yaml, with annotations/instances_train.json and images/, "
    "or with Annotations/, JPEGImages/ and ImageSets/Main/"
)
_SPLIT_FILE = re.compile(r"(?:instances[_-])?(train|valid|validation|val|test)(?:20[0-9]{2})?\.json", re.IGNORECASE)
_SPLIT_NAMES = {"valid": "val", "validation": "val"}


@dataclass(frozen=True, slots=True)
class SplitPlace:
    """Where one split is.

    Attributes:
        kind: Format of its annotations.
        places: One COCO file, one list of a VOC folder, or folders and lists of images with YOLO labels.
        root: Nothing outside of it is read.
        images: The folder that COCO's `file_name` starts from, where it is known.
        name: The data set's.
    """

    kind: Kind
    places: tuple[Path, ...]
    root: Path
    images: Path | None
    name: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The splits of a data set, and the class names where a `data.yaml` gives them."""

    source: Path
    splits: dict[str, SplitPlace]
    class_names: tuple[str, ...] | None


def find_layout(path: str | Path) -> Layout:
    """Find out what a path leads to.

    Args:
        path: One of
            - `data.yaml`, or a folder that holds it;
            - a folder in COCO's layout: `annotations/instances_train.json` (`train.json`, `instances_train2017.json`),
              or Roboflow's `train/_annotations.coco.json`;
            - a Pascal VOC folder: `Annotations`, `JPEGImages`, `ImageSets/Main/train.txt`;
            - one COCO `.json`, which becomes the split `val`.

    Raises:
        DataError: None of these, or more than one.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected {_EXPECTED}")
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _of_data_file(path)
    if suffix == ".json":
        base = coco_base(path)
        return Layout(path, {"val": SplitPlace("coco", (path,), base, None, _name(base, path))}, None)
    raise DataError(f"{path}: is no data set; expected {_EXPECTED}")


def _of_folder(folder: Path) -> Layout:
    for name in DATA_FILES:
        if (folder / name).is_file():
            return _of_data_file(folder / name)
    coco = list(_coco_files(folder))
    voc = {split: folder / "ImageSets" / "Main" / f"{split}.txt" for split in SPLITS}
    voc = {split: path for split, path in voc.items() if path.is_file()} if (folder / "Annotations").is_dir() else {}
    if coco and voc:
        raise DataError(f"{folder}: holds COCO ({coco[0][1].name}) and VOC annotations; expected one, or a data.yaml")
    if voc:
        places = {split: SplitPlace("voc", (path,), folder, None, _name(folder, path)) for split, path in voc.items()}
        return Layout(folder, places, None)
    splits: dict[str, SplitPlace] = {}
    for split, path in coco:
        if split in splits:
            first = splits[split].places[0].name
            raise DataError(f"{folder}: holds {first} and {path.name} for {split}; name one of them in a data.yaml")
        splits[split] = SplitPlace("coco", (path,), folder, None, _name(folder, path))
    if splits:
        return Layout(folder, splits, None)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        raise DataError(f"{folder}: holds images/ and labels/, but no data.yaml with the class names; write one")
    raise DataError(f"{folder}: is no data set; expected {_EXPECTED}")


def _coco_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Split and path of every annotation file that is named after a split."""
    annotations = folder / "annotations"
    for path in sorted(annotations.iterdir()) if annotations.is_dir() else []:
        found = _SPLIT_FILE.fullmatch(path.name)
        if found and path.is_file():
            split = found[1].lower()
            yield _SPLIT_NAMES.get(split, split), path
    for name in (*SPLITS, *_SPLIT_NAMES):
        path = folder / name / ROBOFLOW_COCO
        if path.is_file():
            yield _SPLIT_NAMES.get(name, name), path


def _of_data_file(path: Path) -> Layout:
    content = read_data_file(path)
    splits = {split: _split_place(path, split, places, content) for split, places in content.splits.items()}
    return Layout(path, splits, content.class_names)


def _split_place(path: Path, split: str, places: tuple[Place, ...], content: DataFile) -> SplitPlace:
    kinds = {_kind(place.path) for place in places}
    if len(kinds) > 1:
        raise DataError(f"{path}: {split} names annotations of {' and '.join(sorted(kinds))}; expected one format")
    (kind,) = kinds
    if kind != "yolo" and len(places) > 1:
        raise DataError(f"{path}: {split} has {len(places)} entries; expected one {kind.upper()} file")
    roots = {place.root for place in places}
    if len(roots) > 1:
        raise DataError(f"{path}: {split} names places in {len(roots)} data sets; expected all in one folder (path)")
    (root,) = roots
    if kind == "voc":
        # <root>/ImageSets/Main/train.txt
        root = places[0].path.parents[2]
    images = content.images.get(split)
    if images is not None and kind != "coco":
        raise DataError(f"{path}: images is for COCO files; expected none where {split} is {kind.upper()}")
    if images is not None and not images.path.is_relative_to(root):
        root = images.root
    named = tuple(place.path for place in places)
    return SplitPlace(kind, named, root, None if images is None else images.path, _name(content.root, *named))


def _kind(path: Path) -> Kind:
    if path.suffix.lower() == ".json" and path.is_file():
        return "coco"
    if path.is_file() and path.parent.name == "Main" and path.parent.parent.name == "ImageSets":
        return "voc"
    return "yolo"


def _name(root: Path, *places: Path) -> str:
    """Such as `bccd/annotations/instances_val.json`."""
    first = places[0].absolute()
    base = root.absolute()
    text = (Path(base.name) / first.relative_to(base) if first.is_relative_to(base) else first).as_posix()
    return text + (f" and {len(places) - 1} more" if len(places) > 1 else "")
