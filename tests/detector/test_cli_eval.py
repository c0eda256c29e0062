"""`maenas eval` end to end: what it writes, prints and refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("faster_coco_eval")

from cli_cases import answer  # noqa: E402
from evaluation_cases import NAMES, Seer, dataset, found, random_case, record, write_scenes  # noqa: E402
from network_cases import random_structure, randomise_norms  # noqa: E402

from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.coco_metrics import coco_metrics  # noqa: E402
from detector.eval_plots import bars_png, confusion_png, pr_curves_png, worst_png  # noqa: E402
from detector.evaluate import Evaluation, Settings, Timing, evaluate  # noqa: E402
from detector.evaluation_report import analyse, dataset_digest, worst_images  # noqa: E402
from detector.model import Detector  # noqa: E402
from maenas.cli import models  # noqa: E402

FILES = ["bars.png", "confusion.png", "detections.json", "eval.json", "pr_curves.csv", "pr_curves.png", "worst.png"]


@pytest.fixture
def maenas(tmp_path, monkeypatch, capsys):
    """Run the verb in an empty current folder: (exit code, standard output, standard error)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments):
        return answer(capsys, "eval", *arguments)

    return run


@pytest.fixture
def cells(tmp_path):
    """A data set on disk."""
    write_scenes(tmp_path / "cells")
    return tmp_path / "cells"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network with random weights that finds something nearly everywhere."""
    made = random_structure("res", 3)
    structure = replace(made, image_size=(64, 96), head=replace(made.head, num_classes=3, background_class=False))
    torch.manual_seed(0)
    model = Detector(structure)
    randomise_norms(model, 0)
    for conv in model.head.class_convs:
        conv.bias.data.fill_(-1.0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(Checkpoint(structure, model.state_dict(), NAMES), path)
    return path


@pytest.fixture
def seer(monkeypatch, tmp_path):
    """A model file whose network finds everything."""
    path = tmp_path / "seer.safetensors"
    path.write_bytes(b"eyes")
    opened = Seer()
    monkeypatch.setattr(models, "open_model", lambda source, **options: (opened, False))
    return path


def test_a_checkpoint_on_a_folder(maenas, checkpoint, cells):
    code, out, err = maenas(checkpoint, "--data", cells, "--max-detections", 20, "--batch", 2)
    assert code == 0, err
    folder = cells.parent / "work/runs/eval/tiny-cells-val"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    written = json.loads((folder / "eval.json").read_text())
    assert written["schema_version"] == 1
    assert written["model"]["source"] == str(checkpoint) and len(written["model"]["sha256"]) == 64
    assert written["model"]["runtime"] == "torch" and written["model"]["random_weights"] is False
    assert written["settings"] == {
        "score_threshold": 0.05,
        "iou_threshold": 0.7,
        "max_detections": 20,
        "image_size": [64, 96],
        "batch_size": 2,
        "tiling": None,
    }
    assert written["data"]["categories"][1] == {"id": 7, "name": "dog"} and written["data"]["num_images"] == 5
    assert written["timing"]["device"] == "cpu" and written["timing"]["threads"] >= 1
    assert set(written["versions"]) == {"maenas", "python", "numpy", "faster-coco-eval", "pillow", "torch"}
    model = Detector.from_checkpoint(checkpoint)
    expected = evaluate(model, write_scenes(cells.parent / "again"), max_detections=20)
    assert written["metrics"]["ap"] == pytest.approx(expected.metrics.ap, abs=1e-3)
    rows = json.loads((folder / "detections.json").read_text())
    assert len(rows) == expected.metrics.num_detections > 20
    assert {row["image_id"] for row in rows} <= {11, 12, 13, 14, 15}
    assert {row["category_id"] for row in rows} <= {2, 7, 12}
    for text in ("AP50", "classes", "cat", "errors and the AP50", "localisation", "ms an image", "written: runs/eval"):
        assert text in out, text


def test_everything_found(maenas, seer, cells, tmp_path):
    code, out, err = maenas(seer, "--data", cells / "annotations/instances_val.json", "--out", tmp_path / "found")
    assert code == 0 and err == ""
    written = json.loads((tmp_path / "found/eval.json").read_text())
    assert written["metrics"]["ap"] == 1 and written["best"]["f1"] == 1
    assert [entry["num_boxes"] for entry in written["classes"]] == [5, 3, 1]
    assert np.trace(written["confusion"]["counts"]) == 9 == np.sum(written["confusion"]["counts"])
    assert "100.0" in out and "precision 100.0, recall 100.0" in out and "taken for" not in out
    # No image has an error, so there is no picture of the worst.
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        name for name in FILES if name != "worst.png"
    ]
    with (tmp_path / "found/pr_curves.csv").open(newline="") as stream:
        table = list(csv.reader(stream))
    assert (
        table[0] == ["recall", "cat", "dog", "fox"] and len(table) == 102 and table[-1] == ["1.00"] + ["1.000000"] * 3
    )


def test_json_prints_the_record_only(maenas, seer, cells):
    code, out, _ = maenas(seer, "--data", cells, "--json", "--no-plots")
    printed = json.loads(out)
    assert code == 0 and printed.pop("out") == "runs/eval/seer-cells-val"
    folder = cells.parent / "work/runs/eval/seer-cells-val"
    assert printed == json.loads((folder / "eval.json").read_text())
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".json", ".json"]


def test_the_same_question_gives_the_same_files_but_for_times(maenas, seer, cells, tmp_path):
    for name in ("first", "second"):
        assert maenas(seer, "--data", cells, "--out", tmp_path / name)[0] == 0
    for path in (tmp_path / "first").iterdir():
        other = tmp_path / "second" / path.name
        if path.name == "eval.json":
            records = [json.loads(file.read_text()) for file in (path, other)]
            for entry in records:
                del entry["timing"]
            assert records[0] == records[1]
        else:
            assert path.read_bytes() == other.read_bytes(), path.name


def test_results_need_a_new_folder_or_force(maenas, seer, cells, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    code, _, err = maenas(seer, "--data", cells, "--out", tmp_path / "out")
    assert code == 2 and "out: holds files already; expected a new folder, or --force" in err
    assert maenas(seer, "--data", cells, "--out", tmp_path / "out", "--force", "--no-plots")[0] == 0
    assert (tmp_path / "out/precious.txt").read_text() == "mine" and (tmp_path / "out/eval.json").exists()
    # Pictures of an earlier evaluation would be taken for those of this one.
    (tmp_path / "out/worst.png").write_bytes(b"old")
    assert maenas(seer, "--data", cells, "--out", tmp_path / "out", "--force")[0] == 0
    assert not (tmp_path / "out/worst.png").exists() and (tmp_path / "out/bars.png").exists()


def test_nothing_found_says_what_to_try(maenas, seer, cells):
    code, out, _ = maenas(seer, "--data", cells, "--score", "1", "--no-plots")
    assert code == 0 and "nothing was found at scores above 1; a lower --score may show more" in out
    assert "best score threshold" not in out


def test_several_models_side_by_side(maenas, seer, cells, monkeypatch):
    blind = Seer()
    blind.detect = lambda images, **options: [found(size=images.shape[2:]) for _ in images]
    (seer.parent / "blind.safetensors").write_bytes(b"")
    good = models.open_model("", runtime=None, device=None, threads=None)[0]
    monkeypatch.setattr(models, "open_model", lambda source, **_: (blind if "blind" in source else good, False))
    code, out, err = maenas(seer, seer.parent / "blind.safetensors", seer, "--data", cells, "--no-plots")
    assert code == 0, err
    folder = cells.parent / "work/runs/eval/compare-cells-val"
    assert sorted(path.name for path in folder.iterdir()) == ["blind", "compare.json", "seer", "seer-2"]
    comparison = json.loads((folder / "compare.json").read_text())
    assert [row["metrics"]["ap"] for row in comparison["models"]] == [1, 0, 1]
    assert json.loads((folder / "blind/eval.json").read_text())["best"] is None
    assert "seer-2" in out and "AR100" in out and "100.0" in out


def test_an_interrupt_leaves_finished_models_whole(maenas, seer, cells, monkeypatch):
    slow = Seer()

    def stop(images, **options):
        raise KeyboardInterrupt

    slow.detect = stop
    good = models.open_model("", runtime=None, device=None, threads=None)[0]
    monkeypatch.setattr(models, "open_model", lambda source, **_: (slow if "slow" in source else good, False))
    code, out, err = maenas(seer, "slow.safetensors", "--data", cells, "--no-plots")
    assert code == 130 and out == "" and "interrupted" in err
    folder = cells.parent / "work/runs/eval/compare-cells-val"
    assert [path.name for path in folder.iterdir()] == ["seer"]
    assert sorted(path.name for path in (folder / "seer").iterdir()) == [
        "detections.json", "eval.json", "pr_curves.csv"]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "has no split 'test'; expected one of val"),
        (["--image-size", "65"], "image_size is (65, 65); expected a side or (height, width), multiples of 32"),
        (["--image-size", "big"], "--image-size is 'big'"),
        (["--score", "2"], "score_threshold is 2.0; expected 0 ... 1"),
        (["--tile", "16"], "tile is (16, 16); expected (height, width), at least 32 each"),
        (["--whole"], "--whole is given; expected it with --tile only"),
        (["--runtime", "onnxruntime"], "runtime is 'onnxruntime'; expected torch"),
        (["--device", "nowhere"], "device is 'nowhere'; cannot be used"),
    ],
)
def test_options_that_do_not_fit(maenas, checkpoint, cells, options, message):
    code, out, err = maenas(checkpoint, "--data", cells, *options)
    assert code == 2 and out == "" and message in err
    assert not (cells.parent / "work/runs").exists()


def test_tiles(maenas, seer, cells):
    code, out, err = maenas(seer, "--data", cells, "--tile", "64x96", "--whole", "--no-plots")
    assert code == 0, err
    assert "in tiles of 64x96 pixels" in out
    written = json.loads((cells.parent / "work/runs/eval/seer-cells-val/eval.json").read_text())
    assert written["settings"]["tiling"] == {"tile": [64, 96], "overlap": 0.2, "whole": True}
    assert written["metrics"]["ap"] == 1


def test_an_unknown_split_lists_the_three(maenas, seer, cells):
    code, _, err = maenas(seer, "--data", cells, "--split", "validation")
    assert code == 2 and "choose from" in err and "val" in err


def test_classes_that_do_not_fit(maenas, seer, cells, monkeypatch):
    monkeypatch.setattr(models, "open_model", lambda *_, **__: (Seer(("cat", "bird", "fox")), False))
    code, _, err = maenas(seer, "--data", cells)
    assert code == 2 and "the network does not know its class 'dog'" in err
    code, out, _ = maenas(seer, "--data", cells, "--allow-missing", "--no-plots")
    assert code == 0 and "left out, not known to the model: dog" in out


def test_images_that_cannot_be_read(maenas, seer, cells):
    (cells / "images/scene 3.png").write_bytes(b"nothing")
    code, _, err = maenas(seer, "--data", cells)
    assert code == 2 and "scene 3.png: is no image" in err
    code, out, _ = maenas(seer, "--data", cells, "--skip-unreadable", "--no-plots")
    assert code == 0 and "skipped: " in out and "scene 3.png" in out


def test_a_network_of_a_fixed_size(maenas, seer, cells, monkeypatch):
    monkeypatch.setattr(models, "open_model", lambda *_, **__: (Seer(fixed_size=True), False))
    code, _, err = maenas(seer, "--data", cells, "--image-size", "64")
    assert code == 2 and "image_size is 64x64; this model takes 64x96 only" in err


@pytest.mark.slow
@pytest.mark.export
def test_the_folder_of_an_export(maenas, checkpoint, cells, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    Detector.from_checkpoint(checkpoint).export(tmp_path / "fixed/model.onnx", verify=False)
    code, out, err = maenas(tmp_path / "fixed", "--data", cells, "--no-plots", "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["model"]["runtime"] == "onnxruntime" and printed["settings"]["batch_size"] == 1
    assert printed["out"] == "runs/eval/fixed-cells-val"


def analysis_of(truth, detections):
    evaluation = Evaluation(
        metrics=coco_metrics(truth, detections),
        dataset=truth,
        detections=tuple(detections),
        settings=Settings(0.01, 0.7, 500, (64, 96), 8),
        timing=Timing(1.0, 1.0, 1.0),
    )
    return analyse(evaluation)


def test_pictures_of_many_classes_and_strange_names():
    truth, detections = random_case(
        np.random.default_rng(0), num_images=40, num_classes=45, most_boxes=12, most_found=10
    )
    names = [f"$class_{label}^" if label % 2 else f"very long name of a class \x07 {label}" for label in range(45)]
    analysis = analysis_of(replace(truth, class_names=tuple(names)), detections)
    for draw in (pr_curves_png, confusion_png, bars_png):
        assert size_of(draw(analysis))[0] > 600


def test_pictures_where_nothing_was_found(tmp_path):
    path = tmp_path / "black.png"
    pil.new("RGB", (100, 100)).save(path)
    truth = dataset(record([[0, 0, 50, 50]], [0], path=path), names=("cat",))
    analysis = analysis_of(truth, [found()])
    for draw in (pr_curves_png, confusion_png, bars_png, worst_png):
        assert size_of(draw(analysis))[0] > 300


def size_of(png):
    import io

    with pil.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


def test_the_worst_images_first():
    truth = dataset(*(record([[0, 0, 10, 10]], [0], image_id=number) for number in range(4)))
    wrong = (50, 50, 60, 60, 0.9, 0)
    detections = [
        found((0, 0, 10, 10, 0.95, 0)),
        found((0, 0, 10, 10, 0.95, 0), wrong),
        found(wrong, (70, 70, 80, 80, 0.9, 1)),
        found((0, 0, 10, 10, 0.95, 0), (1, 1, 90, 90, 0.02, 0)),
    ]
    analysis = analysis_of(truth, detections)
    assert analysis.score_threshold == pytest.approx((0.95 + 0.9) / 2)
    assert worst_images(analysis, 9) == [(2, 0, 1)]
    lower = replace(analysis, confusion=replace(analysis.confusion, score_threshold=0.5))
    assert worst_images(lower, 9) == [(2, 2, 1), (1, 1, 0)]
    assert worst_images(lower, 1) == [(2, 2, 1)]


def test_the_digest_knows_boxes_and_names_but_not_the_place(tmp_path):
    truth = dataset(record([[0, 0, 10, 10]], [0], path="here/a.png"))
    moved = dataset(record([[0, 0, 10, 10]], [0], path=tmp_path / "a.png"))
    assert dataset_digest(truth) == dataset_digest(moved) and len(dataset_digest(truth)) == 16
    for other in (
        dataset(record([[0, 0, 10, 11]], [0], path="here/a.png")),
        dataset(record([[0, 0, 10, 10]], [1], path="here/a.png")),
        dataset(record([[0, 0, 10, 10]], [0], path="here/b.png")),
        dataset(record([[0, 0, 10, 10]], [0], path="here/a.png", ignored=[True])),
        dataset(record([[0, 0, 10, 10]], [0], path="here/a.png"), names=("cat", "dog", "cow")),
    ):
        assert dataset_digest(other) != dataset_digest(truth)
