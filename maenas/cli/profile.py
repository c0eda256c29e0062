"""`maenas profile`: a latency table of the machine you sit at."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from maenas.profiling.campaign import Exporter
    from maenas.profiling.fit import Fit
    from maenas.profiling.profile import Question
    from maenas.spaces import SearchSpace
    from maenas.structure import Structure

HELP = "measure this machine and write a latency table for it"
EXAMPLE = "maenas profile --backend openvino --space mob --threads 1 --name my-laptop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from maenas.profiling.backends import BACKENDS, PRECISIONS

    measurable = [name for name in BACKENDS if not name.endswith("-compiled")]
    parser.add_argument("--backend", required=True, choices=measurable, help="runtime to measure")
    parser.add_argument("--name", required=True, metavar="NAME", help="name of the new table")
    what = parser.add_argument_group("what the table is for")
    what.add_argument(
        "--space",
        action="append",
        metavar="NAME",
        help="search space (res, csp, mob or a YAML file); may be repeated (default: mob)",
    )
    what.add_argument("--image-size", metavar="N[xM]", help="input height x width (default: each space's)")
    what.add_argument("--num-classes", type=int, metavar="N", help="object classes (default: the spaces', 80)")
    what.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of one inference (default: 1)")
    what.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the arithmetic (default: fp32)")
    what.add_argument(
        "--quantised", nargs="+", metavar="FILE", help="quantised ONNX files to measure, for --precision int8"
    )
    how = parser.add_argument_group("how much is measured")
    how.add_argument("--quick", action="store_true", help="2 to 4 minutes, not 6 to 11: fewer networks, two passes")
    how.add_argument("--networks", type=int, metavar="N", help="networks whose layers are timed")
    how.add_argument("--max-gflops", type=float, metavar="G", help="leave out networks with more (default: 25)")
    how.add_argument("--foreign", nargs="+", metavar="FILE", help="ONNX files of other networks for the error report")
    how.add_argument("--seed", type=int, default=0, help="same seed, same networks (default: 0)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="folder that receives NAME/ (default: the user's table folder)")
    output.add_argument("--work", metavar="DIR", help="networks and timings, to resume (default: runs/profile/NAME)")
    output.add_argument(
        "--force", action="store_true", help="replace an existing table; keep disturbed timings, marked, after all"
    )
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure, fit, write the table, print its errors."""
    from pathlib import Path

    from maenas.cli.detector import exporter
    from maenas.errors import ProfileError
    from maenas.latency.table_header import NAME_FORM, is_name
    from maenas.resources import user_table_folder

    if not is_name(arguments.name):
        raise ProfileError(f"--name is {arguments.name!r}; expected {NAME_FORM}")
    question = _question(arguments)
    target = (Path(arguments.out) if arguments.out else user_table_folder()) / arguments.name
    work = Path(arguments.work) if arguments.work else Path("runs") / "profile" / arguments.name
    folder, fitted = _measured(question, target, work, exporter(question.settings.seed), force=arguments.force)
    _report(folder, fitted, as_json=arguments.json)
    return 0


def _question(arguments: argparse.Namespace) -> Question:
    from dataclasses import replace
    from pathlib import Path

    from maenas.cli.question import resize_space
    from maenas.errors import ProfileError
    from maenas.profiling.campaign import QUICK, Sizes
    from maenas.profiling.measurement import Settings
    from maenas.profiling.profile import Question
    from maenas.spaces import load_space

    names = arguments.space or ["mob"]
    if len(set(names)) < len(names):
        raise ProfileError(f"--space names {', '.join(names)}; expected different ones")
    spaces = tuple(
        resize_space(load_space(name), image_size=arguments.image_size, num_classes=arguments.num_classes)
        for name in names
    )
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.networks is not None:
        if arguments.networks < 1:
            raise ProfileError(f"--networks is {arguments.networks}; expected 1 or more")
        sizes = replace(sizes, space_networks=arguments.networks)
    if arguments.max_gflops is not None:
        if not arguments.max_gflops > 0:
            raise ProfileError(f"--max-gflops is {arguments.max_gflops}; expected a number above 0")
        sizes = replace(sizes, max_gflops=arguments.max_gflops)
    if arguments.seed < 0:
        raise ProfileError(f"--seed is {arguments.seed}; expected 0 or more")
    settings = Settings(seed=arguments.seed, force=arguments.force)
    if arguments.quick:
        settings = replace(settings, passes=2, extra_passes=1, min_seconds=0.3, min_runs=5)
    if arguments.quantised and arguments.networks is not None:
        raise ProfileError("--networks counts random networks, which --quantised replaces; expected one of the two")
    return Question(
        spaces=spaces,
        backend=arguments.backend,
        threads=arguments.threads,
        precision=arguments.precision,
        sizes=sizes,
        settings=settings,
        test=_published(spaces, quick=arguments.quick or bool(arguments.quantised)),
        foreign=tuple(Path(name) for name in arguments.foreign or ()),
        quantised=tuple(Path(name) for name in arguments.quantised or ()),
    )


