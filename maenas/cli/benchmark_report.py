"""What `maenas benchmark` says of its measurements: one record, as JSON, as CSV and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maenas.cli.benchmark_lines import Line, Skipped
    from maenas.profiling.measurement import Record, Settings

SCHEMA_VERSION = 2
PERCENTILES = (25, 50, 90, 95, 99)
PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "tensorrt", "torch")
COLUMNS = (
    "model",
    "form",
    "backend",
    "backend_version",
    "device",
    "precision",
    "threads",
    "batch",
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "min_ms",
    "mean_ms",
    "std_ms",
    "images_per_second",
    "ratio",
    "ratio_low",
    "ratio_high",
    "ap",
    "ap50",
    "runs",
    "passes",
    "rel_spread",
    "busy",
    "undisturbed",
    "size_bytes",
    "digest",
    "sha256",
)
"""Of the CSV file; names as in the JSON object's lines."""


def make_report(
    lines: Sequence[Line],
    records: Sequence[Record],
    *,
    settings: Settings,
    skipped: Sequence[Skipped],
    accuracy: Mapping[tuple[str, str], Mapping[str, Any]],
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that was measured, as plain values.

    Args:
        lines: In the order they are shown; ratios are to the first.
        records: The kept measurements.
        settings: How was measured.
        skipped: What could not be.
        accuracy: AP of models by path and runtime.
        conditions: What else the figures depend on.
    """
    from maenas import __version__
    from maenas.profiling.host import describe_host, fingerprint

    host = describe_host()
    by_key: dict[str, list[Record]] = {line.entry.key: [] for line in lines}
    for record in records:
        by_key[record.key].append(record)
    first = _pass_medians(by_key[lines[0].entry.key])
    rows = [_row(line, by_key[line.entry.key], first, accuracy) for line in lines]
    return {
        "schema_version": SCHEMA_VERSION,
        "maenas_version": __version__,
        "host": {**host, "fingerprint": fingerprint(host)},
        "versions": _versions(),
        "conditions": {**conditions, "settings": asdict(settings)},
        "skipped": [asdict(entry) for entry in skipped],
        "lines": rows,
    }


def _row(
    line: Line,
    kept: Sequence[Record],
    first: Mapping[int, float],
    accuracy: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    from maenas.profiling.measurement import summarize

    summary = summarize(kept)[line.entry.key]
    times = _times([ms for record in kept for ms in record.ms])
    found = accuracy.get((line.model.label, line.backend.name), {})
    # Pass by pass, so that what slowed a whole pass cancels out.
    ratios = [ms / first[index] for index, ms in _pass_medians(kept).items() if index in first]
    return {
        "model": line.model.label,
        "form": line.model.form,
        "digest": line.model.digest,
        "sha256": line.model.sha256,
        "size_bytes": line.model.size_bytes,
        "backend": line.backend.name,
        "backend_version": line.backend.version,
        "device": line.backend.device_name,
        "precision": line.backend.precision,
        "threads": line.backend.threads,
        "batch": line.backend.batch,
        **times,
        "images_per_second": 1000 * line.backend.batch / times["p50_ms"],
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "ap": found.get("ap"),
        "ap50": found.get("ap50"),
        "cpu_ms": sum(record.cpu_ms for record in kept) / len(kept),
        "runs": summary.n,
        "passes": summary.passes,
        "rel_spread": summary.rel_spread,
        "busy": max(record.busy for record in kept),
        "undisturbed": summary.undisturbed,
        "disturbances": [record.reason for record in kept if record.reason],
    }


def _pass_medians(kept: Sequence[Record]) -> dict[int, float]:
    return {record.pass_index: statistics.median(record.ms) for record in kept}


def _times(ms: Sequence[float]) -> dict[str, float]:
    import numpy as np

    quantiles = np.percentile(ms, PERCENTILES)
    return {
        "min_ms": min(ms),
        "mean_ms": sum(ms) / len(ms),
        "std_ms": float(np.std(ms)),
        **{f"p{percent}_ms": float(value) for percent, value in zip(PERCENTILES, quantiles, strict=True)},
    }


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def report_csv(report: Mapping[str, Any]) -> str:
    """The lines as CSV; a figure that there is not is empty."""
    import csv
    import io

    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(report["lines"])
    return stream.getvalue()


def short_labels(report: Mapping[str, Any]) -> list[str]:
    """The models as they are shown: the last part of each path, or as many parts as tell all of them apart.

    Exports are all called `model`, so theirs is the name of the folder, where that is enough.
    """
    paths = [row["model"] for row in report["lines"]]
    whole = {path: Path(path) for path in paths}
    folders = {
        path: place.parent if place.stem == "model" and place.parent.name else place for path, place in whole.items()
    }
    places = folders if len(set(folders.values())) == len(folders) else whole
    for length in range(1, max(len(place.parts) for place in places.values()) + 1):
        names = {path: str(Path(*place.parts[-length:])) for path, place in places.items()}
        if len(set(names.values())) == len(names):
            break
    return [names[path] for path in paths]


def print_report(report: Mapping[str, Any], written: Sequence[Path]) -> None:
    """The table, what could not be measured, and where the files are."""
    from rich.markup import escape
    from rich.table import Table

    from maenas.cli.report import console

    host, rows = report["host"], report["lines"]
    devices = {row["device"]: None for row in rows if row["device"] != host["cpu"]}
    cores = f"{host['cpu']}, {host['physical_cores']} cores"
    title = f"{', '.join([*devices, cores])}; ms per run over {rows[0]['passes']} passes"
    table = Table(title=escape(title), title_justify="left")
    for heading in ("model", "form", "runtime"):
        table.add_column(heading, overflow="fold")
    with_ap = report["conditions"]["data"] is not None
    figures = ("threads", "batch", "p50", "p90", "p99", "min", "images/s", "ratio", *(["AP"] if with_ap else []))
    for heading in figures:
        table.add_column(heading, justify="right")
    for row, label in zip(rows, short_labels(report), strict=True):
        mark = "" if row["undisturbed"] else " *"
        table.add_row(
            escape(label),
            row["form"],
            f"{row['backend']} {row['backend_version']}"
            + ("" if row["precision"] == "fp32" else f" {row['precision']}"),
            str(row["threads"]),
            str(row["batch"]),
            *(f"{row[f'{name}_ms']:.2f}" for name in ("p50", "p90", "p99", "min")),
            f"{row['images_per_second']:.1f}",
            f"{row['ratio']:.2f}{mark}",
            *([] if not with_ap else ["-" if row["ap"] is None else f"{100 * row['ap']:.1f}"]),
        )
    target = console()
    target.print(table)
    if not all(row["undisturbed"] for row in rows):
        target.print("* disturbed by other work: kept because of --force")
    for (setting, reason), models in _gathered(report["skipped"]).items():
        target.print(f"left out in {setting}: {', '.join(models)}: {reason}", markup=False, soft_wrap=True)
    if written:
        target.print(f"written to {', '.join(map(str, written))}", markup=False, soft_wrap=True)


def _gathered(skipped: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Models that were left out of one setting for one reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in skipped:
        reason = entry["reason"].removeprefix(f"{entry['label']}: ")
        found.setdefault((entry["setting"], reason), []).append(entry["label"])
    return found
