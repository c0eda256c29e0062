"""Data sets of every format, read from where the user keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .coco import read_categories, read_coco
from .dataset import Dataset
from .layout import Layout, SplitPlace, find_layout
from .problems import Report, refuse
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
        path: As `detector.data.layout.find_layout` takes.
        class_names: Label order, of a trained network for example; classes are matched by name. By default `names` of
            the data.yaml, else the classes of train in the order of their ids (VOC: of the alphabet).

    Raises:
        DataError: One line that names file, entry and what was expected; also where train has no box to learn from.
    """
    layout = find_layout(path)
    names = order_classes(layout, class_names)
    splits = {split: read_split(place, names, layout.class_names) for split, place in layout.splits.items()}
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
    layout = find_layout(path)
    place = layout.splits.get(split)
    if place is None and layout.source.suffix.lower() == ".json":
        place = layout.splits["val"]
    if place is None:
        raise DataError(f"{path}: has no split {split!r}; expected one of {', '.join(layout.splits)}")
    return read_split(place, order_classes(layout, class_names), layout.class_names)


def order_classes(layout: Layout, class_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The label order of a data set, as `load_data` describes it."""
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
