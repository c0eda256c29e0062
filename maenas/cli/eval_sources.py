"""What `maenas eval` says of a union of data sets: each source by itself, and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maenas.cli.eval_report import RECORD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
    "AR100": "ar100",
}


def sources_record(
    records: Mapping[str, dict[str, Any]], mean: Mapping[str, float | None], *, data_name: str
) -> dict[str, Any]:
    """The records of all sources as one.

    Args:
        records: By name of the source; each is kept in a folder of that name.
        mean: COCO's figures as means over the sources.
        data_name: Of the union.
    """
    first = next(iter(records.values()))
    times = [record["timing"] for record in records.values()]
    return {
        "schema_version": first["schema_version"],
        "model": first["model"],
        "data": {
            "source": first["data"]["source"],
            "split": first["data"]["split"],
            "name": data_name,
            "num_images": sum(record["data"]["num_images"] for record in records.values()),
        },
        "settings": first["settings"],
        "metrics": dict(mean),
        "sources": {
            name: {
                "folder": name,
                "data": {key: record["data"][key] for key in ("name", "digest", "num_images")},
                "metrics": record["metrics"],
                "missing_classes": record["missing_classes"],
                "skipped": record["skipped"],
            }
            for name, record in records.items()
        },
        "timing": {
            **first["timing"],
            "median_ms": sum(one["median_ms"] for one in times) / len(times),
            "p90_ms": max(one["p90_ms"] for one in times),
            "total_s": sum(one["total_s"] for one in times),
        },
        "versions": first["versions"],
    }


def print_sources(record: dict[str, Any], out: Path) -> None:
    """The record of one model on a union: a row per source, then the mean."""
    from rich.markup import escape
    from rich.table import Table

    from maenas.cli.eval_report import as_points
    from maenas.cli.report import console

    data = record["data"]
    table = Table(title=escape(f"{data['name']}, {data['num_images']} images"), title_justify="left")
    table.add_column("source", overflow="fold")
    for heading in ("images", "boxes", *_COLUMNS):
        table.add_column(heading, justify="right")
    for name, one in record["sources"].items():
        figures = one["metrics"]
        counts = (str(one["data"]["num_images"]), str(figures["num_boxes"]))
        table.add_row(escape(name), *counts, *(as_points(figures[key]) for key in _COLUMNS.values()))
    table.add_section()
    table.add_row("mean of sources", "", "", *(as_points(record["metrics"][key]) for key in _COLUMNS.values()))
    screen = console()
    screen.print(table)
    screen.print("each source by its own classes; what is found of other classes is passed over")
    for name, one in record["sources"].items():
        if one["missing_classes"]:
            classes = ", ".join(one["missing_classes"])
            screen.print(f"{name}: left out, not known to the model: {classes}", markup=False)
        for reason in one["skipped"]:
            screen.print(f"{name}: skipped: {reason}", markup=False, soft_wrap=True)
    screen.print(f"written: {out}/{RECORD} and a folder for each source", markup=False, soft_wrap=True)
