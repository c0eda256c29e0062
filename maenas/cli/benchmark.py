"""`maenas benchmark`: whole-network times of exported files, measured fairly side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from maenas.profiling.backends import Backend, Entry, OpenEntry
    from maenas.profiling.harness import Progress
    from maenas.profiling.measurement import Record, Settings

HELP = "time networks side by side on this machine, in the runtimes that execute them"
EXAMPLE = "maenas benchmark damo-yolo-ns.onnx mine.onnx --backend openvino onnxruntime --threads 1 2"

SCHEMA_VERSION = 1
METADATA_KEY = "maenas"
PERCENTILES = (25, 50, 90, 95, 99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from maenas.profiling.backends import BACKENDS

    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help=".onnx file, ours or another's, or an export's folder"
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=list(BACKENDS),
        help="runtimes (default: openvino and onnxruntime, as installed)",
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1], metavar="N", help="threads (default: 1)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images per run (default: 1)")
    parser.add_argument("--image-size", metavar="HxW", help="size of images, for files that leave it open")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16"],
        default="fp32",
        help="arithmetic of files that are not quantised; those run in int8 (default: fp32)",
    )
    parser.add_argument(
        "--nms",
        choices=["both", "with", "without"],
        default="both",
        help="only files of ours with or without NMS inside",
    )
    parser.add_argument("--passes", type=int, default=3, metavar="N", help="rounds over everything (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="shortest time of each line in each pass (default: 1)"
    )
    parser.add_argument("--out", metavar="FILE", help="write all figures as JSON")
    parser.add_argument(
        "--force", action="store_true", help="measure on a busy machine too, marked; and overwrite the file of --out"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True)
class _Model:
    """A file to be timed.

    Attributes:
        label: As it is shown.
        path: The file.
        form: `raw`, `decoded` or `nms` for exports of ours, else `foreign`.
        quantised: Whether it runs in whole numbers.
        digest: Of the structure, for exports of ours.
        sha256: Of the file.
    """

    label: str
    path: Path
    form: str
    quantised: bool
    digest: str | None
    sha256: str


@dataclass(frozen=True)
class _Line:
    """One row of the table: a file in a runtime with so many threads."""

    model: _Model
    backend: Backend
    entry: _PinnedEntry


@dataclass(frozen=True)
class _PinnedEntry:
    """An entry whose threads stay on as many cores while it is open; None: on an accelerator, they go anywhere."""

    key: str
    inner: Entry
    threads: int | None

    def open(self) -> AbstractContextManager[OpenEntry]:
        """Pin first: threads that the runtime starts inherit it."""
        from maenas.profiling.host import pin, unpin

        if self.threads is None:
            unpin()
        else:
            pin(self.threads)
        return self.inner.open()


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table or the JSON object, and write the file.

    Raises:
        ProfileError: A file or option that does not fit.
        DeviceBusyError: Other work spoiled the timings.
        OutputError: The file of --out exists or cannot be written.
    """
    import json
    from pathlib import Path

    from maenas.errors import OutputError
    from maenas.files import write_text_atomically
    from maenas.profiling.host import unpin

    settings = _settings(arguments)
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and out.exists() and not arguments.force:
        raise OutputError(f"{out}: exists already; expected a new file, or --force")
    models = [model for name in arguments.models for model in _models(Path(name), arguments.nms)]
    try:
        lines = _lines(models, arguments)
        records = _measure(lines, settings)
    finally:
        unpin()
    report = _report(lines, records, settings, arguments)
    if out is not None:
        write_text_atomically(out, json.dumps(report, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(report))
    else:
        _print(report, out)
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    from maenas.errors import ProfileError
    from maenas.profiling.measurement import Settings

    for option, value, low in (
        ("--passes", arguments.passes, 1),
        ("--batch", arguments.batch, 1),
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


def _models(path: Path, nms: str) -> list[_Model]:
    """The file, or the files of an export's folder, that --nms asks for.

    Raises:
        ProfileError: There is none.
    """
    from maenas.errors import ProfileError

    files = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    if not files:
        raise ProfileError(f"{path}: holds no .onnx file; expected the folder of an export")
    wanted = {"both": (True, False), "with": (True,), "without": (False,)}[nms]
    models = [model for model in map(_model, files) if (model.form == "nms") in wanted]
    if not models:
        found = "without" if nms == "with" else "with"
        raise ProfileError(f"{path}: has only networks {found} NMS inside; expected --nms {found} or both")
    return models


def _model(path: Path) -> _Model:
    import hashlib
    import json

    from maenas.profiling.backends.model_file import read_model_file

    file = read_model_file(path)
    try:
        card = json.loads(file.metadata.get(METADATA_KEY, "null"))
    except ValueError:
        card = None
    ours = card if isinstance(card, dict) else {}
    digest = ours.get("digest")
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return _Model(
        label=str(path),
        path=path,
        form=str(ours.get("form", "foreign")),
        quantised=file.quantised,
        digest=None if digest is None else str(digest),
        sha256=sha256,
    )


def _lines(models: list[_Model], arguments: argparse.Namespace) -> list[_Line]:
    """Every file in every runtime with every number of threads."""
    from maenas.cli.detector import bundled
    from maenas.profiling.backends import open_backend
    from maenas.profiling.host import pin

    size = None if arguments.image_size is None else _image_size(arguments.image_size)
    lines: list[_Line] = []
    names = arguments.backend or _installed()
    thread_counts = list(dict.fromkeys(arguments.threads))
    for threads in thread_counts:
        # Asks for the cores now, not after minutes of measuring.
        pin(threads)
    precisions = {model.quantised: "int8" if model.quantised else arguments.precision for model in models}
    backends = {
        quantised: [
            open_backend(name, threads=threads, precision=precision, batch=arguments.batch, bridge=bundled)
            for name in dict.fromkeys(names)
            for threads in thread_counts
        ]
        for quantised, precision in precisions.items()
    }
    for model in models:
        for backend in backends[model.quantised]:
            key = f"{model.label} in {backend.name} with {backend.threads} threads"
            entry = backend.entry(model.path, key=key, layers=False, image_size=size)
            lines.append(_Line(model, backend, _PinnedEntry(key, entry, _pinned_threads(backend))))
    return lines


def _pinned_threads(backend: Backend) -> int | None:
    return None if backend.accelerator else backend.threads


def _installed() -> list[str]:
    import importlib.util

    from maenas.errors import ProfileError

    found = [name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name) is not None]
    if not found:
        raise ProfileError(
            "no runtime is installed; expected OpenVINO or ONNX Runtime: pip install 'maenas[profile,openvino]'"
        )
    return found


def _image_size(text: str) -> tuple[int, int]:
    from maenas.errors import ProfileError

    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0):
        raise ProfileError(f"--image-size is {text!r}; expected height x width, such as 416x416")
    return int(height), int(width)


