"""How good does a searched detector become from scratch in a given wall time? One data set and seed per call."""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIDE = 320
SEARCH = ("--block", "res", "--variant", "t", "--max-flops", "2.2G", "--max-layers", "17")


def main() -> None:
    """Search, train, evaluate through the command line; add a line to results.csv and keep the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with annotations/ and images/")
    parser.add_argument("--minutes", type=float, required=True, help="wall time of training, evaluation included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", required=True, help="that the run is pinned to, such as 0,1 or 0")
    parser.add_argument("--recipe", default="small-data")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--work", type=Path, required=True, help="runs and checkpoints")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    cores = {int(core) for core in arguments.cores.split(",")}
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cores)))
    name = arguments.data.name
    label = f"{name}-{len(cores)}core-seed{arguments.seed}"
    work = arguments.work / label
    classes = len(json.loads((arguments.data / "annotations" / "instances_train.json").read_text())["categories"])
    maenas("search", *SEARCH, "--image-size", str(SIDE), "--num-classes", str(classes), "--out", str(work / "search"))
    before = cpu_minutes()
    started = time.monotonic()
    trained = maenas(
        "train",
        str(work / "search" / "structure.json"),
        *("--data", str(arguments.data), "--recipe", arguments.recipe, "--seed", str(arguments.seed)),
        *("--max-minutes", str(arguments.minutes), "--workers", str(len(cores)), "--device", "cpu"),
        *("--out", str(work / "train"), "--force", "--json"),
        *(("--set", *arguments.set) if arguments.set else ()),
        log=arguments.out / f"log-{label}.txt",
    )
    minutes = (time.monotonic() - started) / 60
    used = cpu_minutes() - before
    last = work / "train" / "last.safetensors"
    maenas("eval", str(last), "--data", str(arguments.data), "--out", str(work / "eval"), "--force")
    record = json.loads((work / "eval" / "eval.json").read_text(encoding="utf-8"))
    run = json.loads(trained.splitlines()[-1])
    shutil.copyfile(work / "train" / "metrics.csv", arguments.out / f"metrics-{label}.csv")
    shutil.copyfile(work / "search" / "structure.json", arguments.out / f"structure-{name}.json")
    add_line(
        arguments.out / "results.csv",
        {
            "run": label,
            "detector": "maenas res, 2.2 GFLOPs",
            "cores": len(cores),
            "seed": arguments.seed,
            "minutes": round(minutes, 2),
            "cpu_minutes": round(used, 2),
            "epochs": run["epochs"],
            "iterations": run["iterations"],
            **figures(record),
        },
    )


def cpu_minutes() -> float:
    """CPU time that this process and the ended ones it started have used: what others left it of its cores."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent) / 60


def figures(record: dict) -> dict[str, float]:
    """AP and its like of an eval.json, in percent."""
    return {name: round(100 * record["metrics"][name], 2) for name in ("ap", "ap50", "ap75")}


def maenas(*words: str, log: Path | None = None) -> str:
    """Run a verb; its standard output. What it says meanwhile goes into a log."""
    command = [sys.executable, "-m", "maenas", *words]
    with open(log or os.devnull, "w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stream, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {log.read_text() if log else ''}")
    return done.stdout


def add_line(path: Path, line: dict[str, object]) -> None:
    """Replace the line of this run in a CSV."""
    lines = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            lines = {row["run"]: row for row in csv.DictReader(stream)}
    lines[str(line["run"])] = {key: str(value) for key, value in line.items()}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(line), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[key] for key in sorted(lines))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
