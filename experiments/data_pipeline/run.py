"""How many training samples does one core make in a second, and what takes the time?"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from detector.data.dataset import Dataset, ImageRecord
from detector.data.loader import TrainLoader
from detector.data.settings import AugmentSettings
from detector.data.source import load_split
from detector.images import read_image, resize
from maenas.profiling.host import describe_host

HERE = Path(__file__).resolve().parent
COCO = HERE.parents[2] / "shared" / "data" / "detection" / "coco_mini"
NUM_IMAGES = 160
BATCH = 8
BATCHES = 20
REPEATS = 7


@dataclass(frozen=True)
class Case:
    """One line of the results: settings, cache, and where in the run the batches lie."""

    name: str
    settings: AugmentSettings
    cache: str
    final: bool = False


def cases() -> list[Case]:
    """Whole recipes with and without decoding, then the recipe at 640 step by step."""
    found = []
    for label, settings in (
        ("640", AugmentSettings()),
        ("320", AugmentSettings(image_size=(320, 320))),
        ("416, mosaic at 640", AugmentSettings(image_size=(416, 416), mosaic_size=(640, 640), shear=0.2)),
    ):
        found += [Case(f"recipe {label}", settings, cache) for cache in ("ram", "none")]
        found.append(Case(f"final epochs {label}", settings, "none", final=True))
    plain = AugmentSettings(mixup=0.0, sada=False)
    found.append(Case("640: mosaic alone", plain, "ram"))
    found.append(Case("640: mosaic, always MixUp", replace(plain, mixup=1.0), "ram"))
    found.append(Case("640: mosaic, SADA", replace(plain, sada=True), "ram"))
    return found


def generated(folder: Path) -> Dataset:
    """JPEG files of COCO's usual size with as much detail as photographs have, eight outlined objects each."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(NUM_IMAGES):
        height, width = (480, 640) if index % 3 else (640, 480)
        layers = [
            cv2.resize(rng.normal(0, 60 / 2**level, (height >> level, width >> level, 3)), (width, height))
            for level in (1, 3, 5, 7)
        ]
        pixels = np.clip(128 + sum(layers[i] * 2**i for i in range(4)), 0, 255).astype(np.uint8)
        path = folder / f"{index:03d}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        corners = rng.uniform(0, 0.7, (8, 2)) * (width, height)
        boxes = np.concatenate([corners, corners + rng.uniform(0.02, 0.3, (8, 2)) * (width, height)], axis=1)
        boxes = boxes.astype(np.float32)
        angles = np.linspace(0, 2 * np.pi, 30)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        outlines = tuple((box[:2] + box[2:]) / 2 + circle * (box[2:] - box[:2]) / 2 for box in boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        labels, ignored = rng.integers(0, 80, 8), np.zeros(8, np.bool_)
        size = (height, width)
        records.append(ImageRecord(index, path, size, boxes, labels, ignored, sides[:, 0] * sides[:, 1], outlines))
    return Dataset("generated", tuple(str(label) for label in range(80)), tuple(records), tuple(range(80)))


def seconds_of(work: Callable[[], object]) -> float:
    """Time on the processor, which neighbours stretch less than time on the clock."""
    started = time.process_time()
    work()
    return time.process_time() - started


def time_case(dataset: Dataset, case: Case) -> list[float]:
    """Images per second of the case's repeats, at the end of the run, where SADA is most frequent."""
    epoch = NUM_IMAGES // BATCH
    start = 100 * epoch
    rates = []
    loader = TrainLoader(
        dataset,
        case.settings,
        batch_size=BATCH,
        seed=0,
        total_iterations=start + BATCHES,
        final_epochs=2 if case.final else 0,
        start_iteration=start - 2,
        cache=case.cache,
        last="fill",
    )
    for _ in range(REPEATS):
        batches = iter(loader)
        next(batches), next(batches)
        rates.append(BATCH * BATCHES / seconds_of(lambda stream=batches: list(stream)))
    return rates


def time_decoding(dataset: Dataset) -> list[float]:
    """Images decoded per second."""
    paths = [record.path for record in dataset.images][:NUM_IMAGES]
    return [len(paths) / seconds_of(lambda: [read_image(path) for path in paths]) for _ in range(REPEATS)]


def compare_resizes(dataset: Dataset) -> dict[str, float]:
    """Milliseconds of both bilinear resizes to 640x640, and how far their results lie apart."""
    images = [read_image(record.path) for record in dataset.images[:40]]
    both = {
        "opencv": lambda image: cv2.resize(image, (640, 640), interpolation=cv2.INTER_LINEAR),
        "evaluation": lambda image: resize(image, (640, 640)),
    }
    found = {}
    for name, function in both.items():
        times = [seconds_of(lambda f=function: [f(image) for image in images]) for _ in range(REPEATS)]
        found[f"{name}_ms"] = round(1e3 * statistics.median(times) / len(images), 2)
    differences = [np.abs(both["opencv"](image).astype(int) - both["evaluation"](image)) for image in images]
    found["largest_difference"] = int(max(difference.max() for difference in differences))
    found["share_of_values_that_differ"] = round(float(np.mean([difference > 0 for difference in differences])), 4)
    return found


def main() -> None:
    """Time everything on one core and write the two result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="to run on")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    rows = []
    resizes = {}
    with tempfile.TemporaryDirectory() as folder:
        datasets = [generated(Path(folder))]
        if COCO.is_dir():
            datasets.append(load_split(COCO, "train"))
        for dataset in datasets:
            name = "generated" if dataset.name == "generated" else "coco_mini"
            measured = {"decoding alone": ("none", time_decoding(dataset))}
            for case in cases():
                measured[f"{case.name} {case.cache}"] = (case.cache, time_case(dataset, case))
            for label, (cache, rates) in measured.items():
                row = {
                    "images": name,
                    "case": label.removesuffix(f" {cache}"),
                    "decoding": "no" if cache == "ram" else "yes",
                    "images_per_s": round(statistics.median(rates), 1),
                    "min": round(min(rates), 1),
                    "max": round(max(rates), 1),
                }
                rows.append(row)
                print(*row.values(), sep="\t")
            resizes[name] = compare_resizes(dataset)
            print(resizes[name])
    with (arguments.out / "results.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    packages = {package: version(package) for package in ("numpy", "opencv-python-headless", "pillow", "torch")}
    conditions = {
        "host": describe_host(),
        "packages": packages,
        "batch": BATCH,
        "batches": BATCHES,
        "repeats": REPEATS,
        "resize_to_640": resizes,
    }
    (arguments.out / "conditions.json").write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
