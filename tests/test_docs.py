"""What the documents promise: commands that parse, links that lead somewhere, code that compiles, true numbers."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from maenas.cli.main import _parser, main
from maenas.latency.table import load_table
from maenas.spaces import SearchSpace, load_space

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*DOCUMENTS, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("experiments/*/README.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def commands(path: Path) -> list[list[str]]:
    """The arguments of every `maenas` line in a code block; brackets around options are taken off, N is a number."""
    found = []
    for text in blocks(path, "", "console", "bash", "sh"):
        for line in text.splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("maenas "):
                words = shlex.split(re.sub(r"\[([^]]*)\]", r"\1", line), comments=True)
                found.append(["1" if word == "N" else word for word in words[1:]])
    return found


def parsed_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser has against some arguments; empty if nothing."""
    try:
        _parser().parse_args(arguments)
    except SystemExit as stop:
        return "" if stop.code == 0 else capsys.readouterr().err.strip().splitlines()[-1]
    return ""


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
    assert {"search", "front", "explain", "table", "convert"} <= {words[0] for words in commands(README)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_command_parses(path: Path, capsys: pytest.CaptureFixture[str]):
    problems = {" ".join(words): parsed_by(words, capsys) for words in commands(path)}
    assert not {command: problem for command, problem in problems.items() if problem}


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
    first = next(words for words in commands(README) if words[0] == "search")
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
