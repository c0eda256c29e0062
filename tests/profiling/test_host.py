"""What a machine is, which cores are used, and what others take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import namedtuple

import pytest

pytest.importorskip("psutil")

from maenas.errors import ProfileError
from maenas.profiling import host
from maenas.profiling.host import (
    LoadGuard,
    busiest_processes,
    describe_host,
    fingerprint,
    pin,
    same_cores_after,
    unpin,
)

Times = namedtuple("Times", "user nice system idle irq softirq steal")


def test_this_machine_is_described():
    found = describe_host()
    assert found["cpu"] and found["architecture"]
    assert found["logical_cores"] >= 1
    assert found["memory_gib"] > 0
    assert len(fingerprint(found)) == 12
    assert fingerprint(found) == fingerprint(describe_host())


def test_only_what_decides_speed_is_in_the_fingerprint():
    found = describe_host()
    assert fingerprint({**found, "memory_gib": 1, "os": "other", "governor": "powersave"}) == fingerprint(found)
    for name, value in (("cpu", "other"), ("logical_cores", 999), ("isa", ["mmx"]), ("architecture", "vax")):
        assert fingerprint({**found, name: value}) != fingerprint(found)


def test_cpuinfo_is_read(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Some  CPU @ 2GHz\nflags\t\t: fpu avx2 avx512f hypervisor\n\n"
        "processor\t: 1\nmodel name\t: Second\nflags\t\t: fpu\n"
    )
    monkeypatch.setattr(host, "_CPUINFO", path)
    found = describe_host()
    assert found["cpu"] == "Some CPU @ 2GHz"
    assert found["isa"] == ["avx2", "avx512"]
    assert found["virtualised"] is True


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_pinning_is_not_limited_by_an_earlier_one():
    before = os.sched_getaffinity(0)
    try:
        assert len(pin(1)) == 1
        assert os.sched_getaffinity(0) == set(pin(1))
        everything = pin(len(host._ALLOWED))
        assert os.sched_getaffinity(0) == set(everything) == set(host._ALLOWED)
        with pytest.raises(ProfileError, match=r"threads is \d+; expected 1 to"):
            pin(len(host._ALLOWED) + 1)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_own_cores_come_before_second_threads(tmp_path, monkeypatch):
    for core, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(host, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(host, "_ALLOWED", (0, 1, 2, 3))
    chosen = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: chosen.append(cores))
    assert pin(1) == (3,)
    assert pin(2) == (2, 3)
    assert pin(3) == (1, 2, 3)
    assert chosen[-1] == (1, 2, 3)


def test_a_system_that_cannot_pin(monkeypatch):
    monkeypatch.setattr(host, "_ALLOWED", ())
    assert pin(2) == ()


def guard_over(monkeypatch, before, after, *, own=0.0, seconds=10.0, cores=()):
    """What a guard finds when the counters go from one reading to the other."""
    guard = LoadGuard(cores)
    clock, cpu = iter([0.0, seconds]), iter([0.0, own])
    readings = iter([before, after])
    monkeypatch.setattr(host.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(host.time, "process_time", lambda: next(cpu))
    monkeypatch.setattr(guard._psutil, "cpu_times", lambda percpu: next(readings))
    with guard:
        pass
    monkeypatch.undo()
    return guard


def test_others_by_hand(monkeypatch):
    zero = Times(0, 0, 0, 0, 0, 0, 0)
    after = [Times(8, 0, 1, 1, 0, 0, 0), Times(2, 1, 0, 6, 0.5, 0.5, 1)]
    guard = guard_over(monkeypatch, [zero, zero], after, own=7.0, cores=(0,))
    margin = 2 * 2**0.5 / host._ticks_per_second()
    assert guard.others == pytest.approx((13 - 7 - margin) / 10)
    assert guard.others_pinned == pytest.approx((9 - 7 - 2 / host._ticks_per_second()) / 10)
    assert guard.steal == pytest.approx((1 - margin) / 10)
    assert guard.busy == guard.others + guard.steal


def test_a_tick_or_two_are_no_alarm(monkeypatch):
    zero = Times(0, 0, 0, 0, 0, 0, 0)
    tick = Times(0.02, 0, 0, 0, 0, 0, 0)
    guard = guard_over(monkeypatch, [zero], [tick], seconds=0.05)
    assert (guard.others, guard.busy) == (0.0, 0.0)


def test_own_work_is_not_others(monkeypatch):
    zero = Times(0, 0, 0, 0, 0, 0, 0)
    assert guard_over(monkeypatch, [zero], [Times(9.9, 0, 0, 0, 0, 0, 0)], own=9.95).others == 0.0


def test_a_busy_process_is_found():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            time.sleep(0.2)
            with LoadGuard() as guard:
                time.sleep(0.5)
            busiest = busiest_processes(0.5, limit=1000)
        finally:
            process.kill()
    assert guard.others > 0.05
    assert f"({process.pid})" in busiest
    assert f"({os.getpid()})" not in busiest


def test_cores_are_given_back_after_a_block_that_pins():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system cannot pin")
    everything = os.sched_getaffinity(0)
    if len(everything) < 2:
        pytest.skip("one core cannot be told from all")
    with pytest.raises(RuntimeError, match="while pinned"), same_cores_after():
        pin(1)
        assert len(os.sched_getaffinity(0)) == 1
        raise RuntimeError("while pinned")
    assert os.sched_getaffinity(0) == everything


def test_unpinned_gives_every_core_for_a_while():
    from maenas.profiling.host import unpinned

    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system cannot pin")
    everything = os.sched_getaffinity(0)
    pin(1)
    try:
        one = os.sched_getaffinity(0)
        with unpinned():
            assert os.sched_getaffinity(0) == everything
        assert os.sched_getaffinity(0) == one and len(one) == 1
    finally:
        unpin()
