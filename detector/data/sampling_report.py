"""What a training run will see of each source and class: counts, and how often they are shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset
from .sampling import SamplingSettings, image_shares, labels_shown, present_pairs


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
    """Counts of every source with training images.

    A single data set is one source of its own name where its images are not all shown alike, and none where they are.
    """
    shares = image_shares(dataset, settings)
    if dataset.union is None and shares is None:
        return []
    shown = np.full(len(dataset), 1 / max(len(dataset), 1)) if shares is None else shares
    sources = np.array([record.source for record in dataset.images], np.int64)
    return [_count(dataset, source, np.flatnonzero(sources == source), shown) for source in np.unique(sources).tolist()]


def _count(dataset: Dataset, source: int, members: NDArray[np.intp], shown: NDArray[np.float64]) -> SourceCounts:
    num_classes = len(dataset.class_names)
    name, own = dataset.name, tuple(range(num_classes))
    if dataset.union is not None:
        name, own = dataset.union.space.source_names[source], dataset.union.space.labelled(source)
    holds = [labels_shown(dataset, index) for index in members.tolist()]
    places, labels = present_pairs(holds, num_classes)
    images = np.bincount(labels, minlength=num_classes)
    weights = np.bincount(labels, weights=shown[members][places], minlength=num_classes)
    boxes = np.bincount(np.concatenate([np.zeros(0, np.int64), *holds]), minlength=num_classes)
    return SourceCounts(
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
            for label in own
        ),
    )


def sampling_notes(counted: Sequence[SourceCounts], *, num_classes: int) -> tuple[str, ...]:
    """A line per source, for users.

    Args:
        counted: As of `count_sources`.
        num_classes: Of all sources together.
    """
    lines = []
    for one in counted:
        boxes = sum(entry.boxes for entry in one.classes)
        missing = sum(not entry.images for entry in one.classes)
        without = f", {missing} of them without a box" if missing else ""
        often = f"; images of its rarest classes {one.most_shown:.2g} times as often" if one.most_shown > 1.005 else ""
        lines.append(
            f"{one.name}: {one.images} training images ({one.image_share:.1%}), {boxes} boxes, {len(one.classes)} of "
            f"{num_classes} classes{without}; {one.shown_share:.1%} of what is shown{often}"
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
