"""Small data sets in every format, written to disk, for the tests of readers and checks."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image


def write_image(path, size=(40, 60), seed=0, **options):
    """A grey-noise image of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def coco(images, annotations, categories=((1, "cat"), (2, "dog"))):
    """A COCO record; images as (id, file_name) or dictionaries, annotations as dictionaries without ids."""
    return {
        "images": [
            entry if isinstance(entry, dict) else {"id": entry[0], "file_name": entry[1], "width": 60, "height": 40}
            for entry in images
        ],
        "annotations": [{"id": number, "iscrowd": 0, **entry} for number, entry in enumerate(annotations, start=1)],
        "categories": [{"id": key, "name": name} for key, name in categories],
    }


def box(image_id, category_id, bbox, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def write_coco(folder, record, split="train", images=True):
    """`annotations/instances_<split>.json` and the images it names."""
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    if images:
        for number, entry in enumerate(record["images"]):
            write_image(folder / "images" / entry["file_name"], seed=number + 100 * len(split))
    return path


def write_yolo(folder, labels, split="train", names=("cat", "dog"), yaml=True):
    """`images/<split>/<stem>.png`, `labels/<split>/<stem>.txt` (None: no file) and `data.yaml`."""
    for number, (stem, text) in enumerate(labels.items()):
        write_image(folder / "images" / split / f"{stem}.png", seed=number + 100 * len(split))
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        if text is not None:
            (folder / "labels" / split / f"{stem}.txt").write_text(text)
    if yaml:
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/{split}\nnames: {list(names)}\n")
    return folder / "data.yaml"


def voc_object(name, corners, difficult=0):
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def write_voc(folder, annotations, split="train"):
    """A VOC folder; annotations map a stem to the XML inside `<annotation>`."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, (stem, text) in enumerate(annotations.items()):
        write_image(folder / "JPEGImages" / f"{stem}.jpg", seed=number + 100 * len(split))
        size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(annotations) + "\n")
    return folder
