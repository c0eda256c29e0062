"""How a training run shows its progress on standard error: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

_SECONDS_BETWEEN_LINES = 30.0


def progress_callback(base: type) -> Any:  # noqa: ANN401
    """A callback of a training run.

    Args:
        base: `detector.callbacks.Callback`, which this module cannot import.
    """
    shown = _Bar if sys.stderr.isatty() else _Lines
    return type(shown.__name__, (shown, base), {})()


class _Progress:
    """What both forms share: notes, and a line per epoch."""

    of_epochs = ""
    best = -1.0

    def on_start(self, run: Any) -> None:  # noqa: ANN401
        epochs, limited = run.config.train.epochs, run.config.train.max_minutes is not None
        self.of_epochs = f" of at most {epochs}" if limited else f"/{epochs}"
        self.iterations_per_epoch = run.iterations_per_epoch
        for note in run.notes:
            self._say(f"note: {note}")
        where = f"from step {run.first_iteration}" if run.first_iteration else "from the start"
        self._say(
            f"structure {run.structure}, {run.num_images} training images, {run.iterations_per_epoch} steps per epoch, "
            f"{where}, into {run.folder}"
        )

    def on_epoch(self, row: Mapping[str, float | None]) -> None:
        parts = [f"epoch {row['epoch']}{self.of_epochs}", f"loss {row['loss']:.3f}", f"lr {row['lr']:.2e}"]
        parts.append(f"{row['images_per_second']:.1f} images/s")
        if row.get("distill") is not None:
            parts.append(f"teacher {row['distill']:.3f} x {row['distill_weight']:.2f}")
        ap = row["ap"]
        if ap is not None:
            mark = " (best)" if ap > self.best else ""
            self.best = max(self.best, ap)
            parts.append(f"AP {100 * ap:.1f}, AP50 {100 * (row['ap50'] or 0.0):.1f}{mark}")
        self._say(", ".join(parts))

    def _say(self, text: str) -> None:
        raise NotImplementedError


class _Lines(_Progress):
    """Plain lines, one per epoch and one every half minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_step(self, step: Any) -> None:  # noqa: ANN401
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._say(f"  step {step.iteration}: {_losses(step)}, lr {step.lr:.2e}, {_eta(step)}")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class _Bar(_Progress):
    """A bar over the steps of the epoch, above it the lines of the epochs."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None, state="")

    def on_start(self, run: Any) -> None:  # noqa: ANN401
        super().on_start(run)
        self._bar.start()

    def on_step(self, step: Any) -> None:  # noqa: ANN401
        done = (step.iteration - 1) % self.iterations_per_epoch + 1
        self._bar.update(
            self._task,
            description=f"epoch {step.epoch}{self.of_epochs}",
            completed=done,
            total=self.iterations_per_epoch,
            state=f"{_losses(step)}, {_eta(step)}",
        )

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._bar.stop()

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)


def _losses(step: Any) -> str:  # noqa: ANN401
    names = {"total": "loss", "quality_focal": "class", "giou": "box", "dfl": "side"}
    shown = " ".join(f"{label} {step.losses[name]:.3f}" for name, label in names.items())
    if step.distill_weight is None:
        return shown
    return f"{shown} teacher {step.losses['distill']:.3f} x {step.distill_weight:.2f}"


def _eta(step: Any) -> str:  # noqa: ANN401
    minutes, seconds = divmod(round(step.remaining_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    rate = step.images_per_second
    return f"{rate:.1f} images/s, {left} left"
