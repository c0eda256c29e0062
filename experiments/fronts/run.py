"""What does the whole score-latency front of each wide space look like, and where do the published networks lie?

Run from the repository root: `python experiments/fronts/run.py`. Writes one CSV and one PNG per space, and result.json,
beside this file. Uses shipped data only.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

from maenas.budgets import Budget
from maenas.front import FrontPoint, front_budget, front_csv, plot_front, search_front
from maenas.lowering.costs import num_layers
from maenas.lowering.detector import lower
from maenas.neighbours import published_candidates
from maenas.profiling.host import cpu_model
from maenas.search import Candidate, Request, resolve_request, search

HERE = Path(__file__).parent
RANGES = {"res": ("t4", 1.9, 8.0), "csp": ("t4", 2.6, 12.0), "mob": ("intel-8163", 3.6, 8.0)}
"""Space: device, and the latencies in ms between which its front is computed."""


def main() -> None:
    """Compute every front and set the published networks beside it."""
    spaces = {}
    for name, (device, low, high) in RANGES.items():
        request = resolve_request(name, budgets=[front_budget(high)], device=device)
        started, cpu = time.perf_counter(), time.process_time()
        points = search_front(request, low, high)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        (HERE / f"{name}.csv").write_text(front_csv(points), encoding="utf-8")
        plot_front(request, points, HERE / f"{name}.png")
        spaces[name] = {
            "table": _table(request),
            "from_ms": low,
            "to_ms": high,
            "points": len(points),
            "wall_s": round(seconds, 2),
            "cpu_s": round(cpu_seconds, 2),
            "published": _published(request, points),
        }
        print(f"{name}: {len(points)} points in {seconds:.1f} s")
    conditions = {
        "machine": cpu_model(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "note": "single run on a shared two-core machine; times are indications",
    }
    report = {"conditions": conditions, "spaces": spaces}
    (HERE / "result.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _table(request: Request) -> str:
    table = request.goal.table
    assert table is not None
    return f"{table.name} {table.table_hash} ({table.provenance})"


def _published(request: Request, points: list[FrontPoint]) -> dict[str, dict[str, float]]:
    """Score of each published network and of the front at its predicted latency."""
    found = {}
    for name, candidate in published_candidates(request.goal, request.space.family).items():
        latency = _latency(candidate)
        below = [point for point in points if point.latency_ms <= latency]
        if below:
            found[name] = {
                "latency_ms": round(latency, 4),
                "score": round(candidate.score, 3),
                "layers": candidate.layers,
                "front_score": round(below[-1].objective, 3),
                "front_layers": _layers(below[-1]),
                "equal_depth_score": round(_optimum_at_depth(request, latency, candidate.layers), 3),
            }
    return found


def _layers(point: FrontPoint) -> int:
    return int(num_layers(lower(point.structure, scope="backbone")))


def _optimum_at_depth(request: Request, latency_ms: float, layers: int) -> float:
    """Score of the optimum that is neither slower nor deeper than a published network."""
    budgets = [front_budget(latency_ms), Budget("layers", layers)]
    return search(request.space, budgets=budgets, device=request.goal.table, top_k=1).best.score


def _latency(candidate: Candidate) -> float:
    assert candidate.prediction is not None
    return candidate.prediction.latency_ms


if __name__ == "__main__":
    sys.exit(main())
