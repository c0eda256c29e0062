"""What is wrong with an entry of a data set: raised by those who load it, gathered by those who examine it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError


@dataclass(frozen=True, slots=True)
class Problem:
    """One faulty entry.

    Attributes:
        code: Kind of fault in a word or two, such as `missing-image`.
        where: File, and the entry in it.
        message: What is wrong and what was expected.
        image: The image concerned, where it is known.
        fatal: The entry cannot be used. Others are only worth knowing, such as an image without a label file.
    """

    code: str
    where: str
    message: str
    image: Path | None = None
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


Report = Callable[[Problem], None]
"""Takes a problem; a reader whose report returns leaves the entry out and goes on."""


def refuse(problem: Problem) -> None:
    """The report of those who load a data set: the first fatal problem ends it.

    Raises:
        DataError: The problem as one line.
    """
    if problem.fatal:
        raise DataError(str(problem))