def _published(spaces: tuple[SearchSpace, ...], *, quick: bool) -> tuple[Structure, ...]:
    """The light published networks, where the table covers their image size and classes."""
    from maenas.published import load_published

    if quick:
        return ()
    found = [load_published(f"damo-yolo-{name}") for name in ("ns", "nm", "nl")]
    covered = {
        (space.image_size, variant.head.num_classes)
        for space in spaces
        if space.family == "mob"
        for variant in space.variants
    }
    return tuple(structure for structure in found if (structure.image_size, structure.head.num_classes) in covered)


def _measured(question: Question, target: Path, work: Path, export: Exporter, *, force: bool) -> tuple[Path, Fit]:
    """Run the profile with progress on standard error."""
    from maenas.cli.detector import bundled
    from maenas.cli.progress import progress_bars
    from maenas.profiling.profile import run_profile

    with progress_bars(left=True) as bars:
        exporting = bars.add("exporting networks")
        timing = bars.add("timing")

        def exported(done: int, total: int) -> None:
            bars.show(exporting, done, total)

        def timed(done: int, total: int, seconds: float | None, key: str) -> None:
            left = "" if seconds is None else f"about {seconds / 60:.0f} min left" if seconds > 90 else "nearly done"
            bars.show(timing, done, total, left=left, description=f"timing {key}"[:40])

        return run_profile(
            question,
            target=target,
            work=work,
            export=export,
            bridge=bundled,
            force=force,
            exporting=exported,
            measuring=timed,
        )


def _report(folder: Path, fitted: Fit, *, as_json: bool) -> None:
    import json

    from rich.table import Table

    from maenas.cli.report import console
    from maenas.latency.table import load_table
    from maenas.latency.table_networks import errors_of
    from maenas.profiling.build import network_rows

    table = load_table(folder)
    rows = network_rows(fitted)
    parts = {
        f"{role}: {group}": errors_of([row for row in rows if (row.role, row.group) == (role, group)])
        for role, group in sorted({(row.role, row.group) for row in rows if row.role != "kernels"})
    }
    if any(row.role == "test" for row in rows):
        parts["test: all"] = errors_of([row for row in rows if row.role == "test"])
    if as_json:
        record = {
            "folder": str(folder),
            "table_hash": table.table_hash,
            "rows": table.num_rows,
            "samples": len(fitted.times.samples),
            "fixed_ms": fitted.line.fixed_ms,
            "scale": fitted.line.scale,
            "errors": {
                name: {
                    "n": each.n,
                    "mean_abs": each.mean_abs,
                    "max_abs": each.max_abs,
                    "spearman": _number(each.spearman),
                }
                for name, each in parts.items()
            },
        }
        print(json.dumps(record))
        return
    shown = Table(title=f"errors of {folder.name} on whole networks", title_justify="left")
    for heading in ("networks", "n", "mean", "largest", "bias", "Spearman"):
        shown.add_column(heading, justify="left" if heading == "networks" else "right")
    for name, each in parts.items():
        figures = (f"{100 * value:.1f} %" for value in (each.mean_abs, each.max_abs, each.bias))
        shown.add_row(name, str(each.n), *figures, "" if _number(each.spearman) is None else f"{each.spearman:.3f}")
    console().print(shown)
    print(f"{len(fitted.times.samples)} operators measured in networks, {table.num_rows} rows, hash {table.table_hash}")
    print(f"written: {folder}; use it as --device {table.name} (or local)")


def _number(value: float) -> float | None:
    return None if value != value else value
