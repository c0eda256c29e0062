"""Whole runs with a teacher: what they leave, how they resume, what they refuse, and what the teacher may be."""

from __future__ import annotations

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

from network_cases import random_structure, randomise_norms  # noqa: E402
from training_cases import (  # noqa: E402
    SignalAt,
    assert_same_run,
    fast_config,
    rectangles,
    rows_of,
    tiny_structure,
    weights_of,
    write_rectangles,
)

import detector.distill_run as distill_run  # noqa: E402
from detector.callbacks import Callback  # noqa: E402
from detector.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from detector.data.source import load_data  # noqa: E402
from detector.distill_config import DistillConfig  # noqa: E402
from detector.errors import CheckpointError, ConfigError, TrainingError  # noqa: E402
from detector.feature_cache import FeatureCache  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.reparam import fuse_reparam  # noqa: E402
from detector.run_plan import plan_run  # noqa: E402
from detector.teacher import Teacher, load_teacher, weights_digest  # noqa: E402
from detector.train import train  # noqa: E402
from detector.training_state import load_training_state  # noqa: E402

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return rectangles(tmp_path_factory.mktemp("rectangles"))


def write_teacher(path, structure=None, *, seed=1):
    torch.manual_seed(seed)
    model = Detector(structure or tiny_structure(width=12, num_classes=7)).eval()
    randomise_norms(model, seed)
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), model.class_names), path)
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A wider network with other classes and random weights: any maps will do to learn from."""
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def taught(teacher, **changes):
    return fast_config(**{"distill__teacher": teacher, **changes})


def one_epoch(teacher, **changes):
    given = {"train__epochs": 1, "schedule__warmup_epochs": 0, "schedule__no_aug_epochs": 0}
    return taught(teacher, **{**given, **changes})


@pytest.fixture(scope="module")
def whole(data, teacher, tmp_path_factory):
    """Folder of a run of three epochs of three steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(taught(teacher), tiny_structure(), data, out=out)
    return out


def test_what_a_run_leaves(whole, data, teacher):
    rows = rows_of(whole)
    # Weights are means over an epoch's steps n of 9: 1 - 0.9 (1 - cos(pi n / 9)) / 2.
    weights = 1 - 0.45 * (1 - np.cos(np.pi * np.arange(9) / 9))
    assert [float(row["distill_weight"]) for row in rows] == pytest.approx(weights.reshape(3, 3).mean(1).tolist())
    for row in rows:
        detection = sum(float(row[name]) for name in ("quality_focal", "giou", "dfl"))
        rest = float(row["loss"]) - detection
        assert rest == pytest.approx(float(row["distill"]) * float(row["distill_weight"]), rel=0.1) and rest > 0
    checkpoint = load_checkpoint(whole / "last.safetensors")
    assert checkpoint.weights.keys() == Detector(tiny_structure()).state_dict().keys(), "students take nothing along"
    digest = load_teacher(teacher, DistillConfig(), device=CPU).digest
    assert checkpoint.provenance["teacher"] == digest
    state = load_training_state(whole / "state.safetensors")
    assert state.record["teacher"] == digest
    assert state.tensors["learner"]["distiller.align.2.weight"].shape == (12, 8, 1, 1)
    assert "distiller.align.0.bias|exp_avg" in state.tensors["optimizer"]
    note = plan_run(taught(teacher), tiny_structure(), data)["notes"][-1]
    assert f"teacher: tiny ({digest}) from {teacher}; cwd at levels 3, 4, 5 of the neck" in note


def test_the_projection_learns_and_decays_as_the_rest(data, teacher, tmp_path, monkeypatch):
    groups = []
    build = distill_run.Distiller

    def noted(*arguments, **named):
        groups.append(build(*arguments, **named))
        groups.append({name: value.clone() for name, value in groups[0].state_dict().items()})
        return groups[0]

    monkeypatch.setattr(distill_run, "Distiller", noted)
    config = one_epoch(teacher, distill__method="mgd", distill__mgd_scale=0.01)
    run_weights = {}

    class Listener(Callback):
        def on_end(self, summary):
            run_weights.update(weights_of(tmp_path / "run" / "state.safetensors"))

    train(config, tiny_structure(), data, out=tmp_path / "run", callbacks=[Listener()])
    before = groups[1]
    assert len(before) == 18, "three projections, six convolutions that generate"
    for name, value in before.items():
        assert not torch.equal(run_weights[f"learner/distiller.{name}"], value), name


