"""The errors users can cause; the command line prints them as one line and exits with code 2.

A message says what is wrong, where (file and field), which value came, and what was expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaenasError(Exception):
    """Base of every error that a user's input can cause."""


class StructureError(MaenasError, ValueError):
    """A structure file or object that does not describe a network."""


class SpaceError(MaenasError, ValueError):
    """A search space that is malformed or holds no structure."""


class OptionError(MaenasError, ValueError):
    """An option of the command line that is malformed or does not go with the others."""


class BudgetError(MaenasError, ValueError):
    """A budget that cannot be parsed or cannot be met."""


class ScoreError(MaenasError, ValueError):
    """An unknown score, or a score function that returned no finite number."""


class LatencyTableError(MaenasError, ValueError):
    """A latency table that is malformed, unknown, or lacks operators."""


class OutputError(MaenasError, OSError):
    """A result that cannot be written where it was asked for."""


class PlotError(MaenasError, ValueError):
    """Points that are malformed, unknown, or must not share a picture."""


class ProfileError(MaenasError, RuntimeError):
    """A machine, backend or record of measurements that cannot be profiled or used."""


class DeviceBusyError(ProfileError):
    """Other work on the machine spoils the timings."""


class ProxyError(MaenasError, RuntimeError):
    """A comparison of scores that cannot be made, or a training run of it that failed."""


class GpuError(MaenasError, RuntimeError):
    """A GPU, or the CUDA runtime that leads to it, that is missing or fails."""


class MissingExtraError(MaenasError, ImportError):
    """A package of an optional extra that is not installed."""


def first_line(error: BaseException) -> str:
    """What another library's error says, for a message of ours: one line, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason_of(error: BaseException) -> str:
    """Why a file cannot be read, for a message that names the file already."""
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 text from byte {error.start} on"
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def did_you_mean(name: str, known: Iterable[str], *, quoted: bool = False) -> str:
    """The end of a message about an unknown name: `; did you mean X?`, or nothing where no known name is like it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    if not near:
        return ""
    return f"; did you mean {near[0]!r}?" if quoted else f"; did you mean {near[0]}?"
