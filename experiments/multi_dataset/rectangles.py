"""Pictures that a small network learns in seconds: coloured rectangles before noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 50, 40), "yellow": (225, 205, 50), "blue": (50, 70, 220), "cyan": (60, 200, 210)}


def write_rectangles(folder: Path, *, count: int, side: int, seed: int) -> None:
    """A COCO folder; each picture holds two to four rectangles of any colour, which hide at most a part of each other.

    Args:
        folder: Is made.
        count: Pictures for training; for validation a quarter as many.
        side: Of a picture in pixels.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    for split, number in (("train", count), ("val", count // 4)):
        (folder / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for image_id in range(1, number + 1):
            pixels = rng.normal(120, 25, (side, side, 3))
            boxes: list[tuple[int, int, int, int]] = []
            while len(boxes) < 1 + image_id % 3 + 1:
                width, height = (int(length) for length in rng.integers(side // 6, side // 2, 2))
                x, y = int(rng.integers(side - width)), int(rng.integers(side - height))
                if any(covered((x, y, width, height), box) > 0.3 for box in boxes):
                    continue
                boxes.append((x, y, width, height))
                label = int(rng.integers(len(COLOURS)))
                colour = np.array(list(COLOURS.values())[label]) + rng.normal(0, 15, 3)
                pixels[y : y + height, x : x + width] = colour + rng.normal(0, 25, (height, width, 3))
                area = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1, **area})
            name = f"{image_id:04d}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / split / name)
            images.append({"id": image_id, "file_name": name, "width": side, "height": side})
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(COLOURS)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def covered(new: tuple[int, int, int, int], old: tuple[int, int, int, int]) -> float:
    """Share of an old rectangle that a new one would hide."""
    width = min(new[0] + new[2], old[0] + old[2]) - max(new[0], old[0])
    height = min(new[1] + new[3], old[1] + old[3]) - max(new[1], old[1])
    return max(width, 0) * max(height, 0) / (old[2] * old[3])
