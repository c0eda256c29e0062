"""Small stand-ins for what the documents take for granted: data sets, checkpoints, exports, photographs.

`Inputs.supply` looks at a path that a command names. If there is nothing of that name yet, it puts a stand-in there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plot_cases
import torch
import yaml
from data_cases import box, coco, write_coco
from doc_commands import ROOT, blocks
from export_cases import lively
from training_cases import tiny_structure, write_rectangles

from detector.checkpoint import Checkpoint, save_checkpoint
from detector.convert_official import save_official
from detector.data.sample_data import write_sample_data
from detector.data.sample_shapes import CLASSES
from detector.export import ExportChecks, ExportOptions, export_artifacts
from detector.model import Detector
from detector.standardise import random_detector, random_images, standardise
from detector.video import VideoWriter
from maenas.official_export import export_official
from maenas.published import load_published
from maenas.structure import Structure, save_structure

NAMES = ("red", "blue", *CLASSES)
"""Classes of the stand-in checkpoint: those of both kinds of data sets."""


class Inputs:
    """Makes each stand-in once, below `folder`, and copies it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def supply(self, word: str, place: Path) -> None:
        """Put something at the path `word` below `place`, if a rule knows what belongs there and nothing is there."""
        for pattern, make in _RULES:
            match = re.fullmatch(pattern, word.rstrip("/"))
            if match:
                if not (place / word).exists():
                    self._copy(make, place / ((match[1] or "") if match.groups() else match[0]))
                return

    def _copy(self, make: Callable[[Path], None], target: Path) -> None:
        kept = self.folder / make.__name__.strip("_")
        if not kept.exists():
            kept.mkdir(parents=True)
            make(kept)
        target.parent.mkdir(parents=True, exist_ok=True)
        (single, *more) = kept.iterdir()
        if more or single.is_dir():
            shutil.copytree(kept, target, dirs_exist_ok=True)
        else:
            shutil.copy(single, target)


def _structure() -> Structure:
    return tiny_structure(num_classes=len(NAMES))


def _tiny(folder: Path) -> None:
    save_structure(_structure(), folder / "structure.json")


def _checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    model = Detector(_structure()).eval()
    standardise(model, random_images(8, 3, 64, 64))
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), NAMES), folder / "best.safetensors")


def _published_s(folder: Path) -> None:
    model = random_detector(load_published("damo-yolo-s"))
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), model.class_names), folder / "s.safetensors")


def _official_t(folder: Path) -> None:
    save_official(random_detector(load_published("damo-yolo-t")), folder / "official.pth")


def _official_s(folder: Path) -> None:
    (folder / "net.txt").write_text(export_official(load_published("damo-yolo-s")), encoding="utf-8")


def _official_nano(folder: Path) -> None:
    (folder / "nano.txt").write_text(export_official(load_published("damo-yolo-n")), encoding="utf-8")


def _rectangles(folder: Path) -> None:
    write_rectangles(folder, num_train=16, num_val=2)


def _shapes(folder: Path) -> None:
    shutil.rmtree(folder)
    write_sample_data(folder, num_train=8)


def _exported(folder: Path) -> None:
    export_artifacts(
        lively(_structure()), folder, class_names=NAMES, options=ExportOptions(), checks=ExportChecks(verify=False)
    )


def _onnx(folder: Path) -> None:
    _exported(folder)
    (folder / "model.json").unlink()


def _photo(folder: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")


def _photos(folder: Path) -> None:
    """One photograph and two files that only look like one."""
    _photo(folder)
    (folder / "photo.jpg").rename(folder / "a.jpg")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:20])
    (folder / "zero.png").write_bytes(b"")


def _video(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with VideoWriter(folder / "street.mp4", fps=25, size=(64, 96)) as writer:
        for index in range(3):
            writer.write(np.roll(noise, index, axis=1))


def _union(folder: Path) -> None:
    """The union file of docs/multi-dataset.md, with data sets of the classes that it names."""
    text = blocks(ROOT / "docs" / "multi-dataset.md", "yaml")[0].replace("/data/openimages.yaml", "openimages")
    (folder / "union.yaml").write_text(text, encoding="utf-8")
    marked = {
        "coco": ("person", "tv", "car", "mouse"),
        "objects365": ("Person", "Monitor/TV", "Taxi", "mouse"),
        "openimages": ("Television", "Limousine", "mouse"),
    }
    assert [source["name"] for source in yaml.safe_load(text)["sources"]] == list(marked)
    for source, names in marked.items():
        categories = [(number, name) for number, name in enumerate(names, start=1)]
        for split in ("train", "val"):
            images = [(number, f"{split}-{number}.png") for number, _ in categories]
            marks = [box(number, number, [5, 5, 20, 20]) for number, _ in categories]
            write_coco(folder / source, coco(images, marks, categories), split)
        (folder / source / "data.yaml").write_text(
            "train: annotations/instances_train.json\nval: annotations/instances_val.json\n", encoding="utf-8"
        )


def _searched(folder: Path) -> None:
    """As of a search without a latency budget: two latencies of unlike kinds would not share a picture."""
    priceless = {"latency_ms": None, "latency_sigma_ms": None, "device": None, "provenance": None, "table_hash": None}
    plot_cases.write_json(folder / "search.json", plot_cases.search(plot_cases.small(), **priceless))
    plot_cases.write_structure(folder, plot_cases.small())


def _trained(folder: Path) -> None:
    plot_cases.write_structure(folder, plot_cases.small())


def _evaluated(folder: Path) -> None:
    plot_cases.write_json(folder / "run" / "eval.json", plot_cases.evaluation(plot_cases.small(), 0.4))


def _timed(folder: Path) -> None:
    plot_cases.write_json(folder / "bench.json", plot_cases.benchmark(plot_cases.line(plot_cases.small(), 5.0)))


def _spaces(folder: Path) -> None:
    shutil.copytree(ROOT / "search_spaces", folder, dirs_exist_ok=True)


_RULES: tuple[tuple[str, Callable[[Path], None]], ...] = (
    (r"(shapes)(?:/.*)?", _shapes),
    (r"(photos)(?:/.*)?", _photos),
    (r"photo\.jpg", _photo),
    (r"street\.mp4", _video),
    (r"(?:(.+)/)?union\.yaml", _union),
    (r"(?:(.+)/)?data\.yaml", _rectangles),
    (r"coco", _rectangles),
    (r"s\.safetensors", _published_s),
    (r".+\.safetensors", _checkpoint),
    (r".+\.pth", _official_t),
    (r"net\.txt", _official_s),
    (r"nano\.txt", _official_nano),
    (r"(exported|fp32|int8|runs/shapes/onnx)(?:/.*)?", _exported),
    (r".+\.onnx", _onnx),
    (r"small\.json|.+/structure\.json", _tiny),
    (r"runs/search/mine", _searched),
    (r"runs/train/mine", _trained),
    (r"runs/eval/mine", _evaluated),
    (r"bench\.json", _timed),
    (r"(search_spaces)/.+", _spaces),
)
"""Paths to what belongs there; the first group, if any, is the path of the stand-in itself."""
