"""The same question for Ultralytics' YOLO11n, in an environment of its own where that package is installed.

Not a part of maenas: nothing here is imported by it, and Ultralytics is no dependency. The predictions of the last
weights are judged by the same evaluator as ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from run import HERE, SIDE, add_line, cpu_minutes


def main() -> None:
    """Convert the labels, train for a wall time, predict the validation images, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    cores = {int(core) for core in arguments.cores.split(",")}
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cores)))

    import torch
    import ultralytics
    from ultralytics import YOLO

    torch.set_num_threads(len(cores))
    label = f"yolo11n-{arguments.data.name}-{len(cores)}core-seed{arguments.seed}"
    work = arguments.work / label
    shutil.rmtree(work, ignore_errors=True)
    config = convert(arguments.data.resolve(), work / "data")
    before = cpu_minutes()
    started = time.monotonic()
    model = YOLO("yolo11n.yaml")
    model.train(
        data=str(config),
        imgsz=SIDE,
        batch=16,
        optimizer="AdamW",
        lr0=0.002,
        time=arguments.minutes / 60,
        device="cpu",
        workers=len(cores),
        cache="ram",
        seed=arguments.seed,
        pretrained=False,
        plots=False,
        project=str(work),
        name="run",
    )
    minutes = (time.monotonic() - started) / 60
    used = cpu_minutes() - before
    trained = YOLO(work / "run" / "weights" / "last.pt")
    truth = json.loads((arguments.data / "annotations" / "instances_val.json").read_text())
    ap = judge(truth, predicted(trained, arguments.data / "images", truth))
    epochs = sum(1 for _ in (work / "run" / "results.csv").open()) - 1
    add_line(
        arguments.out / "results.csv",
        {
            "run": label,
            "detector": f"YOLO11n, ultralytics {ultralytics.__version__}",
            "cores": len(cores),
            "seed": arguments.seed,
            "minutes": round(minutes, 2),
            "cpu_minutes": round(used, 2),
            "epochs": epochs,
            "iterations": "",
            **ap,
        },
    )


def predicted(model: Any, images: Path, truth: dict) -> list[dict]:  # noqa: ANN401
    """What the network finds in the images of an annotation file, as a COCO result file lists it."""
    found = []
    for image in truth["images"]:
        result = model.predict(
            str(images / image["file_name"]),
            imgsz=SIDE,
            conf=0.001,
            iou=0.7,
            max_det=300,
            device="cpu",
            verbose=False,
        )[0].boxes
        for box, score, label_index in zip(
            result.xyxy.tolist(), result.conf.tolist(), result.cls.tolist(), strict=True
        ):
            x1, y1, x2, y2 = box
            category = truth["categories"][int(label_index)]["id"]
            bbox = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": image["id"], "category_id": category, "bbox": bbox, "score": score})
    return found


def judge(truth: dict, found: list[dict]) -> dict[str, float]:
    """AP, AP50 and AP75 in percent, by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    coco = COCO(truth)
    evaluation = COCOeval_faster(coco, coco.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: round(100 * float(evaluation.stats[at]), 2) for at, name in enumerate(("ap", "ap50", "ap75"))}


def convert(source: Path, target: Path) -> Path:
    """COCO labels as YOLO text files beside links to the images; the path of data.yaml."""
    for split in ("train", "val"):
        truth = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        order = {category["id"]: index for index, category in enumerate(truth["categories"])}
        images, labels = target / "images" / split, target / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        lines: dict[int, list[str]] = {image["id"]: [] for image in truth["images"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
        for annotation in truth["annotations"]:
            (x, y, w, h), (width, height) = annotation["bbox"], sizes[annotation["image_id"]]
            numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            text = " ".join(f"{number:.6f}" for number in numbers)
            lines[annotation["image_id"]].append(f"{order[annotation['category_id']]} {text}")
        for image in truth["images"]:
            (images / image["file_name"]).symlink_to(source / "images" / image["file_name"])
            (labels / Path(image["file_name"]).with_suffix(".txt").name).write_text("\n".join(lines[image["id"]]))
    names = {index: category["name"] for index, category in enumerate(truth["categories"])}
    config = target / "data.yaml"
    config.write_text(json.dumps({"path": str(target), "train": "images/train", "val": "images/val", "names": names}))
    return config


if __name__ == "__main__":
    main()
