"""Annotations in YOLO's text format: one file an image, one line an object, in shares of the image's sides.

Boxes come out in pixels, so the header of every image is read; no image is decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maenas.records import shown

from ..errors import DataError, InputError, reason_of
from ..images import read_header
from .classes import label_map, unknown_class
from .dataset import Dataset, ImageRecord
from .places import Files, images_below, shortened
from .problems import Problem, Report, refuse

LABEL_SUFFIX = ".txt"
_OTHER_SUFFIXES = {".xml": "Pascal VOC", ".json": "COCO or other JSON"}
_NOT_LABELS = ("classes.txt", "notes.json")
"""What labelling tools leave beside the labels."""
_LOWEST, _HIGHEST = -1.0, 2.0
"""Shares beyond these are no shares but pixels; a box that reaches a little out of its image is kept."""


def read_yolo(
    places: Sequence[Path],
    names: Sequence[str],
    *,
    root: Path,
    name: str,
    class_names: Sequence[str] | None = None,
    report: Report = refuse,
) -> Dataset:
    """One split.

    - A line is `class cx cy width height`, or `class x1 y1 x2 y2 x3 y3 ...`, an outline whose box is taken.
    - The label file of `images/a/b.jpg` is `labels/a/b.txt`; where there is no such folder it lies beside the image.
      An image without a label file, or with an empty one, has no boxes.
    - Outlines are kept for images where every line is one.
    - `size` of a record is that of the file, upright as EXIF says.

    Args:
        places: Folders, searched with the folders in them, and `.txt` lists of images.
        names: What the class numbers mean.
        root: Images and label files outside of it are refused.
        name: The data set's.
        class_names: Label order; by default `names`. One that is not listed may not have boxes.
        report: What to do about a faulty entry.

    Raises:
        DataError: Nothing there, or a faulty entry, named with file and line.
    """
    files = Files(root, root=root)
    images = _images(places, root=root, report=report)
    folders = _label_folders(images, root, files)
    _check_labels_exist(folders, files, name)
    wanted = tuple(names if class_names is None else class_names)
    reader = _Reader(tuple(names), label_map(names, wanted), wanted, report)
    records: list[ImageRecord] = []
    for image, header in zip(images, _sizes(images), strict=True):
        if isinstance(header, InputError):
            report(Problem("unreadable-image", str(image), str(header).removeprefix(f"{image}: "), image))
            continue
        label_file = files.find(str(folders[image.parent] / (image.stem + LABEL_SUFFIX)))
        if label_file is None:
            report(
                Problem(
                    "no-label-file",
                    str(image),
                    "has no label file; taken as an image without objects",
                    image,
                    fatal=False,
                )
            )
        rows = _Rows() if label_file is None else reader.read(label_file, image)
        records.append(_record(len(records) + 1, image, header, rows))
    _report_orphans(folders, files, report)
    return Dataset(name, wanted, tuple(records), tuple(range(len(wanted))))


@dataclass(slots=True)
class _Rows:
    """The objects of one image: boxes are x1, y1, x2, y2 in shares of the sides."""

    labels: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    outlines: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns label files into rows."""

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    wanted: tuple[str, ...]
    report: Report

    def read(self, path: Path, image: Path) -> _Rows:
        rows = _Rows()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            self.report(Problem("bad-entry", str(path), f"cannot be read as text ({reason_of(error)})", image))
            return rows
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            try:
                values = [float(word) for word in words]
            except ValueError:
                values = [math.nan]
            fault = self._fault(values, line)
            if fault is None:
                _add(rows, int(self.labels[int(values[0])]), values[1:])
            else:
                self.report(Problem(fault[0], f"{path}: line {number}", fault[1], image))
        return rows

    def _fault(self, values: list[float], line: str) -> tuple[str, str] | None:
        """Code and message of what makes a line unusable; None if nothing."""
        text = shown(shortened(line))
        if not math.isfinite(sum(values)):
            return "bad-box", f"is {text}; expected finite numbers: class cx cy width height"
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            return "bad-box", f"has {len(values)} numbers; expected 5 (class cx cy width height) or a class and points"
        label = values[0]
        if label != int(label) or not 0 <= label < len(self.names):
            last = len(self.names) - 1
            return "unknown-class", f"class is {shortened(line.split()[0])}; expected an integer in 0 ... {last}"
        if self.labels[int(label)] < 0:
            return "unknown-class", unknown_class(self.names[int(label)], self.wanted)
        if min(values[1:]) < _LOWEST or max(values[1:]) > _HIGHEST:
            return "bad-box", f"is {text}; expected shares of the image's sides, between 0 and 1"
        if len(values) == 5 and min(values[3:]) < 0:
            return "bad-box", f"is {text}; expected a width and a height of at least 0"
        return None


def _add(rows: _Rows, label: int, values: list[float]) -> None:
    rows.labels.append(label)
    if len(values) == 4:
        x, y, width, height = values
        rows.boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    else:
        rows.boxes.append((min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])))
        rows.outlines.append(values)


