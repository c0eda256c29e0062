"""Commands and programs of README.md and docs/, and what the comments above them say about running them.

A comment directly above a code block is invisible to readers:

    <!-- not run in CI: reason -->           the block's commands are parsed, not run; of a program the imports are run
    <!-- CI: --epochs 1 -->                  added to the block's commands; for a program the file that it is saved as

Both may name the commands they are meant for by a part of them: `<!-- CI (maenas train): --dry-run -->`.
Run as a program, this module prints how many commands there are, how many run, and why the others do not.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]

TOOLS = ("maenas", "make", "pip", "python", "torchrun", "cp", "sed")
SHELL = ("", "console", "bash", "sh")

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"((?:^ *<!--[^\n]*-->\n)*)" + FENCE.pattern, re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- (not run in CI|CI)(?: \(([^)]*)\))?: (.*?) -->")


@dataclass(frozen=True)
class Step:
    """One command, or one program in Python.

    Attributes:
        text: Without the prompt, comments included.
        program: Whether it is Python.
        shown: Lines of output that the page prints below it.
        skip: Why it is not run; empty if it is.
        added: Words that CI adds to a command; name of the file that a program is saved as.
    """

    text: str
    program: bool
    shown: tuple[str, ...]
    skip: str
    added: str

    @property
    def words(self) -> list[str]:
        """Of a command, without the comment at its end."""
        return shlex.split(self.text, comments=True)


@dataclass(frozen=True)
class Section:
    """What one `##` section of a page has to run, in order; its steps share a folder."""

    page: Path
    heading: str
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}: {self.heading}"


def name(path: Path) -> str:
    """Path from the repository's root."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """Texts of the code blocks in these languages."""
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [textwrap.dedent(text) for _, language, text in found if language in languages]


def sections(path: Path) -> list[Section]:
    """Sections of a page that hold commands or programs; what comes before the first has the page's name."""
    text = path.read_text(encoding="utf-8")
    fences = [match.span() for match in FENCE.finditer(text)]
    starts = [
        match.start()
        for match in re.finditer(r"^## ", text, re.MULTILINE)
        if not any(first <= match.start() < last for first, last in fences)
    ]
    found = []
    for first, last in zip([0, *starts], [*starts, len(text)], strict=True):
        part = text[first:last]
        heading = part.split("\n", 1)[0].lstrip("# ")
        steps: list[Step] = []
        for block in _BLOCK.finditer(part):
            made = _steps(block)
            if steps and steps[-1].program and block[3] == "" and not made:
                steps[-1] = replace(steps[-1], shown=tuple(block[4].splitlines()))
            steps += made
        if steps:
            found.append(Section(path, heading, tuple(steps)))
    return found


def commands(path: Path) -> list[Step]:
    """All commands of a page."""
    return [step for section in sections(path) for step in section.steps if not step.program]


def _steps(block: re.Match[str]) -> list[Step]:
    notes = _NOTE.findall(block[1])
    language, text = block[3], textwrap.dedent(block[4])
    if language == "python":
        return [_noted(text, notes, program=True)]
    if language not in SHELL:
        return []
    steps: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ ") or (language == "" and line.split(" ", 1)[0] in TOOLS):
            steps.append((line.removeprefix("$ "), []))
        elif steps:
            steps[-1][1].append(line)
    return [_noted(command, notes, shown=tuple(shown)) for command, shown in steps]


def _noted(text: str, notes: list[tuple[str, str, str]], *, program: bool = False, shown: tuple[str, ...] = ()) -> Step:
    fitting = [(kind, what) for kind, part, what in notes if part in text]
    skip = " ".join(what for kind, what in fitting if kind != "CI")
    added = " ".join(what for kind, what in fitting if kind == "CI")
    return Step(text, program, shown, skip, added)


def _report() -> None:
    steps = [(section, step) for path in DOCUMENTS for section in sections(path) for step in section.steps]
    for kind in (False, True):
        chosen = [step for _, step in steps if step.program is kind]
        skipped = Counter(step.skip for step in chosen if step.skip)
        print(f"{'programs' if kind else 'commands'}: {len(chosen)}, run: {len(chosen) - skipped.total()}")
        for reason, count in skipped.most_common():
            print(f"  {count:3} not run: {reason}")


if __name__ == "__main__":
    _report()
