"""Cameras and network streams: always the newest frame, and an end where none comes any more."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .ahead import Ahead
from .errors import InputError
from .video import DEFAULT_FPS, TIMEOUT_S, VIDEO_SUFFIXES, open_capture, plausible_fps, without_password

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "srt")
"""Beginnings of URLs that are taken for streams."""

_LONGEST_PAUSE_S = 10.0
_FPS = 5
"""OpenCV's CAP_PROP_FPS."""


class Capture(Protocol):
    """What is asked of OpenCV's `VideoCapture`."""

    def isOpened(self) -> bool:
        """Whether it can be read."""
        ...

    def read(self) -> tuple[bool, Any]:
        """Whether there was a frame, and the frame, BGR."""
        ...

    def get(self, what: int) -> float:
        """A property by its number."""
        ...

    def release(self) -> None:
        """Let go of the device."""
        ...


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How long to wait and how often to try.

    Attributes:
        timeout_s: Longest time without a frame, the first one included. A network stream counts as broken then, and is
            opened again; where even that is not reached, it is given up after twice the time.
        reconnects: Attempts in a row to open a network stream again that broke; a camera gets none.
        first_pause_s: Before the first attempt; each further pause is twice as long, up to ten seconds.
    """

    timeout_s: float = TIMEOUT_S
    reconnects: int = 5
    first_pause_s: float = 0.5

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise InputError(f"timeout_s is {self.timeout_s}; expected more than 0 seconds")
        if self.reconnects < 0:
            raise InputError(f"reconnects is {self.reconnects}; expected 0 or more")


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a camera.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        number: Counted from 0 over all that came, the dropped ones too.
        taken_s: When it came, by `time.perf_counter`.
    """

    pixels: NDArray[np.uint8]
    number: int
    taken_s: float


class Live:
    """A camera or a network stream, opened when it is iterated over; gives the newest frame and drops older ones.

    Args:
        address: Number of a camera, or URL.
        settings: Patience.
        capture: Opens an address, with a limit in seconds; tests give their own.
        sleep: Waits between attempts.

    Attributes:
        address: As given.
        name: As messages and results call it: without user and password of a URL.
        fps: As the device states it; the usual rate before it is opened, and where it does not say.
    """

    def __init__(
        self,
        address: int | str,
        *,
        settings: LiveSettings | None = None,
        capture: Callable[[int | str, float], Capture] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self.name = f"camera {address}" if isinstance(address, int) else without_password(address)
        self.fps = DEFAULT_FPS
        self._settings = settings or LiveSettings()
        self._capture, self._sleep = capture or open_capture, sleep
        self._alive_s = 0.0

    def __iter__(self) -> Generator[Frame]:
        """Connect, and give frames until the source fails; closing the iterator lets go of it.

        Raises:
            InputError: It cannot be opened, gives nothing for too long, or broke and cannot be opened again.
            MissingExtraError: OpenCV is not installed.
        """
        # FFmpeg ends a read of a silent stream after the time itself, and it is opened again; a camera never returns.
        patience = self._settings.timeout_s * (1 if isinstance(self.address, int) else 2)
        self._alive_s = time.perf_counter()
        with Ahead(self._frames(), drop_oldest=True) as frames:
            while True:
                try:
                    pixels, number, taken_s = frames.wait(patience)
                except StopIteration:
                    return
                except TimeoutError:
                    if time.perf_counter() - self._alive_s < patience:
                        continue
                    raise InputError(f"{self.name}: gave no frame for {patience:g} s") from None
                # Here and not where it is read, so that a dropped frame costs nothing.
                yield Frame(np.ascontiguousarray(pixels[:, :, ::-1]), number, taken_s)

    def _frames(self) -> Generator[tuple[NDArray[np.uint8], int, float]]:
        """Every frame in BGR, its number and when it came; runs in a thread of its own."""
        number = failures = 0
        capture = self._opened()
        try:
            while True:
                more, pixels = capture.read()
                if more:
                    self._alive_s = time.perf_counter()
                    yield pixels, number, self._alive_s
                    number, failures = number + 1, 0
                    continue
                capture.release()
                if not number:
                    raise InputError(f"{self.name}: was opened but gives no frame")
                capture, failures = self._again(failures)
        finally:
            capture.release()

    def _opened(self) -> Capture:
        capture = self._capture(self.address, self._settings.timeout_s)
        if not capture.isOpened():
            capture.release()
            expected = "the number of a connected one" if isinstance(self.address, int) else "a stream that plays"
            raise InputError(f"{self.name}: cannot be opened; expected {expected}")
        fps = capture.get(_FPS)
        self.fps = fps if plausible_fps(fps) else DEFAULT_FPS
        return capture

    def _again(self, failures: int) -> tuple[Capture, int]:
        """The source after it broke, and the failures in a row so far.

        Raises:
            InputError: It stays broken.
        """
        attempts = 0 if isinstance(self.address, int) else self._settings.reconnects
        while failures < attempts:
            pause = min(self._settings.first_pause_s * 2**failures, _LONGEST_PAUSE_S)
            failures += 1
            # Whoever waits for a frame shall wait for the attempt too.
            self._alive_s = time.perf_counter() + pause
            self._sleep(pause)
            with contextlib.suppress(InputError):
                return self._opened(), failures
        tried = f"; {attempts} attempts to open it again failed" if attempts else ""
        raise InputError(f"{self.name}: gives no more frames{tried}")


def live_address(source: str) -> int | str | None:
    """Number of a camera or URL of a stream, if a text is one; None for anything else.

    Raises:
        InputError: A URL that cannot be a stream.
    """
    if source.isascii() and source.isdigit():
        return int(source)
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", source)
    if url is None:
        return None
    if url[1].lower() not in SCHEMES:
        raise InputError(
            f"{without_password(source)}: is a URL of the kind {url[1]}; expected one of {', '.join(SCHEMES)}"
        )
    return source


def is_recording(address: int | str) -> bool:
    """Whether a URL names a video file, which waits for its reader and has an end."""
    return isinstance(address, str) and re.sub(r"[?#].*", "", address).lower().endswith(VIDEO_SUFFIXES)
