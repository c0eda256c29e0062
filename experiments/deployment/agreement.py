"""Do OpenVINO's benchmark_app and a plain ONNX Runtime session give the times that `maenas benchmark` gives?"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maenas.profiling.backends.model_file import open_model_file, random_images, read_model_file
from maenas.profiling.host import LoadGuard, describe_host, pin, unpin

HERE = Path(__file__).resolve().parent
LIMIT = 0.05
"""Largest relative difference of the medians."""

PLAIN_SESSION = """
import json, sys, time
import numpy as np, onnxruntime
path, images, threads, seconds = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
feeds = {session.get_inputs()[0].name: images}
session.run(None, feeds)
times, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    started = time.perf_counter()
    session.run(None, feeds)
    times.append(1e3 * (time.perf_counter() - started))
print(json.dumps(sorted(times)[len(times) // 2]))
"""


def main() -> None:
    """Measure in turns, print the table and write agreement.csv; exit status 1 where a pair disagrees.

    The table is written after every pair, and pairs that are in it are not measured again.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help=".onnx or .xml files with fixed shapes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--out", type=Path, default=HERE / "agreement.csv", help="remove it to measure all again")
    arguments = parser.parse_args()
    rows = read_rows(arguments.out)
    kept = {(row["model"], row["runtime"], row["threads"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.models:
            images = Path(folder) / "images.npy"
            model = read_model_file(path)
            _, shape = open_model_file(
                path, batch=1, image_size=None, precision="int8" if model.quantised else "fp32", reads_ir=True
            )
            np.save(images, random_images(shape, model.input_dtype))
            for threads in arguments.threads:
                pairs = {"openvino": benchmark_app}
                if path.suffix == ".onnx":
                    pairs["onnxruntime"] = plain_session
                for runtime, other in pairs.items():
                    if (label(path), runtime, threads) not in kept:
                        rows.append(compare(path, images, runtime, other, threads, arguments))
                        write_rows(rows, arguments.out)
    conditions = {"host": describe_host(), "rounds": arguments.rounds, "seconds": arguments.seconds}
    arguments.out.with_suffix(".json").write_text(json.dumps(conditions, indent=2) + "\n", encoding="utf-8")
    sys.exit(report(rows))


def compare(
    path: Path,
    images: Path,
    runtime: str,
    other: Callable[[Path, Path, int, float], float],
    threads: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Both ways in turns; each comes first as often as the other."""
    found: dict[str, list[float]] = {"maenas": [], other.__name__: []}
    busy: list[float] = []
    # The children inherit the cores.
    pin(threads)
    try:
        for number in range(arguments.rounds):
            for name in list(found)[:: 1 if number % 2 == 0 else -1]:
                with LoadGuard() as guard:
                    if name == "maenas":
                        ms = maenas(path, runtime, threads, arguments.seconds, force=arguments.force)
                    else:
                        ms = other(path, images, threads, arguments.seconds)
                found[name].append(ms)
                print(f"{label(path)} {runtime} {threads}t round {number + 1}: {name} {ms:.3f} ms", file=sys.stderr)
                busy.append(guard.steal)
    finally:
        unpin()
    ours, theirs = (statistics.median(values) for values in found.values())
    ratio = theirs / ours
    row = {
        "model": label(path),
        "runtime": runtime,
        "threads": threads,
        "maenas_ms": round(ours, 3),
        "other": other.__name__,
        "other_ms": round(theirs, 3),
        "ratio": round(ratio, 4),
        "agrees": abs(ratio - 1) <= LIMIT,
        "rounds_maenas": " ".join(f"{ms:.3f}" for ms in found["maenas"]),
        "rounds_other": " ".join(f"{ms:.3f}" for ms in found[other.__name__]),
        "steal": round(max(busy), 3),
    }
    print(json.dumps(row), file=sys.stderr)
    return row


def label(path: Path) -> str:
    """A model in the table."""
    return f"{path.parent.name}/{path.name}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What an earlier call measured."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows: list[dict[str, Any]] = list(csv.DictReader(stream))
    for row in rows:
        row |= {"threads": int(row["threads"]), "agrees": row["agrees"] == "True"}
    return rows


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """All pairs so far."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def maenas(path: Path, runtime: str, threads: int, seconds: float, *, force: bool) -> float:
    """Median ms of `maenas benchmark`."""
    command = [sys.executable, "-m", "maenas", "benchmark", str(path), "--backend", runtime, "--json"]
    command += ["--threads", str(threads), "--passes", "1", "--seconds", str(seconds)]
    done = run([*command, "--force"] if force else command)
    return float(json.loads(done)["lines"][0]["p50_ms"])


def benchmark_app(path: Path, images: Path, threads: int, seconds: float) -> float:
    """Median ms of OpenVINO's own tool, with the settings that `maenas benchmark` uses."""
    said = run(
        [
            str(Path(sys.executable).with_name("benchmark_app")),
            *("-m", str(path), "-i", str(images), "-d", "CPU", "-api", "sync", "-hint", "none"),
            *("-nstreams", "1", "-nthreads", str(threads), "-pin", "NO", "-infer_precision", "f32"),
            # It would feed whole numbers to anything that looks like an image.
            *("-ip", "f32", "-t", str(max(1, round(seconds)))),
        ]
    )
    median = re.search(r"Median:\s+([0-9.]+) ms", said)
    if median is None:
        sys.exit(f"benchmark_app names no median:\n{said[-2000:]}")
    return float(median[1])


def plain_session(path: Path, images: Path, threads: int, seconds: float) -> float:
    """Median ms of a session with nothing set but its threads."""
    return float(run([sys.executable, "-c", PLAIN_SESSION, str(path), str(images), str(threads), str(seconds)]))


def run(command: list[str]) -> str:
    """Standard output of a command; its errors end the script."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def report(rows: list[dict[str, Any]]) -> int:
    """Print a table for the README; 1 where a pair disagrees."""
    print("| model | runtime | threads | maenas benchmark, ms | other tool, ms | ratio | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        verdict = "" if row["agrees"] else "differs"
        print(
            f"| {row['model']} | {row['runtime']} | {row['threads']} | {row['maenas_ms']} | "
            f"{row['other']} {row['other_ms']} | {row['ratio']} | {verdict} |"
        )
    return 0 if all(row["agrees"] for row in rows) else 1


if __name__ == "__main__":
    main()
