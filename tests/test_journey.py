"""Journeys: which commands they are made of, what of them is done, how one goes on, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from journey_cases import made_device, made_journey, write_outputs

from maenas import journey_run
from maenas.cli.main import _parser
from maenas.errors import OutputError
from maenas.journey import JourneyError, plan_steps, searched_export
from maenas.journey_process import Ended, Output
from maenas.journey_record import (
    Entry,
    check_same_question,
    new_record,
    read_record,
    standing,
    step_key,
    write_record,
)
from maenas.journey_run import run_steps

ASKED = (Entry("--budget", "8ms"), Entry("--data", "cells/data.yaml"))


def names(journey):
    return [step.name for step in plan_steps(journey)]


def step_of(journey, name):
    return next(step for step in plan_steps(journey) if step.name == name)


@pytest.fixture
def journey(tmp_path):
    made = made_journey(tmp_path)
    for path in made.device.table_files:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    return made


def write_searched(folder, content="{}"):
    """What a measured search leaves of its answer."""
    (folder / "search.json").write_text(json.dumps({"measured": {"finalist": "abc"}, "content": content}))
    (folder / "measured").mkdir(exist_ok=True)
    (folder / "measured" / "abc.onnx").write_text(content)


class Verbs:
    """Stands for child processes: every step leaves its outputs, and what was called is kept."""

    def __init__(self, journey):
        self.journey = journey
        self.called = []
        self.outputs = []
        self.content = "{}"
        self.codes = {}

    def __call__(self, words, *, output, file, lock, tick):
        self.called.append(words)
        self.outputs.append(output)
        tick(1.5)
        code, stopped_by = self.codes.pop(words[0], (0, None))
        if code == 0:
            step = next(step for step in plan_steps(self.journey) if words[: len(step.command)] == step.command)
            write_outputs(step, self.content)
            if step.name == "search":
                write_searched(self.journey.out / "search", self.content)
        return Ended(code, stopped_by, 2.0)

    @property
    def verbs(self):
        return [words[0] for words in self.called]


@pytest.fixture
def verbs(journey, monkeypatch):
    made = Verbs(journey)
    monkeypatch.setattr(journey_run, "run_child", made)
    return made


def go(journey, record=None, *, force=False):
    told = []
    outcome = run_steps(
        journey,
        record or new_record(ASKED, table="made", profiled=False),
        lock=None,
        force=force,
        quiet=False,
        tell=lambda step, what: told.append((step.name, what)),
    )
    return outcome, told


# The plan


def test_the_steps_of_a_measured_journey(tmp_path):
    journey = made_journey(tmp_path)
    assert names(journey) == [
        "search", "front", "explain", "train", "eval", "export-fp32", "check-fp32", "benchmark", "plot",
    ]  # fmt: skip
    profiled = replace(journey, device=made_device(tmp_path, profile=("--backend", "openvino", "--name", "made")))
    assert names(profiled)[0] == "profile"
    assert step_of(profiled, "profile").command[-2:] == ("--work", str(tmp_path / "run" / "profile"))


def test_a_table_of_another_machine_measures_nothing(tmp_path):
    journey = made_journey(tmp_path, device=made_device(tmp_path, is_here=False))
    assert "benchmark" not in names(journey)
    assert "--measure" not in step_of(journey, "search").command
    assert step_of(journey, "plot").command.count("--predict") == 1


def test_what_is_given_is_left_out(tmp_path):
    given = tmp_path / "structure.json"
    with_structure = made_journey(tmp_path, search=(), front=(), structure=given)
    assert names(with_structure)[:2] == ["explain", "train"]
    assert step_of(with_structure, "train").command[1] == str(given)
    weights = tmp_path / "trained.safetensors"
    with_weights = replace(with_structure, train=(), weights=weights)
    assert names(with_weights)[:2] == ["explain", "eval"]
    assert step_of(with_weights, "eval").command[1] == str(weights)
    folder = tmp_path / "exported"
    exported = replace(with_weights, weights=None, exported={"int8": folder}, precisions=("int8",))
    assert names(exported) == ["explain", "eval", "check-int8", "benchmark", "plot"]
    assert step_of(exported, "eval").command[1] == step_of(exported, "check-int8").command[1] == str(folder)
    with pytest.raises(JourneyError, match="--precision has fp32, which is not in --exported; expected --weights"):
        plan_steps(replace(exported, precisions=("fp32", "int8")))


def test_quantised_files_are_calibrated_with_the_data(tmp_path):
    journey = made_journey(tmp_path, precisions=("fp32", "int8"), export=("--nms", "end2end"))
    assert "--data" not in step_of(journey, "export-fp32").command
    assert step_of(journey, "export-int8").identities == {"data": journey.data_digest}
    command = step_of(journey, "export-int8").command
    assert command[command.index("--data") + 1] == journey.data and "end2end" in command


def test_a_union_has_no_plot(tmp_path):
    assert "plot" not in names(made_journey(tmp_path, union=True))


@pytest.mark.parametrize("disturbed", [False, True])
def test_every_step_is_a_command_that_parses(tmp_path, disturbed):
    device = made_device(tmp_path, profile=("--backend", "openvino", "--name", "made"))
    for here in (True, False):
        journey = made_journey(
            tmp_path,
            device=replace(device, is_here=here, threads=2, precision="fp16", batch=2),
            precisions=("fp32", "fp16", "int8"),
            keep_disturbed=disturbed,
        )
        for step in plan_steps(journey):
            arguments = _parser().parse_args(step.command)
            assert getattr(arguments, "force", False) == (
                disturbed and step.name in ("profile", "search", "benchmark")
            ) or (step.name == "search" and not here)


def test_the_searched_file_is_timed_again(tmp_path):
    journey = made_journey(tmp_path)
    measured = journey.out / "search" / "measured"
    assert searched_export(journey) == measured / "DIGEST.onnx"
    (journey.out / "search").mkdir(parents=True)
    write_searched(journey.out / "search")
    assert step_of(journey, "benchmark").command[1] == str(measured / "abc.onnx")
    (measured / "abc.onnx").unlink()
    assert searched_export(journey) is None
    assert step_of(journey, "benchmark").command[1] == str(journey.out / "export" / "fp32")


# Going through it


def test_a_journey_is_done_once(journey, verbs):
    outcome, told = go(journey)
    assert outcome.failed is None
    assert verbs.verbs == ["search", "front", "explain", "train", "eval", "export", "eval", "benchmark", "plot"]
    assert {what for _, what in told} == {"begin"}
    assert outcome.record == read_record(journey.out)
    search = outcome.record.finished("search")
    assert search.command == step_of(journey, "search").command and (search.seconds, search.attempts) == (2.0, 1)
    assert verbs.outputs[2] is Output.KEEP and verbs.outputs[6] is Output.DROP
    verbs.called.clear()
    outcome, told = go(journey, outcome.record)
    assert verbs.called == [] and {what for _, what in told} == {"done"}


def test_a_step_that_fails_ends_it_and_is_tried_again(journey, verbs):
    verbs.codes["train"] = (2, None)
    outcome, _ = go(journey)
    assert (outcome.failed.name, outcome.end.code) == ("train", 2)
    assert read_record(journey.out).running.name == "train"
    state = journey.out / "train" / "state.safetensors"
    state.write_text("half")
    verbs.called.clear()
    outcome, told = go(journey, read_record(journey.out))
    assert outcome.failed is None
    assert verbs.called[0][-1] == "--resume" and state.exists()
    assert ("train", "continue") in told and ("search", "done") in told
    train = outcome.record.finished("train")
    assert (train.attempts, train.seconds) == (2, 4.0) and "--resume" not in train.command


def test_training_that_saved_nothing_begins_anew(journey, verbs):
    verbs.codes["train"] = (137, None)
    outcome, _ = go(journey)
    (journey.out / "train" / "config.yaml").write_text("left behind")
    go(journey, outcome.record)
    assert "--resume" not in verbs.called[-6]
    assert not (journey.out / "train" / "config.yaml").exists()


def test_a_measurement_goes_on_from_its_journal(journey, verbs):
    verbs.codes["search"] = (143, None)
    outcome, _ = go(journey)
    journal = journey.out / "search" / "measured" / "a.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("{}")
    go(journey, outcome.record)
    assert journal.exists()


def test_half_an_export_is_removed(journey, verbs):
    verbs.codes["export"] = (143, None)
    outcome, _ = go(journey)
    left = journey.out / "export" / "fp32" / "model.onnx"
    left.write_text("half")
    go(journey, outcome.record)
    assert not left.exists()


def test_a_step_that_was_only_not_noted_is_not_repeated(journey, verbs):
    verbs.codes["explain"] = (137, None)
    outcome, _ = go(journey)
    # As if the process had been killed between the step before and its record.
    half = replace(
        outcome.record, steps=outcome.record.steps[:1], running=replace(outcome.record.running, name="front")
    )
    front = outcome.record.finished("front")
    half = replace(half, running=replace(half.running, key=front.key, inputs=front.inputs))
    verbs.called.clear()
    outcome, _ = go(journey, half)
    assert verbs.verbs[0] == "explain" and outcome.record.finished("front") is not None


def test_a_missing_file_is_made_again_and_all_that_depends_on_it(journey, verbs):
    outcome, _ = go(journey)
    (journey.out / "train" / "best.safetensors").unlink()
    verbs.called.clear()
    verbs.content = "other"
    outcome, told = go(journey, outcome.record)
    assert verbs.verbs == ["train", "eval", "export", "eval", "benchmark", "plot"]
    assert ("search", "done") in told and ("explain", "done") in told


def test_equal_files_again_leave_the_rest_done(journey, verbs):
    outcome, _ = go(journey)
    (journey.out / "train" / "best.safetensors").unlink()
    verbs.called.clear()
    go(journey, outcome.record)
    assert verbs.verbs == ["train"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("out", r"step search does not count any more: what it wrote was changed since: search/structure.json"),
        ("in", r"step search does not count any more: what it reads has changed: .*table.json"),
        ("command", r"step train does not count any more: its command was: maenas train .* --epochs 3"),
        ("data", r"step train does not count any more: what it reads has changed: data"),
    ],
)
def test_changes_are_refused_or_made_anew(journey, verbs, change, message):
    outcome, _ = go(journey)
    if change == "out":
        (journey.out / "search" / "structure.json").write_text("mine")
    elif change == "in":
        journey.device.table_files[0].write_text("another")
    elif change == "command":
        journey = replace(journey, train=("--recipe", "small-data", "--epochs", "4"))
    else:
        journey = replace(journey, data_digest="e" * 16)
    verbs.journey = journey
    with pytest.raises(JourneyError, match=message + r".*expected another --out, or --force"):
        go(journey, outcome.record)
    verbs.called.clear()
    outcome, _ = go(journey, outcome.record, force=True)
    assert outcome.failed is None and verbs.verbs[0] == ("search" if change in ("out", "in") else "train")
    assert all(standing(step, journey, outcome.record).done for step in plan_steps(journey))


def test_a_moved_run_is_still_done(journey, verbs, tmp_path):
    outcome, _ = go(journey)
    journey.out.rename(tmp_path / "elsewhere")
    moved = replace(journey, out=tmp_path / "elsewhere", data="there/data.yaml")
    assert all(standing(step, moved, outcome.record).done for step in plan_steps(moved))
    assert step_key(plan_steps(moved)[0], moved)[-1] == "{out}/search"


def test_a_step_without_its_files_has_not_ended_well(journey, verbs, monkeypatch):
    monkeypatch.setattr(journey_run, "run_child", lambda words, **others: Ended(0, None, 1.0))
    with pytest.raises(OutputError, match=r"step search ended well, but did not write .*structure.json"):
        go(journey)


def test_leave_to_keep_disturbed_timings_changes_no_question(journey, verbs):
    verbs.codes["benchmark"] = (2, None)
    outcome, _ = go(journey)
    verbs.called.clear()
    verbs.journey = replace(journey, keep_disturbed=True)
    outcome, _ = go(verbs.journey, outcome.record)
    assert verbs.verbs == ["benchmark", "plot"] and "--force" in verbs.called[0]
    assert outcome.record.finished("benchmark").attempts == 2


# The record


def test_the_record_is_read_as_it_was_written(journey, verbs):
    outcome, _ = go(journey)
    write_record(outcome.record, journey.out)
    assert read_record(journey.out) == outcome.record


def test_another_question_is_named(tmp_path):
    record = new_record((*ASKED, Entry("--nms", "end2end")), table="made", profiled=False)
    check_same_question(record, (*ASKED, Entry("--nms", "end2end")), tmp_path)
    with pytest.raises(
        JourneyError,
        match=r"holds a run of another question: --budget was 8ms, is 6ms; --nms was end2end, is not now; "
        r"--seed was not given, is 3; expected another --out, or --force",
    ):
        now = (Entry("--budget", "6ms"), Entry("--data", "cells/data.yaml"), Entry("--seed", "3"))
        check_same_question(record, now, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"run.json: cannot be read .*expected the record of a run"),
        ("[]", r"run.json: is \[\]; expected an object"),
        ('{"schema_version": 9, "maenas_version": "0", "asked": [], "table": "", "profiled": false}',
         r"run.json: schema_version is 9; expected 1"),
    ],
)  # fmt: skip
def test_records_of_something_else(tmp_path, content, message):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(JourneyError, match=message):
        read_record(tmp_path)


def test_a_folder_of_other_files_is_not_written_to(tmp_path: Path):
    assert read_record(tmp_path / "new") is None
    (tmp_path / ".lock").touch()
    assert read_record(tmp_path) is None
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(JourneyError, match=r"holds files, but no run.json of a run; expected a new folder"):
        read_record(tmp_path)
