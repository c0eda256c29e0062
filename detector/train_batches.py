"""The batches of a run, from its next step on, also where a time limit decides when the last stage begins."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch

from .data.loader import TrainLoader
from .targets import Batch
from .training_run import Run

_DEVIATION = 1.25
"""Factor between planned and likely number of steps that makes a new plan."""


def train_batches(run: Run) -> Generator[Batch, None, None]:
    """Batches numbered from `run.progress.iteration` on; the generator's end is the run's.

    Without a time limit one plan serves the whole run, and batch n is the same in every run with its settings. With a
    limit the stage without mosaic begins when the schedule gets there, and SADA's ramp follows an estimated total.
    """
    if run.progress.max_seconds is None:
        final_epochs = run.config.schedule.no_aug_epochs
        yield from _batches(_loader(run, total=run.progress.total_iterations, final_epochs=final_epochs))
        return
    loader = _loader(run, total=run.progress.likely_iterations, final_epochs=0)
    while not run.progress.finished:
        total, last_stage = run.progress.likely_iterations, run.in_last_stage
        # One epoch more than there are: everything is final.
        final_epochs = total // run.iterations_per_epoch + 1 if last_stage else 0
        start = run.progress.iteration
        loader = loader.with_length(total_iterations=total, final_epochs=final_epochs, start_iteration=start)
        for batch in _batches(loader):
            yield batch
            if run.in_last_stage != last_stage:
                break
            if run.at_epoch_end and not 1 / _DEVIATION < run.progress.likely_iterations / total < _DEVIATION:
                break


def _loader(run: Run, *, total: int, final_epochs: int) -> TrainLoader:
    config = run.config
    return TrainLoader(
        run.train_set,
        config.augment,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        total_iterations=total,
        final_epochs=final_epochs,
        start_iteration=run.progress.iteration,
        num_workers=config.data.workers,
        rank=run.processes.rank,
        world_size=run.processes.world_size,
        cache=config.data.cache,
        last=config.train.last_batch,
        multi_scale=config.train.multi_scale,
        multi_scale_every=config.train.multi_scale_every,
        sampling=config.sampling,
    )


def _batches(loader: TrainLoader) -> Iterator[Batch]:
    # Torch's loader draws a seed when it starts; the run's random state must not depend on how often that is.
    with torch.random.fork_rng(devices=[]):
        batches = iter(loader)
        first = next(batches)
    yield first
    yield from batches