def _measure(lines: list[_Line], settings: Settings) -> list[Record]:
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
            reference=_PinnedEntry("reference", inner, _pinned_threads(first)),
            progress=progress,
            threads=max(line.backend.threads for line in lines) if on_cpu else None,
        )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("benchmark", total=None, left="")

        def show(done: int, total: int, seconds_left: float | None, key: str) -> None:
            left = "" if seconds_left is None else f"about {seconds_left:.0f} s left"
            bars.update(task, completed=done, total=total, left=left, description=key)

        yield show


def _report(
    lines: list[_Line], records: list[Record], settings: Settings, arguments: argparse.Namespace
) -> dict[str, Any]:
    from maenas import __version__
    from maenas.profiling.host import describe_host, fingerprint
    from maenas.profiling.measurement import summarize

    host = describe_host()
    stats = summarize(records)
    rows: list[dict[str, Any]] = []
    for line in lines:
        kept = [record for record in records if record.key == line.entry.key]
        summary = stats[line.entry.key]
        times = _times([ms for record in kept for ms in record.ms])
        rows.append(
            {
                "model": line.model.label,
                "form": line.model.form,
                "digest": line.model.digest,
                "sha256": line.model.sha256,
                "backend": line.backend.name,
                "backend_version": line.backend.version,
                "device": line.backend.device_name,
                "precision": line.backend.precision,
                "threads": line.backend.threads,
                "batch": line.backend.batch,
                **times,
                "images_per_second": 1000 * line.backend.batch / times["p50_ms"],
                "cpu_ms": sum(record.cpu_ms for record in kept) / len(kept),
                "runs": summary.n,
                "passes": summary.passes,
                "rel_spread": summary.rel_spread,
                "undisturbed": summary.undisturbed,
                "disturbances": [record.reason for record in kept if record.reason],
            }
        )
    for row in rows:
        row["ratio"] = row["p50_ms"] / rows[0]["p50_ms"]
    return {
        "schema_version": SCHEMA_VERSION,
        "maenas_version": __version__,
        "host": {**host, "fingerprint": fingerprint(host)},
        "conditions": {"image_size": arguments.image_size, "settings": asdict(settings)},
        "lines": rows,
    }


def _times(ms: list[float]) -> dict[str, float]:
    import numpy as np

    quantiles = np.percentile(ms, PERCENTILES)
    return {
        "min_ms": min(ms),
        "mean_ms": sum(ms) / len(ms),
        "std_ms": float(np.std(ms)),
        **{f"p{percent}_ms": float(value) for percent, value in zip(PERCENTILES, quantiles, strict=True)},
    }


def _print(report: dict[str, Any], out: Path | None) -> None:
    from pathlib import Path

    from rich.markup import escape
    from rich.table import Table

    from maenas.cli.report import console

    host = report["host"]
    devices = {row["device"]: None for row in report["lines"] if row["device"] != host["cpu"]}
    cores = f"{host['cpu']}, {host['physical_cores']} cores"
    title = f"{', '.join([*devices, cores])}; ms per run over {report['lines'][0]['passes']} passes"
    table = Table(title=escape(title), title_justify="left")
    for heading in ("model", "form", "runtime"):
        table.add_column(heading, overflow="fold")
    for heading in ("threads", "batch", "p50", "p90", "p95", "p99", "min", "images/s", "ratio"):
        table.add_column(heading, justify="right")
    names = {Path(row["model"]).name for row in report["lines"]}
    unique = len(names) == len({row["model"] for row in report["lines"]})
    for row in report["lines"]:
        mark = "" if row["undisturbed"] else " *"
        table.add_row(
            escape(Path(row["model"]).name if unique else row["model"]),
            row["form"],
            f"{row['backend']} {row['backend_version']}"
            + ("" if row["precision"] == "fp32" else f" {row['precision']}"),
            str(row["threads"]),
            str(row["batch"]),
            *(f"{row[f'{name}_ms']:.2f}" for name in ("p50", "p90", "p95", "p99", "min")),
            f"{row['images_per_second']:.1f}",
            f"{row['ratio']:.2f}{mark}",
        )
    target = console()
    target.print(table)
    if not all(row["undisturbed"] for row in report["lines"]):
        target.print("* disturbed by other work: kept because of --force")
    if out is not None:
        target.print(f"written to {escape(str(out))}", soft_wrap=True)
