"""Videos frame by frame, through OpenCV; never a whole video in memory."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.errors import OutputError
from maenas.extras import require

from .errors import InputError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
DEFAULT_FPS = 25.0
"""Taken where a file does not state its frame rate."""

_HIGHEST_FPS = 1000.0

TIMEOUT_S = 10.0
"""Longest silence of a URL."""


class VideoReader:
    """The frames of a video file, RGB and upright, in order.

    Args:
        path: The file, or the URL of one.

    Attributes:
        name: Path as text; of a URL without user and password.
        fps: Frames per second.
        num_frames: As the file states it, which may be an estimate; None where it does not.

    Raises:
        InputError: No such file, or no video that OpenCV can read.
        MissingExtraError: OpenCV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self._address = str(path)
        self.name = without_password(self._address)
        if "://" not in self._address and not Path(path).is_file():
            raise InputError(f"{path}: no such file; expected a video")
        cv2 = _opencv("reading video")
        capture = self._open()
        fps = capture.get(cv2.CAP_PROP_FPS)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        self.fps = fps if plausible_fps(fps) else DEFAULT_FPS
        self.num_frames = int(count) if math.isfinite(count) and count >= 1 else None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Read from the start; frames are uint8 (H, W, 3)."""
        capture = self._open()
        try:
            found = False
            while True:
                more, frame = capture.read()
                if not more:
                    break
                found = True
                # OpenCV's frames are BGR; the networks take RGB.
                yield np.ascontiguousarray(frame[:, :, ::-1])
            if not found:
                raise InputError(f"{self.name}: holds no frame that can be read")
        finally:
            capture.release()

    def _open(self) -> Any:  # noqa: ANN401
        capture = open_capture(self._address)
        if not capture.isOpened():
            raise InputError(f"{self.name}: is no video that OpenCV can read")
        return capture


class VideoWriter:
    """An MP4 file of RGB frames; written beside its final name, and renamed when all went well.

    Use it in a `with` block; leaving the block by an error leaves nothing behind. The encoder takes even sizes only: of
    an odd one the last row or column is cut off.

    Raises:
        OutputError: The file cannot be written.
        MissingExtraError: OpenCV is not installed.
    """

    def __init__(self, path: str | Path, *, fps: float, size: tuple[int, int]) -> None:
        self.path = Path(path)
        self._size = size
        self._cv2 = _opencv("writing video")
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".mp4")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        os.close(descriptor)
        self._temporary = Path(temporary)
        code = self._cv2.VideoWriter_fourcc(*"mp4v")
        height, width = (side - side % 2 for side in size)
        self._writer = self._cv2.VideoWriter(temporary, code, fps, (width, height))
        if not self._writer.isOpened():
            self._temporary.unlink(missing_ok=True)
            raise OutputError(f"{self.path}: OpenCV cannot write a video of {size[0]}x{size[1]} pixels at {fps:g} fps")

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, uint8 (H, W, 3) RGB of the stated size.

        Raises:
            ValueError: It has another shape.
        """
        if frame.shape != (*self._size, 3):
            raise ValueError(f"frame has shape {frame.shape}; expected {(*self._size, 3)}")
        height, width = (side - side % 2 for side in self._size)
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.release()
        if kind is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            return
        if not self._whole():
            self._temporary.unlink(missing_ok=True)
            raise OutputError(f"{self.path}: could not be written to its end; is the disk full?")
        try:
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path)
        except OSError as problem:
            self._temporary.unlink(missing_ok=True)
            raise OutputError(f"{self.path}: cannot be written ({problem.strerror or problem})") from problem

    def _whole(self) -> bool:
        """Whether the file can be opened: OpenCV says nothing where a disk is full, and its index is written last."""
        capture = self._cv2.VideoCapture(str(self._temporary))
        try:
            return bool(capture.isOpened())
        finally:
            capture.release()


def open_capture(address: int | str, timeout_s: float = TIMEOUT_S) -> Any:  # noqa: ANN401
    """A video file, the number of a camera, or a URL through FFmpeg, in OpenCV; whether it is open is not asked yet.

    Args:
        address: What to open.
        timeout_s: Longest time to open a URL and to read one frame of it.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = _opencv("reading videos, cameras and streams")
    if isinstance(address, int) or "://" not in address:
        return cv2.VideoCapture(address)
    limit_ms = int(1000 * timeout_s)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


def without_password(url: str) -> str:
    """A URL without the user and password that may stand before its host."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url)


def plausible_fps(fps: float) -> bool:
    """Whether a frame rate can be one; streams without a rate of their own state that of their clock, such as 90000."""
    return math.isfinite(fps) and 0 < fps <= _HIGHEST_FPS


def _opencv(purpose: str) -> ModuleType:
    return require("cv2", extra="video", purpose=purpose)
