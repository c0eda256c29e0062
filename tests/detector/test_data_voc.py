"""Reading Pascal VOC: the pixel convention, unsafe XML, and faulty entries."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL.Image")

from data_cases import voc_object, write_voc

from detector.data.source import load_data, load_split
from detector.data.voc import parse_xml
from detector.errors import DataError


def test_boxes_count_from_one_and_include_the_last_pixel(tmp_path):
    text = voc_object("dog", (1, 1, 60, 40)) + voc_object("cat", (11, 6, 11, 6), difficult=1)
    write_voc(tmp_path, {"b": text, "a": ""})
    write_voc(tmp_path, {"c": voc_object("cat", (2, 3, 4.5, 5))}, "val")
    data = load_data(tmp_path)
    assert data.class_names == ("cat", "dog")
    first, empty = data.train.images
    assert first.path == tmp_path / "JPEGImages" / "b.jpg" and first.size == (40, 60) and first.image_id == 1
    assert first.boxes.tolist() == [[0, 0, 60, 40], [10, 5, 11, 6]] and first.labels.tolist() == [1, 0]
    assert first.ignored.tolist() == [False, True] and first.areas.tolist() == [2400, 1]
    assert len(empty.labels) == 0
    assert data.val.images[0].boxes.tolist() == [[1, 2, 4.5, 5]]


def test_a_data_file_may_name_lists_and_classes(tmp_path):
    write_voc(tmp_path / "VOC", {"a": voc_object("dog", (1, 1, 9, 9))})
    (tmp_path / "data.yaml").write_text("train: VOC/ImageSets/Main/train.txt\nnames: [cat, dog]\n")
    assert load_data(tmp_path).train.images[0].labels.tolist() == [1]
    (tmp_path / "data.yaml").write_text("train: VOC/ImageSets/Main/train.txt\nnames: [cat, dgo]\n")
    with pytest.raises(
        DataError, match=r"a.xml: object 1: class 'dog' is not one of the 2 classes .* did you mean 'dgo'"
    ):
        load_data(tmp_path)


def test_a_class_of_val_that_train_lacks(tmp_path):
    write_voc(tmp_path, {"a": voc_object("dog", (1, 1, 9, 9))})
    write_voc(tmp_path, {"b": voc_object("cow", (1, 1, 9, 9))}, "val")
    with pytest.raises(DataError, match=r"b.xml: object 1: class 'cow' is not one of the 1 classes"):
        load_data(tmp_path)


def test_an_unstated_size_is_none(tmp_path):
    write_voc(tmp_path, {"a": voc_object("dog", (1, 1, 9, 9))})
    path = tmp_path / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<width>60", "<width>0"))
    assert load_split(tmp_path, "train").images[0].size is None


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((5, 5, "nan", 9), "bndbox has xmin 5, ymin 5, xmax nan, ymax 9; expected four finite numbers"),
        ((5, 5, "", 9), "xmax missing"),
        ((5, 5, 3, 9), "expected xmin <= xmax and ymin <= ymax"),
        ((5, 5, "1e12", 9), "expected four finite numbers"),
    ],
)
def test_a_faulty_object_is_named(tmp_path, corners, message):
    write_voc(tmp_path, {"a": voc_object("dog", (1, 1, 9, 9)) + voc_object("dog", corners)})
    with pytest.raises(DataError, match=r"a.xml: object 2: ") as raised:
        load_data(tmp_path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
EXTERNAL = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation><name>&f;</name></annotation>'


@pytest.mark.parametrize("text", [LAUGHS, EXTERNAL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_declared_entities_are_refused(tmp_path, text, encoding):
    write_voc(tmp_path, {"a": ""})
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    (tmp_path / "data.yaml").write_text("train: ImageSets/Main/train.txt\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"a.xml: declares types or entities"):
        load_data(tmp_path)


def test_an_encoding_cannot_hide_entities():
    hidden = b'<?xml version="1.0" encoding="cp037"?>' + EXTERNAL.encode("cp037")
    with pytest.raises(DataError):
        parse_xml(hidden, "x.xml")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<annotation>", "is no XML file"), (b"\xff\xfa", "is not UTF-8 text"), (b"", "is no XML file")],
)
def test_a_broken_annotation(content, message):
    with pytest.raises(DataError, match=f"x.xml: {message}"):
        parse_xml(content, "x.xml")


def test_missing_files_are_named(tmp_path):
    text = voc_object("dog", (1, 1, 9, 9))
    write_voc(tmp_path, {"a": text, "b": text})
    (tmp_path / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"b.xml: no such file; expected the annotation of a listed image"):
        load_data(tmp_path)
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r'train.txt: lists "b"; no such image in .*JPEGImages'):
        load_data(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("../../../etc/passwd\n")
    with pytest.raises(DataError, match="no object in its images"):
        load_data(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a -1\n")
    with pytest.raises(DataError, match="line 1 has two columns; expected the list of a split"):
        load_data(tmp_path)
