"""Turn an operator library of the reference search tool into a latency table folder.

The folder holds the measured lines (`raw.csv`, in the library's order), and in `rows.csv` the values that the
reference's interpolation gives on the grid of widths a search visits. So a look-up is fast, and does not change with
the version of the triangulation; widths off the grid are interpolated from `raw.csv` when asked for.

Operators have the form of the reference's own graph: plain convolutions of any activation (a library tells none apart,
hence `ignores`), `residual` where an element-wise add is fused. Milliseconds count a whole batch; the table's scale
divides them by it.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from maenas.errors import LatencyTableError
from maenas.latency.table_rows import TableRow
from maenas.latency.table_write import check_target, write_table
from maenas.latency.tinynas import ConvForm, TinyNasPredictor
from maenas.latency.tinynas_library import TinyNasLibrary, read_library

SIDES = (320, 160, 80, 40, 20)
"""Map sides of a detector at image size 640: its space-to-depth stem works at 320."""

WIDTHS = tuple(range(8, 513, 8))
STEM_WIDTHS = (3, 12)
BODY_FORMS = (ConvForm(1), ConvForm(3), ConvForm(3, fused=True), ConvForm(3, stride=2, fused=True))
STEM_FORMS = (ConvForm(3), ConvForm(3, stride=2))
ACTIVATION = "relu"
"""What the libraries fold into each convolution."""

V100_TENSOR_TFLOPS = 125.0
_HELD_OUT = 0.1
_METHOD = (
    "time of one convolution with folded bias, batch norm and ReLU, measured elsewhere; between the measured settings "
    "linear over (out_channels, side) on a Delaunay triangulation in file order, then linear in the ratio of channels"
)
_LICENSE_NOTE = "Imported from a file given by the user; its licence governs raw.csv and rows.csv."


def import_tinynas(
    file: Path | str,
    name: str,
    out_dir: Path | str,
    batch: int | None = None,
    force: bool = False,
    *,
    device: str = "unstated",
    precision: str = "unstated",
    date: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Import `file` as the table `out_dir/name`.

    Args:
        file: A library, raw or CSV, gzip or not.
        name: Name of the new table.
        out_dir: Folder that holds tables; made when absent.
        batch: One of the file's batch sizes; may be left out when there is only one.
        force: Replace a table of that name.
        device: What was measured, as far as known; the file does not say.
        precision: Such as fp16; the file does not say.
        date: Day of the import, YYYY-MM-DD; today when left out.
        progress: Called with the done fraction, from 0 to 1.

    Returns:
        The table's folder.

    Raises:
        LatencyTableError: The file is malformed, or the batch is not in it.
        OutputError: The table exists already, or cannot be written.
    """
    report = progress or (lambda fraction: None)
    report(0.0)
    path, folder = Path(file), Path(out_dir) / name
    if folder.name != name:
        raise LatencyTableError(f"table name {name!r} is not usable; expected a plain name without folders")
    check_target(folder, force=force)
    whole = read_library(path)
    chosen = _choose_batch(path, whole, batch)
    library = whole.select(whole.batch == chosen)
    report(0.2)
    errors = held_out_errors(library)
    report(0.4)
    header = _header(path, library, chosen, errors) | {"device": device, "precision": precision}
    header["date"] = date or datetime.date.today().isoformat()
    relative = errors["mean"] if np.isfinite(errors["mean"]) else 0.0
    rows = list(evaluate_rows(TinyNasPredictor(library), chosen, relative, progress=lambda f: report(0.4 + 0.3 * f)))
    write_table(folder, header, rows, raw=library.to_csv().encode(), force=force)
    report(1.0)
    return folder


def evaluate_rows(
    predictor: TinyNasPredictor,
    batch: int,
    relative_sigma: float,
    *,
    progress: Callable[[float], None] | None = None,
) -> Iterator[TableRow]:
    """Rows of the grid; forms without a group in the library yield none."""
    widths, stem_widths = np.array(WIDTHS), np.array(STEM_WIDTHS)
    grids = [(form, widths) for form in BODY_FORMS] + [(form, stem_widths) for form in STEM_FORMS]
    steps = [(form, in_widths, side) for form, in_widths in grids for side in SIDES]
    for step, (form, in_widths, side) in enumerate(steps, start=1):
        in_channels, out_channels = (grid.ravel() for grid in np.meshgrid(in_widths, widths, indexing="ij"))
        ms, outside = predictor.estimate(
            form, batch=batch, in_channels=in_channels, out_channels=out_channels, side=side
        )
        out_side = side // form.stride
        shape = form.kernel_size, form.stride, 1, side, side, out_side, out_side, ACTIVATION, int(form.fused)
        columns = in_channels.tolist(), out_channels.tolist(), ms.tolist(), outside.tolist()
        for in_c, out_c, value, beyond in zip(*columns, strict=True):
            if value == value:  # not NaN: the library has the group
                status = "extrapolated" if beyond else "imported"
                yield TableRow("conv", in_c, out_c, *shape, value, value * relative_sigma, status)
        if progress is not None:
            progress(step / len(steps))


