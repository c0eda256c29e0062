"""Results as plain records, and the run folder: structure.json, search.json, shortlist.csv and shortlist/*.json."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from maenas import __version__
from maenas.errors import OutputError
from maenas.files import make_folder, write_text_atomically
from maenas.latency.table import LatencyTable
from maenas.measured_search import MeasuredSearch
from maenas.search import Candidate, Request, SearchResult
from maenas.structure import save_structure

SEARCH_FILE = "search.json"
STRUCTURE_FILE = "structure.json"
FRONT_FILE = "front.json"

_OWN_NAME = re.compile(r"\d{2,}-[0-9a-f]{12}\.json")
"""Names of the shortlist's structures; other files in that folder are the user's."""


def default_run_dir(request: Request) -> Path:
    """`runs/search/<space>-<device>-<budgets>-...`: the same question always goes to the same folder."""
    parts = [request.space.name]
    if request.goal.table is not None:
        parts.append(request.goal.table.aliases[0] if request.goal.table.aliases else request.goal.table.name)
    units = {"latency_ms": "ms", "params": "params", "flops": "flops", "layers": "layers", "memory_bytes": "bytes"}
    parts += [f"{budget.limit:.9g}{units[budget.metric]}" for budget in request.goal.budgets]
    parts += [f"{value:.9g}{unit}" for value, unit in ((request.goal.margin_sigmas, "sigma"),) if value]
    height, width = request.space.image_size
    usual = request.space.variants[0].name, "madnas", "detector", "exact", 80, 5
    settings = (
        request.variant.name,
        request.goal.score.name,
        request.goal.scope,
        request.solver,
        request.variant.head.num_classes,
        request.top_k,
    )
    parts += [f"{value}" for value, default in zip(settings, usual, strict=True) if value != default]
    parts.append(f"{height}x{width}" if height != width else f"{height}")
    if request.goal.extrapolate and request.space.graph == "deployed":
        parts.append("extrapolated")
    if request.solver == "evolution":
        parts.append(f"seed{request.settings.seed}-{request.settings.num_candidates}")
    return Path("runs") / "search" / re.sub(r"[^A-Za-z0-9.+-]+", "_", "-".join(parts))


def request_record(request: Request) -> dict[str, Any]:
    """The question as JSON."""
    goal, space = request.goal, request.space
    record: dict[str, Any] = {
        "space": space.name,
        "space_digest": space.digest,
        "variant": request.variant.name,
        "image_size": list(space.image_size),
        "num_classes": request.variant.head.num_classes,
        "graph": space.graph,
        "score": goal.score.name,
        "scope": goal.scope,
        "budgets": {budget.metric: budget.limit for budget in goal.budgets},
        "margin_sigmas": goal.margin_sigmas,
        "device": None if goal.table is None else goal.table.name,
        "table_hash": None if goal.table is None else goal.table.table_hash,
        "extrapolate": goal.extrapolate,
        "solver": request.solver,
        "top_k": request.top_k,
    }
    if request.solver == "evolution":
        settings = request.settings
        record["evolution"] = {
            "seed": settings.seed,
            "num_candidates": settings.num_candidates,
            "population": settings.population,
            "mutations": settings.mutations,
        }
    return record


def table_record(table: LatencyTable | None) -> dict[str, Any]:
    """Where latencies come from."""
    if table is None:
        return {"device": None, "provenance": None, "table_hash": None}
    return {"device": table.name, "provenance": table.provenance, "table_hash": table.table_hash}


def candidate_record(candidate: Candidate) -> dict[str, Any]:
    """The figures of one network, without its structure."""
    prediction = candidate.prediction
    record: dict[str, Any] = {
        "digest": candidate.structure.digest,
        "score": None if math.isnan(candidate.score) else candidate.score,
        "latency_ms": None if prediction is None else prediction.latency_ms,
        "latency_sigma_ms": None if prediction is None else prediction.sigma_ms,
        "params": candidate.params,
        "flops": candidate.flops,
        "layers": candidate.layers,
        "memory_bytes": candidate.memory_bytes,
        "effectiveness": candidate.effectiveness,
    }
    if prediction is not None:
        record["operators"] = {
            "exact": prediction.num_exact,
            "modelled": prediction.num_modelled,
            "extrapolated": prediction.num_extrapolated,
        }
    return record


def result_record(result: SearchResult, run_dir: Path, measured: MeasuredSearch | None = None) -> dict[str, Any]:
    """Everything `--json` prints and search.json keeps; no dates, so that equal questions give equal files."""
    certificate = result.certificate
    record = candidate_record(result.best) | table_record(result.request.goal.table)
    record["objective"] = result.best.objective
    record["certificate"] = None
    if certificate is not None:
        record["certificate"] = {
            "upper_bound": certificate.upper_bound,
            "gap": certificate.gap,
            "labels": certificate.labels,
            "pruned": certificate.pruned,
            "passes": certificate.passes,
            "lagrangian_bound": certificate.lagrangian_bound,
            "multipliers": list(certificate.multipliers),
        }
    if result.evolved is not None:
        record["evolution"] = {
            "candidates": result.evolved.candidates,
            "evaluations": result.evolved.evaluations,
            "improvements": len(result.evolved.history),
        }
    record["structure"] = result.best.structure.to_dict()
    record["shortlist"] = [candidate_record(candidate) for candidate in result.shortlist]
    record["request"] = request_record(result.request)
    record["measured"] = None if measured is None else measured_record(measured)
    record["run_dir"] = str(run_dir)
    record["maenas_version"] = __version__
    return record


def measured_record(measured: MeasuredSearch) -> dict[str, Any]:
    """What was timed, and what the table is off by near this budget."""
    return {
        "finalist": measured.finalist.candidate.structure.digest,
        "measured_ms": measured.finalist.measured_ms,
        "budget_ms": measured.budget_ms,
        "searched_ms": measured.searched_ms,
        "bias": measured.bias,
        "rounds": measured.rounds,
        "timed": [
            {
                "digest": each.candidate.structure.digest,
                "round": each.round_index + 1,
                "score": each.candidate.score,
                "predicted_ms": each.measured_ms / each.ratio,
                "measured_ms": each.measured_ms,
                "ratio": each.ratio,
            }
            for each in measured.timed
        ],
    }


def claim_run_dir(run_dir: Path, asked: dict[str, Any], *, force: bool, record: str = SEARCH_FILE) -> None:
    """Create the folder, or make sure that what it holds answers the same question (rewriting that loses nothing).

    Args:
        run_dir: Folder of the results.
        asked: The question as JSON.
        force: Overwrite the answer to another question.
        record: File in the folder whose `request` field tells which question it answers.

    Raises:
        OutputError: The folder cannot be written, or holds something else and `force` is off.
    """
    make_folder(run_dir)
    previous = run_dir / record
    occupied = any((run_dir / name).exists() for name in (STRUCTURE_FILE, SEARCH_FILE, FRONT_FILE))
    if force or not occupied:
        return
    if _held_request(previous) != asked:
        raise OutputError(f"{run_dir}: holds the result of another search; choose another --out, or add --force")


def _held_request(record: Path) -> object:
    """The question that a record file answers; None if there is no such file or it is something else."""
    try:
        return json.loads(record.read_text(encoding="utf-8")).get("request")
    except (OSError, ValueError, AttributeError):
        return None


def write_run(result: SearchResult, run_dir: Path, measured: MeasuredSearch | None = None) -> None:
    """Write the run folder; search.json comes last, so a folder that has it is complete.

    Raises:
        OutputError: Naming what cannot be written.
    """
    folder = run_dir / "shortlist"
    make_folder(folder)
    if _held_request(run_dir / SEARCH_FILE) != request_record(result.request):
        # Of another question: it must not stand beside this one's files if the writing is interrupted.
        (run_dir / SEARCH_FILE).unlink(missing_ok=True)
    names = []
    for rank, candidate in enumerate(result.shortlist, start=1):
        names.append(f"{rank:02d}-{candidate.structure.digest}.json")
        save_structure(candidate.structure, folder / names[-1])
    for stale in folder.glob("*.json"):
        if _OWN_NAME.fullmatch(stale.name) and stale.name not in names:
            stale.unlink()
    write_text_atomically(run_dir / "shortlist.csv", _shortlist_csv(result))
    save_structure(result.best.structure, run_dir / STRUCTURE_FILE)
    record = result_record(result, run_dir, measured)
    write_text_atomically(run_dir / SEARCH_FILE, json.dumps(record, indent=2) + "\n")


def _shortlist_csv(result: SearchResult) -> str:
    columns = ("digest", "score", "latency_ms", "latency_sigma_ms", "params", "flops", "layers", "memory_bytes")
    lines = [",".join(("rank", *columns, "depths"))]
    for rank, candidate in enumerate(result.shortlist, start=1):
        record = candidate_record(candidate)
        depths = " ".join(str(stage.depth) for stage in candidate.structure.backbone.stages)
        values = ["" if record[name] is None else f"{record[name]}" for name in columns]
        lines.append(",".join([str(rank), *values, depths]))
    return "\n".join(lines) + "\n"
