"""Everything that a training run holds between two steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maenas.structure import Structure

from .checkpoint import Checkpoint, save_checkpoint
from .config import TrainConfig
from .data.dataset import Dataset
from .distributed import Processes
from .ema import ModelEma
from .learner import Learner
from .model import Detector
from .optim import optimizer_tensors
from .run_folder import RunFolder
from .schedule import Progress
from .teacher import Teacher
from .training_state import TrainingState, save_training_state

if TYPE_CHECKING:
    from .train_step import StepOutcome

SUMS = (
    *("total", "quality_focal", "giou", "dfl", "distill", "distill_weight"),
    *("positives", "gradient_norm", "steps", "images", "seconds"),
)
"""What is added up over the steps of an epoch."""


@dataclass(slots=True)
class Run:
    """A run between two steps.

    Attributes:
        config: Resolved settings.
        structure: The network, with the data's classes and image size.
        train_set: Training images.
        val_set: Validation images.
        processes: This process among those of the run.
        device: Where it computes.
        folder: Where its files are.
        learner: Network and loss; the network's raw weights.
        parallel: The learner with gradients averaged over processes.
        ema: The averaged network.
        optimizer: Of the learner's parameters.
        scaler: Gradient scaling; does nothing but in fp16.
        progress: How far it is.
        iterations_per_epoch: Steps.
        data_digest: What a resumed run is checked against.
        notes: What was adapted, for the user.
        teacher: Whose maps the learner is compared with; None without distillation.
        rows: Of metrics.csv, of finished epochs.
        sums: Of the epoch under way.
        best: AP, epoch and further figures of the best evaluation; empty before the first.
        evaluations_without_gain: Since the best one.
        bad_steps: In a row.
        lr: Learning rate of the last step.
        used_seconds: Before this process began.
        began: Clock when this process began.
    """

    config: TrainConfig
    structure: Structure
    train_set: Dataset
    val_set: Dataset
    processes: Processes
    device: torch.device
    folder: RunFolder
    learner: Learner
    parallel: nn.Module
    ema: ModelEma
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    iterations_per_epoch: int
    data_digest: str
    notes: tuple[str, ...]
    teacher: Teacher | None = None
    rows: list[dict[str, float | None]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    best: dict[str, float] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    bad_steps: int = 0
    lr: float = 0.0
    used_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its processes one after the other."""
        return self.used_seconds + time.monotonic() - self.began

    @property
    def position(self) -> float:
        """How far the schedule is, in epochs."""
        return self.progress.value * self.config.train.epochs

    @property
    def in_last_stage(self) -> bool:
        """Whether mosaic and MixUp are off."""
        return self.position >= self.config.train.epochs - self.config.schedule.no_aug_epochs

    @property
    def distill_weight(self) -> float | None:
        """Weight of the distillation loss in the next step; 0 where the teacher is silent, None without one."""
        if self.teacher is None:
            return None
        settings = self.config.distill
        silent = settings.stop == "no_aug" and self.in_last_stage
        return 0.0 if silent else settings.weight_at(self.progress.value)

    @property
    def clip_norm(self) -> float | None:
        """Largest gradient norm of the network; None does not clip."""
        return self.config.distill.clipped_at(self.config.optimizer.clip_norm)

    @property
    def evaluation_period(self) -> int:
        """Epochs from one evaluation to the next at this stage."""
        return self.config.eval.every_no_aug if self.in_last_stage else self.config.eval.every

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step ended an epoch."""
        return self.progress.iteration % self.iterations_per_epoch == 0 or self.progress.finished

    @property
    def epoch_is_due(self) -> bool:
        """Whether an epoch has ended that has no row yet."""
        return self.at_epoch_end and self.progress.iteration > len(self.rows) * self.iterations_per_epoch

    @property
    def out_of_patience(self) -> bool:
        """Whether too many evaluations have passed without a better AP."""
        patience = self.config.train.patience
        return patience is not None and self.evaluations_without_gain >= patience

    @property
    def averaged(self) -> Detector:
        """The network that is evaluated and kept."""
        return self.ema.model

    def count_step(self, outcome: StepOutcome, *, seconds: float) -> None:
        """Add a step to the progress and to the epoch's sums; times are the first process's, so that all agree."""
        told = (seconds, self.seconds) if self.processes.is_first else (0.0, 0.0)
        seconds, used = self.processes.sum(told)
        if not self.best:
            # Not measured yet: an image of an evaluation takes about half as long as one of a step.
            share = len(self.val_set) / self.config.train.batch_size
            self.progress.evaluation_seconds = 0.5 * share * self.progress.step_seconds
        period = self.evaluation_period * self.iterations_per_epoch
        self.progress.step(seconds=seconds, used_seconds=used, evaluation_period=period)
        batch_size = self.config.train.batch_size
        self.lr = outcome.lr
        self.sums["images"] += batch_size
        self.sums["seconds"] += seconds
        if outcome.finite:
            values = {**outcome.losses, "positives": outcome.positives, "gradient_norm": outcome.gradient_norm}
            values["distill_weight"] = outcome.distill_weight or 0.0
            for name, value in {**values, "steps": 1.0}.items():
                self.sums[name] += value

    @property
    def teacher_digest(self) -> str | None:
        """Of the teacher's weights; None without distillation."""
        return None if self.teacher is None else self.teacher.digest

    def save_state(self) -> None:
        """Write the resume file; only the first process does."""
        if not self.processes.is_first:
            return
        tensors = {
            "learner": self.learner.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.learner),
            "rng": random_states(self.device),
        }
        record = {
            "config": self.config.to_dict(),
            "structure": self.structure.to_dict(),
            "data_digest": self.data_digest,
            "teacher": self.teacher_digest,
            "progress": self.progress.state(),
            "scaler": self.scaler.state_dict(),
            "closed_epochs": len(self.rows),
            "sums": self.sums,
            "best": self.best,
            "evaluations_without_gain": self.evaluations_without_gain,
            "lr": self.lr,
            "used_seconds": self.seconds,
        }
        save_training_state(TrainingState(tensors, record), self.folder.state)

    def save_averaged(self, *paths: Path, metrics: Mapping[str, float]) -> None:
        """Write the averaged network as a checkpoint."""
        checkpoint = Checkpoint(
            structure=self.structure,
            weights=self.averaged.state_dict(),
            class_names=self.averaged.class_names,
            metrics=metrics,
            provenance={
                "data": self.train_set.name,
                "data_digest": self.data_digest,
                "epoch": len(self.rows) + 1,
                "iteration": self.progress.iteration,
                "seed": self.config.train.seed,
                "parent": self.config.model.weights,
                "teacher": self.teacher_digest,
            },
        )
        for path in paths:
            save_checkpoint(checkpoint, path)

    def is_finite(self) -> bool:
        """Whether weights and statistics are all numbers."""
        values = [value for value in self.learner.state_dict().values() if value.is_floating_point()]
        return all(bool(torch.isfinite(value).all()) for value in values)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Torch's random states, as `restore_random` takes them."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on drawing where `random_states` was asked."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
