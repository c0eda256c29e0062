"""What the documents promise besides their commands: links that lead somewhere, code that compiles, true numbers."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from doc_commands import DOCUMENTS, FENCE, README, ROOT, blocks, commands, name

from maenas.cli.main import _parser, main
from maenas.latency.table import load_table
from maenas.spaces import SearchSpace, load_space

LINKED = [*DOCUMENTS, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("experiments/*/README.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The sub-commands of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def parsers(words: list[str]) -> list[argparse.ArgumentParser]:
    """The parsers that words such as `maenas table show` lead through; raises `KeyError` for an unknown verb."""
    chain = [_parser()]
    for word in words:
        inner = choices_of(chain[-1])
        if not inner or word.startswith("-"):
            break
        chain.append(inner[word])
    return chain


def test_the_readme_holds_commands():
    verbs = {step.words[1] for step in commands(README) if step.words[0] == "maenas"}
    assert {"search", "front", "explain", "table", "convert"} <= verbs


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_command_parses(path: Path, capsys: pytest.CaptureFixture[str]):
    """Those that are not run too; brackets around options are taken off, and N is a number."""
    problems = {}
    for step in commands(path):
        words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", step.text), comments=True)
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        if words[0] == "maenas":
            problems[step.text] = parsed_by(["1" if word == "N" else word for word in words[1:]], capsys)
        elif words[0] == "make":
            problems[step.text] = "" if re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE) else "no such target"
        elif words[0] == "pip":
            asked = set(re.findall(r"[\w-]+", ",".join(re.findall(r"\[([^]]*)\]", step.text))))
            problems[step.text] = ", ".join(asked - EXTRAS)
    assert not {command: problem for command, problem in problems.items() if problem}


def parsed_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser has against some arguments; empty if nothing."""
    try:
        _parser().parse_args(arguments)
    except SystemExit as stop:
        return "" if stop.code == 0 else capsys.readouterr().err.strip().splitlines()[-1]
    return ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_what_is_not_run_says_why(path: Path):
    for step in commands(path):
        if not step.skip:
            assert step.words[0] in ("maenas", "cp", "sed"), f"{step.text}: say above the block why it is not run"


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "ARCHITECTURE.md"], ids=name)
def test_every_verb_and_option_in_running_text_exists(path: Path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for command in re.findall(r"`maenas ([^`]+)`", text):
        words = command.split()
        try:
            options = {option for parser in parsers(words) for option in parser._option_string_actions}
        except KeyError as unknown:
            pytest.fail(f"{name(path)}: `maenas {command}`: no verb {unknown}")
        assert {word for word in words if word.startswith("--")} <= options, command


@pytest.mark.parametrize("path", LINKED, ids=name)
def test_every_link_leads_somewhere(path: Path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = path.parent / file if file else path
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", place.read_text(encoding="utf-8")), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_python_code_compiles(path: Path):
    for text in blocks(path, "python"):
        compile(text, name(path), "exec")


def test_the_example_space_loads(tmp_path: Path):
    (text,) = blocks(ROOT / "docs" / "search-spaces.md", "yaml")
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    assert isinstance(load_space(str(file)), SearchSpace)


def test_every_field_of_a_space_is_documented():
    text = (ROOT / "docs" / "search-spaces.md").read_text(encoding="utf-8")

    def keys(content: object) -> set[str]:
        if isinstance(content, dict):
            return set(content) | {key for value in content.values() for key in keys(value)}
        if isinstance(content, list):
            return {key for value in content for key in keys(value)}
        return set()

    shipped = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in (ROOT / "search_spaces").glob("*.yaml")]
    assert shipped
    words = set(re.findall(r"\w+", text))
    assert {key for content in shipped for key in keys(content)} <= words


def test_the_test_command_is_in_the_readme():
    assert "python -m pytest -q -n 2 tests" in README.read_text(encoding="utf-8")


def test_table_hashes_in_the_readme_are_those_of_the_shipped_tables():
    text = README.read_text(encoding="utf-8")
    found = set(re.findall(r"t4-tensorrt-fp16 (?:\(calibrated, hash )?([0-9a-f]{12})", text))
    assert found == {load_table("t4").table_hash}, "the T4 table has changed: run the README's commands again"


def test_the_first_search_of_the_readme_is_what_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = next(step.words[1:] for step in commands(README) if step.words[:2] == ["maenas", "search"])
    assert main([*first, "--json", "--out", str(tmp_path / "run")]) == 0
    answer = json.loads(capsys.readouterr().out)
    text = README.read_text(encoding="utf-8")
    certificate = answer["certificate"]
    for expected in (
        f"{answer['score']:.4f}",
        f"{answer['latency_ms']:.3f} +- {answer['latency_sigma_ms']:.3f} ms",
        f"{answer['params'] / 1e6:.3f} M",
        f"above {certificate['upper_bound']:.4f} within the budget",
        *(candidate["digest"] for candidate in answer["shortlist"][:3]),
    ):
        assert expected in text
