"""ARCHITECTURE.md against the sources: its rows are the import order, and its tables name every module."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from import_cases import ROOT, imports, sources

from maenas.cli.main import COMMANDS

TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMES_END = 42
"""Column in which the rows' descriptions begin."""

OUT_OF_ORDER = {
    ("latency/shipped", "reach"),
    ("latency/shipped", "spaces"),
    ("latency/table_local", "profiling/host"),
}
"""As the text says below the rows."""


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@cache
def rows() -> list[list[str]]:
    """Names and patterns of the modules of each row, from the highest to the lowest."""
    block = section("Layers").partition("```\n")[2].partition("```")[0]
    return [line[:NAMES_END].replace("|", " ").split() for line in block.splitlines()]


def module_names(package: str) -> list[str]:
    """`latency/table` and so on; without the packages' roots."""
    folder = ROOT / package
    paths = [path for path in sources(package) if not path.name.startswith("__")]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in paths]


def row_of(module: str) -> int:
    """The row that names the module; the most exact of several patterns counts."""
    fitting = [
        (len(name), number)
        for number, names in enumerate(rows())
        for name in names
        if fnmatch(module, name) or fnmatch(module, f"{name}/*")
    ]
    assert fitting, f"{module} is in no row of ARCHITECTURE.md"
    return max(fitting)[1]


def imported(module: str) -> set[str]:
    """The modules of maenas that one imports."""
    known = set(module_names("maenas"))
    found = set()
    for name in imports(ROOT / "maenas" / f"{module}.py"):
        parts = name.split(".")
        if parts[0] == "maenas":
            found |= {"/".join(parts[1:end]) for end in range(2, len(parts) + 1)} & known
    return found


def test_modules_import_from_their_own_row_and_below():
    wrong = {
        (module, other)
        for module in module_names("maenas")
        for other in imported(module)
        if row_of(other) < row_of(module)
    }
    assert wrong == OUT_OF_ORDER


def test_the_tables_name_every_module():
    """By its name, with its folder or without, or by a pattern; verbs and backends by their folders."""
    verbs = {name.removeprefix("maenas.").replace(".", "/") for name in COMMANDS.values()}
    ours, theirs = section("Modules").split("\nThe package `detector`")
    for package, text in (("maenas", ours), ("detector", theirs)):
        named = [word.removesuffix(".py") for word in re.findall(r"`([^`]+)`", text)]
        missing = [
            module
            for module in module_names(package)
            if not (package == "maenas" and (module in verbs or module.startswith("profiling/backends/")))
            and not any(fnmatch(module, word) or fnmatch(Path(module).name, word) for word in named)
        ]
        assert not missing, f"{package}: {missing}"


def test_every_row_names_a_module():
    modules = module_names("maenas")
    for names in rows():
        for name in names:
            assert any(fnmatch(module, name) or module.startswith(f"{name}/") for module in modules), name
