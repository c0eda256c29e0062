"""A made-up device: a backend whose layer times follow from the operators of the file it is given."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maenas.lowering.op import Op
from maenas.profiling.backends import LayerTime
from maenas.profiling.measurement import Settings
from maenas.profiling.onnx_ops import read_onnx_ops

FIXED_MS, SCALE = 0.3, 1.1
"""What whole networks take beyond the sum of their layers."""

UNDISTURBED = Settings(
    passes=2, warmup=0, min_runs=2, min_seconds=0.0, drift=9.0, max_busy=99.0, max_descheduled=99.0, attempts=1
)
"""A made-up device does not mind what the real machine is doing."""


def op_ms(op: Op) -> float:
    """10 GFLOP/s, 5 GB/s, 2 us per operator; depthwise at a quarter of the speed."""
    speed = 2.5e6 if op.depthwise else 1e7
    elements = op.in_channels * op.in_size[0] * op.in_size[1] + op.out_channels * op.out_size[0] * op.out_size[1]
    return 0.002 + 2 * float(op.macs) / speed + 4 * float(elements) / 5e6


@dataclass
class Run:
    layers_of: list[LayerTime]

    def run(self) -> float:
        return (FIXED_MS + SCALE * sum(layer.ms for layer in self.layers_of)) / 1000

    def discard(self) -> None:
        pass

    def layers(self) -> tuple[LayerTime, ...]:
        return tuple(self.layers_of)


@dataclass(frozen=True)
class MadeUpEntry:
    key: str
    path: Path
    opened: list[str]

    @contextmanager
    def open(self):
        self.opened.append(self.key)
        yield Run([LayerTime(p.nodes[0], p.op.kind, p.nodes, (), op_ms(p.op)) for p in read_onnx_ops(self.path)])


@dataclass(frozen=True)
class MadeUp:
    """See `maenas.profiling.backends.Backend`."""

    opened: list[str]
    threads: int = 1
    precision: str = "fp32"
    batch: int = 1
    name: str = "openvino"
    version: str = "1.2.3"
    accelerator: bool = False
    has_layer_times: bool = True
    device_name: str = "made up"

    def entry(self, onnx_path: Path, *, key: str, layers: bool, image_size=None) -> MadeUpEntry:
        return MadeUpEntry(key, onnx_path, self.opened)
