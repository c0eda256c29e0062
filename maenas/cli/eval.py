"""`maenas eval`: how good models are on an annotated data set."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from maenas.cli.eval_report import COMPARISON, RECORD, print_comparison, print_evaluation
from maenas.cli.models import RUNTIMES
from maenas.cli.targets import check_new_folder
from maenas.cli.tiles import add_tile_arguments, parse_tiling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HELP = "measure how good models are on an annotated data set"
EXAMPLE = "maenas eval best.safetensors --data cells/data.yaml --out runs/eval/cells"
PICTURES = {
    "pr_curves.png": "pr_curves_png",
    "confusion.png": "confusion_png",
    "bars.png": "bars_png",
    "worst.png": "worst_png",
}
"""Files and the functions of `detector.eval_plots` that draw them."""
SCHEMA_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="checkpoint, exported .onnx or .xml or its folder; several: compared"
    )
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="data.yaml, COCO .json, folder of a data set, or union file"
    )
    parser.add_argument("--split", default="val", choices=["train", "val", "test"], help="default: val")
    how = parser.add_argument_group("how to measure")
    how.add_argument(
        "--score", type=float, metavar="S", help="keep scores above it (default: the family's, 0.05 or 0.03)"
    )
    how.add_argument("--iou", type=float, metavar="O", help="largest overlap in a class (default: 0.7 or 0.65)")
    how.add_argument("--max-detections", type=int, default=500, metavar="N", help="kept per image (default: 500)")
    how.add_argument("--allow-missing", action="store_true", help="leave out classes that a model does not know")
    how.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    how.add_argument(
        "--image-size", metavar="N[xM]", help="input height x width, multiples of 32 (default: the model's)"
    )
    how.add_argument("--batch", type=int, default=8, metavar="N", help="images at once (default: 8)")
    how.add_argument("--runtime", choices=RUNTIMES, help="default: what fits the model")
    how.add_argument("--device", metavar="NAME", help="cpu or cuda; checkpoints and structures only (default: cpu)")
    how.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    add_tile_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="DIR", help="folder of the results (default: runs/eval/<model>-<data>-<split>)"
    )
    output.add_argument("--no-plots", action="store_true", help="draw no pictures")
    output.add_argument("--force", action="store_true", help="write into --out although it holds files already")
    output.add_argument("--json", action="store_true", help="print the record to standard output")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write eval.json, detections.json and pictures, print tables.

    A model's files are written once it is measured, eval.json last; interrupted, those of the models before are whole.
    A union of data sets is measured source by source, each in a folder of its own.

    Raises:
        MaenasError: A model, the data set or an option cannot be used, or a result not be written.
    """
    import json

    from maenas.cli.detector import bundled
    from maenas.cli.eval_sources import print_sources

    dataset = bundled("data.source").load_split(arguments.data, arguments.split)
    out = _out_folder(arguments)
    folders = _model_folders(arguments.models, out)
    measured = []
    for model, folder in zip(arguments.models, folders, strict=True):
        if dataset.union is None:
            record, analysis = _measure(model, _opened(model, arguments), dataset, arguments)
            _write(record, analysis, folder, plots=not arguments.no_plots)
        else:
            record, analysis = _measure_sources(model, dataset, folder, arguments), None
        measured.append((record, analysis))
    if len(measured) == 1:
        record, analysis = measured[0]
        if arguments.json:
            print(json.dumps({**record, "out": str(out)}))
        elif analysis is None:
            print_sources(record, out)
        else:
            print_evaluation(record, analysis, out, plots=not arguments.no_plots)
        return 0
    comparison = _comparison([record for record, _ in measured], folders)
    _write_json(comparison, out / COMPARISON)
    if arguments.json:
        print(json.dumps({**comparison, "out": str(out)}))
    else:
        print_comparison(comparison, out)
    return 0


