"""What does deploying a trained detector change? AP, differences and latency by runtime, precision and suppression."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.boxes import pairwise_iou
from detector.data.source import load_split
from detector.evaluate import Evaluation, evaluate
from detector.load import load_predictor
from detector.types import Detections

HERE = Path(__file__).resolve().parent
PRECISIONS = ("fp32", "fp16", "int8")
FORMATS = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
FORMS = ("none", "end2end")
MAX_DETECTIONS = 100
"""Files with suppression inside give no more, so the others are measured with as many."""

CONFIDENT = 0.3
"""Detections above it are compared one by one."""

ACCURACY = ("ap", "ap50", "confident", "unmatched", "median_box_px", "max_box_px", "max_score")


def main() -> None:
    """Export, evaluate, time; every step whose file is there is skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--work", type=Path, required=True, help="folder of artifacts and intermediate results")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each line in each pass")
    parser.add_argument("--force", action="store_true", help="time on a busy machine too")
    parser.add_argument("--only", choices=["export", "accuracy", "latency", "table"], nargs="+", help="some steps")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    steps = arguments.only or ["export", "accuracy", "latency", "table"]
    arguments.work.mkdir(parents=True, exist_ok=True)
    if "export" in steps:
        export(arguments)
    artifacts = find_artifacts(arguments.work)
    if "accuracy" in steps:
        measure_accuracy(artifacts, arguments)
    if "latency" in steps:
        measure_latency(artifacts, arguments)
    if "table" in steps:
        rows = make_table(artifacts, arguments)
        write_csv(rows, arguments.out)
        write_conditions(arguments)
        print_table(rows, arguments.threads)


def export(arguments: argparse.Namespace) -> None:
    """Every format, precision and form; what cannot be made is noted in a file beside it, with the reason."""
    for precision in PRECISIONS:
        for form in FORMS:
            for name in FORMATS:
                folder = arguments.work / "artifacts" / f"{name}-{precision}-{form}"
                failed = folder.with_name(f"{folder.name}.failed")
                if folder.joinpath("model.json").exists() or failed.exists():
                    continue
                say(f"export {folder.name}")
                command = ["export", str(arguments.checkpoint), "--format", name, "--precision", precision]
                command += ["--nms", form, "--data", arguments.data, "--split", arguments.split, "--json"]
                done = maenas(*command, "--out", str(folder))
                if done.returncode:
                    failed.parent.mkdir(parents=True, exist_ok=True)
                    failed.write_text(done.stderr[-4000:], encoding="utf-8")
                    say(f"{folder.name} cannot be made: {done.stderr.strip().splitlines()[-1]}")


def find_artifacts(work: Path) -> list[Path]:
    """Folders with a card, in the order of the table."""
    names = [f"{name}-{precision}-{form}" for name in FORMATS for precision in PRECISIONS for form in FORMS]
    folders = [work / "artifacts" / name for name in names]
    return [folder for folder in folders if (folder / "model.json").exists()]


def measure_accuracy(artifacts: Sequence[Path], arguments: argparse.Namespace) -> None:
    """AP of torch and of every artifact in every runtime, and how far their detections are from torch's."""
    dataset = load_split(arguments.data, arguments.split)
    reference: Evaluation | None = None
    for artifact, runtime in [(None, "torch"), *((one, name) for one in artifacts for name in FORMATS[kind(one)])]:
        target = accuracy_file(arguments.work, artifact, runtime)
        if target.exists():
            continue
        say(f"accuracy {target.stem}")
        if reference is None:
            reference = evaluate(load_predictor(arguments.checkpoint), dataset, max_detections=MAX_DETECTIONS)
        found = reference
        if artifact is not None:
            found = evaluate(load_predictor(artifact, runtime=runtime), dataset, max_detections=MAX_DETECTIONS)
        record = {
            "ap": found.metrics.ap,
            "ap50": found.metrics.ap50,
            "score_threshold": found.settings.score_threshold,
            "iou_threshold": found.settings.iou_threshold,
            **differences(reference.detections, found.detections),
        }
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        say(json.dumps(record))


def differences(reference: Sequence[Detections], others: Sequence[Detections]) -> dict[str, Any]:
    """Confident detections of two networks, paired by class and overlap (0.5), and how far the pairs are apart."""
    import torch

    boxes, scores, unmatched, count = [], [], 0, 0
    for wanted, found in zip(reference, others, strict=True):
        sure = wanted.filter(score=CONFIDENT)
        overlaps = pairwise_iou(torch.from_numpy(sure.boxes), torch.from_numpy(found.boxes)).numpy()
        overlaps[sure.labels[:, None] != found.labels[None, :]] = 0
        count += len(sure)
        free = np.ones(len(found), bool)
        for index, row in enumerate(overlaps):
            best = int(np.argmax(np.where(free, row, -1))) if free.any() else -1
            if best < 0 or row[best] < 0.5:
                unmatched += 1
                continue
            free[best] = False
            boxes.append(float(np.abs(sure.boxes[index] - found.boxes[best]).max()))
            scores.append(abs(float(sure.scores[index]) - float(found.scores[best])))
    return {
        "confident": count,
        "unmatched": unmatched,
        "max_box_px": max(boxes, default=0.0),
        "median_box_px": float(np.median(boxes)) if boxes else 0.0,
        "max_score": max(scores, default=0.0),
    }


