"""What the files of run folders say: structures, AP, measured and predicted latencies; every file read with care."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from maenas.errors import PlotError, reason_of
from maenas.plot_facts import EVALUATED, TIMED, TRAINED, EvaluationFact, RunFacts, SearchFact, TimingFact
from maenas.records import is_count, is_number, parse_yaml, shown
from maenas.structure import Structure, load_structure, structure_from_dict

MAX_FILE_BYTES = 5_000_000
MAX_FILES = 2_000
MAX_FOLDERS = 20_000
COCO_IMAGES = 5_000


def read_runs(paths: list[Path]) -> RunFacts:
    """What folders (with everything below them) and single files say.

    Raises:
        PlotError: No such path, nothing of ours in it, or a file of ours that is malformed.
    """
    facts = RunFacts()
    read: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise PlotError(f"{path}: no such run folder or file, nor a published network's name")
        found = False
        for file in _files(path) if path.is_dir() else iter([path]):
            if file.resolve() in read:
                found = True
                continue
            if _read_file(file, facts):
                read.add(file.resolve())
                found = True
        if not found:
            raise PlotError(
                f"{path}: holds nothing to plot; expected a folder of maenas search, train, eval, export or benchmark"
            )
    return facts


def _files(folder: Path) -> Iterator[Path]:
    """JSON files below a folder in a fixed order; links to folders are not followed."""
    count = 0
    for visited, (place, folders, names) in enumerate(os.walk(folder)):
        if visited == MAX_FOLDERS:
            raise PlotError(f"{folder}: has more than {MAX_FOLDERS} folders; expected a run folder")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            # Detections and annotations are large and say nothing of speed or AP.
            if name.endswith(".json") and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                count += 1
                if count > MAX_FILES:
                    raise PlotError(f"{folder}: has more than {MAX_FILES} JSON files; expected a run folder")
                yield path


def _read_file(path: Path, facts: RunFacts) -> bool:
    """Add what a file says; whether it is one of ours."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return False
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlotError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    if isinstance(content.get("lines"), list) and isinstance(content.get("host"), dict):
        _read_benchmark(content, path, facts)
    elif isinstance(content.get("metrics"), dict) and isinstance(content.get("model"), dict):
        _read_evaluation(content, path, facts)
    elif isinstance(content.get("request"), dict) and "shortlist" in content:
        _read_search(content, path, facts)
    elif isinstance(content.get("best"), dict) and "ended_by" in content:
        _read_training(content, path, facts)
    elif "class_names" in content and isinstance(content.get("structure"), dict):
        _add_structure(structure_from_dict(content["structure"], source=f"{path}: structure"), facts)
    elif "backbone" in content and "neck" in content:
        if path.parent.name == "shortlist":
            # Runners-up of a search: none of them is a result.
            return False
        _add_structure(structure_from_dict(content, source=str(path)), facts)
    else:
        return False
    return True


def _add_structure(structure: Structure, facts: RunFacts) -> None:
    facts.structures.setdefault(structure.digest, structure)


def _read_evaluation(content: Mapping[str, Any], path: Path, facts: RunFacts) -> None:
    model, metrics, data = content["model"], content["metrics"], content.get("data")
    if model.get("structure") is None:
        facts.notes.append(f"{path}: is of a model without a structure of ours; add its figures with --points")
        return
    digest = _text(model, "structure", f"{path}: model")
    if model.get("random_weights") is True:
        facts.notes.append(f"{path}: left out, its weights are random")
        return
    if metrics.get("ap") is None:
        facts.notes.append(f"{path}: left out, it has no AP")
        return
    if not isinstance(data, dict):
        raise PlotError(f"{path}: data is {shown(data)}; expected an object")
    gaps = {name: content.get(name) for name in ("missing_classes", "skipped")}
    note = "; ".join(
        f"{name.replace('_', ' ')}: {len(items)}" for name, items in gaps.items() if isinstance(items, list) and items
    )
    facts.evaluations.append(
        EvaluationFact(
            digest=digest,
            sha256=model["sha256"] if isinstance(model.get("sha256"), str) else "",
            ap=100.0 * _real(metrics, "ap", f"{path}: metrics", low=0.0, high=1.0),
            data=_data_name(data, path),
            rank=EVALUATED,
            note=note,
            source=str(path),
        )
    )


def _data_name(data: Mapping[str, Any], path: Path) -> str:
    """What identifies the images of an evaluation; the digest is that of their annotations."""
    name, split = _text(data, "name", f"{path}: data"), _text(data, "split", f"{path}: data")
    if name.endswith("instances_val2017.json") and data.get("num_images") == COCO_IMAGES:
        return "COCO val2017"
    folder = name.partition("/annotations/")[0].partition("/images/")[0]
    short = PurePath(folder).name or folder
    return f"{short} ({split}, {_text(data, 'digest', f'{path}: data')})"


