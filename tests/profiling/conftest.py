"""Makes this folder's helpers importable, wherever pytest is started, and campaigns blind to the machine's cores."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]


@pytest.fixture(autouse=True)
def a_core_for_others(monkeypatch):
    """On one core, campaigns of made-up devices would mind what else the machine is doing."""
    monkeypatch.setattr("maenas.profiling.harness.usable_cores", lambda: 64)
