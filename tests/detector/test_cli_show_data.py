"""`maenas show-data` end to end: the picture, what is printed, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("cv2")
pil = pytest.importorskip("PIL.Image")
pytest.importorskip("torch")

from augment_cases import CLASS_NAMES, rectangles, sample_of  # noqa: E402

from detector.data.preview import draw_grid  # noqa: E402
from maenas.cli.main import main  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """A COCO data set of eight images."""
    dataset = rectangles(tmp_path / "data" / "images", 8)
    annotations = [
        {
            "id": 100 * record.image_id + place,
            "image_id": record.image_id,
            "category_id": int(label) + 1,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "area": float((x2 - x1) * (y2 - y1)),
            "iscrowd": 0,
        }
        for record in dataset.images
        for place, ((x1, y1, x2, y2), label) in enumerate(zip(record.boxes, record.labels, strict=True))
    ]
    images = [
        {"id": record.image_id, "file_name": record.path.name, "height": record.size[0], "width": record.size[1]}
        for record in dataset.images
    ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data" / "annotations").mkdir()
    (tmp_path / "data" / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return tmp_path / "data"


@pytest.fixture
def show(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in ("show-data", folder, *arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_grid_of_augmented_samples(show, tmp_path):
    code, out, err = show("--image-size", "64", "--count", "6", "--out", "grid.png")
    assert (code, err) == (0, "")
    assert "6 samples of 64x64" in out and "written: grid.png" in out
    assert pil.open(tmp_path / "grid.png").size == (3 * 64 + 12, 2 * 64 + 6)


def test_equal_seeds_give_equal_pictures(show, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert show("--image-size", "64", "--seed", seed, "--out", f"{name}.png")[0] == 0
    first, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == again != other


def test_plain_images_keep_their_aspect_ratio_and_boxes(show):
    code, out, _ = show("--plain", "--image-size", "160", "--json", "--count", "20")
    record = json.loads(out)
    assert code == 0 and record["class_names"] == list(CLASS_NAMES)
    assert len(record["samples"]) == 8  # each image once
    assert all(len(sample["boxes"]) == len(sample["labels"]) > 0 for sample in record["samples"])


def test_the_final_epochs_and_settings(show):
    counts = []
    for options in (("--final",), ("--set", "augment.mosaic=0"), ("--set", "augment.scale=[0.1, 0.1]")):
        code, out, err = show(*options, "--image-size", "96", "--progress", "0", "--json", "--count", "8", "--force")
        assert code == 0, err
        counts.append(sum(len(sample["labels"]) for sample in json.loads(out)["samples"]))
    assert counts[0] == counts[1]  # the images' own boxes, no more and no fewer


def test_broken_images_are_named(show, folder):
    (folder / "images" / "003.png").write_bytes(b"no picture")
    code, out, err = show("--plain", "--image-size", "64", "--count", "8")
    assert code == 0 and "7 samples" in out
    assert "warning" in err and "003.png" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "grid.jpg"), "grid.jpg: expected a name that ends in .png"),
        (("--count", "0"), "--count is 0; expected 1 ... 400"),
        (("--seed", "-1"), "--seed is -1; expected at least 0"),
        (("--progress", "1.5"), "--progress is 1.5; expected 0 ... 1"),
        (("--image-size", "65"), "image_size is [65, 65]; expected multiples of 32"),
        (("--split", "test"), "has no split 'test'"),
        (("--set", "augment.mosaic=2"), "augment.mosaic is 2.0; expected a number from 0 to 1"),
    ],
)
def test_what_is_refused(show, options, message, tmp_path):
    code, out, err = show(*options)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_nothing_is_overwritten(show, tmp_path):
    (tmp_path / "samples.png").write_text("mine")
    code, _, err = show("--image-size", "64")
    assert code == 2 and "samples.png: exists already" in err
    assert (tmp_path / "samples.png").read_text() == "mine"
    assert show("--image-size", "64", "--force")[0] == 0


def test_samples_lie_side_by_side_with_their_boxes():
    samples = [sample_of((40, 60), [(10, 20, 30, 38)], [label]) for label in range(3)]
    grid = draw_grid(samples, CLASS_NAMES)
    assert grid.shape == (2 * 40 + 6, 2 * 60 + 6, 3)
    assert (grid[40:46] == 255).all() and (grid[46:, 66:] == 255).all()  # gap, and the place of a fourth
    for top, left, sample in ((0, 0, samples[0]), (0, 66, samples[1]), (46, 0, samples[2])):
        place = grid[top : top + 40, left : left + 60]
        np.testing.assert_array_equal(place[22:36, 12:28], sample.image[22:36, 12:28])  # inside the box
        assert (place[30, 10] != sample.image[30, 10]).any()  # its line
        assert (place[:20, 10:30] != sample.image[:20, 10:30]).any()  # its name above it,
        np.testing.assert_array_equal(place[:20, 42:], sample.image[:20, 42:])  # without a score
