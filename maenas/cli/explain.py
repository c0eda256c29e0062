"""`maenas explain`: which layer costs what, and what one more or one less ms would buy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maenas.explain import Explanation
    from maenas.latency.table import LatencyTable

HELP = "show where a structure's milliseconds go, and what one more would buy"
EXAMPLE = "maenas explain damo-yolo-s --device t4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("structure", metavar="STRUCTURE", help="published name, structure.json, or official file")
    parser.add_argument("--device", required=True, metavar="NAME", help="latency table: name, alias or folder")
    parser.add_argument("--scope", choices=["detector", "backbone"], default="detector", help="part to explain")
    parser.add_argument(
        "--graph",
        choices=["deployed", "reference"],
        default="deployed",
        help="what to cost: the deployed network, or the reference search tool's graph of the backbone",
    )
    parser.add_argument("--step", default="1ms", metavar="TIME", help="latency step of the trade-off (default: 1ms)")
    parser.add_argument("--layers", action="store_true", help="list every operator, not only the costliest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Explain and print."""
    import json

    from maenas.budgets import parse_amount
    from maenas.cli.question import warn_if_stale
    from maenas.explain import explain
    from maenas.latency.table import load_table
    from maenas.published import resolve_reference, resolve_structure

    resolve = resolve_reference if arguments.graph == "reference" else resolve_structure
    structure = resolve(arguments.structure)
    table = load_table(arguments.device)
    warn_if_stale(table)
    step_ms = parse_amount("latency_ms", arguments.step)
    explanation = explain(structure, table, scope=arguments.scope, graph=arguments.graph, step_ms=step_ms)
    if arguments.json:
        print(json.dumps(_record(explanation, table)))
    else:
        _print(explanation, table, all_layers=arguments.layers)
    return 0


def _record(explanation: Explanation, table: LatencyTable) -> dict[str, Any]:
    import dataclasses

    from maenas.results import candidate_record, table_record

    prediction = explanation.prediction
    return {
        "name": explanation.candidate.structure.name,
        **candidate_record(explanation.candidate),
        "fixed_ms": prediction.fixed_ms,
        **table_record(table),
        "groups": [dataclasses.asdict(group) for group in explanation.groups],
        "ops": [dataclasses.asdict(layer) for layer in explanation.layers],
        "trades": [
            {
                "latency_budget_ms": trade.latency_ms,
                "optimum": None if trade.optimum is None else candidate_record(trade.optimum),
                "reason": trade.reason,
            }
            for trade in explanation.trades
        ],
    }


def _print(explanation: Explanation, table: LatencyTable, *, all_layers: bool) -> None:
    from maenas.cli.report import console, stage_table

    out = console()
    prediction = explanation.prediction
    out.print(stage_table(explanation.candidate.structure))
    out.print(
        f"{prediction.latency_ms:.3f} +- {prediction.sigma_ms:.3f} ms on {table.name} "
        f"({table.provenance}, hash {table.table_hash})",
        markup=False,
    )
    groups = _shares_table("by part")
    for group in explanation.groups:
        _add_share(groups, group, prediction.latency_ms)
    groups.add_row(
        "fixed", "", f"{prediction.fixed_ms:.3f}", f"{100 * prediction.fixed_ms / prediction.latency_ms:.1f}"
    )
    out.print(groups)
    own = explanation.candidate
    score = "no score (it needs five levels)" if own.score != own.score else f"score {own.score:.4f}"
    out.print(
        f"{score}, {own.layers} layers, {own.params / 1e6:.3f} M params, "
        f"{own.flops / 2e9:.3f} GMACs, working set {own.memory_bytes / 1e6:.2f} MB, rho {own.effectiveness:.3f}"
    )
    layers = explanation.layers
    chosen = layers if all_layers else sorted(layers, key=lambda layer: -layer.latency_ms)[:10]
    listing = _shares_table("operators in execution order" if all_layers else "ten costliest operators (--layers: all)")
    for layer in chosen:
        _add_share(listing, layer, prediction.latency_ms)
    out.print(listing)
    if prediction.num_extrapolated:
        out.print(f"{prediction.num_extrapolated} operators lie outside the table's range: EXTRAPOLATED")
    if explanation.trades:
        out.print(_trades_table(explanation))


def _shares_table(title: str) -> Any:  # noqa: ANN401
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("part", "operators", "ms", "%", "params k", "MMACs"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    return table


def _add_share(table: Any, share: Any, total_ms: float) -> None:  # noqa: ANN401
    table.add_row(
        share.name,
        str(share.num_ops),
        f"{share.latency_ms:.3f}",
        f"{100 * share.latency_ms / total_ms:.1f}",
        f"{share.params / 1e3:.1f}",
        f"{share.macs / 1e6:.1f}",
    )


def _trades_table(explanation: Explanation) -> Any:  # noqa: ANN401
    from rich.table import Table

    family = explanation.candidate.structure.backbone.family
    own = explanation.candidate.score
    title = f"best of space {family} at other budgets (this structure scores {own:.3f})"
    table = Table(title=title, title_justify="left")
    for heading in ("budget ms", "best score", "gain", "params M", "GFLOPs", "depths"):
        table.add_column(heading, justify="right")
    for trade in explanation.trades:
        best = trade.optimum
        if best is None:
            table.add_row(f"{trade.latency_ms:.3f}", "none", "", "", "", "")
            continue
        depths = " ".join(str(stage.depth) for stage in best.structure.backbone.stages)
        table.add_row(
            f"{trade.latency_ms:.3f}",
            f"{best.score:.3f}",
            f"{best.score - own:+.3f}",
            f"{best.params / 1e6:.2f}",
            f"{best.flops / 1e9:.2f}",
            depths,
        )
    return table