def _record(image_id: int, path: Path, size: tuple[int, int], rows: _Rows) -> ImageRecord:
    count = len(rows.labels)
    scale = np.array([size[1], size[0]], np.float64)
    boxes = (np.array(rows.boxes, np.float64).reshape(count, 2, 2) * scale).reshape(count, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    polygons = None
    if rows.outlines and len(rows.outlines) == count:
        polygons = tuple(
            (np.array(points, np.float64).reshape(-1, 2) * scale).astype(np.float32) for points in rows.outlines
        )
    return ImageRecord(
        image_id,
        path,
        size,
        boxes.astype(np.float32),
        np.array(rows.labels, np.int64),
        np.zeros(count, np.bool_),
        (sides[:, 0] * sides[:, 1]).astype(np.float32),
        polygons,
    )


def _images(places: Sequence[Path], *, root: Path, report: Report) -> list[Path]:
    """The images of folders and lists, in order, each once."""
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            own = dict.fromkeys(images_below(place, root=root))
            if not own:
                raise DataError(f"{place}: holds no images; expected at least one")
        elif place.suffix.lower() == ".txt":
            own = _from_list(place, root=root, report=report)
        else:
            what = "is neither a folder nor a .txt list of images" if place.exists() else "no such file or folder"
            raise DataError(f"{place}: {what}; expected a folder of images or a .txt list of them")
        found |= own
    return sorted(found)


def _from_list(path: Path, *, root: Path, report: Report) -> dict[Path, None]:
    """The images that a text file lists, one a line, from its own folder or from the root."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a list of images ({reason_of(error)})") from error
    beside, below = Files(path.parent, root=root), Files(root, root=root)
    found: dict[Path, None] = {}
    num_listed = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        num_listed += 1
        where = f"{path}: line {number}"
        try:
            image = beside.find(line.strip()) or below.find(line.strip())
        except DataError as error:
            report(Problem("outside", where, str(error)))
            continue
        if image is None:
            places = " or ".join(map(str, dict.fromkeys((path.parent, root))))
            report(Problem("missing-image", where, f"is {shown(line.strip())}; no such file in {places}"))
        else:
            found[image] = None
    if not num_listed:
        raise DataError(f"{path}: lists no images; expected one a line")
    return found


def _label_folders(images: list[Path], root: Path, files: Files) -> dict[Path, Path]:
    """For every folder of images that of its label files."""
    found = {}
    for folder in dict.fromkeys(image.parent for image in images):
        parts = list(folder.relative_to(os.path.abspath(root)).parts)
        places = [index for index, part in enumerate(parts) if part == "images"]
        found[folder] = folder
        if places:
            parts[places[-1]] = "labels"
            labels = Path(os.path.abspath(root), *parts)
            if files.names(labels):
                found[folder] = labels
    return found


def _check_labels_exist(folders: dict[Path, Path], files: Files, name: str) -> None:
    """Refuse a split without any label file, and folders that hold labels of another format too."""
    num_labels = 0
    for folder in dict.fromkeys(folders.values()):
        own = [entry for entry in files.names(folder) if entry not in _NOT_LABELS and not entry.startswith(("_", "."))]
        texts = [entry for entry in own if entry.lower().endswith(LABEL_SUFFIX)]
        others = [entry for entry in own if os.path.splitext(entry)[1].lower() in _OTHER_SUFFIXES]
        if others:
            kind = _OTHER_SUFFIXES[os.path.splitext(others[0])[1].lower()]
            also = f" beside {len(texts)} YOLO files (.txt)" if texts else ""
            raise DataError(f"{folder}: holds labels in the format of {kind} ({others[0]}){also}; expected one format")
        num_labels += len(texts)
    if not num_labels:
        places = ", ".join(str(folder) for folder in list(dict.fromkeys(folders.values()))[:3])
        raise DataError(
            f"{name}: no label file found in {places}; expected .txt files in `labels` or beside the images"
        )


def _report_orphans(folders: dict[Path, Path], files: Files, report: Report) -> None:
    """Report label files whose image is missing."""
    for images, labels in folders.items():
        stems = {os.path.splitext(entry)[0] for entry in files.names(images) if not entry.endswith(LABEL_SUFFIX)}
        for entry in files.names(labels):
            stem, suffix = os.path.splitext(entry)
            if suffix.lower() == LABEL_SUFFIX and entry not in _NOT_LABELS and stem not in stems:
                report(Problem("no-image", str(labels / entry), "is a label file without an image", fatal=False))


def _sizes(images: list[Path]) -> list[tuple[int, int] | InputError]:
    """(height, width) of every image, or why it has none."""

    def size(path: Path) -> tuple[int, int] | InputError:
        try:
            return read_header(path).size
        except InputError as error:
            return error

    # Files on a network disk answer late, and many at once.
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(size, images, chunksize=64))
