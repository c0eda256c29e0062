"""Everything that a training run holds between two steps: made new, or as a resume file says."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maenas.files import write_text_atomically
from maenas.structure import Structure, save_structure

from .assign import ASSIGNERS
from .checkpoint import Checkpoint, save_checkpoint
from .config import TrainConfig, changed_fields, is_harmless
from .criterion import Criterion
from .data.dataset import Dataset
from .data.plan import count_iterations
from .data.sampling_report import count_sources, sampling_notes, sampling_table
from .distill_run import prepare_distillation, teacher_note
from .distributed import Processes
from .ema import ModelEma
from .errors import TrainingError
from .fine_tune import frozen_modules, read_weights, transfer_weights
from .label_rules import LabelRules
from .learner import Learner
from .model import Detector
from .optim import build_optimizer, optimizer_tensors, restore_optimizer
from .run_folder import RunFolder
from .run_plan import checked_data, data_digest, fitted_structure
from .schedule import Progress
from .teacher import Teacher
from .train_log import read_metrics
from .training_state import TrainingState, load_training_state, save_training_state

if TYPE_CHECKING:
    from .data.source import DataConfig
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
            "rng": _random_states(self.device),
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


def prepare_run(
    config: TrainConfig,
    structure: Structure,
    data: DataConfig,
    *,
    folder: RunFolder,
    device: torch.device,
    processes: Processes,
    resume: bool,
) -> Run:
    """A run before its first step, or as its resume file says.

    Torch's random state must be set before: initial weights are drawn from it.

    Raises:
        ConfigError: Settings that do not go with the data, the device or the number of processes.
        DataError: Nothing to learn or to evaluate.
        CheckpointError: The weights to start from, or the resume file, cannot be used.
        TrainingError: The resumed run had other settings or data.
    """
    state = load_training_state(folder.state) if resume else None
    train_set, val_set = checked_data(config, data, processes)
    structure, notes = fitted_structure(structure, config.model, len(data.class_names))
    config = config.for_image_size(structure.image_size)
    model = Detector(structure, class_names=data.class_names)
    if config.model.weights is not None and state is None:
        source = config.model.weights
        taken = transfer_weights(
            model, read_weights(source, structure), source=source, class_head=config.model.class_head
        )
        notes = (*notes, *taken.notes(source))
    model.to(device)
    ema = ModelEma(model, config.ema)  # before norms are synchronised: it is never trained
    if config.train.sync_norm:
        processes.synchronise_norms(model, device)
    frozen = frozen_modules(model, config.model.freeze)
    counted = count_sources(train_set, config.sampling)
    notes = (*notes, *sampling_notes(counted, num_classes=len(data.class_names)))
    rules = None
    union = train_set.union
    if config.loss.partial_labels and union is not None and not union.space.is_complete:
        rules = LabelRules.of(union.space, channels=model.head.num_logits, device=device)
    criterion = Criterion(
        assigner=ASSIGNERS[config.loss.assigner],
        quality_focal_weight=config.loss.quality_focal,
        giou_weight=config.loss.giou,
        dfl_weight=config.loss.dfl,
        # Sums, and losses scaled to outweigh that gradients are averaged: so the least normaliser, 1, means the same
        # for any number of processes. With means it would be 1 for each process.
        mean_over_processes=processes.total,
        rules=rules,
    )
    taught = prepare_distillation(config, model, num_images=len(train_set), device=device, processes=processes)
    distiller, teacher = (None, None) if taught is None else taught
    if teacher is not None:
        notes = (*notes, teacher_note(config, teacher))
    settings = config.train
    learner = Learner(
        model,
        criterion,
        channels_last=settings.channels_last,
        precision=settings.precision,
        loss_scale=processes.world_size,
        frozen=frozen,
        compiled=settings.compile,
        distiller=distiller,
    ).train()
    ema.model.to(memory_format=learner.memory_format)  # type: ignore[call-overload]
    per_epoch = count_iterations(len(train_set), config.train.batch_size, last=config.train.last_batch)
    minutes = config.train.max_minutes
    run = Run(
        config=config,
        structure=structure,
        train_set=train_set,
        val_set=val_set,
        processes=processes,
        device=device,
        folder=folder,
        learner=learner,
        # A stage after the last one that the neck reads gets no gradient.
        parallel=processes.parallel(
            learner, device, unused_parameters=structure.backbone.out_stages[-1] < len(structure.backbone.stages)
        ),
        ema=ema,
        optimizer=build_optimizer(learner, config.optimizer),
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16"),
        progress=Progress(config.train.epochs * per_epoch, max_seconds=None if minutes is None else 60 * minutes),
        iterations_per_epoch=per_epoch,
        data_digest=data_digest(train_set, val_set),
        notes=notes,
        teacher=teacher,
    )
    if state is not None:
        _restore(run, state)
    if processes.is_first:
        write_text_atomically(folder.config, config.to_yaml())
        save_structure(structure, folder.structure)
        if counted:
            write_text_atomically(folder.sampling, sampling_table(counted))
    return run


def _restore(run: Run, state: TrainingState) -> None:
    record, place = state.record, run.folder.state
    try:
        _check_unchanged(run, record)
        run.learner.load_state_dict(dict(state.tensors["learner"]))
        run.ema.model.load_state_dict(dict(state.tensors["ema"]))
        restore_optimizer(run.optimizer, run.learner, dict(state.tensors["optimizer"]))
        run.scaler.load_state_dict(record["scaler"])
        run.progress.restore(record["progress"])
        run.sums = {name: float(record["sums"][name]) for name in SUMS}
        run.best = {name: float(value) for name, value in record["best"].items()}
        run.evaluations_without_gain = int(record["evaluations_without_gain"])
        run.lr = float(record["lr"])
        run.used_seconds = float(record["used_seconds"])
        run.rows = read_metrics(run.folder.metrics, epochs=int(record["closed_epochs"]))
        _restore_random(state.tensors["rng"], run.device)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{place}: cannot be resumed from ({type(error).__name__}: {error})") from error
    missing = int(record["closed_epochs"]) - len(run.rows)
    if missing:
        raise TrainingError(
            f"{run.folder.metrics}: {missing} of {record['closed_epochs']} epochs are missing; "
            "expected the file as the run left it"
        )


def _check_unchanged(run: Run, record: Mapping[str, Any]) -> None:
    changes = changed_fields(record["config"], run.config.to_dict())
    harmful = {name: pair for name, pair in changes.items() if not is_harmless(name)}
    if record["structure"] != run.structure.to_dict():
        harmful["structure"] = (_digest(record["structure"]), run.structure.digest)
    if record["data_digest"] != run.data_digest:
        harmful["data"] = (record["data_digest"], run.data_digest)
    if record["teacher"] != run.teacher_digest:
        harmful["the teacher's weights"] = (record["teacher"], run.teacher_digest)
    if harmful:
        shown = "; ".join(f"{name}: {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in harmful.items())
        raise TrainingError(
            f"{run.folder.path}: the run to resume had other settings ({shown}); expected the same, or a new folder"
        )


def _digest(structure: Any) -> str:  # noqa: ANN401
    from maenas.structure import structure_from_dict

    return structure_from_dict(structure).digest


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
