"""How fast a stream is worked through: frames per second and percentiles of the time from taken to done."""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np

PERCENTILES = (50, 90, 99)
RECENT, KEPT = 100, 100_000
"""Frames that what is shown is about, and that a summary is about."""


class StreamMeter:
    """Notes when frames are done and how long they took.

    Attributes:
        count: Frames so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._done_s: deque[float] = deque(maxlen=KEPT)
        self._latency_ms: deque[float] = deque(maxlen=KEPT)

    def add(self, done_s: float, latency_ms: float) -> None:
        """Note a frame.

        Args:
            done_s: When it was done, by any clock that does not go back.
            latency_ms: Since it was taken.
        """
        self.count += 1
        self._done_s.append(done_s)
        self._latency_ms.append(latency_ms)

    def fps(self, *, last: int = KEPT) -> float | None:
        """Frames per second over so many last ones; None before there are two."""
        times = _last(self._done_s, last)
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])

    def latencies(self, *, last: int = KEPT) -> dict[str, float]:
        """Milliseconds at `PERCENTILES`, as `p50`, over so many last frames; empty before the first."""
        times = _last(self._latency_ms, last)
        if not times:
            return {}
        values = np.percentile(times, PERCENTILES)
        return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}

    def line(self) -> str:
        """What a picture shows: frames per second and latencies of the last hundred frames."""
        fps = self.fps(last=RECENT)
        parts = [f"{name} {value:.0f}" for name, value in self.latencies(last=RECENT).items()]
        rate = "" if fps is None else f"{fps:.1f} fps"
        return "   ".join(part for part in (rate, f"latency ms: {', '.join(parts)}" if parts else "") if part)


def _last(values: deque[float], count: int) -> list[float]:
    return list(islice(values, max(0, len(values) - count), None))
