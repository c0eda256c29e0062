"""Tables of `maenas eval`: one model in full, or several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

RECORD = "eval.json"
COMPARISON = "compare.json"


def print_comparison(comparison: dict[str, Any], out: Path) -> None:
    """The record of several models as one table, the best figure of each column in bold."""
    from rich.markup import escape
    from rich.table import Table

    from maenas.cli.report import console

    data = comparison["data"]
    table = Table(title=escape(f"{data['name']}, {data['num_images']} images"), title_justify="left")
    table.add_column("model", overflow="fold")
    for heading in ("runtime", "input"):
        table.add_column(heading)
    for heading in ("AP", "AP50", "AP75", "small", "medium", "large", "AR100", "batch", "ms"):
        table.add_column(heading, justify="right")
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    best = {name: max((row["metrics"][name] or 0.0) for row in comparison["models"]) for name in names}
    for row in comparison["models"]:
        cells = []
        for name in names:
            value = row["metrics"][name]
            cells.append(f"[bold]{as_points(value)}[/bold]" if value and value == best[name] else as_points(value))
        height, width = row["settings"]["image_size"]
        cells += [str(row["settings"]["batch_size"]), f"{row['timing']['median_ms']:.1f}"]
        table.add_row(escape(row["folder"]), row["model"]["runtime"], f"{height}x{width}", *cells)
    screen = console()
    screen.print(table)
    screen.print(f"ms an image: median, indicative; what it depends on is in {COMPARISON}")
    screen.print(f"written: {out}/{COMPARISON} and a folder for each model", markup=False, soft_wrap=True)


def print_evaluation(record: dict[str, Any], analysis: Any, out: Path, *, plots: bool) -> None:  # noqa: ANN401
    """The record of one model, with its confusions from the analysis."""
    from maenas.cli.report import console

    screen = console()
    data, settings = record["data"], record["settings"]
    height, width = settings["image_size"]
    tiling = settings["tiling"]
    tiles = "" if tiling is None else f" in tiles of {tiling['tile'][0]}x{tiling['tile'][1]} pixels"
    screen.print(
        f"{data['name']}: {data['num_images']} images at {height}x{width}{tiles}, "
        f"scores above {settings['score_threshold']:g}",
        markup=False,
        soft_wrap=True,
    )
    screen.print(_overall_table(record))
    screen.print(_class_table(record))
    screen.print(_error_table(record))
    best = record["best"]
    if not record["metrics"]["num_detections"]:
        screen.print(
            f"nothing was found at scores above {settings['score_threshold']:g}; a lower --score may show more"
        )
    if best is not None:
        screen.print(
            f"best score threshold {best['score_threshold']:.3f}: precision {as_points(best['precision'])}, "
            f"recall {as_points(best['recall'])}, F1 {as_points(best['f1'])} at IoU 0.50"
        )
    for true, found, count in analysis.confusion.most_confused(3):
        screen.print(f"{count} x {true} taken for {found}", markup=False)
    if record["missing_classes"]:
        screen.print(f"left out, not known to the model: {', '.join(record['missing_classes'])}", markup=False)
    for reason in record["skipped"]:
        screen.print(f"skipped: {reason}", markup=False, soft_wrap=True)
    _print_conditions(screen, record)
    pictures = ", pictures" if plots else ""
    screen.print(f"written: {out}/{RECORD}, detections.json, pr_curves.csv{pictures}", markup=False, soft_wrap=True)


def _print_conditions(screen: Any, record: dict[str, Any]) -> None:  # noqa: ANN401
    timing = record["timing"]
    threads = "" if timing["threads"] is None else f", {timing['threads']} threads"
    screen.print(
        f"{timing['median_ms']:.1f} ms an image (p90 {timing['p90_ms']:.1f}), indicative: "
        f"{record['model']['runtime']} on {timing['hardware']}{threads}, batch {record['settings']['batch_size']}",
        markup=False,
        soft_wrap=True,
    )


def _overall_table(record: dict[str, Any]) -> Any:  # noqa: ANN401
    from rich.table import Table

    metrics = record["metrics"]
    table = Table()
    table.add_column("objects")
    for heading in ("boxes", "AP", "AP50", "AP75", "AR1", "AR10", "AR100"):
        table.add_column(heading, justify="right")
    figures = [as_points(metrics[name]) for name in ("ap", "ap50", "ap75", "ar1", "ar10", "ar100")]
    table.add_row("all", str(metrics["num_boxes"]), *figures)
    for size, count in metrics["num_boxes_by_size"].items():
        table.add_row(
            size, str(count), as_points(metrics[f"ap_{size}"]), "", "", "", "", as_points(metrics[f"ar_{size}"])
        )
    return table


def _class_table(record: dict[str, Any], limit: int = 30) -> Any:  # noqa: ANN401
    """Classes in label order; of more than `limit` those with the lowest AP."""
    from rich.markup import escape
    from rich.table import Table

    classes = [entry for entry in record["classes"] if entry["num_boxes"]]
    title = "classes"
    if len(classes) > limit:
        title = f"{limit} classes of {len(classes)}, the lowest AP first; all are in {RECORD}"
        classes = sorted(classes, key=lambda entry: entry["ap"])[:limit]
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("boxes", "images", "AP", "AP50", "AP75", "AR100", "best score", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    for entry in classes:
        best = entry["best"]
        points = ["-"] * 4
        if best is not None:
            points = [
                f"{best['score_threshold']:.3f}",
                *(as_points(best[name]) for name in ("precision", "recall", "f1")),
            ]
        figures = (as_points(entry[name]) for name in ("ap", "ap50", "ap75", "ar100"))
        table.add_row(escape(entry["name"]), str(entry["num_boxes"]), str(entry["num_images"]), *figures, *points)
    return table


def _error_table(record: dict[str, Any]) -> Any:  # noqa: ANN401
    from rich.table import Table

    from maenas.cli.detector import bundled

    meanings = bundled("error_breakdown").KINDS
    table = Table(title="errors and the AP50 that they cost", title_justify="left")
    table.add_column("error")
    table.add_column("count", justify="right")
    table.add_column("AP50", justify="right")
    table.add_column("what it is")
    for share in record["errors"]["kinds"]:
        table.add_row(share["kind"], str(share["count"]), as_points(share["delta_ap50"]), meanings[share["kind"]])
    return table


def as_points(value: float | None) -> str:
    """A share as AP is written: 41.8 of 100; a dash where nothing was there to be found."""
    return "-" if value is None else f"{100 * value:.1f}"
