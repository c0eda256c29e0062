"""Shared by the tests of training: a tiny network, coloured rectangles as images, and settings for a run of seconds."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detector.callbacks import Callback, Step
from detector.config import TrainConfig, load_config
from detector.data.source import DataConfig, load_data
from detector.training_state import load_training_state
from maenas.structure import Backbone, Head, Neck, Stage, Stem, Structure

torch.set_num_threads(1)

TIMES = ("images_per_second", "seconds")
"""Columns of metrics.csv that differ from run to run."""

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def tiny_structure(*, num_classes: int = 2, size: int = 64, width: int = 8) -> Structure:
    stages = tuple(Stage(channels, (width,), 2, 3) for channels in (width, 2 * width, 2 * width, 2 * width))
    return Structure(
        name="tiny",
        image_size=(size, size),
        backbone=Backbone("res", "relu", Stem("focus", 3, width, 3, 1), stages, (2, 3, 4)),
        neck=Neck((width, width, width), 1, 1.0, "relu", depthwise=False),
        head=Head(num_classes, 4, 3),
    )


def write_rectangles(folder: Path, *, num_train: int = 12, num_val: int = 4, size: int = 64, seed: int = 0) -> Path:
    """A COCO data set of one or two rectangles per image; the folder's data.yaml."""
    rng = np.random.default_rng(seed)
    lines = []
    for split, count in (("train", num_train), ("val", num_val)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(count):
            pixels = rng.integers(90, 130, (size, size, 3), np.uint8)
            for _ in range(int(rng.integers(1, 3))):
                label = int(rng.integers(2))
                width, height = (int(side) for side in rng.integers(size // 4, size // 2, 2))
                x, y = int(rng.integers(size - width)), int(rng.integers(size - height))
                pixels[y : y + height, x : x + width] = list(COLOURS.values())[label]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": label + 1,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
            name = f"{split}/{number:03d}.png"
            Image.fromarray(pixels).save(folder / name)
            images.append({"id": number + 1, "file_name": Path(name).name, "width": size, "height": size})
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(COLOURS)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
        lines += [f"{split}: {split}.json", f"{split}_images: {split}"]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n")
    return folder / "data.yaml"


def rectangles(folder: Path, **options: int) -> DataConfig:
    return load_data(write_rectangles(folder, **options))


FAST = {
    "train.epochs": 3,
    "train.batch_size": 4,
    "train.device": "cpu",
    "optimizer.name": "adamw",
    "optimizer.lr": 0.004,
    "schedule.warmup_epochs": 0.5,
    "schedule.no_aug_epochs": 1,
    "augment.mixup": 0.5,
    "augment.scale": [0.5, 1.5],
    "ema.decay": 0.9,
    "ema.ramp": 5,
    "eval.every": 2,
    "eval.samples": 0,
    "log.curves": False,
    "data.workers": 0,
}
"""Three epochs of three steps."""


def fast_config(**changes: object) -> TrainConfig:
    """`FAST` with changes; double underscores stand for dots."""
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(changes={**FAST, **given})


def take_exactly(monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """Let every step of a training take this time by its clock, and nothing else any, however busy the machine is."""
    import detector.train

    now = time.monotonic()
    make_step = detector.train.make_step

    def step(*given: object) -> object:
        nonlocal now
        now += seconds
        return make_step(*given)

    monkeypatch.setattr(detector.train, "make_step", step)
    for module in ("train", "training_run", "epoch_end"):
        monkeypatch.setattr(f"detector.{module}.time", SimpleNamespace(monotonic=lambda: now))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file that a run wrote."""
    from safetensors.torch import load_file

    return load_file(path)


def assert_same_weights(first: Path, second: Path) -> None:
    """Bit for bit."""
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different[:5]


def rows_of(out: Path) -> list[dict[str, str]]:
    """What a run noted at the end of each epoch."""
    with (out / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def assert_same_run(out: Path, whole: Path) -> None:
    """Two runs have left the same, bit for bit, but for times."""
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_weights(out / name, whole / name)
    mine, theirs = (load_training_state(folder / "state.safetensors") for folder in (out, whole))
    for part, tensors in theirs.tensors.items():
        assert tensors.keys() == mine.tensors[part].keys()
        assert all(torch.equal(value, mine.tensors[part][name]) for name, value in tensors.items()), part
    assert mine.record["best"] == theirs.record["best"]
    for row, other in zip(rows_of(out), rows_of(whole), strict=True):
        assert {**row, **dict.fromkeys(TIMES)} == {**other, **dict.fromkeys(TIMES)}


class SignalAt(Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step(self, step: Step) -> None:
        if step.iteration == self.step:
            os.kill(os.getpid(), self.number)
