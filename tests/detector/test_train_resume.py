"""Runs that are stopped, killed and resumed end as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")

from training_cases import SignalAt, assert_same_run, fast_config, rectangles, take_exactly, tiny_structure  # noqa: E402

import detector.evaluate_sources as evaluate_sources  # noqa: E402
from detector.data.source import load_data  # noqa: E402
from detector.errors import CheckpointError, TrainingError  # noqa: E402
from detector.stop_signals import StopSignals  # noqa: E402
from detector.train import train  # noqa: E402
from detector.training_state import load_training_state  # noqa: E402

HERE = Path(__file__).resolve().parent
CONFIG = {"train__epochs": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Folder of a run of three epochs of three steps that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(fast_config(**CONFIG), tiny_structure(), data, out=out)
    return out


def resume(out, data, **changes):
    return train(fast_config(**CONFIG, **changes), tiny_structure(), data, out=out, resume=True)


@pytest.mark.parametrize(
    ("step", "number", "epochs"),
    [(1, signal.SIGTERM, 0), (4, signal.SIGINT, 1), (6, signal.SIGTERM, 1), (9, signal.SIGTERM, 2)],
    ids=["in warm-up", "in an epoch", "before an evaluation", "before the last evaluation"],
)
def test_stopped_by_a_signal(step, number, epochs, data, whole, tmp_path):
    out = tmp_path / "run"
    before = signal.getsignal(number)
    callbacks = [SignalAt(step, number)]
    stopped = train(fast_config(**CONFIG), tiny_structure(), data, out=out, callbacks=callbacks)
    assert stopped.ended_by == signal.Signals(number).name and stopped.epochs == epochs
    # A signal between two steps is noticed by the next one.
    assert stopped.iterations in (step, step + 1)
    assert signal.getsignal(number) is before
    assert json.loads((out / "result.json").read_text())["ended_by"] == stopped.ended_by
    finished = resume(out, data)
    assert (finished.ended_by, finished.epochs, finished.iterations) == ("completed", 3, 9)
    assert_same_run(out, whole)


@pytest.mark.slow
def test_stopped_again_and_again(data, whole, tmp_path):
    out = tmp_path / "run"
    train(fast_config(**CONFIG), tiny_structure(), data, out=out, callbacks=[SignalAt(2)])
    for step in (4, 7):
        train(fast_config(**CONFIG), tiny_structure(), data, out=out, resume=True, callbacks=[SignalAt(step)])
    resume(out, data)
    assert_same_run(out, whole)


def test_stopped_inside_an_evaluation(data, whole, tmp_path, monkeypatch):
    def interrupted(predictor, dataset, *, interrupt, **options):
        assert not interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(predictor, dataset, interrupt=interrupt, **options)

    evaluate = evaluate_sources.evaluate
    monkeypatch.setattr(evaluate_sources, "evaluate", interrupted)
    out = tmp_path / "run"
    stopped = train(fast_config(**CONFIG), tiny_structure(), data, out=out)
    assert (stopped.ended_by, stopped.epochs, stopped.iterations) == ("SIGTERM", 1, 6)
    assert not (out / "best.safetensors").exists()
    monkeypatch.undo()
    resume(out, data)
    assert_same_run(out, whole)


def test_workers_change_nothing(data, whole, tmp_path):
    """Stopped with worker processes at work, resumed without."""
    out = tmp_path / "run"
    stopped = train(fast_config(**CONFIG, data__workers=2), tiny_structure(), data, out=out, callbacks=[SignalAt(5)])
    assert stopped.ended_by == "SIGTERM"
    resume(out, data)
    assert_same_run(out, whole)


def test_sgd_and_scaling_are_resumed(data, tmp_path):
    changes = {"optimizer__name": "sgd", "optimizer__lr": 0.01, "train__precision": "bf16", "train__epochs": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    train(fast_config(**changes), tiny_structure(), data, out=one)
    train(fast_config(**changes), tiny_structure(), data, out=two, callbacks=[SignalAt(2)])
    train(fast_config(**changes), tiny_structure(), data, out=two, resume=True)
    assert_same_run(two, one)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {here!r})
from training_cases import fast_config, tiny_structure
from detector.callbacks import Callback
from detector.data.source import load_data
from detector.train import train

class Kill(Callback):
    def on_step(self, step):
        if step.iteration == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

config = fast_config(log__save_every_steps=2, **{config!r})
train(config, tiny_structure(), load_data({data!r}), out={out!r}, callbacks=[Kill()])
"""