def test_weight_decay_spares_the_biases():
    from detector.distill import Distiller, MapShapes
    from detector.optim import parameter_groups

    shapes = MapShapes((4, 4, 4), (8, 16, 32), (0, 1, 2))
    distiller = Distiller(DistillConfig(method="mgd"), student=shapes, teacher=shapes)
    decayed, spared = (set(map(id, group["params"])) for group in parameter_groups(distiller, weight_decay=0.1))
    for name, parameter in distiller.named_parameters():
        assert id(parameter) in (spared if name.endswith("bias") else decayed)


def test_the_student_begins_as_without_a_teacher(data, teacher, tmp_path):
    """Same seed, same initial weights: at a learning rate of nothing the two runs stay the same."""
    for name, config in {
        "taught": one_epoch(teacher, optimizer__lr=1e-30),
        "alone": one_epoch(None, optimizer__lr=1e-30),
    }.items():
        train(config, tiny_structure(), data, out=tmp_path / name)
    one, other = (weights_of(tmp_path / name / "state.safetensors") for name in ("taught", "alone"))
    for name in Detector(tiny_structure()).state_dict():
        torch.testing.assert_close(one[f"learner/model.{name}"], other[f"learner/model.{name}"], rtol=0, atol=1e-20)
    alone = rows_of(tmp_path / "alone")[0]
    assert alone["distill"] == alone["distill_weight"] == ""


def test_the_clipped_norm_is_the_students(data, teacher, tmp_path):
    """With a tiny limit, SGD and no momentum: the step's length is the limit, whatever the projection's gradient is."""
    changes = {
        "optimizer__name": "sgd",
        "optimizer__momentum": 0.0,
        "optimizer__weight_decay": 0.0,
        "optimizer__lr": 1.0,
    }
    changes |= {"train__batch_size": 12, "ema__enabled": False, "train__max_bad_steps": 1}
    found = {}
    for limit in (1e-3, None):
        out = tmp_path / str(limit)
        config = one_epoch(teacher, **changes, distill__clip_norm=limit, optimizer__lr_per_image=1.0)
        config = replace(config, optimizer=replace(config.optimizer, lr=1e-3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            initial = dict(Detector(tiny_structure()).named_parameters())
        train(config, tiny_structure(), data, out=out)
        state = weights_of(out / "state.safetensors")
        moved = [(state[f"learner/model.{name}"] - value.detach()).norm() ** 2 for name, value in initial.items()]
        found[limit] = float(torch.stack(moved).sum().sqrt())
    assert found[1e-3] == pytest.approx(1e-6, rel=0.05) and found[None] > 1e-4


@pytest.mark.parametrize(("step", "changes"), [(2, {}), (7, {"distill__method": "mgd"})])
def test_stopped_and_resumed(step, changes, data, whole, teacher, tmp_path):
    if changes:
        train(taught(teacher, **changes), tiny_structure(), data, out=tmp_path / "whole")
        whole = tmp_path / "whole"
    out = tmp_path / "run"
    stopped = train(taught(teacher, **changes), tiny_structure(), data, out=out, callbacks=[SignalAt(step)])
    assert stopped.ended_by == "SIGTERM"
    train(taught(teacher, **changes), tiny_structure(), data, out=out, resume=True)
    assert_same_run(out, whole)


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
def test_killed(tmp_path, whole, teacher):
    """SIGKILL at any step, in a process of its own."""
    path, out = write_rectangles(tmp_path / "data"), tmp_path / "run"
    step = int(np.random.default_rng().integers(1, 9))
    changes = {"distill__teacher": teacher}
    script = SCRIPT.format(here=str(HERE), step=step, config=changes, data=str(path), out=str(out))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE)))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    result = train(taught(teacher), tiny_structure(), load_data(path), out=out, resume=True)
    assert result.iterations == 9
    assert_same_run(out, whole)


def test_another_teacher_is_refused_and_the_same_one_may_move(data, whole, teacher, tmp_path):
    out = tmp_path / "run"
    train(taught(teacher), tiny_structure(), data, out=out, callbacks=[SignalAt(4)])
    other = write_teacher(tmp_path / "other.safetensors", seed=2)
    for changed in (other, None):
        with pytest.raises(TrainingError, match=r"had other settings .*the teacher's weights: \"[0-9a-f]{12}\" -> "):
            train(taught(changed), tiny_structure(), data, out=out, resume=True)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(teacher).read_bytes())
    train(taught(str(moved)), tiny_structure(), data, out=out, resume=True)
    assert_same_run(out, whole)


