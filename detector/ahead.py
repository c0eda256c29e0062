"""Stages that work at the same time: an iterator that a thread of its own runs ahead of whoever reads it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 2.0
"""Longest wait for a thread to end; one that hangs in a camera or network is left behind and ends with the process."""


class Ahead(Generic[T]):
    """Items of an iterable in their order, made by a thread before they are asked for.

    One stage of a pipeline: `Ahead(map(draw, Ahead(map(detect, Ahead(frames)))))` reads, detects and draws at the same
    time, each on another frame. Every queue is bounded, so a slow stage slows the ones before it instead of filling
    the memory. An error of a stage comes after the items that were made before it. Use it in a `with` block, or call
    `close`: that ends its thread, and with it the stages before.

    Args:
        items: What to iterate over. It is only used by the new thread, and closed by it where it has `close`.
        depth: Items that may wait.
        drop_oldest: Make items all the time and drop the oldest waiting one where there is no room, for sources that
            do not wait; without, the thread waits for room before it makes the next.

    Attributes:
        dropped: Items that were made and dropped.
    """

    def __init__(self, items: Iterable[T], *, depth: int = 1, drop_oldest: bool = False) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}; expected 1 or more")
        self.dropped = 0
        self._items = iter(items)
        self._depth, self._drop_oldest = depth, drop_oldest
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        # A daemon: a camera that never answers must not keep the process.
        self._thread = threading.Thread(target=self._work, name="maenas-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.wait(None)

    def wait(self, seconds: float | None) -> T:
        """The next item, waited for that long at most.

        Raises:
            StopIteration: There is none left.
            TimeoutError: None came in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._ended or self._closed, seconds):
                raise TimeoutError
            if self._waiting:
                item = self._waiting.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE_S)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            try:
                while self._has_room():
                    try:
                        item = next(self._items)
                    except StopIteration:
                        break
                    self._put(item)
            finally:
                if (close := getattr(self._items, "close", None)) is not None:
                    close()
        except BaseException as error:  # handed over to whoever reads, whatever it is
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait for room where items wait for it; False once closed."""
        with self._changed:
            if not self._drop_oldest:
                self._changed.wait_for(lambda: len(self._waiting) < self._depth or self._closed)
            return not self._closed

    def _put(self, item: T) -> None:
        with self._changed:
            if self._closed:
                return
            if len(self._waiting) >= self._depth:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(item)
            self._changed.notify_all()
