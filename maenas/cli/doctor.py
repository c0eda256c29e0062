"""`maenas doctor`: what is wrong with a data set, or with this installation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.cli.targets import check_new_file

if TYPE_CHECKING:
    from rich.console import Console

HELP = "examine a data set, or this installation"
EXAMPLE = "maenas doctor data.yaml --out sheet.png"
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_NUM_CLASSES_SHOWN = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="data.yaml, COCO .json, folder or union file; without it, the installation is examined",
    )
    parser.add_argument(
        "--quick", action="store_true", help="decode no image: headers only, no search for copies and damaged files"
    )
    parser.add_argument("--out", metavar="PNG", help="write a picture of many images with their boxes")
    parser.add_argument("--force", action="store_true", help="overwrite the file of --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Examine, and print findings.

    Returns:
        0 if there is no error, 1 if there are errors.

    Raises:
        MaenasError: There is no data set, its data.yaml is malformed, or the picture cannot be written.
    """
    if arguments.data is None:
        return _environment(arguments)
    return _data(arguments)


def _environment(arguments: argparse.Namespace) -> int:
    import json

    from maenas.cli.environment import describe_environment
    from maenas.errors import OutputError

    if arguments.out or arguments.quick:
        raise OutputError("--out and --quick need DATA; without it the installation is examined")
    found = describe_environment()
    if arguments.json:
        print(json.dumps(found))
    else:
        _print_environment(found)
    return 0 if found["detector"]["is_ours"] else 1


def _print_environment(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from maenas.cli.report import console

    screen = console()
    table = Table(title="installation", title_justify="left", show_header=False)
    for key in ("maenas", "python", "platform"):
        table.add_row(key, Text(str(found[key])))
    bundle = found["detector"]
    where = Text(str(bundle["path"]), style="") if bundle["is_ours"] else Text(str(bundle["error"]), style="bold red")
    table.add_row("package detector", where)
    for device in found["devices"]:
        memory = "" if device["memory"] is None else f", {device['memory'] / 2**30:.1f} GiB"
        table.add_row(f"torch {device['device']}", Text(f"{device['name']}{memory}"))
    if not found["devices"]:
        table.add_row("torch", Text(f"no devices ({found['torch_error']})"))
    screen.print(table)
    packages = Table(title="packages", title_justify="left")
    for heading in ("extra", "complete", "installed", "missing"):
        packages.add_column(heading)
    for extra, needed in found["extras"].items():
        installed = ", ".join(f"{name} {version}" for name, version in needed.items() if version is not None)
        missing = ", ".join(name for name, version in needed.items() if version is None)
        packages.add_row(extra, "no" if missing else "yes", Text(installed), Text(missing))
    screen.print(packages)


def _data(arguments: argparse.Namespace) -> int:
    import json

    from maenas.cli.detector import bundled
    from maenas.cli.progress import progress_bars

    out = _out_file(arguments)
    with progress_bars() as bars:
        task = bars.add("images")
        report = bundled("data.checks").check_data(
            arguments.data,
            pixels=not arguments.quick,
            progress=lambda done, total: bars.show(task, done, total),
        )
    if out is not None:
        _write_sheet(report, out)
    if arguments.json:
        print(json.dumps({**report.to_dict(), "out": None if out is None else str(out)}))
    else:
        _print_report(report)
        if out is not None:
            print(f"written: {out}")
    return 1 if report.num_errors else 0


def _out_file(arguments: argparse.Namespace) -> Path | None:
    """Where the picture goes; looked at before the long part."""
    from maenas.errors import OutputError

    if arguments.out is None:
        return None
    out = Path(arguments.out)
    if out.suffix.lower() != ".png":
        raise OutputError(f"{out}: has the suffix {out.suffix or '(none)'}; expected .png")
    check_new_file(out, force=arguments.force and not out.is_dir())  # a folder is never replaced
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; expected an existing one")
    return out


def _write_sheet(report: Any, out: Path) -> None:  # noqa: ANN401
    import io

    from maenas.cli.detector import bundled
    from maenas.extras import require
    from maenas.files import write_bytes_atomically

    sheet = bundled("data.contact_sheet").contact_sheet(report)
    content = io.BytesIO()
    pillow = require("PIL.Image", extra="detector", purpose="writing a contact sheet")
    pillow.fromarray(sheet).save(content, format="PNG")
    write_bytes_atomically(out, content.getvalue())


def _print_report(report: Any) -> None:  # noqa: ANN401
    from maenas.cli.report import console

    screen = console()
    if report.splits:
        _print_splits(report, screen)
        _print_classes(report, screen)
    _print_findings(report, screen)


def _print_splits(report: Any, screen: Console) -> None:  # noqa: ANN401
    from rich.table import Table
    from rich.text import Text

    from maenas.cli.report import printable

    table = Table(title=Text(printable(str(report.source))), title_justify="left")
    headings = ("split", "images", "empty", "boxes", "ignored", "small", "medium", "large", "size / image")
    for heading in (*headings, "most boxes"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split, one in report.splits.items():
        sizes = " / ".join(f"{100 * share:.0f}" for share in one.relative_size)
        counts = (one.images, one.empty, one.boxes, one.ignored)
        shares = [f"{100 * number / max(one.boxes, 1):.0f} %" for number in (one.small, one.medium, one.large)]
        relative = f"{sizes} %" if sizes else "-"
        table.add_row(split, *(str(count) for count in counts), *shares, relative, str(one.most_boxes))
    screen.print(table)
    screen.print(
        "small: under 32x32 pixels, large: from 96x96; size / image: root of box area / image area, "
        "5 % / half / 95 % of the boxes are below"
    )


def _print_classes(report: Any, screen: Console) -> None:  # noqa: ANN401
    from rich.table import Table
    from rich.text import Text

    from maenas.cli.report import printable

    table = Table(title="boxes per class (images with the class)", title_justify="left")
    table.add_column("label", justify="right")
    table.add_column("class")
    for split in report.splits:
        table.add_column(split, justify="right")
    shown = report.class_names[:_NUM_CLASSES_SHOWN]
    for label, name in enumerate(shown):
        cells = [f"{one.boxes_per_class[label]} ({one.images_per_class[label]})" for one in report.splits.values()]
        table.add_row(str(label), Text(printable(name)), *cells)
    screen.print(table)
    rest = len(report.class_names) - len(shown)
    if rest:
        screen.print(f"{rest} more classes; --json lists all")


def _print_findings(report: Any, screen: Console) -> None:  # noqa: ANN401
    from rich.text import Text

    from maenas.cli.report import printable

    for finding in report.findings:
        style = _STYLES[finding.severity]
        line = Text.assemble((f"{finding.severity}:", style), f" {finding.title}: {finding.count} [{finding.code}]")
        screen.print(line, soft_wrap=True)
        for example in finding.examples:
            screen.print(Text(f"    {printable(example)}"), soft_wrap=True)
        rest = finding.count - len(finding.examples)
        if rest:
            screen.print(f"    ... and {rest} more")
    if not report.pixels:
        screen.print("images were not decoded (--quick): no search for copies and for files that are cut short")
    if not report.findings:
        screen.print("nothing to complain about")
