"""Every command and program of README.md and docs/ runs, in order, with small stand-ins for what it takes."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from doc_commands import DOCUMENTS, Section, Step, name, sections

from maenas.cli.main import main

for module in ("torch", "onnx", "onnxruntime", "cv2", "PIL.Image", "safetensors", "faster_coco_eval"):
    pytest.importorskip(module)

from doc_inputs import Inputs  # noqa: E402
from export_cases import quick_trace  # noqa: E402

from detector import export_graph  # noqa: E402

SECTIONS = [section for path in DOCUMENTS for section in sections(path)]
PROGRAMS_RUN_ELSEWHERE = {"docs/deployment.md": "tests/detector/test_deployment_docs.py"}
COMPARED = ("search", "front", "explain")
"""Verbs whose printed figures depend on shipped files alone."""

HEAVY = ("train", "export", "eval", "predict", "benchmark", "run")
"""Verbs that run networks, and so take seconds, unless they only say what they would do."""

MANY = 6
"""So many searches take seconds too."""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; own tables and settings are far away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MAENAS_TABLES", str(tmp_path / "tables"))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(export_graph, "trace", quick_trace)
    return tmp_path


def parameters() -> list[object]:
    """Sections that have something to run; those that take long are slow tests."""
    found = []
    for section in SECTIONS:
        steps = [step for step in section.steps if runs(section, step)]
        slow = any(takes_long(step) for step in steps) or len(steps) > MANY
        if steps:
            found.append(pytest.param(section, id=section.name, marks=[pytest.mark.slow] if slow else []))
    return found


def runs(section: Section, step: Step) -> bool:
    return not step.skip and not (step.program and name(section.page) in PROGRAMS_RUN_ELSEWHERE)


def takes_long(step: Step) -> bool:
    if step.program:
        return "export" in step.text
    dry = "--dry-run" in f"{step.text} {step.added}"
    return (step.words[1] in HEAVY and not dry) or step.words[1] == "eval-proxy"


@pytest.mark.parametrize("section", parameters())
def test_it_runs(section: Section, place: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]):
    for step in section.steps:
        if not runs(section, step):
            continue
        if step.program:
            run_program(step, place, inputs)
            compare(step, capsys.readouterr().out)
            continue
        status, printed = run_command(step, place, inputs, capsys)
        wanted = 2 if any(line.startswith("maenas: error:") for line in step.shown) else 0
        assert status == wanted, f"{step.text}\nended with {status}:\n{printed}"
        if step.words[1:2] and step.words[1] in COMPARED and not step.added:
            compare(step, printed)


def run_command(step: Step, place: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what was printed."""
    words = step.words
    for word in [*inputs_of(words), *inputs_of(shlex.split(step.added))]:
        inputs.supply(word, place)
    if words[0] == "maenas":
        try:
            status = main([*words[1:], *shlex.split(step.added)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        shown = capsys.readouterr()
        return status, shown.out + shown.err
    done = subprocess.run(["bash", "-c", step.text], cwd=place, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def inputs_of(words: list[str]) -> list[str]:
    """What a command reads, as far as its words tell: not what follows an option of outputs, nor the
    second file of a conversion."""
    if words[1:2] == ["sample-data"]:
        return []
    if words[1:2] == ["convert"]:
        return words[3:4]
    others = ("--out", "--sensitivity", "--precision")
    read = [word for before, word in itertools.pairwise(words) if before not in others]
    return [word.rpartition("=")[2] for word in read]


def run_program(step: Step, place: Path, inputs: Inputs) -> None:
    tree = ast.parse(step.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and "export" not in ast.unparse(node.func):
            for value in [part for argument in node.args for part in ast.walk(argument)]:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    inputs.supply(value.value, place)
    if step.added:
        (place / step.added).write_text(step.text, encoding="utf-8")
    exec(compile(tree, "<document>", "exec"), {"__name__": "__document__"})


def compare(step: Step, printed: str) -> None:
    """Printed lines with figures are among those that come out; `...` and shortened lists of files are passed over."""
    came = {" ".join(line.replace("┃", "│").split()) for line in printed.splitlines()}
    for line in step.shown:
        if re.search(r"\d", line) and "..." not in line and not line.startswith("written:"):
            assert " ".join(line.replace("┃", "│").split()) in came, (
                f"{step.text}\nno longer prints\n{line}\nbut\n{printed}"
            )


@pytest.mark.parametrize("section", [pytest.param(section, id=section.name) for section in SECTIONS])
def test_programs_that_are_not_run_import_what_there_is(section: Section):
    for step in section.steps:
        if step.program and step.skip:
            tree = ast.parse(step.text)
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(tree, "<document>", "exec"), {})


def test_a_changed_figure_is_noticed():
    step = Step("maenas search", False, ("┃ score ┃   1947.2115 ┃", "proof: ...", "written: 3 files"), "", "")
    compare(step, "other\n│ score │ 1947.2115 │\n")
    with pytest.raises(AssertionError, match="no longer prints"):
        compare(step, "│ score │ 1947.2116 │\n")


def test_comments_say_what_is_run(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n<!-- not run in CI (pip): needs the network -->\n<!-- CI (train): --dry-run -->\n```console\n"
        "$ pip install .\n$ maenas train x  # slowly\nepoch 1\n```\n\n"
        "## Next\n\n```python\nprint(1)\n```\n\n```\n1\n```\n",
        encoding="utf-8",
    )
    first, second = sections(page)
    assert [(step.words[0], step.skip, step.added, step.shown) for step in first.steps] == [
        ("pip", "needs the network", "", ()),
        ("maenas", "", "--dry-run", ("epoch 1",)),
    ]
    assert (second.heading, second.steps[0].program, second.steps[0].shown) == ("Next", True, ("1",))
