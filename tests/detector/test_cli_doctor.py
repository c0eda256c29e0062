"""`maenas doctor` end to end: data sets, and the installation."""

from __future__ import annotations

import json
import sys

import pytest

pil = pytest.importorskip("PIL.Image")

from data_cases import box, coco, write_coco, write_yolo  # noqa: E402

from detector.images import read_image  # noqa: E402
from maenas.cli import environment  # noqa: E402
from maenas.cli.main import main  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    write_coco(tmp_path, coco([(1, "a.png"), (2, "b.png")], [box(1, 1, [0, 0, 9, 9]), box(2, 2, [1, 1, 9, 9])]))
    return tmp_path


def test_a_healthy_set(folder, capsys):
    assert main(["doctor", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "nothing to complain about" in out and "cat" in out and "100 %" in out


def test_errors_end_with_one_and_a_picture_is_written(folder, capsys):
    (folder / "images" / "b.png").write_text("no image")
    sheet = folder / "sheet.png"
    assert main(["doctor", str(folder), "--out", str(sheet)]) == 1
    out = capsys.readouterr().out
    assert "error: images that cannot be read: 1 [unreadable-image]" in out and "b.png: is no image" in out
    assert f"written: {sheet}" in out and read_image(sheet).ndim == 3
    assert main(["doctor", str(folder), "--out", str(sheet)]) == 2
    assert "sheet.png: exists already; expected a new file, or --force" in capsys.readouterr().err
    assert main(["doctor", str(folder), "--out", str(sheet), "--force", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["num_errors"] == 1 and answer["out"] == str(sheet) and answer["findings"][0]["count"] == 1


def test_long_lists_are_cut(tmp_path, capsys):
    path = write_yolo(
        tmp_path, {"a": "9 0.5 0.5 0.1 0.1\n" * 8 + "0 0.5 0.5 0.5 0.5"}, names=[f"c{i}" for i in range(9)]
    )
    assert main(["doctor", str(path), "--quick"]) == 1
    out = capsys.readouterr().out
    # Both splits of that file are the same folder.
    assert "boxes of a class that is unknown or out of range: 16 [unknown-class]" in out and "... and 11 more" in out
    assert "images were not decoded (--quick)" in out


def test_all_classes_are_in_the_json_only(tmp_path, capsys):
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"}, names=[f"c{i}" for i in range(40)])
    main(["doctor", str(path), "--quick"])
    assert "10 more classes; --json lists all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "gone.yaml: no such file or folder"),
        (["DATA", "--out", "sheet.jpg"], "has the suffix .jpg; expected .png"),
        (["DATA", "--out", "no/such/sheet.png"], "there is no folder no/such"),
        (["--out", "sheet.png"], "--out and --quick need DATA"),
    ],
)
def test_misuse_is_one_line(folder, capsys, arguments, message):
    assert main(["doctor", *(str(folder) if word == "DATA" else word for word in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_installation(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "package detector" in out and "pillow" in out and "openvino" in out
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["detector"]["is_ours"] and answer["detector"]["path"].rstrip("/").endswith("detector")
    assert answer["extras"]["(always)"]["numpy"] and "torch" in answer["extras"]["detector"]
    assert "dev" not in answer["extras"]


def test_the_installation_without_torch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["devices"] == [] and "torch" in answer["torch_error"]
    assert main(["doctor"]) == 0
    assert "no devices" in capsys.readouterr().out


def test_a_foreign_package_called_detector(capsys, monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "detector", types.ModuleType("detector"))
    assert main(["doctor"]) == 1
    assert "is not the one of maenas; rename that file" in capsys.readouterr().out.replace("\n", " ")


def test_packages_of_extras(monkeypatch):
    lines = ["numpy>=1", 'no_such_package>=2; extra == "x"', 'maenas[x]; extra == "all"', 'rich; extra == "x" and y']
    monkeypatch.setattr(environment.importlib.metadata, "requires", lambda name: lines)
    found = environment.package_versions()
    assert found["x"]["no_such_package"] is None and found["x"]["rich"] and found["(always)"]["numpy"]
    assert set(found) == {"(always)", "x"}

    def missing(name):
        raise environment.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.importlib.metadata, "requires", missing)
    assert environment.package_versions() == {}
