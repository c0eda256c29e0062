"""What is shipped: the package list against the folders, the data globs against the files, the wheel by using it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
CODE_FOLDERS = ("maenas", "detector")
LEFTOVERS = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")


def data_files(package: str) -> list[Path]:
    """The files of a package's folder that are neither code nor left over from running it."""
    folder = ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
    inner = [ROOT / other.replace(".", "/") for other in SETUPTOOLS["packages"] if other.startswith(package + ".")]
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix not in {".py", ".pyc"}
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not any(path.is_relative_to(other) for other in inner)
    ]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_"))}


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def test_listed_packages_are_the_folders_on_disk():
    folders = {path.parent for name in CODE_FOLDERS for path in (ROOT / name).rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(found | set(SETUPTOOLS["package-dir"])) == SETUPTOOLS["packages"]


def test_every_code_folder_is_a_package():
    folders = {path.parent for name in CODE_FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert not [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()]


def test_mapped_folders_exist():
    assert all((ROOT / folder).is_dir() for folder in SETUPTOOLS["package-dir"].values())


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_data_file_is_shipped(package: str):
    folder = ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
    shipped = {path for glob in SETUPTOOLS["package-data"].get(package, []) for path in folder.glob(glob)}
    assert not [path for path in data_files(package) if path not in shipped]


def test_version_is_the_one_of_the_package():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "maenas.__version__"}
    namespace: dict[str, str] = {}
    exec((ROOT / "maenas" / "__init__.py").read_text(encoding="utf-8"), namespace)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {namespace['__version__']}\n" in citation


def test_optional_packages_are_no_core_dependency():
    core = {requirement.split(">=")[0] for requirement in PYPROJECT["project"]["dependencies"]}
    assert core == {"matplotlib", "numpy", "pandas", "pyyaml", "rich", "scipy"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel (the wheel is made from the sdist), built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in (*CODE_FOLDERS, *SETUPTOOLS["package-dir"].values()):
        shutil.copytree(ROOT / name, source / name, ignore=LEFTOVERS)
    for name in ("pyproject.toml", PYPROJECT["project"]["readme"], *PYPROJECT["project"]["license-files"]):
        shutil.copy(ROOT / name, source / name)
    for name in ("tests", "experiments"):
        (source / name).mkdir()
        (source / name / "__init__.py").write_text("", encoding="utf-8")
        (source / name / "test_stray.py").write_text("", encoding="utf-8")
    out = tmp_path_factory.mktemp("dist")
    try:
        available = int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        available = False
    isolation = ["--no-isolation"] if available else []
    run([sys.executable, "-m", "build", *isolation, "--outdir", out, source], source)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_what_it_should(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        version = wheel.name.split("-")[1]
        metadata = archive.read(f"maenas-{version}.dist-info/METADATA").decode("utf-8")
    assert {name.split("/")[0] for name in names} == {"maenas", "detector", f"maenas-{version}.dist-info"}

    expected = {path.relative_to(ROOT).as_posix() for name in CODE_FOLDERS for path in (ROOT / name).rglob("*.py")}
    for package in SETUPTOOLS["packages"]:
        folder = ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
        inside = package.replace(".", "/")
        expected |= {f"{inside}/{path.relative_to(folder).as_posix()}" for path in data_files(package)}
    assert {name for name in names if ".dist-info/" not in name} == expected

    for start, end in (
        ("maenas/search_spaces/", ".yaml"),
        ("maenas/latency_tables/t4-tensorrt-fp16/", "table.json"),
        ("maenas/latency_tables/t4-tensorrt-fp16/", "rows.csv"),
        ("maenas/structures/", ".json"),
        ("maenas/", "py.typed"),
        ("detector/", "py.typed"),
    ):
        assert [name for name in names if name.startswith(start) and name.endswith(end)], f"no {start}*{end}"
    assert {f"maenas-{version}.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= names
    assert "License-Expression: Apache-2.0" in metadata


@pytest.mark.slow
def test_the_sdist_holds_no_strays(built: Path):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert not [name for name in names if name.startswith("experiments")]
    assert {"LICENSE", "NOTICE", "pyproject.toml"} <= set(names)


@pytest.mark.slow
def test_the_installed_wheel_searches_from_an_empty_folder(wheel: Path, tmp_path: Path):
    home = tmp_path / "venv"
    run([sys.executable, "-m", "venv", home], tmp_path)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], tmp_path)
    # Lend it the dependencies of the environment that runs the tests.
    # The .pth files in there, such as that of an editable maenas, stay inert.
    (site_packages,) = home.rglob("site-packages")
    present = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site_packages / "dependencies.pth").write_text("\n".join(present) + "\n", encoding="utf-8")

    empty = tmp_path / "empty"
    empty.mkdir()
    where = run([python, "-c", "import maenas, detector; print(maenas.__file__, detector.__file__)"], empty).stdout
    assert where.count(str(site_packages)) == 2

    command = ["search", "--budget", "3.8ms", "--device", "t4", "--block", "res", "--json"]
    answer = json.loads(run([python.with_name("maenas"), *command], empty).stdout)
    assert {"score", "latency_ms", "certificate"} <= set(answer)
    assert answer["latency_ms"] <= 3.8
