"""Learning rate and progress: the official formula by hand, and time limits on a made-up clock."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("torch")

from detector.schedule import Progress, ScheduleConfig, learning_rate_factor

OFFICIAL = ScheduleConfig()


def factor(position: float, epochs: int = 300) -> float:
    return learning_rate_factor(position, epochs=epochs, schedule=OFFICIAL)


def test_the_official_schedule_by_hand():
    assert factor(0) == 0
    assert factor(1) == pytest.approx(1 / 25)
    assert factor(2.5) == pytest.approx(0.25)
    assert factor(5) == 1
    # Half-way through the cosine, which spans 300 - 5 - 16 epochs.
    assert factor(5 + 279 / 2) == pytest.approx(0.05 + 0.95 / 2)
    assert factor(5 + 279 / 4) == pytest.approx(0.05 + 0.95 * (1 + math.sqrt(0.5)) / 2)
    assert factor(284) == factor(300) == 0.05
    assert factor(284 - 1e-6) == pytest.approx(0.05)


def test_without_warmup_and_plateau():
    plain = ScheduleConfig(warmup_epochs=0, no_aug_epochs=0, final_ratio=0.0)
    assert learning_rate_factor(0, epochs=10, schedule=plain) == 1
    assert learning_rate_factor(10, epochs=10, schedule=plain) == 0


@given(st.floats(0, 300), st.floats(0, 300))
def test_it_rises_then_falls(first, second):
    low, high = sorted((first, second))
    if high <= 5:
        assert factor(low) <= factor(high)
    if low >= 5:
        assert factor(low) >= factor(high)
    assert 0 <= factor(first) <= 1


def test_progress_by_iterations_is_exact():
    progress = Progress(7)
    for number in range(1, 8):
        assert not progress.finished
        progress.step(seconds=1.0, used_seconds=0.0, evaluation_period=1)
        assert progress.value == number / 7
    assert progress.finished and progress.likely_iterations == 7 and progress.remaining_seconds == 0


def test_time_left_is_that_of_all_steps_or_up_to_the_limit():
    progress = Progress(100, max_seconds=60)
    progress.step(seconds=3.0, used_seconds=4.0, evaluation_period=10)  # the first step of a run is slow
    assert progress.remaining_seconds == 56
    progress = Progress(100, max_seconds=600)
    progress.step(seconds=3.0, used_seconds=4.0, evaluation_period=10)
    assert progress.remaining_seconds == 297
    progress.step(seconds=3.0, used_seconds=601.0, evaluation_period=10)
    assert progress.finished and progress.remaining_seconds == 0


def simulate(progress: Progress, *, step: float, evaluation: float, per_epoch: int, period: int) -> tuple[float, list]:
    """Seconds that a whole run takes, and its progress step by step."""
    clock, values, epoch = 0.0, [], 0
    while not progress.finished:
        clock += step
        progress.step(seconds=step, used_seconds=clock, evaluation_period=period * per_epoch)
        values.append(progress.value)
        if progress.iteration % per_epoch == 0 or progress.finished:
            epoch += 1
            if epoch % period == 0 or progress.finished:
                clock += evaluation
                progress.evaluation_seconds = evaluation
    return clock, values


@example(step=2.0, evaluation=13.0, per_epoch=37, period=8)
@given(
    step=st.floats(0.01, 2.0), evaluation=st.floats(0.0, 30.0), per_epoch=st.integers(5, 40), period=st.integers(1, 10)
)
def test_a_time_limit_is_kept_and_used(step, evaluation, per_epoch, period):
    limit = 600.0
    progress = Progress(1_000_000, max_seconds=limit)
    used, values = simulate(progress, step=step, evaluation=evaluation, per_epoch=per_epoch, period=period)
    assert values == sorted(values) and values[-1] == 1.0
    # The first evaluation is not foreseen, here: it may begin before the limit and end after it, and so the last one
    # comes on top of that.
    assert limit - evaluation - 3 * step <= used <= limit + 2 * evaluation + 3 * step


def test_a_time_limit_with_known_evaluations_is_met_closely():
    progress = Progress(1_000_000, max_seconds=600.0)
    used, values = simulate(progress, step=0.5, evaluation=10.0, per_epoch=13, period=5)
    assert 580 < used <= 600
    steps = [later - earlier for earlier, later in itertools.pairwise(values)]
    assert max(steps) < 3 * min(steps), "no jumps in the schedule"


def test_a_generous_time_limit_changes_nothing():
    progress, plain = Progress(50, max_seconds=1e6), Progress(50)
    _, values = simulate(progress, step=0.1, evaluation=1.0, per_epoch=10, period=1)
    _, expected = simulate(plain, step=0.1, evaluation=1.0, per_epoch=10, period=1)
    assert values == pytest.approx(expected) and progress.iteration == 50


def test_a_run_is_restored():
    progress = Progress(1000, max_seconds=100.0)
    for number in range(20):
        progress.step(seconds=0.5, used_seconds=0.5 * (number + 1), evaluation_period=10)
    other = Progress(1000, max_seconds=100.0)
    other.restore(progress.state())
    assert other.state() == progress.state() and other.likely_iterations == progress.likely_iterations < 250
