"""Small measured latency tables, as a profiling campaign would write them."""

from __future__ import annotations

from pathlib import Path

from maenas.latency.table import LatencyTable, load_table
from maenas.latency.table_rows import TableRow
from maenas.latency.table_write import write_table
from maenas.lowering.op import Op


def conv(in_channels=8, out_channels=16, **changes) -> Op:
    fields = {"in_size": (20, 20), "out_size": (20, 20), "kernel_size": 3, "activation": "relu"} | changes
    return Op("conv", in_channels, out_channels, **fields)


def row(ms=0.5, *, op=None, status="measured", sigma_ms=0.05) -> TableRow:
    return TableRow.of(op or conv(), ms=ms, sigma_ms=sigma_ms, status=status)


def header(**changes) -> dict:
    return {
        "aliases": [],
        "device": "a test bench",
        "device_detail": {"cores": 2},
        "backend": "openvino",
        "backend_version": "0.1",
        "precision": "fp32",
        "batch": 1,
        "threads": 1,
        "image_size": None,
        "provenance": "measured",
        "method": "made for a test",
        "date": "2025-01-31",
        "fixed_ms": 0.25,
        "fixed_sigma_ms": 0.02,
        "scale": 1.0,
        "uncertainty": {"relative": 0.1, "how": "made"},
        "predictor": {"kind": "rows", "coefficients": {}, "valid_range": {}},
        "calibration": {},
        "sources": [],
        "license_note": "none",
        "fingerprint": "0123456789ab",
        "spaces": ["res at 640x640, 80 classes"],
        "campaign": {"seed": 0, "settings": {"passes": 3}, "flags": []},
        "host": {"cpu": "made"},
        "reference_kernel_ms": 1.5,
    } | changes


def table(folder: Path, rows, *, extra=None, **changes) -> LatencyTable:
    return load_table(write_table(folder, header(**changes), rows, extra=extra))
