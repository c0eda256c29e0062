"""How far a run is, by iterations or by a time limit, and the learning rate there: warm-up, cosine, plateau."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maenas.records import require

_RATE_MEMORY = 0.9
"""Weight of the past in the running mean of a step's seconds."""


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Shape of the learning rate over the run.

    Attributes:
        warmup_epochs: Quadratic rise from 0.
        final_ratio: Learning rate of the plateau at the end, relative to the highest one.
        no_aug_epochs: Length of that plateau, in which mosaic and MixUp are off.
    """

    warmup_epochs: float = 5.0
    final_ratio: float = 0.05
    no_aug_epochs: int = 16

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "no_aug_epochs"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "a number, 0 or more")
        require(0 <= self.final_ratio <= 1, "final_ratio", self.final_ratio, "a number from 0 to 1")


def learning_rate_factor(position: float, *, epochs: int, schedule: ScheduleConfig) -> float:
    """Learning rate relative to its highest.

    Args:
        position: How far the run is, in epochs, from 0 to `epochs`; set before the step that it is for.
        epochs: Length of the run.
        schedule: Warm-up, plateau and its height.

    Source: official recipe; the plateau and the rise are not part of the cosine.
    """
    warm, plateau = schedule.warmup_epochs, epochs - schedule.no_aug_epochs
    if position < warm:
        return (position / warm) ** 2
    if position >= plateau:
        return schedule.final_ratio
    wave = (1 + math.cos(math.pi * (position - warm) / (plateau - warm))) / 2
    return schedule.final_ratio + (1 - schedule.final_ratio) * wave


class Progress:
    """Share of a run that is done: iterations, or time where that is shorter.

    With a time limit each step adds at least its share of all iterations, and at least its share of the steps that the
    time left allows for, evaluations included. So the plan follows the measured speed without a jump, and the schedule
    as a whole ends within the limit.

    Attributes:
        value: From 0 to 1; never falls.
        iteration: Steps done.
        evaluation_seconds: What the last evaluation took.
        step_seconds: Running mean of a step; 0 before the first.
    """

    def __init__(self, total_iterations: int, *, max_seconds: float | None = None) -> None:
        self.total_iterations = total_iterations
        self.max_seconds = max_seconds
        self.value = 0.0
        self.iteration = 0
        self.evaluation_seconds = 0.0
        self.step_seconds = 0.0
        self._used_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.iteration >= self.total_iterations or self.value >= 1.0

    def step(self, *, seconds: float, used_seconds: float, evaluation_period: int) -> None:
        """Count one step.

        Args:
            seconds: What it took.
            used_seconds: Time since the run began, evaluations included; not read without a limit.
            evaluation_period: Steps from one evaluation to the next; not read without a limit.
        """
        self.iteration += 1
        self._used_seconds = used_seconds
        mean = self.step_seconds
        self.step_seconds = mean = _RATE_MEMORY * mean + (1 - _RATE_MEMORY) * seconds if mean else seconds
        if self.max_seconds is None:
            self.value = self.iteration / self.total_iterations
            return
        left = self.max_seconds - used_seconds - self.evaluation_seconds  # the last evaluation follows the last step
        steps = _affordable_steps(
            left, step=mean, evaluation=self.evaluation_seconds, period=evaluation_period, done=self.iteration
        )
        by_time = (1 - self.value) / steps if steps > 1 else 1 - self.value
        self.value = min(1.0, self.value + max(by_time, 1 / self.total_iterations))
        if steps <= 1:
            self.value = 1.0

    @property
    def likely_iterations(self) -> int:
        """Steps that the run will have made at its end."""
        if self.max_seconds is None or self.value == 0.0:
            return self.total_iterations
        return min(self.total_iterations, max(self.iteration + 1, round(self.iteration / self.value)))

    @property
    def remaining_seconds(self) -> float:
        """Estimate of the training time left: of all steps without evaluations, or up to the limit if that is less."""
        by_steps = (self.total_iterations - self.iteration) * self.step_seconds
        if self.max_seconds is None:
            return by_steps
        return max(0.0, min(by_steps, self.max_seconds - self._used_seconds))

    def state(self) -> dict[str, float]:
        """What `restore` needs."""
        return {
            "value": self.value,
            "iteration": self.iteration,
            "evaluation_seconds": self.evaluation_seconds,
            "step_seconds": self.step_seconds,
        }

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a `state`; the share of iterations is taken anew, as their total may have changed."""
        self.iteration = int(state["iteration"])
        self.value = self.iteration / self.total_iterations if self.max_seconds is None else float(state["value"])
        self.evaluation_seconds = float(state["evaluation_seconds"])
        self.step_seconds = float(state["step_seconds"])


def _affordable_steps(left: float, *, step: float, evaluation: float, period: int, done: int) -> float:
    """Steps that fit into a time together with the evaluations between them, one after every `period` steps."""
    before_next = period - done % period
    rest = left - before_next * step
    if rest <= 0:
        return left / step
    cycles, rest = divmod(max(0.0, rest - evaluation), period * step + evaluation)
    return before_next + cycles * period + min(rest / step, period)
