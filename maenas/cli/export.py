"""`maenas export`: a network as artifacts that were compared with torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from maenas.cli.detector import bundled
from maenas.errors import OptionError, OutputError
from maenas.extras import require
from maenas.files import check_place

HELP = "write a checkpoint as ONNX, OpenVINO or TensorRT files that were proved equal to it"
EXAMPLE = "maenas export runs/search/structure.json"
FORMATS = ("onnx", "openvino", "tensorrt")
CALIBRATION_IMAGES = 100
DIFFERENT = 1
"""Exit status where an artifact that differs from torch was kept by force."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint (.safetensors), structure file, or published name")
    parser.add_argument(
        "--out", metavar="DIR", help="folder; of several formats each gets one below it (default: runs/export/<name>)"
    )
    form = parser.add_argument_group("what is written")
    form.add_argument("--format", default="onnx", metavar="F[,F]", help=f"of {', '.join(FORMATS)} (default: onnx)")
    form.add_argument(
        "--precision", choices=["fp32", "fp16", "int8"], default="fp32", help="int8 needs --data (default: fp32)"
    )
    form.add_argument(
        "--nms",
        choices=["none", "end2end"],
        default="none",
        help="scores and boxes of all points, or final detections (default: none)",
    )
    form.add_argument("--dynamic", metavar="AXIS[,AXIS]", help="leave free: batch, size, or both (default: neither)")
    form.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images at once; with --dynamic batch the usual number"
    )
    form.add_argument("--image-size", metavar="N[xM]", help="input height x width (default: the structure's)")
    nms = parser.add_argument_group("inside the file, with --nms end2end")
    nms.add_argument("--score", type=float, metavar="S", help="keep scores above it (default: 0.05)")
    nms.add_argument("--iou", type=float, metavar="T", help="of boxes that overlap more, keep the best (default: 0.7)")
    nms.add_argument("--max-detections", type=int, metavar="K", help="per image (default: 100)")
    proof = parser.add_argument_group("comparison with torch")
    proof.add_argument("--data", metavar="PATH", help="annotated images: compare AP too, and calibrate int8")
    proof.add_argument("--split", choices=["train", "val", "test"], default="val", help="of --data (default: val)")
    proof.add_argument("--max-images", type=int, metavar="N", help="measure AP on N of them (default: all)")
    proof.add_argument(
        "--max-drop", type=float, metavar="P", help="AP points that may be lost (default: 0.1 fp32, 0.3 fp16, 0.5 int8)"
    )
    proof.add_argument("--no-verify", action="store_true", help="do not compare with torch")
    int8 = parser.add_argument_group("with --precision int8")
    int8.add_argument(
        "--int8-layers",
        choices=["auto", "all", "official-t", "official-s", "official-m"],
        help="auto: float32 for sensitive ones until --max-drop holds; all; or as the authors chose (default: auto)",
    )
    int8.add_argument(
        "--calibration",
        choices=["minmax", "entropy", "percentile"],
        help="how ONNX and TensorRT files get their ranges (default: minmax)",
    )
    int8.add_argument(
        "--calibration-images", type=int, metavar="N", help="of the training split, evenly spread (default: 100)"
    )
    int8.add_argument("--accuracy-aware", action="store_true", help="OpenVINO: NNCF's own search instead of auto")
    int8.add_argument("--seven-bits", action="store_true", help="weights in 7 bits, for CPUs without VNNI")
    int8.add_argument("--sensitivity", metavar="DIR", help="write sensitivity-FORMAT.csv and .png of all layers there")
    engine = parser.add_argument_group("TensorRT")
    engine.add_argument(
        "--tensorrt-nms",
        choices=["plugin", "operators"],
        default="plugin",
        help="EfficientNMS, or the standard operator (default: plugin)",
    )
    engine.add_argument("--workspace-mb", type=int, default=4096, metavar="MB", help="GPU memory of a layer")
    engine.add_argument("--timing-cache", metavar="FILE", help="read and written; makes later builds faster")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--force",
        action="store_true",
        help="overwrite another export; keep artifacts that differ from torch (exit status 1)",
    )
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Export, compare, print what was written.

    Raises:
        OptionError: A malformed option, or one that needs another.
        OutputError: The folder holds an export already, or cannot be written.
    """
    import json

    from maenas.cli.export_report import print_reports, record
    from maenas.cli.question import parse_names
    from maenas.published import PUBLISHED, resolve_structure

    formats = parse_names(arguments.format, FORMATS, option="--format")
    options = _options(arguments)
    _check(arguments)
    source: Any = arguments.model
    if not (arguments.model.endswith(".safetensors") or arguments.model.endswith(".pth")):
        source = resolve_structure(arguments.model)
    name = arguments.model.lower() if arguments.model.lower() in PUBLISHED else Path(arguments.model).stem
    export = bundled("export")
    folder = Path(arguments.out or Path("runs", "export", name))
    _check_folder(export.artifact_paths(folder, formats).values(), force=arguments.force)
    model, has_weights = bundled("load").load_detector(source)
    if not has_weights:
        print(
            "maenas: WARNING: the weights are RANDOM, so the artifact finds nothing; good for measuring latency only. "
            "Give a checkpoint to export a trained network.",
            file=sys.stderr,
        )
    reports = export.export_artifacts(
        bundled("reparam").deploy(model),
        folder,
        class_names=model.class_names,
        formats=formats,
        options=bundled("export_graph").ExportOptions(**options),
        checks=_checks(arguments, model.class_names),
        engine=_engine(arguments) if "tensorrt" in formats else None,
        quantiser=_quantiser(arguments) if arguments.precision == "int8" else None,
        provenance={"source": Path(arguments.model).name, "weights": "checkpoint" if has_weights else "random"},
        progress=lambda line: print(f"maenas: {line}", file=sys.stderr),
    )
    for report in reports:
        for line in _warnings(report):
            print(f"maenas: WARNING: {line}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"random_weights": not has_weights, "artifacts": [record(report) for report in reports]}))
    else:
        print_reports(reports)
    return DIFFERENT if any(report.complaints for report in reports) else 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the artifacts hold, as `ExportOptions` names it."""
    from maenas.cli.question import parse_image_size, parse_names

    free = [] if arguments.dynamic is None else parse_names(arguments.dynamic, ("batch", "size"), option="--dynamic")
    options: dict[str, Any] = {
        "outputs": "nms" if arguments.nms == "end2end" else "decoded",
        "precision": arguments.precision,
        "dynamic_batch": "batch" in free,
        "dynamic_size": "size" in free,
        "batch_size": arguments.batch,
    }
    if arguments.image_size is not None:
        options["image_size"] = parse_image_size(arguments.image_size)
    given = {
        "score_threshold": ("--score", arguments.score),
        "iou_threshold": ("--iou", arguments.iou),
        "max_detections": ("--max-detections", arguments.max_detections),
    }
    for option, value in given.values():
        if value is not None and arguments.nms != "end2end":
            raise OptionError(f"{option} is {value:g}; expected it with --nms end2end only")
    return options | {name: value for name, (_, value) in given.items() if value is not None}


