"""A made-up data set on disk, for trying out training without data of one's own: pictures, COCO files, `data.yaml`."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maenas.errors import OutputError
from maenas.extras import require
from maenas.files import make_folder, write_bytes_atomically, write_text_atomically

from ..errors import ConfigError
from .sample_scenes import Scene, draw_scene
from .sample_shapes import CLASSES

NUM_TRAIN = 400
_MARK = "Made by `maenas sample-data`"
_ENTRIES = ("images", "annotations", "data.yaml", "README.md")
_QUALITY = 90
_LARGEST = 100_000
_DATA_FILE = """\
train: annotations/instances_train.json
val: annotations/instances_val.json
train_images: images/train
val_images: images/val
names: [{names}]
"""
_README = """\
# Sample data

{mark}, seed {seed}: pictures that a program drew, free to use for anything.

| split | images | boxes | crowds |
|---|---:|---:|---:|
{rows}

Classes: {names}. Triangles, rectangles, discs and blobs are of no class. Boxes are tight around the visible pixels.
Several small shapes close together can be one crowd region. Some pictures hold no object.
"""


def write_sample_data(
    folder: Path,
    *,
    num_train: int = NUM_TRAIN,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
    """Draw a data set and write it, whole or not at all.

    Picture k of a split depends on the seed and k alone, so a larger set begins with the smaller one. The same seed
    gives the same bytes on a machine; other versions of numpy, OpenCV and Pillow may round differently.

    Args:
        folder: New or empty.
        num_train: Pictures for training; for validation there are a quarter as many, one at least.
        seed: 0 or more.
        force: Replace an earlier sample set in `folder`, or write beside other files.
        progress: Called with the number of pictures done.

    Returns:
        Per split the number of images, boxes and crowds.

    Raises:
        ConfigError: A number is out of range.
        OutputError: The folder holds files already, with `force` such as would be overwritten and are of no earlier
            sample set; or it cannot be written.
    """
    if not 1 <= num_train <= _LARGEST:
        raise ConfigError(f"number of images is {num_train}; expected 1 ... {_LARGEST}")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected 0 or more")
    _check_free(folder, force=force)
    make_folder(folder.absolute().parent)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        counts = _fill(made, num_train, seed, progress)
        _move(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return counts


def _check_free(folder: Path, *, force: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: is a file; expected a new folder")
    present = {path.name for path in folder.iterdir()}
    if present and not force:
        raise OutputError(f"{folder}: holds files already; expected a new folder, or --force")
    others = sorted(present & set(_ENTRIES))
    if others and not _is_sample(folder):
        raise OutputError(
            f"{folder}: holds {others[0]} of something else, which is never overwritten; use a new folder"
        )


def _is_sample(folder: Path) -> bool:
    try:
        return _MARK in (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _fill(made: Path, num_train: int, seed: int, progress: Callable[[int], None]) -> dict[str, Any]:
    pillow = require("PIL.Image", extra="detector", purpose="writing sample data")
    make_folder(made / "annotations")
    counts: dict[str, Any] = {}
    image_id = annotation_id = 0
    for number, (split, num_images) in enumerate((("train", num_train), ("val", max(1, num_train // 4)))):
        make_folder(made / "images" / split)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(num_images):
            scene = draw_scene(np.random.default_rng([seed, number, index]))
            image_id += 1
            content = io.BytesIO()
            pillow.fromarray(scene.image).save(content, format="JPEG", quality=_QUALITY)
            height, width = scene.owners.shape
            name = f"{split}_{index:05d}.jpg"
            write_bytes_atomically(made / "images" / split / name, content.getvalue())
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for entry in _annotations(scene, image_id):
                annotation_id += 1
                annotations.append({"id": annotation_id, **entry})
            progress(image_id)
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
        record = {"images": images, "annotations": annotations, "categories": categories}
        write_text_atomically(made / "annotations" / f"instances_{split}.json", json.dumps(record) + "\n")
        crowds = sum(entry["iscrowd"] for entry in annotations)
        counts[split] = {"images": num_images, "boxes": len(annotations) - crowds, "crowds": crowds}
    names = ", ".join(CLASSES)
    write_text_atomically(made / "data.yaml", _DATA_FILE.format(names=names))
    rows = "\n".join(f"| {split} | {c['images']} | {c['boxes']} | {c['crowds']} |" for split, c in counts.items())
    write_text_atomically(made / "README.md", _README.format(mark=_MARK, seed=seed, rows=rows, names=names))
    return counts


def _annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image_id,
            "category_id": drawn.label + 1,
            "bbox": list(drawn.box),
            "area": drawn.area,
            "iscrowd": int(drawn.is_crowd),
        }
        for drawn in scene.objects
    ]


def _move(made: Path, folder: Path) -> None:
    """Put the finished set in its place: the folder as a whole, or its entries where there is a folder already."""
    try:
        os.chmod(made, 0o755)
        if not folder.exists() or not any(folder.iterdir()):
            os.replace(made, folder)
            return
        for name in _ENTRIES:
            if (folder / name).exists():
                # Out of the way first: a folder cannot be replaced by another that has content.
                os.replace(folder / name, made / f"old-{name}")
            os.replace(made / name, folder / name)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
