"""Optimisers, and which parameters weight decay leaves alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from maenas.records import require

OPTIMIZERS = ("sgd", "adamw")
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """The optimiser; defaults are those of the T, S, M and L models.

    Attributes:
        name: `sgd` (Nesterov) or `adamw`.
        lr_per_image: Highest learning rate per image of the total batch: batch 256 gives 0.04 by default.
        lr: Highest learning rate itself, whatever the batch; takes the place of `lr_per_image`.
        momentum: Of SGD.
        betas: Of AdamW.
        weight_decay: Not on biases and norms.
        decay_scales: Also on scalars, such as the head's scale per level, as the official training does.
        clip_norm: Largest L2 norm of the gradient; None does not clip.
    """

    name: str = "sgd"
    lr_per_image: float = 0.01 / 64
    lr: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_scales: bool = True
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        require(self.name in OPTIMIZERS, "name", self.name, f"one of {', '.join(OPTIMIZERS)}")
        for name in ("lr_per_image", "lr", "clip_norm"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a number above 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number from 0, below 1")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", list(self.betas), "two numbers from 0, below 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "a number, 0 or more")

    def highest_lr(self, batch_size: int) -> float:
        """Learning rate that the schedule's factor multiplies.

        Args:
            batch_size: Images per step, over all processes.
        """
        return self.lr_per_image * batch_size if self.lr is None else self.lr


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """An optimiser of the parameters that are not frozen; its learning rate is set before every step.

    Raises:
        ValueError: Every parameter is frozen.
    """
    groups = parameter_groups(model, weight_decay=config.weight_decay, decay_scales=config.decay_scales)
    if not groups:
        raise ValueError("every parameter is frozen; expected something to train")
    if config.name == "adamw":
        return AdamW(groups, lr=0.0, betas=config.betas)
    return SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.momentum > 0)


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_scales: bool = True) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay, as optimisers take them; empty groups are left out."""
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for parameter, decays in _decaying(model, decay_scales):
        (with_decay if decays else without).append(parameter)
    groups = ((with_decay, weight_decay), (without, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def _decaying(model: nn.Module, decay_scales: bool) -> Iterator[tuple[nn.Parameter, bool]]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                spared = name == "bias" or isinstance(module, _NORMS) or (parameter.ndim == 0 and not decay_scales)
                yield parameter, not spared


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What the optimiser remembers, as `<parameter>|<entry>`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}|{entry}": value
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def restore_optimizer(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put `optimizer_tensors` back.

    Raises:
        ValueError: A name that no parameter has.
    """
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("|")
        if name not in parameters:
            raise ValueError(f"the optimiser's state names {name!r}, which is no parameter")
        parameter = parameters[name]
        # AdamW counts steps on the CPU; the rest is in the parameter's own memory order.
        optimizer.state[parameter][entry] = (
            value.clone() if entry == "step" else torch.empty_like(parameter).copy_(value)
        )
