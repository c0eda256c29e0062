"""`maenas export`: a network as a verified ONNX file."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from maenas.cli.detector import bundled
from maenas.errors import MaenasError, OutputError

if TYPE_CHECKING:
    from rich.table import Table

HELP = "write a checkpoint, or a structure with random weights, as an ONNX file that runtimes were checked with"
EXAMPLE = "maenas export runs/search/structure.json"


class OptionError(MaenasError, ValueError):
    """An option of the verb that is malformed or does not go with the others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint (.safetensors), structure file, or published name")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for model.onnx and model.json (default: runs/export/<name>)"
    )
    form = parser.add_argument_group("what the file holds")
    form.add_argument(
        "--outputs",
        choices=["decoded", "raw", "nms"],
        default="decoded",
        help="scores and boxes of all points; raw logits; or final detections (default: decoded)",
    )
    form.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the weights (default: fp32)")
    form.add_argument("--batch", metavar="N|dynamic", default="1", help="images at once (default: 1)")
    form.add_argument(
        "--image-size", metavar="SIDE|HxW|dynamic", help="multiples of 32 (default: the structure's, e.g. 640x640)"
    )
    nms = parser.add_argument_group("inside the file, with --outputs nms")
    nms.add_argument("--score", type=float, metavar="S", help="keep scores above it (default: 0.05)")
    nms.add_argument("--iou", type=float, metavar="T", help="of boxes that overlap more, keep the best (default: 0.7)")
    nms.add_argument("--max-detections", type=int, metavar="K", help="per image (default: 100)")
    output = parser.add_argument_group("output")
    output.add_argument("--no-verify", action="store_true", help="do not compare runtimes with torch")
    output.add_argument("--force", action="store_true", help="overwrite the files of another export in --out")
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Export, verify, print what was written.

    Raises:
        OptionError: A malformed option, or one of the nms form without it.
        OutputError: The folder holds an export already, or cannot be written.
    """
    import json
    from pathlib import Path

    from maenas.published import PUBLISHED, resolve_structure

    options = {**_shape_options(arguments), **_nms_options(arguments)}
    source: Any = arguments.model
    if not (arguments.model.endswith(".safetensors") or arguments.model.endswith(".pth")):
        source = resolve_structure(arguments.model)
    name = arguments.model.lower() if arguments.model.lower() in PUBLISHED else Path(arguments.model).stem
    path = Path(arguments.out or Path("runs", "export", name)) / "model.onnx"
    for file in (path, path.with_suffix(".json")):
        if file.exists() and not arguments.force:
            raise OutputError(f"{file}: exists already; expected a new folder, or --force")
    export_onnx = bundled("export").export_onnx
    model, has_weights = bundled("load").load_detector(source)
    if not has_weights:
        print(
            "maenas: WARNING: the weights are RANDOM, so the file finds nothing; good for measuring latency only. "
            "Give a checkpoint to export a trained network.",
            file=sys.stderr,
        )
    report = export_onnx(
        bundled("reparam").deploy(model),
        path,
        class_names=model.class_names,
        outputs=arguments.outputs,
        precision=arguments.precision,
        verify=not arguments.no_verify,
        provenance={"source": Path(arguments.model).name, "weights": "checkpoint" if has_weights else "random"},
        **options,
    )
    if arguments.json:
        print(json.dumps(_record(report, has_weights)))
    else:
        _print(report)
    return 0


def _shape_options(arguments: argparse.Namespace) -> dict[str, Any]:
    from maenas.cli.question import parse_image_size

    options: dict[str, Any] = {}
    if arguments.batch == "dynamic":
        options["dynamic_batch"] = True
    elif re.fullmatch(r"[1-9][0-9]{0,5}", arguments.batch):
        options["batch_size"] = int(arguments.batch)
    else:
        raise OptionError(f"--batch is {arguments.batch!r}; expected a whole number, 1 or more, or dynamic")
    if arguments.image_size == "dynamic":
        options["dynamic_size"] = True
    elif arguments.image_size is not None:
        options["image_size"] = parse_image_size(arguments.image_size)
    return options


def _nms_options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "score_threshold": ("--score", arguments.score),
        "iou_threshold": ("--iou", arguments.iou),
        "max_detections": ("--max-detections", arguments.max_detections),
    }
    for option, value in given.values():
        if value is not None and arguments.outputs != "nms":
            raise OptionError(f"{option} is {value:g}; expected it with --outputs nms only")
    return {name: value for name, (_, value) in given.items() if value is not None}


def _record(report: Any, has_weights: bool) -> dict[str, Any]:  # noqa: ANN401
    return {
        "path": str(report.path),
        "card": str(report.card_path),
        "digest": report.card.structure.digest,
        "random_weights": not has_weights,
        "outputs": report.card.form,
        "precision": report.card.precision,
        "size_bytes": report.size_bytes,
        "nodes": dict(report.nodes),
        "verification": [check.to_dict() for check in report.checks],
    }


def _print(report: Any) -> None:  # noqa: ANN401
    from maenas.cli.report import console

    out = console()
    card = report.card
    shape = "x".join("?" if length is None else str(length) for length in card.input.shape)
    nodes = ", ".join(f"{count} {kind}" for kind, count in list(report.nodes.items())[:5])
    out.print(
        f"file:    {report.path}, {report.size_bytes / 1e6:.2f} MB ({card.precision}, opset {card.opset})", markup=False
    )
    out.print(f"input:   {card.input.name} {shape}, RGB in 0 ... 255; outputs: {card.form}", markup=False)
    out.print(f"nodes:   {sum(report.nodes.values())} ({nodes}, ...)", markup=False)
    if not report.checks:
        out.print("checked: NOT VERIFIED (--no-verify)", markup=False)
        return
    out.print(_checks_table(report))
    out.print(f"written: {report.path}, {report.card_path.name}", markup=False)


def _checks_table(report: Any) -> Table:  # noqa: ANN401
    from rich.table import Table

    table = Table(title="largest differences from torch (and what was allowed)", title_justify="left")
    names = list(dict.fromkeys(name for check in report.checks for name in check.differences))
    for heading in ("runtime", "input", *(f"{name}, px" if name == "boxes" else name for name in names)):
        table.add_column(heading, justify="left" if heading in ("runtime", "input") else "right")
    compared = any(check.num_detections is not None for check in report.checks)
    if compared:
        table.add_column("same detections", justify="right")
    for check in report.checks:
        cells = [f"{check.differences[name]:.1e} ({check.tolerances[name]:.0e})" for name in names]
        if compared:
            cells.append(str(check.num_detections))
        table.add_row(f"{check.runtime} {check.version}", "x".join(map(str, check.shape)), *cells)
    return table
