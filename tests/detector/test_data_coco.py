"""Reading COCO files: what boxes become, and what each faulty entry is told."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("PIL.Image")

from data_cases import box, coco, write_coco, write_image

from detector.data.coco import read_coco
from detector.data.source import load_data, load_split
from detector.errors import DataError

TRIANGLE = [1.0, 2.0, 11.0, 2.0, 1.0, 12.0]
SQUARE = [20.0, 20.0, 25.0, 20.0, 25.0, 25.0, 20.0, 25.0]


@pytest.fixture
def read(tmp_path):
    """Write a record with its images and read it."""

    def run(record, **options):
        path = write_coco(tmp_path, record)
        return read_coco(path, root=tmp_path, name="set", **options)

    return run


def test_boxes_labels_and_order(read, tmp_path):
    data = read(
        coco(
            [(7, "b.png"), (3, "a.png"), (5, "empty.png")],
            [box(7, 9, [1, 2, 3, 4]), box(3, 2, [0.5, 0.25, 10, 20], area=77.5), box(7, 2, [5, 6, 7.5, 8])],
            categories=((9, "zebra"), (2, "ant")),
        )
    )
    assert data.class_names == ("ant", "zebra") and data.category_ids == (2, 9)
    assert [record.image_id for record in data.images] == [3, 5, 7]
    first, empty, last = data.images
    assert first.path == tmp_path / "images" / "a.png" and first.size == (40, 60)
    np.testing.assert_array_equal(first.boxes, np.array([[0.5, 0.25, 10.5, 20.25]], np.float32))
    assert first.areas.tolist() == [77.5] and first.labels.tolist() == [0]
    assert empty.boxes.shape == (0, 4) and empty.polygons is None
    np.testing.assert_array_equal(last.boxes, [[1, 2, 4, 6], [5, 6, 12.5, 14]])
    assert last.labels.tolist() == [1, 0] and last.areas.tolist() == [12, 60]
    assert not last.ignored.any()


def test_crowds_are_ignored_and_a_missing_flag_is_none(read):
    record = coco(
        [(1, "a.png")], [box(1, 1, [0, 0, 5, 5], iscrowd=1), box(1, 2, [0, 0, 9, 9]), box(1, 2, [1, 1, 2, 2])]
    )
    del record["annotations"][1]["iscrowd"]
    record["annotations"][2]["ignore"] = 1
    assert read(record).images[0].ignored.tolist() == [True, False, True]


def test_outlines(read):
    rle = {"counts": "abc", "size": [40, 60]}
    data = read(
        coco(
            [(1, "a.png"), (2, "b.png"), (3, "c.png")],
            [
                box(1, 1, [1, 2, 24, 23], segmentation=[TRIANGLE, SQUARE]),
                box(1, 1, [4, 5, 6, 7], segmentation=rle, iscrowd=1),
                box(2, 1, [1, 2, 10, 10], segmentation=[TRIANGLE]),
                box(2, 1, [1, 2, 10, 10]),
                box(3, 1, [1, 2, 10, 10], segmentation=[[1, 2, 3, 4]]),
            ],
        )
    )
    both, crowd = data.images[0].polygons
    np.testing.assert_array_equal(both, np.array(TRIANGLE + SQUARE).reshape(-1, 2))
    np.testing.assert_array_equal(crowd, [[4, 5], [10, 5], [10, 12], [4, 12]])
    assert data.images[1].polygons is None, "one of its boxes has no outline"
    assert data.images[2].polygons is None, "two points are no outline"


@pytest.mark.parametrize("bad", [[[1, 2, "x", 4, 5, 6]], [[1, 2, math.nan, 4, 5, 6]], [[1, 2, 3, 4, 5]], [5], []])
def test_outlines_that_cannot_be_used_are_left_out(read, bad):
    data = read(coco([(1, "a.png")], [box(1, 1, [1, 2, 3, 4], segmentation=bad)]))
    assert data.images[0].polygons is None and data.images[0].boxes.tolist() == [[1, 2, 4, 6]]


def test_classes_go_through_names(tmp_path):
    write_coco(tmp_path, coco([(1, "a.png")], [box(1, 1, [0, 0, 5, 5])]))
    val = coco([(2, "v.png")], [box(2, 5, [0, 0, 5, 5]), box(2, 3, [0, 0, 6, 6])], categories=((3, "dog"), (5, "cat")))
    write_coco(tmp_path, val, "val")
    data = load_data(tmp_path)
    assert data.class_names == data.val.class_names == ("cat", "dog")
    assert data.val.images[0].labels.tolist() == [0, 1]
    assert data.train.category_ids == (1, 2) and data.val.category_ids == (5, 3)


def test_a_class_of_val_that_train_lacks(tmp_path):
    write_coco(tmp_path, coco([(1, "a.png")], [box(1, 1, [0, 0, 5, 5])]))
    unused = coco([(2, "v.png")], [box(2, 1, [0, 0, 5, 5])], categories=((1, "cat"), (4, "dgo")))
    write_coco(tmp_path, unused, "val")
    assert load_data(tmp_path).val.category_ids == (1, 5), "a class without boxes does no harm; dog has no id there"
    unused["annotations"].append({"id": 9, **box(2, 4, [0, 0, 5, 5])})
    write_coco(tmp_path, unused, "val")
    with pytest.raises(
        DataError, match=r"instances_val.json: annotations\[1\] \(id 9, image v.png\): class 'dgo' .* 'dog'\?"
    ):
        load_data(tmp_path)


def test_a_models_classes_give_the_order(tmp_path):
    path = write_coco(tmp_path, coco([(1, "a.png")], [box(1, 1, [0, 0, 5, 5]), box(1, 2, [0, 0, 5, 5])]))
    data = load_split(path, "test", class_names=("dog", "horse", "cat"))
    assert data.images[0].labels.tolist() == [2, 0] and data.category_ids == (2, 3, 1)


def test_where_images_are_found(tmp_path):
    record = coco([(1, "a.png")], [box(1, 1, [0, 0, 5, 5])])
    for place in ("images/train", "images", "train", "annotations", "."):
        folder = tmp_path / place.replace("/", "-")
        path = write_coco(folder, record, images=False)
        image = write_image(folder / place / "a.png")
        assert read_coco(path, root=folder, name="set").images[0].path == image
    with pytest.raises(
        DataError, match=r'its images \(first: "a.png"\) are in none of .*name their folder with `images:`'
    ):
        read_coco(write_coco(tmp_path / "none", record, images=False), root=tmp_path, name="set")


def test_roboflow_keeps_images_beside_the_file(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / split / "a.png")
        record = coco([(1, "a.png")], [box(1, 1, [0, 0, 5, 5])])
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(record))
    data = load_data(tmp_path)
    assert data.val.images[0].path == tmp_path / "valid" / "a.png" and data.train.name.endswith(
        "_annotations.coco.json"
    )


GOOD = box(1, 1, [0, 0, 5, 5])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (box(1, 3, [0, 0, 5, 5]), r"annotations\[1\] \(id 2, image a.png\): category_id is 3; expected one of 1, 2"),
        (box(8, 1, [0, 0, 5, 5]), r"annotations\[1\] \(id 2\): image_id is 8; expected the id of one of the 1 images"),
        (box(1, 1, [0, 0, math.nan, 5]), r"bbox is \[0, 0, NaN, 5\]; expected four finite numbers"),
        (box(1, 1, [0, 0, math.inf, 5]), "expected four finite numbers"),
        (box(1, 1, [0, 0, -4, 5]), r"bbox is \[0, 0, -4, 5\]; expected a width and a height of at least 0"),
        (box(1, 1, [0, 0, 5]), "expected four finite numbers"),
        (box(1, 1, [0, 0, 5, True]), "expected four finite numbers"),
        (box(1, 1, [0, 0, 5, 10**400]), "expected four finite numbers"),
        (box(1, 1, ["0", "0", "5", "5"]), "expected four finite numbers"),
        (box(1, 1, [1e300, -1e300, 5, 5]), "expected pixels, at most 1e"),
        (box(1, 1, None), "bbox is null"),
        (box(1, 1, [0, 0, 5, 5], area=math.nan), "area is NaN; expected square pixels, a number of at least 0"),
        (box(1, 1, [0, 0, 5, 5], area=1e300), r"area is 1e\+300; expected square pixels"),
        (box([1], 1, [0, 0, 5, 5]), r"image_id is \[1\]"),
        ({}, "image_id is null"),
    ],
)
def test_a_faulty_annotation_is_named(read, entry, message):
    with pytest.raises(DataError, match=message) as raised:
        read(coco([(1, "a.png")], [GOOD, entry]))
    assert "\n" not in str(raised.value) and "instances_train.json" in str(raised.value)


def test_an_annotation_that_is_no_object(read):
    record = coco([(1, "a.png")], [GOOD])
    record["annotations"].append("box")
    with pytest.raises(DataError, match=r'annotations\[1\]: is "box"; expected an object'):
        read(record)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"id": 1, "file_name": "b.png"}, r"images\[1\]: id is 1, which an earlier image has"),
        ({"id": "2", "file_name": "b.png"}, r"images\[1\]: id is \"2\"; expected an integer"),
        ({"id": 2}, r"file_name is null; expected a path \(image 2\)"),
        ({"id": 2, "file_name": "b.png", "width": 0}, r"width is 0; expected a positive integer \(image 2\)"),
        ({"id": 2, "file_name": "b.png", "width": math.nan}, "width is NaN"),
        ({"id": 2, "file_name": "gone.png"}, r'images\[1\]: file_name is "gone.png"; no such file in .*images'),
        ("b.png", r'images\[1\]: is "b.png"; expected an object'),
    ],
)
def test_a_faulty_image_is_named(tmp_path, image, message):
    record = coco([(1, "a.png")], [GOOD])
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "b.png")
    record["images"].append(image)
    path = write_coco(tmp_path, record, images=False)
    with pytest.raises(DataError, match=message):
        read_coco(path, root=tmp_path, name="set")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "x/../../secret.png", "..\\secret.png", "a\0.png"])
def test_file_names_may_not_leave_the_data_set(tmp_path, name):
    write_image(tmp_path / "secret.png")
    root = tmp_path / "set"
    write_image(root / "images" / "a.png")
    path = write_coco(root, coco([(1, "a.png"), (2, name)], [GOOD]), images=False)
    with pytest.raises(
        DataError, match=r"images\[1\].file_name: .* leads out of .*images; expected a file of the data set"
    ):
        read_coco(path, root / "images", root=root / "images", name="set")


def test_links_may_not_leave_the_data_set(tmp_path):
    write_image(tmp_path / "secret.png")
    root = tmp_path / "set"
    write_image(root / "more" / "a.png")
    (root / "images").mkdir()
    (root / "images" / "a.png").symlink_to(root / "more" / "a.png")
    path = write_coco(root, coco([(1, "a.png")], [GOOD]), images=False)
    assert len(read_coco(path, root=root, name="set")) == 1, "a link inside of the data set is fine"
    (root / "images" / "a.png").unlink()
    (root / "images" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"is a link to .*secret.png, outside of"):
        read_coco(path, root=root, name="set")
    (root / "images" / "a.png").unlink()
    (root / "images").rmdir()
    (root / "images").symlink_to(tmp_path)
    with pytest.raises(DataError, match="is a link to"):
        read_coco(
            write_coco(root, coco([(1, "secret.png")], [GOOD]), images=False), root / "images", root=root, name="s"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON file"),
        ("[]", "is no COCO file; expected an object with images, annotations, categories"),
        ('{"images": [], "annotations": []}', "categories is missing; expected a list"),
        ('{"images": [], "annotations": [], "categories": []}', "images is empty"),
        ('{"images": [1], "annotations": [], "categories": []}', "categories is empty"),
        (
            '{"images": [1], "annotations": [], "categories": [{"id": 1}]}',
            r"categories\[0\] is .*expected an object with",
        ),
        (
            '{"images": [1], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            r"categories\[1\].id is 1, which an earlier",
        ),
        (
            '{"images": [1], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            r"categories\[1\].name is 'a', which an earlier",
        ),
        ("[" * 100_000, "is no JSON file"),
    ],
    ids=str,
)
def test_a_file_that_is_no_coco_file(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_split(path, "val")


def test_the_garbage_collector_is_as_before(read):
    import gc

    assert gc.isenabled()
    with pytest.raises(DataError):
        read(coco([(1, "a.png")], [{}]))
    assert gc.isenabled()
