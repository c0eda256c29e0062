"""A training run made ready: new, or as a resume file says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from maenas.files import write_text_atomically
from maenas.structure import Structure, save_structure, structure_from_dict

from .assign import ASSIGNERS
from .config import ModelConfig, TrainConfig, changed_fields, is_harmless
from .criterion import Criterion
from .data.dataset import Dataset
from .data.plan import count_iterations
from .data.sampling_report import SourceCounts, count_sources, sampling_notes, sampling_table
from .distill_run import prepare_distillation, teacher_note
from .distributed import Processes
from .ema import ModelEma
from .errors import TrainingError
from .fine_tune import frozen_modules, read_weights, transfer_weights
from .label_rules import LabelRules
from .learner import Learner
from .model import Detector
from .optim import build_optimizer, restore_optimizer
from .run_folder import RunFolder
from .run_plan import checked_data, data_digest, fitted_structure
from .schedule import Progress
from .teacher import Teacher
from .train_log import read_metrics
from .training_run import SUMS, Run, restore_random
from .training_state import TrainingState, load_training_state

if TYPE_CHECKING:
    from .data.source import DataConfig


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
    if state is None:
        notes = (*notes, *_take_weights(model, structure, config.model))
    model.to(device)
    ema = ModelEma(model, config.ema)  # before norms are synchronised: it is never trained
    if config.train.sync_norm:
        processes.synchronise_norms(model, device)
    counted = count_sources(train_set, config.sampling)
    notes = (*notes, *sampling_notes(counted, num_classes=len(data.class_names)))
    learner, teacher = _learner(config, model, train_set, device=device, processes=processes)
    if teacher is not None:
        notes = (*notes, teacher_note(config, teacher))
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
        _write_question(run, counted)
    return run


def _take_weights(model: Detector, structure: Structure, config: ModelConfig) -> tuple[str, ...]:
    """Put the weights that a new run is to start from into the network, if there are any; notes about them."""
    source = config.weights
    if source is None:
        return ()
    taken = transfer_weights(model, read_weights(source, structure), source=source, class_head=config.class_head)
    return taken.notes(source)


def _learner(
    config: TrainConfig, model: Detector, train_set: Dataset, *, device: torch.device, processes: Processes
) -> tuple[Learner, Teacher | None]:
    """The network with its losses, and with what it is taught by; it trains."""
    frozen = frozen_modules(model, config.model.freeze)
    criterion = _criterion(config, train_set, channels=model.head.num_logits, device=device, processes=processes)
    taught = prepare_distillation(config, model, num_images=len(train_set), device=device, processes=processes)
    distiller, teacher = (None, None) if taught is None else taught
    learner = Learner(
        model,
        criterion,
        channels_last=config.train.channels_last,
        precision=config.train.precision,
        loss_scale=processes.world_size,
        frozen=frozen,
        compiled=config.train.compile,
        distiller=distiller,
    )
    return learner.train(), teacher


def _criterion(
    config: TrainConfig, train_set: Dataset, *, channels: int, device: torch.device, processes: Processes
) -> Criterion:
    union, rules = train_set.union, None
    if config.loss.partial_labels and union is not None and not union.space.is_complete:
        rules = LabelRules.of(union.space, channels=channels, device=device)
    return Criterion(
        assigner=ASSIGNERS[config.loss.assigner],
        quality_focal_weight=config.loss.quality_focal,
        giou_weight=config.loss.giou,
        dfl_weight=config.loss.dfl,
        # Sums, and losses scaled to outweigh that gradients are averaged: so the least normaliser, 1, means the same
        # for any number of processes. With means it would be 1 for each process.
        mean_over_processes=processes.total,
        rules=rules,
    )


def _write_question(run: Run, counted: Sequence[SourceCounts]) -> None:
    """Leave in the folder what is trained, how, and what is shown how often."""
    write_text_atomically(run.folder.config, run.config.to_yaml())
    save_structure(run.structure, run.folder.structure)
    if counted:
        write_text_atomically(run.folder.sampling, sampling_table(counted))


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
        restore_random(state.tensors["rng"], run.device)
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
        harmful["structure"] = (structure_from_dict(record["structure"]).digest, run.structure.digest)
    if record["data_digest"] != run.data_digest:
        harmful["data"] = (record["data_digest"], run.data_digest)
    if record["teacher"] != run.teacher_digest:
        harmful["the teacher's weights"] = (record["teacher"], run.teacher_digest)
    if harmful:
        shown = "; ".join(f"{name}: {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in harmful.items())
        raise TrainingError(
            f"{run.folder.path}: the run to resume had other settings ({shown}); expected the same, or a new folder"
        )
