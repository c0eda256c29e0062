"""The measuring loop: order, journal, resumption, and every way a measurement is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("psutil")

from profiling_cases import FakeClock, FakeEntry, FakeReference

from maenas.errors import DeviceBusyError, OutputError, ProfileError
from maenas.profiling.backends import LayerTime
from maenas.profiling.harness import Machine, pass_order, run_campaign
from maenas.profiling.host import LoadGuard
from maenas.profiling.measurement import Record, Settings, at_common_speed, speed_range, summarize

ROOT = Path(__file__).resolve().parents[2]
QUICK = Settings(passes=2, warmup=1, min_runs=3, min_seconds=0.02, attempts=3, patience_s=10)


class Bench:
    """A campaign of fakes on one clock and one journal."""

    def __init__(self, folder, *, names="abc", settings=QUICK):
        self.settings = settings
        self.journal = folder / "journal.jsonl"
        self.clock = FakeClock()
        self.entries = [FakeEntry(name, self.clock, ms=10.0 + index) for index, name in enumerate(names)]
        self.reference = FakeReference("reference", self.clock, ms=5.0)
        self.calls = []

    def run(self, **options):
        options = {"settings": self.settings, "entries": self.entries, "reference": self.reference, **options}
        return run_campaign(
            journal=self.journal,
            progress=lambda *call: self.calls.append(call),
            machine=self.clock.machine(),
            **options,
        )

    @property
    def opened(self):
        return [entry.opened for entry in self.entries]

    def lines(self):
        return [json.loads(line) for line in self.journal.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_every_pass_has_its_own_order_and_the_answer_has_none(bench):
    log = []
    for entry in bench.entries:
        entry.log = log
    records = bench.run()
    assert [(record.pass_index, record.key) for record in records] == [(p, key) for p in range(2) for key in "abc"]
    assert log == pass_order("abc", 0, 0) + pass_order("abc", 0, 1)
    orders = {tuple(pass_order("abcdefgh", 0, index)) for index in range(4)}
    assert len(orders) == 4
    assert pass_order("abcdefgh", 0, 1) == pass_order("abcdefgh", 0, 1) != pass_order("abcdefgh", 1, 1)


def test_a_record_holds_what_was_measured(bench):
    record = bench.run()[1]
    assert record.ms == pytest.approx((11.0, 11.0, 11.0))
    assert record.cpu_ms == pytest.approx(11.0)
    assert record.reference_ms == pytest.approx((5.0, 5.0))
    # The warm-up is no part of the layers' times.
    assert (record.layers[0].name, record.layers[0].ms) == ("conv of 3 runs", 11.0)
    assert (record.accepted, record.kept, record.reason, record.busy) == (True, True, "", 0.0)


def test_runs_last_until_both_minima_or_the_maximum(tmp_path):
    for index, (settings, runs) in enumerate(
        [
            (Settings(passes=1, min_runs=7, min_seconds=0.02), 7),
            (Settings(passes=1, min_runs=2, min_seconds=0.055), 6),
            (Settings(passes=1, min_runs=2, min_seconds=100.0, max_runs=9), 9),
        ]
    ):
        (folder := tmp_path / str(index)).mkdir()
        assert len(Bench(folder, names="a", settings=settings).run()[0].ms) == runs


def test_a_complete_journal_measures_nothing(bench):
    first = bench.run()
    content = bench.journal.read_bytes()
    again = bench.run()
    assert again == first
    assert bench.opened == [2, 2, 2]
    assert bench.reference.opened == 1
    assert bench.journal.read_bytes() == content


def test_a_drifting_reference_is_repeated(bench):
    # Five first references, two for the first entry; the third reading after that is 8 % slow.
    bench.reference.series = [5.0] * 7 + [5.4, 5.0]
    records = bench.run()
    assert sum(bench.opened) == 7
    rejected = [line for line in bench.lines() if line.get("accepted") is False]
    assert len(rejected) == 1
    assert "the reference took 5.400 ms, +8.0% from its usual 5.000 ms; at most 5.0%" in rejected[0]["reason"]
    assert all(record.accepted for record in records)


def test_a_reference_that_changes_meanwhile_is_a_disturbance_too(bench):
    bench.reference.series = [5.0] * 7 + [5.0, 4.7]
    bench.run()
    assert [line["reason"] for line in bench.lines() if line.get("accepted") is False] == [
        "the reference changed by 6.4% meanwhile, to 4.700 ms; at most 5.0% is allowed"
    ]


def test_a_machine_that_is_faster_than_in_its_first_moment_goes_on(bench):
    bench.reference.series = [6.7] * 5 + [6.1] * 100
    records = bench.run()
    assert not any(line.get("accepted") is False for line in bench.lines())
    assert {round(record.usual_ms, 9) for record in records} == {6.1}


def test_a_lasting_change_of_speed_becomes_the_usual_one(tmp_path):
    """Halfway the machine becomes 10 % slower for good: all times are given at its middle speed."""
    settings = Settings(**{**vars(QUICK), "passes": 1, "patience_s": 60})
    names = "abcde"
    steady = Bench(tmp_path, names=names, settings=settings)
    steady.journal = tmp_path / "steady"
    expected = {record.key: record.ms for record in steady.run()}
    order = pass_order(list(names), settings.seed, 0)
    slowed = Bench(tmp_path, names=names, settings=settings)
    for entry in slowed.entries:
        if order.index(entry.key) >= 2:
            entry.ms *= 1.1
    # Five references, two accepted entries of two readings each, then 10 % more.
    slowed.reference.series = [5.0] * 9 + [5.5] * 200
    records = slowed.run()
    assert all(record.accepted for record in records)
    assert sorted({round(record.usual_ms, 9) for record in records}) == [5.0, 5.5]
    assert speed_range(records) == pytest.approx(0.1)
    assert sum(line.get("accepted") is False for line in slowed.lines()) == 1
    # Three of five were measured at the slower speed, so that is the middle one.
    for record in records:
        assert record.ms == pytest.approx([ms * 1.1 for ms in expected[record.key]])
    # The journal keeps what was measured, and gives the same answer again.
    raw = {line["key"]: line["ms"] for line in slowed.lines() if line.get("kept")}
    assert raw[order[0]] == pytest.approx(list(expected[order[0]]))
    assert slowed.run() == records


def test_a_machine_between_two_speeds_is_measured_at_the_faster(tmp_path):
    """Every other attempt comes in a slow moment, which memory-bound networks feel more than the reference."""
    settings = Settings(**{**vars(QUICK), "passes": 1, "patience_s": 60})
    bench = Bench(tmp_path, names="abcd", settings=settings)
    bench.reference.series = [5.0] * 5 + [5.5, 5.5, 5.0, 5.0, 5.0] * 40
    records = bench.run()
    assert len(records) == 4 and {round(record.usual_ms, 9) for record in records} == {5.0}


def test_entries_whose_passes_disagree_get_further_ones(tmp_path):
    settings = Settings(**{**vars(QUICK), "extra_passes": 3})
    bench = Bench(tmp_path, settings=settings)
    # The second entry: 11, 13.2, 12.1 ms, and with the fourth, 11 ms again, two agree within 5 %.
    bench.entries[1].factors = [1.0, 1.2, 1.1, 1.0]
    records = bench.run()
    assert bench.opened == [2, 4, 2]
    assert [(record.key, record.pass_index) for record in records] == [
        ("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1), ("b", 2), ("b", 3),
    ]  # fmt: skip
    assert summarize(records)["b"].passes == 4
    assert bench.run() == records and bench.opened == [2, 4, 2]


def test_extra_passes_end(tmp_path):
    bench = Bench(tmp_path, names="a", settings=Settings(**{**vars(QUICK), "extra_passes": 1}))
    bench.entries[0].factors = [1.0, 1.2, 1.4, 1.6]
    assert len(bench.run()) == 3


def test_too_large_a_change_of_speed_is_refused(tmp_path):
    settings = Settings(**{**vars(QUICK), "passes": 1, "patience_s": 60})
    bench = Bench(tmp_path, settings=settings)
    bench.reference.series = [5.0] * 9 + [6.5] * 200
    with pytest.raises(
        DeviceBusyError, match=r"has become \+30\.0% different from most of the campaign; at most 25\.0%"
    ):
        bench.run()


def test_layers_are_scaled_with_their_network():
    layer = LayerTime("conv", "Convolution", ("conv",), (), 2.0)
    records = [
        Record("a", index, (10.0,), 10.0, (layer,), (usual, usual), usual, 0.0, True, "", True, "2026-01-01", 1.0)
        for index, usual in enumerate((5.0, 5.0, 6.0))
    ]
    scaled = at_common_speed(records)
    assert [record.ms for record in scaled] == [(10.0,), (10.0,), pytest.approx((10.0 / 1.2,))]
    assert scaled[2].layers[0].ms == pytest.approx(2.0 / 1.2)
    assert at_common_speed([]) == []


def test_slow_drift_moves_the_usual_time(tmp_path):
    settings = Settings(passes=1, attempts=1, patience_s=0)
    bench = Bench(tmp_path, names="abcdefghijkl", settings=settings)
    # By the end a quarter of the latest readings took less than 5.2 ms: 5.4 ms is +3.8 % then, but +8 % at the start.
    bench.reference.series = [5.0] * 5 + [5.2] * 18 + [5.4] * 2
    assert all(record.accepted for record in bench.run())
    (folder := tmp_path / "other").mkdir()
    sudden = Bench(folder, names="abcdef", settings=settings)
    sudden.reference.series = [5.0] * 5 + [5.4] * 2
    with pytest.raises(DeviceBusyError, match=r"\+8.0%"):
        sudden.run()


def test_other_load_is_repeated_after_a_wait(bench):
    # Guards: the first references, the first attempt (busy), two waits (busy, quiet), the second attempt.
    bench.clock.busy = [0.0, 0.9, 0.8, 0.1, 0.0]
    records = bench.run()
    assert bench.clock.slept == 2.0
    assert sum(bench.opened) == 7
    assert all(record.accepted for record in records)
    assert [line["reason"] for line in bench.lines() if line.get("accepted") is False] == [
        "others took 0.90 of a core; at most 0.30 is allowed"
    ]


def test_attempts_run_out(bench):
    bench.clock.busy = [0.0] + [0.9, 0.0] * 10
    with pytest.raises(DeviceBusyError, match=r"pass 1 was disturbed in 3 of 3 attempts: others took 0\.90 .*other"):
        bench.run()
    assert max(bench.opened) == 3
    # A later run begins anew, and what was disturbed is in the journal but not in the answer.
    bench.clock.busy = []
    records = bench.run()
    assert len(records) == 6 and all(record.accepted for record in records)
    assert sum(line.get("accepted") is False for line in bench.lines()) == 3


def test_patience_runs_out(bench, monkeypatch):
    told: list[str] = []
    # Not caplog: packages that other tests import set up logging for the whole process.
    monkeypatch.setattr("maenas.profiling.harness._log.warning", lambda text, *values: told.append(text % values))
    bench.clock.busy = [0.0] + [0.9] * 100
    with pytest.raises(DeviceBusyError, match=r"disturbed in 1 of 1 attempts.*or keep disturbed timings with --force"):
        bench.run()
    assert bench.clock.slept == QUICK.patience_s
    # Whoever waits is told why, once.
    reason = "others took 0.90 of a core; at most 0.30 is allowed"
    assert told == [f"other work disturbs the timings ({reason}); waiting, up to 5 s more"]


def test_time_off_the_processor_is_refused_for_one_thread_only(bench):
    bench.entries[0].cpu_share = 0.9
    assert all(record.accepted for record in bench.run())
    other = Bench(bench.journal.parent)
    other.journal = bench.journal.with_name("single")
    other.entries[0].cpu_share = 0.9
    with pytest.raises(DeviceBusyError, match=r"off the processor for 10\.0% of the time; at most 3\.0%"):
        other.run(threads=1)


def test_others_may_take_little_where_no_core_is_left_to_them(bench, monkeypatch):
    monkeypatch.setattr("maenas.profiling.harness.usable_cores", lambda: 2)
    bench.clock.busy = [0.0] + [0.2, 0.0] * 20
    assert all(record.accepted for record in bench.run(threads=1))
    other = Bench(bench.journal.parent)
    other.journal = bench.journal.with_name("both")
    other.clock.busy = [0.0] + [0.2, 0.0] * 20
    with pytest.raises(DeviceBusyError, match=r"others took 0\.20 of a core; at most 0\.10 is allowed"):
        other.run(threads=2)


def test_force_keeps_the_last_attempt_and_marks_it(tmp_path):
    bench = Bench(tmp_path, names="a", settings=Settings(passes=2, attempts=2, force=True))
    bench.clock.busy = [0.0, 0.9, 0.8]
    records = bench.run()
    assert bench.clock.slept == 0.0
    assert [(record.accepted, record.kept, record.busy) for record in records] == [
        (False, True, 0.8),
        (True, True, 0.0),
    ]
    assert not summarize(records)["a"].undisturbed
    assert bench.run() == records


def test_force_does_not_try_for_ever(tmp_path):
    bench = Bench(tmp_path, names="a", settings=Settings(passes=1, force=True))
    bench.clock.busy = [0.9] * 100
    (record,) = bench.run()
    assert bench.opened == [8] and record.kept and not record.accepted


def test_force_on_a_machine_that_stays_busy_tries_twice(tmp_path):
    bench = Bench(tmp_path, settings=Settings(passes=1, force=True))
    # First references, eight attempts, two, and one in a quiet moment.
    bench.clock.busy = [0.9] * 11 + [0.0]
    records = bench.run()
    assert sorted(bench.opened) == [1, 2, 8]
    assert sorted(record.accepted for record in records) == [False, False, True]
    # Quiet again: as many as at first.
    bench = Bench(tmp_path / "other", settings=Settings(passes=1, force=True))
    bench.journal.parent.mkdir()
    bench.clock.busy = [0.9, 0.0, *[0.9] * 100]
    bench.run()
    assert sorted(bench.opened) == [1, 2, 8]


def test_first_references_wait_for_agreement(bench):
    bench.reference.series = [5.0, 5.0, 5.0, 5.0, 6.0]
    bench.run()
    assert bench.clock.slept == 1.0
    assert next(line for line in bench.lines() if "references_ms" in line)["references_ms"] == pytest.approx([5.0] * 5)


def test_first_references_are_refused_on_a_busy_machine(bench):
    bench.clock.busy = [0.9] * 100
    with pytest.raises(DeviceBusyError, match="the reference: others took"):
        bench.run()
    assert bench.opened == [0, 0, 0]


def test_killed_at_any_line_the_campaign_ends_with_the_same_records(bench, tmp_path):
    whole = bench.run()
    lines = bench.journal.read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        for torn in (b"", lines[count][: len(lines[count]) // 2], lines[count][:-1]):
            again = Bench(tmp_path)
            again.journal = tmp_path / f"killed-{count}-{len(torn)}"
            again.journal.write_bytes(b"".join(lines[:count]) + torn)
            records = again.run()
            finished = {(line["key"], line["pass_index"]) for line in map(json.loads, lines[:count]) if "key" in line}
            assert sum(again.opened) == 6 - len(finished)
            for old, new in zip(whole, records, strict=True):
                if (old.key, old.pass_index) in finished:
                    assert new == old
            assert [(new.key, new.ms) for new in records] == [(old.key, pytest.approx(old.ms)) for old in whole]
            assert all(json.loads(line) for line in again.journal.read_bytes().splitlines())


def test_a_journal_of_another_campaign_is_refused(bench):
    bench.run(conditions={"backend": "openvino", "version": "1"})
    same = {"conditions": {"backend": "openvino", "version": "1"}}
    bench.run(**same)
    for change, message in (
        ({"conditions": {"backend": "openvino", "version": "2"}}, r"conditions\.version is '1'; expected '2'"),
        ({"conditions": {}}, r"conditions\.backend is 'openvino'; expected None"),
        ({"settings": Settings(passes=3)}, r"settings\.min_runs is 3; expected 5"),
        ({"entries": bench.entries[:2]}, r"number of entries is 3; expected 2"),
        ({"entries": [*bench.entries[:2], FakeEntry("x", bench.clock)]}, r"entries\[2\] is 'c'; expected 'x'"),
        ({"reference": FakeReference("other", bench.clock)}, r"reference is 'reference'; expected 'other'"),
    ):
        with pytest.raises(ProfileError, match=rf"journal\.jsonl: belongs to another campaign: {message}"):
            bench.run(**{**same, **change})


def test_waiting_longer_continues_a_journal(bench):
    first = bench.run()
    assert bench.run(settings=Settings(**{**vars(QUICK), "attempts": 9, "patience_s": 1, "force": True})) == first


def test_damage_inside_a_journal_is_named(bench):
    bench.run()
    lines = bench.journal.read_bytes().splitlines(keepends=True)
    for number, damage in ((3, b"{broken\n"), (4, b'{"key": "a"}\n'), (1, b"[]\n")):
        bench.journal.write_bytes(b"".join(lines[: number - 1]) + damage + b"".join(lines[number:]))
        with pytest.raises(ProfileError, match=rf"line {number} is "):
            bench.run()


def test_two_campaigns_on_one_journal_are_refused(bench):
    pytest.importorskip("fcntl")

    class Nosy(FakeEntry):
        def open(self):
            with pytest.raises(ProfileError, match="is in use by another process"):
                Bench(bench.journal.parent).run()
            return super().open()

    bench.entries[0] = Nosy("a", bench.clock)
    bench.run()
    assert bench.entries[0].opened == 2


def test_a_journal_that_cannot_be_written(bench, tmp_path):
    bench.journal = tmp_path / "none" / "journal"
    with pytest.raises(OutputError, match="cannot be written"):
        bench.run()


def test_a_failing_entry_is_named(bench):
    bench.entries[1].fail = RuntimeError("unsupported operator Foo\nsecond line")
    with pytest.raises(ProfileError, match=r"^b: failed to run \(RuntimeError: unsupported operator Foo\)$"):
        bench.run()


def test_an_interruption_leaves_a_valid_journal(bench):
    bench.entries[2].fail, bench.entries[2].fail_at = KeyboardInterrupt(), 2
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    done = [line["key"] for line in bench.lines() if "key" in line]
    bench.entries[2].fail = None
    opened = sum(bench.opened)
    assert len(bench.run()) == 6
    assert sum(bench.opened) - opened == 6 - len(done)


def test_keys_must_differ(bench):
    with pytest.raises(ProfileError, match="'a' is given twice"):
        bench.run(entries=[bench.entries[0], bench.entries[0]])


@pytest.mark.parametrize(
    ("field", "value"), [("passes", 0), ("drift", -1), ("attempts", 0), ("max_runs", 2), ("extra_passes", -1)]
)
def test_settings_are_checked(field, value):
    with pytest.raises(ProfileError, match=rf"{field} is {value}"):
        Settings(**{field: value})


def test_progress_counts_and_estimates(bench):
    bench.run()
    assert [call[0] for call in bench.calls] == list(range(7))
    assert {call[1] for call in bench.calls} == {6}
    assert bench.calls[0][2] is None
    assert bench.calls[-1][2:] == (0, "")
    # After the first pass the estimate is what the first pass took: the fakes do not vary.
    remaining = bench.clock.now - 0.0
    assert 0 < bench.calls[3][2] < remaining
    times = [line["seconds"] for line in bench.lines() if "key" in line]
    assert bench.calls[3][2] == pytest.approx(sum(times[3:]))


def test_statistics_by_hand(bench):
    bench.entries = bench.entries[:1]
    bench.entries[0].factors = [1.0, 1.2]
    stats = summarize(bench.run(settings=Settings(**{**vars(QUICK), "extra_passes": 0})))["a"]
    assert (stats.ms_min, stats.ms_p25, stats.ms_median) == pytest.approx((10.0, 11.0, 11.0))
    assert stats.rel_spread == pytest.approx(2 / 11)
    assert (stats.n, stats.passes, stats.undisturbed) == (6, 2, True)


KILLED = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from maenas.profiling.harness import run_campaign
from maenas.profiling.measurement import Settings

class Entry:
    def __init__(self, key):
        self.key = key
    @contextmanager
    def open(self):
        yield self
    def run(self):
        time.sleep(0.01)
        return 0.01
    def discard(self):
        pass
    def layers(self):
        return None

settings = Settings(passes=3, warmup=0, min_runs=3, min_seconds=0, drift=1e9, max_busy=1e9)
records = run_campaign(
    [Entry(key) for key in "abcdef"], settings=settings, journal=Path(sys.argv[1]), reference=Entry("reference")
)
print(len(records))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_9_loses_at_most_the_entry_in_progress(tmp_path):
    journal = tmp_path / "journal"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(journal)]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.005)
    running.kill()
    running.communicate()
    before = journal.read_bytes()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "18", done.stderr
    kept = before[: before.rfind(b"\n") + 1]
    assert journal.read_bytes().startswith(kept)
    # Header, references, and each measurement once: nothing finished was measured again.
    assert journal.read_bytes().count(b"\n") == 20


class Spinning:
    """A real entry: 20 ms of arithmetic on this process's processor."""

    def __init__(self, key):
        self.key = key

    def open(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def run(self):
        started = time.perf_counter()
        total = 0
        for number in range(150_000):
            total += number * number
        return time.perf_counter() - started

    def discard(self):
        pass

    def layers(self):
        return None


@pytest.fixture
def busy_processes():
    """As many endless loops as there are cores."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    time.sleep(0.3)
    yield
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_real_busy_processes_are_noticed(tmp_path, busy_processes):
    # Drift is off, so that nothing but the load of others can refuse.
    settings = Settings(passes=1, warmup=1, min_runs=5, min_seconds=0.3, drift=1e9, attempts=2, patience_s=2)
    with pytest.raises(DeviceBusyError, match=r"others took \d\.\d+ of a core.*busiest now: \S+ \(\d+\) \d+%"):
        run_campaign([Spinning("a")], settings=settings, journal=tmp_path / "journal", reference=Spinning("reference"))


@pytest.mark.slow
def test_a_busy_stretch_is_repeated(tmp_path):
    """A second terminal works while the first entry is measured, and stops: that entry is measured again."""
    psutil = pytest.importorskip("psutil")
    settings = Settings(passes=1, warmup=1, min_runs=5, min_seconds=0.5, drift=1e9, patience_s=60)
    workers = []

    class Guard(LoadGuard):
        """Counts the load of this test's own workers only: other tests may run at the same time."""

        def __enter__(self):
            self.used = self.seconds_used()
            return super().__enter__()

        def seconds_used(self):
            times = [psutil.Process(worker.pid).cpu_times() for worker in workers if worker.returncode is None]
            return sum(time.user + time.system for time in times)

        @property
        def busy(self):
            share = max(0.0, self.seconds_used() - self.used) / self.seconds
            return min(super().busy, share)

    class Disturbed(Spinning):
        def __enter__(self):
            if not workers:
                loop = "import time\nend = time.time() + 3\nwhile time.time() < end: pass"
                count = os.cpu_count() or 1
                workers.extend(subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count))
                time.sleep(0.5)
            return self

    try:
        records = run_campaign(
            [Disturbed("a")],
            settings=settings,
            journal=tmp_path / "journal",
            reference=Spinning("reference"),
            machine=Machine(guard=Guard),
        )
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    attempts = [line for line in lines if "key" in line]
    assert "others took" in attempts[0]["reason"]
    assert [record.accepted for record in records] == [True]
    assert not attempts[0]["kept"] and len(attempts) > 1
