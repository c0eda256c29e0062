"""The import rules between the packages: read from the sources, then confirmed in fresh interpreters."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import import_cases
import pytest
from import_cases import ROOT, imports, sources

BRIDGE = ROOT / "maenas" / "cli" / "detector.py"
NUMERIC = ("matplotlib", "numpy", "pandas", "scipy", "torch")

# Runs the command line with a finder in front that records every attempt to import a watched package: this also sees
# guarded imports of packages that are not installed here.
PROBE = """
import contextlib, io, sys

watched, arguments = sys.argv[1].split(","), sys.argv[2:]
attempts = set()

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if name in watched:
            attempts.add(name)
        return None

sys.meta_path.insert(0, Recorder())
from maenas.cli.main import main

try:
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
except SystemExit as stop:
    code = stop.code
assert not code, f"maenas {arguments} exited with {code}"
print(",".join(sorted(attempts)))
"""


def below(name: str, parents: Iterable[str]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def violations(paths: list[Path], forbidden: Iterable[str], allowed: Iterable[str] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in sorted(imports(path))
        if below(name, forbidden) and not below(name, allowed)
    ]


def fresh_interpreter(script: str, arguments: list[str], folder: Path) -> list[str]:
    """The comma-separated names that a script prints, run from `folder` on this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [name for name in done.stdout.strip().split(",") if name]


def attempted(arguments: list[str], watched: Iterable[str], folder: Path) -> list[str]:
    """The watched packages that `maenas ARGUMENTS` tries to import."""
    return fresh_interpreter(PROBE, [",".join(watched), *arguments], folder)


def test_imports_are_read_and_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_cases, "ROOT", tmp_path)
    path = tmp_path / "maenas" / "cli" / "verb.py"
    path.parent.mkdir(parents=True)
    path.write_text("import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\n", encoding="utf-8")
    assert imports(path) == {"a.b", "c.d", "maenas.cli.e", "maenas.f.g"}
    assert imports(path, relative=False) == {"a.b", "c.d"}


def test_detector_sees_only_structure_and_errors_of_maenas():
    assert not violations(
        sources("detector"),
        ["maenas"],
        allowed=[
            "maenas.structure",
            "maenas.errors",
            "maenas.extras",
            "maenas.files",
            "maenas.records",
            "maenas.cuda",
            "maenas.layer_precision",
        ],
    )


def test_detector_imports_itself_relatively():
    named = {path.relative_to(ROOT): imports(path, relative=False) for path in sources("detector")}
    assert not [path for path, names in named.items() if any(below(name, ["detector"]) for name in names)]


def test_maenas_imports_no_torch():
    assert not violations([path for path in sources("maenas") if path != BRIDGE], ["torch", "torchvision"])


def test_only_the_bridge_imports_detector():
    assert not violations([path for path in sources("maenas") if path != BRIDGE], ["detector"])


def test_the_bridge_imports_inside_functions():
    tree = ast.parse(BRIDGE.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    top = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside]
    heavy = [ast.unparse(node) for node in top if any(word in ast.unparse(node) for word in ("torch", "from detector"))]
    assert not heavy


def test_packages_import_neither_tests_nor_experiments():
    assert not violations(sources("maenas", "detector"), ["tests", "experiments"])


@pytest.mark.parametrize("package", ["maenas", "detector"])
def test_the_package_roots_load_the_standard_library_only(package: str, tmp_path: Path):
    script = f"""
import sys

before = set(sys.modules)
import {package}

names = set(sys.modules) - before
print(",".join(sorted(n for n in names if n.partition(".")[0] not in sys.stdlib_module_names and n != "{package}")))
"""
    assert fresh_interpreter(script, [], tmp_path) == []


def test_every_name_that_the_detector_package_offers_exists():
    pytest.importorskip("torch")
    import detector

    for name in detector.__all__:
        value = getattr(detector, name)
        assert value.__name__ == name and value.__module__.startswith("detector.")
        assert name in dir(detector)
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        detector.Detectr  # noqa: B018


def test_the_structure_format_loads_the_standard_library_only(tmp_path: Path):
    script = """
import sys

before = set(sys.modules)
import maenas.errors, maenas.structure

roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(",".join(sorted(roots - sys.stdlib_module_names - {"maenas"})))
"""
    assert fresh_interpreter(script, [], tmp_path) == []


def test_help_loads_no_numeric_package(tmp_path: Path):
    assert attempted(["--help"], NUMERIC, tmp_path) == []


@pytest.mark.parametrize("verb", ["search", "front", "explain", "predict", "table", "convert", "plot"])
def test_help_of_a_verb_loads_no_torch(verb: str, tmp_path: Path):
    assert attempted([verb, "--help"], ["torch", "torchvision"], tmp_path) == []


@pytest.mark.slow
def test_a_search_loads_no_torch(tmp_path: Path):
    arguments = ["search", "--budget", "3.8ms", "--device", "t4", "--block", "res", "--out", str(tmp_path / "run")]
    assert attempted(arguments, ["torch", "torchvision"], tmp_path) == []
