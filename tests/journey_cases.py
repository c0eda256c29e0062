"""Shared by the tests of journeys: a question without a machine, and what its steps would have written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from maenas.journey import Device, Journey, Step

NAUGHTY = "<script>alert('x')</script> & \"co\""
"""What a file or class might be called."""


def made_device(folder: Path, **changes: Any) -> Device:
    """A table of this machine that exists only as two files."""
    files = (folder / "table" / "table.json", folder / "table" / "rows.csv")
    device = Device("made", "0123456789ab", "openvino", 1, "fp32", 1, True, files)
    return replace(device, **changes)


def made_journey(folder: Path, **changes: Any) -> Journey:
    """A journey with search, training and one export."""
    journey = Journey(
        out=folder / "run",
        budget_ms=8.0,
        device=made_device(folder),
        data="cells/data.yaml",
        data_digest="d" * 16,
        search=("--budget", "8ms", "--space", "res-small", "--num-classes", "2"),
        front=("--space", "res-small", "--num-classes", "2"),
        train=("--recipe", "small-data", "--epochs", "3"),
    )
    return replace(journey, **changes)


def write_outputs(step: Step, content: str = "{}") -> None:
    """What a step leaves, of no meaning."""
    for path in step.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{step.name} {path.name} {content}")


def made_facts(*, measured: bool = True, name: str = "cell") -> dict[str, Any]:
    """The record of a finished journey, with texts that must not reach a page as they are."""
    timing = {"min_ms": 7.5, "p25_ms": 7.9, "p50_ms": 7.95, "p90_ms": 8.3, "p99_ms": 9.0, "rel_spread": 0.01,
              "undisturbed": True, "runs": 300, "backend": "openvino", "threads": 1, "precision": "fp32",
              "backend_version": "1.0"}  # fmt: skip
    shortlist = [
        {"digest": digest, "score": 100.0 - place, "latency_ms": 7.8, "params": 1_000_000, "flops": 2_000_000_000,
         "layers": 17, "measured_ms": 7.85 if measured else None, "chosen": place == 0}
        for place, digest in enumerate(("aaaaaaaaaaaa", "bbbbbbbbbbbb"))
    ]  # fmt: skip
    timed = {
        "finalist": "aaaaaaaaaaaa", "measured_ms": 7.85, "budget_ms": 8.0, "searched_ms": 8.1, "bias": 1.01,
        "rounds": 1,
        "timed": [{"digest": one["digest"], "round": 1, "score": one["score"], "predicted_ms": 7.8, "measured_ms": 7.85,
                   "ratio": 1.01} for one in shortlist],
    }  # fmt: skip
    artifact = {
        "precision": "fp32", "folder": f"run/{name}/fp32", "format": "onnx", "files": ["model.onnx"],
        "size_bytes": 5_000_000,
        "sha256": "e" * 64, "suppresses": False, "passed": True, "runtime": "openvino", "ap": 0.5, "ap50": 0.8,
        "given": False, "float_layers": None, "num_layers": None, "timing": timing if measured else None,
    }  # fmt: skip
    whole = {"score_threshold": 0.4, "precision": 0.8, "recall": 0.7, "f1": 0.75}
    facts = {
        "schema_version": 1,
        "maenas_version": "0",
        "folder": f"runs/{name}",
        "asked": {"--budget": "8ms", "--data": name},
        "budget_ms": 8.0,
        "data": {"source": name, "name": f"{name}/val.json", "class_names": [name], "num_train": 20, "num_val": 10,
                 "digest": "d" * 16},
        "given": [{"what": "latency table", "value": name, "identity": "0123"}],
        "device": {"table": name, "table_hash": "0123456789ab", "provenance": "measured", "device": name,
                   "backend": "openvino", "backend_version": "1.0", "precision": "fp32", "threads": 1, "batch": 1,
                   "date": "2026-01-01", "relative_sigma": 0.02, "test": {"n": 15, "mean_abs": 0.02, "max_abs": 0.06},
                   "flags": [name], "is_here": measured, "profiled": False, "stale": None},
        "network": {"name": name, "digest": "aaaaaaaaaaaa", "image_size": [320, 320], "family": "res", "num_classes": 1,
                    "params": 1_000_000, "flops": 2_000_000_000, "layers": 17, "score": 100.0,
                    "memory_bytes": 1_000_000,
                    "stem": {"kind": "focus", "out_channels": 16},
                    "stages": [{"stride": 2, "depth": 2, "kernel_size": 3, "hidden_channels": [8, 16],
                                "out_channels": 32}],
                    "neck": {"out_channels": [16, 32, 64], "num_blocks": 1},
                    "shares": [{"name": "stem", "ms": 1.0, "params": 1, "macs": 1},
                               {"name": "neck", "ms": 6.8, "params": 1, "macs": 1}],
                    "fixed_ms": 0.0},
        "choice": {"given": False,
                   "question": {"device": name, "space": name, "variant": name, "image_size": [320, 320],
                                "score": "madnas", "budgets": {"latency_ms": 8.0, "layers": 17.0}},
                   "score": 100.0, "objective": 100.0,
                   "certificate": {"upper_bound": 100.0, "gap": 0.0, "labels": 1234, "pruned": 5678, "passes": 1,
                                   "lagrangian_bound": 101.0, "multipliers": [1.0]},
                   "evolution": None, "shortlist": shortlist, "measured": timed if measured else None,
                   "latency_ms": 7.8,
                   "front": [[6.0, 90.0], [7.8, 100.0], [9.0, 110.0]]},
        "latency": {"budget_ms": 8.0, "predicted_ms": 7.8, "predicted_sigma_ms": 0.2,
                    "searched_ms": 7.85 if measured else None, "again_ms": 7.86 if measured else None,
                    "final": timing if measured else None, "final_what": "trained fp32 files",
                    "final_ms": 7.9 if measured else None, "deviation": -0.0125 if measured else None,
                    "verdict": "met" if measured else "not measured", "undisturbed": True if measured else None},
        "training": {"recipe": name, "teacher": name, "epochs": 2, "iterations": 10, "seconds": 61.0,
                     "ended_by": "completed", "best": {"epoch": 2, "ap": 0.5},
                     "rows": [{"epoch": 1.0, "loss": 2.0, "ap": 0.3}, {"epoch": 2.0, "loss": 1.0, "ap": 0.5}]},
        "accuracy": {"model": {}, "data": {}, "settings": {}, "errors": None, "missing_classes": [], "skipped": [],
                     "metrics": {"ap": 0.5, "ap50": 0.8, "ap75": 0.5, "ap_small": None, "ap_medium": 0.4,
                                 "ap_large": 0.6,
                                 "ar100": 0.6, "num_boxes": 30, "num_boxes_by_size": {"medium": 10, "large": 20}},
                     "best": whole,
                     "classes": [{"name": name, "num_boxes": 30, "num_images": 10, "num_detections": 90, "ap": 0.5,
                                  "ap50": 0.8, "ap75": 0.5, "ar100": 0.6, "best": whole}],
                     "sources": None},
        "artifacts": [artifact],
        "steps": [{"name": "search", "purpose": "find the network", "command": ["maenas", "search", name],
                   "seconds": 12.0,
                   "attempts": 2, "ended": "2026-01-01T00:00:00+00:00", "maenas_version": "0", "inputs": {},
                   "outputs": {name: "f" * 64}}],
        "total_seconds": 12.0,
        "host": None if not measured else {"cpu": name, "physical_cores": 2, "isa": ["avx2"], "os": "Linux",
                                           "memory_gib": 4.0},
        "versions": {"python": "3.11"} if measured else None,
    }  # fmt: skip
    return json.loads(json.dumps(facts))