@pytest.mark.slow
def test_killed(tmp_path, whole):
    """SIGKILL in the middle of an epoch, in a process of its own: the last saved step is gone on from."""
    from training_cases import write_rectangles

    path, out = write_rectangles(tmp_path / "data"), tmp_path / "run"
    step = int(np.random.default_rng().choice([4, 5, 7, 8]))  # any will do
    script = SCRIPT.format(here=str(HERE), step=step, config=CONFIG, data=str(path), out=str(out))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE)))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    saved = load_training_state(out / "state.safetensors").record["progress"]["iteration"]
    assert saved == max(number for number in range(step + 1) if number % 2 == 0 or number % 3 == 0) or saved == step - 1
    data = load_data(path)
    result = train(fast_config(**CONFIG), tiny_structure(), data, out=out, resume=True)
    assert result.iterations == 9
    assert_same_run(out, whole)


def test_a_second_signal_ends_at_once():
    """In a process of its own, for it does not survive."""
    child = os.fork()
    if not child:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            if stop and stop.name == "SIGTERM":
                os.kill(os.getpid(), signal.SIGINT)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGINT


@pytest.fixture
def stopped(data, tmp_path):
    out = tmp_path / "run"
    train(fast_config(**CONFIG), tiny_structure(), data, out=out, callbacks=[SignalAt(4)])
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__epochs": 6}, r"train\.epochs: 3 -> 6"),
        ({"optimizer__lr": 0.1, "train__seed": 5}, r"train\.seed: 0 -> 5; optimizer\.lr: 0\.004 -> 0\.1"),
        ({"augment__flip": 0.0}, r"augment\.flip: 0\.5 -> 0\.0"),
        ({"ema__decay": 0.5}, r"ema\.decay: 0\.9 -> 0\.5"),
        ({"model__freeze": ["neck"]}, r'model\.freeze: \[\] -> \["neck"\]'),
    ],
)
def test_other_settings_are_refused(changes, message, stopped, data):
    before = (stopped / "state.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=f"the run to resume had other settings .{message}.; expected the same"):
        train(fast_config(**{**CONFIG, **changes}), tiny_structure(), data, out=stopped, resume=True)
    assert (stopped / "state.safetensors").read_bytes() == before


def test_harmless_settings_may_change(stopped, data):
    result = train(
        fast_config(**{**CONFIG, "eval__every": 1, "data__workers": 1, "train__patience": 50}),
        tiny_structure(),
        data,
        out=stopped,
        resume=True,
    )
    assert result.ended_by == "completed"


def test_other_data_and_networks_are_refused(stopped, data):
    fewer = replace(data, train=replace(data.train, images=data.train.images[:-1]))
    with pytest.raises(TrainingError, match=r'had other settings \(data: "[0-9a-f]{12}" -> "[0-9a-f]{12}"\)'):
        train(fast_config(**CONFIG), tiny_structure(), fewer, out=stopped, resume=True)
    with pytest.raises(TrainingError, match=r'structure: "[0-9a-f]{12}" -> "[0-9a-f]{12}"'):
        train(fast_config(**CONFIG), tiny_structure(width=12), data, out=stopped, resume=True)


def test_a_finished_run_is_finished(whole, data):
    before = (whole / "last.safetensors").read_bytes()
    result = resume(whole, data)
    assert (result.ended_by, result.epochs, result.iterations) == ("completed", 3, 9)
    assert (whole / "last.safetensors").read_bytes() == before


def test_nothing_to_resume(data, tmp_path):
    with pytest.raises(TrainingError, match=r"holds no run to resume \(state\.safetensors is missing\)"):
        resume(tmp_path / "new", data)
    assert not (tmp_path / "new").exists()


def test_a_damaged_state_is_named(stopped, data):
    path = stopped / "state.safetensors"
    content = path.read_bytes()
    for damaged, message in {
        content[: len(content) // 2]: "cannot be read as a training state",
        (stopped / "metrics.csv").read_bytes(): "cannot be read as a training state",
        b"": "cannot be read as a training state",
    }.items():
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            resume(stopped, data)
    path.write_bytes(content)
    (stopped / "metrics.csv").unlink()
    with pytest.raises(TrainingError, match=r"metrics\.csv: 1 of 1 epochs are missing"):
        resume(stopped, data)


def test_a_checkpoint_is_no_state(whole):
    with pytest.raises(CheckpointError, match="is no training state of ours"):
        load_training_state(whole / "last.safetensors")


def test_a_time_limited_run_is_resumed(data, tmp_path, monkeypatch):
    take_exactly(monkeypatch, seconds=0.1)
    changes = {**CONFIG, "train__epochs": 1000, "train__max_minutes": 0.1, "eval__every": 1000}
    out = tmp_path / "run"
    stopped = train(fast_config(**changes), tiny_structure(), data, out=out, callbacks=[SignalAt(2)])
    assert stopped.ended_by == "SIGTERM"
    finished = train(fast_config(**changes), tiny_structure(), data, out=out, resume=True)
    assert finished.ended_by == "completed" and finished.seconds > stopped.seconds
    assert 5.5 < finished.seconds <= 6, "of both together"
    assert finished.iterations > stopped.iterations and finished.ap is not None