def _check(arguments: argparse.Namespace) -> None:
    if arguments.precision == "int8" and arguments.data is None:
        raise OptionError("--precision is int8; expected --data too: images to calibrate with and to measure AP on")
    if arguments.data is not None and arguments.no_verify:
        raise OptionError("--no-verify goes without --data; expected one of them: data are there to verify with")
    for option in ("max_images", "max_drop"):
        value = getattr(arguments, option)
        if value is not None and arguments.data is None:
            raise OptionError(f"--{option.replace('_', '-')} is {value:g}; expected it with --data only")
        if value is not None and not value > 0:
            raise OptionError(f"--{option.replace('_', '-')} is {value:g}; expected a number above 0")
    for option in ("int8_layers", "calibration", "calibration_images", "accuracy_aware", "seven_bits", "sensitivity"):
        if getattr(arguments, option) and arguments.precision != "int8":
            raise OptionError(f"--{option.replace('_', '-')} is given; expected it with --precision int8 only")
    if arguments.sensitivity is not None:
        check_place(Path(arguments.sensitivity, "sensitivity.csv"))
    if "tensorrt" in arguments.format:
        require("tensorrt", extra="tensorrt", purpose="building a TensorRT engine")
    if arguments.accuracy_aware and arguments.format != "openvino":
        raise OptionError(f"--accuracy-aware is given with --format {arguments.format}; expected openvino")
    if arguments.calibration_images is not None and arguments.calibration_images < 1:
        raise OptionError(f"--calibration-images is {arguments.calibration_images}; expected a whole number, 1 or more")


def _check_folder(paths: Any, *, force: bool) -> None:  # noqa: ANN401
    for path in paths:
        for file in (path, path.with_suffix(".json")):
            if file.exists() and not force:
                raise OutputError(f"{file}: exists already; expected a new folder, or --force")


def _checks(arguments: argparse.Namespace, class_names: tuple[str, ...]) -> Any:  # noqa: ANN401
    """How the artifacts are compared with torch."""
    from dataclasses import replace

    data = None
    if arguments.data is not None:
        load = bundled("data.source").load_split
        measured = load(arguments.data, arguments.split, class_names=class_names)
        if arguments.max_images is not None:
            measured = replace(measured, images=measured.images[: arguments.max_images])
        calibration = measured
        if arguments.precision == "int8":
            try:
                calibration = load(arguments.data, "train", class_names=class_names)
            except bundled("errors").DataError as error:
                raise OptionError(f"--precision int8 is calibrated with the train split; {error}") from error
            count = min(arguments.calibration_images or CALIBRATION_IMAGES, len(calibration.images))
            spread = [calibration.images[index * len(calibration.images) // count] for index in range(count)]
            calibration = replace(calibration, images=tuple(spread))
        data = bundled("export_accuracy").ExportData(measured, calibration)
    drop = None if arguments.max_drop is None else arguments.max_drop / 100
    return bundled("export").ExportChecks(
        verify=not arguments.no_verify, data=data, force=arguments.force, max_drop=drop
    )


def _engine(arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """How TensorRT builds."""
    cache = None if arguments.timing_cache is None else Path(arguments.timing_cache)
    return bundled("tensorrt_build").EngineOptions(
        suppression=arguments.tensorrt_nms,
        workspace_mb=arguments.workspace_mb,
        timing_cache=cache,
        usual_batch=arguments.batch,
    )


def _quantiser(arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """What makes int8 of fp32; see `detector.quantise`."""
    quantise = bundled("quantise")
    settings = quantise.QuantiseSettings(
        layers=arguments.int8_layers or "auto",
        method=arguments.calibration or "minmax",
        accuracy_aware=arguments.accuracy_aware,
        seven_bits=arguments.seven_bits,
        sensitivity=None if arguments.sensitivity is None else Path(arguments.sensitivity),
    )
    return quantise.make_quantiser(settings)


def _warnings(report: Any) -> list[str]:  # noqa: ANN401
    """What a user must not miss."""
    kept = [f"{report.path} is WRONG and was kept by --force: {line}" for line in report.complaints]
    return kept + [line for line in (proof.complaint() for proof in report.proofs) if line]
