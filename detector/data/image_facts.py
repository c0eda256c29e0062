"""What the image files of a data set are: readable, how large, and a fingerprint to find copies by.

Tensor letters: N images, S side of a thumbnail.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images import ImageHeader, read_header, read_thumbnail

THUMBNAIL_SIDE = 32
LARGEST_SIDE = 10_000
LARGEST_AREA = 50_000_000
"""Pixels. Of larger images the header is read and nothing else."""
_NUM_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class ImageFacts:
    """One file.

    Attributes:
        header: None where the file cannot be read.
        error: Why it cannot be read or decoded; None if it can.
        digest: Hash of the file's bytes; empty where files were not read.
        thumbnail: (S, S) uint8 grey; None where the image was not decoded.
    """

    header: ImageHeader | None
    error: str | None
    digest: bytes
    thumbnail: NDArray[np.uint8] | None


def gather_facts(
    paths: Sequence[Path], *, pixels: bool, progress: Callable[[int], None] = lambda count: None
) -> list[ImageFacts]:
    """Look at every file, several at a time.

    Args:
        paths: Image files.
        pixels: Whether to read whole files and decode them; else headers only.
        progress: Called with the number of files done.
    """
    found = []
    # Asked to look at everything, a warning about large images is no news.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        warnings.simplefilter("ignore")
        for facts in pool.map(lambda path: _facts(path, pixels=pixels), paths):
            found.append(facts)
            progress(len(found))
    return found


def is_huge(size: tuple[int, int]) -> bool:
    """Whether an image of (height, width) is too large to be decoded just to look at it."""
    return max(size) > LARGEST_SIDE or size[0] * size[1] > LARGEST_AREA


def _facts(path: Path, *, pixels: bool) -> ImageFacts:
    header, error, digest, thumbnail = None, None, b"", None
    try:
        header = read_header(path)
        if pixels:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
            if not is_huge(header.size):
                thumbnail = read_thumbnail(path, THUMBNAIL_SIDE)
    except (InputError, OSError) as problem:
        error = str(problem).removeprefix(f"{path}: ")
    return ImageFacts(header, error, digest, thumbnail)