def _read_training(content: Mapping[str, Any], path: Path, facts: RunFacts) -> None:
    """The best AP of a training run, where its structure lies beside it."""
    structure_file, config_file = path.parent / "structure.json", path.parent / "config.yaml"
    best = content["best"]
    if not (structure_file.is_file() and config_file.is_file()) or best.get("ap") is None:
        facts.notes.append(f"{path}: left out, it has no AP or lacks structure.json and config.yaml beside it")
        return
    structure = load_structure(structure_file)
    _add_structure(structure, facts)
    facts.evaluations.append(
        EvaluationFact(
            digest=structure.digest,
            sha256="",
            ap=100.0 * _real(best, "ap", f"{path}: best", low=0.0, high=1.0),
            data=f"{_training_data(config_file)} (val, as training measures it)",
            rank=TRAINED,
            note="best epoch of the training run",
            source=str(path),
        )
    )


def _training_data(path: Path) -> str:
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlotError(f"{path}: cannot be read as YAML ({reason_of(error)})") from error
    data = config.get("data") if isinstance(config, dict) else None
    place = data.get("path") if isinstance(data, dict) else None
    if not isinstance(place, str):
        raise PlotError(f"{path}: data.path is {shown(place)}; expected a text")
    return place


def _read_benchmark(content: Mapping[str, Any], path: Path, facts: RunFacts) -> None:
    for index, line in enumerate(content["lines"]):
        place = f"{path}: lines[{index}]"
        if not isinstance(line, dict):
            raise PlotError(f"{place} is {shown(line)}; expected an object")
        if line.get("digest") is None:
            facts.notes.append(f"{place}: is no export of ours; add its figures with --points")
            continue
        if line.get("ap") is not None:
            facts.evaluations.append(_benchmark_ap(content, line, place))
        facts.timings.append(
            TimingFact(
                digest=_text(line, "digest", place),
                sha256=_text(line, "sha256", place),
                form=_text(line, "form", place),
                ms=_real(line, "p50_ms", place),
                low_ms=_real(line, "p25_ms", place),
                high_ms=_real(line, "p90_ms", place),
                device=_text(line, "device", place),
                runtime=_text(line, "backend", place),
                runtime_version=_text(line, "backend_version", place),
                precision=_text(line, "precision", place),
                batch=_count(line, "batch", place),
                threads=_count(line, "threads", place),
                note="" if line.get("undisturbed", True) is True else "disturbed by other work",
                source=str(path),
            )
        )


def _benchmark_ap(content: Mapping[str, Any], line: Mapping[str, Any], place: str) -> EvaluationFact:
    """AP that a benchmark measured beside the time of a file."""
    path = Path(place.partition(": lines[")[0])
    conditions = content.get("conditions")
    data = conditions.get("data") if isinstance(conditions, dict) else None
    if not isinstance(data, dict):
        raise PlotError(f"{path}: conditions.data is {shown(data)}; expected an object where a line has an AP")
    where = f"{path}: conditions.data"
    known = "name" in data and "digest" in data
    name = f"{_text(data, 'source', where)} ({_text(data, 'split', where)})"
    return EvaluationFact(
        digest=_text(line, "digest", place),
        sha256=_text(line, "sha256", place),
        ap=100.0 * _real(line, "ap", place, low=0.0, high=1.0),
        data=_data_name(data, path) if known else name,
        rank=TIMED,
        note="",
        source=str(path),
    )


def _read_search(content: Mapping[str, Any], path: Path, facts: RunFacts) -> None:
    structure = structure_from_dict(content.get("structure"), source=f"{path}: structure")
    _add_structure(structure, facts)
    request = content["request"]
    if content.get("latency_ms") is None:
        return
    if request.get("scope") != "detector" or request.get("graph") != "deployed":
        facts.notes.append(f"{path}: its latency is left out, it is not the whole deployed detector's")
        return
    measured = content.get("measured")
    timed = None
    if isinstance(measured, dict) and measured.get("finalist") == structure.digest:
        timed = _real(measured, "measured_ms", f"{path}: measured")
    facts.searches.append(
        SearchFact(
            digest=structure.digest,
            table=_text(content, "device", str(path)),
            table_hash=_text(content, "table_hash", str(path)),
            provenance=_text(content, "provenance", str(path)),
            ms=_real(content, "latency_ms", str(path)),
            sigma_ms=_real(content, "latency_sigma_ms", str(path), low=0.0),
            measured_ms=timed,
            source=str(path),
        )
    )


def _text(record: Mapping[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value or len(value) > 500 or not value.isprintable():
        raise PlotError(f"{place}.{name} is {shown(value)}; expected a printable text")
    return value


def _real(record: Mapping[str, Any], name: str, place: str, *, low: float = 1e-9, high: float = 1e9) -> float:
    value = record.get(name)
    number = float(value) if is_number(value) else math.nan
    if not low <= number <= high:
        raise PlotError(f"{place}.{name} is {shown(value)}; expected a number from {low:g} to {high:g}")
    return number


def _count(record: Mapping[str, Any], name: str, place: str) -> int:
    value = record.get(name)
    if not is_count(value) or value > 1_000_000:
        raise PlotError(f"{place}.{name} is {shown(value)}; expected a whole number, 1 or more")
    return value
