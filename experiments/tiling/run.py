"""What tiles bring where objects are small: validation images joined to large ones, looked at whole and in tiles."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from detector.data.dataset import Dataset
from detector.data.source import load_split
from detector.evaluate import evaluate
from detector.images import read_image
from detector.load import load_predictor
from detector.tiling import Tiling

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Join, measure, write results.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint trained on whole images of the data set")
    parser.add_argument("--data", type=Path, required=True, help="folder whose images all have one size")
    parser.add_argument("--grid", type=int, default=3, help="images per row and column of a large one")
    parser.add_argument("--work", type=Path, required=True, help="the large images")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    model = load_predictor(arguments.model)
    single = load_split(arguments.data, "val", class_names=model.class_names)
    joined = load_split(join(single, arguments.grid, arguments.work), "val", class_names=model.class_names)
    height, width = read_image(single.images[0].path).shape[:2]
    twice = (2 * height, 2 * width)
    rows = [
        measure("single images", model, single, None),
        measure("joined, whole", model, joined, None),
        measure("joined, tiles of a single image", model, joined, Tiling((height, width))),
        measure("the same, overlap 0.1", model, joined, Tiling((height, width), overlap=0.1)),
        measure("the same, overlap 0.5", model, joined, Tiling((height, width), overlap=0.5)),
        measure("the same and the whole image", model, joined, Tiling((height, width), whole=True)),
        measure("joined, tiles twice as large", model, joined, Tiling(twice)),
    ]
    with arguments.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def join(single: Dataset, grid: int, folder: Path) -> Path:
    """A COCO folder of images of grid x grid validation images each; what is left over is left out."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(len(single) // grid**2):
        parts = single.images[number * grid**2 : (number + 1) * grid**2]
        pixels = [read_image(part.path) for part in parts]
        height, width = pixels[0].shape[:2]
        canvas = np.concatenate([np.concatenate(pixels[row * grid : (row + 1) * grid], axis=1) for row in range(grid)])
        name = f"{number:03d}.png"
        Image.fromarray(canvas).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": canvas.shape[0], "width": canvas.shape[1]})
        for place, part in enumerate(parts):
            x, y = place % grid * width, place // grid * height
            for (x1, y1, x2, y2), label, ignored in zip(part.boxes, part.labels, part.ignored, strict=True):
                box = [float(value) for value in (x1 + x, y1 + y, x2 - x1, y2 - y1)]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": int(label) + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(ignored),
                    }
                )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(single.class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "annotations" / "instances_val.json"


def measure(what: str, model: object, dataset: Dataset, tiling: Tiling | None) -> dict[str, str]:
    """A line of the results."""
    result = evaluate(model, dataset, tiling=tiling)
    metrics = result.metrics
    return {
        "what": what,
        "images": str(len(dataset)),
        "ap": f"{metrics.ap:.4f}",
        "ap50": f"{metrics.ap50:.4f}",
        "detections": str(metrics.num_detections),
        "ms_per_image": f"{result.timing.median_ms:.0f}",
    }


if __name__ == "__main__":
    main()
