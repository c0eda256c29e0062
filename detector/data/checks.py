"""A data set examined as a whole: everything that is wrong with it at once, instead of the first thing that is.

Tensor letters: G boxes of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .dataset import Dataset, ImageRecord
from .duplicates import near_pairs, same_groups
from .findings import SEVERITIES, Finding, Gatherer
from .image_facts import ImageFacts, gather_facts, is_huge
from .layout import Layout, find_layout
from .source import open_union, order_classes, read_split
from .statistics import SplitStatistics, describe_split
from .taxonomy import LabelSpace, similar_names
from .union import find_union, merge

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class DataReport:
    """What an examination found.

    Attributes:
        source: The path that was given.
        class_names: In label order; empty where no split could be read.
        splits: Statistics of the splits that could be read, by name.
        data: The splits themselves, without their faulty entries.
        findings: The worst first.
        pixels: Whether images were decoded; else there was no search for copies and for files cut short.
    """

    source: Path
    class_names: tuple[str, ...]
    splits: dict[str, SplitStatistics]
    data: dict[str, Dataset]
    findings: tuple[Finding, ...]
    pixels: bool

    @property
    def num_errors(self) -> int:
        """Findings that are errors, whatever their counts."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": str(self.source),
            "pixels": self.pixels,
            "class_names": list(self.class_names),
            "splits": {split: statistics.to_dict() for split, statistics in self.splits.items()},
            "findings": [finding.to_dict() for finding in self.findings],
            **{f"num_{name}s": sum(entry.severity == name for entry in self.findings) for name in SEVERITIES},
        }


def check_data(
    path: str | Path, *, pixels: bool = True, progress: Callable[[int, int], None] = lambda done, total: None
) -> DataReport:
    """Examine a data set.

    Args:
        path: As `detector.data.source.load_data` takes. The splits of a union are those of its sources, such as
            `coco/train`, with the classes of the union.
        pixels: Decode every image, to find copies and files that are cut short; else read headers only. Very large
            images are never decoded.
        progress: Called with the number of images done and the number of all.

    Raises:
        DataError: There is no data set, or its data.yaml cannot be read; or a source of a union is none or its classes
            do not go with the taxonomy. Everything else becomes a finding.
    """
    found = Gatherer()
    union_path = find_union(path)
    if union_path is None:
        layout = find_layout(path)
        names: tuple[str, ...] = ()
        try:
            names = order_classes(layout)
        except DataError as error:
            found.add("unreadable-split", str(error))
        data = _read(layout, names, found)
        marked = dict.fromkeys(data, names)
    else:
        union = open_union(union_path)
        names, data, marked = union.space.class_names, {}, {}
        for source, (layout, own) in enumerate(zip(union.layouts, union.names, strict=True)):
            for split, one in _read(layout, own, found).items():
                place = f"{union.space.source_names[source]}/{split}"
                data[place] = _in_union(union.space, source, one)
                marked[place] = tuple(names[label] for label in union.space.labelled(source))
        for group in similar_names(names):
            found.add("similar-class", ", ".join(map(repr, group)))
    for one in data.values():
        for record in one.images:
            _check_boxes(record, found)
    statistics = {split: describe_split(one) for split, one in data.items()}
    _check_classes(statistics, data, marked, found)
    _check_files(data, found, pixels=pixels, progress=progress)
    return DataReport(Path(path), names, statistics, data, found.findings(), pixels)


def _read(layout: Layout, names: tuple[str, ...], found: Gatherer) -> dict[str, Dataset]:
    """The splits that can be read."""
    data: dict[str, Dataset] = {}
    for split, place in layout.splits.items() if names else ():
        try:
            data[split] = read_split(place, names, layout.class_names, found.report)
        except DataError as error:
            found.add("unreadable-split", str(error))
    return data


def _in_union(space: LabelSpace, source: int, part: Dataset) -> Dataset:
    """A split of one source with the classes of the union; its ids say nothing about their order."""
    return replace(merge(space, {source: part}, name=part.name), union=None)


