"""The network that tells, before and after each measurement, whether the machine still runs as fast."""

from __future__ import annotations

from pathlib import Path

from maenas.files import write_bytes_atomically
from maenas.profiling.network_builder import Builder

_SIDE = 256


def write_reference(path: Path, *, batch: int = 1) -> None:
    """Write a small network of about 1 GFLOP: some milliseconds on one core.

    Half of it is arithmetic, half moves large maps. Neighbours on the host of a virtual machine take cache and memory
    more often than they take processor time; convolutions that fit the cache would not notice. The weights are
    seeded, so the file says the same everywhere.

    Raises:
        MissingExtraError: The package onnx is not installed.
        OutputError: The file cannot be written.
    """
    builder = Builder((3, (_SIDE, _SIDE)), seed=0, batch=batch)
    half = _SIDE // 2
    rows = [builder.glue("slice", [builder.image], out_size=(half, _SIDE), odd=odd) for odd in (False, True)]
    parts = [builder.glue("slice", [each], out_size=(half, half), odd=odd) for each in rows for odd in (False, True)]
    stem = builder.conv(builder.glue("concat", parts), 32, 3, activation="relu")
    deep = builder.conv(stem, 32, 5, depthwise=True, activation="silu")
    wide = builder.conv(deep, 64, 1, activation="relu")
    down = builder.conv(builder.glue("concat", [wide, stem]), 64, 3, stride=2, activation="relu")
    last = builder.conv(down, 64, 3, activation="relu", residual=down)
    builder.output(builder.glue("concat", [builder.glue("resize", [last], out_size=(half, half)), stem]))
    write_bytes_atomically(path, builder.model().SerializeToString())
