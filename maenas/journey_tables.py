"""Which latency table a journey takes: one that was named, one of this machine that has all it needs, or a new one."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from maenas.errors import LatencyTableError, MissingExtraError
from maenas.journey import Device, JourneyError
from maenas.latency.table import MISSING, LatencyTable, list_tables, load_folder, load_table
from maenas.latency.table_header import HEADER_FILE, ROWS_FILE, is_name
from maenas.latency.table_local import local_fingerprint
from maenas.lowering.op import Op
from maenas.reach import reachable_ops
from maenas.resources import user_table_folder
from maenas.spaces import SearchSpace

ACCELERATORS = ("tensorrt", "torch-cuda", "torch-cuda-compiled")


def named_device(name: str) -> Device:
    """A table that was named; measured on if it is this machine's.

    Raises:
        LatencyTableError: It is unknown or malformed.
    """
    return device_of(load_table(name), name=name)


def device_of(table: LatencyTable, *, name: str) -> Device:
    """A table as the device of a journey, under the name that verbs find it by."""
    measured = table.provenance == "measured" and table.precision != "int8" and table.fingerprint is not None
    return Device(
        table=name,
        table_hash=table.table_hash,
        backend=table.backend,
        threads=None if table.backend in ACCELERATORS else table.threads or 1,
        precision=table.precision,
        batch=table.batch,
        is_here=measured and table.fingerprint == local_fingerprint(),
        table_files=(table.folder / HEADER_FILE, table.folder / ROWS_FILE),
    )


def local_device(ops: Sequence[Op], *, backend: str | None, threads: int | None) -> Device | None:
    """The table of this machine that answers for all operators; None where there is none.

    Of several the one of fewest threads counts (what `maenas profile` measures by itself), and of these the newest.

    Args:
        ops: That it has to know.
        backend: Only tables of this runtime.
        threads: Only tables of so many threads.
    """
    machine = local_fingerprint()
    found = []
    for entry in list_tables():
        if entry.fingerprint != machine:
            continue
        try:
            table = load_folder(entry.folder, entry.name)
        except LatencyTableError:
            continue  # one that is broken serves nothing; `maenas table validate` says why
        fits = backend in (None, table.backend) and threads in (None, table.threads) and table.batch == 1
        if fits and table.provenance == "measured" and table.precision != "int8" and serves(table, ops):
            found.append(table)
    if not found:
        return None
    best = min(found, key=lambda table: (table.threads or 0, _descending(table.date), table.name))
    return device_of(best, name=best.name)


def _descending(date: str) -> tuple[int, ...]:
    return tuple(-int(part) for part in date.split("-"))


def serves(table: LatencyTable, ops: Sequence[Op]) -> bool:
    """Whether a table knows every operator."""
    return all(table.op_latency(op).status != MISSING for op in ops)


def installed_backend() -> str:
    """The runtime that this machine is measured in where none is named.

    Raises:
        MissingExtraError: There is none.
    """
    for name in ("openvino", "onnxruntime"):
        if importlib.util.find_spec(name) is not None:
            return name
    raise MissingExtraError(
        "measuring needs OpenVINO or ONNX Runtime; install one with: pip install 'maenas[profile,openvino]'"
    )


def space_ops(space: SearchSpace, variant: str | None) -> list[Op]:
    """Every operator that a search in a variant of a space may ask for."""
    return reachable_ops(replace(space, variants=(space.variant(variant),)))


def new_device(
    space_name: str,
    space: SearchSpace,
    *,
    image_size: tuple[int, int],
    num_classes: int,
    backend: str,
    threads: int,
    quick: bool,
) -> Device:
    """The table that a profile of this machine will make.

    Its name tells what it is for, so that tables of several questions lie side by side; the last four digits are the
    machine's, whose home folder others may share.

    Args:
        space_name: As `--space` takes it.
        space: The same, loaded.
        image_size: Height and width that were asked for.
        num_classes: Of the data.
        backend: Runtime to measure.
        threads: Of one inference.
        quick: Measure less.

    Raises:
        JourneyError: The space's name cannot be part of a table's.
    """
    height, width = image_size
    size = f"{height}" if height == width else f"{height}x{width}"
    lanes = "" if backend in ACCELERATORS else f"-{threads}t"
    name = f"{backend}{lanes}-{space.name}-{size}-{num_classes}c-{local_fingerprint()[:4]}"
    if not is_name(name):
        raise JourneyError(f"space {space.name!r}: cannot be part of a table's name; expected letters and digits")
    words = ["--backend", backend, "--name", name, "--space", space_name, "--image-size", f"{height}x{width}"]
    words += ["--num-classes", str(num_classes)]
    words += [] if backend in ACCELERATORS else ["--threads", str(threads)]
    folder = user_table_folder() / name
    return Device(
        table=name,
        table_hash="",
        backend=backend,
        threads=None if backend in ACCELERATORS else threads,
        precision="fp32",
        batch=1,
        is_here=True,
        table_files=(folder / HEADER_FILE, folder / ROWS_FILE),
        profile=(*words, *(["--quick"] if quick else [])),
    )
