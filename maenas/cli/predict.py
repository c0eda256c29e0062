"""`maenas predict`: find objects in images, folders and videos with any model."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HELP = "find objects in images, folders and videos"
EXAMPLE = "maenas predict best.safetensors photos/ --score 0.4 --out found"
RECORD = "predictions.json"
SCHEMA_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint, exported .onnx or .xml or its folder, or structure")
    parser.add_argument("source", metavar="SOURCE", help="image, video, folder of images, or a quoted pattern")
    what = parser.add_argument_group("what to find")
    what.add_argument("--score", type=float, default=0.25, metavar="S", help="keep scores above it (default: 0.25)")
    what.add_argument("--iou", type=float, default=0.7, metavar="O", help="largest overlap in a class (default: 0.7)")
    what.add_argument("--max-detections", type=int, default=300, metavar="N", help="kept per image (default: 300)")
    what.add_argument("--classes", nargs="+", metavar="NAME", help="only these: names or indices")
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--image-size", metavar="N[xM]", help="input height x width, multiples of 32 (default: the model's)"
    )
    how.add_argument("--batch", type=int, default=8, metavar="N", help="images at once (default: 8)")
    how.add_argument("--runtime", choices=["torch", "onnxruntime", "openvino"], help="default: what fits the model")
    how.add_argument("--device", metavar="NAME", help="cpu or cuda; checkpoints and structures only (default: cpu)")
    how.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    tiles = parser.add_argument_group("small objects in large images")
    tiles.add_argument("--tile", metavar="N[xM]", help="cut images into tiles of this height x width in their pixels")
    tiles.add_argument("--overlap", type=float, metavar="O", help="share that tiles have in common (default: 0.2)")
    tiles.add_argument("--whole", action="store_true", help="also look at the whole image, for what exceeds a tile")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="folder of the results (default: runs/predict/<source>)")
    output.add_argument("--no-images", action="store_true", help="write predictions.json only, draw nothing")
    output.add_argument("--force", action="store_true", help="write into --out although it holds files already")
    output.add_argument("--json", action="store_true", help="print predictions.json to standard output too")


def run(arguments: argparse.Namespace) -> int:
    """Predict, write drawn images or a drawn video and predictions.json, print a summary.

    Broken files among several are listed and do not stop the run. Interrupted, it keeps the images drawn so far and
    writes predictions.json of them with `complete` false; a video is then not written.

    Raises:
        MaenasError: The model, the source or an option cannot be used, no image can be read, or a result not written.
    """
    from maenas.cli.detector import bundled
    from maenas.cli.models import open_model, structure_digest
    from maenas.cli.question import parse_image_size
    from maenas.errors import OutputError

    size = None if arguments.image_size is None else parse_image_size(arguments.image_size)
    tiling = _tiling(arguments)
    source = bundled("sources").open_source(arguments.source)
    out = _out_folder(arguments, source)
    predictor, random = open_model(
        arguments.model, runtime=arguments.runtime, device=arguments.device, threads=arguments.threads
    )
    stream = bundled("predict").predict_stream(
        predictor,
        source,
        score_threshold=arguments.score,
        iou_threshold=arguments.iou,
        max_detections=arguments.max_detections,
        batch_size=arguments.batch,
        image_size=size,
        classes=arguments.classes,
        tiling=tiling,
    )
    if random:
        note = f"{arguments.model} holds no trained weights: they are RANDOM, and so is everything found"
        print(f"maenas: warning: {note}", file=sys.stderr)
    tally = _Tally()
    settings = {
        "score_threshold": arguments.score,
        "iou_threshold": arguments.iou,
        "max_detections": arguments.max_detections,
        "image_size": list(size or predictor.image_size),
        "classes": arguments.classes,
        "tiling": None if tiling is None else asdict(tiling),
    }
    record = {
        "schema_version": SCHEMA_VERSION,
        "model": {"source": arguments.model, "structure": structure_digest(predictor), "random_weights": random},
        "source": arguments.source,
        "settings": settings,
        "complete": False,
        "categories": [{"id": label, "name": name} for label, name in enumerate(predictor.class_names)],
        "images": tally.images,
        "detections": tally.detections,
        "skipped": tally.skipped,
    }
    try:
        _work_through(stream, source, out, tally, draw=not arguments.no_images)
    except (KeyboardInterrupt, OutputError):
        if source.fps is not None:
            for entry in tally.images:
                entry.pop("drawn", None)  # the video was given up
        if tally.images:
            _write_record(record, out)
        raise
    finally:
        # Ends the thread that reads ahead.
        stream.close()
    _refuse_nothing(arguments.source, tally)
    record["complete"] = True
    _write_record(record, out)
    _report(record, tally, out, source, as_json=arguments.json)
    return 0


def _tiling(arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """How images are cut, or None."""
    from maenas.cli.detector import bundled
    from maenas.cli.question import parse_image_size

    if arguments.tile is None:
        for option, given in (("--overlap", arguments.overlap is not None), ("--whole", arguments.whole)):
            if given:
                error: Exception = bundled("errors").InputError(f"{option} is given; expected it with --tile only")
                raise error
        return None
    overlap = {} if arguments.overlap is None else {"overlap": arguments.overlap}
    tile = parse_image_size(arguments.tile, option="--tile")
    return bundled("tiling").Tiling(tile, whole=arguments.whole, **overlap)


@dataclass(slots=True)
class _Tally:
    """What a run has done so far; the lists go into the record as they are."""

    images: list[dict[str, Any]] = field(default_factory=list)
    detections: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    read_ms: float = 0.0
    network_ms: float = 0.0
    write_ms: float = 0.0


def _out_folder(arguments: argparse.Namespace, source: Any) -> Path:  # noqa: ANN401
    """Where results go: a folder that is new or empty, or --force, and never one that images are read from."""
    from pathlib import Path

    from maenas.errors import OutputError

    if arguments.out:
        out = Path(arguments.out)
    else:
        path = Path(arguments.source)
        name = path.resolve().name if path.is_dir() else path.stem
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.")
        out = Path("runs", "predict", safe or "images")
    if out.resolve() in {parent.resolve() for parent in {path.parent for path in source.paths}}:
        raise OutputError(f"{out}: is where the images are read from; expected another --out")
    if out.is_dir() and any(out.iterdir()) and not arguments.force:
        raise OutputError(f"{out}: holds files already; expected a new folder, or --force")
    return out


def _work_through(
    stream: Iterator[Any],
    source: Any,  # noqa: ANN401
    out: Path,
    tally: _Tally,
    *,
    draw: bool,
) -> None:
    """Take every prediction, draw it, and note it in the tally."""
    import contextlib
    import time

    from maenas.cli.models import progress_bars
    from maenas.files import make_folder

    names: set[str] = set()
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(progress_bars())
        task = bars.add_task("images" if source.fps is None else "frames", total=source.length)
        video = None
        for prediction in stream:
            bars.advance(task)
            if prediction.detections is None:
                tally.skipped.append({"file_name": prediction.name, "reason": prediction.error})
                continue
            started = time.perf_counter()
            entry = _image_entry(prediction, number=len(tally.images) + 1)
            if draw:
                make_folder(out)
                drawn = prediction.detections.draw(prediction.image)
                if source.fps is None:
                    entry["drawn"] = _new_name(prediction.path.stem, ".jpg", names)
                    _write_jpeg(drawn, out / entry["drawn"])
                else:
                    entry["drawn"] = f"{prediction.path.stem}.mp4"
                    if video is None:
                        video = stack.enter_context(_video_writer(out / entry["drawn"], source.fps, drawn))
                    video.write(drawn)
            tally.images.append(entry)
            tally.detections += prediction.detections.to_coco(entry["id"])
            tally.found.update(prediction.detections.names)
            tally.read_ms += prediction.read_ms
            tally.network_ms += prediction.network_ms
            tally.write_ms += 1e3 * (time.perf_counter() - started)


def _image_entry(prediction: Any, *, number: int) -> dict[str, Any]:  # noqa: ANN401
    height, width = prediction.detections.image_size
    entry = {"id": number, "file_name": prediction.name, "height": height, "width": width}
    if prediction.frame is not None:
        entry |= {"frame": prediction.frame, "time_s": round(prediction.time_s, 6)}
    return entry


def _new_name(stem: str, suffix: str, taken: set[str]) -> str:
    """A file name that no image before has, also where upper and lower case are one: a.jpg, a-2.jpg, ..."""
    name, number = stem + suffix, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name.casefold())
    return name


def _write_jpeg(pixels: Any, path: Path) -> None:  # noqa: ANN401
    import io

    from maenas.extras import require
    from maenas.files import write_bytes_atomically

    content = io.BytesIO()
    pillow = require("PIL.Image", extra="detector", purpose="writing images")
    pillow.fromarray(pixels).save(content, format="JPEG", quality=92)
    write_bytes_atomically(path, content.getvalue())


def _video_writer(path: Path, fps: float, frame: Any) -> Any:  # noqa: ANN401
    from maenas.cli.detector import bundled

    return bundled("video").VideoWriter(path, fps=fps, size=frame.shape[:2])


def _write_record(record: dict[str, Any], out: Path) -> None:
    import json

    from maenas.files import make_folder, write_text_atomically

    make_folder(out)
    write_text_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")


def _refuse_nothing(source: str, tally: _Tally) -> None:
    from maenas.cli.detector import bundled

    if not tally.images:
        first = f"; first: {tally.skipped[0]['reason']}" if tally.skipped else ""
        error: Exception = bundled("errors").InputError(f"{source}: none of its images can be read{first}")
        raise error


def _report(record: dict[str, Any], tally: _Tally, out: Path, source: Any, *, as_json: bool) -> None:  # noqa: ANN401
    """What was found on standard output; times, which differ from run to run, on standard error."""
    import json

    if as_json:
        print(json.dumps({**record, "out": str(out)}))
    else:
        _print_summary(tally, out, source)
    count = len(tally.images)
    times = (("read and resize", tally.read_ms), ("network", tally.network_ms), ("draw and write", tally.write_ms))
    shares = ", ".join(f"{what} {ms / count:.1f}" for what, ms in times)
    print(f"ms per image: {shares} (reading runs beside the network)", file=sys.stderr)


def _print_summary(tally: _Tally, out: Path, source: Any) -> None:  # noqa: ANN401
    from rich.markup import escape
    from rich.table import Table

    from maenas.cli.report import console

    screen = console()
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("images" if source.fps is None else "frames", str(len(tally.images)))
    table.add_row("objects", str(len(tally.detections)))
    shown = tally.found.most_common(10)
    for name, count in shown:
        table.add_row(f"  {escape(_printable(name))}", str(count))
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
        screen.print(f"skipped: {_printable(entry['reason'])}", markup=False, soft_wrap=True)
    screen.print(f"written: {_printable(str(out))}/{RECORD}" + _drawn(tally), markup=False, soft_wrap=True)


def _drawn(tally: _Tally) -> str:
    files = dict.fromkeys(entry["drawn"] for entry in tally.images if "drawn" in entry)
    if len(files) == 1:
        return f", {_printable(next(iter(files)))}"
    return f", {len(files)} drawn images" if files else ""


def _printable(text: str) -> str:
    """File names may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
