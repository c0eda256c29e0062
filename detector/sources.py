"""Where images come from: files, folders, patterns, lists, pictures in memory, videos, cameras, network streams."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .images import IMAGE_SUFFIXES, as_rgb, read_image
from .live import Live, is_recording, live_address
from .video import VIDEO_SUFFIXES, VideoReader


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One image of a source, or why there is none.

    Attributes:
        name: Path as text, or `image 3` for the third of a list of pictures.
        image: (H, W, 3) uint8 RGB, upright; None where `error` says why.
        error: What is wrong with it, in one line.
        path: The file; None for a picture in memory.
        frame: Number of a video's frame, counted from 0; of a live source over all that came, so that gaps tell what
            was dropped.
        time_s: Its time from the start, in seconds: by the file's frame rate, of a live source by the clock.
        taken_s: When the frame came from a live source, by `time.perf_counter`.
    """

    name: str
    image: NDArray[np.uint8] | None
    error: str | None = None
    path: Path | None = None
    frame: int | None = None
    time_s: float | None = None
    taken_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Images to be read when they are asked for; iterating gives `Item`s, in a fixed order.

    Attributes:
        kind: One image, several, a video, or a camera or stream that does not wait for its reader.
        name: What was given, as text; of a URL without user and password.
        length: How many items there are; None if unknown. A video's may be an estimate.
        num_ignored: Files of a folder or pattern that are no images by their suffix.
        paths: Files that are read.
        fps: Frame rate of a video; None for a live source, whose own is in `live` once it is open.
        live: The camera or stream.
    """

    kind: Literal["image", "collection", "video", "live"]
    name: str
    length: int | None
    items: Callable[[], Iterator[Item]] = field(repr=False)
    num_ignored: int = 0
    paths: tuple[Path, ...] = ()
    fps: float | None = None
    live: Live | None = None

    def __iter__(self) -> Iterator[Item]:
        return self.items()


def open_source(source: Any) -> Source:  # noqa: ANN401
    """Find out what a source is, without reading images yet.

    Args:
        source: One of
            - path of an image, whatever its suffix;
            - folder: its own images, not those of folders in it, in natural order (2 before 10), without hidden files;
            - pattern such as `photos/*.jpg`; `**` goes into folders;
            - path of a video, known by its suffix, or the URL of one;
            - number of a camera, as an integer or as text where no file is called so;
            - URL of a stream: RTSP, RTMP, HTTP, ... as OpenCV's FFmpeg reads them;
            - a `detector.live.Live`;
            - PIL image, or an array as `detector.images.as_rgb` takes;
            - list, tuple or iterator of image paths, PIL images and arrays;
            - a `Source`.

    Raises:
        InputError: Nothing there, no images among it, or another kind of thing. (A file that proves broken is
            reported by its `Item`; where it is the only one, by an error when it is read. A camera or URL is opened
            when it is read.)
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, Live):
        return _from_live(source)
    if isinstance(source, int) and not isinstance(source, bool) and source >= 0:
        return _from_live(Live(source))
    if isinstance(source, str | Path):
        return _from_path(source)
    if isinstance(source, list | tuple):
        if not source:
            raise InputError("the list of images is empty; expected at least one")
        paths = tuple(Path(entry) for entry in source if isinstance(entry, str | Path))
        name = f"{len(source)} images"
        return Source("collection", name, len(source), lambda: _each(source), paths=paths)
    if isinstance(source, Iterator):
        return Source("collection", "images", None, lambda: _each(source))
    image = as_rgb(source)
    return Source("image", "image", 1, lambda: iter([Item("image", image)]))


def _from_path(source: str | Path) -> Source:
    text, path = str(source), Path(source)
    if not text:
        raise InputError("source is ''; expected an image, a video, a folder, a pattern, a camera's number or a URL")
    if not path.exists() and (address := live_address(text)) is not None:
        return _from_recording(text) if is_recording(address) else _from_live(Live(address))
    if path.is_dir():
        return _from_files(text, [file for file in path.iterdir() if not file.name.startswith(".")], "folder")
    if path.exists():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return _from_video(path)
        return Source("image", text, 1, lambda: iter([Item(text, read_image(path), path=path)]), paths=(path,))
    if any(character in text for character in "*?["):
        return _from_files(text, [Path(found) for found in glob.glob(text, recursive=True)], "pattern")
    raise InputError(
        f"{text}: no such file or folder; expected an image, a video, a folder, a pattern, a camera's number or a URL"
    )


def _from_files(text: str, found: Iterable[Path], kind: str) -> Source:
    files = [file for file in found if file.is_file()]
    images = sorted((file for file in files if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not images:
        others = f" among its {len(files)} files" if files else ""
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{text}: {kind} holds no images{others}; expected files ending in {suffixes}")
    return Source(
        "collection",
        text,
        len(images),
        lambda: _each(images),
        num_ignored=len(files) - len(images),
        paths=tuple(images),
    )


def _from_video(path: Path) -> Source:
    reader = VideoReader(path)
    items = _frames_of(reader, str(path), path)
    return Source("video", str(path), reader.num_frames, items, paths=(path,), fps=reader.fps)


def _from_recording(url: str) -> Source:
    """A video file behind a URL: it waits, so no frame is dropped."""
    reader = VideoReader(url)
    return Source("video", reader.name, reader.num_frames, _frames_of(reader, reader.name, None), fps=reader.fps)


def _frames_of(reader: VideoReader, name: str, path: Path | None) -> Callable[[], Iterator[Item]]:
    def frames() -> Iterator[Item]:
        for index, frame in enumerate(reader):
            yield Item(name, frame, path=path, frame=index, time_s=index / reader.fps)

    return frames


def _from_live(live: Live) -> Source:
    def frames() -> Iterator[Item]:
        first_s = None
        with closing(iter(live)) as taken:
            for frame in taken:
                first_s = frame.taken_s if first_s is None else first_s
                yield Item(
                    live.name, frame.pixels, frame=frame.number, time_s=frame.taken_s - first_s, taken_s=frame.taken_s
                )

    return Source("live", live.name, None, frames, live=live)


def _each(entries: Iterable[Any]) -> Iterator[Item]:
    for number, entry in enumerate(entries, start=1):
        is_path = isinstance(entry, str | Path)
        name, path = (str(entry), Path(entry)) if is_path else (f"image {number}", None)
        try:
            image = read_image(path) if path is not None else as_rgb(entry, source=name)
        except InputError as error:
            yield Item(name, None, error=str(error), path=path)
        else:
            yield Item(name, image, path=path)


def _natural(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    """Numbers compare as numbers: 2 before 10."""
    parts = re.split(r"([0-9]+)", str(path).casefold())
    return [(0, int(part)) if part.isdigit() and part.isascii() else (1, part) for part in parts], str(path)
