"""When a run no longer computes numbers: leaving single steps out, giving up, and what is put down then."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from maenas.files import write_text_atomically

from .errors import TrainingError
from .targets import Batch
from .train_step import StepOutcome
from .training_run import Run

_LOG = logging.getLogger(__name__)


def check_divergence(run: Run, outcome: StepOutcome, batch: Batch) -> None:
    """Give a run up after too many steps without numbers, or at once where its weights are none any more.

    Raises:
        TrainingError: The run is given up; the resume file and the checkpoints stay as they were.
    """
    if outcome.finite:
        run.bad_steps = 0
        return
    # Gradient scaling in fp16 begins too high on purpose, and comes down after such steps.
    if run.scaler.is_enabled() and math.isfinite(outcome.losses["total"]) and run.scaler.get_scale() >= 1.0:
        return
    run.bad_steps += 1
    limit = run.config.train.max_bad_steps
    intact = run.is_finite()
    if intact and run.bad_steps < limit:
        _LOG.warning("step %d: its losses or gradients are no numbers; it is left out", run.progress.iteration)
        return
    reason = (
        f"{run.bad_steps} steps in a row without finite losses" if intact else "its weights are no numbers any more"
    )
    if run.processes.is_first:
        _write_divergence(run, outcome, batch, reason=reason)
    raise TrainingError(
        f"{run.folder.path}: training diverged at step {run.progress.iteration} ({reason}); the state before is kept, "
        f"details are in {run.folder.divergence.name}; a lower optimizer.lr_per_image or optimizer.clip_norm may help"
    )


def _write_divergence(run: Run, outcome: StepOutcome, batch: Batch, *, reason: str) -> None:
    """Put down what was known when a run was given up, as JSON; numbers that are none are texts.

    Raises:
        OutputError: The file cannot be written.
    """
    images = batch.images.float()
    largest = {
        name: float(value.detach().abs().max()) for name, value in run.learner.model.named_parameters() if value.numel()
    }
    record = {
        "reason": reason,
        "batch": batch.index,
        "epoch": len(run.rows) + 1,
        "losses": dict(outcome.losses),
        "lr": outcome.lr,
        "gradient_norm": outcome.gradient_norm,
        "positives": outcome.positives,
        "images": {"shape": list(images.shape), "min": float(images.min()), "max": float(images.max())},
        "boxes": batch.targets.boxes[batch.targets.valid].tolist(),
        "labels": batch.targets.labels[batch.targets.valid].tolist(),
        "scaler": run.scaler.state_dict(),
        "largest_weights": dict(sorted(largest.items(), key=lambda item: -_order(item[1]))[:20]),
        "last_rows": run.rows[-5:],
    }
    write_text_atomically(run.folder.divergence, json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def _order(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _plain(value: Any) -> Any:  # noqa: ANN401
    """JSON has no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