def held_out_errors(library: TinyNasLibrary, *, seed: int = 0) -> dict[str, float]:
    """Error of the interpolation on a tenth of the lines, left out at random, that stay inside what remains.

    Returns:
        `mean`, `median` and `p90` of the absolute relative error, and their number `n`; NaN where n is 0.
    """
    rng = np.random.default_rng(seed)
    held = rng.random(len(library)) < _HELD_OUT
    rest, test = TinyNasPredictor(library.select(~held)), library.select(held & ~library.failed)
    errors = [np.zeros(0)]
    for kernel, stride, fused, depthwise, batch in sorted(
        set(zip(test.kernel_size, test.stride, test.fused, test.depthwise, test.batch, strict=True))
    ):
        at = (test.kernel_size == kernel) & (test.stride == stride) & (test.fused == fused)
        at &= (test.depthwise == depthwise) & (test.batch == batch)
        form = ConvForm(int(kernel), int(stride), bool(fused), bool(depthwise))
        ms, outside = rest.estimate(
            form, batch=int(batch), in_channels=test.in_channels[at], out_channels=test.out_channels[at],
            side=test.side[at],
        )  # fmt: skip
        error = np.abs(ms / test.latency_ms[at] - 1)
        errors.append(error[~outside & np.isfinite(error)])
    error = np.concatenate(errors)
    if not len(error):
        return {"mean": np.nan, "median": np.nan, "p90": np.nan, "n": 0}
    p50, p90 = np.quantile(error, [0.5, 0.9])
    return {"mean": float(error.mean()), "median": float(p50), "p90": float(p90), "n": len(error)}


def peak_tflops(library: TinyNasLibrary, batch: int) -> float:
    """Highest arithmetic rate that a line implies when its time is that of `batch` images (2 per multiply-add)."""
    good = library.select(~library.failed)
    fan_in = np.where(good.depthwise, 1, good.in_channels) * good.kernel_size**2
    flops = 2.0 * batch * fan_in * good.out_channels * (good.side // good.stride) ** 2
    return float(np.max(flops / (good.latency_ms * 1e-3)) / 1e12)


def _choose_batch(path: Path, library: TinyNasLibrary, batch: int | None) -> int:
    batches = library.batches
    if not batches:
        raise LatencyTableError(f"{path}: every measurement failed (-1); expected at least one that did not")
    listed = ", ".join(map(str, batches))
    if batch is None and len(batches) > 1:
        raise LatencyTableError(f"{path}: holds the batch sizes {listed}; say which one to import")
    if batch is not None and batch not in batches:
        raise LatencyTableError(f"{path}: batch is {batch}; expected one of {listed}")
    return batches[0] if batch is None else batch


def _header(path: Path, library: TinyNasLibrary, batch: int, errors: dict[str, float]) -> dict[str, object]:
    """Fields of table.json but for device, precision and date."""
    num_failed = int(library.failed.sum())
    known = np.isfinite(errors["mean"])
    return {
        "aliases": [],
        "device": "unstated",
        "device_detail": {},
        "backend": "unstated",
        "backend_version": None,
        "precision": "unstated",
        "batch": batch,
        "threads": None,
        "image_size": None,
        "provenance": "imported",
        "method": _METHOD,
        "date": "",
        "fixed_ms": 0.0,
        "fixed_sigma_ms": 0.0,
        "scale": 1 / batch,
        "uncertainty": {
            "relative": float(f"{errors['mean']:.3g}") if known else 0.0,
            "how": "mean absolute relative error of the interpolation on a random tenth of the lines"
            if known
            else "unknown: too few lines to hold some out",
        },
        "predictor": {"kind": "tinynas", "coefficients": {}, "valid_range": {}},
        "calibration": {
            "num_lines": len(library),
            "num_failed": num_failed,
            "held_out": {key: round(value, 4) for key, value in errors.items()} if known else {"n": 0},
            "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
        "sources": [path.name],
        "license_note": _LICENSE_NOTE,
        "ignores": ["activation"],
        "notes": _notes(library, batch),
    }


def _notes(library: TinyNasLibrary, batch: int) -> list[str]:
    """What a reader of the figures has to know."""
    notes = [
        "Convolutions only: pooling, resizing, concatenation and launch gaps are not in the file, so sums rank "
        "networks of one kind and are no measured latencies.",
        "The activation is ignored: a convolution with SiLU is given the time of one with ReLU.",
        "Outside the measured widths and sides the nearest measured value is held; such rows are marked extrapolated.",
    ]
    peak, single = peak_tflops(library, batch), peak_tflops(library, 1)
    rate = f"Read as batch {batch}, the file implies up to {peak:.3g} TFLOP/s"
    if peak > V100_TENSOR_TFLOPS and batch > 1:
        notes.append(
            f"{rate}, more than the {V100_TENSOR_TFLOPS:g} of the V100 tensor cores these libraries are labelled with; "
            f"read as batch 1, it is {single:.3g}. The times may be those of single images on an unstated device: "
            f"take milliseconds per image as a figure for ranking."
        )
    else:
        notes.append(f"{rate}.")
    return notes
