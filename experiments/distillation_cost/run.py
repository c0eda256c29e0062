"""What does a teacher add to a training step on a CPU, and what does each measure against it bring?"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detector.cpu_memory import keep_freed_memory
from detector.criterion import Criterion
from detector.distill import Distiller, Guidance, map_shapes
from detector.distill_config import DistillConfig
from detector.learner import Learner
from detector.model import Detector
from detector.optim import OptimizerConfig, build_optimizer, set_learning_rate
from detector.reparam import deploy
from detector.targets import Targets
from detector.teacher import Teacher
from maenas.published import resolve_structure

HERE = Path(__file__).resolve().parent
NUM_CLASSES = 3
WARM_UP = 2
CPU = torch.device("cpu")

Maps = Callable[[Tensor, Tensor], list[Tensor]]
"""The teacher's maps of a batch, from its uint8 and its float images."""


@dataclass(frozen=True)
class Row:
    """A student and how it is taught.

    Attributes:
        name: Of the row.
        step: Makes a training step.
    """

    name: str
    step: Callable[[], None]


def network(name: str, size: int) -> Detector:
    """A published network or structure file with initial weights, for three classes."""
    structure = resolve_structure(name)
    return Detector(replace(structure, head=replace(structure.head, num_classes=NUM_CLASSES), image_size=(size, size)))


def teachers(model: Detector) -> dict[str, Maps]:
    """The teacher as it is, and with single measures undone or added."""
    config = DistillConfig()
    folded, plain = deploy(model), model
    inner = deploy(model).to(memory_format=torch.channels_last)

    def features(one: Detector, images: Tensor, *, order: torch.memory_format = torch.channels_last) -> list[Tensor]:
        with torch.no_grad():
            return one.features(images.contiguous(memory_format=order))

    def with_head(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            maps = inner.features(images.contiguous(memory_format=torch.channels_last))
            inner.head(maps)
            return maps

    def recorded(images: Tensor) -> list[Tensor]:
        maps = inner.features(images.contiguous(memory_format=torch.channels_last))
        return [level.detach() for level in maps]

    outer = torch.contiguous_format
    branched = plain.eval()
    return {
        "as it is": Teacher(model, config, device=CPU, digest="").maps,
        "two branches, batch norms": lambda _, images: features(branched, images),
        "channels outermost": lambda _, images: features(folded, images, order=outer),
        "with its head": lambda _, images: with_head(images),
        "gradients recorded": lambda _, images: recorded(images),
        "two branches, batch norms, channels outermost": lambda _, images: features(branched, images, order=outer),
        "bfloat16": Teacher(model, replace(config, precision="bf16"), device=CPU, digest="").maps,
        "maps kept": Teacher(model, replace(config, cache="ram"), device=CPU, digest="").maps,
    }


def rows(student: str, teacher: str, *, size: int, batch: int) -> list[Row]:
    """The student alone, and taught in every way."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (batch, 3, size, size), np.uint8))
    targets = boxes(rng, batch, size)
    model, master = network(student, size), network(teacher, size)
    made = [Row("no teacher", stepper(Learner(model, Criterion(), channels_last=True), images, targets, None))]
    for name, maps in teachers(master).items():
        for method in ("cwd", "mimic", "mgd") if name == "as it is" else ("cwd",):
            config = DistillConfig(method=method)
            shapes = [map_shapes(one, config, whose="student") for one in (model, master)]
            distiller = Distiller(config, student=shapes[0], teacher=shapes[1])
            learner = Learner(network(student, size), Criterion(), channels_last=True, distiller=distiller)
            made.append(Row(f"{method}, {name}", stepper(learner, images, targets, maps)))
    return made


def stepper(learner: Learner, images: Tensor, targets: Targets, maps: Maps | None) -> Callable[[], None]:
    """A whole step: teacher, forward, assignment, losses, backward, clipping, optimiser."""
    optimizer = build_optimizer(learner.train(), OptimizerConfig())
    set_learning_rate(optimizer, 1e-5)

    def step() -> None:
        x = images.float()
        guidance = None if maps is None else Guidance(maps(images, x), 1.0)
        learner(x, targets, guidance).total.backward()
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 30.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def boxes(rng: np.random.Generator, batch: int, size: int) -> Targets:
    """Per image 1 to 25 boxes of a sixteenth to a third of its side."""
    found, labels = [], []
    for _ in range(batch):
        count = int(rng.integers(1, 26))
        centres, sides = rng.uniform(0, size, (count, 2)), rng.uniform(size / 16, size / 3, (count, 2))
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).clip(0, size)
        found.append(torch.from_numpy(corners.astype(np.float32)))
        labels.append(torch.from_numpy(rng.integers(0, NUM_CLASSES, count)))
    return Targets.from_lists(found, labels)


def measure(chosen: list[Row], rounds: int) -> list[list[float]]:
    """CPU seconds of each row's steps, the rows taking turns."""
    seconds: list[list[float]] = [[] for _ in chosen]
    for number in range(WARM_UP + rounds):
        for row, found in zip(chosen, seconds, strict=True):
            began = time.process_time()
            row.step()
            if number >= WARM_UP:
                found.append(time.process_time() - began)
    return seconds


def main() -> None:
    """Write the table and the conditions it was made under."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="damo-yolo-t")
    parser.add_argument("--teacher", default="damo-yolo-s")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    size, batch = arguments.image_size, arguments.batch
    chosen = rows(arguments.student, arguments.teacher, size=size, batch=batch)
    seconds = measure(chosen, arguments.rounds)
    medians = [statistics.median(found) for found in seconds]
    table = [
        {
            "student": arguments.student,
            "teacher": arguments.teacher,
            "taught by": row.name,
            "step_cpu_ms": round(1000 * median),
            "fastest_cpu_ms": round(1000 * min(found)),
            "overhead_percent": round(100 * (median / medians[0] - 1), 1),
            # Of each round's pair: what a neighbour does to the machine's speed hits both.
            "overhead_of_pairs_percent": round(
                100 * (statistics.median(a / b for a, b in zip(found, seconds[0], strict=True)) - 1), 1
            ),
        }
        for row, found, median in zip(chosen, seconds, medians, strict=True)
    ]
    with arguments.out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    conditions = {
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "clock": "CPU seconds of the process",
        "torch": version("torch"),
        "image_size": size,
        "batch_size": batch,
        "rounds": arguments.rounds,
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
