"""Several data sets as one: the file that names them, and their images under the classes of the union."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maenas.files import expanded
from maenas.records import build, require, shown

from ..errors import DataError
from .data_file import parse_file
from .dataset import Dataset, ImageRecord, Union
from .layout import DATA_FILES
from .taxonomy import LabelSpace, Taxonomy, parse_taxonomy

_KEYS = ("sources", "taxonomy")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_MOST_SOURCES = 200


@dataclass(frozen=True, slots=True)
class UnionSource:
    """A data set of a union.

    Attributes:
        name: In reports, and in the taxonomy; letters, digits, `-`, `_`, `.`.
        path: As `detector.data.layout.find_layout` takes, from the union file's folder.
    """

    name: str
    path: str

    def __post_init__(self) -> None:
        fits = _NAME.fullmatch(self.name) is not None
        require(fits, "name", self.name, "up to 40 letters, digits, '-', '_' and '.', as it names folders too")
        require(bool(self.path.strip()), "path", self.path, "a data.yaml, a COCO .json, or a folder")
        require("://" not in self.path, "path", self.path, "a path, as nothing is fetched")


@dataclass(frozen=True, slots=True)
class UnionFile:
    """A union file, its paths resolved.

    Attributes:
        path: The file.
        sources: With absolute paths.
        taxonomy: What it says of class names.
    """

    path: Path
    sources: tuple[UnionSource, ...]
    taxonomy: Taxonomy


def find_union(path: str | Path) -> Path | None:
    """The union file that a path leads to: a YAML file with the key `sources`, or a folder whose data file is one."""
    path = Path(path)
    candidates = [path / name for name in DATA_FILES] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.suffix.lower() in (".yaml", ".yml") and candidate.is_file():
            return candidate if "sources" in parse_file(candidate) else None
    return None


def read_union(path: Path) -> UnionFile:
    """Read a union file.

    Raises:
        DataError: Naming file, field, value and what was expected. Whether the sources exist is not looked at.
    """
    content = parse_file(path)
    for key in content:
        if key not in _KEYS:
            raise DataError(f"{path}: {shown(key)} is not a field; expected {' and '.join(_KEYS)}")
    entries = content["sources"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST_SOURCES:
        raise DataError(f"{path}: sources is {shown(entries)}; expected a list of 1 ... {_MOST_SOURCES}, name and path")
    sources: list[UnionSource] = []
    for number, entry in enumerate(entries):
        source = build(UnionSource, entry, source=str(path), error=DataError, where=f"sources[{number}]")
        if source.name in [one.name for one in sources]:
            raise DataError(
                f"{path}: sources[{number}].name is {source.name!r}, as of an earlier one; expected another"
            )
        place = os.path.normpath(path.absolute().parent / expanded(source.path))
        sources.append(replace(source, path=place))
    return UnionFile(path, tuple(sources), parse_taxonomy(content.get("taxonomy"), str(path)))


def merge(space: LabelSpace, parts: Mapping[int, Dataset], *, name: str) -> Dataset:
    """One split of a union.

    Args:
        space: Of the union.
        parts: By number of their source, as read, with their own classes.
        name: Of the union, for messages.

    Returns:
        All images, source by source, numbered anew.
    """
    images: list[ImageRecord] = []
    for source, part in sorted(parts.items()):
        labels = np.array(space.labels[source], np.int64)
        for record in part.images:
            images.append(replace(record, image_id=len(images) + 1, labels=labels[record.labels], source=source))
    named = {source: _renamed(space, source, part) for source, part in sorted(parts.items())}
    numbers = tuple(range(len(space.class_names)))
    return Dataset(name, space.class_names, tuple(images), numbers, Union(space, named))


def _renamed(space: LabelSpace, source: int, part: Dataset) -> Dataset:
    """A part with the union's names; classes of it that are the same there become one, with the first one's id."""
    labels = list(dict.fromkeys(space.labels[source]))
    place = np.array([labels.index(label) for label in space.labels[source]], np.int64)
    ids = tuple(part.category_ids[space.labels[source].index(label)] for label in labels)
    images = tuple(replace(record, labels=place[record.labels], source=source) for record in part.images)
    return Dataset(part.name, tuple(space.class_names[label] for label in labels), images, ids)


@dataclass(frozen=True, slots=True, eq=False)
class SourceTruth:
    """What a network is measured against in the images of one source: that source's classes alone.

    Attributes:
        name: Of the source.
        dataset: Its images. A box of a class is one of the broader classes that the source also has, too.
        counts_as: Classes of the union that the source lacks, with those of its own that they are kinds of.
    """

    name: str
    dataset: Dataset
    counts_as: dict[str, tuple[str, ...]]


def source_truths(dataset: Dataset) -> list[SourceTruth]:
    """The parts of a union as they are evaluated; nothing for a single data set."""
    if dataset.union is None:
        return []
    space, truths = dataset.union.space, []
    for source, part in dataset.union.parts.items():
        marked = set(space.labels[source])
        counts_as = {}
        for label, above in enumerate(space.broader):
            own = tuple(space.class_names[one] for one in above if one in marked)
            if own and label not in marked:
                counts_as[space.class_names[label]] = own
        truths.append(SourceTruth(space.source_names[source], _with_broader(space, part), counts_as))
    return truths


def _with_broader(space: LabelSpace, part: Dataset) -> Dataset:
    """Boxes once more for each broader class that the part itself has."""
    union_label = {name: label for label, name in enumerate(space.class_names)}
    own_label = {name: label for label, name in enumerate(part.class_names)}
    above = [
        [
            own_label[space.class_names[one]]
            for one in space.broader[union_label[name]]
            if space.class_names[one] in own_label
        ]
        for name in part.class_names
    ]
    if not any(above):
        return part
    images = []
    for record in part.images:
        extra = [(index, label) for index, own in enumerate(record.labels.tolist()) for label in above[own]]
        rows = np.array([*range(len(record.labels)), *(index for index, _ in extra)], np.int64)
        labels = np.concatenate([record.labels, np.array([label for _, label in extra], np.int64)])
        images.append(
            replace(
                record,
                boxes=record.boxes[rows],
                labels=labels,
                ignored=record.ignored[rows],
                areas=record.areas[rows],
                polygons=record.polygons and tuple(record.polygons[row] for row in rows),
            )
        )
    return replace(part, images=tuple(images))
