"""`data.yaml`: what it may say, where its paths lead, and what each mistake is told."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("PIL.Image")

from data_cases import box, coco, write_coco, write_image, write_yolo

from detector.data.data_file import read_data_file
from detector.data.layout import find_layout
from detector.data.source import load_data, load_split
from detector.errors import DataError


@pytest.fixture
def data_file(tmp_path):
    """Write a data.yaml beside `images/train`, and return its path."""
    (tmp_path / "images" / "train").mkdir(parents=True)

    def write(text):
        path = tmp_path / "data.yaml"
        path.write_text(text)
        return path

    return write


def test_paths_are_from_the_file_or_from_path(data_file, tmp_path):
    found = read_data_file(data_file("train: images/train\nval: [images/train, images]\nnames: {1: b, 0: a}\nnc: 2\n"))
    assert found.root == tmp_path and found.class_names == ("a", "b")
    assert [place.path for place in found.splits["val"]] == [tmp_path / "images" / "train", tmp_path / "images"]
    found = read_data_file(data_file("path: images\ntrain: train\n"))
    assert found.root == tmp_path / "images" and found.splits["train"][0].path == tmp_path / "images" / "train"
    assert found.class_names is None


def test_a_path_of_another_machine_does_no_harm_where_the_splits_are_here(data_file, tmp_path):
    found = read_data_file(data_file("path: /home/ann/datasets/cats\ntrain: images/train\nnames: [a]\n"))
    assert found.root == tmp_path
    with pytest.raises(DataError, match=r'path is "/home/ann/datasets/cats"; no such folder'):
        read_data_file(data_file("path: /home/ann/datasets/cats\ntrain: images/elsewhere\n"))


def test_roboflow_writes_one_folder_up(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / split / "images" / "a.png")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\nroboflow:\n  license: CC BY 4.0\n"
    )
    data = load_data(tmp_path)
    assert data.train.images[0].path == tmp_path / "train" / "images" / "a.png"
    assert len(data.val.images[0].labels) == 1 and data.class_names == ("cat",)


def test_a_file_may_name_another_folder_in_so_many_words(tmp_path):
    write_yolo(tmp_path / "elsewhere", {"a": "0 0.5 0.5 0.5 0.5"}, yaml=False)
    configs = tmp_path / "configs"
    configs.mkdir()
    for place in ("../elsewhere/images/train", tmp_path / "elsewhere" / "images" / "train"):
        (configs / "data.yaml").write_text(f"train: {place}\nnames: [cat, dog]\n")
        assert len(load_data(configs).train.images[0].labels) == 1


def test_coco_files_with_folders_of_images(tmp_path):
    record = coco([(1, "a.png")], [box(1, 2, [0, 0, 5, 5])])
    write_coco(tmp_path / "made", record, images=False)
    write_coco(tmp_path / "made", record, "val", images=False)
    first, second = write_image(tmp_path / "one" / "a.png"), write_image(tmp_path / "two" / "a.png")
    text = "train: made/annotations/instances_train.json\nval: made/annotations/instances_val.json\n"
    (tmp_path / "data.yaml").write_text(text + "images: one\nval_images: two\nnames: [dog, cat]\n")
    data = load_data(tmp_path)
    assert data.train.images[0].path == first and data.val.images[0].path == second
    assert data.train.images[0].labels.tolist() == [0] and data.train.category_ids == (2, 1)
    assert data.train.name == f"{tmp_path.name}/made/annotations/instances_train.json"
    (tmp_path / "data.yaml").write_text(text + "images: one\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"annotations\[0\] .*class 'dog' is not one of the 1 classes"):
        load_data(tmp_path)


def test_download_is_never_carried_out(data_file, tmp_path, caplog):
    text = "train: images/{}\nnames: [a]\ndownload: |\n  import os; os.system('touch hacked')\n"
    with caplog.at_level(logging.WARNING, logger="detector"):
        read_data_file(data_file(text.format("train")))
    assert "download is never carried out" in caplog.text
    with pytest.raises(DataError, match=r"no such file or folder in .*download key .* is never carried out, fetch"):
        read_data_file(data_file(text.format("gone")))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnamse: [a]", "namse is not a key; did you mean names?"),
        ("train: images/train\nvalid: images/train", "valid is not a key; did you mean val?"),
        ("train: images/train\nzzz: 1", "zzz is not a key; expected train, val, test, path"),
        ("train: images/train\nkpt_shape: [17, 3]", "labels of key points are not read"),
        ("names: [a]", "names no split; expected train, val or test"),
        ("train: 5", "train is 5; expected a path or a list of paths"),
        ("train: []", "train is []; expected a path or a list of paths"),
        ("train: images/none", 'train is "images/none"; no such file or folder in'),
        ("train: https://example.com/x.zip", "nothing is fetched, expected a path"),
        ("train: images/train\nnames: []", "names is []; expected a list of class names"),
        ("train: images/train\nnames: {0: a, 2: b}", "names has the key 2; expected 0 ... 1"),
        ("train: images/train\nnames: [a, a]", "names[1] is 'a', which an earlier class has"),
        ("train: images/train\nnames: [yes, no]", "names[0] is true; expected a text (in quotes"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc is 2, but names has 1; expected the same number"),
        ("train: images/train\nnc: many", 'nc is "many"; expected a positive integer'),
        ("path: 7\ntrain: images/train", "path is 7; expected a folder"),
        (
            "train: images/train\nimages: images\nnames: [a]",
            "images is for COCO files; expected none where train is YOLO",
        ),
        ("train: images/train", "names is missing; expected the class names"),
        ("just text", 'is "just text"; expected keys such as train, val and names'),
        ("train: [", "is not valid YAML (line 1: "),
        ("train: !!python/object/apply:os.system ['touch hacked']", "is not valid YAML (line 1: "),
        ("train: !!python/name:os.system", "is not valid YAML (line 1: "),
        ("train: \x00", "is not valid YAML"),
    ],
)
def test_mistakes_are_one_line(data_file, tmp_path, text, message):
    write_image(tmp_path / "images" / "train" / "a.png")
    path = data_file(text)
    with pytest.raises(DataError) as raised:
        load_data(path)
    assert message in str(raised.value) and "\n" not in str(raised.value) and str(path) in str(raised.value)
    assert not (tmp_path / "hacked").exists()


def test_numbers_and_missing_names(data_file):
    assert read_data_file(data_file("train: images/train\nnames: [0, 1.5, x]")).class_names == ("0", "1.5", "x")
    assert read_data_file(data_file("train: images/train\nnc: 2")).class_names == ("class_0", "class_1")


def test_one_split_is_of_one_format(tmp_path):
    write_coco(tmp_path, coco([(1, "a.png")], [box(1, 1, [0, 0, 5, 5])]))
    (tmp_path / "data.yaml").write_text("train: [annotations/instances_train.json, images]\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match="train names annotations of coco and yolo; expected one format"):
        load_data(tmp_path)
    (tmp_path / "data.yaml").write_text("train: [annotations/instances_train.json, annotations/instances_train.json]\n")
    with pytest.raises(DataError, match="train has 2 entries; expected one COCO file"):
        load_data(tmp_path)


def test_what_is_no_data_set(tmp_path):
    for path, message in (
        (tmp_path / "gone", "gone: no such file or folder; expected a data.yaml"),
        (write_image(tmp_path / "x.png"), "x.png: is no data set; expected a data.yaml"),
        (tmp_path, "is no data set; expected a data.yaml"),
    ):
        with pytest.raises(DataError, match=message):
            find_layout(path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=r"holds images/ and labels/, but no data.yaml"):
        find_layout(tmp_path)


def test_ambiguous_folders(tmp_path):
    write_coco(tmp_path, coco([(1, "a.png")], []))
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds instances_train.json and instances_train2017.json for train"):
        find_layout(tmp_path)
    (tmp_path / "Annotations").mkdir(exist_ok=True)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a")
    with pytest.raises(DataError, match=r"holds COCO .* and VOC annotations; expected one, or a data.yaml"):
        find_layout(tmp_path)


def test_a_split_that_is_not_there(tmp_path):
    write_coco(tmp_path, coco([(1, "a.png")], [box(1, 1, [0, 0, 5, 5])]))
    with pytest.raises(DataError, match="has no split 'test'; expected one of train"):
        load_split(tmp_path, "test")
