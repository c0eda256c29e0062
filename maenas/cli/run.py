"""`maenas run`: from a budget, a device and a data set to a deployed detector and a report, in one command."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from typing import TYPE_CHECKING

from maenas.cli.question import add_goal_arguments, add_space_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from maenas.cli.run_question import Asked
    from maenas.journey import Journey, Step
    from maenas.journey_record import RunRecord
    from maenas.journey_run import Outcome

HELP = "go all the way: search, train, evaluate, export, time and report; continues where it was stopped"
EXAMPLE = "maenas run --budget 8ms --device local --data data.yaml"

NOT_ASKED = ("out", "force", "json", "dry_run", "keep_disturbed", "verb", "run")
"""Arguments that change nothing of the answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from maenas.profiling.backends import BACKENDS

    parser.add_argument("--budget", required=True, metavar="TIME", help="latency per image, e.g. 8ms")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="data.yaml, COCO or VOC folder, or union file; has train and val"
    )
    add_goal_arguments(parser, scope=False)
    add_space_arguments(parser, classes=False)
    search = parser.add_argument_group("search")
    search.add_argument("--solver", choices=["exact", "evolution"], help="default: exact where the score adds up")
    search.add_argument("--top-k", type=int, metavar="N", help="shortlist of N networks, all timed (default: 5)")
    machine = parser.add_argument_group("this machine, with --device local")
    machine.add_argument(
        "--backend",
        choices=[name for name in BACKENDS if not name.endswith("-compiled")],
        help="runtime (default: that of the table, or OpenVINO or ONNX Runtime, as installed)",
    )
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads of one inference (default: 1)")
    machine.add_argument("--quick", action="store_true", help="a short profile, where one is needed")
    machine.add_argument(
        "--keep-disturbed", action="store_true", help="keep timings that other work on the machine disturbed, marked"
    )
    train = parser.add_argument_group("training")
    train.add_argument(
        "--recipe", metavar="NAME", help="as in maenas train (default: small-data up to 10,000 images, else published)"
    )
    train.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    train.add_argument("--batch", type=int, metavar="N", help="images per step")
    train.add_argument("--max-minutes", type=float, metavar="T", help="wall time of the training")
    train.add_argument("--workers", type=int, metavar="N", help="processes that read and augment")
    train.add_argument("--teacher", metavar="CKPT", help="checkpoint whose feature maps are learnt from too")
    train.add_argument("--seed", type=int, metavar="N", help="of evolution and training (default: 0)")
    train.add_argument(
        "--set", nargs="+", action="extend", metavar="K=V", help="any field of the recipe, such as optimizer.lr=0.01"
    )
    export = parser.add_argument_group("exported files")
    export.add_argument(
        "--precision", metavar="P[,P]", help="of fp32, fp16, int8 (default: fp32, or fp16 for a table that is)"
    )
    export.add_argument("--format", choices=["onnx", "openvino"], help="default: onnx, which every runtime reads")
    export.add_argument("--nms", choices=["none", "end2end"], help="suppression inside the file (default: none)")
    given = parser.add_argument_group("given instead of made")
    given.add_argument("--structure", metavar="FILE", help="network: structure file or published name; no search")
    given.add_argument("--searched", metavar="DIR", help="folder of maenas search: its network and proof; no search")
    given.add_argument("--weights", metavar="CKPT", help="trained checkpoint; neither search nor training")
    given.add_argument("--exported", nargs="+", metavar="DIR", help="folders of exports; as --weights, and no export")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/run/<data>-<device>-<budget>)")
    output.add_argument("--force", action="store_true", help="make anew what depends on a changed question or file")
    output.add_argument("--dry-run", action="store_true", help="print what is there and what will be done")
    output.add_argument("--json", action="store_true", help="print the record to standard output")


