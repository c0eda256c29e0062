"""A step as a child process: signals reach it, it ends with its parent, and the folder has one owner."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import FrameType

from maenas.errors import OutputError
from maenas.files import make_folder, write_bytes_atomically
from maenas.journey import JourneyError

LOCK_FILE = ".lock"
TICK_SECONDS = 5.0
"""How often a sign of life is given while a step runs."""

PATIENCE_SECONDS = 60.0
"""For the step of a run that was killed a moment ago: it ends by itself, and saves first."""

_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGINT, signal.SIGTERM)


class Output(Enum):
    """Where the standard output of a child goes."""

    SHOW = auto()
    BESIDE = auto()  # to standard error, which is for people too
    KEEP = auto()
    DROP = auto()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        code: Exit status; 128 + N where signal N ended it.
        stopped_by: The signal that came to this process meanwhile, or None.
        seconds: Wall time.
    """

    code: int
    stopped_by: signal.Signals | None
    seconds: float


def child_command(words: Sequence[str]) -> list[str]:
    """The command line of `maenas WORDS` with this Python."""
    return [sys.executable, "-m", "maenas", *words]


def run_child(
    words: Sequence[str],
    *,
    output: Output,
    file: Path | None,
    lock: int | None,
    tick: Callable[[float], None],
) -> Ended:
    """Run `maenas WORDS` in a process of its own and wait for it.

    It is a process group of its own, so that Ctrl-C in a terminal reaches it once: through this process, which sends
    SIGINT and SIGTERM on and goes on waiting.

    Args:
        words: After `maenas`.
        output: Where its standard output goes.
        file: That receives it with `Output.KEEP`, once the child has ended well.
        lock: Descriptor that the child keeps open: what `owned` gives.
        tick: Called every few seconds with the wall time so far.
    """
    targets: dict[Output, int | None] = {
        Output.SHOW: None,
        Output.BESIDE: 2,
        Output.KEEP: subprocess.PIPE,
        Output.DROP: subprocess.DEVNULL,
    }
    posix = os.name == "posix"
    started = time.monotonic()
    with _forwarding() as relay:
        child = subprocess.Popen(
            child_command(words),
            stdin=subprocess.DEVNULL,
            stdout=targets[output],
            process_group=0 if posix else None,
            pass_fds=() if lock is None else (lock,),
            preexec_fn=_ends_with_parent() if sys.platform == "linux" else None,
        )
        relay.to(child)
        written = _wait(child, lambda: tick(time.monotonic() - started))
    if output is Output.KEEP and file is not None and child.returncode == 0:
        write_bytes_atomically(file, written)
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    return Ended(code, relay.received, time.monotonic() - started)


def _wait(child: subprocess.Popen[bytes], tick: Callable[[], None]) -> bytes:
    """What the child printed, once it has ended."""
    while True:
        try:
            written, _ = child.communicate(timeout=TICK_SECONDS)
        except subprocess.TimeoutExpired:
            tick()
        else:
            return written or b""


class _Relay:
    """Sends signals on to a child."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def to(self, child: subprocess.Popen[bytes]) -> None:
        """Name the child; a signal that came before is sent on now."""
        self._child = child
        if self.received is not None:
            child.send_signal(self.received)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.received = signal.Signals(number)
        if self._child is not None:
            self._child.send_signal(self.received)


@contextlib.contextmanager
def _forwarding() -> Generator[_Relay]:
    """Signals go to the relay for as long as the block lasts."""
    relay = _Relay()
    before = {number: signal.signal(number, relay.note) for number in _FORWARDED}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ends_with_parent() -> Callable[[], None]:
    """For a child of this process, before it starts: SIGTERM when this process ends, even when it is killed."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # ended meanwhile
            os._exit(128 + signal.SIGTERM)

    return ask


@contextlib.contextmanager
def owned(folder: Path, *, waiting: Callable[[], None], patience: float = PATIENCE_SECONDS) -> Generator[int | None]:
    """A run's folder, for this process and its children alone; gives the lock's descriptor.

    The system lets go of the lock when the last of them ends, however it does.

    Args:
        folder: Is made where it does not exist.
        waiting: Called once where another process has it still.
        patience: Seconds to wait for that one.

    Raises:
        JourneyError: It does not let go.
        OutputError: The folder cannot be written.
    """
    make_folder(folder)
    try:
        import fcntl
    except ImportError:  # Windows has no such locks: two runs are then the user's to keep apart
        yield None
        return
    place = folder / LOCK_FILE
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"{place}: cannot be written ({error.strerror})") from error
    try:
        limit, told = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > limit:
                    raise JourneyError(
                        f"{folder}: another run, or a step of it, is still writing into it; expected another --out"
                    ) from None
            if not told:
                waiting()
                told = True
            time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)
