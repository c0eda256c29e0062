"""The commands end to end: answers, run folders, and one line with exit code 2 for whatever a user gets wrong."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from cli_cases import answer
from search_cases import OFFICIAL, ROOT, content_of, has_table, made_table, rows_for, write_space

from maenas import files
from maenas.cli.main import COMMANDS, main
from maenas.errors import OutputError
from maenas.files import write_text_atomically
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.lowering.detector import lower
from maenas.published import load_published
from maenas.reach import reachable_ops
from maenas.scores import SCORES
from maenas.spaces import load_space
from maenas.structure import load_structure, save_structure

T4, INTEL = "t4-tensorrt-fp16", "intel8163-openvino"
needs_t4 = pytest.mark.skipif(not has_table(T4), reason=f"latency table {T4} is not in this checkout")
needs_intel = pytest.mark.skipif(not has_table(INTEL), reason=f"latency table {INTEL} is not in this checkout")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and no tables of the user's own."""
    monkeypatch.setenv("MAENAS_TABLES", str(tmp_path / "no-tables"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def maenas(here, capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        return answer(capsys, *arguments)

    return run


@pytest.fixture
def refused(maenas):
    """Run a command that must fail as a user's error; returns its one line."""

    def run(*arguments):
        code, out, err = maenas(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("maenas: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def table(tmp_path):
    """A made table that predicts any operator."""
    return made_table(tmp_path / "tables" / "made").folder


@pytest.fixture
def tiny(tmp_path, table):
    """Arguments of a quick search in a tiny space."""
    space = write_space(tmp_path, content_of("res"))
    return ("search", "--space", space, "--device", table, "--budget", "280us")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Search


RECORD_KEYS = {
    "score", "latency_ms", "latency_sigma_ms", "device", "provenance", "table_hash", "params", "flops", "certificate",
    "structure", "run_dir",
}  # fmt: skip


@needs_t4
def test_a_search_on_the_t4(maenas, here):
    arguments = ("search", "--budget", "3.8ms", "--device", "t4", "--block", "res", "--json")
    code, out, err = maenas(*arguments)
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record.keys() >= RECORD_KEYS
    assert record["certificate"].keys() >= {"upper_bound", "gap", "labels"}
    assert 0 < record["latency_ms"] <= 3.8
    assert record["latency_sigma_ms"] > 0
    assert (record["device"], record["provenance"]) == (T4, "calibrated")
    assert record["table_hash"] == load_table("t4").table_hash
    assert record["certificate"]["upper_bound"] - record["objective"] <= 1e-6
    assert record["score"] > SCORES["madnas"](load_published("damo-yolo-s"))
    # The same figures again from the structure file alone.
    run_dir = here / record["run_dir"]
    structure = load_structure(run_dir / "structure.json")
    assert structure.to_dict() == record["structure"]
    assert SCORES["madnas"](structure) == pytest.approx(record["score"], rel=1e-12)
    assert predict(lower(structure), load_table("t4")).latency_ms == pytest.approx(record["latency_ms"], rel=1e-12)
    assert json.loads((run_dir / "search.json").read_text()) == record
    entries = [json.loads(path.read_text()) for path in sorted((run_dir / "shortlist").iterdir())]
    assert entries[0] == record["structure"]
    assert len(entries) == len(record["shortlist"]) == 5
    lines = (run_dir / "shortlist.csv").read_text().splitlines()
    assert lines[0] == "rank,digest,score,latency_ms,latency_sigma_ms,params,flops,layers,memory_bytes,depths"
    assert [line.split(",")[1] for line in lines[1:]] == [each["digest"] for each in record["shortlist"]]
    # Once more: the same output, the same files.
    before = snapshot(run_dir)
    assert maenas(*arguments) == (0, out, "")
    assert snapshot(run_dir) == before
    assert {path.name for path in run_dir.iterdir()} == {"structure.json", "search.json", "shortlist.csv", "shortlist"}


@needs_t4
def test_the_command_in_a_process_of_its_own(here):
    command = [sys.executable, "-m", "maenas", "search", "--budget", "3.8ms", "--device", "t4", "--block", "res"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command += ["--top-k", "2", "--out", "run"]
    first, second = (
        subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout  # the elapsed time goes to standard error
    assert "searched in" in first.stderr
    for text in ("calibrated", "damo-yolo-s", "proof:", "scores above", "written: run/"):
        assert text in " ".join(first.stdout.split())
    command += ["--device", "toaster"]
    bad = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("maenas: error: latency table 'toaster' is unknown")
    assert bad.stderr.count("\n") == 1


PUBLISHED_ON = [
    *(pytest.param("t4", f"damo-yolo-{size}", marks=needs_t4, id=size) for size in "tsml"),
    *(pytest.param("intel-8163", f"damo-yolo-n{size}", marks=needs_intel, id=f"n{size}") for size in "sml"),
]


@pytest.mark.parametrize(("device", "name"), PUBLISHED_ON)
def test_a_search_at_the_latency_of_a_published_net_beats_it(maenas, device, name):
    structure = load_published(name)
    family = structure.backbone.family
    variant = load_space(family).nearest_variant(structure).name
    limit = predict(lower(structure), load_table(device)).latency_ms
    question = ("--device", device, "--block", family, "--variant", variant, "--top-k", 1, "--json")
    code, out, _ = maenas("search", "--budget", f"{limit!r}ms", *question)
    assert code == 0
    record = json.loads(out)
    assert record["latency_ms"] <= limit
    assert record["score"] > SCORES["madnas"](structure)
    assert record["operators"]["extrapolated"] == 0


def test_figures_for_people_name_their_source(maenas, tiny):
    code, out, err = maenas(*tiny, "--out", "run")
    assert code == 0
    for text in (
        "calibrated",
        "10.0 %",
        "280.00 us",
        "tiny-res",
        "labels",
        "written: run/structure.json",
    ):
        assert text in " ".join(out.split())
    assert "searched in" in err
    assert "searched in" not in out


def test_other_budgets_need_no_device(maenas, tmp_path):
    space = write_space(tmp_path, content_of("csp"))
    code, out, _ = maenas("search", "--space", space, "--max-params", "300k", "--max-layers", "13", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["params"] <= 300_000
    assert record["layers"] <= 13
    assert (record["device"], record["latency_ms"], record["table_hash"]) == (None, None, None)


def test_image_size_and_classes_reach_the_structure(maenas, tiny):
    code, out, _ = maenas(*tiny, "--image-size", "64x128", "--num-classes", 7, "--budget", "1ms", "--json")
    assert code == 0
    structure = json.loads(out)["structure"]
    assert structure["image_size"] == [64, 128]
    assert structure["head"]["num_classes"] == 7


def test_margin_and_scope_are_applied(maenas, tiny):
    _, out, _ = maenas(*tiny, "--scope", "backbone", "--margin", "2sigma", "--budget", "200us", "--json")
    record = json.loads(out)
    assert record["latency_ms"] + 2 * record["latency_sigma_ms"] <= 0.2
    assert (record["request"]["scope"], record["request"]["margin_sigmas"]) == ("backbone", 2.0)


def test_a_users_own_score(maenas, tiny, here):
    (here / "own_score_of_mine.py").write_text(
        "def narrow(structure):\n    return -float(structure.backbone.stages[0].out_channels)\n"
    )
    own = ("--score", "own_score_of_mine:narrow", "--candidates", 2000, "--seed", 1, "--json", "--out", "run")
    code, out, _ = maenas(*tiny, *own)
    assert code == 0
    record = json.loads(out)
    assert record["score"] == -8.0
    assert record["certificate"] is None
    assert record["evolution"]["candidates"] == 2000
    assert not (here / "run" / "evolution.json").exists()
    code, again, _ = maenas(*tiny, *own)
    assert (code, again) == (0, out)
    sys.modules.pop("own_score_of_mine", None)


# The run folder


def test_another_question_does_not_overwrite(maenas, refused, tiny, here):
    out = ("--out", "run")
    assert maenas(*tiny, *out)[0] == 0
    before = snapshot(here / "run")
    other = (*tiny, "--budget", "275us", *out)
    assert "choose another --out, or add --force" in refused(*other)
    assert snapshot(here / "run") == before
    assert maenas(*other, "--force")[0] == 0
    after = snapshot(here / "run")
    assert after["structure.json"] != before["structure.json"]
    # Nothing of the old answer is left beside the new one.
    assert len([name for name in after if name.startswith("shortlist/")]) == after["shortlist.csv"].count(b"\n") - 1


@pytest.mark.parametrize(
    "change",
    [("--top-k", 1), ("--image-size", 64), ("--num-classes", 3), ("--margin", "0.01sigma"), ("--allow-extrapolation",)],
    ids=lambda change: change[0],
)
def test_every_option_that_can_change_the_answer_makes_another_question(maenas, refused, tiny, change):
    tiny = (*tiny, "--budget", "1ms", "--out", "run")
    assert maenas(*tiny)[0] == 0
    assert "holds the result of another search" in refused(*tiny, *change)


def test_an_edited_space_of_the_same_name_is_another_question(maenas, refused, tiny, tmp_path):
    tiny = (*tiny, "--budget", "1ms", "--out", "run")
    assert maenas(*tiny)[0] == 0
    content = content_of("res")
    content["stages"][3]["out_channels"]["max"] = 32
    write_space(tmp_path, content)
    assert "holds the result of another search" in refused(*tiny)


def test_a_folder_with_something_else_in_it_is_kept(maenas, refused, tiny, here):
    (here / "run").mkdir()
    (here / "run" / "structure.json").write_text("mine")
    refused(*tiny, "--out", "run")
    assert (here / "run" / "structure.json").read_text() == "mine"


@pytest.mark.parametrize("verb", ["search", "front", "convert"])
def test_output_that_cannot_be_written(refused, tiny, here, verb):
    (here / "file").write_text("mine")
    target = "file/below/run"
    commands = {
        "search": (*tiny, "--out", target),
        "front": ("front", *tiny[1:5], "--from", "270us", "--to", "280us", "--out", target),
        "convert": ("convert", "structure", "damo-yolo-s", f"{target}.json"),
    }
    message = refused(*commands[verb])
    assert "file/below/run" in message
    assert "cannot be" in message
    assert (here / "file").read_text() == "mine"


def test_what_a_name_holds_breaks_no_line(refused):
    message = refused("table", "show", "./a\nb\x1b[31m")
    assert message.startswith(r"maenas: error: a\nb\x1b[31m/table.json: not found")


def test_warnings_of_libraries_are_one_line(maenas, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert maenas("table", "list")[0] == 0
    assert warnings.formatwarning("a\n letter", UserWarning, "font.py", 7) == "maenas: warning: a letter\n"


def test_an_interruption_while_writing_leaves_whole_files(maenas, tiny, here, monkeypatch):
    assert maenas(*tiny, "--out", "run")[0] == 0
    before = snapshot(here / "run")
    real, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(files.os, "replace", interrupted)
    code, out, err = maenas(*tiny, "--out", "run")
    assert (code, out) == (130, "")
    assert err == "maenas: interrupted; finished files are whole, unfinished ones were not written\n"
    monkeypatch.undo()
    after = snapshot(here / "run")
    assert after.keys() == before.keys()  # no temporary file either
    assert after == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "result.json"
    write_text_atomically(path, "old")

    def failing(*arguments):
        raise error

    monkeypatch.setattr(files.os, "replace", failing)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_text_atomically(path, "new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"result.json": "old"}


def test_a_full_disk_is_one_line(refused, tiny, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert "cannot be written (No space left on device)" in refused(*tiny, "--out", "run")


# What a user can get wrong


BAD_QUESTIONS = [
    (("--device", "toaster"), "latency table 'toaster' is unknown"),
    (("--budget", "3.8fps"), "latency_ms budget '3.8fps' has the unit 'fps'; expected one of ms, s, us"),
    (("--budget", "fast"), "latency_ms budget 'fast' is not a number with a unit; expected e.g. 3.8ms"),
    (("--budget", "0ms"), "latency_ms budget is 0.0; expected a number above 0"),
    (("--budget", "1us"), "the smallest reachable is"),
    (("--max-params", "9MB"), "params budget '9MB' has the unit 'MB'; expected one of (none), k, m, g, t"),
    (("--max-params", "1"), "params budget 1"),
    (("--max-flops", "20GMACs"), "flops budget '20GMACs' has the unit 'GMACs'"),
    (("--max-layers", "3"), "the smallest reachable is 9 layers"),
    (("--max-memory", "8"), "memory_bytes budget '8' has no unit; expected one of b, kb, mb"),
    (("--max-memory", "1kB"), "memory budget 1.000 kB cannot be met"),
    (("--block", "res"), "give either --block (res, csp or mob) or --space FILE"),
    (("--variant", "x"), "space tiny-res has no variant 'x'; expected one of a"),
    (("--image-size", "641"), "--image-size: image_size[0] is 641; expected a multiple of 32"),
    (("--image-size", "0"), "--image-size is '0'; expected N or HxW, such as 640 or 480x640"),
    (("--image-size", "640x"), "--image-size is '640x'; expected N or HxW"),
    (("--image-size", "a"), "--image-size is 'a'; expected N or HxW"),
    (("--image-size", "1x2x3"), "--image-size is '1x2x3'; expected N or HxW"),
    (("--image-size", "-640"), "--image-size is '-640'; expected N or HxW"),
    (("--margin", "1"), "--margin is '1'; expected a number from 0 to 10 with sigma"),
    (("--margin", "-1sigma"), "--margin is '-1sigma'; expected a number from 0 to 10"),
    (("--margin", "nansigma"), "--margin is 'nansigma'; expected a number from 0 to 10"),
    (("--margin", "11sigma"), "--margin is '11sigma'; expected a number from 0 to 10"),
    (("--num-classes", "0"), "--num-classes: num_classes is 0; expected an integer from 1 to 100000"),
    (("--top-k", "0"), "--top-k is 0; expected at least 1"),
    (("--candidates", "0"), "--candidates is 0; expected at least 1"),
    (("--workers", "0"), "--workers is 0; expected at least 1"),
    (("--seed", "-1"), "--seed is -1; expected at least 0"),
    (("--score", "luck"), "unknown score 'luck'; expected one of madnas, deepmad"),
    (("--score", "no_such_module:f"), "module 'no_such_module' cannot be imported"),
    (("--score", ":f"), "module '' cannot be imported"),
    (("--score", "deepmad", "--solver", "exact"), "score deepmad is not separable; expected --solver evolution"),
]


@pytest.mark.parametrize(("extra", "message"), BAD_QUESTIONS, ids=[" ".join(extra) for extra, _ in BAD_QUESTIONS])
def test_a_bad_question_is_one_line(refused, tiny, here, extra, message):
    arguments = list(tiny)
    for option, value in zip(extra[::2], extra[1::2], strict=True):
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
        else:
            arguments.append(f"{option}={value}")
    assert message in refused(*arguments)
    # A question that was never a question leaves nothing behind.
    assert not list(here.rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--block", "resnet"), "unknown block 'resnet'; expected one of res, csp, mob"),
        (("--block", "kxkx"), "unknown block 'kxkx'; expected one of res, csp, mob; family kxkx has no wide space"),
        ((), "give either --block (res, csp or mob) or --space FILE"),
        (("--space", "huge"), "unknown search space 'huge'; expected one of csp, mob, res"),
        (("--space", "../res"), "unknown search space '../res'"),
        (("--space", "absent.yaml"), "absent.yaml: cannot be read as text"),
        (("--block", "res", "--max-params", "9M"), None),
        (("--block", "res"), "no budget is given; expected at least one, such as a latency of 3.8ms"),
        (("--block", "res", "--budget", "3ms"), "a latency budget needs a device; expected --device"),
    ],
)
def test_where_to_search(maenas, refused, arguments, message):
    if message is None:
        assert maenas("search", *arguments, "--top-k", 1)[0] == 0
    else:
        assert message in refused("search", *arguments)


def test_a_malformed_space_is_named_with_field_value_and_expectation(refused, tmp_path):
    content = content_of("res")
    content["stages"][1]["depth"] = {"min": 3, "max": 1}
    path = write_space(tmp_path, content)
    message = refused("search", "--space", path, "--max-params", "1M")
    assert f"{path}: stages[1].depth.min is 3; expected 0 to max (1)" in message
    Path(path).write_text("stages: [")
    assert f"{path}: is not valid YAML" in refused("search", "--space", path, "--max-params", "1M")


def test_a_malformed_table_is_named_with_field_value_and_expectation(refused, tiny, table):
    header = json.loads((table / "table.json").read_text())
    (table / "table.json").write_text(json.dumps(header | {"batch": 0}))
    for command in (tiny, ("explain", "damo-yolo-s", "--device", table), ("table", "validate", table)):
        message = refused(*command)
        assert f"{table}/table.json: batch is 0; expected a whole number, 1 or more" in message


def test_changed_rows_are_refused(refused, tiny, table):
    with (table / "rows.csv").open("a") as stream:
        stream.write("\n")
    assert "rows.csv: its sha256 is" in refused(*tiny)


def test_a_malformed_structure_is_named_with_field_value_and_expectation(refused, here, table):
    structure = load_published("damo-yolo-s").to_dict()
    structure["backbone"]["stages"][2]["stride"] = 5
    path = here / "bad.json"
    path.write_text(json.dumps(structure))
    for command in (("explain", path, "--device", table), ("convert", "structure", path)):
        assert f"{path}: backbone.stages[2].stride is 5; expected 1 or 2" in refused(*command)
    path.write_text("{")
    assert "bad.json" in refused("explain", path, "--device", table)
    assert "structure 'damo-yolo-x' is unknown" in refused("explain", "damo-yolo-x", "--device", table)


def test_a_table_without_the_operators_is_refused(refused, tiny, tmp_path):
    space = load_space(tiny[2])
    kept = [op for op in reachable_ops(space) if op.kind != "resize"]
    poor = made_table(tmp_path / "tables" / "poor", kind="rows", rows=rows_for(kept)).folder
    arguments = [poor if argument == tiny[4] else argument for argument in tiny]
    message = refused(*arguments)
    assert "table poor lacks" in message
    assert "operators of 2 forms that space tiny-res needs: resize at" in message
    save_structure(load_published("damo-yolo-s"), tmp_path / "s.json")
    assert "table poor lacks" in refused("explain", tmp_path / "s.json", "--device", poor)


def test_argparse_errors_exit_with_two(maenas):
    for arguments in (
        (),
        ("serach",),
        ("search", "--budjet", "3ms"),
        ("search", "--top-k", "x"),
        ("search", "--bud", "3ms"),
    ):
        code, out, err = maenas(*arguments)
        assert (code, out) == (2, "")
        assert "error:" in err
        assert "Traceback" not in err


def test_a_bug_keeps_its_traceback(tiny, here, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("maenas.search.run_request", broken)
    with pytest.raises(ZeroDivisionError):
        main([str(argument) for argument in (*tiny, "--out", "run")])


def test_a_package_that_is_missing_is_one_line(refused, tiny, monkeypatch):
    def needs(name):
        def needing(*arguments, **options):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return needing

    monkeypatch.setattr("maenas.search.run_request", needs("torch.nn"))
    assert "this needs the package torch; install it with: pip install 'maenas[detector]'" in refused(*tiny)
    monkeypatch.setattr("maenas.search.run_request", needs("detector.gone"))
    with pytest.raises(ModuleNotFoundError):
        main([str(argument) for argument in tiny])


def test_help_of_every_verb_ends_with_an_example(maenas):
    for verb in COMMANDS:
        code, out, _ = maenas(verb, "--help")
        assert code == 0
        assert f"example: maenas {verb} " in " ".join(out.split())
    code, out, _ = maenas("--version")
    assert (code, out.split()[0]) == (0, "maenas")


# Explain


@needs_t4
def test_explain_says_where_the_milliseconds_go(maenas):
    code, out, err = maenas("explain", "damo-yolo-s", "--device", "t4", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    prediction = predict(lower(load_published("damo-yolo-s")), load_table("t4"))
    assert record["latency_ms"] == pytest.approx(prediction.latency_ms, rel=1e-12)
    assert record["latency_sigma_ms"] == pytest.approx(prediction.sigma_ms, rel=1e-12)
    assert isinstance(record["layers"], int)
    for part in ("groups", "ops"):
        total = record["fixed_ms"] + sum(each["latency_ms"] for each in record[part])
        assert total == pytest.approx(record["latency_ms"], rel=1e-9)
    assert [group["name"] for group in record["groups"]] == [
        "stem",
        *(f"stage{i}" for i in range(1, 6)),
        "neck",
        "head",
    ]
    assert (record["device"], record["provenance"]) == (T4, "calibrated")
    budgets = [trade["latency_budget_ms"] for trade in record["trades"]]
    assert budgets == pytest.approx([record["latency_ms"] + step for step in (-1, 0, 1)])
    scores = [trade["optimum"]["score"] for trade in record["trades"]]
    assert scores == sorted(scores)
    assert scores[1] > SCORES["madnas"](load_published("damo-yolo-s"))


def test_explain_for_people(maenas, tmp_path, table):
    structure = load_structure_of_tiny_space(tmp_path)
    code, out, err = maenas(
        "explain", structure, "--device", table, "--layers", "--scope", "backbone", "--step", "10us"
    )
    assert (code, err) == (0, "")
    for text in ("stem.conv", "stage2.unit1.conv1", "fixed", "calibrated"):
        assert text in out
    assert "neck.merge" not in out


def load_structure_of_tiny_space(folder: Path) -> Path:
    """A structure file of a quick network."""
    small = load_published("damo-yolo-s")
    path = folder / "small.json"
    save_structure(replace(small, image_size=(64, 64)), path)
    return path


def test_explain_needs_no_score_of_five_levels(maenas, tmp_path, table):
    # One more stride-2 stage behind the last one the neck reads: a legal detector with six levels.
    structure = load_published("damo-yolo-s")
    stages = structure.backbone.stages
    deeper = replace(structure.backbone, stages=(*stages, replace(stages[-1], spp=False)))
    save_structure(replace(structure, backbone=deeper), tmp_path / "deeper.json")
    code, out, err = maenas("explain", tmp_path / "deeper.json", "--device", table, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["latency_ms"] > 0


# Front


def test_front_writes_rows_and_a_figure(maenas, tiny, here):
    question = ("front", *tiny[1:5], "--from", "200us", "--to", "285us", "--out", "out")
    code, out, _ = maenas(*question, "--json")
    assert code == 0
    record = json.loads(out)
    rows = (here / "out" / "front.csv").read_text().splitlines()
    assert len(rows) - 1 == record["points"] > 3
    values = [tuple(float(cell) for cell in row.split(",")[:2]) for row in rows[1:]]
    assert all(after[0] > before[0] and after[1] > before[1] for before, after in itertools.pairwise(values))
    assert values[0] == (record["first"]["latency_ms"], record["first"]["objective"])
    assert values[-1] == (record["last"]["latency_ms"], record["last"]["objective"])
    assert values[-1][0] <= 0.285
    image = (here / "out" / "front.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n")
    before = snapshot(here / "out")
    code, out, _ = maenas(*question)
    assert code == 0
    assert f"{record['points']} networks from" in out
    assert snapshot(here / "out") == before


@needs_t4
def test_front_on_the_t4(maenas, here):
    code, out, _ = maenas("front", "--device", "t4", "--block", "csp", "--from", "5.5ms", "--to", "5.6ms", "--json")
    assert code == 0
    record = json.loads(out)
    assert (here / record["csv"]).is_file()
    assert (here / record["png"]).is_file()
    _, out, _ = maenas("search", "--budget", "5.6ms", "--device", "t4", "--block", "csp", "--top-k", 1, "--json")
    assert record["last"]["objective"] == pytest.approx(json.loads(out)["objective"], rel=1e-9)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--from=280us", "--to=270us"), "expected --from below --to"),
        (("--from=1us", "--to=2us"), "the smallest reachable is"),
        (("--from=270us", "--to=280us", "--max-params=1M"), "a front trades score against latency alone"),
        (("--from=270us", "--to=280us", "--score=deepmad"), "score deepmad is not separable"),
        (("--from=soon", "--to=280us"), "latency_ms budget 'soon' is not a number with a unit"),
    ],
)
def test_fronts_that_make_no_sense(refused, tiny, extra, message):
    assert message in refused("front", *tiny[1:5], *extra)


def test_another_front_does_not_overwrite(maenas, refused, tiny, here):
    first = ("front", *tiny[1:5], "--from", "200us", "--to", "285us", "--out", "out")
    assert maenas(*first)[0] == 0
    before = snapshot(here / "out")
    refused("front", *tiny[1:5], "--from", "200us", "--to", "275us", "--out", "out")
    assert snapshot(here / "out") == before


# Tables


@needs_t4
@needs_intel
def test_the_shipped_tables_are_listed_shown_and_valid(maenas):
    code, out, _ = maenas("table", "list", "--json")
    assert code == 0
    listed = {entry["name"]: entry["aliases"] for entry in json.loads(out)}
    assert listed.keys() >= {T4, INTEL}
    assert "t4" in listed[T4]
    assert "intel-8163" in listed[INTEL]
    code, out, _ = maenas("table", "list")
    assert f"{T4} (" in out
    for name in ("t4", "intel-8163"):
        code, out, _ = maenas("table", "show", name, "--json")
        record = json.loads(out)
        assert (code, record["provenance"]) == (0, "calibrated")
        assert record["table_hash"] == load_table(name).table_hash
        code, out, _ = maenas("table", "show", name)
        assert f"table_hash:       {record['table_hash']}" in out
        code, out, _ = maenas("table", "validate", name)
        assert code == 0
        assert out.endswith(": valid\n")


def test_a_table_folder_is_validated(maenas, refused, table, here):
    assert maenas("table", "validate", table) == (0, f"{table}: valid\n", "")
    copy = here / "other-name"
    shutil.copytree(table, copy)
    assert "name is 'made'; expected the folder's name 'other-name'" in refused("table", "validate", copy)
    assert "latency table 'nowhere' is unknown" in refused("table", "show", "nowhere")
    assert "latency table 'nowhere' is unknown" in refused("table", "validate", "nowhere")


def test_users_own_tables_are_found_by_name(maenas, tiny, table, monkeypatch):
    monkeypatch.setenv("MAENAS_TABLES", str(table.parent))
    code, out, _ = maenas(*("made" if argument == table else argument for argument in tiny), "--json")
    assert code == 0
    assert json.loads(out)["device"] == "made"
    assert "made: " in maenas("table", "list")[1]


# Convert


@pytest.mark.parametrize("form", ["list", "text", "json"])
def test_an_answer_converts_to_the_official_forms_and_back(maenas, here, form):
    official = here / f"s.{form}"
    assert maenas("convert", "structure", "damo-yolo-s", official, "--to", form)[0] == 0
    code, out, _ = maenas("convert", "structure", official)
    assert code == 0
    again = json.loads(out)
    assert {**again, "name": ""} == {**load_published("damo-yolo-s").to_dict(), "name": ""}


def test_an_official_file_can_be_explained(maenas, table):
    code, out, _ = maenas("explain", OFFICIAL / "t.v1.list.txt", "--device", table, "--json", "--scope", "backbone")
    assert code == 0
    assert json.loads(out)["name"] == "t.v1.list"


# Found by trying to break it


def test_the_users_own_files_in_the_shortlist_folder_stay(maenas, tiny, here):
    assert maenas(*tiny, "--out", "run")[0] == 0
    mine = here / "run" / "shortlist" / "mine.json"
    mine.write_text("mine")
    (here / "run" / "shortlist" / "09-0123456789ab.json").write_text("stale")
    assert maenas(*tiny, "--out", "run")[0] == 0
    assert mine.read_text() == "mine"
    assert not (here / "run" / "shortlist" / "09-0123456789ab.json").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(structure):\n    return 1 / 0", "raised ZeroDivisionError: division by zero (failing_score.py:2)"),
        ("def f(structure):\n    return None", "raised TypeError"),
        ("def f(structure):\n    return 'text'", "raised ValueError"),
        ("raise SystemExit(3)", "cannot be imported (SystemExit: 3)"),
        ("def f(:", "cannot be imported (SyntaxError"),
    ],
)
def test_a_score_that_fails_is_one_line(refused, tiny, here, monkeypatch, body, message):
    (here / "failing_score.py").write_text(body)
    monkeypatch.delitem(sys.modules, "failing_score", raising=False)
    monkeypatch.syspath_prepend(here)
    assert message in refused(*tiny, "--score", "failing_score:f", "--candidates", "50", "--out", "new")


def test_huge_numbers_in_a_space_are_named(refused, tmp_path):
    path = tmp_path / "space.yaml"
    for field, value in (
        ("max_layers", -(10**400)),
        ("image_size", [10**400, 32]),
        ("score_weights", [0, 0, 1, 1, 1e308]),
    ):
        write_space(tmp_path, content_of("res") | {field: value})
        assert field in refused("search", "--space", path, "--max-params", "1G")


def test_a_name_with_markup_is_printed_as_it_is(maenas, tmp_path, table):
    save_structure(replace(load_published("damo-yolo-s"), name="[red]x[/red] [/foo]"), tmp_path / "odd.json")
    code, out, err = maenas("explain", tmp_path / "odd.json", "--device", table)
    assert (code, err) == (0, "")
    assert "[red]x[/red] [/foo]" in out


def test_a_name_that_cannot_be_printed_is_refused():
    with pytest.raises(ValueError, match=r"name is .*; expected at most 200 printable characters"):
        replace(load_published("damo-yolo-s"), name="\ud800")


def test_a_full_disk_behind_standard_output_is_one_line(tiny, here):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "maenas", *map(str, tiny), "--json", "--out", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=here, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("maenas: error: ")
    assert "Traceback" not in done.stderr


def test_no_home_folder_is_no_crash(here):
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_DATA_HOME")}
    environment |= {"PYTHONPATH": str(ROOT), "MAENAS_TABLES": "~nobody-of-that-name/tables"}
    command = [sys.executable, "-m", "maenas", "table", "list"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert T4 in done.stdout


def test_importing_a_folder_says_what_to_give(refused, here):
    (here / "library").mkdir()
    (here / "library" / "conv_data.out").write_text("")
    message = refused("table", "import", "library", "--format", "tinynas", "--name", "x", "--out", "tables")
    assert "is a folder; expected a library file, such as one of conv_data.out" in message
