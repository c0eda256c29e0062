"""Unions of small data sets for the tests of multi-dataset training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from data_cases import box, coco, write_coco
from training_cases import write_rectangles

from detector.data.dataset import Dataset, ImageRecord, Union
from detector.data.taxonomy import LabelSpace, Taxonomy, unify


def space_of(sources, **taxonomy) -> LabelSpace:
    """A label space from a mapping of source names to class names."""
    return unify(list(sources.items()), Taxonomy(**taxonomy), source="union.yaml")


def write_union(folder: Path, sources, taxonomy=None) -> Path:
    """A union file; sources map names to paths."""
    entries = [{"name": name, "path": str(path)} for name, path in sources.items()]
    content = {"sources": entries, **({} if taxonomy is None else {"taxonomy": taxonomy})}
    (folder / "union.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "union.yaml"


def write_pets(folder: Path) -> None:
    """Two COCO folders in `folder`: `pets` with cat and mouse (the animal), `desk` with mouse (the device) and cup."""
    for name, classes in (("pets", ((1, "cat"), (2, "mouse"))), ("desk", ((7, "mouse"), (3, "cup")))):
        for split, count in (("train", 3 if name == "pets" else 2), ("val", 2)):
            images = [(10 * number + 5, f"{name}-{split}-{number}.png") for number in range(count)]
            annotations = [
                box(image_id, classes[number % 2][0], [5, 5, 20 + number, 20])
                for number, (image_id, _) in enumerate(images)
            ]
            write_coco(folder / name, coco(images, annotations, classes), split)


def union_in_memory(space: LabelSpace, images: list[tuple[int, list[int]]]) -> Dataset:
    """A union without files: the source and the labels of each image."""
    records = tuple(
        ImageRecord(
            number + 1,
            Path(f"{number}.png"),
            (64, 64),
            np.tile(np.float32([4, 4, 20, 20]), (len(labels), 1)),
            np.array(labels, np.int64),
            np.zeros(len(labels), np.bool_),
            np.full(len(labels), 256, np.float32),
            source=source,
        )
        for number, (source, labels) in enumerate(images)
    )
    numbers = tuple(range(len(space.class_names)))
    return Dataset("made up", space.class_names, records, numbers, Union(space, {}))


def write_colours(folder: Path, marked: dict[str, tuple[str, ...]], **options: int) -> dict[str, Path]:
    """Data sets of red and blue rectangles, by name: training images are marked for the given colours alone."""
    written = {}
    for seed, (name, colours) in enumerate(marked.items()):
        written[name] = write_rectangles(folder / name, seed=seed, **options)
        for split in ("train", "val"):
            path = folder / name / f"{split}.json"
            content = json.loads(path.read_text())
            ids = [entry["id"] for entry in content["categories"] if entry["name"] in colours]
            content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] in ids]
            content["categories"] = [entry for entry in content["categories"] if entry["id"] in ids]
            path.write_text(json.dumps(content))
    return written
