"""Run folders as the verbs leave them, cut down to what a plot reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from maenas.frontier import COLUMNS
from maenas.plot_points import Conditions, Point
from maenas.published import load_published
from maenas.structure import Structure, save_structure

HEADER = "# maenas points, schema_version 1\n"
DATA = {"name": "cells", "split": "val", "digest": "8fb71c1f3ca334f6", "num_images": 20}
HERE = Conditions("Some CPU", "OpenVINO 2026.4", "fp32", 1, 1, "no", "maenas benchmark", "maenas")


def small(classes: int = 3) -> Structure:
    """A published network for other classes, which makes it a structure nobody has published."""
    structure = load_published("damo-yolo-ns")
    return replace(structure, name=f"ns-{classes}", head=replace(structure.head, num_classes=classes))


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_structure(folder: Path, structure: Structure) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_structure(structure, folder / "structure.json")
    return folder


def evaluation(structure: Structure, ap: float | None, **changes: Any) -> dict[str, Any]:
    model = {"structure": structure.digest, "sha256": "a" * 64, "random_weights": False}
    record = {"schema_version": 1, "model": model, "data": dict(DATA), "metrics": {"ap": ap}}
    for name, value in changes.items():
        record[name] = {**record[name], **value} if isinstance(value, dict) else value
    return record


def benchmark(*lines: dict[str, Any]) -> dict[str, Any]:
    return {"schema_version": 1, "host": {"cpu": "Some CPU"}, "lines": list(lines)}


def line(structure: Structure | None, ms: float, **changes: Any) -> dict[str, Any]:
    return {
        "digest": None if structure is None else structure.digest,
        "sha256": "b" * 64,
        "form": "decoded",
        "device": "Some CPU",
        "backend": "openvino",
        "backend_version": "2026.4",
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "p25_ms": 0.9 * ms,
        "p50_ms": ms,
        "p90_ms": 1.2 * ms,
        "undisturbed": True,
        **changes,
    }


def search(structure: Structure, **changes: Any) -> dict[str, Any]:
    return {
        "structure": structure.to_dict(),
        "latency_ms": 5.0,
        "latency_sigma_ms": 0.25,
        "device": "table-of-another-machine",
        "provenance": "measured",
        "table_hash": "0123456789ab",
        "shortlist": [],
        "request": {"scope": "detector", "graph": "deployed"},
        "measured": None,
        **changes,
    }


def row(**changes: str) -> str:
    """One line of a points file."""
    usual = {
        "model": "Rival-S", "family": "Rival", "ap": "40.0", "latency_ms": "10", "device": "Some CPU",
        "runtime": "OpenVINO 2026.4", "precision": "fp32", "batch": "1", "threads": "1", "image_size": "640",
        "nms": "no", "extra_data": "none", "distilled": "no", "params_m": "3.2", "gflops": "",
        "data": "cells (val, 8fb71c1f3ca334f6)", "protocol": "maenas benchmark", "measured_by": "maenas",
        "source": "us", "structure": "", "note": "",
    }  # fmt: skip
    cells = {**usual, **changes}
    return ",".join(f'"{cells[name]}"' if "," in cells[name] else cells[name] for name in COLUMNS) + "\n"


def points_file(*rows: str) -> str:
    return HEADER + ",".join(COLUMNS) + "\n" + "".join(rows)


def point(ms: float, ap: float | None, **changes: Any) -> Point:
    usual: dict[str, Any] = {
        "label": f"{ms} {ap}", "series": "maenas", "own": True, "latency_ms": ms, "latency_low_ms": ms,
        "latency_high_ms": ms, "latency_status": "measured", "conditions": HERE, "ap": ap, "ap_low": ap, "ap_high": ap,
        "ap_status": "measured", "num_evaluations": 1, "data": "" if ap is None else "cells", "image_size": "320x320",
        "extra_data": "none", "distilled": "no", "params_m": 1.0, "gflops": 2.0, "digest": "", "source": "", "note": "",
    }  # fmt: skip
    return Point(**{**usual, **changes})
