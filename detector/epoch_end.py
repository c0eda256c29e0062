"""What follows the last step of an epoch: evaluation, checkpoints, metrics, and the resume file."""

from __future__ import annotations

import time
from collections.abc import Mapping

from .callbacks import Callbacks
from .evaluate import Evaluation
from .evaluate_sources import SourceSets, mean_figures
from .reparam import deploy
from .stop_signals import StopSignals
from .train_log import FIGURES, SOURCE_FIGURE, draw_curves, draw_samples, write_metrics
from .training_run import SUMS, Run


class EpochEnd:
    """Closes epochs of a run; the first process evaluates and writes, the others wait for its verdict.

    Args:
        run: What is trained.
        stop: Ends an evaluation when a signal comes.
        listeners: Told about evaluations and epochs.
    """

    def __init__(self, run: Run, stop: StopSignals, listeners: Callbacks) -> None:
        self._run = run
        self._stop = stop
        self._listeners = listeners
        self._pictures: SourceSets | None = None

    def close(self) -> bool:
        """Evaluate if it is time, and put down the epoch; False if a signal came first: the epoch is then still open.

        Raises:
            OutputError: A file cannot be written; the former ones stay.
            DataError: A validation image cannot be read.
        """
        run, epoch = self._run, len(self._run.rows) + 1
        due = run.progress.finished or epoch % run.evaluation_period == 0
        figures: Mapping[str, float] = {}
        evaluations: Mapping[str, Evaluation] | None = None
        if due:
            run.save_state()  # so that nothing is lost if the evaluation is cut short
            started = time.monotonic()
            evaluations = self._evaluate() if run.processes.is_first else None
            told = None if evaluations is None else (_figures(evaluations), time.monotonic() - started)
            told = run.processes.from_first(told)
            if told is None:
                return False
            figures, run.progress.evaluation_seconds = told
        row = self._row(epoch, figures)
        is_best = bool(figures) and figures["ap"] > run.best.get("ap", -1.0)
        if is_best:
            run.best = {"epoch": epoch, **figures}
        if due:
            run.evaluations_without_gain = 0 if is_best else run.evaluations_without_gain + 1
        if run.processes.is_first:
            self._write(epoch, row, evaluations, figures, is_best=is_best)
        run.rows.append(row)
        run.sums = dict.fromkeys(SUMS, 0.0)
        run.save_state()
        for evaluation in (evaluations or {}).values():
            self._listeners.on_evaluation(evaluation, epoch=epoch)
        self._listeners.on_epoch(row)
        return True

    def _evaluate(self) -> dict[str, Evaluation] | None:
        """The averaged network on each source of a union, or on the one data set, named ""; None if a signal came."""
        run, settings = self._run, self._run.config.eval
        if self._pictures is None:
            self._pictures = SourceSets(run.val_set, run.structure.image_size)
        try:
            return self._pictures.evaluate(
                deploy(run.averaged),
                score_threshold=settings.score_threshold,
                iou_threshold=settings.iou_threshold,
                batch_size=settings.batch_size,
                interrupt=lambda: bool(self._stop),
            )
        except KeyboardInterrupt:
            return None

    def _row(self, epoch: int, figures: Mapping[str, float]) -> dict[str, float | None]:
        run, sums = self._run, self._run.sums
        steps, images = max(1.0, sums["steps"]), max(1.0, sums["images"])
        seconds = max(1e-9, sums["seconds"])
        return {
            "epoch": epoch,
            "iteration": run.progress.iteration,
            "lr": run.lr,
            "loss": sums["total"] / steps,
            **{name: sums[name] / steps for name in ("quality_focal", "giou", "dfl")},
            **{name: sums[name] / steps if run.teacher else None for name in ("distill", "distill_weight")},
            "positives_per_image": sums["positives"] / images,
            "gradient_norm": sums["gradient_norm"] / steps,
            "images_per_second": round(sums["images"] / seconds, 3),
            "seconds": round(run.seconds, 3),
            **{name: figures.get(name) for name in FIGURES},
            **{name: value for name, value in figures.items() if name not in FIGURES},
        }

    def _write(
        self,
        epoch: int,
        row: dict[str, float | None],
        evaluations: Mapping[str, Evaluation] | None,
        figures: Mapping[str, float],
        *,
        is_best: bool,
    ) -> None:
        run, folder = self._run, self._run.folder
        paths = [folder.last]
        if is_best:
            paths.append(folder.best)
        kept_every = run.config.log.keep_every_epochs
        if kept_every and epoch % kept_every == 0:
            paths.append(folder.kept(epoch))
        run.save_averaged(*paths, metrics=figures)
        write_metrics([*run.rows, row], folder.metrics)
        if evaluations is not None and run.config.log.curves:
            draw_curves([*run.rows, row], folder.curves)
        if run.config.eval.samples:
            for source, evaluation in (evaluations or {}).items():
                place = folder.samples / f"epoch_{epoch:04d}{'-' if source else ''}{source}.jpg"
                draw_samples(evaluation, place, count=run.config.eval.samples)


def _figures(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Figures of metrics.csv, without those that nothing was there for; of a union those of its sources too."""
    figures = mean_figures({source: one.metrics.figures() for source, one in evaluations.items()})
    shown = {name: value for name, value in figures.items() if name in FIGURES or SOURCE_FIGURE.fullmatch(name)}
    return {name: float(value) for name, value in shown.items() if value is not None}
