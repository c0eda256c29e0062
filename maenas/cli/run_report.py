"""What `maenas run` prints: the plan of a journey, and the summary of one that is done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from maenas.cli.report import console
from maenas.journey import Journey, plan_steps
from maenas.journey_html import duration
from maenas.journey_record import RunRecord, standing


def print_plan(journey: Journey, record: RunRecord, *, as_json: bool) -> None:
    """Every step, how far it is, and its command."""
    rows = []
    for step in plan_steps(journey):
        state = standing(step, journey, record)
        begun = record.running is not None and record.running.name == step.name
        how = "done" if state.done else "begun" if begun else "stale" if state.stale else "to do"
        rows.append({"name": step.name, "state": how, "reason": state.stale, "command": ["maenas", *step.command]})
    device = journey.device
    if as_json:
        print(
            json.dumps({"out": str(journey.out), "table": device.table, "is_measured": device.is_here, "steps": rows})
        )
        return
    out = console()
    how = "measured on this machine" if device.is_here else "predicted only: the table is of another machine"
    new = ", to be made" if device.profile else ""
    out.print(f"folder:  {journey.out}", markup=False)
    out.print(f"latency: table {device.table}{new}; {how}", markup=False)
    for row in rows:
        out.print(f"{row['state']:>5}  {row['name']}: {shlex.join(row['command'])}", markup=False, soft_wrap=True)
        if row["reason"]:
            out.print(f"       {row['reason']}", markup=False, soft_wrap=True)


def print_summary(facts: Mapping[str, Any], page: Path, *, as_json: bool) -> None:
    """The figures that matter, and where everything is."""
    if as_json:
        print(json.dumps({**facts, "report": str(page)}))
        return
    out, latency, budget = console(), facts["latency"], facts["budget_ms"]
    table = Table(title=escape(f"{facts['data']['name']}, {facts['device']['device']}"), title_justify="left")
    table.add_column("")
    for heading in ("ms", "from budget"):
        table.add_column(heading, justify="right")
    table.add_row("budget", f"{budget:g}", "")
    for name, value in (
        ("predicted", latency["predicted_ms"]),
        ("measured in the search", latency["searched_ms"]),
        ("the same file at the end", latency["again_ms"]),
        ("measured at the end", latency["final_ms"]),
    ):
        if value is not None:
            table.add_row(name, f"{value:.3f}", f"{100 * (value / budget - 1):+.1f} %")
    out.print(table)
    metrics = facts["accuracy"]["metrics"]
    ap = "none" if metrics["ap"] is None else f"{100 * metrics['ap']:.1f}"
    out.print(f"AP:      {ap} on {facts['data']['num_val']} validation images", markup=False)
    for one in facts["artifacts"]:
        score = "none" if one["ap"] is None else f"{100 * one['ap']:.1f}"
        time = "" if one["timing"] is None else f", {one['timing']['p25_ms']:.3f} ms"
        out.print(f"{one['precision'] + ':':8} {one['folder']}, AP {score}{time}", markup=False, soft_wrap=True)
    out.print(f"budget:  {_verdict(latency)}; all steps took {duration(facts['total_seconds'])}", markup=False)
    out.print(f"written: {page}", markup=False, soft_wrap=True)


def _verdict(latency: Mapping[str, Any]) -> str:
    if latency["final_ms"] is None:
        return "not measured, the device is another machine"
    off = f"{100 * latency['deviation']:+.1f} %"
    if latency["verdict"] == "missed":
        return f"MISSED, {off}"
    return f"met, {off}" if latency["deviation"] <= 0 else f"met within 5 %, but above: {off}"