def run(arguments: argparse.Namespace) -> int:
    """Do what is left of the journey, write the report, print a summary.

    Returns:
        0; the status of a step that failed; or 128 + N where signal N stopped it, and the same command continues.

    Raises:
        MaenasError: An option, the data or a file cannot be used, or the folder holds another journey.
    """
    from maenas.cli.run_packages import check_packages
    from maenas.cli.run_question import ask
    from maenas.cli.run_report import print_plan, print_summary
    from maenas.journey_process import owned
    from maenas.journey_run import run_steps

    check_packages(arguments)
    asked = ask(arguments, options=given_options(arguments))
    if arguments.dry_run:
        journey, record = _resolved(asked, arguments)
        print_plan(journey, record, as_json=arguments.json)
        return 0

    def waiting() -> None:
        print(f"maenas: waiting for a step of an earlier run in {asked.out} to end", file=sys.stderr)

    with owned(asked.out, waiting=waiting) as lock:
        journey, record = _resolved(asked, arguments)
        asked.write_given(journey)
        outcome = run_steps(
            journey, record, lock=lock, force=arguments.force, quiet=arguments.json, tell=_teller(journey)
        )
        if outcome.failed is not None:
            return _stopped(outcome, arguments, journey)
        facts, report = asked.report(journey, outcome.record)
    print_summary(facts, report, as_json=arguments.json)
    return 0


def _resolved(asked: Asked, arguments: argparse.Namespace) -> tuple[Journey, RunRecord]:
    """The journey with its latency table, and the record of what is done."""
    from dataclasses import replace

    from maenas.journey_record import check_same_question, new_record, read_record

    record = read_record(asked.out)
    if record is not None and not arguments.force:
        check_same_question(record, asked.entries, asked.out)
    same = record is not None and record.asked == asked.entries
    journey = asked.journey(record if same else None)
    fresh = new_record(asked.entries, table=journey.device.table, profiled=bool(journey.device.profile))
    if record is None:
        return journey, fresh
    return journey, replace(fresh, steps=record.steps, running=record.running)


def given_options(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The options that decide the answer, as the user gave them: name and value; flags have an empty one."""
    return [(option, " ".join(values)) for option, values in _given(arguments)]


def _given(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """The same with the values word by word."""
    for name, value in vars(arguments).items():
        if name in NOT_ASKED or value is None or value is False or (name == "score" and value == "madnas"):
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        yield f"--{name.replace('_', '-')}", [str(each) for each in values]


def _teller(journey: Journey) -> Callable[[Step, str], None]:
    """Says on standard error which step it is."""
    from rich.console import Console

    from maenas.journey import plan_steps

    names = [step.name for step in plan_steps(journey)]
    screen = Console(stderr=True, highlight=False, soft_wrap=True)

    def tell(step: Step, what: str) -> None:
        place = f"[{names.index(step.name) + 1}/{len(names)}]"
        if what == "done":
            screen.print(f"{place} {step.name}: done already", style="dim", markup=False)
            return
        screen.print(f"{place} {step.name}: {step.purpose}", style="bold", markup=False)
        command = shlex.join(("maenas", *step.command))
        screen.print(f"    {command}" + (" (goes on)" if what == "continue" else ""), style="dim", markup=False)

    return tell


def _stopped(outcome: Outcome, arguments: argparse.Namespace, journey: Journey) -> int:
    """Say how to go on, and give the exit status."""
    step, end = outcome.failed, outcome.end
    assert step is not None and end is not None
    given = [word for option, values in _given(arguments) for word in (option, *values)]
    disturbed = ["--keep-disturbed"] if arguments.keep_disturbed else []
    command = shlex.join(["maenas", "run", *given, *disturbed, "--out", str(journey.out)])
    by = end.stopped_by
    if by is not None:
        print(f"maenas: stopped by {by.name} in step {step.name}; go on with: {command}", file=sys.stderr)
        return 128 + int(by)
    killed = end.code - 128 in signal.valid_signals()
    reason = f"was ended by {signal.Signals(end.code - 128).name}" if killed else f"ended with {end.code}"
    print(f"maenas: step {step.name} {reason}; once the cause is gone, go on with: {command}", file=sys.stderr)
    return end.code
