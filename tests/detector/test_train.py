"""Whole runs on a tiny network: what they leave, that they learn, and how they end."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")

from network_cases import random_structure  # noqa: E402
from training_cases import (  # noqa: E402
    assert_same_weights,
    fast_config,
    rectangles,
    rows_of,
    take_exactly,
    tiny_structure,
    weights_of,
)

import detector.train_step as train_step  # noqa: E402
from detector.callbacks import Callback  # noqa: E402
from detector.checkpoint import load_checkpoint  # noqa: E402
from detector.config import load_config  # noqa: E402
from detector.criterion import Criterion  # noqa: E402
from detector.errors import CheckpointError, ConfigError, DataError, TrainingError  # noqa: E402
from detector.evaluate import evaluate  # noqa: E402
from detector.learner import Learner  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.run_plan import data_digest, plan_run  # noqa: E402
from detector.train import train  # noqa: E402
from maenas.errors import OutputError  # noqa: E402

FULL = {"log__keep_every_epochs": 2, "log__curves": True, "eval__samples": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of three epochs: its folder and result."""
    out = tmp_path_factory.mktemp("run") / "out"
    result = train(fast_config(**FULL), tiny_structure(), data, out=out)
    return out, result


def test_what_a_run_leaves(finished):
    out, result = finished
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("config.yaml", "structure.json", "state.safetensors", "best.safetensors", "last.safetensors"),
        *("metrics.csv", "curves.png", "result.json", "epoch_0002.safetensors", "samples", ".lock"),
    }
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["epoch_0002.jpg", "epoch_0003.jpg"]
    assert (result.epochs, result.iterations, result.ended_by) == (3, 9, "completed")
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    rows = rows_of(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and [row["iteration"] for row in rows] == ["3", "6", "9"]
    assert [bool(row["ap"]) for row in rows] == [False, True, True], "epoch 2, and the last stage every epoch"
    assert all(float(row["loss"]) > 0 and float(row["gradient_norm"]) > 0 for row in rows)
    for row in rows:
        parts = sum(float(row[name]) for name in ("quality_focal", "giou", "dfl"))
        assert parts == pytest.approx(float(row["loss"]), rel=1e-5)


def test_the_checkpoint_is_what_was_evaluated(finished, data):
    out, result = finished
    model = Detector.from_checkpoint(out / "last.safetensors")
    assert model.class_names == ("red", "blue")
    checkpoint = load_checkpoint(out / "last.safetensors")
    assert checkpoint.metrics["ap"] == result.ap == evaluate(model, data.val).metrics.ap
    assert checkpoint.provenance["epoch"] == 3 and checkpoint.provenance["iteration"] == 9
    assert checkpoint.structure.image_size == (64, 64) and checkpoint.structure.head.num_classes == 2


def test_the_resolved_settings_are_those_of_the_run(finished):
    out, _ = finished
    config = load_config(out / "config.yaml")
    expected = fast_config(**FULL).for_image_size((64, 64))
    assert config == expected


def test_the_same_again_is_the_same(finished, data, tmp_path):
    out, _ = finished
    before = torch.get_rng_state()
    np.random.seed(3)
    train(fast_config(), tiny_structure(), data, out=tmp_path / "again")
    assert_same_weights(out / "last.safetensors", tmp_path / "again" / "last.safetensors")
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is left alone"
    other = train(fast_config(train__seed=1), tiny_structure(), data, out=tmp_path / "other")
    one, two = weights_of(out / "last.safetensors"), weights_of(other.folder / "last.safetensors")
    assert not torch.equal(one["head.class_convs.0.weight"], two["head.class_convs.0.weight"])


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Rectangles of two colours, found and told apart after a few seconds."""
    data = rectangles(tmp_path / "data", num_train=32)
    config = fast_config(
        train__epochs=30, train__batch_size=8, augment__mosaic=0.0, augment__sada=False, eval__every=30,
        eval__every_no_aug=30, schedule__no_aug_epochs=2, augment__flip=0.5,
    )  # fmt: skip
    result = train(config, tiny_structure(), data, out=tmp_path / "run")
    assert result.ap > 0.4
    losses = [float(row["loss"]) for row in rows_of(tmp_path / "run")]
    assert np.mean(losses[-3:]) < 0.7 * max(losses)


def test_classes_and_image_size_follow_the_data(data, tmp_path):
    structure = tiny_structure(num_classes=80, size=128)
    seen = []

    class Listener(Callback):
        def on_start(self, run):
            seen.append(run)

    config = fast_config(
        train__epochs=1, schedule__warmup_epochs=0, schedule__no_aug_epochs=0, model__image_size=[96, 64]
    )
    train(config, structure, data, out=tmp_path / "run", callbacks=[Listener()])
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.structure.head.num_classes == 2 and checkpoint.structure.image_size == (96, 64)
    assert seen[0].notes == (
        "classes: 80 in the structure, 2 in the data; trained: 2",
        "image size: 128x128 in the structure, trained at 96x64",
    )
    plan = plan_run(config, structure, data)
    assert plan["steps"] == 3 and plan["classes"] == ["red", "blue"] and plan["image_size"] == [96, 64]


def one_epoch(**changes):
    given = {"train__epochs": 1, "schedule__warmup_epochs": 0, "schedule__no_aug_epochs": 0}
    return fast_config(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"train__precision": "bf16"},
        {"train__precision": "fp16"},
        {"train__channels_last": False},
        {"train__multi_scale": [64, 96], "train__multi_scale_every": 1},
        {"ema__enabled": False},
        {"optimizer__name": "sgd", "optimizer__clip_norm": 0.5},
        {"train__last_batch": "keep", "train__batch_size": 5},
        {"train__last_batch": "drop", "train__batch_size": 5},
        {"loss__assigner": "sim_ota"},
        {"data__cache": "ram"},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_options_run(changes, data, tmp_path):
    result = train(one_epoch(**changes), tiny_structure(), data, out=tmp_path / "run")
    assert result.ended_by == "completed"
    rows = rows_of(tmp_path / "run")
    assert np.isfinite(float(rows[0]["loss"]))
    if changes.get("ema__enabled") is False:
        state = weights_of(tmp_path / "run" / "state.safetensors")
        name = "head.class_convs.0.weight"
        assert torch.equal(state[f"ema/{name}"], state[f"learner/model.{name}"])


def test_channels_stay_outside_where_the_library_would_corrupt_memory():
    """Strided 1x1 convolutions of fewer than 16 channels on a CPU."""
    safe = Learner(Detector(tiny_structure(width=16)), Criterion(), channels_last=True)
    unsafe = Learner(Detector(tiny_structure(width=8)), Criterion(), channels_last=True)
    assert (safe.memory_format, unsafe.memory_format) == (torch.channels_last, torch.contiguous_format)
    assert safe.model.head.class_convs[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert safe.state_dict().keys() == {f"model.{name}" for name in Detector(tiny_structure()).state_dict()}


@pytest.mark.slow
def test_every_family_trains(data, tmp_path):
    """A step of each block family, with options that no published network has, and an unused last stage."""
    for number, family in enumerate(("res", "csp", "mob", "kxkx")):
        structure = replace(random_structure(family, number), image_size=(64, 64))
        result = train(one_epoch(), structure, data, out=tmp_path / family)
        assert result.ended_by == "completed"


def test_portions_add_up_to_the_batch(data, tmp_path, monkeypatch):
    """With frozen statistics and one normaliser, the gradient of a batch is that of its portions."""
    norms = {}

    def noted(model, largest):
        norms.setdefault(current[0], []).append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        )
        return clip(model, largest)

    clip, current = train_step._clip, [0]
    monkeypatch.setattr(train_step, "_clip", noted)
    for accumulate in (1, 2):
        current[0] = accumulate
        config = one_epoch(train__accumulate=accumulate, model__freeze=["backbone", "neck"])
        train(config, tiny_structure(), data, out=tmp_path / str(accumulate))
    # The first step begins from the same weights; its normalisers differ by portion, its direction hardly.
    first, second = norms[1][0], norms[2][0]
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.9
    assert 0.5 < float(second.norm() / first.norm()) < 2


def test_frozen_parts_stay(data, tmp_path):
    torch.manual_seed(0)
    train(one_epoch(model__freeze=["stage 2", "neck"]), tiny_structure(), data, out=tmp_path / "run")
    state = weights_of(tmp_path / "run" / "state.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        initial = Detector(tiny_structure()).state_dict()
    for name, value in initial.items():
        frozen = name.startswith(("neck.", "backbone.stem.", "backbone.stages.0.", "backbone.stages.1."))
        same = torch.equal(state[f"learner/model.{name}"], value)
        if frozen:
            assert same, name
        elif name.endswith((".conv.weight", "running_mean")):
            assert not same, name


def test_the_run_ends_without_gain(data, tmp_path):
    config = fast_config(train__patience=1, eval__every=1, train__epochs=6, optimizer__lr=1e-9)
    result = train(config, tiny_structure(), data, out=tmp_path / "run")
    assert result.ended_by == "patience" and result.epochs == 2
    assert result.best["epoch"] == 1


def test_callbacks_hear_everything_and_cannot_hurt(data, tmp_path, caplog):
    heard = []

    class Good(Callback):
        def on_start(self, run):
            heard.append(("start", run.iterations_per_epoch, run.first_iteration))

        def on_step(self, step):
            heard.append(("step", step.iteration, step.epoch))

        def on_evaluation(self, evaluation, *, epoch):
            heard.append(("evaluation", epoch, len(evaluation.detections)))

        def on_epoch(self, row):
            heard.append(("epoch", row["epoch"], row["ap"] is not None))

        def on_end(self, summary):
            heard.append(("end", summary["ended_by"], summary["epochs"]))

    class Bad(Callback):
        def on_step(self, step):
            raise RuntimeError("no connection")

    with caplog.at_level(logging.WARNING):
        train(one_epoch(), tiny_structure(), data, out=tmp_path / "run", callbacks=[Bad(), Good()])
    steps = [("step", number, 1) for number in (1, 2, 3)]
    assert heard == [("start", 3, 0), *steps, ("evaluation", 1, 4), ("epoch", 1, True), ("end", "completed", 1)]
    assert caplog.text.count("Bad failed in on_step and is left out: no connection") == 1


class _Broken:
    """Makes the losses of some steps infinite."""

    def __init__(self, steps):
        self.steps, self.count = steps, 0

    def __call__(self, run, batch):
        self.count += 1
        totals = backward(run, batch)
        if self.count in self.steps:
            for parameter in run.learner.model.parameters():
                parameter.grad.fill_(float("nan"))
            totals[0] = float("nan")
        return totals


backward = train_step._backward


def test_single_bad_steps_are_left_out(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(train_step, "_backward", _Broken({2, 3, 5}))
    with caplog.at_level(logging.WARNING):
        result = train(fast_config(), tiny_structure(), data, out=tmp_path / "run")
    assert result.ended_by == "completed" and caplog.text.count("is left out") == 3
    assert all(torch.isfinite(value).all() for value in weights_of(tmp_path / "run" / "state.safetensors").values())


def test_a_diverged_run_is_given_up_and_keeps_its_state(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_step, "_backward", _Broken({5, 6, 7}))
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"training diverged at step 7 \(3 steps in a row without finite losses\)"):
        train(fast_config(), tiny_structure(), data, out=out)
    record = json.loads((out / "diverged.json").read_text())
    assert record["losses"]["total"] == "nan" and record["batch"] == 6 and record["images"]["shape"] == [4, 3, 64, 64]
    monkeypatch.undo()
    result = train(fast_config(), tiny_structure(), data, out=out, resume=True)
    assert result.ended_by == "completed"


def test_a_run_with_broken_weights_is_given_up_at_once(data, tmp_path):
    config = fast_config(optimizer__name="sgd", optimizer__lr=1e30, schedule__warmup_epochs=0)
    with pytest.raises(TrainingError, match=r"training diverged at step [23] .*a lower optimizer\.lr_per_image"):
        train(config, tiny_structure(), data, out=tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in weights_of(tmp_path / "run" / "state.safetensors").values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"train__batch_size": 13},
            ConfigError,
            "batch_size is 13, but .* has 12 images; expected",
        ),
        ({"model__freeze": ["stage 5"]}, ConfigError, "freeze is 'stage 5'; the network has 4 stages"),
        ({"train__device": "tpu7"}, ConfigError, "device is 'tpu7'; cannot be used"),
        ({"model__weights": "gone.safetensors"}, CheckpointError, "gone.safetensors: cannot be read"),
    ],
)
def test_settings_that_do_not_fit(changes, error, message, data, tmp_path):
    with pytest.raises(error, match=message):
        train(fast_config(**changes), tiny_structure(), data, out=tmp_path / "run")
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_data_that_does_not_fit(data, tmp_path):
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"has no split {split}; expected train and val"):
            train(fast_config(), tiny_structure(), replace(data, **{split: None}), out=tmp_path / "run")
    nothing = tuple(replace(record, ignored=np.ones_like(record.ignored)) for record in data.val.images)
    empty = replace(data, val=replace(data.val, images=nothing))
    with pytest.raises(DataError, match=r"its images \(4\) hold no box"):
        train(fast_config(), tiny_structure(), empty, out=tmp_path / "run")


def test_the_digest_sees_every_box(data):
    assert data_digest(data.train, data.val) == data_digest(data.train, data.val) != data_digest(data.train)
    record = data.train.images[0]
    moved = replace(record, boxes=record.boxes + np.float32(1))
    changed = replace(data.train, images=(moved, *data.train.images[1:]))
    assert data_digest(changed) != data_digest(data.train)


def test_a_folder_with_a_run_is_kept(finished, data):
    out, _ = finished
    with pytest.raises(OutputError, match=r"holds a run already .*; expected a new folder, --resume or --force"):
        train(fast_config(), tiny_structure(), data, out=out)


def test_force_removes_the_former_run_and_nothing_else(data, tmp_path):
    out = tmp_path / "run"
    train(one_epoch(log__keep_every_epochs=1, eval__samples=1), tiny_structure(), data, out=out)
    (out / "notes.txt").write_text("mine")
    train(one_epoch(), tiny_structure(), data, out=out, force=True)
    assert (out / "notes.txt").exists() and not (out / "epoch_0001.safetensors").exists()
    assert not list((out / "samples").iterdir())


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    errors = []

    class Second(Callback):
        def on_start(self, run):
            with pytest.raises(TrainingError, match="another run is writing into it; expected another --out"):
                train(fast_config(), tiny_structure(), data, out=tmp_path / "run")
            errors.append("refused")

    train(one_epoch(), tiny_structure(), data, out=tmp_path / "run", callbacks=[Second()])
    assert errors == ["refused"]


def test_a_time_limit_ends_the_run(data, tmp_path, monkeypatch):
    take_exactly(monkeypatch, seconds=0.3)
    config = fast_config(train__epochs=10_000, train__max_minutes=0.5, eval__every=1000, schedule__no_aug_epochs=2000)
    result = train(config, tiny_structure(), data, out=tmp_path / "run")
    assert result.ended_by == "completed" and 28 < result.seconds <= 30
    assert result.iterations >= 90, "as many as fit"
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["ap"] and not rows[0]["ap"]
    assert float(rows[-1]["lr"]) < 0.06 * 0.004, "the schedule ends with its plateau of 0.05"


def test_a_full_disk_keeps_the_last_good_files(data, tmp_path, monkeypatch):
    import maenas.files

    out, count = tmp_path / "run", [0]

    def write(descriptor, mode):
        count[0] += 1
        if count[0] > 12:
            stream = opened(descriptor, mode)
            stream.write(b"half")
            raise OSError(28, os.strerror(28))
        return opened(descriptor, mode)

    opened = os.fdopen
    monkeypatch.setattr(maenas.files.os, "fdopen", write)
    with pytest.raises(OutputError, match=r"cannot be written .No space left on device"):
        train(fast_config(eval__every=1), tiny_structure(), data, out=out)
    monkeypatch.undo()
    assert Detector.from_checkpoint(out / "best.safetensors")
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    result = train(fast_config(eval__every=1), tiny_structure(), data, out=out, resume=True)
    assert result.ended_by == "completed" and result.epochs == 3
