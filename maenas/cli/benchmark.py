"""`maenas benchmark`: whole-network times of exported files, measured fairly side by side."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from maenas.cli.benchmark_lines import FOREIGN, Line, PinnedEntry, find_models, make_lines, pinned_threads
from maenas.cli.question import parse_image_size
from maenas.cli.targets import check_new_file

if TYPE_CHECKING:
    from pathlib import Path

    from maenas.profiling.harness import Progress
    from maenas.profiling.measurement import Record, Settings

HELP = "time networks side by side on this machine, in the runtimes that execute them"
EXAMPLE = "maenas benchmark damo-yolo-ns.onnx mine.onnx --backend openvino onnxruntime --threads 1 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from maenas.profiling.backends import BACKENDS

    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help=".onnx file, ours or another's, OpenVINO's .xml, an .engine of ours, or the folder of an export",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=list(BACKENDS),
        help="runtimes (default: openvino and onnxruntime, as installed; tensorrt for engines)",
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1], metavar="N", help="threads (default: 1)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="images per run (default: 1)")
    parser.add_argument("--image-size", metavar="N[xM]", help="height x width of images, for files that leave it open")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16"],
        default="fp32",
        help="arithmetic of files that leave it open: quantised ones run in int8, engines as built (default: fp32)",
    )
    parser.add_argument(
        "--nms",
        choices=["both", "with", "without"],
        default="both",
        help="only files of ours with or without NMS inside",
    )
    accuracy = parser.add_argument_group("accuracy beside the times, of our exports")
    accuracy.add_argument("--data", metavar="PATH", help="data.yaml, COCO .json, or folder of a data set")
    accuracy.add_argument("--split", default="val", choices=["train", "val", "test"], help="default: val")
    how = parser.add_argument_group("how to measure")
    how.add_argument("--passes", type=int, default=3, metavar="N", help="rounds over everything (default: 3)")
    how.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="shortest time of each line in each pass (default: 1)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write all figures as JSON, and .csv and .png files beside it")
    output.add_argument("--no-plot", action="store_true", help="write no picture")
    output.add_argument(
        "--force", action="store_true", help="measure on a busy machine too, marked; and overwrite the files of --out"
    )
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table or the JSON object, and write the files.

    Raises:
        ProfileError: A file or option that does not fit.
        DeviceBusyError: Other work spoiled the timings.
        DataError: The data set cannot be used.
        OutputError: A file of --out exists or cannot be written.
    """
    import json
    from datetime import UTC, datetime
    from pathlib import Path

    from maenas.cli.benchmark_report import make_report, print_report
    from maenas.cli.detector import bundled
    from maenas.cli.models import dataset_record
    from maenas.profiling.host import busiest_processes, unpin

    settings = _settings(arguments)
    files = _out_files(arguments)
    models = [model for name in arguments.models for model in find_models(Path(name), arguments.nms)]
    data, split = arguments.data, arguments.split
    dataset = None if data is None else bundled("data.source").load_split(data, split)
    conditions: dict[str, Any] = {
        "image_size": arguments.image_size,
        "data": None if dataset is None else dataset_record(dataset, source=data, split=split),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": _load_average(),
        "busiest_before": busiest_processes(),
    }
    try:
        lines, skipped = make_lines(models, arguments)
        unpin()
        accuracy = {} if dataset is None else _accuracy(lines, dataset, arguments.image_size)
        records = _measure(lines, settings)
    finally:
        unpin()
    conditions["load_average_after"] = _load_average()
    report = make_report(lines, records, settings=settings, skipped=skipped, accuracy=accuracy, conditions=conditions)
    _write(report, files)
    if arguments.json:
        print(json.dumps(report))
    else:
        print_report(report, files)
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    from maenas.errors import ProfileError
    from maenas.profiling.measurement import Settings

    for option, value, low in (
        ("--passes", arguments.passes, 1),
        ("--batch", min(arguments.batch), 1),
        ("--threads", min(arguments.threads), 1),
        ("--seconds", arguments.seconds, 0),
    ):
        if not value >= low:
            raise ProfileError(f"{option} is {value}; expected at least {low}")
    return Settings(
        passes=arguments.passes,
        min_runs=10,
        min_seconds=arguments.seconds,
        max_runs=1000,
        # Where the answer is kept anyway, a second try is enough.
        attempts=2 if arguments.force else 4,
        force=arguments.force,
    )


