"""Images that occur more than once: byte for byte, or nearly, as after resizing or another compression.

Tensor letters: N images, S side of a thumbnail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_BANDS = (13, 13, 13, 13, 12)
"""Bits of a fingerprint; two that differ in fewer bits than there are bands agree in one whole band."""
_LARGEST_DISTANCE = len(_BANDS) - 1
_SMALLEST_CORRELATION = 0.98
_SMALLEST_CONTRAST = 4.0
"""Standard deviation of the grey levels below which all images look alike."""
_MOST_IN_BAND = 2000
_AT_ONCE = 4096


def same_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Indices of equal, non-empty digests, in groups of two and more, each in order."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        if digest:
            groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(thumbnails: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs of images that look the same.

    Their fingerprints (signs of the low frequencies of a cosine transform) differ in four bits at most, and their
    thumbnails correlate to 0.98 at least. Images without contrast are left out.

    Args:
        thumbnails: (N, S, S) grey.

    Returns:
        Pairs of indices (i, j), i < j, in order.
    """
    lively = np.flatnonzero([thumbnail.std() >= _SMALLEST_CONTRAST for thumbnail in thumbnails])
    prints = fingerprints(thumbnails[lively])
    found = []
    for first, second in sorted(_candidates(prints)):
        i, j = int(lively[first]), int(lively[second])
        if np.corrcoef(_coarse(thumbnails[i]), _coarse(thumbnails[j]))[0, 1] >= _SMALLEST_CORRELATION:
            found.append((i, j))
    return found


def fingerprints(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N,) 64 bits: whether each of the 8x8 lowest frequencies is above their median."""
    side = thumbnails.shape[1]
    wave = np.cos(np.pi / side * (np.arange(side) + 0.5) * np.arange(8)[:, None]).astype(np.float32)
    found = []
    for start in range(0, len(thumbnails), _AT_ONCE):
        part = thumbnails[start : start + _AT_ONCE].astype(np.float32)
        low = (wave @ part @ wave.T).reshape(len(part), 64)
        # The first is the brightness, which says nothing.
        low[:, 0] = 0
        bits = low > np.median(low, axis=1, keepdims=True)
        found.append(np.packbits(bits, axis=1).view(np.uint64).ravel())
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


def _candidates(prints: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs whose fingerprints differ in few bits, each once."""
    seen: set[tuple[int, int]] = set()
    shift = 0
    for width in _BANDS:
        keys = (prints >> np.uint64(shift)) & np.uint64(2**width - 1)
        shift += width
        order = np.argsort(keys, kind="stable")
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        for group in np.split(order, borders):
            # A band that thousands share (a series of the same scene) would cost their square.
            members = np.sort(group)[:_MOST_IN_BAND]
            for place, index in enumerate(members[:-1]):
                others = members[place + 1 :]
                near = others[_distances(prints[index], prints[others]) <= _LARGEST_DISTANCE]
                seen.update((int(index), int(other)) for other in near)
    yield from seen


def _distances(one: np.uint64, others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of differing bits."""
    differing = (others ^ one).view(np.uint8).reshape(-1, 8)
    return np.unpackbits(differing, axis=1).sum(axis=1)


def _coarse(thumbnail: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of 2x2 grey levels: fine grain and edges of compression fall out."""
    side = thumbnail.shape[0] // 2
    return thumbnail.reshape(side, 2, side, 2).mean(axis=(1, 3)).ravel()
