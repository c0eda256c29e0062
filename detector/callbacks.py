"""Being told what a training run does: the protocol, and reporters to Weights & Biases, MLflow and TensorBoard.

A callback that fails is logged once and left out from then on; it never stops a run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.extras import require

if TYPE_CHECKING:
    from .config import LogConfig, TrainConfig
    from .evaluate import Evaluation

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunStart:
    """A run that begins or goes on.

    Attributes:
        config: Resolved settings.
        folder: Where it writes.
        structure: Digest of the network.
        num_images: Training images.
        iterations_per_epoch: Steps.
        first_iteration: 0, or where it goes on.
        notes: What was adapted, for the user.
    """

    config: TrainConfig
    folder: Path
    structure: str
    num_images: int
    iterations_per_epoch: int
    first_iteration: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was made.

    Attributes:
        epoch: From 1.
        iteration: Steps so far.
        losses: total, quality_focal, giou and dfl, means over processes; with a teacher also distill, before its
            weight.
        lr: Learning rate of the step.
        images_per_second: Over the last steps, reading included.
        remaining_seconds: Estimated training time left, see `schedule.Progress`.
        distill_weight: Of the distillation loss; None without a teacher.
    """

    epoch: int
    iteration: int
    losses: Mapping[str, float]
    lr: float
    images_per_second: float
    remaining_seconds: float
    distill_weight: float | None = None


class Callback:
    """Told what a run does, in the first process; methods that are not overridden do nothing."""

    def on_start(self, run: RunStart) -> None:
        """Before the first step."""

    def on_step(self, step: Step) -> None:
        """After every step; should take no time."""

    def on_epoch(self, row: Mapping[str, float | None]) -> None:
        """After every epoch and its evaluation, with its row of metrics.csv."""

    def on_evaluation(self, evaluation: Evaluation, *, epoch: int) -> None:
        """After every evaluation; of a union once for each source."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Once at the end, also of a run that was stopped, with the content of result.json."""


class Callbacks(Callback):
    """Several callbacks as one; a failing one is dropped."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.active = list(callbacks)

    def on_start(self, run: RunStart) -> None:
        """See `Callback`."""
        self._tell("on_start", run)

    def on_step(self, step: Step) -> None:
        """See `Callback`."""
        self._tell("on_step", step)

    def on_epoch(self, row: Mapping[str, float | None]) -> None:
        """See `Callback`."""
        self._tell("on_epoch", row)

    def on_evaluation(self, evaluation: Evaluation, *, epoch: int) -> None:
        """See `Callback`."""
        self._tell("on_evaluation", evaluation, epoch=epoch)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self._tell("on_end", summary)

    def _tell(self, event: str, value: object, **named: int) -> None:
        for callback in list(self.active):
            try:
                getattr(callback, event)(value, **named)
            except Exception as error:  # whatever a reporter runs into, training goes on
                self.active.remove(callback)
                _LOG.warning("%s failed in %s and is left out: %s", type(callback).__name__, event, error)


def reporters(log: LogConfig) -> list[Callback]:
    """The reporters that the settings ask for.

    Raises:
        MissingExtraError: The package of one is not installed.
    """
    made: list[Callback] = []
    if log.tensorboard:
        made.append(TensorBoardReporter())
    if log.wandb is not None:
        made.append(WandbReporter(log.wandb))
    if log.mlflow is not None:
        made.append(MlflowReporter(log.mlflow))
    return made


class TensorBoardReporter(Callback):
    """Writes events into the run's folder.

    Raises:
        MissingExtraError: The package tensorboard is not installed.
    """

    def __init__(self) -> None:
        require("tensorboard", extra="tensorboard", purpose="log.tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._make_writer = SummaryWriter

    def on_start(self, run: RunStart) -> None:
        """See `Callback`."""
        self._writer = self._make_writer(str(run.folder / "tensorboard"))

    def on_epoch(self, row: Mapping[str, float | None]) -> None:
        """See `Callback`."""
        for name, value in row.items():
            if name not in ("epoch", "iteration") and value is not None:
                self._writer.add_scalar(name, value, int(row["iteration"] or 0))
        self._writer.flush()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self._writer.close()


class WandbReporter(Callback):
    """Reports to Weights & Biases.

    Raises:
        MissingExtraError: The package wandb is not installed.
    """

    def __init__(self, project: str) -> None:
        self._wandb = require("wandb", extra="wandb", purpose="log.wandb")
        self._project = project

    def on_start(self, run: RunStart) -> None:
        """See `Callback`."""
        self._wandb.init(project=self._project, config=run.config.to_dict(), dir=str(run.folder))

    def on_epoch(self, row: Mapping[str, float | None]) -> None:
        """See `Callback`."""
        values = {name: value for name, value in row.items() if value is not None}
        self._wandb.log(values, step=int(row["iteration"] or 0))

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self._wandb.finish()


class MlflowReporter(Callback):
    """Reports to MLflow.

    Raises:
        MissingExtraError: The package mlflow is not installed.
    """

    def __init__(self, experiment: str) -> None:
        self._mlflow = require("mlflow", extra="mlflow", purpose="log.mlflow")
        self._experiment = experiment

    def on_start(self, run: RunStart) -> None:
        """See `Callback`."""
        self._mlflow.set_experiment(self._experiment)
        self._mlflow.start_run(run_name=run.folder.name)
        sections = run.config.to_dict()
        self._mlflow.log_params(
            {f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()}
        )

    def on_epoch(self, row: Mapping[str, float | None]) -> None:
        """See `Callback`."""
        values = {name: float(value) for name, value in row.items() if value is not None}
        self._mlflow.log_metrics(values, step=int(row["iteration"] or 0))

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self._mlflow.end_run()