def test_the_teacher_falls_silent_in_the_last_stage(data, teacher, tmp_path, monkeypatch):
    calls = []
    maps = Teacher.maps
    monkeypatch.setattr(Teacher, "maps", lambda self, *images: calls.append(1) or maps(self, *images))
    config = taught(teacher, distill__stop="no_aug", distill__schedule="constant", distill__weight=0.5)
    steps = []

    class Listener(Callback):
        def on_step(self, step):
            steps.append(step.distill_weight)

    train(config, tiny_structure(), data, out=tmp_path / "run", callbacks=[Listener()])
    assert steps == [0.5] * 6 + [0.0] * 3 and len(calls) == 6
    rows = rows_of(tmp_path / "run")
    assert [float(row["distill_weight"]) for row in rows] == [0.5, 0.5, 0.0] and float(rows[2]["distill"]) == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"distill__method": "mimic"},
        {"distill__method": "mgd"},
        {"distill__features": "backbone"},
        {"distill__features": "backbone", "distill__levels": [4], "distill__normalise": False},
        {"distill__precision": "bf16", "train__precision": "bf16"},
        {"train__precision": "fp16"},
        {"train__accumulate": 2},
        {"train__multi_scale": [64, 96], "train__multi_scale_every": 1},
        {"model__freeze": ["backbone"]},
        {"train__last_batch": "keep", "train__batch_size": 5},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_options_run(changes, data, teacher, tmp_path):
    result = train(one_epoch(teacher, **changes), tiny_structure(), data, out=tmp_path / "run")
    assert result.ended_by == "completed"
    assert float(rows_of(tmp_path / "run")[0]["distill"]) > 0


@pytest.mark.parametrize("family", ["res", "csp", "mob", "kxkx"])
def test_teachers_of_any_family(family, data, tmp_path):
    structure = replace(random_structure(family, 1), image_size=(64, 64))
    teacher = write_teacher(tmp_path / "teacher.safetensors", structure)
    train(one_epoch(teacher), tiny_structure(), data, out=tmp_path / "run")
    assert float(rows_of(tmp_path / "run")[0]["distill"]) > 0


def test_a_network_teaches_itself(data, whole, tmp_path):
    train(one_epoch(str(whole / "last.safetensors")), tiny_structure(), data, out=tmp_path / "run")
    assert float(rows_of(tmp_path / "run")[0]["distill"]) > 0


