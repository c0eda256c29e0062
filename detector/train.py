"""Training: the loop from the first step to the last checkpoint, in one process or several, again after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maenas.files import write_text_atomically
from maenas.structure import Structure

from .callbacks import Callback, Callbacks, RunStart, Step, reporters
from .config import TrainConfig
from .distributed import SINGLE, Processes, pick_device
from .divergence import check_divergence
from .epoch_end import EpochEnd
from .run_folder import RunFolder, opened_folder
from .run_setup import prepare_run
from .stop_signals import StopSignals
from .train_batches import train_batches
from .train_step import StepOutcome, make_step
from .training_run import Run

if TYPE_CHECKING:
    from .data.source import DataConfig


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a run.

    Attributes:
        folder: Where its files are.
        ap: AP of the last evaluation; None before the first.
        best: AP, epoch and further figures of the best evaluation; empty before the first.
        epochs: Finished ones.
        iterations: Steps made.
        seconds: Wall time, earlier parts of a resumed run included.
        ended_by: `completed`, `patience`, or the name of the signal that stopped it; such a run can be resumed.
    """

    folder: Path
    ap: float | None
    best: Mapping[str, float]
    epochs: int
    iterations: int
    seconds: float
    ended_by: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "ended_by": self.ended_by,
            "epochs": self.epochs,
            "iterations": self.iterations,
            "seconds": round(self.seconds, 3),
            "ap": self.ap,
            "best": dict(self.best),
        }


def train(
    config: TrainConfig,
    structure: Structure,
    data: DataConfig,
    *,
    out: str | Path,
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[Callback] = (),
    processes: Processes = SINGLE,
) -> TrainResult:
    """Train a network, and leave checkpoints, metrics and what is needed to go on in a folder.

    The first SIGINT or SIGTERM ends the run after the step under way, saved; the second one ends the process at once.

    Args:
        config: Settings.
        structure: The network; its number of classes becomes the data's.
        data: Training and validation images.
        out: The run's folder; new, unless `resume` or `force`.
        resume: Go on with the run in it, which had the same settings and data.
        force: Remove the files of a former run in it.
        callbacks: Told what happens, in the first process.
        processes: Of `detector.distributed.joined_processes` under torchrun.

    Raises:
        ConfigError: Settings that do not go with the data, the device or the number of processes.
        DataError: Nothing to learn or to evaluate, or too many images that cannot be read.
        CheckpointError: The weights to start from cannot be used.
        TrainingError: The run diverged, cannot be resumed, or another run owns the folder.
        OutputError: The folder holds a run, or a file cannot be written.
        MissingExtraError: The package of a reporter that the settings ask for is not installed.
    """
    device = pick_device(config.train.device, processes)
    listeners = Callbacks([*callbacks, *reporters(config.log)] if processes.is_first else ())
    folder = RunFolder(Path(out))
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(opened_folder(folder.path, resume=resume, force=force))
        stop = stack.enter_context(StopSignals())
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        torch.manual_seed(config.train.seed)
        run = prepare_run(config, structure, data, folder=folder, device=device, processes=processes, resume=resume)
        listeners.on_start(
            RunStart(
                config=run.config,
                folder=folder.path,
                structure=run.structure.digest,
                num_images=len(run.train_set),
                iterations_per_epoch=run.iterations_per_epoch,
                first_iteration=run.progress.iteration,
                notes=run.notes,
            )
        )
        if not resume:
            run.save_state()
        ended_by = _train(run, stop, listeners)
        result = TrainResult(
            folder=folder.path,
            ap=next((row["ap"] for row in reversed(run.rows) if row["ap"] is not None), None),
            best=run.best,
            epochs=len(run.rows),
            iterations=run.progress.iteration,
            seconds=run.seconds,
            ended_by=ended_by,
        )
        if processes.is_first:
            write_text_atomically(folder.result, json.dumps(result.to_dict(), indent=1) + "\n")
        listeners.on_end(result.to_dict())
    return result


def _train(run: Run, stop: StopSignals, listeners: Callbacks) -> str:
    """The loop from where the run is to its end, and why it ended."""
    epoch_end = EpochEnd(run, stop, listeners)
    save_every = run.config.log.save_every_steps
    if run.epoch_is_due and not epoch_end.close():  # stopped in its evaluation, and resumed
        return stop.name
    with closing(train_batches(run)) as batches:
        began = time.monotonic()
        while not run.progress.finished and not run.out_of_patience:
            batch = next(batches)
            outcome = make_step(run, batch, stop)
            run.count_step(outcome, seconds=time.monotonic() - began)
            began = time.monotonic()
            check_divergence(run, outcome, batch)
            listeners.on_step(_step(run, outcome))
            if run.epoch_is_due:
                if not epoch_end.close():
                    return stop.name
                began = time.monotonic()
            elif outcome.stop or (save_every and run.progress.iteration % save_every == 0):
                run.save_state()
            if outcome.stop:
                return stop.name
    return "patience" if run.out_of_patience else "completed"


def _step(run: Run, outcome: StepOutcome) -> Step:
    return Step(
        epoch=len(run.rows) + 1,
        iteration=run.progress.iteration,
        losses=outcome.losses,
        lr=outcome.lr,
        images_per_second=run.config.train.batch_size / max(run.progress.step_seconds, 1e-9),
        remaining_seconds=run.progress.remaining_seconds,
        distill_weight=outcome.distill_weight,
    )
