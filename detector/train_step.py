"""One step: losses, gradients over all processes, update of the weights and of their average.

Tensor letters: B images, H W size of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .distill import Guidance
from .learner import StepLosses
from .optim import set_learning_rate
from .schedule import learning_rate_factor
from .stop_signals import StopSignals
from .targets import Batch, Targets
from .training_run import Run

LOSSES = ("total", "quality_focal", "giou", "dfl", "distill")


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """A step, the same in every process.

    Attributes:
        losses: Means over processes (and portions) by name; `distill`, before its weight, with a teacher only.
        positives: Points that answered for a box, in the whole batch.
        lr: Learning rate it was made with.
        gradient_norm: L2 norm of the network's gradient before clipping.
        distill_weight: Of the distillation loss; 0 where the teacher is silent, None without one.
        stop: Whether a process was asked to stop.
    """

    losses: Mapping[str, float]
    positives: float
    lr: float
    gradient_norm: float
    distill_weight: float | None
    stop: bool

    @property
    def finite(self) -> bool:
        """Whether losses and gradients were numbers, so that the weights were changed."""
        return math.isfinite(self.losses["total"]) and math.isfinite(self.gradient_norm)


def make_step(run: Run, batch: Batch, stop: StopSignals) -> StepOutcome:
    """Learn from a batch; weights stay as they are if its losses or gradients are not numbers."""
    position = run.position
    factor = learning_rate_factor(position, epochs=run.config.train.epochs, schedule=run.config.schedule)
    lr = factor * run.config.optimizer.highest_lr(run.config.train.batch_size)
    set_learning_rate(run.optimizer, lr)

    totals = _backward(run, batch)
    *means, positives, stops = run.processes.sum([*totals, float(bool(stop))])
    losses = dict(zip(LOSSES, (value / run.processes.world_size for value in means), strict=True))
    if run.teacher is None:
        del losses["distill"]
    run.scaler.unscale_(run.optimizer)
    norm = _clip(run.learner.model, run.clip_norm)
    outcome = StepOutcome(losses, positives, lr, norm, run.distill_weight, stop=stops > 0)
    if outcome.finite:
        run.scaler.step(run.optimizer)
        run.ema.update(run.learner.model, step=run.progress.iteration)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return outcome


def _backward(run: Run, batch: Batch) -> list[float]:
    """Add up the gradients of a batch, portion by portion; mean losses and number of positives of this process."""
    portions = _portions(batch, min(run.config.train.accumulate, len(batch.images)))
    totals = torch.zeros(len(LOSSES) + 1, device=run.device)
    for number, (images, targets) in enumerate(portions, start=1):
        x = images.to(run.device, non_blocking=True).float()
        with _synchronisation(run.parallel, last=number == len(portions)):
            losses: StepLosses = run.parallel(x, targets.to(run.device), _guidance(run, images, x))
            run.scaler.scale(losses.total / len(portions)).backward()
        parts = (losses.total, losses.quality_focal, losses.giou, losses.dfl, losses.distill)
        share = 1 / len(portions)
        totals += torch.stack([*(part.detach() * share for part in parts), losses.num_positives.detach().float()])
    return totals.tolist()


def _guidance(run: Run, images: Tensor, on_device: Tensor) -> Guidance | None:
    """What the teacher says to a portion; None where it is silent."""
    weight = run.distill_weight
    if run.teacher is None or not weight:
        return None
    return Guidance(run.teacher.maps(images, on_device), weight)


def _portions(batch: Batch, count: int) -> list[tuple[Tensor, Targets]]:
    if count == 1:
        return [(batch.images, batch.targets)]
    parts, start = [], 0
    for images in batch.images.chunk(count):
        parts.append((images, batch.targets.images(slice(start, start + len(images)))))
        start += len(images)
    return parts


def _synchronisation(parallel: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Gradients travel between processes with the last portion only."""
    if last or not isinstance(parallel, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return parallel.no_sync()


@torch.no_grad()
def _clip(model: nn.Module, largest: float | None) -> float:
    """L2 norm of the network's gradient, which is cut to `largest`."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
    if largest is not None and math.isfinite(norm) and norm > largest:
        torch._foreach_mul_(gradients, largest / norm)
    return norm
