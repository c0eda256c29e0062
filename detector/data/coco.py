"""Annotations in COCO's JSON format; images are neither opened nor decoded.

Tensor letters: A annotations of a file, G boxes of one image, V outline points of one object.
"""

from __future__ import annotations

import gc
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.records import shown

from ..errors import DataError
from .classes import label_map, unknown_class
from .coco_entries import annotation_fault, image_fault, is_id
from .dataset import Dataset, ImageRecord
from .places import Files
from .problems import Problem, Report, refuse

_NUM_TRIED = 20
"""Images that are looked for to find out which folder they are in."""


def read_coco(
    path: Path,
    images: Path | None = None,
    *,
    root: Path,
    name: str,
    class_names: Sequence[str] | None = None,
    report: Report = refuse,
) -> Dataset:
    """One annotation file.

    - Boxes are `[x, y, width, height]` in pixels, from the image's upper left corner.
    - `iscrowd` (or `ignore`) other than 0 makes a box ignored; missing means 0. A missing `area` is that of the box.
    - Outlines are kept for images where every box has one. Ignored regions without one (COCO stores masks of crowds)
      get that of their box.
    - Images without boxes are kept.

    Args:
        path: The JSON file.
        images: Folder that `file_name` starts from; by default the first of `image_folders` that holds the images.
        root: Images outside of it are refused.
        name: The data set's.
        class_names: Label order. By default that of the file's category ids. Categories are matched by name; one that
            is not listed may not have boxes.
        report: What to do about a faulty entry.

    Raises:
        DataError: The file is missing or no COCO file, or has a faulty entry, named with its id.
    """
    with _without_collection():
        return _read(path, images, root=root, name=name, class_names=class_names, report=report)


def _read(
    path: Path, images: Path | None, *, root: Path, name: str, class_names: Sequence[str] | None, report: Report
) -> Dataset:
    content = _load(path)
    ids, own = _categories(content, str(path))
    wanted = tuple(own) if class_names is None else tuple(class_names)
    labels = dict(zip(ids, label_map(own, wanted).tolist(), strict=True))
    entries = _images(content, path, images, root=root, report=report)
    rows = _Rows()
    places = {entry.image_id: place for place, entry in enumerate(entries)}
    # Images that were reported already: their boxes need no report of their own.
    known = {entry["id"] for entry in content["images"] if isinstance(entry, dict) and is_id(entry.get("id"))}
    category_names = dict(zip(ids, own, strict=True))
    for number, entry in enumerate(content["annotations"]):
        fault = annotation_fault(entry, known, labels)
        if fault is None:
            place = places.get(entry["image_id"])
            label = labels[entry["category_id"]]
            if label < 0:
                fault = "unknown-class", unknown_class(category_names[entry["category_id"]], wanted)
            elif place is not None:
                rows.add(entry, place, label)
        if fault is not None:
            report(_problem(entry, number, fault, path, entries, places))
    return Dataset(name, wanted, _records(entries, rows), _category_ids(ids, own, wanted))


def image_folders(path: Path) -> list[Path]:
    """Where the images of an annotation file may be, the most special first.

    `annotations/instances_train.json`: `images/train`, `images`, `train`, `annotations` and the folder above.
    """
    folder = path.absolute().parent
    base = coco_base(path)
    split = re.sub(r"^instances[_-]", "", path.stem)
    return list(dict.fromkeys([base / "images" / split, base / "images", base / split, folder, base]))


def coco_base(path: Path) -> Path:
    """The data set's folder: that of the file, or the one above where it is `annotations`."""
    folder = path.absolute().parent
    return folder.parent if folder.name.lower() == "annotations" else folder


def read_categories(path: Path) -> tuple[str, ...]:
    """The class names of an annotation file, in the order of their ids.

    Raises:
        DataError: The file is missing or no COCO file.
    """
    with _without_collection():
        return tuple(_categories(_load(path), str(path))[1])


@dataclass(frozen=True, slots=True)
class _Entry:
    image_id: int
    path: Path
    size: tuple[int, int] | None


@dataclass(slots=True)
class _Rows:
    """The usable annotations, column by column."""

    places: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)
    points: array[float] = field(default_factory=lambda: array("f"))
    ends: list[int] = field(default_factory=list)

    def add(self, entry: dict[str, Any], place: int, label: int) -> None:
        box, area = entry["bbox"], entry.get("area")
        ignored = bool(entry.get("iscrowd")) or bool(entry.get("ignore"))
        self.places.append(place)
        self.labels.append(label)
        self.boxes.append(box)
        self.areas.append(box[2] * box[3] if area is None else area)
        self.ignored.append(ignored)
        start = len(self.points)
        if not self._add_outline(entry.get("segmentation")):
            del self.points[start:]
            if ignored:
                x, y, width, height = box
                self.points.extend([x, y, x + width, y, x + width, y + height, x, y + height])
        self.ends.append(len(self.points))

    def _add_outline(self, segmentation: object) -> bool:
        """Append the points of all parts; false where there are none that can be used."""
        if not isinstance(segmentation, list) or not segmentation:
            return False
        for part in segmentation:
            if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
                return False
            try:
                self.points.extend(part)
            except (TypeError, OverflowError):
                return False
        return True


