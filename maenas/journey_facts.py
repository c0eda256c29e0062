"""Everything that a finished journey's files say, as one record: what report.json keeps and report.html shows."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maenas import __version__
from maenas.errors import reason_of
from maenas.journey import (
    Journey,
    JourneyError,
    card_file,
    check_folder,
    export_folder,
    network_file,
    plan_steps,
    searched_export,
)
from maenas.journey_record import RunRecord, as_mapping, file_sha256
from maenas.latency.table import LatencyTable, load_table
from maenas.latency.table_local import staleness
from maenas.structure import Structure, load_structure

SCHEMA_VERSION = 1
TOLERANCE = 0.05
"""A measured latency further from the budget than this share of it has missed it."""

FRONT_POINTS = 300

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is said of the data set.

    Attributes:
        source: As the user wrote it.
        name: Of its validation split.
        class_names: In label order.
        num_train: Training images; 0 where there is no such split.
        num_val: Validation images.
    """

    source: str
    name: str
    class_names: tuple[str, ...]
    num_train: int
    num_val: int


def gather(journey: Journey, record: RunRecord, data: DataFacts) -> Facts:
    """The record of a journey whose steps are all done.

    Raises:
        MaenasError: A file of a step cannot be read.
    """
    table = load_table(journey.device.table)
    structure = load_structure(network_file(journey))
    explained = _read(journey.out / "explain" / "explain.json")
    searched = _read(journey.out / "search" / "search.json") if journey.search else None
    told = searched if journey.searched is None else _read(journey.searched)
    timed = _read(journey.out / "benchmark" / "benchmark.json") if journey.device.is_here else None
    artifacts = [_artifact(journey, precision, timed) for precision in journey.precisions]
    return {
        "schema_version": SCHEMA_VERSION,
        "maenas_version": __version__,
        "folder": str(journey.out),
        "asked": dict(as_mapping(record.asked)),
        "budget_ms": journey.budget_ms,
        "data": asdict(data) | {"digest": journey.data_digest},
        "given": _given(journey),
        "device": _device(journey, table),
        "network": _network(structure, explained),
        "choice": None if told is None else _choice(journey, told),
        "latency": _latency(journey, explained, searched, timed, artifacts),
        "training": _training(journey),
        "accuracy": _accuracy(_read(journey.out / "eval" / "eval.json")),
        "artifacts": artifacts,
        "steps": _steps(journey, record),
        "total_seconds": round(sum(step.seconds for step in record.steps), 1),
        "host": None if timed is None else timed["host"],
        "versions": None if timed is None else timed["versions"],
    }


