"""Can the training loop learn a few images by heart? No augmentation; trained and evaluated on the same images."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEARCH = ("--block", "res", "--variant", "t", "--max-flops", "4G", "--max-layers", "17", "--num-classes", "80")
NO_AUGMENTATION = ("augment.mosaic=0", "augment.mixup=0", "augment.flip=0", "augment.sada=false")


def main() -> None:
    """Take the first images that show something, train on them, evaluate on them, keep figures and curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="COCO folder with annotations/ and images/")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=416)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    os.environ["OMP_NUM_THREADS"] = "1"
    work = arguments.work
    shutil.rmtree(work, ignore_errors=True)
    boxes = subset(arguments.data, work / "data", count=arguments.images)
    side = ("--image-size", str(arguments.side))
    maenas("search", *SEARCH, *side, "--out", str(work / "search"))
    maenas(
        "train",
        str(work / "search" / "structure.json"),
        *("--data", str(work / "data"), "--recipe", "small-data", "--epochs", str(arguments.epochs), *side),
        *("--batch", str(arguments.images), "--seed", str(arguments.seed), "--workers", "0", "--device", "cpu"),
        *("--out", str(work / "train"), "--set", *NO_AUGMENTATION, "eval.every=50", "optimizer.weight_decay=0"),
    )
    last = str(work / "train" / "last.safetensors")
    maenas("eval", last, "--data", str(work / "data"), "--out", str(work / "eval"), "--force")
    overall = json.loads((work / "eval" / "eval.json").read_text(encoding="utf-8"))["metrics"]
    shutil.copyfile(work / "train" / "metrics.csv", arguments.out / "metrics.csv")
    figures = {name: round(100 * overall[name], 2) for name in ("ap", "ap50", "ap75")}
    record = {"images": arguments.images, "boxes": boxes, "side": arguments.side, "epochs": arguments.epochs, **figures}
    (arguments.out / "result.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


def subset(source: Path, target: Path, *, count: int) -> int:
    """The first images with boxes as a set whose two splits are the same; how many boxes it has."""
    truth = json.loads((source / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    shown = {annotation["image_id"] for annotation in truth["annotations"]}
    images = [image for image in truth["images"] if image["id"] in shown][:count]
    chosen = {image["id"] for image in images}
    annotations = [annotation for annotation in truth["annotations"] if annotation["image_id"] in chosen]
    content = {**truth, "images": images, "annotations": annotations}
    (target / "annotations").mkdir(parents=True)
    (target / "images").mkdir()
    for split in ("train", "val"):
        (target / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    for image in images:
        shutil.copyfile(source / "images" / image["file_name"], target / "images" / image["file_name"])
    return len(annotations)


def maenas(*words: str) -> None:
    """Run a verb."""
    command = [sys.executable, "-m", "maenas", *words]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{' '.join(command)} failed")


if __name__ == "__main__":
    main()
