"""What `maenas eval-proxy` prints: the networks of a group, the scores, and what noise allows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from maenas.cli.report import console
from maenas.lowering.costs import num_flops, num_params
from maenas.lowering.detector import lower
from maenas.proxy_folder import Member, ProxyFolder
from maenas.proxy_plot import interval_text
from maenas.proxy_report import GroupResult, label_of, problem_of
from maenas.proxy_scores import ScoreValues


def print_members(members: Sequence[Member], values: Sequence[ScoreValues], *, as_json: bool) -> None:
    """The networks and their scores before any training."""
    if as_json:
        rows = [
            {
                "group": member.group,
                "structure": member.digest,
                "predicted_ms": member.predicted_ms,
                "measured_ms": member.measured_ms,
                "scores": {each.name: _finite(each.values[member.digest]) for each in values},
            }
            for member in members
        ]
        print(json.dumps(rows))
        return
    networks = Table(title="networks to train", title_justify="left")
    for heading in ("group", "structure", "depths", "ms", "params", "FLOPs"):
        networks.add_column(heading, justify="left" if heading in ("group", "structure", "depths") else "right")
    for member in members:
        ops = lower(member.structure)
        costs = (f"{num_params(ops) / 1e6:.3f} M", f"{num_flops(ops) / 1e9:.3f} G")
        networks.add_row(member.group, member.digest, _depths(member), _latency(member), *costs)
    scores = Table(title="their scores", title_justify="left")
    for heading in ("score", "lowest", "highest", "different", "note"):
        scores.add_column(heading, justify="left" if heading in ("score", "note") else "right")
    for each in values:
        numbers = np.array(list(each.values.values()))
        problem = problem_of(numbers, np.arange(len(numbers), dtype=np.float64), set(each.reasons.values()))
        finite = numbers[np.isfinite(numbers)]
        ends = (f"{finite.min():.6g}", f"{finite.max():.6g}") if len(finite) else ("-", "-")
        scores.add_row(each.name, *ends, str(len(np.unique(finite))), problem)
    console().print(networks)
    console().print(scores)


def print_report(groups: Sequence[GroupResult], failures: Mapping[str, str], folder: ProxyFolder) -> None:
    """The answer."""
    out = console()
    for group in groups:
        out.print(_network_table(group))
        out.print(_score_table(group))
        for line in [*_notes(group), *_noise_lines(group)]:
            out.print(line, markup=False, soft_wrap=True)
        out.print("")
    for name, reason in failures.items():
        out.print(f"FAILED: {name}: {reason}", markup=False, soft_wrap=True, style="red")
    plots = ", ".join(f"{group.group}.png, {group.group}.svg" for group in groups)
    out.print(f"written: {folder.path}/points.csv, proxy.json, {plots}", markup=False, soft_wrap=True)


def _network_table(group: GroupResult) -> Table:
    table = Table(title=f"group {group.group}: {len(group.members)} networks, best first", title_justify="left")
    for heading in ("", "structure", "depths", "ms", "AP", *(f"seed {seed}" for seed in group.seeds)):
        table.add_column(heading, justify="left" if heading in ("", "structure", "depths") else "right")
    for place, member in enumerate(group.members):
        aps = (f"{100 * ap:.1f}" for ap in (group.mean_aps[place], *group.aps[place]))
        table.add_row(label_of(place), member.digest, _depths(member), _latency(member), *aps)
    return table


def _score_table(group: GroupResult) -> Table:
    title = "scores against AP: value [95 % interval over networks]; regret in AP"
    table = Table(title=title, title_justify="left")
    for heading in ("score", "Kendall tau", "Spearman rho", "regret", "pick", "tau less madnas"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for score in group.scores:
        if score.problem or score.kendall is None or score.spearman is None or score.regret is None:
            table.add_row(score.name, "not usable", "-", "-", "-", "-", style="yellow")
            continue
        table.add_row(
            score.name,
            interval_text(score.kendall),
            interval_text(score.spearman),
            interval_text(score.regret, factor=100, digits=1),
            score.pick,
            "" if score.less_madnas is None else interval_text(score.less_madnas),
        )
    return table


def _notes(group: GroupResult) -> list[str]:
    """What is to be said of single scores."""
    return [f"{score.name}: {score.problem or score.note}" for score in group.scores if score.problem or score.note]


def _noise_lines(group: GroupResult) -> list[str]:
    lines = [f"a network taken blindly loses {100 * group.random_regret:.1f} AP on average"]
    ceiling = group.ceiling
    if ceiling is None:
        lines.append("seed noise: unknown with one seed; the correlations above have no ceiling to be compared with")
    else:
        lines.append(
            f"seed noise: {100 * ceiling.seed_std:.2f} AP per run; between networks {100 * ceiling.network_std:.2f} AP "
            f"without it; tau between two seeds {ceiling.between_seeds:.2f}"
        )
        lines.append(
            f"ceiling: a score that knew the true APs would reach tau {interval_text(ceiling.kendall)}, rho "
            f"{interval_text(ceiling.spearman)}"
            if np.isfinite(ceiling.kendall.value)
            else "ceiling: the networks differ no more than seeds do, so no score can be told from another here"
        )
    if group.left_out:
        lines.append(f"left out for a run without a result: {', '.join(group.left_out)}")
    return lines


def _depths(member: Member) -> str:
    return " ".join(str(stage.depth) for stage in member.structure.backbone.stages)


def _latency(member: Member) -> str:
    if member.measured_ms is not None:
        return f"{member.measured_ms:.3f} measured"
    return "-" if member.predicted_ms is None else f"{member.predicted_ms:.3f}"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
