"""`maenas predict`: find objects in images, folders and videos with any model."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from maenas.cli.models import RUNTIMES
from maenas.cli.predict_output import LINES, Output, Tally, safe_name, terminated_like_interrupted, work_through
from maenas.cli.targets import check_new_folder
from maenas.cli.tiles import add_tile_arguments, parse_tiling

if TYPE_CHECKING:
    from pathlib import Path

HELP = "find objects in images, folders, videos, cameras and streams"
EXAMPLE = "maenas predict best.safetensors photos/ --score 0.4 --out found"
RECORD = "predictions.json"
SCHEMA_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint, exported file or its folder, or structure")
    parser.add_argument("source", metavar="SOURCE", help="image, video, folder, quoted pattern, camera's number or URL")
    what = parser.add_argument_group("what to find")
    what.add_argument("--score", type=float, metavar="S", help="keep scores above it (default: 0.25)")
    what.add_argument("--iou", type=float, metavar="O", help="largest overlap in a class (default: 0.7)")
    what.add_argument("--max-detections", type=int, default=300, metavar="N", help="kept per image (default: 300)")
    what.add_argument("--classes", nargs="+", metavar="NAME", help="only these: names or indices")
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--image-size", metavar="N[xM]", help="input height x width, multiples of 32 (default: the model's)"
    )
    how.add_argument("--batch", type=int, default=8, metavar="N", help="images at once (default: 8)")
    how.add_argument("--runtime", choices=RUNTIMES, help="default: what fits the model")
    how.add_argument("--device", metavar="NAME", help="cpu or cuda; checkpoints and structures only (default: cpu)")
    how.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    add_tile_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="folder of the results (default: runs/predict/<source>)")
    output.add_argument("--no-images", action="store_true", help="draw nothing")
    output.add_argument("--pictures", action="store_true", help="draw frames as pictures, not as a video")
    output.add_argument("--overlay", action="store_true", help="write frames per second and latencies on the frames")
    output.add_argument("--max-images", type=int, metavar="N", help="stop after so many images or frames")
    output.add_argument("--force", action="store_true", help="write into --out although it holds files already")
    output.add_argument("--json", action="store_true", help="print predictions.json to standard output too")


def run(arguments: argparse.Namespace) -> int:
    """Predict, write drawn images or a drawn video and predictions.json, print a summary.

    Broken files among several are listed and do not stop the run. Interrupted, it keeps the images drawn so far and
    writes predictions.json of them with `complete` false; a video is then not written. A camera or stream is ended by
    an interruption, which leaves everything whole; the detections of its frames are in predictions.jsonl only.

    Raises:
        MaenasError: The model, the source or an option cannot be used, no image can be read, or a result not written.
    """
    from maenas.cli.detector import bundled
    from maenas.cli.models import open_model, structure_digest
    from maenas.cli.question import parse_image_size
    from maenas.errors import MaenasError

    size = None if arguments.image_size is None else parse_image_size(arguments.image_size)
    if arguments.max_images is not None:
        bundled("predict").check_range("max_images", arguments.max_images, 1, None)
    tiling = parse_tiling(arguments)
    source = bundled("sources").open_source(arguments.source)
    out = _out_folder(arguments, source)
    predictor, random = open_model(
        arguments.model, runtime=arguments.runtime, device=arguments.device, threads=arguments.threads
    )
    settings = _settings(arguments, predictor, size=size, tiling=tiling)
    stream = bundled("predict").predict_stream(
        predictor,
        source,
        score_threshold=settings["score_threshold"],
        iou_threshold=settings["iou_threshold"],
        max_detections=arguments.max_detections,
        batch_size=arguments.batch,
        image_size=size,
        classes=arguments.classes,
        tiling=tiling,
    )
    if random:
        note = f"{arguments.model} holds no trained weights: they are RANDOM, and so is everything found"
        print(f"maenas: warning: {note}", file=sys.stderr)
    tally = Tally(keep=source.live is None)
    output = Output(
        folder=out,
        draw=not arguments.no_images,
        pictures=arguments.pictures,
        overlay=arguments.overlay,
        max_images=arguments.max_images,
    )
    record = {
        "schema_version": SCHEMA_VERSION,
        "model": {"source": arguments.model, "structure": structure_digest(predictor), "random_weights": random},
        "source": source.name,
        "settings": settings,
        "complete": False,
        "categories": [{"id": label, "name": name} for label, name in enumerate(predictor.class_names)],
        "images": tally.images,
        "detections": tally.detections,
        "skipped": tally.skipped,
    }
    try:
        with terminated_like_interrupted(source):
            work_through(stream, source, output, tally)
    except (KeyboardInterrupt, MaenasError):
        _keep_what_was_found(record, tally, output, source)
        raise
    _refuse_nothing(source.name, tally)
    record |= {"complete": True, **_stream_facts(tally, source)}
    _write_record(record, out)
    _report(record, tally, output, source, as_json=arguments.json)
    return 0


def _settings(
    arguments: argparse.Namespace,
    predictor: Any,  # noqa: ANN401
    *,
    size: tuple[int, int] | None,
    tiling: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """How the network is asked: what the user says, else what is usual for it."""
    from maenas.cli.detector import bundled

    score, iou = bundled("predict").usual_thresholds(predictor)
    return {
        "score_threshold": score if arguments.score is None else arguments.score,
        "iou_threshold": iou if arguments.iou is None else arguments.iou,
        "max_detections": arguments.max_detections,
        "image_size": list(size or predictor.image_size),
        "classes": arguments.classes,
        "tiling": None if tiling is None else asdict(tiling),
    }


def _out_folder(arguments: argparse.Namespace, source: Any) -> Path:  # noqa: ANN401
    """Where results go: a folder that is new or empty, or --force, and never one that images are read from."""
    from pathlib import Path

    from maenas.errors import OutputError

    if arguments.out:
        out = Path(arguments.out)
    else:
        path = Path(arguments.source)
        name = path.resolve().name if path.is_dir() else path.stem
        # A URL's own name has no password in it.
        name = source.name if source.live is not None or "://" in arguments.source else name
        out = Path("runs", "predict", safe_name(name) or "images")
    if out.resolve() in {parent.resolve() for parent in {path.parent for path in source.paths}}:
        raise OutputError(f"{out}: is where the images are read from; expected another --out")
    check_new_folder(out, force=arguments.force)
    return out


def _keep_what_was_found(record: dict[str, Any], tally: Tally, output: Output, source: Any) -> None:  # noqa: ANN401
    """Record the images before an interruption or an error; a video that was begun is given up."""
    if source.fps is not None and not output.pictures:
        for entry in tally.images:
            entry.pop("drawn", None)
    if tally.num_images:
        _write_record(record | _stream_facts(tally, source), output.folder)


def _write_record(record: dict[str, Any], out: Path) -> None:
    import json

    from maenas.files import make_folder, write_text_atomically

    make_folder(out)
    write_text_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")


def _stream_facts(tally: Tally, source: Any) -> dict[str, Any]:  # noqa: ANN401
    """What the record says of a live source; of files it says nothing that differs from run to run."""
    if source.live is None:
        return {}
    return {
        "stream": {
            "frames": tally.num_images,
            "dropped": tally.num_dropped,
            "fps": tally.fps,
            "latency_ms": tally.latency_ms,
            "lines": LINES,
        }
    }


def _refuse_nothing(source: str, tally: Tally) -> None:
    from maenas.cli.detector import bundled

    if not tally.num_images:
        first = f"; first: {tally.skipped[0]['reason']}" if tally.skipped else ""
        error: Exception = bundled("errors").InputError(f"{source}: none of its images can be read{first}")
        raise error


def _report(
    record: dict[str, Any],
    tally: Tally,
    output: Output,
    source: Any,  # noqa: ANN401
    *,
    as_json: bool,
) -> None:
    """What was found on standard output; times, which differ from run to run, on standard error."""
    import json

    if as_json:
        print(json.dumps({**record, "out": str(output.folder)}))
    else:
        _print_summary(tally, output.folder, source)
    count = tally.num_images
    reading = "read and resize" if source.live is None else "wait and resize"
    times = (
        (reading, tally.read_ms),
        ("network", tally.network_ms),
        ("draw", tally.draw_ms),
        ("write", tally.write_ms),
    )
    shares = ", ".join(f"{what} {ms / count:.1f}" for what, ms in times)
    print(f"ms per image: {shares} (all at the same time, each for another image)", file=sys.stderr)
    if source.kind == "video" and source.length and count < 0.9 * source.length and count != output.max_images:
        print(
            f"maenas: warning: {source.name}: {count} frames could be read; the file states {source.length}",
            file=sys.stderr,
        )


def _print_summary(tally: Tally, out: Path, source: Any) -> None:  # noqa: ANN401
    from rich.markup import escape
    from rich.table import Table

    from maenas.cli.report import console, printable

    screen = console()
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    frames = source.kind in ("video", "live")
    table.add_row("frames" if frames else "images", str(tally.num_images))
    if source.live is not None:
        table.add_row("frames dropped", str(tally.num_dropped))
    if frames and tally.fps is not None:
        table.add_row("frames per second", f"{tally.fps:.1f}")
    if source.live is not None:
        table.add_row("latency ms", ", ".join(f"{name} {ms:.0f}" for name, ms in tally.latency_ms.items()))
    table.add_row("objects", str(tally.num_objects))
    shown = tally.found.most_common(10)
    for name, count in shown:
        table.add_row(f"  {escape(printable(name))}", str(count))
    if len(tally.found) > len(shown):
        table.add_row(
            f"  {len(tally.found) - len(shown)} more classes", str(tally.found.total() - sum(dict(shown).values()))
        )
    if tally.skipped:
        table.add_row("broken files", str(len(tally.skipped)))
    if source.num_ignored:
        table.add_row("other files, ignored", str(source.num_ignored))
    screen.print(table)
    for entry in tally.skipped:
        screen.print(f"skipped: {printable(entry['reason'])}", markup=False, soft_wrap=True)
    screen.print(f"written: {printable(str(out))}/{RECORD}" + _drawn(tally), markup=False, soft_wrap=True)


def _drawn(tally: Tally) -> str:
    from maenas.cli.report import printable

    lines = f", {LINES}" if tally.last_frame >= 0 else ""
    if len(tally.files) == 1:
        return f"{lines}, {printable(next(iter(tally.files)))}"
    return f"{lines}, {len(tally.files)} drawn images" if tally.files else lines
