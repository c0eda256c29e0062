"""What does a training step cost on a CPU? Each network in a process of its own, one step of each in turn."""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BATCH_SIZE = 16
OURS: dict[str, dict[str, Any]] = {
    "DAMO-YOLO-Ns": {"network": "damo-yolo-ns"},
    "DAMO-YOLO-T": {"network": "damo-yolo-t"},
} | {path.stem: {"network": str(path)} for path in sorted((HERE / "structures").glob("*.json"))}
VARIANTS: dict[str, dict[str, Any]] = {
    "images innermost (NCHW)": {"channels_last": False},
    "memory returned": {"keep": False},
    "fused optimiser": {"fused": True},
    "bfloat16": {"bf16": True},
}
YOLO_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "channels innermost, memory kept": {"channels_last": True, "keep": True},
    "channels innermost, memory kept, bfloat16": {"channels_last": True, "keep": True, "bf16": True},
}


@dataclass(frozen=True)
class Entry:
    """One row: a network as it is trained with some options."""

    network: str
    variant: str
    command: list[str]


def entries(yolo_python: str | None, *, threads: int, ablate: list[str]) -> list[Entry]:
    """All rows, YOLO11n first."""

    def row(network: str, variant: str, script: str, python: str, options: dict[str, Any]) -> Entry:
        return Entry(network, variant, [python, str(HERE / script), json.dumps({"threads": threads} | options)])

    rows = []
    if yolo_python:
        yolo = YOLO_VARIANTS.items() if ablate else [("", {})]
        rows += [row("YOLO11n", variant, "yolo_worker.py", yolo_python, options) for variant, options in yolo]
    for name, options in OURS.items():
        if ablate and name not in ablate:
            continue
        variants = {"": {}} | (VARIANTS if ablate else {})
        rows += [
            row(name, variant, "worker.py", sys.executable, options | extra) for variant, extra in variants.items()
        ]
    return rows


def measure(rows: list[Entry], *, rounds: int, clock: str) -> list[dict[str, Any]]:
    """Median and smallest seconds of each row's steps, the rows taking turns."""
    # Started one after the other: warming up side by side would take each other's time.
    workers, params = [], []
    for entry in rows:
        worker = subprocess.Popen(entry.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        workers.append(worker)
        params.append(int(ask(worker)))
    seconds: list[list[float]] = [[] for _ in rows]
    for _ in range(rounds):
        for worker, found in zip(workers, seconds, strict=True):
            found.append(seconds_of(ask(worker, "step"), clock))
    losses = [
        min(seconds_of(ask(worker, "loss"), clock) for _ in range(5)) if entry.network != "YOLO11n" else None
        for entry, worker in zip(rows, workers, strict=True)
    ]
    for worker in workers:
        worker.communicate()
    base = statistics.median(seconds[0])
    return [
        {
            "network": entry.network,
            "variant": entry.variant,
            "params_m": round(count / 1e6, 2),
            "step_ms": round(1000 * statistics.median(found)),
            "fastest_ms": round(1000 * min(found)),
            "images_per_s": round(BATCH_SIZE / statistics.median(found), 1),
            "ratio_to_first_row": round(base / statistics.median(found), 3),
            "loss_share": "" if loss is None else round(loss / statistics.median(found), 3),
        }
        for entry, count, found, loss in zip(rows, params, seconds, losses, strict=True)
    ]


def seconds_of(answer: str, clock: str) -> float:
    """One of the two times in an answer."""
    return float(answer.split()[("wall", "cpu").index(clock)])


def ask(worker: subprocess.Popen[str], line: str | None = None) -> str:
    """Send a line and wait for the answer."""
    assert worker.stdin is not None and worker.stdout is not None
    if line is not None:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise RuntimeError(f"{' '.join(map(str, worker.args))} ended without an answer")  # type: ignore[arg-type]
    return answer


def main() -> None:
    """Write the table and the conditions it was made under."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--yolo-python", help="Python of an environment with Ultralytics; without it, ours alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu, with one thread, where others use the machine too",
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ablate", nargs="*", default=[], metavar="NETWORK", help="time variants of these instead")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    chosen = entries(arguments.yolo_python, threads=arguments.threads, ablate=arguments.ablate)
    rows = measure(chosen, rounds=arguments.rounds, clock=arguments.clock)
    with arguments.out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    conditions = {
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "clock": arguments.clock,
        "torch": version("torch"),
        "batch_size": BATCH_SIZE,
        "rounds": arguments.rounds,
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
