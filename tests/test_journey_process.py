"""Steps as child processes: their output, signals on the way, and the end of a parent that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maenas import journey_process
from maenas.journey import JourneyError
from maenas.journey_process import Output, owned, run_child

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is told on Linux only")

WAITING = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
def end(number, frame):
    with place.open("a") as stream:
        stream.write(f"{signal.Signals(number).name} ")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
place.write_text("ready ")
while True:
    time.sleep(0.05)
"""


def appears(path: Path, text: str, seconds: float = 120.0) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if path.exists() and text in path.read_text():
            return True
        time.sleep(0.05)
    return False


def child(monkeypatch, code, *words):
    monkeypatch.setattr(journey_process, "child_command", lambda given: [sys.executable, "-c", code, *words])


def run(output=Output.DROP, file=None, lock=None):
    return run_child([], output=output, file=file, lock=lock, tick=lambda seconds: None)


def own(folder, **options):
    with owned(folder, **{"waiting": lambda: None, **options}):
        pass


def test_the_command_is_this_python_with_this_package(tmp_path):
    file = tmp_path / "version"
    end = run_child(["--version"], output=Output.KEEP, file=file, lock=None, tick=lambda seconds: None)
    assert (end.code, end.stopped_by) == (0, None) and end.seconds > 0
    assert file.read_text().startswith("maenas ")


def test_output_is_kept_only_of_what_ended_well(monkeypatch, tmp_path, capfd):
    child(monkeypatch, "print('half'); raise SystemExit(3)")
    assert run(Output.KEEP, tmp_path / "out").code == 3
    assert not (tmp_path / "out").exists()
    child(monkeypatch, "print('shown')")
    run(Output.SHOW)
    run(Output.BESIDE)
    run(Output.DROP)
    assert capfd.readouterr() == ("shown\n", "shown\n")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_child_once(monkeypatch, tmp_path, number):
    place = tmp_path / "place"
    child(monkeypatch, WAITING, str(place))
    sender = threading.Thread(target=lambda: appears(place, "ready") and os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    sender.start()
    end = run()
    sender.join()
    assert (end.code, end.stopped_by) == (128 + number, number)
    assert place.read_text() == f"ready {signal.Signals(number).name} "
    assert signal.getsignal(number) is before


@posix
def test_a_child_that_a_signal_ends(monkeypatch):
    child(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    end = run()
    assert (end.code, end.stopped_by) == (137, None)


@linux
def test_a_child_ends_with_a_parent_that_is_killed_and_keeps_the_folder_until_then(tmp_path):
    place, folder = tmp_path / "place", tmp_path / "run"
    parent = f"""
import sys
from pathlib import Path
from maenas import journey_process
from maenas.journey_process import Output, owned, run_child
journey_process.child_command = lambda words: [sys.executable, "-c", {WAITING!r}, {str(place)!r}]
with owned(Path({str(folder)!r}), waiting=lambda: None) as lock:
    run_child([], output=Output.DROP, file=None, lock=lock, tick=lambda seconds: None)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert appears(place, "ready")
        with pytest.raises(JourneyError, match="another run, or a step of it, is still writing into it"):
            own(folder, patience=0.0)
    finally:
        process.kill()
        process.wait()
    own(folder, patience=30.0)
    assert place.read_text() == "ready SIGTERM "


@posix
def test_waiting_for_a_folder_is_told_once(tmp_path):
    told = []
    with owned(tmp_path, waiting=lambda: told.append(1)), pytest.raises(JourneyError):
        own(tmp_path, waiting=lambda: told.append(2), patience=0.5)
    assert told == [2]
