"""Training on a union from file to figures: what it leaves, going on, and that nothing is suppressed by a source."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pil = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")
pytest.importorskip("faster_coco_eval")

from training_cases import FAST, assert_same_weights, fast_config, rectangles, tiny_structure  # noqa: E402
from union_cases import write_colours, write_pets, write_union  # noqa: E402

from detector.callbacks import Callback  # noqa: E402
from detector.checkpoint import load_checkpoint  # noqa: E402
from detector.data.source import load_data  # noqa: E402
from detector.errors import DataError, TrainingError  # noqa: E402
from detector.evaluate import evaluate  # noqa: E402
from detector.load import load_predictor  # noqa: E402
from detector.train import train  # noqa: E402
from maenas.cli.main import main  # noqa: E402
from maenas.structure import save_structure  # noqa: E402

MICE = {"ambiguous_by_source": {"mouse": {"pets": "mouse (animal)", "desk": "computer mouse"}}}
ONE_EPOCH = {"train__epochs": 1, "schedule__warmup_epochs": 0, "schedule__no_aug_epochs": 0, "train__batch_size": 3}


@pytest.fixture(scope="module")
def union(tmp_path_factory) -> Path:
    """Two sources with an ambiguous name."""
    folder = tmp_path_factory.mktemp("union")
    write_pets(folder)
    return write_union(folder, {"pets": "pets", "desk": "desk"}, MICE)


@pytest.fixture(scope="module")
def finished(union, tmp_path_factory) -> Path:
    """The folder of a run of three epochs."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(fast_config(train__batch_size=3), tiny_structure(), load_data(union), out=out)
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_what_a_run_leaves(finished):
    checkpoint = load_checkpoint(finished / "last.safetensors")
    assert checkpoint.class_names == ("cat", "mouse (animal)", "cup", "computer mouse")
    last = rows_of(finished / "metrics.csv")[-1]
    assert list(last)[-2:] == ["ap:pets", "ap:desk"]
    assert float(last["ap"]) == pytest.approx((float(last["ap:pets"]) + float(last["ap:desk"])) / 2)
    assert {"ap:pets", "ap:desk"} <= set(json.loads((finished / "result.json").read_text())["best"])
    counts = {(row["source"], row["class_name"]): row for row in rows_of(finished / "sampling.csv")}
    assert list(counts) == [
        ("pets", "cat"), ("pets", "mouse (animal)"), ("desk", "cup"), ("desk", "computer mouse"),
    ]  # fmt: skip
    assert counts["pets", "cat"]["images"] == "2" and counts["desk", "cup"]["image_share"] == "0.5"


def test_a_stopped_run_goes_on_bit_for_bit(finished, union, tmp_path):
    """With weighted sampling, rules and the sources' columns."""
    from test_train_resume import SignalAt

    out = tmp_path / "run"
    config, data = fast_config(train__batch_size=3), load_data(union)
    stopped = train(config, tiny_structure(), data, out=out, callbacks=[SignalAt(5)])
    assert stopped.ended_by == "SIGTERM"
    train(config, tiny_structure(), data, out=out, resume=True)
    assert_same_weights(out / "last.safetensors", finished / "last.safetensors")
    ours, theirs = (rows_of(folder / "metrics.csv") for folder in (out, finished))
    assert [row["ap:desk"] for row in ours] == [row["ap:desk"] for row in theirs]


def test_another_taxonomy_is_another_run(union, tmp_path):
    out, data = tmp_path / "run", load_data(union)
    train(fast_config(**ONE_EPOCH), tiny_structure(), data, out=out)
    narrower = {**MICE, "narrower": {"cat": "cup"}}
    other = write_union(tmp_path, {name: union.parent / name for name in ("pets", "desk")}, narrower)
    with pytest.raises(TrainingError, match=r"had other settings \(data: "):
        train(fast_config(**ONE_EPOCH), tiny_structure(), load_data(other), out=out, resume=True)


def test_from_the_union_to_one_source_by_name(finished, union, tmp_path):
    """Classes begin where the union left them: by the name that they have there."""
    weights = str(finished / "last.safetensors")
    one_mouse = {"ambiguous_by_source": {"mouse": {"desk": "computer mouse"}}}
    alone = write_union(tmp_path, {"desk": union.parent / "desk"}, one_mouse)
    notes: dict[str, list[str]] = {}
    for name, data in (("renamed", alone), ("plain", union.parent / "desk")):

        class Listener(Callback):
            def on_start(self, run, name=name):
                notes[name] = list(run.notes)

        config = fast_config(**ONE_EPOCH | {"train__batch_size": 2}, model__weights=weights, optimizer__lr=1e-9)
        train(config, tiny_structure(), load_data(data), out=tmp_path / name, callbacks=[Listener()])
    assert any("classes taken over: cup, computer mouse" in note for note in notes["renamed"])
    assert any("classes taken over: cup; new: mouse" in note for note in notes["plain"])
    old, new = load_checkpoint(weights), load_checkpoint(tmp_path / "renamed/last.safetensors")
    key = "head.class_convs.0.weight"
    torch.testing.assert_close(new.weights[key], old.weights[key][[2, 3]], rtol=0, atol=1e-6)


