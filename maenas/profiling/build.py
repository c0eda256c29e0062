"""The table folder of a campaign: header, rows of all that the spaces can reach, samples, networks, a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from maenas.latency.table_networks import NetworkRow, errors_of, networks_to_csv
from maenas.latency.table_plot import networks_png
from maenas.latency.table_rows import TableRow
from maenas.lowering.op import Op
from maenas.profiling.fit import EXTRAPOLATED, Fit, NetworkResult
from maenas.reach import reachable_ops
from maenas.spaces import SearchSpace

SAMPLES_FILE, NETWORKS_FILE, PLOT_FILE = "samples.csv", "networks.csv", "networks.png"
BEYOND = 3.0
"""Sigma of an operator outside the measured range, in sigmas of one within."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which conditions a campaign ran; what a table's header states.

    Attributes:
        device: The processor or accelerator as the runtime names it.
        host: The machine (`maenas.profiling.host.describe_host`).
        fingerprint: Twelve hex digits of what decides its speed.
        backend: Runtime.
        backend_version: Its version.
        precision: Of weights and maps.
        threads: CPU threads, or None on an accelerator.
        batch: Images per inference.
        date: Day of the first measurement, YYYY-MM-DD.
        seed: Of networks, order and model.
        flags: What was out of the ordinary, such as forced entries.
        reference_ms: Time of the reference kernel.
    """

    device: str
    host: Mapping[str, Any]
    fingerprint: str
    backend: str
    backend_version: str
    precision: str
    threads: int | None
    batch: int
    date: str
    seed: int
    flags: tuple[str, ...]
    reference_ms: float


def table_rows(fit: Fit, spaces: Sequence[SearchSpace]) -> list[TableRow]:
    """A row for every operator that a structure of the spaces can contain: measured, modelled or extrapolated."""
    ops: dict[tuple[object, ...], Op] = {}
    for space in spaces:
        for op in reachable_ops(space):
            row = TableRow.of(op, ms=0.0, sigma_ms=0.0, status=EXTRAPOLATED)
            ops.setdefault(row[:12], op)
    ordered = list(ops.values())
    times, statuses, sigmas = fit.times(ordered)
    rows, relative = [], network_sigma(fit)
    for op, ms, status, sigma in zip(ordered, times.tolist(), statuses, sigmas.tolist(), strict=True):
        # Errors of a network are shared by its operators, so an operator's share is the network's relative error; an
        # operator nothing vouches for has its own.
        share = relative if status != EXTRAPOLATED else max(BEYOND * relative, sigma)
        rows.append(TableRow.of(op, ms=ms, sigma_ms=share * ms, status=status))
    return rows


def table_header(
    fit: Fit, rows: Sequence[TableRow], spaces: Sequence[SearchSpace], conditions: Conditions
) -> dict[str, Any]:
    """Fields of table.json, but for those that `write_table` fills in."""
    line, networks = fit.line, network_rows(fit)
    counts = {status: sum(row.status == status for row in rows) for status in ("measured", "modelled", EXTRAPOLATED)}
    test = errors_of([row for row in networks if row.role == "test"])
    relative = network_sigma(fit)
    how = (
        f"root mean square of relative errors over {line.num_networks + test.n} whole networks that the fit behind "
        "each prediction had not seen"
    )
    return {
        "aliases": [],
        "device": conditions.device,
        "device_detail": {},
        "backend": conditions.backend,
        "backend_version": conditions.backend_version,
        "precision": conditions.precision,
        "batch": conditions.batch,
        "threads": conditions.threads,
        "image_size": None,
        "provenance": "measured",
        "method": "in situ: layer times of networks, a model of other operators, a line through whole latencies",
        "date": conditions.date,
        "fixed_ms": line.fixed_ms,
        "fixed_sigma_ms": relative * line.fixed_ms,
        "scale": line.scale / conditions.batch,
        "uncertainty": {"relative": relative, "how": how},
        "predictor": {"kind": "rows", "coefficients": {}, "valid_range": {}},
        "calibration": {
            "a_ms": line.fixed_ms,
            "b": line.scale,
            "n_networks": line.num_networks,
            "leave_one_out_mean_error": line.mean_error,
            "test": {name: None if math.isnan(value) else value for name, value in asdict(test).items()},
            "unassigned_layer_time": fit.unassigned,
        },
        "sources": ["maenas profile"],
        "license_note": "figures measured by the owner of this table",
        "host": dict(conditions.host),
        "fingerprint": conditions.fingerprint,
        "spaces": [describe_space(space) for space in spaces],
        "campaign": {"seed": conditions.seed, "flags": list(conditions.flags), "rows": counts},
        "reference_kernel_ms": conditions.reference_ms,
    }


def network_sigma(fit: Fit) -> float:
    """Relative error of a whole network: of calibration networks left out of the line in turn, and of test networks."""
    test = [result.error for result in fit.results if result.network.role == "test"]
    squares = fit.line.num_networks * fit.line.sigma**2 + sum(error**2 for error in test)
    return math.sqrt(squares / (fit.line.num_networks + len(test)))


def describe_space(space: SearchSpace) -> str:
    """A space with what was fixed about it: `res 640x640, 80 classes`."""
    height, width = space.image_size
    classes = "/".join(str(count) for count in sorted({variant.head.num_classes for variant in space.variants}))
    return f"{space.name} {height}x{width}, {classes} classes"


def extra_files(fit: Fit, title: str) -> dict[str, bytes]:
    """Samples, networks and the picture of predicted against measured."""
    networks = network_rows(fit)
    return {
        SAMPLES_FILE: samples_csv(fit),
        NETWORKS_FILE: networks_to_csv(networks),
        PLOT_FILE: networks_png(networks, title=title),
    }


def samples_csv(fit: Fit) -> bytes:
    """The operators seen inside networks: as in rows.csv, then occurrences and their spread."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*TableRow._fields[:12], "ms", "count", "spread"])
    lines = []
    for sample in fit.times.samples.values():
        row = TableRow.of(sample.op, ms=sample.ms, sigma_ms=0.0, status="measured")
        lines.append((*row[:12], sample.ms, sample.count, sample.spread))
    for line in sorted(lines):
        writer.writerow([*line[:12], f"{line[12]:.9g}", line[13], f"{line[14]:.4g}"])
    return buffer.getvalue().encode()


def network_rows(fit: Fit) -> list[NetworkRow]:
    """The networks as lines of networks.csv."""
    return [_network_row(result) for result in fit.results]


def _network_row(result: NetworkResult) -> NetworkRow:
    network = result.network
    family = network.group if network.structure is None else network.structure.backbone.family
    return NetworkRow(
        network=network.key,
        group=network.group,
        family=family,
        role=network.role,
        num_ops=result.num_ops,
        num_extrapolated=result.num_extrapolated,
        measured_ms=result.measured_ms,
        measured_low_ms=result.low_ms,
        measured_high_ms=result.high_ms,
        predicted_ms=result.predicted_ms,
        sum_ms=result.sum_ms,
        backend_layers_ms=result.layers_ms,
    )