def _opened(model: str, arguments: argparse.Namespace) -> tuple[Any, bool]:
    """A predictor, and whether its weights are random."""
    from maenas.cli.models import open_model

    predictor, random = open_model(model, runtime=arguments.runtime, device=arguments.device, threads=arguments.threads)
    if random:
        print(f"maenas: warning: {model} holds no trained weights: they are RANDOM", file=sys.stderr)
    return predictor, random


def _measure_sources(
    model: str,
    dataset: Any,  # noqa: ANN401
    folder: Path,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Measure a model on each source of a union, write a folder for each and the record of all, and return it."""
    from maenas.cli.detector import bundled
    from maenas.cli.eval_sources import sources_record

    opened = _opened(model, arguments)
    (folder / RECORD).unlink(missing_ok=True)
    records = {}
    for truth in bundled("data.union").source_truths(dataset):
        record, analysis = _measure(model, opened, truth.dataset, arguments, counts_as=truth.counts_as)
        _write(record, analysis, folder / truth.name, plots=not arguments.no_plots)
        records[truth.name] = record
    mean = bundled("evaluate_sources").mean_figures({name: one["metrics"] for name, one in records.items()})
    merged = sources_record(records, mean, data_name=dataset.name)
    _write_json(merged, folder / RECORD)
    return merged


def _measure(
    model: str,
    opened: tuple[Any, bool],
    dataset: Any,  # noqa: ANN401
    arguments: argparse.Namespace,
    *,
    counts_as: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Any], Any]:
    """The record of one model on one data set, and its analysis."""
    from maenas.cli.detector import bundled
    from maenas.cli.progress import progress_bars
    from maenas.cli.question import parse_image_size

    predictor, random = opened
    size = None if arguments.image_size is None else parse_image_size(arguments.image_size)
    with progress_bars() as bars:
        task = bars.add(_file_name(model), total=len(dataset))
        evaluation = bundled("evaluate").evaluate(
            predictor,
            dataset,
            score_threshold=arguments.score,
            iou_threshold=arguments.iou,
            max_detections=arguments.max_detections,
            batch_size=arguments.batch,
            image_size=size,
            allow_missing=arguments.allow_missing,
            skip_unreadable=arguments.skip_unreadable,
            counts_as=counts_as,
            tiling=parse_tiling(arguments),
            progress=lambda done, total: bars.show(task, done, total),
        )
    analysis = bundled("evaluation_report").analyse(evaluation)
    return _record(model, predictor, random, analysis, arguments), analysis


def _record(
    model: str,
    predictor: Any,  # noqa: ANN401
    random: bool,
    analysis: Any,  # noqa: ANN401
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    from dataclasses import asdict

    from maenas.cli.models import dataset_record, structure_digest

    evaluation = analysis.evaluation
    runtime = getattr(predictor, "runtime", "torch")
    versions = _versions(runtime, predictor)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "source": model,
            "sha256": None if random and runtime == "torch" else _sha256(model, predictor),
            "structure": structure_digest(predictor),
            "random_weights": random,
            "runtime": runtime,
            "runtime_version": versions[runtime],
        },
        "data": dataset_record(evaluation.dataset, source=arguments.data, split=arguments.split),
        **analysis.to_dict(),
        "timing": {**asdict(evaluation.timing), **_conditions(predictor, arguments.threads)},
        "versions": versions,
    }


def _versions(runtime: str, predictor: Any) -> dict[str, str]:  # noqa: ANN401
    import platform
    from importlib.metadata import version

    import maenas

    packages = ("numpy", "faster-coco-eval", "pillow")
    return {
        "maenas": maenas.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        # A runtime is asked itself: its package has other names too, such as onnxruntime-gpu.
        runtime: getattr(predictor, "session_version", None) or version(runtime),
    }


def _conditions(predictor: Any, threads: int | None) -> dict[str, Any]:  # noqa: ANN401
    """What the times depend on."""
    from maenas.cli.detector import bundled
    from maenas.profiling.host import cpu_model

    device, used, accelerator = bundled("evaluation_report").running_on(predictor)
    return {
        "what": "network and post-processing, per image, as measured beside reading; indicative: see maenas benchmark",
        "device": device,
        "hardware": accelerator or cpu_model(),
        "threads": used or threads,
    }


def _sha256(model: str, predictor: Any) -> str:  # noqa: ANN401
    """Of the file, for OpenVINO's of both files."""
    from pathlib import Path

    from maenas.files import sha256_of

    path = Path(getattr(predictor, "path", model))
    return sha256_of(path, path.with_suffix(".bin")) if path.suffix == ".xml" else sha256_of(path)


def _out_folder(arguments: argparse.Namespace) -> Path:
    """A folder that is new or empty, or --force."""
    from pathlib import Path

    if arguments.out:
        out = Path(arguments.out)
    else:
        model = _file_name(arguments.models[0]) if len(arguments.models) == 1 else "compare"
        out = Path("runs", "eval", _safe(f"{model}-{_data_name(Path(arguments.data))}-{arguments.split}"))
    check_new_folder(out, force=arguments.force)
    return out


def _data_name(path: Path) -> str:
    """The data set's folder, or the file where that says more: `cells` for cells, cells/data.yaml and cells.json."""
    path = path.resolve()
    if path.parent.name == "annotations":
        return path.parent.parent.name
    return path.parent.name if path.stem in ("data", "dataset") else path.stem


def _model_folders(models: Sequence[str], out: Path) -> list[Path]:
    """Where each model's files go: the folder itself for one model, else one in it of each model's name."""
    if len(models) == 1:
        return [out]
    folders: list[Path] = []
    for model in models:
        name, number = _safe(_file_name(model)), 1
        while out / (name if number == 1 else f"{name}-{number}") in folders:
            number += 1
        folders.append(out / (name if number == 1 else f"{name}-{number}"))
    return folders


def _file_name(model: str) -> str:
    from pathlib import Path

    path = Path(model)
    # An export's folder has the name, the file in it is always model.onnx.
    return path.parent.name if path.stem == "model" and path.parent.name else path.stem if path.is_file() else path.name


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "model"


def _write(record: dict[str, Any], analysis: Any, folder: Path, *, plots: bool) -> None:  # noqa: ANN401
    """All files of one model; each is computed before the first is written, and the record comes last."""
    import csv
    import io
    import json

    from maenas.cli.detector import bundled
    from maenas.files import make_folder, write_bytes_atomically

    text = io.StringIO()
    curves = bundled("evaluation_report").precision_curves(analysis.evaluation)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["recall", *curves])
    for place in range(101):
        writer.writerow([f"{place / 100:.2f}", *(f"{curve[place]:.6f}" for curve in curves.values())])
    files = {
        "detections.json": json.dumps(analysis.evaluation.to_coco()).encode(),
        "pr_curves.csv": text.getvalue().encode("utf-8", "backslashreplace"),
    }
    if plots:
        for name, function in PICTURES.items():
            # There is no picture of the worst where there is no error.
            if (picture := getattr(bundled("eval_plots"), function)(analysis)) is not None:
                files[name] = picture
    make_folder(folder)
    # Of an evaluation before: without its record first, and nothing of it stays beside the new files.
    for name in (RECORD, *PICTURES):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_bytes_atomically(folder / name, content)
    _write_json(record, folder / RECORD)


def _write_json(record: dict[str, Any], path: Path) -> None:
    import json

    from maenas.files import make_folder, write_text_atomically

    make_folder(path.parent)
    write_text_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def _comparison(records: Sequence[dict[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    rows = [
        {
            "folder": folder.name,
            "model": record["model"],
            "settings": record["settings"],
            "metrics": record["metrics"],
            "timing": record["timing"],
        }
        for record, folder in zip(records, folders, strict=True)
    ]
    return {"schema_version": SCHEMA_VERSION, "data": records[0]["data"], "models": rows}
