"""Networks and machines that tests of profiling share: tiny ONNX files, and entries on a clock that tests advance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from maenas.lowering.op import Op
from maenas.profiling.backends import LayerTime
from maenas.profiling.harness import Machine
from maenas.profiling.onnx_ops import PlacedOp


def convolution(onnx, name, source, channels_in, channels_out, *, kernel_size=3, stride=1, named=True, seed=0):
    """A convolution with a bias of its own, and its two constants."""
    random = np.random.default_rng(seed)
    shape = (channels_out, channels_in, kernel_size, kernel_size)
    weight = random.normal(0, (2 / (channels_in * kernel_size**2)) ** 0.5, shape).astype(np.float32)
    bias = random.normal(0, 0.1, channels_out).astype(np.float32)
    constants = [
        onnx.numpy_helper.from_array(weight, f"{name}.weight"),
        onnx.numpy_helper.from_array(bias, f"{name}.bias"),
    ]
    node = onnx.helper.make_node(
        "Conv",
        [source, f"{name}.weight", f"{name}.bias"],
        [f"{name}_out"],
        name=name if named else "",
        kernel_shape=[kernel_size] * 2,
        pads=[kernel_size // 2] * 4,
        strides=[stride] * 2,
    )
    return node, constants


def save_network(
    onnx, path: Path, nodes, constants, *, output, dims=(1, 3, 32, 32), element=None, metadata=None
) -> Path:
    """A file with the input `images` and one output of free shape."""
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [onnx.helper.make_tensor_value_info("images", element or float32, list(dims))],
        [onnx.helper.make_tensor_value_info(output, float32, None)],
        constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def tiny_network(onnx, path: Path, *, named=True, **options) -> Path:
    """relu, silu and a residual addition: first -> relu -> second -> silu -> third -> + relu -> pooled."""
    make = onnx.helper.make_node
    first, constants = convolution(onnx, "first", "images", 3, 16, stride=2, named=named, seed=1)
    second, more = convolution(onnx, "second", "relu_out", 16, 16, named=named, seed=2)
    third, rest = convolution(onnx, "third", "silu_out", 16, 16, named=named, seed=3)

    def name(text):
        return text if named else ""

    nodes = [
        first,
        make("Relu", ["first_out"], ["relu_out"], name=name("relu")),
        second,
        make("Sigmoid", ["second_out"], ["gate_out"], name=name("gate")),
        make("Mul", ["second_out", "gate_out"], ["silu_out"], name=name("silu")),
        third,
        make("Add", ["third_out", "relu_out"], ["add_out"], name=name("add")),
        make("MaxPool", ["add_out"], ["pool_out"], name=name("pool"), kernel_shape=[2, 2], strides=[2, 2]),
    ]
    return save_network(onnx, path, nodes, [*constants, *more, *rest], output="pool_out", **options)


@dataclass
class FakeClock:
    """Time that only tests advance; `busy` is what the guard will say, `stolen` what slows runs down."""

    now: float = 0.0
    cpu_now: float = 0.0
    busy: list[float] = field(default_factory=list)
    slept: float = 0.0

    def spend(self, wall: float, cpu: float | None = None) -> None:
        self.now += wall
        self.cpu_now += wall if cpu is None else cpu

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    @contextmanager
    def guard(self):
        found = SimpleNamespace(busy=0.0, others=0.0, steal=0.0)
        yield found
        found.busy = found.others = self.busy.pop(0) if self.busy else 0.0

    def machine(self) -> Machine:
        return Machine(
            wall=lambda: self.now, cpu=lambda: self.cpu_now, sleep=self.sleep, guard=self.guard, busiest=lambda: "other"
        )


@dataclass
class FakeEntry:
    """An entry that spends the clock's time: `ms` per run, times the next of `factors` for each opening."""

    key: str
    clock: FakeClock
    ms: float = 10.0
    factors: list[float] = field(default_factory=list)
    cpu_share: float = 1.0
    opened: int = 0
    fail: BaseException | None = None
    fail_at: int = 0
    log: list[str] = field(default_factory=list)

    @contextmanager
    def open(self):
        self.opened += 1
        self.log.append(self.key)
        factor = self.factors.pop(0) if self.factors else 1.0
        yield FakeRun(self, factor)


@dataclass
class FakeRun:
    entry: FakeEntry
    factor: float
    runs: int = 0

    def run(self) -> float:
        self.runs += 1
        if self.entry.fail is not None and self.runs > self.entry.fail_at:
            raise self.entry.fail
        seconds = self.entry.ms * self.factor / 1000
        self.entry.clock.spend(seconds, seconds * self.entry.cpu_share)
        return seconds

    def discard(self) -> None:
        self.runs = 0

    def layers(self):
        return (LayerTime(f"conv of {self.runs} runs", "Convolution", ("node",), (), self.entry.ms * self.factor),)


@dataclass
class FakeReference(FakeEntry):
    """A reference whose next runs take what `series` says (in ms; one value per reading of several runs)."""

    series: list[float] = field(default_factory=list)

    @contextmanager
    def open(self):
        self.opened += 1
        yield ReferenceRun(self, 1.0)


@dataclass
class ReferenceRun(FakeRun):
    current: float = 0.0

    def discard(self) -> None:
        # A reading begins.
        self.current = self.entry.series.pop(0) if self.entry.series else self.entry.ms

    def run(self) -> float:
        self.entry.clock.spend(self.current / 1000)
        return self.current / 1000


def missing_ops(expected: Iterable[Op], placed: Sequence[PlacedOp]) -> list[Op]:
    """Expected operators that a network does without, such as box scales folded into their convolutions.

    Args:
        expected: Of a lowering; channels are plain numbers.
        placed: What was found.
    """
    found = Counter(_key(each.op) for each in placed)
    lacking = []
    for op in expected:
        for _ in range(int(op.count)):
            key = _key(op)
            if found[key]:
                found[key] -= 1
            else:
                lacking.append(op)
    return lacking


def _key(op: Op) -> tuple[object, ...]:
    channels = int(op.in_channels), int(op.out_channels)
    # Of one channel, a depthwise convolution and a plain one are the same.
    form = op.kind, op.kernel_size, op.stride, op.depthwise and channels[0] > 1, op.activation, op.residual
    return (*channels, *form, *op.in_size, *op.out_size)
