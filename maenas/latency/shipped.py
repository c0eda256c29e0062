"""Make the calibrated tables that ship: refit the formulas to the facts, evaluate them on every operator of interest.

`maenas table calibrate --out latency_tables --force` regenerates the shipped folders from `latency_tables/facts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.errors import LatencyTableError
from maenas.latency.calibrate import calibrate_8163, calibrate_t4
from maenas.latency.calibration_report import Calibration
from maenas.latency.calibration_unseen import mean_abs, unseen_networks
from maenas.latency.table_rows import TableRow
from maenas.latency.table_write import write_table
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.published import PUBLISHED, load_published
from maenas.reach import reachable_ops
from maenas.spaces import load_space

DATE = "2026-11-23"
"""Date of the facts and of the formulas; change it with them. Fixed, so that regenerating gives the same files."""

REACH = 2
"""Sizes up to this factor outside the fitted ones are modelled (with the larger sigma); beyond, extrapolated."""


@dataclass(frozen=True, slots=True)
class ShippedTable:
    """A calibrated table: how to fit it, what to evaluate, and what its header says.

    Attributes:
        calibrate: The fit.
        spaces: Shipped spaces whose operators become rows.
        image_sides: Published networks of these input sides become rows too.
        header: Device fields of table.json.
    """

    calibrate: Callable[[], Calibration]
    spaces: tuple[str, ...]
    image_sides: tuple[int, ...]
    header: dict[str, Any]


CALIBRATED = {
    "t4-tensorrt-fp16": ShippedTable(
        calibrate=calibrate_t4,
        spaces=("res", "csp"),
        image_sides=(640,),
        header={
            "aliases": ["t4", "nvidia-t4"],
            "device": "NVIDIA T4",
            "device_detail": {"note": "clocks, power limit and driver are not stated by the source"},
            "backend": "tensorrt",
            "backend_version": None,
            "precision": "fp16",
            "batch": 1,
            "threads": None,
            "sources": [
                "DAMO-YOLO report, arXiv 2211.15444, Tables 1, 3 and 9 (re-measured there by its authors)",
                "operator lists: latency_tables/facts/networks.csv",
            ],
        },
    ),
    "intel8163-openvino": ShippedTable(
        calibrate=calibrate_8163,
        spaces=("mob",),
        image_sides=(416,),
        header={
            "aliases": ["intel-8163", "intel8163", "xeon-8163"],
            "device": "Intel Xeon Platinum 8163",
            "device_detail": {"note": "thread count not stated; the figures imply at least a whole 24-core socket"},
            "backend": "openvino",
            "backend_version": "2022.3.0",
            "precision": "fp16",
            "batch": 1,
            "threads": None,
            "sources": [
                "DAMO-YOLO report, arXiv 2211.15444, Tables 2 and 10",
                "operator lists and counts: latency_tables/facts/networks.csv, published_latencies.csv",
            ],
        },
    ),
}


def calibrate_shipped(name: str) -> Calibration:
    """Refit a shipped table.

    Raises:
        LatencyTableError: Unknown name.
    """
    return _shipped(name)[1].calibrate()


def write_shipped(name: str, calibration: Calibration, folder: Path, *, force: bool) -> Path:
    """Write `folder/<name>/` with header and rows.

    Raises:
        LatencyTableError: Unknown name.
        OutputError: The folder exists and `force` is off, or cannot be written.
    """
    full_name, shipped = _shipped(name)
    rows = [_row(calibration, op) for op in _operators(shipped)]
    return write_table(folder / full_name, _header(shipped, calibration), sorted(rows), force=force)


def shipped_name(name: str) -> str:
    """Full name of a shipped table given its name or an alias.

    Raises:
        LatencyTableError: Unknown name.
    """
    return _shipped(name)[0]


def _shipped(name: str) -> tuple[str, ShippedTable]:
    for full_name, shipped in CALIBRATED.items():
        if name.lower() in (full_name, *shipped.header["aliases"]):
            return full_name, shipped
    raise LatencyTableError(f"table {name!r} is not a calibrated one; expected one of {', '.join(CALIBRATED)}, or all")


def _operators(shipped: ShippedTable) -> list[Op]:
    """Everything the spaces can contain, and the published networks of the same input size."""
    ops = [op for space in shipped.spaces for op in reachable_ops(load_space(space))]
    for name in PUBLISHED:
        structure = load_published(name)
        if structure.image_size[0] in shipped.image_sides:
            ops += lower(structure)
    return list({TableRow.of(op, ms=0.0, sigma_ms=0.0, status=""): op for op in ops}.values())


def _row(calibration: Calibration, op: Op) -> TableRow:
    ms = float(f"{float(calibration.op_ms(op)):.9g}")
    sigma = float(f"{ms * float(calibration.op_relative_sigma(op)):.9g}")
    return TableRow.of(op, ms=ms, sigma_ms=sigma, status="calibrated")


def _header(shipped: ShippedTable, calibration: Calibration) -> dict[str, Any]:
    report = calibration.to_dict()
    unseen = unseen_networks(calibration)
    coefficients = {key: float(f"{value:.9g}") for key, value in calibration.coefficients.items()}
    reach = {key: [_floor(low), high * REACH] for key, (low, high) in calibration.valid_range.items()}
    reach["kernel_size"] = list(calibration.valid_range["kernel_size"])
    return {
        **shipped.header,
        "image_size": None,
        "provenance": "calibrated",
        "method": "formula fitted to published end-to-end latencies; rows are the formula evaluated per operator",
        "date": DATE,
        "fixed_ms": calibration.fixed_ms,
        "fixed_sigma_ms": calibration.fixed_ms * calibration.sigma,
        "scale": 1.0,
        "uncertainty": {
            **calibration.operator_uncertainty(),
            "how": f"root mean square of leave-one-out errors over {calibration.loo.num_rows} published networks, "
            "raised for the choice of the formula; new_family: worst leave-family-out error; unfitted: a judgement",
        },
        "predictor": {"kind": calibration.predictor, "coefficients": coefficients, "valid_range": reach},
        "calibration": {
            "n": calibration.loo.num_rows,
            "leave_one_out": report["loo"],
            "leave_family_out": report["lofo"],
            "baseline_leave_one_out": report["baseline_loo"],
            "baseline_leave_family_out": report["baseline_lofo"],
            "coefficient_spread": report["spread"],
            "fitted_latency_ms": report["valid_latency_ms"],
            "test_set": {"n": sum(test.counted for test in unseen), "mean_abs": round(mean_abs(unseen), 4)},
        },
        "license_note": "figures are facts printed in the sources; see NOTICE",
        "notes": ["estimated from end-to-end figures: a single operator's value is not a measurement"],
    }


def _floor(low: int) -> int:
    return max(1, low // REACH)
