"""Shared by the tests of the network: published structures, the deterministic fill, random structures, conv hooks."""

from __future__ import annotations

import csv
import os
import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detector.convert_official import from_official, to_official
from detector.model import Detector
from maenas.lowering.op import Op
from maenas.published import load_published
from maenas.structure import Backbone, Head, Neck, Stage, Stem, Structure

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODELS = ("t", "s", "m", "l", "ns", "nm", "nl", "n")
KERNEL_GAIN = {"t": 1.0, "s": 0.9, "m": 1.35, "l": 1.28, "ns": 1.55, "nm": 1.55, "nl": 1.5, "n": 1.5}
KEY_LISTS = {name: f"damoyolo_{name.capitalize()}.csv" for name in MODELS} | {"n": "damoyolo_N_legacy_L20.csv"}


def shared(relative: str) -> Path:
    """A file of the shared folder; skips the test where the folder is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{relative} is not there: the shared folder is not part of the repository")
    return path


def published(name: str) -> Structure:
    return load_published(f"damo-yolo-{name}")


def key_list(name: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Key, shape and dtype of every official state-dict entry, in file order."""
    with shared(f"spec/state_dicts/{KEY_LISTS[name]}").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    sizes = [() if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x"))) for row in rows]
    return [(row["key"], size, row["dtype"]) for row, size in zip(rows, sizes, strict=True)]


def filled(key: str, shape: tuple[int, ...], gain: float) -> torch.Tensor:
    """The deterministic value of one official entry, from its name and shape."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    leaf, head_conv = key.rpartition(".")[2], ".gfl_cls." in key or ".gfl_reg." in key
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("integral.project"):
        value = np.arange(shape[0], dtype=np.float64)
    elif leaf == "running_mean":
        value = 0.1 * rng.standard_normal(shape)
    elif leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf == "scale":
        value = rng.uniform(0.8, 1.2, shape)
    elif len(shape) == 4:
        value = np.sqrt((4.0 if head_conv else gain) / np.prod(shape[1:])) * rng.standard_normal(shape)
    elif leaf == "bias":
        noise = rng.standard_normal(shape)
        value = -2 + 0.5 * noise if ".gfl_cls." in key else 0.1 * noise
    else:
        value = rng.uniform(0.8, 1.2, shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def filled_state(name: str) -> dict[str, torch.Tensor]:
    """An official state dict of a published model with deterministic values."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in to_official(Detector(published(name))).items()}
    return {key: filled(key, shape, KERNEL_GAIN[name]) for key, shape in shapes.items()}


def filled_model(name: str) -> Detector:
    return from_official(filled_state(name), published(name))


def example_input(batch: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(f"input/{batch}x3x{height}x{width}".encode()))
    return torch.from_numpy(rng.standard_normal((batch, 3, height, width)).astype(np.float32))


def randomise_norms(model: nn.Module, seed: int) -> None:
    """Batch norms as after some training, so that folding them changes something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.2, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


ConvKey = tuple[int, int, int, int, int, tuple[int, int]]
"""Input channels, output channels, kernel, stride, groups, input (height, width)."""


def executed_convs(model: nn.Module, images: torch.Tensor) -> list[ConvKey]:
    """The convolutions that run, in order."""
    found: list[ConvKey] = []

    def note(module: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        size = (inputs[0].shape[2], inputs[0].shape[3])
        assert module.kernel_size[0] == module.kernel_size[1] and module.stride[0] == module.stride[1]
        channels = (module.in_channels, module.out_channels)
        found.append((*channels, module.kernel_size[0], module.stride[0], module.groups, size))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def lowered_convs(ops: list[Op]) -> list[ConvKey]:
    """The convolutions that the cost model lists, in order."""
    keys: list[ConvKey] = []
    for op in ops:
        if op.kind == "conv":
            groups = int(op.in_channels) if op.depthwise else 1
            key = (int(op.in_channels), int(op.out_channels), op.kernel_size, op.stride, groups, op.in_size)
            keys += [key] * int(op.count)
    return keys


def random_structure(family: str, seed: int) -> Structure:
    """A small random detector of a family, over every option that the structure format has."""
    rng = random.Random(f"{family}/{seed}")
    backbone = _random_backbone(family, rng)
    depthwise = rng.random() < 0.3
    neck = Neck(
        out_channels=tuple(rng.randint(2, 20) for _ in range(3)),
        num_blocks=rng.randint(0, 2),
        hidden_ratio=rng.choice([0.1, 0.5, 0.75, 1.0, 1.3]),
        activation=rng.choice(["relu", "silu", "leaky_relu"]),
        depthwise=depthwise,
        fusion="csp_elan" if depthwise else rng.choice(["conv", "csp", "csp_reparam", "csp_elan"]),
        extra_edges=rng.choice(["none", "down", "up", "both"]),
    )
    head = Head(
        num_classes=rng.randint(1, 5),
        reg_max=rng.randint(1, 8),
        kernel_size=rng.choice([1, 3]),
        tower_depth=rng.choice([0, 0, 1, 3]),
        tower_channels=rng.randint(3, 9),
        background_class=rng.random() < 0.3,
    )
    size = rng.choice([(32, 32), (64, 32), (64, 96), (32, 128)])
    return Structure(name=f"{family}-{seed}", image_size=size, backbone=backbone, neck=neck, head=head)


def _random_backbone(family: str, rng: random.Random) -> Backbone:
    focus = rng.random() < 0.5
    stem_stride = 1 if focus else rng.choice([1, 2])
    stem = Stem("focus" if focus else "conv", 3, rng.randint(3, 8), rng.choice([1, 3, 5]), stem_stride)
    levels = {2: 4, 1: 5}[stem.total_stride]
    stages: list[Stage] = []
    for _ in range(levels):
        stages.append(_random_stage(family, 2, rng))
        if family != "csp" and rng.random() < 0.4:
            stages.append(_random_stage(family, 1, rng))
    strides, total = [], stem.total_stride
    for stage in stages:
        total *= stage.stride
        strides.append(total)
    outs = tuple(rng.choice([i + 1 for i, s in enumerate(strides) if s == wanted]) for wanted in (8, 16, 32))
    return Backbone(family, rng.choice(["relu", "silu", "leaky_relu"]), stem, tuple(stages), outs)


def _random_stage(family: str, stride: int, rng: random.Random) -> Stage:
    se = family == "mob" and rng.random() < 0.4
    depth = rng.randint(0 if family == "csp" else 1, 2)
    hidden = tuple(rng.randint(4 if se else 1, 12) for _ in range(depth))
    # Few widths, so that equal ones (plain shortcuts) and different ones (projections) both occur.
    return Stage(rng.choice([4, 8, 12]), hidden, stride, rng.choice([1, 3, 5]), se=se, spp=rng.random() < 0.4)


def random_structures(family: str, count: int) -> Iterator[Structure]:
    return (random_structure(family, seed) for seed in range(count))


def with_image_size(structure: Structure, height: int, width: int) -> Structure:
    return replace(structure, image_size=(height, width))


def close(actual: torch.Tensor, expected: np.ndarray, *, atol: float, rtol: float = 0.0) -> None:
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=atol, rtol=rtol)


def assert_same_outputs(model: nn.Module, other: nn.Module, images: torch.Tensor) -> None:
    """Equal raw predictions within 1e-4, absolute and relative."""
    with torch.no_grad():
        first, second = model(images), other(images)
    torch.testing.assert_close(second.cls_logits, first.cls_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.box_logits, first.box_logits, atol=1e-4, rtol=1e-4)


def statistics(arrays: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Mean, standard deviation, and 16 values spread over each array."""
    summary = {}
    for name, array in arrays.items():
        flat = array.double().flatten()
        picked = flat[torch.linspace(0, flat.numel() - 1, 16, dtype=torch.float64).long()]
        summary[name] = [float(flat.mean()), float(flat.std()), *map(float, picked)]
    return summary


def assert_identical(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    """The same names in the same order, with the same numbers of the same type."""
    assert list(first) == list(second)
    for key, value in first.items():
        assert value.dtype == second[key].dtype and torch.equal(value, second[key]), key


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.marker,)