def _read(path: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JourneyError(
            f"{path}: cannot be read ({reason_of(error)}); expected what its step wrote".replace("\n", " ")
        ) from error


def _given(journey: Journey) -> list[dict[str, str]]:
    """What the user gave in place of a step."""
    given = []
    if not journey.device.profile:
        given.append({"what": "latency table", "value": journey.device.table, "identity": journey.device.table_hash})
    if journey.searched is not None:
        digest = _read(journey.searched)["digest"]
        given.append({"what": "search", "value": str(journey.searched), "identity": digest})
    elif journey.structure is not None and journey.train:
        digest = load_structure(journey.structure).digest
        given.append({"what": "network", "value": str(journey.structure), "identity": digest})
    if journey.weights is not None:
        sha256 = file_sha256(journey.weights)
        given.append({"what": "trained weights", "value": str(journey.weights), "identity": sha256[:12]})
    for precision, folder in journey.exported.items():
        sha256 = file_sha256(card_file(folder))
        given.append({"what": f"{precision} files", "value": str(folder), "identity": sha256[:12]})
    return given


def _device(journey: Journey, table: LatencyTable) -> Facts:
    test = table.calibration.get("test")
    return {
        "table": table.name,
        "table_hash": table.table_hash,
        "provenance": table.provenance,
        "device": table.device,
        "backend": table.backend,
        "backend_version": table.backend_version,
        "precision": table.precision,
        "threads": table.threads,
        "batch": table.batch,
        "date": table.date,
        "relative_sigma": float(table.uncertainty["relative"]),
        "test": test if isinstance(test, Mapping) else None,
        "flags": list(table.campaign.get("flags", ())),
        "is_here": journey.device.is_here,
        "profiled": bool(journey.device.profile),
        "stale": staleness(table),
    }


def _network(structure: Structure, explained: Mapping[str, Any]) -> Facts:
    backbone, neck, head = structure.backbone, structure.neck, structure.head
    return {
        "name": structure.name,
        "digest": structure.digest,
        "image_size": list(structure.image_size),
        "family": backbone.family,
        "num_classes": head.num_classes,
        "params": explained["params"],
        "flops": explained["flops"],
        "layers": explained["layers"],
        "score": explained["score"],
        "memory_bytes": explained["memory_bytes"],
        "stem": {"kind": backbone.stem.kind, "out_channels": backbone.stem.out_channels},
        "stages": [
            {
                "stride": stage.stride,
                "depth": stage.depth,
                "kernel_size": stage.kernel_size,
                "hidden_channels": list(stage.hidden_channels),
                "out_channels": stage.out_channels,
            }
            for stage in backbone.stages
        ],
        "neck": {"out_channels": list(neck.out_channels), "num_blocks": neck.num_blocks},
        "shares": [
            {"name": group["name"], "ms": group["latency_ms"], "params": group["params"], "macs": group["macs"]}
            for group in explained["groups"]
        ],
        "fixed_ms": explained["fixed_ms"],
    }


def _choice(journey: Journey, searched: Mapping[str, Any]) -> Facts:
    """Why this network: the proof, what else was near, and what another budget would buy."""
    measured = searched["measured"]
    times = {} if measured is None else {each["digest"]: each["measured_ms"] for each in measured["timed"]}
    return {
        "given": journey.searched is not None,
        "question": searched["request"],
        "score": searched["score"],
        "objective": searched["objective"],
        "certificate": searched["certificate"],
        "evolution": searched.get("evolution"),
        "shortlist": [
            {
                **{name: each[name] for name in ("digest", "score", "latency_ms", "params", "flops", "layers")},
                "measured_ms": times.get(each["digest"]),
                "chosen": each["digest"] == searched["digest"],
            }
            for each in searched["shortlist"]
        ],
        "measured": measured,
        "latency_ms": searched["latency_ms"],
        "front": _front(journey.out / "front" / "front.csv") if journey.front else [],
    }


def _front(path: Path) -> list[list[float]]:
    """Latency and score of every network on the front, at most FRONT_POINTS of them."""
    rows = [(_number(row.get("latency_ms")), _number(row.get("objective"))) for row in _csv(path)]
    points = [[ms, score] for ms, score in rows if ms is not None and score is not None]
    every = max(1, -(-len(points) // FRONT_POINTS))
    return points[::every]


def _latency(
    journey: Journey,
    explained: Mapping[str, Any],
    searched: Mapping[str, Any] | None,
    timed: Mapping[str, Any] | None,
    artifacts: Sequence[Mapping[str, Any]],
) -> Facts:
    """The budget beside everything that was predicted and measured of the network."""
    measured = None if searched is None else searched["measured"]
    again = None if timed is None else _line(timed, searched_export(journey))
    # What the budget bounds: the network without suppression, in the arithmetic of the table.
    own = [one for one in artifacts if one["precision"] == journey.device.precision and one["timing"] is not None]
    plain = [one for one in own if not one["suppresses"]]
    judged, what = None, ""
    if plain:
        judged, what = plain[0]["timing"], f"trained {plain[0]['precision']} files"
    elif again is not None:
        judged, what = again, "network as searched, timed again"
    elif own:
        judged, what = own[0]["timing"], f"trained {own[0]['precision']} files, with suppression"
    final = None if judged is None else judged["p25_ms"]
    deviation = None if final is None else final / journey.budget_ms - 1
    return {
        "budget_ms": journey.budget_ms,
        "predicted_ms": explained["latency_ms"],
        "predicted_sigma_ms": explained["latency_sigma_ms"],
        "searched_ms": None if measured is None else measured["measured_ms"],
        "again_ms": None if again is None else again["p25_ms"],
        "final": judged,
        "final_what": what,
        "final_ms": final,
        "deviation": deviation,
        "verdict": _verdict(deviation),
        "undisturbed": None if timed is None else all(line["undisturbed"] for line in timed["lines"]),
    }


def _verdict(deviation: float | None) -> str:
    if deviation is None:
        return "not measured"
    if abs(deviation) > TOLERANCE:
        return "missed"
    return "met" if deviation <= 0 else "met, above"


def _line(timed: Mapping[str, Any], path: Path | None) -> Facts | None:
    """The line of a benchmark about a file, or about a file in a folder."""
    for line in timed["lines"]:
        if path is not None and path in (Path(line["model"]), Path(line["model"]).parent):
            names = ("min_ms", "p25_ms", "p50_ms", "p90_ms", "p99_ms", "rel_spread", "undisturbed", "runs", "backend")
            return {name: line[name] for name in (*names, "threads", "precision", "backend_version")}
    return None


def _training(journey: Journey) -> Facts | None:
    if not journey.train:
        return None
    folder = journey.out / "train"
    result = _read(folder / "result.json")
    words = dict(zip(journey.train, journey.train[1:], strict=False))
    return {
        "recipe": words.get("--recipe"),
        "teacher": words.get("--teacher"),
        "epochs": result["epochs"],
        "iterations": result["iterations"],
        "seconds": result["seconds"],
        "ended_by": result["ended_by"],
        "best": result["best"],
        "rows": _rows(folder / "metrics.csv"),
    }


def _rows(path: Path) -> list[dict[str, float | None]]:
    """What curves need of metrics.csv."""
    wanted = ("epoch", "loss", "quality_focal", "giou", "dfl", "distill", "lr", "ap", "ap50", "ap75")
    return [{name: _number(row.get(name)) for name in wanted if row.get(name)} for row in _csv(path)]


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise JourneyError(f"{path}: cannot be read ({reason_of(error)}); expected what its step wrote") from error


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _accuracy(evaluated: Mapping[str, Any]) -> Facts:
    names = ("model", "data", "settings", "metrics", "best", "classes", "errors", "missing_classes", "skipped")
    facts: Facts = {name: evaluated.get(name) for name in names}
    if facts["classes"] is None:  # a union of data sets: the mean of its sources
        facts["classes"] = []
    facts["sources"] = evaluated.get("sources")
    return facts


def _artifact(journey: Journey, precision: str, timed: Mapping[str, Any] | None) -> Facts:
    folder = export_folder(journey, precision)
    card = _read(card_file(folder))
    metrics = _read(check_folder(journey, precision) / "eval.json")
    quantised = card.get("quantisation") or {}
    return {
        "precision": precision,
        "folder": str(folder),
        "format": card["format"],
        "files": [file["name"] for file in card["files"]],
        "size_bytes": sum(file["size_bytes"] for file in card["files"]),
        "sha256": card["files"][0]["sha256"],
        "suppresses": card["form"] == "nms",
        "passed": None if card.get("parity") is None else card["parity"].get("passed", True),
        "runtime": metrics["model"]["runtime"],
        "ap": metrics["metrics"]["ap"],
        "ap50": metrics["metrics"]["ap50"],
        "given": precision in journey.exported,
        "float_layers": len(quantised.get("higher_precision", ())) if quantised else None,
        "num_layers": quantised.get("num_layers"),
        "timing": None if timed is None else _line(timed, folder),
    }


def _steps(journey: Journey, record: RunRecord) -> list[Facts]:
    steps = []
    for step in plan_steps(journey):
        finished = record.finished(step.name)
        if finished is not None:
            steps.append(
                {
                    "name": step.name,
                    "purpose": step.purpose,
                    "command": ["maenas", *finished.command],
                    "seconds": finished.seconds,
                    "attempts": finished.attempts,
                    "ended": finished.ended,
                    "maenas_version": finished.maenas_version,
                    "inputs": dict(as_mapping(finished.inputs)),
                    "outputs": dict(as_mapping(finished.outputs)),
                }
            )
    return steps