def _out_files(arguments: argparse.Namespace) -> list[Path]:
    """JSON, CSV and picture, none of which may exist; empty without --out.

    Raises:
        OutputError: One exists.
    """
    from pathlib import Path

    from maenas.errors import OutputError
    from maenas.files import check_place

    if arguments.out is None:
        return []
    path = Path(arguments.out)
    check_place(path)
    if path.suffix in (".csv", ".png"):
        raise OutputError(f"{path}: suffix is {path.suffix}; expected .json, beside which .csv and .png are written")
    files = [path, path.with_suffix(".csv"), *([] if arguments.no_plot else [path.with_suffix(".png")])]
    for file in files:
        check_new_file(file, force=arguments.force)
    return files


def _load_average() -> float | None:
    """Processes that wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _accuracy(lines: list[Line], dataset: Any, size: str | None) -> dict[tuple[str, str], dict[str, Any]]:  # noqa: ANN401
    """AP of our exports by label and runtime, with as many threads as there are cores, at the size that is timed.

    A runtime that only times a file (torch, which takes it apart, TensorRT, which builds an engine of it) has none.
    """
    from maenas.cli.detector import bundled
    from maenas.cli.progress import progress_bars

    found: dict[tuple[str, str], dict[str, Any]] = {}
    readers = bundled("runtimes").READERS
    wanted = dict.fromkeys(
        (line.model.label, line.backend.name)
        for line in lines
        if line.model.form != FOREIGN
        and not line.model.random_weights
        and line.backend.name in readers[line.model.path.suffix]
    )
    with progress_bars() as bars:
        for label, runtime in wanted:
            task = bars.add(f"AP of {label} in {runtime}", total=len(dataset))
            predictor = bundled("load").load_predictor(label, runtime=runtime)
            evaluation = bundled("evaluate").evaluate(
                predictor,
                dataset,
                image_size=None if size is None else parse_image_size(size),
                progress=lambda done, total, task=task: bars.show(task, done, total),
            )
            found[label, runtime] = {"ap": evaluation.metrics.ap, "ap50": evaluation.metrics.ap50}
    return found


def _measure(lines: list[Line], settings: Settings) -> list[Record]:
    import tempfile
    from pathlib import Path

    from maenas.cli.detector import bundled
    from maenas.profiling.backends import open_backend
    from maenas.profiling.backends.reference import write_reference
    from maenas.profiling.harness import run_campaign

    first = min((line.backend for line in lines), key=lambda backend: backend.threads)
    on_cpu = not any(line.backend.accelerator for line in lines)
    with tempfile.TemporaryDirectory(prefix="maenas-") as folder, _progress() as progress:
        write_reference(Path(folder) / "reference.onnx")
        backend = open_backend(first.name, threads=first.threads, bridge=bundled)
        inner = backend.entry(Path(folder) / "reference.onnx", key="reference", layers=False)
        return run_campaign(
            [line.entry for line in lines],
            settings=settings,
            journal=Path(folder) / "journal.jsonl",
            reference=PinnedEntry("reference", inner, pinned_threads(first)),
            progress=progress,
            threads=max(line.backend.threads for line in lines) if on_cpu else None,
        )


@contextmanager
def _progress() -> Iterator[Progress]:
    """How far the timings are."""
    from maenas.cli.progress import progress_bars

    with progress_bars(left=True) as bars:
        task = bars.add("benchmark")

        def show(done: int, total: int, seconds_left: float | None, key: str) -> None:
            left = "" if seconds_left is None else f"about {seconds_left:.0f} s left"
            bars.show(task, done, total, left=left, description=key)

        yield show


def _write(report: dict[str, Any], files: list[Path]) -> None:
    import json

    from maenas.cli.benchmark_plot import report_png
    from maenas.cli.benchmark_report import report_csv
    from maenas.files import make_folder, write_bytes_atomically, write_text_atomically

    for file in files:
        make_folder(file.parent)
        if file.suffix == ".png":
            write_bytes_atomically(file, report_png(report))
        else:
            csv = file.suffix == ".csv"
            write_text_atomically(file, report_csv(report) if csv else json.dumps(report, indent=2) + "\n")
