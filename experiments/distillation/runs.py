"""Which runs the experiment consists of: names, settings and their groups; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHORT = ("train.epochs=25", "schedule.no_aug_epochs=5", "eval.every=5", "eval.every_no_aug=5", "log.curves=false")
"""A schedule of two to four minutes on top of small-data; evaluated on the way for the curves of Figure 4."""

METHODS = ("none", "cwd", "mimic", "mgd")
FIXED_WEIGHTS = (0.5, 2.0, 10.0)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        group: `table8`, `figure4`, `head` or `cards`.
        data: Data set, `bccd` or `cards`.
        method: `none`, or of distillation.
        weight: Fixed weight; None is the cosine from 1 to 0.1.
        towers: Convolutions before each projection of the student's head; 0 is the zero head.
        seed: Of weights, order and augmentation.
        minutes: Wall time instead of a number of epochs.
    """

    group: str
    data: str
    method: str
    seed: int
    weight: float | None = None
    towers: int = 0
    minutes: float | None = None

    @property
    def name(self) -> str:
        """Unique, and the name of its files."""
        weight = "" if self.weight is None else f"-w{self.weight:g}"
        towers = f"-towers{self.towers}" if self.towers else ""
        timed = f"-{self.minutes:g}min" if self.minutes else ""
        return f"{self.data}-{self.method}{weight}{towers}{timed}-seed{self.seed}"

    def settings(self) -> list[str]:
        """Values of `--set`, the teacher's file left out."""
        values = list(SHORT)
        if self.minutes is not None:
            values += [
                "train.epochs=1000",
                "schedule.no_aug_epochs=150",
                "schedule.warmup_epochs=90",
                "eval.every=1000",
            ]
            values += ["eval.every_no_aug=1000"]
        if self.method != "none":
            values.append(f"distill.method={self.method}")
        if self.weight is not None:
            values += ["distill.schedule=constant", f"distill.weight={self.weight:g}"]
        return values


def bccd_runs(seeds: Sequence[int]) -> list[Run]:
    """Table 8, Figure 4 and the head on bccd; seed by seed, so that an early stop leaves whole comparisons."""
    runs = []
    for seed in seeds:
        runs += [Run("table8", "bccd", method, seed) for method in METHODS]
        runs += [Run("figure4", "bccd", "cwd", seed, weight=weight) for weight in FIXED_WEIGHTS]
        runs += [Run("head", "bccd", method, seed, towers=2) for method in ("none", "cwd")]
    return runs


def cards_runs(seeds: Sequence[int], methods: Sequence[str], *, minutes: float) -> list[Run]:
    """The better methods and none at equal wall time."""
    return [Run("cards", "cards", method, seed, minutes=minutes) for seed in seeds for method in ("none", *methods)]
