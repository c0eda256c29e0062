"""Training runs as child processes, with a script in the place of `maenas train`."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from proxy_cases import write_result

from maenas.proxy_runs import RunResult, TrainingRun, result_of, run_all

CHILD = """#!{python}
import json, os, pathlib, signal, sys, time

words = sys.argv[1:]
assert words[:3] == ["-m", "maenas", "train"], words
folder = pathlib.Path(words[words.index("--out") + 1])
with (folder.parent / "calls.txt").open("a") as stream:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    stream.write(json.dumps([folder.name, words[-1], cores, os.environ.get("OMP_NUM_THREADS")]) + "\\n")
if "fail" in words:
    sys.exit("the learning rate is too high")
if "wait" in words:
    def stop(*_):
        (folder / "state.safetensors").write_text("saved")
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (folder / "waiting").touch()
    time.sleep(60)
(folder / "metrics.csv").write_text("epoch,ap,ap50,ap75\\n1,0.25,0.5,0.125\\n")
result = {{"ended_by": "completed", "epochs": 1, "iterations": 2, "seconds": 3.0}}
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Runs whose child is the script; the options say what it does."""
    script = tmp_path / "python"
    script.write_text(CHILD.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("maenas.proxy_runs.sys.executable", str(script))

    def make_runs(*options):
        return [
            TrainingRun(f"r{n}", tmp_path / "runs" / f"r{n}", tmp_path / "logs" / f"r{n}.txt", tuple(words.split()))
            for n, words in enumerate(options)
        ]

    return make_runs


def calls(tmp_path: Path) -> list[list]:
    import json

    return [json.loads(line) for line in (tmp_path / "runs" / "calls.txt").read_text().splitlines()]


def never(_folder: Path) -> bool:
    return False


def test_results_of_finished_runs_only(tmp_path):
    write_result(tmp_path / "done", 0.4)
    assert result_of(tmp_path / "done") == RunResult(0.4, 0.5, pytest.approx(0.3), 3, 12, 4.5), "of the last evaluation"
    write_result(tmp_path / "stopped", 0.4, ended_by="SIGTERM")
    assert result_of(tmp_path / "stopped") is None and result_of(tmp_path / "nowhere") is None
    write_result(tmp_path / "patient", 0.4, ended_by="patience")
    assert result_of(tmp_path / "patient") is not None
    (tmp_path / "patient" / "metrics.csv").write_text("epoch,ap,ap50,ap75\n1,,,\n")
    assert result_of(tmp_path / "patient") is None


def test_all_runs_are_made_once(make, tmp_path):
    runs, lines = make("a", "b", "c"), []
    write_result(runs[1].folder, 0.4)
    (runs[2].folder).mkdir(parents=True)
    (runs[2].folder / "state.safetensors").touch()
    assert run_all(runs, is_locked=never, progress=lines.append) == {}
    assert [call[:2] for call in calls(tmp_path)] == [["r0", "--force"], ["r2", "--resume"]]
    assert lines[0].startswith("[2/3] r0: AP 25.0 in 0.1 min; about ") and lines[1].startswith("[3/3] r2: AP 25.0")
    assert run_all(runs, is_locked=never) == {} and len(calls(tmp_path)) == 2, "nothing was left to do"


def test_the_others_go_on_when_one_fails(make, tmp_path):
    lines = []
    failures = run_all(make("a", "fail", "c"), is_locked=never, progress=lines.append)
    assert list(failures) == ["r1"]
    assert failures["r1"].startswith("maenas train ended with 1: the learning rate is too high (")
    assert "failed: maenas train ended with 1" in lines[1]
    assert len(calls(tmp_path)) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_children_are_pinned_to_their_cores(make, tmp_path):
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    assert run_all(make("a", "b", "c"), is_locked=never, cores=[core, core]) == {}
    assert {tuple(call[2]) for call in calls(tmp_path)} == {(core,)} and {call[3] for call in calls(tmp_path)} == {"1"}
    assert os.sched_getaffinity(0) == before, "this thread is where it was"


def test_an_interruption_stops_the_children_gently(make, tmp_path, monkeypatch):
    runs = make("wait", "b")

    def interrupted(_seconds):
        if (runs[0].folder / "waiting").exists():
            raise KeyboardInterrupt
        real(0.02)

    real = time.sleep
    monkeypatch.setattr("maenas.proxy_runs.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(runs, is_locked=never)
    assert (runs[0].folder / "state.safetensors").exists(), "the child saved and ended"
    assert [call[0] for call in calls(tmp_path)] == ["r0"], "nothing else was begun"


def test_a_child_that_outlived_its_parent_is_waited_for(make, tmp_path):
    (run,) = make("a")
    run.folder.mkdir(parents=True)
    began = threading.Event()

    def locked(folder):
        began.set()
        return not (folder / "result.json").exists()

    def other():
        began.wait()
        write_result(run.folder, 0.75)

    thread = threading.Thread(target=other)
    thread.start()
    assert run_all([run], is_locked=locked) == {}
    thread.join()
    assert result_of(run.folder).ap == 0.75 and not (tmp_path / "runs" / "calls.txt").exists()
