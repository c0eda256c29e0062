"""`maenas eval-proxy`: train a set of networks, and see how well each score predicts their AP."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.cli.eval_proxy_options import (
    IN_BAND,
    OVER_RANGE,
    add_arguments,
    check_options,
    identities_of,
    parse_share,
    question_of,
    title_of,
)
from maenas.cli.question import space_from
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

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Draw, train, compare, write the folder, print a table.

    Returns:
        0, or 1 if a training run failed and its network was left out.

    Raises:
        MaenasError: An option is wrong, the networks cannot be drawn, or too few of them have results.
    """
    check_options(arguments)
    _pin(arguments.cores)
    # A termination ends like Ctrl-C: the children save what they have.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace) -> int:
    """What can be refused is refused before the folder is made."""
    from maenas.journey_process import owned
    from maenas.proxy_folder import ProxyFolder
    from maenas.proxy_report import group_sizes

    own = _own_scores(arguments.score)
    folder, table = ProxyFolder(Path(arguments.out)), _table(arguments)
    request = None if arguments.structures else _request(arguments, table)
    given = None
    if request is None:
        given = _given(arguments, table)
        group_sizes(given)
    question = question_of(arguments, request, table) | identities_of(arguments, given)
    folder.check(question)

    def waiting() -> None:
        print(f"maenas: another campaign still writes into {arguments.out}", file=sys.stderr)

    with owned(folder.path, waiting=waiting, patience=1.0):
        folder.check(question)  # another call may have begun one meanwhile
        members = folder.load_members()
        if members is not None:
            group_sizes(members)
        else:
            members = given if request is None else _draw(arguments, request, folder)
            assert members is not None
            group_sizes(members)
            folder.begin(question, members)
            folder.drop_exports()
        return _campaign(arguments, folder, question, members, _values(members, folder, request, table, own))


def _campaign(
    arguments: argparse.Namespace,
    folder: ProxyFolder,
    question: Mapping[str, Any],
    members: Sequence[Member],
    values: Sequence[ScoreValues],
) -> int:
    """Train what is missing, judge, write and print."""
    from maenas.cli.eval_proxy_report import print_members, print_report
    from maenas.files import write_text_atomically
    from maenas.proxy_report import points_csv, report_record

    if arguments.dry_run:
        print_members(members, values, as_json=arguments.json)
        return 0
    runs = _runs(arguments, members, folder)
    failures = _train(runs, arguments.cores)
    results = _results(runs)
    groups = _judged(members, arguments.seeds, results, values, failures)
    write_text_atomically(folder.points, points_csv(members, arguments.seeds, results, values, groups))
    folder.drop_pictures({member.group for member in members} - {group.group for group in groups})
    _plot(folder, groups, title=title_of(arguments))
    record = report_record({**question, "seeds": arguments.seeds}, groups, failures)
    write_text_atomically(folder.report, json.dumps(record, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(record))
    else:
        print_report(groups, failures, folder)
    return 1 if failures else 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


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


def _draw(arguments: argparse.Namespace, request: Request, folder: ProxyFolder) -> list[Member]:
    from maenas.band import Band, draw_band, draw_wide
    from maenas.budgets import parse_amount
    from maenas.proxy_folder import Member

    limit, width, seed = request.goal.limit("latency_ms"), parse_share(arguments.band), arguments.draw_seed
    assert limit is not None
    measure = _measure(request, folder) if arguments.measure else None
    print("drawing networks", file=sys.stderr)
    drawn = draw_band(request, Band.below(limit, width), arguments.count or IN_BAND, seed=seed, measure=measure)
    groups = {"band": drawn}
    if arguments.wide:
        low, high = (parse_amount("latency_ms", text) for text in arguments.wide)
        taken = [each.structure.digest for each in drawn]
        groups["wide"] = draw_wide(
            request, low, high, arguments.wide_structures or OVER_RANGE, width=width, seed=seed, taken=taken
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
    from maenas.profiling.host import same_cores_after
    from maenas.profiling.measurement import Settings

    assert request.goal.table is not None
    device = LocalDevice(
        table=request.goal.table,
        folder=folder.measured,
        export=exporter(seed=0),
        bridge=bundled,
        settings=Settings(min_seconds=1.0),
        progress=lambda done, total, left, key: print(f"timing {done}/{total}", file=sys.stderr),
    )

    def measure(structures: Sequence[Structure]) -> list[float]:
        label = f"{structures[0].digest}-{len(structures)}"
        with same_cores_after():  # trainings may use all of them
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
            try:
                structure = replace(structure, image_size=parse_image_size(arguments.image_size))
            except ValueError as error:
                raise ProxyError(f"--image-size: {error}") from None
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
    failures: dict[str, str],
) -> list[GroupResult]:
    """Every group that can be judged, in the order of the networks; why another cannot goes to the failures."""
    from maenas.proxy_report import judge_group

    judged = []
    problems = {}
    for name in dict.fromkeys(member.group for member in members):
        try:
            own = [each for each in members if each.group == name]
            judged.append(judge_group(name, own, seeds, results, values))
        except ProxyError as error:
            problems[f"group {name}"] = str(error)
    if not judged:
        reasons = [*problems.values(), *(f"{name} failed: {reason}" for name, reason in failures.items())]
        raise ProxyError("; ".join(reasons))
    failures.update(problems)
    return judged


def _plot(folder: ProxyFolder, groups: Sequence[GroupResult], *, title: str) -> None:
    from maenas.files import write_bytes_atomically
    from maenas.proxy_plot import group_pictures

    for group in groups:
        for suffix, content in group_pictures(group, title=title).items():
            write_bytes_atomically(folder.plot(group.group, suffix), content)