def test_a_source_without_a_box_to_measure(union, tmp_path):
    write_pets(tmp_path)
    path = tmp_path / "desk/annotations/instances_val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    data = load_data(write_union(tmp_path, {"pets": "pets", "desk": "desk"}, MICE))
    with pytest.raises(DataError, match=r"instances_val.json: its images \(2\) hold no box; there is nothing to eval"):
        train(fast_config(**ONE_EPOCH), tiny_structure(), data, out=tmp_path / "run")


def test_every_verb_takes_a_union(union, tmp_path, capsys, monkeypatch):
    """train, eval, doctor and show-data, from the command line."""
    monkeypatch.chdir(tmp_path)
    save_structure(tiny_structure(), tmp_path / "tiny.json")
    changes = {**FAST, **{name.replace("__", "."): value for name, value in ONE_EPOCH.items()}}
    options = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    assert main(["train", "tiny.json", "--data", str(union), "--out", "run", "--set", *options]) == 0
    printed = capsys.readouterr()
    assert "pets: 3 training images (60.0%)" in printed.out + printed.err
    assert main(["train", "tiny.json", "--data", str(union), "--dry-run", "--json", "--set", *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["training_images"] == 5 and any(note.startswith("desk: 2 training images") for note in plan["notes"])
    assert main(["eval", "run/last.safetensors", "--data", str(union), "--out", "eval", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["sources"]) == ["pets", "desk"] and record["data"]["num_images"] == 4
    parts = [record["sources"][name]["metrics"]["ap"] for name in ("pets", "desk")]
    assert record["metrics"]["ap"] == pytest.approx(sum(parts) / 2) and record["metrics"]["ap:desk"] == parts[1]
    own = json.loads((tmp_path / "eval/desk/eval.json").read_text())
    assert [entry["id"] for entry in own["data"]["categories"]] == [3, 7]
    assert own["data"]["categories"][1]["name"] == "computer mouse"
    assert {row["image_id"] for row in json.loads((tmp_path / "eval/desk/detections.json").read_text())} <= {5, 15}
    models = ["run/last.safetensors", "run/best.safetensors"]
    assert main(["eval", *models, "--data", str(union), "--out", "both", "--no-plots"]) == 0
    assert (tmp_path / "both/compare.json").exists() and (tmp_path / "both/best/pets/eval.json").exists()
    capsys.readouterr()
    assert main(["eval", models[0], "--data", str(union), "--out", "again", "--no-plots"]) == 0
    assert "mean of sources" in capsys.readouterr().out
    assert main(["doctor", str(union), "--json", "--quick"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["splits"]) == ["pets/train", "pets/val", "desk/train", "desk/val"]
    assert report["splits"]["desk/train"]["boxes_per_class"] == [0, 0, 1, 1]
    assert not [entry for entry in report["findings"] if entry["code"].startswith("class-not-in")]
    assert main(["show-data", str(union), "--image-size", "64", "--count", "4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["samples"]) == 4


@pytest.mark.slow
def test_a_class_is_not_suppressed_by_a_source_that_does_not_mark_it(tmp_path):
    """Red is marked in one source only, and blue in the other, though both are to be seen everywhere."""
    written = write_colours(tmp_path, {"reds": ("red",), "blues": ("blue",)}, num_train=32, num_val=2)
    data = load_data(write_union(tmp_path, written))
    truth = rectangles(tmp_path / "truth", num_train=1, num_val=24, seed=9).val
    assert truth is not None
    found = {}
    for partial in (True, False):
        config = fast_config(
            train__epochs=30, train__batch_size=8, augment__mosaic=0.0, augment__sada=False, eval__every=30,
            eval__every_no_aug=30, schedule__no_aug_epochs=2, augment__flip=0.5, loss__partial_labels=partial,
        )  # fmt: skip
        out = tmp_path / str(partial)
        train(config, tiny_structure(), data, out=out)
        found[partial] = evaluate(load_predictor(out / "last.safetensors"), truth).metrics
    print("AP with and without:", found[True].ap, found[False].ap)
    assert found[True].ap is not None and found[False].ap is not None
    assert found[True].ap > found[False].ap + 0.1
