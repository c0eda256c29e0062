"""Reporters: events for TensorBoard, and stand-ins for services that are not installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("cv2")

from training_cases import fast_config

from detector.callbacks import Callbacks, RunStart, reporters
from detector.config import LogConfig
from maenas.errors import MissingExtraError

ROW = {"epoch": 1, "iteration": 3, "loss": 1.5, "ap": None, "lr": 0.1}


def start(folder: Path) -> RunStart:
    return RunStart(fast_config(), folder, "abc", 12, 3, 0, ())


def tell(log: LogConfig, folder: Path) -> None:
    callbacks = Callbacks(reporters(log))
    callbacks.on_start(start(folder))
    callbacks.on_epoch(ROW)
    callbacks.on_end({"ended_by": "completed"})
    assert callbacks.active, "none failed"


def test_nothing_is_asked_for():
    assert reporters(LogConfig()) == []


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(LogConfig(tensorboard=True), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "lr"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.5)]


class Recorder(types.ModuleType):
    """A module that writes down what is called."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **named: self.calls.append((name, arguments, named))


def test_wandb(tmp_path, monkeypatch):
    service = Recorder("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    tell(LogConfig(wandb="cells"), tmp_path)
    (first, _, named), (second, values, step), (last, *_) = service.calls
    assert (first, second, last) == ("init", "log", "finish")
    assert named["project"] == "cells" and named["config"]["train"]["epochs"] == 3
    assert values == ({"epoch": 1, "iteration": 3, "loss": 1.5, "lr": 0.1},) and step == {"step": 3}


def test_mlflow(tmp_path, monkeypatch):
    service = Recorder("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", service)
    tell(LogConfig(mlflow="cells"), tmp_path)
    names = [name for name, *_ in service.calls]
    assert names == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
    assert service.calls[2][1][0]["train.epochs"] == 3


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_packages_are_named_before_the_run(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"log\.{name} needs the package {name}"):
        reporters(LogConfig(**{name: "cells"}))
