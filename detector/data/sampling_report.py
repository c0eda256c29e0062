"""What a training run will see of each source and class: counts, and how often they are shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from .dataset import Dataset
from .sampling import SamplingSettings, image_shares, labels_shown


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """One class in the training images of one source.

    Attributes:
        source: Its name.
        class_name: In the union.
        images: That hold it.
        boxes: Ignored ones are not counted.
        image_share: Of the source's images; f_c of the sampling.
        shown_share: Expected share of all images shown that are images of this source with this class.
    """

    source: str
    class_name: str
    images: int
    boxes: int
    image_share: float
    shown_share: float


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """The training images of one source.

    Attributes:
        name: Of the source.
        images: All.
        image_share: Of the images of all sources.
        shown_share: Of all images shown.
        most_shown: How much more often than the source's images on average one of them is shown, at most.
        classes: Those that the source marks, in label order.
    """

    name: str
    images: int
    image_share: float
    shown_share: float
    most_shown: float
    classes: tuple[ClassCounts, ...]


def count_sources(dataset: Dataset, settings: SamplingSettings) -> list[SourceCounts]:
    """Counts of every source with training images; a single data set is one source of its own name."""
    shares = image_shares(dataset, settings)
    shown = np.full(len(dataset), 1 / max(len(dataset), 1)) if shares is None else shares
    sources = np.array([record.source for record in dataset.images], np.int64)
    counted = []
    for source in np.unique(sources).tolist():
        members = np.flatnonzero(sources == source)
        name, labels = dataset.name, tuple(range(len(dataset.class_names)))
        if dataset.union is not None:
            name, labels = dataset.union.space.source_names[source], dataset.union.space.labelled(source)
        num_classes = len(dataset.class_names)
        images, boxes, weights = (np.zeros(num_classes) for _ in range(3))
        for index in members.tolist():
            own = np.bincount(labels_shown(dataset, index), minlength=num_classes)
            boxes += own
            images += own > 0
            weights += (own > 0) * shown[index]
        counted.append(
            SourceCounts(
                name,
                len(members),
                len(members) / len(dataset),
                float(shown[members].sum()),
                float(shown[members].max() / shown[members].mean()),
                tuple(
                    ClassCounts(
                        name,
                        dataset.class_names[label],
                        int(images[label]),
                        int(boxes[label]),
                        float(images[label] / len(members)),
                        float(weights[label]),
                    )
                    for label in labels
                ),
            )
        )
    return counted


def sampling_notes(dataset: Dataset, settings: SamplingSettings) -> tuple[str, ...]:
    """A line per source of a union, or about a single data set whose images are not all shown alike; for users."""
    if dataset.union is None and image_shares(dataset, settings) is None:
        return ()
    lines = []
    for one in count_sources(dataset, settings):
        boxes = sum(entry.boxes for entry in one.classes)
        missing = sum(not entry.images for entry in one.classes)
        without = f", {missing} of them without a box" if missing else ""
        often = (
            f"; images of its rarest classes up to {one.most_shown:.2g} times as often" if one.most_shown > 1 else ""
        )
        lines.append(
            f"{one.name}: {one.images} training images ({one.image_share:.1%}), {boxes} boxes, {len(one.classes)} of "
            f"{len(dataset.class_names)} classes{without}; {one.shown_share:.1%} of what is shown{often}"
        )
    return tuple(lines)


def sampling_table(counted: Sequence[SourceCounts]) -> str:
    """All classes of all sources as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(ClassCounts)], lineterminator="\n")
    writer.writeheader()
    for one in counted:
        for entry in one.classes:
            row = asdict(entry)
            shares = {name: f"{row[name]:.6g}" for name in ("image_share", "shown_share")}
            writer.writerow(row | shares)
    return text.getvalue()
