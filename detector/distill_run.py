"""What a training run needs to be taught: teacher and distiller made, and checked against the run."""

from __future__ import annotations

import torch

from .config import TrainConfig
from .data.memory import available_bytes
from .distill import Distiller, map_shapes
from .distributed import Processes
from .errors import ConfigError
from .model import Detector
from .teacher import Teacher, load_teacher

_MEMORY_SHARE = 0.8  # of the free memory that the teacher's maps may take


def prepare_distillation(
    config: TrainConfig, student: Detector, *, num_images: int, device: torch.device, processes: Processes
) -> tuple[Distiller, Teacher] | None:
    """The run's distiller and teacher; None where the settings name no teacher.

    The student's initial weights must be drawn before: those of the distiller come next.

    Raises:
        CheckpointError: The teacher's file cannot be used.
        ConfigError: A level that one of both does not have, nothing that the loss could reach, or a cache that does not
            fit into memory.
    """
    settings = config.distill
    if settings.teacher is None:
        return None
    below = {"backbone"} if settings.features == "backbone" else {"backbone", "neck"}
    if below <= set(config.model.freeze):
        raise ConfigError(
            f"distill.features is {settings.features!r} with model.freeze {', '.join(config.model.freeze)}: nothing "
            "that the loss depends on would learn; expected less frozen, or no distill.teacher"
        )
    shapes = map_shapes(student, settings, whose="student")
    teacher = load_teacher(settings.teacher, settings, device=device, compiled=config.train.compile)
    distiller = Distiller(settings, student=shapes, teacher=teacher.shapes).to(device)
    if settings.sync_norm:
        processes.synchronise_norms(distiller, device)
    if teacher.cache is not None:
        _check_memory(config, teacher, num_images * processes.world_size)
    return distiller, teacher


def teacher_note(config: TrainConfig, teacher: Teacher) -> str:
    """For the user: who teaches what."""
    settings, structure = config.distill, teacher.structure
    levels = ", ".join(map(str, settings.levels))
    until = "to the end" if settings.stop == "end" else "until the last stage"
    return (
        f"teacher: {structure.name} ({teacher.digest}) from {settings.teacher}; {settings.method} at levels {levels} "
        f"of the {settings.features}, weight {settings.weight:g}, {settings.schedule}, {until}"
    )


def _check_memory(config: TrainConfig, teacher: Teacher, num_images: int) -> None:
    sides = config.train.multi_scale
    sizes = [(side, side) for side in sorted(set(sides))] if sides else [config.augment.image_size]
    samples = config.augment.samples_per_image
    if config.augment.mosaic and config.schedule.no_aug_epochs and config.distill.stop == "end":
        samples *= 2  # without mosaic they are others
    needed = num_images * samples * sum(teacher.bytes_per_image(size) for size in sizes)
    free = available_bytes()
    if free is not None and needed > _MEMORY_SHARE * free:
        raise ConfigError(
            f"distill.cache is 'ram', which needs {needed / 1e9:.1f} GB for the teacher's maps; expected at most "
            f"{_MEMORY_SHARE * free / 1e9:.1f} GB ({_MEMORY_SHARE:.0%} of the free memory), or distill.cache 'none'"
        )
