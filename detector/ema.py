"""The averaged network: what is evaluated and kept."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maenas.records import require

from .model import Detector


@dataclass(frozen=True, slots=True)
class EmaConfig:
    """Exponential moving average of weights and batch-norm statistics.

    Attributes:
        enabled: Without it the trained network itself is evaluated and kept.
        decay: Share of the past that one step keeps, after the ramp.
        ramp: The decay rises as 1 - exp(-step / ramp); 0 is without a ramp. Short runs need a short one.
    """

    enabled: bool = True
    decay: float = 0.9998
    ramp: float = 2000.0

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "decay", self.decay, "a number from 0, below 1")
        require(0 <= self.ramp < math.inf, "ramp", self.ramp, "a number, 0 or more")

    def decay_at(self, step: int) -> float:
        """Decay of the update after a step, counted from 0; with a ramp the first one copies the network."""
        if not self.enabled:
            return 0.0
        return self.decay * (1 - math.exp(-step / self.ramp)) if self.ramp else self.decay


class ModelEma:
    """A copy of a network that follows it slowly.

    Attributes:
        model: The averaged network, in evaluation mode, without gradients. Counters of batch norms stay as they are.
    """

    def __init__(self, model: Detector, config: EmaConfig) -> None:
        self.config = config
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Detector, *, step: int) -> None:
        """Move towards the network as it is after a step, counted from 0."""
        weight = 1 - self.config.decay_at(step)
        averaged, current = _floating(self.model), _floating(model)
        torch._foreach_lerp_(averaged, current, weight)


def _floating(model: Detector) -> list[Tensor]:
    return [value for value in model.state_dict().values() if value.is_floating_point()]