def measure_latency(artifacts: Sequence[Path], arguments: argparse.Namespace) -> None:
    """`maenas benchmark` over all artifacts, and over torch with the plain one, for each number of threads."""
    plain = arguments.work / "artifacts" / "onnx-fp32-none" / "model.onnx"
    for threads in arguments.threads:
        files = [str(main_file(artifact)) for artifact in artifacts]
        # Torch takes the plain ONNX file apart; its line is tied to the others by ONNX Runtime's beside it.
        for name, models, backends in (
            ("bench", files, ["onnxruntime", "openvino"]),
            ("torch", [str(plain)], ["onnxruntime", "torch-cpu"]),
        ):
            target = arguments.work / f"{name}-{threads}.json"
            if target.exists():
                continue
            say(f"latency {target.stem}: {len(models)} files")
            command = ["benchmark", *models, "--backend", *backends, "--threads", str(threads)]
            command += ["--seconds", str(arguments.seconds), "--out", str(target)]
            done = maenas(*command, *(["--force"] if arguments.force else []))
            say(done.stdout)
            if done.returncode:
                sys.exit(done.stderr)


def make_table(artifacts: Sequence[Path], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per artifact and runtime; what was not measured is empty."""
    times: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for threads in arguments.threads:
        for name in ("bench", "torch"):
            file = arguments.work / f"{name}-{threads}.json"
            lines = json.loads(file.read_text(encoding="utf-8"))["lines"] if file.exists() else []
            for line in lines:
                times[name, Path(line["model"]).parent.name, line["backend"], threads] = line
    rows = []
    for artifact, runtime in [(None, "torch"), *((one, name) for one in artifacts for name in FORMATS[kind(one)])]:
        file = accuracy_file(arguments.work, artifact, runtime)
        accuracy = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        form, precision, suppression = ("torch", "fp32", "none") if artifact is None else artifact.name.split("-")
        row: dict[str, Any] = {"file": form, "runtime": runtime, "precision": precision, "nms": suppression}
        row |= {name: accuracy.get(name) for name in ACCURACY}
        row["size_mb"] = None if artifact is None else round(size_of(artifact) / 1e6, 2)
        for threads in arguments.threads:
            # Within one campaign: of files to the plain one in their runtime, of torch to ONNX Runtime.
            if artifact is None:
                line = times.get(("torch", "onnx-fp32-none", "torch-cpu", threads))
                plain = times.get(("torch", "onnx-fp32-none", "onnxruntime", threads))
            else:
                line = times.get(("bench", artifact.name, runtime, threads))
                plain = times.get(("bench", "onnx-fp32-none", runtime, threads))
            row[f"p50_ms_{threads}t"] = line and round(line["p50_ms"], 2)
            row[f"p99_ms_{threads}t"] = line and round(line["p99_ms"], 2)
            row[f"undisturbed_{threads}t"] = line and line["undisturbed"]
            row[f"speedup_{threads}t"] = line and plain and round(plain["p50_ms"] / line["p50_ms"], 3)
        rows.append(row)
    return rows


def kind(artifact: Path) -> str:
    """Format of an artifact, from the name of its folder."""
    return artifact.name.split("-")[0]


def main_file(artifact: Path) -> Path:
    """The file that a runtime opens."""
    return artifact / ("model.onnx" if kind(artifact) == "onnx" else "model.xml")


def size_of(artifact: Path) -> int:
    """Bytes of a model's files, without its card."""
    return sum(file.stat().st_size for file in artifact.iterdir() if file.suffix in (".onnx", ".xml", ".bin"))


def accuracy_file(work: Path, artifact: Path | None, runtime: str) -> Path:
    """Where the AP of an artifact in a runtime is kept."""
    return work / "accuracy" / f"{'checkpoint' if artifact is None else artifact.name}@{runtime}.json"


def write_conditions(arguments: argparse.Namespace) -> None:
    """What the times depend on, as `maenas benchmark` states it, into conditions.json beside the table."""
    reports = [arguments.work / f"bench-{threads}.json" for threads in arguments.threads]
    found = [json.loads(report.read_text(encoding="utf-8")) for report in reports if report.exists()]
    conditions = {
        str(report["lines"][0]["threads"]): {name: report[name] for name in ("host", "versions", "conditions")}
        for report in found
    }
    arguments.out.with_name("conditions.json").write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def maenas(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a verb of the command line."""
    return subprocess.run([sys.executable, "-m", "maenas", *words], capture_output=True, text=True, check=False)


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """All rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_table(rows: Sequence[dict[str, Any]], threads: Sequence[int]) -> None:
    """The table of the README."""
    heads = [
        "file",
        "runtime",
        "precision",
        "NMS",
        "AP",
        "AP50",
        "unmatched",
        "median box, px",
        "max box, px",
        "max score",
    ]
    heads += [f"ms, {count} core{'s' if count > 1 else ''} (x)" for count in threads]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        cells = [row["file"], row["runtime"], row["precision"], row["nms"]]
        cells += ["" if row[name] is None else f"{100 * row[name]:.2f}" for name in ("ap", "ap50")]
        cells += ["" if row["unmatched"] is None else f"{row['unmatched']} of {row['confident']}"]
        cells += [
            "" if row[name] is None else f"{row[name]:.2g}" for name in ("median_box_px", "max_box_px", "max_score")
        ]
        for count in threads:
            ms, speedup = row[f"p50_ms_{count}t"], row[f"speedup_{count}t"]
            star = "" if row[f"undisturbed_{count}t"] in (None, True) else " *"
            cells.append("" if ms is None else f"{ms:.1f} ({speedup or 0:.2f}){star}")
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
