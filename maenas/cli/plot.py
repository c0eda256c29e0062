"""`maenas plot`: accuracy against latency of runs, with published networks that were measured the same way."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from maenas.cli.targets import check_new_file

if TYPE_CHECKING:
    from pathlib import Path

    from maenas.frontier import FrontierRow
    from maenas.plot_points import Filters, Group, Point

HELP = "draw AP against latency of runs and published networks, with the front, as PNG, SVG, PDF or HTML"
EXAMPLE = "maenas plot damo-yolo-t damo-yolo-s damo-yolo-m damo-yolo-l --predict t4 --out latency-ap.html"

SUFFIXES = (".png", ".svg", ".pdf", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders and files of search, train, eval, export, benchmark; or names"
    )
    parser.add_argument(
        "--out",
        action="append",
        required=True,
        metavar="FILE",
        help="picture: .png, .svg, .pdf, .html; may be repeated",
    )
    sources = parser.add_argument_group("what is drawn")
    sources.add_argument(
        "--predict", action="append", default=[], metavar="TABLE", help="latency table for structures of the runs"
    )
    sources.add_argument(
        "--points", action="append", default=[], metavar="FILE", help="CSV of further points, as the shipped one"
    )
    sources.add_argument("--no-published", action="store_true", help="leave out the shipped published points")
    sources.add_argument(
        "--mix", action="store_true", help="draw latencies that were measured in unlike ways, marked as such"
    )
    chosen = parser.add_argument_group("filters (several values: any of them)")
    chosen.add_argument(
        "--protocol", nargs="+", default=[], metavar="NAME", help="published points of these protocols only"
    )
    chosen.add_argument("--device", nargs="+", default=[], metavar="TEXT", help="part of the device's name, such as T4")
    chosen.add_argument("--runtime", nargs="+", default=[], metavar="TEXT", help="part of the runtime's name")
    chosen.add_argument("--precision", nargs="+", default=[], metavar="NAME", help="such as fp16 or int8")
    chosen.add_argument(
        "--nms", nargs="+", default=[], choices=["yes", "no", "unspecified"], help="whether NMS is in the time"
    )
    chosen.add_argument("--data", nargs="+", default=[], metavar="TEXT", help="part of the name of the images")
    chosen.add_argument("--family", nargs="+", default=[], metavar="TEXT", help="part of a published curve's name")
    chosen.add_argument(
        "--no-extra-data",
        action="store_true",
        help="leave out published networks trained with further (or unstated) data",
    )
    look = parser.add_argument_group("picture")
    look.add_argument("--title", default="", metavar="TEXT", help="above the picture")
    look.add_argument("--log", action="store_true", help="logarithmic latency axis")
    look.add_argument(
        "--labels",
        default="auto",
        choices=["auto", "all", "front", "none"],
        help="which points are named (default: auto, the front and ours where points are many)",
    )
    look.add_argument("--force", action="store_true", help="overwrite existing files")
    look.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Gather points, draw, write each picture with its CSV, print a table or the JSON object.

    Raises:
        PlotError: A run, file or filter that does not fit, or unlike points without --mix.
        OutputError: A file exists, or cannot be written.
    """
    import json

    from maenas.files import write_bytes_atomically, write_text_atomically
    from maenas.plot_page import page_html
    from maenas.plot_picture import draw, picture_bytes
    from maenas.plot_points import grouped, points_csv
    from maenas.plot_styles import mark_notes

    files = _files(arguments)
    points, notes = _points(arguments)
    groups = grouped(points, mix=arguments.mix)
    drawn = draw(groups, title=arguments.title, labels=arguments.labels, logarithmic=arguments.log)
    table = points_csv(groups)
    for picture, beside in files:
        if picture.suffix == ".html":
            page = page_html(drawn, groups, title=arguments.title, notes=mark_notes(groups))
            write_text_atomically(picture, page)
        else:
            write_bytes_atomically(picture, picture_bytes(drawn.figure, picture.suffix[1:]))
        write_text_atomically(beside, table)
    for note in notes:
        print(f"maenas: note: {note}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(_record(groups, files, notes)))
    else:
        _print(groups, files)
    return 0


def _files(arguments: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Every picture and the CSV beside it.

    Raises:
        PlotError: Another suffix.
        OutputError: One of them exists.
    """
    from pathlib import Path

    from maenas.errors import PlotError

    files = []
    for name in arguments.out:
        picture = Path(name)
        if picture.suffix not in SUFFIXES:
            raise PlotError(f"--out is {name!r}; expected a file that ends in {', '.join(SUFFIXES)}")
        files.append((picture, picture.with_suffix(".csv")))
    for path in {path for pair in files for path in pair}:
        check_new_file(path, force=arguments.force)
    return files


def _points(arguments: argparse.Namespace) -> tuple[list[Point], list[str]]:
    """All points that filters leave, and what was left out on the way."""
    from maenas.errors import PlotError
    from maenas.frontier import load_frontier
    from maenas.plot_points import Filters, frontier_points
    from maenas.plot_runs import run_points

    shipped = load_frontier()
    added = [row for name in arguments.points for row in load_frontier(name)]
    filters = Filters(
        device=tuple(arguments.device),
        runtime=tuple(arguments.runtime),
        precision=tuple(arguments.precision),
        nms=tuple(arguments.nms),
        data=tuple(arguments.data),
        family=tuple(arguments.family),
        extra_data=not arguments.no_extra_data,
    )
    own, notes = run_points(arguments.runs, frontier=[*shipped, *added], tables=arguments.predict)
    if arguments.runs and not own and notes and not arguments.protocol:
        raise PlotError(f"nothing of the runs can be drawn: {notes[0]}")
    own = [point for point in own if filters.keep(point)]
    own += [point for point in frontier_points(added) if filters.keep(point)]
    if arguments.no_published:
        return own, notes
    rows = _with_protocol(shipped, arguments.protocol)
    published = [point for point in frontier_points(rows) if filters.keep(point)]
    if arguments.protocol or not own:
        return own + published, notes
    kept = _comparable(own, published, filters, mix=arguments.mix)
    left = len(published) - len(kept)
    if left:
        notes.append(
            f"{left} published points are left out, measured in other ways or on other images: "
            "name some with --protocol, and draw them with --mix"
        )
    return own + kept, notes


def _with_protocol(rows: tuple[FrontierRow, ...], protocols: list[str]) -> list[FrontierRow]:
    from maenas.errors import PlotError

    known = list(dict.fromkeys(row.protocol for row in rows))
    for name in protocols:
        if name not in known:
            raise PlotError(f"--protocol is {name!r}; expected some of {', '.join(known)}")
    return [row for row in rows if not protocols or row.protocol in protocols]


def _comparable(own: list[Point], published: list[Point], filters: Filters, *, mix: bool) -> list[Point]:
    """Published points on the same images that were measured as ours were; with `mix`, on the same devices."""
    data = {point.data for point in own if point.data}
    same_data = [point for point in published if not data or point.data in data]
    if mix:
        devices = {point.conditions.device for point in own}
        return [point for point in same_data if filters.device or point.conditions.device in devices]
    conditions = {point.conditions for point in own}
    return [point for point in same_data if point.conditions in conditions]


def _record(groups: list[Group], files: list[tuple[Path, Path]], notes: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    from maenas.plot_points import point_record

    return {
        "groups": [
            {
                "conditions": asdict(group.conditions),
                "points": [point_record(point, on_front=point in group.front) for point in group.points],
            }
            for group in groups
        ],
        "files": list(dict.fromkeys(str(path) for pair in files for path in pair)),
        "notes": notes,
    }


def _print(groups: list[Group], files: list[tuple[Path, Path]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from maenas.cli.report import console

    out = console()
    for group in groups:
        table = Table(title=escape(str(group.conditions)), title_justify="left")
        for heading in ("network", "curve", "AP", "ms", "low", "high", "latency", "on front"):
            table.add_column(heading, justify="right" if heading in ("AP", "ms", "low", "high") else "left")
        for point in group.points:
            table.add_row(
                escape(point.label),
                escape(point.series),
                "-" if point.ap is None else f"{point.ap:.1f}",
                *(f"{value:.2f}" for value in (point.latency_ms, point.latency_low_ms, point.latency_high_ms)),
                point.latency_status,
                "yes" if point in group.front else "",
            )
        out.print(table)
    written = dict.fromkeys(str(path) for pair in files for path in pair)
    out.print("written: " + ", ".join(written), markup=False, soft_wrap=True)
