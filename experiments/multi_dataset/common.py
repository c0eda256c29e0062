"""Shared by the two scripts: a small network, runs through the command line that go on where they stopped, a CSV."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from maenas.structure import Backbone, Head, Neck, Stage, Stem, Structure, save_structure

HERE = Path(__file__).resolve().parent
RECIPE = (
    *("optimizer.lr=0.003", "ema.decay=0.99", "ema.ramp=50", "schedule.no_aug_epochs=10", "augment.mosaic=0.3"),
    *("eval.every=1000", "eval.every_no_aug=1000"),
)
"""Beside `small-data`: fewer mosaics, an average that follows runs of a thousand steps, one evaluation at the end."""


def network(path: Path, *, side: int, num_classes: int) -> Path:
    """Write a network of half a million parameters that a core trains with tens of images a second."""
    stages = (Stage(32, (16,), 2, 3), Stage(48, (24, 24), 2, 3), Stage(64, (32, 32), 2, 3), Stage(96, (48,), 2, 3))
    structure = Structure(
        name="small",
        image_size=(side, side),
        backbone=Backbone("res", "relu", Stem("focus", 3, 16, 3, 1), stages, (2, 3, 4)),
        neck=Neck((32, 48, 64), 1, 1.0, "relu", depthwise=False),
        head=Head(num_classes, 8, 3),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_structure(structure, path)
    return path


def train(
    out: Path, data: Path, *, model: Path, epochs: int, batch: int, seed: int, sets: tuple[str, ...] = ()
) -> Path:
    """Train, or go on with a run that was stopped; the last checkpoint."""
    last = out / "last.safetensors"
    if (out / "result.json").exists() and json.loads((out / "result.json").read_text())["ended_by"] == "completed":
        return last
    options = ["--data", str(data), "--recipe", "small-data", "--epochs", str(epochs), "--batch", str(batch)]
    options += ["--seed", str(seed), "--workers", "0", "--device", "cpu", "--out", str(out)]
    options += ["--set", *RECIPE, "eval.samples=0", "log.curves=false", *sets]
    going_on = ["--resume"] if (out / "state.safetensors").exists() else []
    maenas("train", str(model), *options, *going_on)
    return last


def evaluate(model: Path, data: Path, out: Path) -> dict:
    """The record of `maenas eval`."""
    maenas("eval", str(model), "--data", str(data), "--out", str(out), "--no-plots", "--force")
    return json.loads((out / "eval.json").read_text(encoding="utf-8"))


def maenas(*words: str) -> None:
    """Run a verb on one core."""
    done = subprocess.run(
        [sys.executable, "-m", "maenas", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"maenas {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")


def add_line(path: Path, line: dict[str, object]) -> None:
    """Replace the line of this run in a CSV, sorted by the column `run`."""
    lines: dict[str, dict[str, str]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            lines = {row["run"]: row for row in csv.DictReader(stream)}
    lines[str(line["run"])] = {key: str(value) for key, value in line.items()}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(line), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[key] for key in sorted(lines))
    print(json.dumps(line), flush=True)
