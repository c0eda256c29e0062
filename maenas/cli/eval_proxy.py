"""`maenas eval-proxy`: train a set of networks, and see how well each score predicts their AP."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.cli.question import add_space_arguments, space_from
from maenas.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from maenas.latency.table import LatencyTable
    from maenas.proxy_folder import Member, ProxyFolder
    from maenas.proxy_report import GroupResult
    from maenas.proxy_runs import RunResult, TrainingRun
    from maenas.proxy_scores import ScoreValues
    from maenas.search import Request
    from maenas.structure import Structure

HELP = "train networks of equal latency and report how well each score predicts their AP"
EXAMPLE = "maenas eval-proxy --data data.yaml --block mob --device local --budget 8ms --seeds 0 1 --epochs 25"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "structures", metavar="STRUCTURE", nargs="*", help="files or published names to compare; or draw some:"
    )
    parser.add_argument(
        "--data", metavar="PATH", required=True, help="data.yaml, COCO file or folder with train and val"
    )
    add_space_arguments(parser)
    drawn = parser.add_argument_group("networks drawn from a space")
    drawn.add_argument("--device", metavar="NAME", help="latency table: name, alias, folder, or local")
    drawn.add_argument("--budget", metavar="TIME", help="upper edge of the latency band, e.g. 8ms")
    drawn.add_argument(
        "--band", default="2%", metavar="N%", help="width of the band, a share of the budget (default: 2%%)"
    )
    drawn.add_argument("--structures", dest="count", type=int, metavar="N", help="networks in the band (default: 12)")
    drawn.add_argument(
        "--wide", nargs=2, metavar=("LOW", "HIGH"), help="also draw networks over this range of latencies"
    )
    drawn.add_argument("--wide-structures", type=int, metavar="N", help="how many (default: 6)")
    drawn.add_argument("--draw-seed", type=int, default=0, metavar="N", help="same seed, same networks (default: 0)")
    drawn.add_argument("--measure", action="store_true", help="also measure the latency here; the band is then of that")
    drawn.add_argument(
        "--allow-extrapolation", action="store_true", default=None, help="use operators outside the table's range"
    )
    training = parser.add_argument_group("training, the same for all")
    training.add_argument("--recipe", default="small-data", metavar="NAME", help="names or files (default: small-data)")
    training.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    training.add_argument("--max-minutes", type=float, metavar="T", help="equal wall time for each run instead")
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="runs per network (0 1)")
    training.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="K=V", help="any field, such as train.batch_size=8"
    )
    training.add_argument("--train-device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    training.add_argument("--workers", type=int, metavar="N", help="processes that read and augment, per run")
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--score", action="append", default=[], metavar="MODULE:FUNCTION", help="compare your own too; may be repeated"
    )
    how = parser.add_argument_group("how to run")
    how.add_argument("--cores", type=int, nargs="+", default=[], metavar="N", help="one run at a time pinned to each")
    how.add_argument("--out", metavar="DIR", default="runs/eval-proxy", help="folder; the same command goes on in it")
    how.add_argument(
        "--dry-run", action="store_true", help="draw the networks, print them and their scores, train nothing"
    )
    how.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Draw, train, compare, write the folder, print a table.

    Returns:
        0, or 1 if a training run failed and its network was left out.

    Raises:
        MaenasError: An option is wrong, the networks cannot be drawn, or too few of them have results.
    """
    _check(arguments)
    _pin(arguments.cores)
    # A termination ends like Ctrl-C: the children save what they have.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace) -> int:
    from maenas.cli.eval_proxy_report import print_members, print_report
    from maenas.files import write_text_atomically
    from maenas.proxy_folder import ProxyFolder
    from maenas.proxy_report import group_sizes, points_csv, report_record

    own = _own_scores(arguments.score)
    folder, table = ProxyFolder(Path(arguments.out)), _table(arguments)
    request = None if arguments.structures else _request(arguments, table)
    question = _question(arguments, request, table)
    folder.check(question)
    members = folder.load_members()
    if members is None:
        members = _given(arguments, table) if request is None else _draw(arguments, request, folder)
        group_sizes(members)
        folder.begin(question, members)
    values = _values(members, folder, request, table, own)
    if arguments.dry_run:
        print_members(members, values, as_json=arguments.json)
        return 0
    runs = _runs(arguments, members, folder)
    failures = _train(runs, arguments.cores)
    results = _results(runs)
    groups = _judged(members, arguments.seeds, results, values, failures)
    write_text_atomically(folder.points, points_csv(members, arguments.seeds, results, values, groups))
    _plot(folder, groups, title=_title(arguments))
    record = report_record(question | {"seeds": arguments.seeds}, groups, failures)
    write_text_atomically(folder.report, json.dumps(record, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(record))
    else:
        print_report(groups, failures, folder)
    return 1 if failures else 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _check(arguments: argparse.Namespace) -> None:
    space = arguments.block is not None or arguments.space is not None
    if bool(arguments.structures) == space:
        raise ProxyError("give either structures, or a space to draw them from (--block or --space)")
    if space and (arguments.budget is None or arguments.device is None):
        raise ProxyError("drawing networks needs a latency band; expected --device and --budget")
    if not space:
        for option in ("budget", "count", "wide", "wide_structures", "variant", "num_classes"):
            if getattr(arguments, option) is not None:
                name = {"count": "structures"}.get(option, option).replace("_", "-")
                raise ProxyError(f"--{name} is given; expected it with a space to draw networks from")
        if arguments.measure:
            raise ProxyError("--measure is given; expected it with a space to draw networks from")
    if arguments.wide_structures is not None and arguments.wide is None:
        raise ProxyError("--wide-structures is given; expected it with --wide LOW HIGH")
    for option, count in (("--structures", arguments.count), ("--wide-structures", arguments.wide_structures)):
        if count is not None and count < 3:
            raise ProxyError(f"{option} is {count}; expected at least 3")
    seeds = arguments.seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ProxyError(f"--seeds are {' '.join(map(str, seeds))}; expected different numbers, 0 or more")
    _share(arguments.band)
    if arguments.draw_seed < 0:
        raise ProxyError(f"--draw-seed is {arguments.draw_seed}; expected 0 or more")


def _pin(cores: Sequence[int]) -> None:
    """Keep this process, with all it starts, on some cores."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ProxyError("--cores is given; expected a system that can pin processes (Linux)")
    here = os.sched_getaffinity(0)
    if not set(cores) <= here or len(set(cores)) < len(cores):
        known = ", ".join(map(str, sorted(here)))
        raise ProxyError(f"--cores are {' '.join(map(str, cores))}; expected different ones of {known}")
    os.sched_setaffinity(0, set(cores))


def _own_scores(names: Sequence[str]) -> list[Any]:
    from maenas.scores import resolve_score

    for name in names:
        if ":" not in name:
            raise ProxyError(f"--score is {name!r}; expected module:function (the shipped scores are compared anyway)")
    return [resolve_score(name) for name in names]


def _table(arguments: argparse.Namespace) -> LatencyTable | None:
    from maenas.cli.question import warn_if_stale
    from maenas.latency.table import load_table

    if arguments.device is None:
        return None
    table = load_table(arguments.device)
    warn_if_stale(table)
    return table


def _request(arguments: argparse.Namespace, table: LatencyTable | None) -> Request:
    from maenas.budgets import Budget, parse_amount
    from maenas.search import resolve_request

    return resolve_request(
        space_from(arguments),
        budgets=[Budget("latency_ms", parse_amount("latency_ms", arguments.budget))],
        device=table,
        variant=arguments.variant,
        extrapolate=arguments.allow_extrapolation,
    )


def _share(text: str) -> float:
    """`2%` as 0.02."""
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise ProxyError(f"--band is {text!r}; expected a percentage such as 2%") from None


def _question(arguments: argparse.Namespace, request: Request | None, table: LatencyTable | None) -> dict[str, Any]:
    """What a resumed campaign must ask again; seeds, own scores and cores may change."""
    question: dict[str, Any] = {
        "data": arguments.data,
        "recipe": arguments.recipe,
        "epochs": arguments.epochs,
        "max_minutes": arguments.max_minutes,
        "set": list(arguments.set),
        "table_hash": None if table is None else table.table_hash,
    }
    if request is None:
        return question | {"structures": list(arguments.structures), "image_size": arguments.image_size}
    return question | {
        "space": request.space.name,
        "space_digest": request.space.digest,
        "variant": request.variant.name,
        "image_size": list(request.space.image_size),
        "num_classes": request.variant.head.num_classes,
        "device": None if table is None else table.name,
        "budget_ms": request.goal.limit("latency_ms"),
        "band": arguments.band,
        "structures": arguments.count or 12,
        "wide": arguments.wide,
        "wide_structures": arguments.wide_structures or 6 if arguments.wide else None,
        "draw_seed": arguments.draw_seed,
        "measure": arguments.measure,
        "extrapolate": bool(arguments.allow_extrapolation),
    }


def _draw(arguments: argparse.Namespace, request: Request, folder: ProxyFolder) -> list[Member]:
    from maenas.band import Band, draw_band, draw_wide
    from maenas.budgets import parse_amount
    from maenas.proxy_folder import Member

    limit, width, seed = request.goal.limit("latency_ms"), _share(arguments.band), arguments.draw_seed
    assert limit is not None
    measure = _measure(request, folder) if arguments.measure else None
    print("drawing networks", file=sys.stderr)
    drawn = draw_band(request, Band.below(limit, width), arguments.count or 12, seed=seed, measure=measure)
    groups = {"band": drawn}
    if arguments.wide:
        low, high = (parse_amount("latency_ms", text) for text in arguments.wide)
        taken = [each.structure.digest for each in drawn]
        groups["wide"] = draw_wide(
            request, low, high, arguments.wide_structures or 6, width=width, seed=seed, taken=taken
        )
    return [
        Member(group, each.structure, each.predicted_ms, each.measured_ms)
        for group, found in groups.items()
        for each in found
    ]


def _measure(request: Request, folder: ProxyFolder) -> Callable[[Sequence[Structure]], list[float]]:
    """Times networks on this machine under the table's conditions."""
    from maenas.cli.detector import bundled, exporter
    from maenas.profiling.device import LocalDevice
    from maenas.profiling.measurement import Settings

    assert request.goal.table is not None
    device = LocalDevice(
        table=request.goal.table,
        folder=folder.path / "measured",
        export=exporter(seed=0),
        bridge=bundled,
        settings=Settings(min_seconds=1.0),
        progress=lambda done, total, left, key: print(f"timing {done}/{total}", file=sys.stderr),
    )

    def measure(structures: Sequence[Structure]) -> list[float]:
        label = f"{structures[0].digest}-{len(structures)}"
        return [stats.ms_p25 for stats in device.time(structures, label=label)]

    return measure


def _given(arguments: argparse.Namespace, table: LatencyTable | None) -> list[Member]:
    from dataclasses import replace

    from maenas.cli.question import parse_image_size
    from maenas.latency.predict import predict
    from maenas.lowering.detector import lower
    from maenas.proxy_folder import Member
    from maenas.published import resolve_structure

    members = []
    for name in arguments.structures:
        structure = resolve_structure(name)
        if arguments.image_size is not None:
            structure = replace(structure, image_size=parse_image_size(arguments.image_size))
        latency = None if table is None else predict(lower(structure), table).latency_ms
        members.append(Member("given", structure, latency))
    return members


def _values(
    members: Sequence[Member],
    folder: ProxyFolder,
    request: Request | None,
    table: LatencyTable | None,
    own: Sequence[Any],
) -> list[ScoreValues]:
    from maenas.cli.detector import bundled
    from maenas.proxy_scores import score_values
    from maenas.scores import MADNAS_WEIGHTS, resolve_score

    weights = MADNAS_WEIGHTS if request is None else request.space.score_weights
    forward = {
        name: folder.remembered(name, function) for name, function in bundled("forward_proxies").FORWARD_PROXIES.items()
    }
    structures = {member.digest: member.structure for member in members}
    return score_values(
        list(structures.values()),
        madnas=resolve_score("madnas", weights),
        table=table,
        measured_ms={each.digest: each.measured_ms for each in members if each.measured_ms is not None},
        forward=forward,
        own=own,
        progress=lambda name: print(f"score {name}", file=sys.stderr),
    )


def _runs(
    arguments: argparse.Namespace, members: Sequence[Member], folder: ProxyFolder
) -> dict[tuple[str, int], TrainingRun]:
    """Every network with every seed; seed by seed, so that an early stop leaves whole comparisons."""
    from maenas.proxy_runs import TrainingRun

    options = ["--data", arguments.data, "--recipe", arguments.recipe]
    for option, value in (
        ("--epochs", arguments.epochs),
        ("--max-minutes", arguments.max_minutes),
        ("--device", arguments.train_device),
        ("--workers", arguments.workers),
    ):
        options += [] if value is None else [option, str(value)]
    # Pictures that nobody looks at cost time; --set can ask for them.
    settings = ["eval.samples=0", "log.curves=false", *arguments.set]
    runs = {}
    for seed in arguments.seeds:
        for digest in dict.fromkeys(member.digest for member in members):
            words = [str(folder.structure(digest)), *options, "--seed", str(seed), "--set", *settings]
            runs[digest, seed] = TrainingRun(
                f"{digest}-seed{seed}", folder.run(digest, seed), folder.log(digest, seed), tuple(words)
            )
    return runs


def _train(runs: Mapping[tuple[str, int], TrainingRun], cores: Sequence[int]) -> dict[str, str]:
    from maenas.cli.detector import bundled
    from maenas.proxy_runs import run_all

    return run_all(
        list(runs.values()),
        is_locked=bundled("run_folder").is_locked,
        cores=cores,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )


def _results(runs: Mapping[tuple[str, int], TrainingRun]) -> dict[tuple[str, int], RunResult]:
    from maenas.proxy_runs import result_of

    found = {key: result_of(run.folder) for key, run in runs.items()}
    return {key: result for key, result in found.items() if result is not None}


def _judged(
    members: Sequence[Member],
    seeds: Sequence[int],
    results: Mapping[tuple[str, int], RunResult],
    values: Sequence[ScoreValues],
    failures: Mapping[str, str],
) -> list[GroupResult]:
    """Every group, in the order of the networks."""
    from maenas.proxy_report import judge_group

    names = dict.fromkeys(member.group for member in members)
    try:
        return [
            judge_group(name, [each for each in members if each.group == name], seeds, results, values)
            for name in names
        ]
    except ProxyError as error:
        reasons = "".join(f"; {name} failed: {reason}" for name, reason in failures.items())
        raise ProxyError(f"{error}{reasons}") from None


def _plot(folder: ProxyFolder, groups: Sequence[GroupResult], *, title: str) -> None:
    from maenas.files import write_bytes_atomically
    from maenas.proxy_plot import group_pictures

    for group in groups:
        for suffix, content in group_pictures(group, title=title).items():
            write_bytes_atomically(folder.plot(group.group, suffix), content)


def _title(arguments: argparse.Namespace) -> str:
    length = "" if arguments.epochs is None else f", {arguments.epochs} epochs"
    length += "" if arguments.max_minutes is None else f", {arguments.max_minutes:g} min each"
    return f"{Path(arguments.data).name}, recipe {Path(arguments.recipe).name}{length}"
