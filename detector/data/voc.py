"""Annotations in Pascal VOC's format: one XML file an image, and lists of the images of each split."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maenas.records import shown

from ..errors import DataError, reason_of
from ..images import IMAGE_SUFFIXES
from .classes import unknown_class
from .dataset import Dataset, ImageRecord
from .places import Files, shortened
from .problems import Problem, Report, refuse

_LARGEST_FILE = 16_000_000
_LARGEST = 1e9
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: Path, class_names: Sequence[str], *, root: Path, name: str, report: Report = refuse) -> Dataset:
    """One split.

    VOC counts pixels from 1 and its `xmax`, `ymax` name the last pixel that belongs to the box, so a box becomes
    (xmin - 1, ymin - 1, xmax, ymax). Objects marked `difficult` are ignored.

    Args:
        path: The list, one image name without suffix a line, such as `ImageSets/Main/train.txt`.
        class_names: Label order; other classes may not have boxes.
        root: The folder of `Annotations` and `JPEGImages`; nothing outside of it is read.
        name: The data set's.
        report: What to do about a faulty entry.

    Raises:
        DataError: Something is missing, unsafe or faulty; names file and object.
    """
    files = Files(root, root=root)
    images = {os.path.splitext(entry)[0]: entry for entry in files.names(root / "JPEGImages") if _is_image(entry)}
    _report_orphans(files, root, images, report)
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    records: list[ImageRecord] = []
    for stem in _listed(path):
        entry = images.get(stem)
        image = None if entry is None else files.find(os.path.join("JPEGImages", entry))
        if image is None:
            report(Problem("missing-image", str(path), f"lists {shown(stem)}; no such image in {root / 'JPEGImages'}"))
            continue
        annotation = _annotation(files, root, stem, report)
        if annotation is None:
            continue
        records.append(_record(len(records) + 1, image, annotation, labels, report))
    return Dataset(name, tuple(class_names), tuple(records), tuple(range(len(class_names))))


def read_class_names(path: Path, *, root: Path) -> tuple[str, ...]:
    """The classes that occur in a split, in the order of the alphabet.

    Raises:
        DataError: As `read_voc`, or no object occurs.
    """
    files = Files(root, root=root)
    found: set[str] = set()
    for stem in _listed(path):
        annotation = _annotation(files, root, stem, lambda problem: None)
        found |= {_text(entry, "name") for entry in annotation[1].iterfind("object")} if annotation else set()
    found.discard("")
    if not found:
        raise DataError(f"{path}: no object in its images; expected class names in a data.yaml, or objects")
    return tuple(sorted(found))


def parse_xml(content: bytes, source: str) -> ElementTree.Element:
    """The root of an XML file that declares no types or entities: these could name other files, or grow without end.

    Raises:
        DataError: Naming the source.
    """
    if len(content) > _LARGEST_FILE:
        raise DataError(f"{source}: has {len(content)} bytes; expected a short XML file")
    try:
        # Decoded here, so that no declared encoding can hide what is looked for below.
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8 text; expected an XML file in UTF-8") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{source}: declares types or entities (<!DOCTYPE or <!ENTITY); expected plain XML")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{source}: is no XML file ({error})") from error


def _listed(path: Path) -> list[str]:
    """The names in a list, in its order, each once."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a list of images ({reason_of(error)})") from error
    stems: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split(maxsplit=1)
        if len(words) == 2 and words[1].strip() in ("1", "0", "-1"):
            raise DataError(f"{path}: line {number} has two columns; expected the list of a split, not that of a class")
        if words:
            stems[line.strip()] = None
    if not stems:
        raise DataError(f"{path}: lists no images; expected one name a line")
    return list(stems)


def _annotation(files: Files, root: Path, stem: str, report: Report) -> tuple[Path, ElementTree.Element] | None:
    path = root / "Annotations" / f"{stem}.xml"
    try:
        found = files.find(os.path.join("Annotations", f"{stem}.xml"))
        if found is None:
            report(Problem("missing-annotation", str(path), "no such file; expected the annotation of a listed image"))
            return None
        return found, parse_xml(found.read_bytes(), str(found))
    except DataError as error:
        report(Problem("bad-entry", str(path), str(error).removeprefix(f"{path}: ")))
    except OSError as error:
        report(Problem("bad-entry", str(path), f"cannot be read ({error.strerror or error})"))
    return None


def _record(
    image_id: int,
    image: Path,
    annotation: tuple[Path, ElementTree.Element],
    labels: dict[str, int],
    report: Report,
) -> ImageRecord:
    path, tree = annotation
    rows, boxes, ignored = [], [], []
    for number, entry in enumerate(tree.iterfind("object"), start=1):
        where = f"{path}: object {number}"
        class_name = _text(entry, "name")
        texts = [_text(entry, f"bndbox/{side}") for side in _SIDES]
        box = [_number(text) for text in texts]
        if class_name not in labels:
            report(Problem("unknown-class", where, unknown_class(class_name, list(labels)), image))
        elif any(value is None for value in box):
            words = ", ".join(
                f"{side} {shortened(text) or 'missing'}" for side, text in zip(_SIDES, texts, strict=True)
            )
            report(Problem("bad-box", where, f"bndbox has {words}; expected four finite numbers", image))
        else:
            left, top, right, bottom = (value for value in box if value is not None)
            if right < left - 1 or bottom < top - 1:
                report(Problem("bad-box", where, f"bndbox is {box}; expected xmin <= xmax and ymin <= ymax", image))
                continue
            rows.append(labels[class_name])
            boxes.append((left - 1, top - 1, right, bottom))
            ignored.append(_text(entry, "difficult") == "1")
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return ImageRecord(
        image_id,
        image,
        _size(tree),
        corners.astype(np.float32),
        np.array(rows, np.int64),
        np.array(ignored, np.bool_),
        areas.astype(np.float32),
    )


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width) as stated; labelling tools write 0 where they do not know."""
    height, width = (_number(_text(tree, f"size/{side}")) for side in ("height", "width"))
    return (int(height), int(width)) if height and width and height >= 1 and width >= 1 else None


def _text(entry: ElementTree.Element, path: str) -> str:
    return (entry.findtext(path) or "").strip()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if -_LARGEST <= value <= _LARGEST else None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _report_orphans(files: Files, root: Path, images: dict[str, str], report: Report) -> None:
    for entry in files.names(root / "Annotations"):
        stem, suffix = os.path.splitext(entry)
        if suffix.lower() == ".xml" and stem not in images:
            path = str(root / "Annotations" / entry)
            report(Problem("no-image", path, "is an annotation without an image", fatal=False))
