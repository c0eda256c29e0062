"""Latency and AP of detectors trained the same way in the same time on one core, measured on this machine."""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from maenas.structure import load_structure, save_structure

HERE = Path(__file__).resolve().parent
SIDE = 320
FIELDS = ("name", "seed", "minutes", "cpu_minutes", "epochs", "iterations", "ap", "ap50", "ap75", "digest")


def main() -> None:
    """One of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    part = verbs.add_parser("train", help="train, evaluate and export one detector; goes on where it was stopped")
    part.add_argument("name", help="of the detector in tables")
    part.add_argument("model", help="structure file or published name")
    part.add_argument("--data", type=Path, required=True)
    part.add_argument("--minutes", type=float, default=19.4, help="wall time of training, evaluations included")
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--core", type=int, required=True, help="that everything is pinned to")
    part.add_argument("--work", type=Path, required=True)
    part.add_argument("--out", type=Path, default=HERE)
    part = verbs.add_parser("measure", help="time all trained detectors and further ONNX files, on an idle machine")
    part.add_argument("files", nargs="*", type=Path, help="ONNX files of others")
    part.add_argument("--work", type=Path, required=True)
    part.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    if arguments.verb == "train":
        train(arguments)
    else:
        exports = sorted(arguments.work.glob("*/onnx/model.onnx"))
        maenas(
            *("benchmark", *map(str, [*exports, *arguments.files]), "--backend", "openvino", "onnxruntime"),
            *("--threads", "1", "--no-plot", "--force", "--out", str(arguments.out / "latency.json")),
        )


def train(arguments: argparse.Namespace) -> None:
    """Train for a wall time, evaluate the last averaged weights, export them; a line of results.csv."""
    os.sched_setaffinity(0, {arguments.core})
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = arguments.work / f"{arguments.name}-seed{arguments.seed}"
    run, data = folder / "train", ("--data", str(arguments.data))
    before = cpu_minutes()
    if not (run / "result.json").exists():
        goes_on = (run / "state.safetensors").exists()
        maenas(
            *("train", arguments.model, *data, "--recipe", "small-data", "--image-size", str(SIDE)),
            *("--max-minutes", str(arguments.minutes), "--seed", str(arguments.seed), "--workers", "1"),
            *("--device", "cpu", "--out", str(run), "--resume" if goes_on else "--force"),
            log=arguments.out / f"log-{folder.name}.txt",
        )
    used = cpu_minutes() - before
    last = str(run / "last.safetensors")
    maenas("eval", last, *data, "--out", str(folder / "eval"), "--force")
    maenas("export", last, "--format", "onnx", *data, "--out", str(folder / "onnx"), "--force")
    structure = load_structure(run / "structure.json")
    save_structure(replace(structure, name=arguments.name), folder / "structure.json")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "eval" / "eval.json").read_text(encoding="utf-8"))
    add_line(
        arguments.out / "results.csv",
        {
            "name": arguments.name,
            "seed": arguments.seed,
            "minutes": f"{result['seconds'] / 60:.2f}",
            "cpu_minutes": f"{used:.2f}",
            "epochs": result["epochs"],
            "iterations": result["iterations"],
            **{name: f"{100 * record['metrics'][name]:.2f}" for name in ("ap", "ap50", "ap75")},
            "digest": record["model"]["structure"],
        },
    )


def cpu_minutes() -> float:
    """CPU time of the ended processes that this one started: what others left it of its core."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (spent.ru_utime + spent.ru_stime) / 60


def maenas(*words: str, log: Path | None = None) -> None:
    """Run a verb; what it says goes into a log."""
    command = [sys.executable, "-m", "maenas", *words]
    with open(log or os.devnull, "a", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {log.read_text()[-2000:] if log else ''}")


def add_line(path: Path, line: dict[str, object]) -> None:
    """Replace the line of a detector and seed."""
    lines = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            lines = {(row["name"], row["seed"]): row for row in csv.DictReader(stream)}
    lines[str(line["name"]), str(line["seed"])] = {key: str(value) for key, value in line.items()}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[key] for key in sorted(lines))
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
