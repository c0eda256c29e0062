"""How far a long step is: bars on a terminal, lines elsewhere, few of them."""

from __future__ import annotations

import io
import sys

import pytest

from maenas.cli import progress
from maenas.cli.progress import LINE_SECONDS, progress_bars


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock, capsys):
    with progress_bars() as bars:
        task = bars.add("timing")
        for done in range(1, 11):
            clock[0] += LINE_SECONDS / 3
            bars.show(task, done, 144, left="about 4 min left")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [f"maenas: timing {done}/144, about 4 min left" for done in (3, 6, 9)]


def test_a_short_step_says_nothing(clock, capsys):
    with progress_bars() as bars:
        bars.show(bars.add("images", total=3), 3)
    assert capsys.readouterr() == ("", "")


def test_fractions_totals_and_texts(clock, capsys):
    with progress_bars(fraction=True) as bars:
        front, other = bars.add("front", total=1.0), bars.add("other")
        clock[0] += LINE_SECONDS
        bars.show(front, 0.5)
        clock[0] += LINE_SECONDS
        bars.show(other, 0.25, description="another")
    with progress_bars() as bars:
        frames = bars.add("frames")
        clock[0] += LINE_SECONDS
        bars.show(frames, 7)
    assert capsys.readouterr().err.splitlines() == ["maenas: front 50 %", "maenas: another 25 %", "maenas: frames 7"]


def test_a_terminal_gets_bars_that_vanish(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bars(left=True) as bars:
        bars.show(bars.add("timing"), 3, 10, left="nearly done", description="timing conv")
    shown = screen.getvalue()
    assert "timing conv" in shown and "3/10" in shown and "nearly done" in shown
    assert shown.rstrip().endswith("\x1b[2K"), "the last thing is that the line is erased"