@contextmanager
def _without_collection() -> Iterator[None]:
    """Python's search for garbage cycles goes through millions of fresh objects again and again, and finds none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON file ({error})") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not any(key in content for key in keys):
        raise DataError(f"{path}: is no COCO file; expected an object with {', '.join(keys)}")
    for key in keys:
        if not isinstance(content.get(key), list):
            found = shown(content[key]) if key in content else "missing"
            raise DataError(f"{path}: {key} is {found}; expected a list")
    if not content["images"]:
        raise DataError(f"{path}: images is empty; expected at least one")
    return content


def _categories(content: dict[str, Any], source: str) -> tuple[list[int], list[str]]:
    """Ids and names in the order of the ids."""
    found: dict[int, str] = {}
    for number, entry in enumerate(content["categories"]):
        where = f"{source}: categories[{number}]"
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise DataError(f"{where} is {shown(entry)}; expected an object with an integer id and a name")
        if entry["id"] in found:
            raise DataError(f"{where}.id is {entry['id']}, which an earlier category has; expected another")
        if entry["name"] in found.values():
            raise DataError(f"{where}.name is {entry['name']!r}, which an earlier category has; expected another")
        found[entry["id"]] = entry["name"]
    if not found:
        raise DataError(f"{source}: categories is empty; expected at least one")
    ids = sorted(found)
    return ids, [found[key] for key in ids]


def _images(content: dict[str, Any], path: Path, folder: Path | None, *, root: Path, report: Report) -> list[_Entry]:
    """The usable images in the order of their ids."""
    listed = content["images"]
    folder = _image_folder(path, listed, root) if folder is None else folder
    files = Files(folder, root=root)
    found: dict[int, _Entry] = {}
    for number, entry in enumerate(listed):
        where = f"{path}: images[{number}]"
        fault = image_fault(entry)
        if fault is not None:
            report(Problem("bad-entry", where, fault))
            continue
        image_id, file_name = entry["id"], entry["file_name"]
        if image_id in found:
            report(Problem("duplicate-id", where, f"id is {image_id}, which an earlier image has; expected another"))
            continue
        try:
            image = files.find(file_name)
        except DataError as error:
            report(Problem("outside", f"{where}.file_name", str(error)))
            continue
        if image is None:
            report(Problem("missing-image", where, f"file_name is {shown(file_name)}; no such file in {folder}"))
            continue
        width, height = entry.get("width"), entry.get("height")
        size = None if width is None or height is None else (int(height), int(width))
        found[image_id] = _Entry(image_id, image, size)
    return [found[key] for key in sorted(found)]


def _image_folder(path: Path, listed: list[Any], root: Path) -> Path:
    """The folder that holds most of the first images; the first of them where none holds any."""
    names = [entry["file_name"] for entry in listed[:_NUM_TRIED] if image_fault(entry) is None]
    best, most = None, 0
    folders = image_folders(path)
    for folder in folders:
        files, hits = Files(folder, root=root), 0
        for file_name in names:
            try:
                hits += files.find(file_name) is not None
            except DataError:
                # Reported with its entry.
                hits += 1
        if hits > most:
            best, most = folder, hits
    if best is None:
        tried = ", ".join(str(folder) for folder in folders)
        first = f" (first: {shown(names[0])})" if names else ""
        raise DataError(f"{path}: its images{first} are in none of {tried}; name their folder with `images:` in a YAML")
    return best


def _problem(
    entry: Any,  # noqa: ANN401
    number: int,
    fault: tuple[str, str],
    path: Path,
    entries: list[_Entry],
    places: dict[int, int],
) -> Problem:
    where, image = f"{path}: annotations[{number}]", None
    if isinstance(entry, dict):
        place = places.get(entry["image_id"]) if is_id(entry.get("image_id")) else None
        image = None if place is None else entries[place].path
        of_image = "" if image is None else f", image {image.name}"
        where += f" (id {shown(entry.get('id'))}{of_image})"
    return Problem(fault[0], where, fault[1], image)


def _records(entries: list[_Entry], rows: _Rows) -> tuple[ImageRecord, ...]:
    """Cut the columns into images."""
    places = np.array(rows.places, np.int64)
    order = np.argsort(places, kind="stable")
    borders = np.searchsorted(places[order], np.arange(len(entries) + 1))
    boxes = np.array(rows.boxes, np.float64).reshape(-1, 4)[order]
    boxes[:, 2:] += boxes[:, :2]
    xyxy = boxes.astype(np.float32)
    labels = np.array(rows.labels, np.int64)[order]
    areas = np.array(rows.areas, np.float32)[order]
    ignored = np.array(rows.ignored, np.bool_)[order]
    outlines = _outlines(rows)
    records = []
    for entry, start, end in zip(entries, borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        part = slice(start, end)
        own = [outlines[row] for row in order[part].tolist()]
        polygons = tuple(outline for outline in own if len(outline))
        complete = polygons if polygons and len(polygons) == len(own) else None
        records.append(
            ImageRecord(
                entry.image_id, entry.path, entry.size, xyxy[part], labels[part], ignored[part], areas[part], complete
            )
        )
    return tuple(records)


def _outlines(rows: _Rows) -> list[NDArray[np.float32]]:
    """Per annotation (V, 2); V is 0 where there is no outline."""
    points = np.frombuffer(rows.points, np.float32).reshape(-1, 2) if rows.points else np.zeros((0, 2), np.float32)
    starts = [0, *rows.ends[:-1]] if rows.ends else []
    found = [points[start // 2 : end // 2] for start, end in zip(starts, rows.ends, strict=True)]
    if not np.isfinite(points).all():
        found = [outline if np.isfinite(outline).all() else outline[:0] for outline in found]
    return found


def _category_ids(ids: list[int], own: list[str], wanted: tuple[str, ...]) -> tuple[int, ...]:
    """The file's ids in label order; classes that it does not know get the numbers after its largest."""
    known = dict(zip(own, ids, strict=True))
    free = max(ids) + 1
    found = []
    for name in wanted:
        if name not in known:
            known[name] = free
            free += 1
        found.append(known[name])
    return tuple(found)
