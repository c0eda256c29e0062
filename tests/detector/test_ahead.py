"""Stages that work at the same time: order, bounds, errors of every stage, and an end in which no thread is left."""

from __future__ import annotations

import threading

import pytest

from detector.ahead import Ahead


class Gate:
    """Numbers from 0, each made only once the test lets it."""

    def __init__(self, count=10**6):
        self.made, self.closed, self._may = [], False, threading.Semaphore(0)
        self._count = count

    def let(self, count):
        for _ in range(count):
            self._may.release()

    def __iter__(self):
        try:
            for number in range(self._count):
                self._may.acquire()
                self.made.append(number)
                yield number
        finally:
            self.closed = True


def settle(condition):
    """Wait for other threads, a few seconds at most."""
    pause = threading.Event()
    for _ in range(500):
        if condition():
            return True
        pause.wait(0.01)
    return False


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_items_come_in_their_order(depth):
    with Ahead(range(100), depth=depth) as ahead:
        assert list(ahead) == list(range(100))
        assert list(ahead) == [] and ahead.dropped == 0


def test_stages_work_at_the_same_time():
    # Reading item n + 1 and working on item n wait for each other: one after the other, neither would go on.
    barrier = threading.Barrier(2, timeout=20)

    def read():
        for number in range(6):
            if number:
                barrier.wait()
            yield number

    def work(number):
        if number < 5:
            barrier.wait()
        return 10 * number

    with Ahead(read()) as numbers, Ahead(map(work, numbers)) as tens:
        assert list(tens) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_slow_reader_bounds_what_is_made(depth):
    gate = Gate()
    gate.let(1000)
    with Ahead(gate, depth=depth) as ahead:
        assert settle(lambda: len(gate.made) == depth)
        assert [next(ahead) for _ in range(4)] == [0, 1, 2, 3]
        assert settle(lambda: len(gate.made) == 4 + depth)
        assert ahead.dropped == 0
    assert len(gate.made) == 4 + depth


def test_the_newest_is_kept_where_the_source_does_not_wait():
    gate = Gate()
    with Ahead(gate, depth=2, drop_oldest=True) as ahead:
        gate.let(7)
        assert settle(lambda: ahead.dropped == 5)
        assert [next(ahead), next(ahead)] == [5, 6]
        gate.let(1)
        assert (next(ahead), ahead.dropped) == (7, 5)
        gate.let(1)  # for the one that the thread waits in


def test_an_error_comes_after_what_was_made_before_it():
    def failing():
        yield 1
        yield 2
        raise RuntimeError("no third")

    with Ahead(failing(), depth=5) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        with pytest.raises(RuntimeError, match="no third"):
            next(ahead)
        assert list(ahead) == []


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_error_of_a_stage_in_the_middle_reaches_the_end(kind):
    def detect(value):
        if value == 3:
            raise kind("in the middle")
        return value

    before, gate, got = threading.active_count(), Gate(), []
    gate.let(1000)
    with pytest.raises(kind), Ahead(gate) as read, Ahead(map(detect, read)) as found, Ahead(map(str, found)) as drawn:
        for text in drawn:
            got.append(text)
    assert got == ["0", "1", "2"] and gate.closed
    assert settle(lambda: threading.active_count() <= before)


def test_an_error_of_the_reader_ends_every_stage():
    before, gate = threading.active_count(), Gate()
    gate.let(1000)
    with pytest.raises(KeyboardInterrupt), Ahead(gate) as read, Ahead(map(str, read)) as texts:
        next(texts)
        raise KeyboardInterrupt
    assert gate.closed and threading.active_count() <= before


def test_a_source_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr("detector.ahead.PATIENCE_S", 0.05)
    gate = Gate()
    with Ahead(gate) as ahead:
        with pytest.raises(TimeoutError):
            ahead.wait(0.02)
        gate.let(1)
        assert ahead.wait(20) == 0
    gate.let(1)
    assert settle(lambda: gate.closed)


def test_nothing_is_made_after_closing():
    gate = Gate()
    gate.let(3)
    ahead = Ahead(gate)
    next(ahead)
    ahead.close()
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()
    assert gate.closed


def test_no_room_at_all_is_refused():
    with pytest.raises(ValueError, match="depth is 0; expected 1 or more"):
        Ahead([], depth=0)
