"""Frames per second and latencies, by hand arithmetic."""

from __future__ import annotations

import pytest

from detector import stream_meter
from detector.stream_meter import StreamMeter


def test_nothing_is_said_before_there_is_something():
    meter = StreamMeter()
    assert (meter.fps(), meter.latencies(), meter.line(), meter.count) == (None, {}, "", 0)
    meter.add(5.0, 40.0)
    assert (meter.fps(), meter.line()) == (None, "latency ms: p50 40, p90 40, p99 40")
    meter.add(5.0, 40.0)
    assert meter.fps() is None  # a clock that has not moved


def test_rates_and_percentiles():
    meter = StreamMeter()
    for index in range(101):
        meter.add(0.04 * index, float(index))
    assert meter.fps() == pytest.approx(25)
    assert meter.latencies() == pytest.approx({"p50": 50, "p90": 90, "p99": 99})
    assert meter.latencies(last=11) == pytest.approx({"p50": 95, "p90": 99, "p99": 99.9})
    assert meter.count == 101


def test_a_few_slow_frames_move_the_tail_and_not_the_middle():
    meter = StreamMeter()
    for index in range(100):
        meter.add(index / 10, 500.0 if index % 20 == 0 else 20.0)
    assert meter.line() == "10.0 fps   latency ms: p50 20, p90 20, p99 500"


def test_what_is_shown_is_about_the_last_hundred_frames():
    meter = StreamMeter()
    for index in range(300):
        meter.add(index * 1.0, 900.0)
    for index in range(100):
        meter.add(300 + index * 0.1, 30.0)
    assert meter.line() == "10.0 fps   latency ms: p50 30, p90 30, p99 30"
    assert meter.fps() < 2


def test_an_endless_stream_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(stream_meter, "KEPT", 5)
    meter = StreamMeter()
    for index in range(50):
        meter.add(float(index), float(index))
    assert meter.count == 50 and meter.latencies()["p50"] == 47
