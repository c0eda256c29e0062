"""`maenas sample-data` end to end."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")

from detector.data.source import load_data
from maenas.cli.main import main


def test_a_set_is_drawn_and_loads(tmp_path, capsys):
    folder = tmp_path / "new" / "shapes"
    assert main(["sample-data", str(folder), "--images", "4", "--seed", "2"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 images" in out and f"written: {folder / 'data.yaml'}" in out
    assert len(load_data(folder / "data.yaml").train) == 4
    assert "seed 2" in (folder / "README.md").read_text()
    assert main(["sample-data", str(folder), "--images", "4"]) == 2
    assert "holds files already" in capsys.readouterr().err
    assert main(["sample-data", str(folder), "--images", "5", "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["data"] == str(folder / "data.yaml") and answer["splits"]["train"]["images"] == 5
    assert answer["splits"]["val"]["images"] == 1


@pytest.mark.parametrize(("option", "value"), [("--images", "0"), ("--seed", "-3")])
def test_wrong_numbers_are_one_line(tmp_path, capsys, option, value):
    assert main(["sample-data", str(tmp_path / "x"), option, value]) == 2
    err = capsys.readouterr().err
    assert f"is {value}; expected" in err and err.count("\n") == 1 and not (tmp_path / "x").exists()