def _check_boxes(record: ImageRecord, found: Gatherer) -> None:
    """Boxes of one image against each other and the size that the annotations state."""
    boxes = record.boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    empty = (sides <= 0).any(axis=1)
    tiny = (sides <= 1).any(axis=1) & ~empty
    faults = {"empty-box": empty, "one-pixel-box": tiny}
    if record.size is not None:
        limits = np.array([record.size[1], record.size[0]], np.float64)
        outside = (boxes[:, :2] >= limits).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
        beyond = (boxes[:, :2] < -1).any(axis=1) | (boxes[:, 2:] > limits + 1).any(axis=1)
        faults |= {"outside-box": outside, "beyond-border": beyond & ~outside}
    rows = np.column_stack([record.labels, boxes])
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.ones(len(rows), np.bool_)
    repeated[first] = False
    faults["duplicate-box"] = repeated
    size = "" if record.size is None else f" in {record.size[1]}x{record.size[0]}"
    for code, mask in faults.items():
        for index in np.flatnonzero(mask).tolist():
            corners = ", ".join(f"{value:.6g}" for value in boxes[index])
            found.add(code, f"{record.path}: box {index + 1} (x1, y1, x2, y2: {corners}){size}", record.path)


def _check_classes(
    statistics: dict[str, SplitStatistics],
    data: dict[str, Dataset],
    marked: dict[str, tuple[str, ...]],
    found: Gatherer,
) -> None:
    """Classes against the splits they should be in, those of a union against the sources that mark them."""
    for split, counts in statistics.items():
        if not counts.boxes:
            found.add("no-boxes", f"{split} ({counts.name}): {counts.images} images, no box that counts")
    for split, counts in statistics.items():
        source, _, kind = split.rpartition("/")
        if kind in ("train", "val") and counts.boxes:
            for name, count in zip(data[split].class_names, counts.boxes_per_class, strict=True):
                if not count and name in marked[split]:
                    found.add(f"class-not-in-{kind}", f"{name} ({source})" if source else name)
    for split, one in data.items():
        used = [
            number for number, count in zip(one.category_ids, statistics[split].boxes_per_class, strict=True) if count
        ]
        if used != sorted(used):
            found.add("category-order", f"{split}: the ids in label order are {', '.join(map(str, used[:20]))}")
    ids = {split: one.category_ids for split, one in data.items()}
    first = next(iter(ids), "")
    for split, own in ids.items():
        if own != ids[first]:
            found.add("category-order", f"{split} has other category ids than {first}")


def _check_files(
    data: dict[str, Dataset], found: Gatherer, *, pixels: bool, progress: Callable[[int, int], None]
) -> None:
    """The image files: readable, of the stated size, and each only once."""
    entries = [(split, record) for split, one in data.items() for record in one.images]
    paths = [record.path for _, record in entries]
    facts = gather_facts(paths, pixels=pixels, progress=lambda done: progress(done, len(paths)))
    for (_, record), one in zip(entries, facts, strict=True):
        _check_file(record, one, found)
    same = same_groups([one.digest for one in facts])
    _report_copies(same, entries, found, "same-image")
    # Exact copies are reported already: one of each takes part in the search for near ones.
    copies = {index for group in same for index in group[1:]}
    shown = [index for index, one in enumerate(facts) if one.thumbnail is not None and index not in copies]
    if shown:
        thumbnails = np.stack([one.thumbnail for one in facts if one.thumbnail is not None])
        place = {index: row for row, index in enumerate(i for i, one in enumerate(facts) if one.thumbnail is not None)}
        pairs = near_pairs(thumbnails[[place[index] for index in shown]])
        _report_copies([[shown[i], shown[j]] for i, j in pairs], entries, found, "near-image")


def _check_file(record: ImageRecord, facts: ImageFacts, found: Gatherer) -> None:
    if facts.error is not None:
        found.add("unreadable-image", f"{record.path}: {facts.error}", record.path)
    header = facts.header
    if header is None:
        return
    height, width = header.size
    turned = "" if header.orientation == 1 else f" (stored as {header.stored[1]}x{header.stored[0]}, turned by EXIF)"
    if record.size is not None and record.size != header.size:
        text = f"{record.path}: is {width}x{height}{turned}; annotations say {record.size[1]}x{record.size[0]}"
        found.add("size-mismatch", text, record.path)
    elif header.orientation != 1:
        found.add("rotated-image", f"{record.path}: orientation {header.orientation}, {width}x{height}", record.path)
    if is_huge(header.size):
        found.add("huge-image", f"{record.path}: is {width}x{height}", record.path)


def _report_copies(groups: list[list[int]], entries: list[tuple[str, ImageRecord]], found: Gatherer, code: str) -> None:
    """Groups of the same picture: across splits one code, within a split another."""
    for group in groups:
        members = [entries[index] for index in group]
        paths = [record.path for _, record in members]
        text = " = ".join(f"{path} ({split})" for path, (split, _) in zip(paths, members, strict=True))
        # Of a union: training on an image twice is a waste, training on one that measures is a mistake.
        across = len({split.rpartition("/")[2] for split, _ in members}) > 1
        found.add(f"{code}-across" if across else code, text, *paths)
