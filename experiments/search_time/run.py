"""How long does a certified search take? Shipped spaces and tables only; run it on a quiet machine.

Each question in processes of its own, REPEATS times: CPU seconds of the call in Python after its imports, from names to
the answer, and wall time and memory of the command line.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from maenas.profiling.host import cpu_model

HERE = Path(__file__).resolve().parent
REPEATS = 7
QUESTIONS = {
    "res, T4, 3.8 ms": "--block res --device t4 --budget 3.8ms",
    "csp, T4, 5.6 ms": "--block csp --device t4 --budget 5.6ms",
    "mob, Intel 8163, 5.05 ms": "--block mob --device intel-8163 --budget 5.05ms",
    "res, T4, 3.8 ms, 9 M parameters, 20 GFLOPs, shortlist of one": (
        "--block res --device t4 --budget 3.8ms --max-params 9M --max-flops 20G --top-k 1"
    ),
}
METRICS = {"--budget": "latency_ms", "--max-params": "params", "--max-flops": "flops"}
FIGURES = ("search in Python, CPU s", "command, wall s", "command, MiB")
CALL = """
import json, sys, time
import maenas.latency.predict, maenas.lowering.detector, maenas.solver.shortlist, maenas.solver.solve
from maenas.budgets import Budget, parse_amount
from maenas.search import resolve_request, search
question = json.loads(sys.argv[1])
began = time.process_time()
budgets = [Budget(metric, parse_amount(metric, text)) for metric, text in question["budgets"].items()]
search(question["space"], budgets=budgets, device=question["device"], top_k=question["top_k"])
print(time.process_time() - began)
"""


def main() -> None:
    """Time all questions in turns."""
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in QUESTIONS}
    for _ in range(REPEATS):
        for name, words in QUESTIONS.items():
            times[name].append(timed(words.split()))
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["question", "what", "median", "min", "max"])
        for name, found in times.items():
            for place, what in enumerate(FIGURES):
                values = [each[place] for each in found]
                writer.writerow([name, what, *(f"{f(values):.2f}" for f in (statistics.median, min, max))])
    conditions = {
        "machine": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_at_end": os.getloadavg()[0],
        "repeats": REPEATS,
    }
    (HERE / "conditions.json").write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")


def timed(words: list[str]) -> tuple[float, float, float]:
    """CPU seconds of the call in Python, and wall seconds and memory in MiB of the command."""
    given = dict(zip(words[::2], words[1::2], strict=True))
    question = {
        "space": given["--block"],
        "device": given["--device"],
        "budgets": {metric: given[option] for option, metric in METRICS.items() if option in given},
        "top_k": int(given.get("--top-k", 5)),
    }
    call = [sys.executable, "-c", CALL, json.dumps(question)]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "maenas", "search", *words, "--out", f"{folder}/run"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return float(done.stdout), seconds, _mib(usage)


def _mib(usage: resource.struct_rusage) -> float:
    """Linux counts kibibytes, macOS bytes."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
