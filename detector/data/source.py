"""Data sets of every format, read from where the user keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .coco import read_categories, read_coco
from .data_file import SPLITS
from .dataset import Dataset
from .layout import Layout, SplitPlace, find_layout
from .problems import Report, refuse
from .taxonomy import LabelSpace, unify
from .union import UnionFile, find_union, merge, read_union
from .voc import read_class_names, read_voc
from .yolo import read_yolo


@dataclass(frozen=True, slots=True, eq=False)
class DataConfig:
    """The splits of a data set; all have the same class names in the same order."""

    train: Dataset | None
    val: Dataset | None
    test: Dataset | None
    class_names: tuple[str, ...]


def load_data(path: str | Path, *, class_names: Sequence[str] | None = None) -> DataConfig:
    """All splits of a data set.

    Args:
        path: As `detector.data.layout.find_layout` takes, or a file that makes one of several data sets.
        class_names: Label order, of a trained network for example; classes are matched by name. By default `names` of
            the data.yaml, else the classes of train in the order of their ids (VOC: of the alphabet).

    Raises:
        DataError: One line that names file, entry and what was expected; also where train has no box to learn from.
    """
    union_path = find_union(path)
    if union_path is None:
        layout = find_layout(path)
        names = order_classes(layout, class_names)
        splits = {split: read_split(place, names, layout.class_names) for split, place in layout.splits.items()}
    else:
        union = open_union(union_path, class_names=class_names)
        names = union.space.class_names
        splits = {split: union.read(split) for split in SPLITS if union.has(split)}
    train = splits.get("train")
    if train is not None and all(record.ignored.all() for record in train.images):
        raise DataError(f"{train.name}: none of its {len(train)} images has a box; nothing can be learnt from it")
    return DataConfig(train, splits.get("val"), splits.get("test"), names)


def load_split(path: str | Path, split: str, *, class_names: Sequence[str] | None = None) -> Dataset:
    """One split; a single COCO `.json` is every split.

    Args:
        path: As `load_data` takes.
        split: `train`, `val` or `test`.
        class_names: As in `load_data`. Where it is given, or data.yaml has `names`, no other split is read.

    Raises:
        DataError: As `load_data`, or the data set has no such split.
    """
    union_path = find_union(path)
    if union_path is not None:
        return open_union(union_path, class_names=class_names).read(split)
    layout = find_layout(path)
    place = layout.splits.get(split)
    if place is None and layout.source.suffix.lower() == ".json":
        place = layout.splits["val"]
    if place is None:
        raise DataError(f"{path}: has no split {split!r}; expected one of {', '.join(layout.splits)}")
    return read_split(place, order_classes(layout, class_names), layout.class_names)


@dataclass(frozen=True, slots=True)
class OpenedUnion:
    """A union whose sources were found and whose classes are known; no annotation is read yet.

    Attributes:
        file: What it was read from.
        layouts: Of the sources.
        names: Class names of each source, as it calls them.
        space: The classes of the union.
    """

    file: UnionFile
    layouts: tuple[Layout, ...]
    names: tuple[tuple[str, ...], ...]
    space: LabelSpace

    def has(self, split: str) -> bool:
        """Whether a source has this split."""
        return any(split in layout.splits for layout in self.layouts)

    def read(self, split: str) -> Dataset:
        """A split of all sources that have it.

        Raises:
            DataError: As `read_split`, or none of them has it.
        """
        parts = {}
        for source, (layout, names) in enumerate(zip(self.layouts, self.names, strict=True)):
            if split in layout.splits:
                parts[source] = read_split(layout.splits[split], names, layout.class_names)
        if not parts:
            raise DataError(f"{self.file.path}: none of its sources has a split {split!r}")
        return merge(self.space, parts, name=f"{self.file.path.name} ({split})")


def open_union(path: Path, *, class_names: Sequence[str] | None = None) -> OpenedUnion:
    """Read a union file, find its sources, and bring their classes together.

    Args:
        path: The file.
        class_names: Label order; it may hold more classes than the sources have.

    Raises:
        DataError: The file is malformed, a source is missing, or the taxonomy does not go with their classes.
    """
    file = read_union(path)
    layouts = tuple(find_layout(source.path) for source in file.sources)
    names = tuple(order_classes(layout) for layout in layouts)
    sources = [(source.name, own) for source, own in zip(file.sources, names, strict=True)]
    space = unify(sources, file.taxonomy, source=str(path), class_names=class_names)
    return OpenedUnion(file, layouts, names, space)


def order_classes(layout: Layout, class_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The label order of a data set, as `load_data` describes it; the same errors."""
    if class_names is not None:
        return tuple(class_names)
    if layout.class_names is not None:
        return layout.class_names
    place = next(layout.splits[split] for split in ("train", "val", "test") if split in layout.splits)
    if place.kind == "yolo":
        raise DataError(f"{layout.source}: names is missing; expected the class names, which YOLO labels only number")
    if place.kind == "voc":
        return read_class_names(place.places[0], root=place.root)
    return read_categories(place.places[0])


def read_split(
    place: SplitPlace, class_names: tuple[str, ...], own_names: tuple[str, ...] | None, report: Report = refuse
) -> Dataset:
    """Read one split with the reader of its format.

    Args:
        place: Where it is.
        class_names: Label order.
        own_names: What the numbers of YOLO labels mean; None for other formats.
        report: What to do about a faulty entry.

    Raises:
        DataError: As the reader.
    """
    if place.kind == "coco":
        return read_coco(
            place.places[0], place.images, root=place.root, name=place.name, class_names=class_names, report=report
        )
    if place.kind == "voc":
        return read_voc(place.places[0], class_names, root=place.root, name=place.name, report=report)
    if own_names is None:
        raise DataError(f"{place.name}: names is missing; expected the class names, which YOLO labels only number")
    return read_yolo(place.places, own_names, root=place.root, name=place.name, class_names=class_names, report=report)
