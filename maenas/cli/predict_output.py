"""What `maenas predict` makes of predictions: drawn pictures or a video, lines of JSON, and what is counted."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pathlib import Path

LINES = "predictions.jsonl"
"""One line of JSON per frame of a video, camera or stream, written as frames are done."""


@dataclass(frozen=True, slots=True)
class Output:
    """What is to be made.

    Attributes:
        folder: Where; made once there is something to write.
        draw: Whether images are drawn.
        pictures: Frames become pictures instead of a video.
        overlay: Frames bear frames per second and latencies.
        max_images: Images after which to stop; None: at the source's end.
    """

    folder: Path
    draw: bool = True
    pictures: bool = False
    overlay: bool = False
    max_images: int | None = None


@dataclass(slots=True)
class Tally:
    """What a run has done so far; the lists go into the record as they are.

    Attributes:
        keep: Whether `images` and `detections` are filled; an endless stream would fill the memory.
        num_images: Images that were looked at.
        num_objects: Detections in them.
        last_frame: Number of the last frame; of a live source over all that came.
    """

    keep: bool = True
    images: list[dict[str, Any]] = field(default_factory=list)
    detections: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    files: dict[str, None] = field(default_factory=dict)
    num_images: int = 0
    num_objects: int = 0
    last_frame: int = -1
    fps: float | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    read_ms: float = 0.0
    network_ms: float = 0.0
    draw_ms: float = 0.0
    write_ms: float = 0.0

    @property
    def num_dropped(self) -> int:
        """Frames that came from a live source while no stage had room for them."""
        return self.last_frame + 1 - self.num_images

    def add(self, prediction: Any, drawn: str | None) -> None:  # noqa: ANN401
        """Count an image that was looked at, and what was drawn of it."""
        self.num_images += 1
        self.num_objects += len(prediction.detections)
        self.found.update(prediction.detections.names)
        self.read_ms += prediction.read_ms
        self.network_ms += prediction.network_ms
        if prediction.frame is not None:
            self.last_frame = prediction.frame
        # A stream may give pictures without end.
        if drawn is not None and (self.keep or not self.files):
            self.files[drawn] = None
        if self.keep:
            entry = _image_entry(prediction, number=self.num_images) | ({} if drawn is None else {"drawn": drawn})
            self.images.append(entry)
            self.detections += prediction.detections.to_coco(entry["id"])


def work_through(stream: Iterator[Any], source: Any, output: Output, tally: Tally) -> None:  # noqa: ANN401
    """Take every prediction, draw it, write it, and note it in the tally.

    Network, drawing and writing work at the same time, each on another image. A camera or stream is ended by Ctrl-C,
    after which its files are whole; when it fails after it gave frames, they are too.

    Raises:
        InputError: The source fails.
        OutputError: A result cannot be written.
        KeyboardInterrupt: The run was interrupted, unless the source is live.
    """
    from maenas.cli.detector import bundled
    from maenas.cli.progress import progress_bars

    ahead, meter = bundled("ahead").Ahead, bundled("stream_meter").StreamMeter()
    failures = (KeyboardInterrupt, bundled("errors").InputError)
    problem: BaseException | None = None
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(progress_bars())
        task = bars.add("images" if source.kind in ("image", "collection") else "frames", total=source.length)
        files = stack.enter_context(_Files(source, output))
        draw = _painter(source, output, meter)
        predictions = stack.enter_context(ahead(stream))
        try:
            drawn = stack.enter_context(ahead(map(draw, predictions)))
            for number, (prediction, picture, draw_ms) in enumerate(drawn, start=1):
                bars.show(task, number)
                if prediction.detections is None:
                    tally.skipped.append({"file_name": prediction.name, "reason": prediction.error})
                    continue
                started = time.perf_counter()
                tally.add(prediction, files.write(prediction, picture))
                tally.draw_ms += draw_ms
                tally.write_ms += 1e3 * (time.perf_counter() - started)
                if tally.num_images == output.max_images:
                    break
        except failures as error:
            # Caught here, so that the video of a live source is finished like any other.
            if source.live is None or not tally.num_images:
                raise
            problem = error
    tally.fps, tally.latency_ms = meter.fps(), meter.latencies()
    if problem is not None and not isinstance(problem, KeyboardInterrupt):
        raise problem


def safe_name(text: str) -> str:
    """A text as the name of a file or folder; empty where nothing is left of it."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text).strip("-.")
    return safe.replace("---", "-")


