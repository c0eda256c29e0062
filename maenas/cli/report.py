"""Tables that people read: the answer of a search, and the stages of a structure."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from maenas.budgets import format_amount
from maenas.latency.table import LatencyTable
from maenas.measured_search import MeasuredSearch
from maenas.neighbours import nearest_published
from maenas.search import Candidate, Request, SearchResult
from maenas.structure import Structure

WIDTH = 120


def console() -> Console:
    """Standard output, without automatic highlighting; wide enough for the tables where it is no terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=max(out.width, WIDTH))


def printable(text: str) -> str:
    """A file's name as it can be printed: it may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def stage_table(structure: Structure) -> Table:
    """The backbone stage by stage, then neck and head."""
    backbone, neck, head = structure.backbone, structure.neck, structure.head
    height, width = structure.image_size
    table = Table(
        title=f"{escape(structure.name)}  (digest {structure.digest}, {height}x{width})", title_justify="left"
    )
    for heading in ("part", "kind", "in", "out", "hidden", "units", "kernel", "stride", "map"):
        table.add_column(heading, justify="left" if heading in ("part", "kind") else "right")
    stem = backbone.stem
    stride = stem.total_stride
    size = f"{height // stride}x{width // stride}"
    table.add_row(
        "stem",
        stem.kind,
        str(stem.in_channels),
        str(stem.out_channels),
        "",
        "",
        str(stem.kernel_size),
        str(stride),
        size,
    )
    channels = stem.out_channels
    for index, stage in enumerate(backbone.stages, start=1):
        stride = backbone.strides[index]
        extras = "".join(f" +{name}" for name, on in (("spp", stage.spp), ("se", stage.se)) if on)
        mark = "  -> neck" if index in backbone.out_stages else ""
        table.add_row(
            f"stage {index}{mark}",
            backbone.family + extras,
            str(channels),
            str(stage.out_channels),
            "/".join(str(hidden) for hidden in dict.fromkeys(stage.hidden_channels)),
            str(stage.depth),
            str(stage.kernel_size),
            str(stage.stride),
            f"{height // stride}x{width // stride}",
        )
        channels = stage.out_channels
    outputs = ",".join(str(out) for out in neck.out_channels)
    table.add_row(
        "neck", f"RepGFPN {neck.fusion}", "", outputs, f"x{neck.hidden_ratio:g}", str(neck.num_blocks), "", "", ""
    )
    table.add_row("head", "ZeroHead", "", f"{head.num_classes} classes", "", "", str(head.kernel_size), "", "")
    return table


def latency_text(candidate: Candidate) -> str:
    """Predicted latency with plus-minus."""
    prediction = candidate.prediction
    if prediction is None:
        return "-"
    if prediction.latency_ms >= 1.0:
        return f"{prediction.latency_ms:.3f} +- {prediction.sigma_ms:.3f} ms"
    return f"{1e3 * prediction.latency_ms:.2f} +- {1e3 * prediction.sigma_ms:.2f} us"


def provenance_text(table: LatencyTable, candidate: Candidate) -> str:
    """Status of the figures: where the table comes from, and how many operators it had as rows."""
    prediction = candidate.prediction
    assert prediction is not None
    profiled = table.provenance == "measured" and table.predictor["kind"] == "rows"
    parts = [f"{prediction.num_exact} operators {'measured' if profiled else 'from rows'}"]
    if prediction.num_modelled:
        model = "modelled from measured ones" if profiled else "from the table's model"
        parts.append(f"{prediction.num_modelled} {model}")
    if prediction.num_extrapolated:
        parts.append(f"{prediction.num_extrapolated} EXTRAPOLATED")
    return f"{table.provenance}, table {table.name} {table.table_hash} ({', '.join(parts)})"


def figures_table(columns: dict[str, Candidate]) -> Table:
    """Figures of a few networks side by side."""
    table = Table(show_edge=True)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    rows = {
        "score": [f"{c.score:.4f}" for c in columns.values()],
        "latency": [latency_text(c) for c in columns.values()],
        "params": [f"{c.params / 1e6:.3f} M" for c in columns.values()],
        "FLOPs (2 x MACs)": [f"{c.flops / 1e9:.3f} G" for c in columns.values()],
        "layers (main path)": [str(c.layers) for c in columns.values()],
        "working set (FP16)": [f"{c.memory_bytes / 1e6:.2f} MB" for c in columns.values()],
        "effectiveness rho": [f"{c.effectiveness:.3f}" for c in columns.values()],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def shortlist_table(candidates: tuple[Candidate, ...]) -> Table:
    """The near-optimal list: one line per depth vector."""
    table = Table(title="shortlist: the best network of each of the best depth vectors", title_justify="left")
    for heading in ("#", "depths", "score", "latency", "params", "digest"):
        table.add_column(heading, justify="left" if heading in ("depths", "digest") else "right")
    for rank, candidate in enumerate(candidates, start=1):
        depths = " ".join(str(stage.depth) for stage in candidate.structure.backbone.stages)
        latency = latency_text(candidate)
        table.add_row(
            str(rank),
            depths,
            f"{candidate.score:.4f}",
            latency,
            f"{candidate.params / 1e6:.3f} M",
            candidate.structure.digest,
        )
    return table


def measured_table(measured: MeasuredSearch) -> Table:
    """Every network that was timed, by round, and the one that was chosen."""
    table = Table(title="measured on this machine", title_justify="left")
    for heading in ("round", "score", "predicted ms", "measured ms", "ratio", "of budget", "digest", ""):
        table.add_column(heading, justify="left" if heading in ("digest", "") else "right")
    for each in measured.timed:
        chosen = each is measured.finalist
        table.add_row(
            str(each.round_index + 1),
            f"{each.candidate.score:.4f}",
            f"{each.measured_ms / each.ratio:.3f}",
            f"{each.measured_ms:.3f}",
            f"{each.ratio:.3f}",
            f"{100 * each.measured_ms / measured.budget_ms:.1f} %",
            each.candidate.structure.digest,
            "chosen" if chosen else "" if each.measured_ms <= measured.budget_ms else "over budget",
        )
    return table


def print_search(
    result: SearchResult, run_dir: Path, *, seconds: float, measured: MeasuredSearch | None = None
) -> None:
    """The answer of a search; the elapsed time goes to standard error, so that equal questions print equal answers."""
    out = console()
    out.print(stage_table(result.best.structure))
    columns = {"this search": result.best}
    nearest = nearest_published(result.request)
    if nearest is not None:
        columns[f"{nearest[0]} (same model)"] = nearest[1]
    out.print(figures_table(columns))
    if measured is None:
        lines = [*_latency_lines(result), _budget_line(result.request), _proof_line(result)]
    else:
        lines = [*_latency_lines(result), *_measured_lines(measured), _budget_line(result.request)]
    for line in lines:
        out.print(line, markup=False)
    if measured is not None:
        out.print(measured_table(measured))
    elif len(result.shortlist) > 1:
        out.print(shortlist_table(result.shortlist))
    out.print(f"written: {run_dir}/structure.json, search.json, shortlist.csv, shortlist/", markup=False)
    Console(stderr=True, highlight=False).print(f"searched in {seconds:.2f} s", style="dim")


def _latency_lines(result: SearchResult) -> list[str]:
    """Where the milliseconds come from, and what they are not."""
    table = result.request.goal.table
    if table is None:
        return []
    lines = [f"latency: {provenance_text(table, result.best)}"]
    if table.provenance != "measured":
        relative = 100 * float(table.uncertainty["relative"])
        lines.append(
            f"         {table.provenance}: not measured by us; one sigma is {relative:.1f} % in the table's range"
        )
    if table.campaign.get("flags"):
        lines.append(f"         flags of the measurement: {', '.join(table.campaign['flags'])}")
    return lines


def _measured_lines(measured: MeasuredSearch) -> list[str]:
    share = 100 * measured.finalist.measured_ms / measured.budget_ms
    certificate = measured.result.certificate
    lines = [
        f"measured: {measured.finalist.measured_ms:.3f} ms, {share:.1f} % of the budget; near it the table is off by "
        f"a factor of {measured.bias:.3f} ({len(measured.timed)} networks, {measured.rounds} rounds)"
    ]
    if certificate is not None:
        lines.append(
            f"proof:   nothing in this space scores above {certificate.upper_bound:.4f} at a predicted latency of "
            f"{measured.searched_ms:.3f} ms, the budget of the last round"
        )
    return lines


def _budget_line(request: Request) -> str:
    goal = request.goal
    limits = ", ".join(f"{budget.metric} <= {format_amount(budget.metric, budget.limit)}" for budget in goal.budgets)
    margin = f" (value + {goal.margin_sigmas:g} sigma)" if goal.margin_sigmas else ""
    return f"budget:  {limits}{margin}; scope {goal.scope}, space {request.space.name}, variant {request.variant.name}"


def _proof_line(result: SearchResult) -> str:
    certificate, evolved = result.certificate, result.evolved
    if certificate is not None:
        regularisers = result.request.space.regularisers
        soft = regularisers.depth or regularisers.growth or regularisers.hidden
        what = "has a score less penalties" if soft else "scores"
        return (
            f"proof:   nothing in this space {what} above {certificate.upper_bound:.4f} within the budget; "
            f"gap {certificate.gap:.1e}, {certificate.labels} labels, {certificate.pruned} pruned"
        )
    assert evolved is not None
    seed = result.request.settings.seed
    return f"proof:   none (evolution, seed {seed}): {evolved.candidates} candidates, {evolved.evaluations} evaluated"
