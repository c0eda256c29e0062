"""What a run will be, known before its first step: network and data brought together, and checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maenas.structure import Structure

from .config import ModelConfig, TrainConfig
from .data.dataset import Dataset
from .data.plan import count_iterations
from .data.sampling_report import count_sources, sampling_notes
from .distill import map_shapes
from .distill_run import teacher_note
from .distributed import SINGLE, Processes
from .errors import ConfigError, DataError
from .model import Detector
from .teacher import load_teacher

if TYPE_CHECKING:
    from .data.source import DataConfig


def plan_run(config: TrainConfig, structure: Structure, data: DataConfig) -> dict[str, Any]:
    """What a run would do, after the checks that need no image: plain values for people and JSON.

    Raises:
        MaenasError: As `detector.training_run.prepare_run`.
    """
    train_set, val_set = checked_data(config, data, SINGLE)
    structure, notes = fitted_structure(structure, config.model, len(data.class_names))
    per_epoch = count_iterations(len(train_set), config.train.batch_size, last=config.train.last_batch)
    counted = count_sources(train_set, config.sampling)
    with torch.device("meta"):
        model = Detector(structure)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if config.distill.teacher is not None:
        map_shapes(model, config.distill, whose="student")
        teacher = load_teacher(config.distill.teacher, config.distill, device=torch.device("cpu"))
        notes = (*notes, teacher_note(config, teacher))
    optimizer = config.optimizer
    return {
        "structure": f"{structure.name} ({structure.digest})",
        "parameters": parameters,
        "image_size": list(structure.image_size),
        "classes": list(data.class_names),
        "training_images": len(train_set),
        "validation_images": len(val_set),
        "epochs": config.train.epochs,
        "steps_per_epoch": per_epoch,
        "steps": per_epoch * config.train.epochs,
        "optimizer": f"{optimizer.name}, highest learning rate {optimizer.highest_lr(config.train.batch_size):g}",
        "notes": [*notes, *sampling_notes(counted, num_classes=len(data.class_names))],
    }


def fitted_structure(structure: Structure, config: ModelConfig, num_classes: int) -> tuple[Structure, tuple[str, ...]]:
    """A structure with the data's number of classes and the image size asked for, and notes on what changed."""
    notes = []
    if structure.head.num_classes != num_classes:
        notes.append(
            f"classes: {structure.head.num_classes} in the structure, {num_classes} in the data; trained: {num_classes}"
        )
        structure = replace(structure, head=replace(structure.head, num_classes=num_classes))
    size = structure.image_size if config.image_size is None else config.image_size
    if tuple(size) != tuple(structure.image_size):
        old, new = ("x".join(map(str, sides)) for sides in (structure.image_size, size))
        notes.append(f"image size: {old} in the structure, trained at {new}")
        structure = replace(structure, image_size=(size[0], size[1]))
    return structure, tuple(notes)


def data_digest(*datasets: Dataset) -> str:
    """Twelve hex digits of everything in data sets but the pixels and where the files lie."""
    digest = hashlib.sha256()
    for dataset in datasets:
        digest.update(f"{json.dumps(list(dataset.class_names))};{len(dataset)};".encode())
        for record in dataset.images:
            digest.update(f"{record.image_id};{record.path.name};{record.size};".encode())
            for values in (record.boxes, record.labels, record.ignored):
                digest.update(np.ascontiguousarray(values).tobytes())
        if dataset.union is not None:
            digest.update(json.dumps([asdict(dataset.union.space), [one.source for one in dataset.images]]).encode())
    return digest.hexdigest()[:12]


def checked_data(config: TrainConfig, data: DataConfig, processes: Processes) -> tuple[Dataset, Dataset]:
    """The training and the validation set, if they can be used.

    Raises:
        DataError: A split is missing, or holds nothing to learn or to evaluate.
        ConfigError: The batch size does not go with the number of images or of processes.
    """
    batch, train_set, val_set = config.train.batch_size, data.train, data.val
    if train_set is None or val_set is None:
        missing = "train" if train_set is None else "val"
        raise DataError(f"{config.data.path or 'the data set'}: has no split {missing}; expected train and val")
    if batch > len(train_set):
        raise ConfigError(
            f"train.batch_size is {batch}, but {train_set.name} has {len(train_set)} images; "
            f"expected a batch of at most {len(train_set)}"
        )
    if batch % processes.world_size:
        raise ConfigError(
            f"train.batch_size is {batch}, the images of all processes together; "
            f"expected a multiple of the number of processes, {processes.world_size}"
        )
    for one in (val_set,) if val_set.union is None else val_set.union.parts.values():
        if all(record.ignored.all() for record in one.images):
            raise DataError(f"{one.name}: its images ({len(one)}) hold no box; there is nothing to evaluate")
    return train_set, val_set
