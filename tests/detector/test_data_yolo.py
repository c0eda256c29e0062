"""Reading YOLO labels: what lines become, where files are looked for, and what each faulty line is told."""

from __future__ import annotations

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")

from data_cases import write_image, write_yolo  # noqa: E402

from detector.data.source import load_data, load_split  # noqa: E402
from detector.errors import DataError  # noqa: E402


def test_lines_become_pixels(tmp_path):
    path = write_yolo(tmp_path, {"a": "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.2 0.4\n", "b": "", "c": None})
    data = load_data(path)
    assert data.class_names == ("cat", "dog") and data.train.category_ids == (0, 1) and data.test is None
    first, empty, without = data.train.images
    assert [record.image_id for record in data.train.images] == [1, 2, 3]
    assert first.size == (40, 60) and first.path == tmp_path / "images" / "train" / "a.png"
    np.testing.assert_allclose(first.boxes, [[22.5, 10, 37.5, 30], [0, 0, 12, 16]], atol=1e-5)
    assert first.labels.tolist() == [1, 0] and first.areas.tolist() == [300, 192] and first.polygons is None
    assert len(empty.labels) == len(without.labels) == 0


def test_outlines_become_boxes_and_outlines(tmp_path):
    data = load_data(write_yolo(tmp_path, {"a": "0 0 0 0.5 0.25 0.25 0.5", "b": "0 0 0 0.5 0 0.5 1\n0 .5 .5 .1 .1"}))
    record = data.train.images[0]
    np.testing.assert_allclose(record.boxes, [[0, 0, 30, 20]])
    np.testing.assert_allclose(record.polygons[0], [[0, 0], [30, 10], [15, 20]])
    assert data.train.images[1].polygons is None, "one of its lines is a box"
    np.testing.assert_allclose(data.train.images[1].boxes[0], [0, 0, 30, 40])


def test_an_image_that_exif_turns_has_its_upright_size(tmp_path):
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 1 1"})
    exif = pil.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "images" / "train" / "a.png", (40, 60), exif=exif)
    write_image(tmp_path / "images" / "train" / "b.jpg", (40, 60), exif=exif)
    (tmp_path / "labels" / "train" / "b.txt").write_text("0 0.5 0.5 1 1")
    for record in load_data(path).train.images:
        assert record.size == (60, 40) and record.boxes.tolist() == [[0, 0, 40, 60]]


def test_labels_beside_images_and_in_a_list(tmp_path):
    write_image(tmp_path / "flat" / "a.png")
    (tmp_path / "flat" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: flat\nval: lists/val.txt\nnames: {0: cat}\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val.txt").write_text(f"flat/a.png\n\n{tmp_path}/flat/a.png\n../flat/a.png\n")
    data = load_data(tmp_path)
    assert len(data.train) == len(data.val) == 1 and data.val.images[0].labels.tolist() == [0]
    (tmp_path / "lists" / "val.txt").write_text("flat/gone.png\n")
    with pytest.raises(DataError, match=r'val.txt: line 1: is "flat/gone.png"; no such file'):
        load_data(tmp_path)
    (tmp_path / "lists" / "val.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no images"):
        load_data(tmp_path)


def test_folders_are_searched_and_several_are_joined(tmp_path):
    for place in ("one/images/x/y", "two/images"):
        write_image(tmp_path / place / "a.png")
        labels = tmp_path / place.replace("images", "labels")
        labels.mkdir(parents=True)
        (labels / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: [two/images, one/images]\nnames: [cat]\n")
    data = load_data(tmp_path).train
    assert [record.path.relative_to(tmp_path).as_posix() for record in data.images] == [
        "one/images/x/y/a.png",
        "two/images/a.png",
    ]
    assert all(len(record.labels) == 1 for record in data.images)


def test_the_last_folder_called_images_counts(tmp_path):
    root = tmp_path / "images" / "set"
    write_yolo(root, {"a": "0 0.5 0.5 0.5 0.5"})
    assert len(load_data(root).train.images[0].labels) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 2: class is 2; expected an integer in 0 ... 1"),
        ("-1 0.5 0.5 0.1 0.1", "class is -1; expected an integer in 0 ... 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class is 0.5; expected an integer"),
        ("0 nan 0.5 0.1 0.1", "expected finite numbers: class cx cy width height"),
        ("0 0.5 0.5 0.1 x", "expected finite numbers"),
        ("0 0.5 0.5 -0.1 0.1", "expected a width and a height of at least 0"),
        ("0 30 20 10 10", "expected shares of the image's sides, between 0 and 1"),
        ("0 0.5 0.5 0.1", "has 4 numbers; expected 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 numbers; expected 5"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, line, message):
    path = write_yolo(tmp_path, {"a": f"0 0.5 0.5 0.1 0.1\n{line}\n"})
    with pytest.raises(DataError) as raised:
        load_data(path)
    assert message in str(raised.value) and "labels/train/a.txt: line 2" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_binary_labels_are_one_line(tmp_path):
    path = write_yolo(tmp_path, {"a": ""})
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a.txt: cannot be read as text"):
        load_data(path)


@pytest.mark.parametrize("other", ["a.xml", "b.json"])
def test_mixed_label_formats_are_refused(tmp_path, other):
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"})
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    assert len(load_data(path).train) == 1, "the list of classes that labelling tools leave is no label file"
    (tmp_path / "labels" / "train" / other).write_text("<annotation/>")
    with pytest.raises(DataError, match=r"holds labels in the format of .* beside 1 YOLO files \(.txt\); expected one"):
        load_data(path)


def test_labels_that_are_nowhere(tmp_path):
    path = write_yolo(tmp_path, {"a": None})
    with pytest.raises(DataError, match=r"no label file found in .*; expected .txt files in `labels` or beside"):
        load_data(path)


def test_labels_without_any_box(tmp_path):
    path = write_yolo(tmp_path, {"a": "", "b": ""})
    with pytest.raises(DataError, match="none of its 2 images has a box; nothing can be learnt"):
        load_data(path)
    assert len(load_split(path, "val")) == 2


def test_a_corrupt_image_is_named(tmp_path):
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"})
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"\x89PNG but not really")
    with pytest.raises(DataError, match=r"a.png: is no image that can be read"):
        load_data(path)


def test_a_wide_image_is_not_decoded(tmp_path, monkeypatch):
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    pil.new("1", (20_000, 8)).save(tmp_path / "images" / "train" / "a.png")
    monkeypatch.setattr(pil.Image, "load", lambda self: pytest.fail("decoded"))
    assert load_data(path).train.images[0].boxes.tolist() == [[5000, 2, 15000, 6]]


def test_links_may_not_leave_the_data_set(tmp_path):
    secret = write_image(tmp_path / "secret.png")
    root = tmp_path / "set"
    path = write_yolo(root, {"a": "0 0.5 0.5 0.5 0.5"})
    (root / "images" / "train" / "b.png").symlink_to(secret)
    with pytest.raises(DataError, match=r"b.png: is a link to .*secret.png, outside of"):
        load_data(path)
    (root / "images" / "train" / "b.png").unlink()
    (tmp_path / "secret.txt").write_text("password")
    (root / "labels" / "train" / "a.txt").unlink()
    (root / "labels" / "train" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match="is a link to"):
        load_data(path)


def test_a_models_classes_give_the_order(tmp_path):
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1"})
    assert load_split(path, "val", class_names=("dog", "cat")).images[0].labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"line 1: class 'cat' is not one of the 1 classes"):
        load_split(path, "val", class_names=("dog",))