def test_a_teacher_shows_what_it_was_trained_to_show(teacher):
    """Folded, merged or not, in its own mode: the maps of the checkpoint's network, and no gradient."""
    model = load_checkpoint(teacher).build()
    images = torch.rand(2, 3, 64, 96) * 255
    with torch.no_grad():
        backbone, neck = model.both_maps(images)
    for features, expected in (("neck", neck), ("backbone", backbone)):
        config = DistillConfig(features=features, levels=(3, 5))
        maps = load_teacher(teacher, config, device=CPU).maps(images, images)
        assert len(maps) == 2 and not any(level.requires_grad for level in maps)
        for found, wanted in zip(maps, expected[::2], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    merged = fuse_reparam(model)
    shown = Teacher(merged, DistillConfig(), device=CPU, digest="").maps(images, images)
    torch.testing.assert_close(shown[1], neck[1], rtol=1e-4, atol=1e-4)
    half = load_teacher(teacher, DistillConfig(precision="bf16"), device=CPU).maps(images, images)
    assert half[0].dtype == torch.bfloat16
    assert (half[0].float() - neck[0]).abs().max() < 0.1 * neck[0].abs().max()


def test_a_digest_is_of_the_weights(teacher, tmp_path):
    checkpoint = load_checkpoint(teacher)
    digest = weights_digest(checkpoint.weights, checkpoint.structure)
    save_checkpoint(replace(checkpoint, metrics={"ap": 0.5}), tmp_path / "again.safetensors")
    again = load_checkpoint(tmp_path / "again.safetensors")
    assert weights_digest(dict(reversed(again.weights.items())), again.structure) == digest
    name = "head.class_convs.0.bias"
    changed = {**checkpoint.weights, name: checkpoint.weights[name] + 1e-3}
    assert weights_digest(changed, checkpoint.structure) != digest


def views(teacher, **changes):
    """Two views per image, over four epochs without a last stage."""
    given = {
        "augment__views": 2,
        "augment__sada": False,
        "train__epochs": 4,
        "schedule__no_aug_epochs": 0,
        "eval__every": 4,
    }
    return taught(teacher, **{**given, **changes})


def test_kept_maps_are_those_that_would_be_computed(data, teacher, tmp_path, monkeypatch):
    caches = []
    build = FeatureCache.__init__
    monkeypatch.setattr(FeatureCache, "__init__", lambda self: (build(self), caches.append(self))[0])
    runs = {"kept": {"distill__cache": "ram"}, "anew": {}}
    for name, changes in runs.items():
        train(views(teacher, **changes), tiny_structure(), data, out=tmp_path / name)
    assert_same_run(tmp_path / "kept", tmp_path / "anew")
    assert (caches[0].misses, caches[0].hits, len(caches[0])) == (24, 24, 24)
    stopped = tmp_path / "stopped"
    train(views(teacher, distill__cache="ram"), tiny_structure(), data, out=stopped, callbacks=[SignalAt(8)])
    train(views(teacher, distill__cache="ram"), tiny_structure(), data, out=stopped, resume=True)
    assert_same_run(stopped, tmp_path / "kept")


def test_maps_are_found_by_pixels():
    cache, computed = FeatureCache(), []

    def compute(images):
        computed.append(len(images))
        return [images.float().mean((2, 3), keepdim=True) * scale for scale in (1, 2)]

    images = torch.randint(0, 256, (3, 3, 4, 6), dtype=torch.uint8)
    first = cache.maps(images, lambda: compute(images))
    again = cache.maps(images.flip(0), lambda: compute(images))
    assert computed == [3]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.flip(0), other)
    turned = images.reshape(3, 3, 6, 4)
    cache.maps(turned, lambda: compute(turned))
    one_pixel = images.clone()
    one_pixel[1, 2, 3, 5] ^= 1
    cache.maps(one_pixel, lambda: compute(one_pixel))
    assert computed == [3, 3, 3] and (cache.hits, cache.misses, len(cache)) == (3, 9, 7)


def test_a_cache_that_does_not_fit_is_refused(data, teacher, tmp_path, monkeypatch):
    # 12 images, 2 views, maps of 12 channels at 8x8, 4x4 and 2x2 in four bytes each.
    needed = 12 * 2 * 12 * (64 + 16 + 4) * 4
    monkeypatch.setattr(distill_run, "available_bytes", lambda: needed)
    config = views(teacher, distill__cache="ram")
    with pytest.raises(ConfigError, match=r"distill\.cache is 'ram', which needs 0\.0 GB"):
        train(config, tiny_structure(), data, out=tmp_path / "run")
    monkeypatch.setattr(distill_run, "available_bytes", lambda: int(needed / 0.8) + 1)
    small = replace(config, train=replace(config.train, epochs=1), schedule=replace(config.schedule, warmup_epochs=0))
    assert train(small, tiny_structure(), data, out=tmp_path / "run").ended_by == "completed"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"distill__teacher": "gone.safetensors"}, CheckpointError, "teacher gone.safetensors: cannot be read"),
        (
            {"distill__teacher": "t.pth"},
            CheckpointError,
            r"t\.pth: names no structure; .*maenas convert weights t\.pth",
        ),
        ({"distill__levels": [2, 3]}, ConfigError, r"level 2 \(stride 4\), which the student does not have"),
        ({"model__freeze": ["backbone", "neck"]}, ConfigError, "distill.features is 'neck' with model.freeze backbone"),
        (
            {"model__freeze": ["backbone"], "distill__features": "backbone"},
            ConfigError,
            "nothing that the loss depends on would learn",
        ),
    ],
)
def test_what_cannot_teach(changes, error, message, data, teacher, tmp_path):
    with pytest.raises(error, match=message):
        train(taught(**{"teacher": teacher, **changes}), tiny_structure(), data, out=tmp_path / "run")


def test_files_that_are_no_teacher(data, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    for name, message in (("text", "cannot be read as a checkpoint"), ("foreign", "no checkpoint of ours")):
        path = str(tmp_path / f"{name}.safetensors")
        with pytest.raises(CheckpointError, match=f"teacher .*{name}.*{message}"):
            train(taught(path), tiny_structure(), data, out=tmp_path / "run")