@contextlib.contextmanager
def terminated_like_interrupted(source: Any) -> Iterator[None]:  # noqa: ANN401
    """While it is entered, SIGTERM ends a live source as Ctrl-C does."""
    import signal
    import threading

    if source.live is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _painter(source: Any, output: Output, meter: Any) -> Callable[[Any], tuple[Any, Any, float]]:  # noqa: ANN401
    """Draws a prediction and notes how long it took to come that far: prediction, picture, ms of drawing."""
    from maenas.cli.detector import bundled

    note = bundled("drawing").draw_note if output.draw and output.overlay else None
    frames = source.kind in ("video", "live")

    def draw(prediction: Any) -> tuple[Any, Any, float]:  # noqa: ANN401
        started = time.perf_counter()
        picture = None
        if prediction.detections is not None:
            if output.draw:
                picture = prediction.detections.draw(prediction.image)
            if frames:
                done, taken = time.perf_counter(), prediction.taken_s
                spent_ms = prediction.read_ms + prediction.network_ms + 1e3 * (done - started)
                meter.add(done, spent_ms if taken is None else 1e3 * (done - taken))
                if note is not None:
                    picture = note(picture, meter.line())
        return prediction, picture, 1e3 * (time.perf_counter() - started)

    return draw


class _Files:
    """The files of a run: pictures or a video, and lines of JSON for frames; use it in a `with` block."""

    def __init__(self, source: Any, output: Output) -> None:  # noqa: ANN401
        self._source, self._output = source, output
        self._names: set[str] = set()
        self._stack = contextlib.ExitStack()
        self._lines: TextIO | None = None
        self._video: Any = None
        self._video_size = (0, 0)
        self._video_frames = 0

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        self._stack.__exit__(*error)

    def write(self, prediction: Any, picture: Any) -> str | None:  # noqa: ANN401
        """Write one image; returns the name of the file that it was drawn into."""
        from maenas.files import make_folder

        frames = self._source.kind in ("video", "live")
        if frames or picture is not None:
            make_folder(self._output.folder)
        if frames:
            self._write_line(prediction)
        if picture is None:
            return None
        stem = safe_name(prediction.name) if prediction.path is None else prediction.path.stem
        if frames and not self._output.pictures:
            return self._append(picture, prediction, stem)
        name = new_name(f"{stem}-{prediction.frame:06d}" if frames else stem, ".jpg", self._names)
        _write_jpeg(picture, self._output.folder / name)
        return name

    def _write_line(self, prediction: Any) -> None:  # noqa: ANN401
        if self._lines is None:
            path = self._output.folder / LINES
            self._lines = self._stack.enter_context(path.open("w", encoding="utf-8"))
        entry = {"frame": prediction.frame, "time_s": round(prediction.time_s, 6), **prediction.detections.to_dict()}
        self._lines.write(json.dumps(entry) + "\n")
        # So that who follows the file sees whole frames.
        self._lines.flush()

    def _append(self, picture: Any, prediction: Any, stem: str) -> str:  # noqa: ANN401
        from maenas.cli.detector import bundled

        name, live = f"{stem}.mp4", self._source.live
        fps = self._source.fps if live is None else live.fps
        if self._video is None:
            self._video_size = picture.shape[:2]
            writer = bundled("video").VideoWriter(self._output.folder / name, fps=fps, size=self._video_size)
            self._video = self._stack.enter_context(writer)
        # The file has a steady rate: what a live source dropped is filled with the frame after it.
        due = self._video_frames + 1 if live is None else round(prediction.time_s * fps) + 1
        # A stream that comes back may have another size.
        picture = bundled("images").resize(picture, self._video_size)
        for _ in range(due - self._video_frames):
            self._video.write(picture)
        self._video_frames = max(due, self._video_frames)
        return name


def _image_entry(prediction: Any, *, number: int) -> dict[str, Any]:  # noqa: ANN401
    height, width = prediction.detections.image_size
    entry = {"id": number, "file_name": prediction.name, "height": height, "width": width}
    if prediction.frame is not None:
        entry |= {"frame": prediction.frame, "time_s": round(prediction.time_s, 6)}
    return entry


def new_name(stem: str, suffix: str, taken: set[str]) -> str:
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
