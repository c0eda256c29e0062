"""Examining data sets: every planted fault is found, counted and named, and a clean set is left alone."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")

from data_cases import box, coco, voc_object, write_coco, write_image, write_voc, write_yolo  # noqa: E402

from detector.data.checks import check_data  # noqa: E402
from detector.data.contact_sheet import NUM_COLUMNS, contact_sheet  # noqa: E402
from detector.data.duplicates import fingerprints, near_pairs, same_groups  # noqa: E402
from detector.data.findings import KINDS  # noqa: E402
from detector.errors import DataError  # noqa: E402


def found_in(path, **options):
    report = check_data(path, **options)
    return report, {finding.code: finding for finding in report.findings}


@pytest.fixture
def clean(tmp_path):
    """A COCO folder with two splits of two images, and nothing wrong."""
    for split, first in (("train", 1), ("val", 3)):
        names = [(first, f"{split}-a.png"), (first + 1, f"{split}-b.png")]
        boxes = [box(first, 1, [0, 0, 20, 30]), box(first + 1, 2, [5, 5, 30, 34])]
        write_coco(tmp_path, coco(names, boxes), split)
    return tmp_path


def edit(folder, split, change):
    path = folder / "annotations" / f"instances_{split}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_clean_set_is_left_alone(clean):
    report, found = found_in(clean)
    assert found == {} and report.num_errors == 0 and report.class_names == ("cat", "dog")
    train = report.splits["train"]
    assert (train.images, train.empty, train.boxes, train.ignored, train.most_boxes) == (2, 0, 2, 0, 1)
    assert train.boxes_per_class == train.images_per_class == (1, 1)
    assert (train.small, train.medium, train.large) == (2, 0, 0)  # 600 and 1020 square pixels, of 32 * 32 = 1024
    assert train.relative_size == pytest.approx(
        tuple(np.quantile(np.sqrt([600 / 2400, 1020 / 2400]), [0.05, 0.5, 0.95])), abs=1e-4
    )


def test_counts_by_size_and_class(clean):
    def change(record):
        record["annotations"] += [
            {"id": 8, **box(1, 1, [0, 0, 32, 32])},
            {"id": 9, **box(1, 1, [0, 0, 40, 40], iscrowd=1)},
            {"id": 10, **box(1, 1, [0, 0, 50, 39], area=9216)},
        ]
        record["images"].append({"id": 9, "file_name": "none.png", "width": 60, "height": 40})

    edit(clean, "train", change)
    write_image(clean / "images" / "none.png", seed=77)
    train = found_in(clean)[0].splits["train"]
    assert (train.small, train.medium, train.large) == (2, 1, 1)
    assert (train.boxes, train.ignored, train.empty, train.images, train.most_boxes) == (4, 1, 1, 3, 3)
    assert train.boxes_per_class == (3, 1) and train.images_per_class == (1, 1)


@pytest.mark.parametrize(
    ("code", "bbox", "example"),
    [
        ("outside-box", [60, 5, 9, 9], "val-a.png: box 2 (x1, y1, x2, y2: 60, 5, 69, 14) in 60x40"),
        ("beyond-border", [50, 5, 12, 9], "50, 5, 62, 14"),
        ("empty-box", [5, 5, 0, 9], "5, 5, 5, 14"),
        ("one-pixel-box", [5, 5, 1, 9], "5, 5, 6, 14"),
        ("duplicate-box", [0, 0, 20, 30], "box 2 (x1, y1, x2, y2: 0, 0, 20, 30)"),
        ("bad-box", [0, 0, -20, 30], "annotations[2] (id 8, image val-a.png): bbox is [0, 0, -20, 30]"),
        ("bad-box", [0, 0, float("nan"), 30], "bbox is [0, 0, NaN, 30]"),
    ],
)
def test_faulty_boxes(clean, code, bbox, example):
    edit(clean, "val", lambda record: record["annotations"].append({"id": 8, **box(3, 1, bbox)}))
    report, found = found_in(clean)
    assert set(found) == {code} and found[code].count == 1
    assert example in found[code].examples[0] and found[code].images == (clean / "images" / "val-a.png",)
    assert report.num_errors == (found[code].severity == "error")


def test_a_box_that_reaches_out_by_less_than_a_pixel_is_rounding(clean):
    edit(clean, "val", lambda record: record["annotations"].append({"id": 8, **box(3, 1, [-0.9, 5, 61.5, 9])}))
    assert found_in(clean)[1] == {}


def test_faulty_entries_are_all_found_at_once(clean):
    def change(record):
        record["images"] += [
            {"id": 3, "file_name": "again.png"},
            {"id": 7, "file_name": "gone.png"},
            {"id": 8, "file_name": "../../secret.png"},
            {"id": "9", "file_name": "text.png"},
        ]
        record["annotations"] += [
            {"id": 11, **box(3, 7, [0, 0, 5, 5])},
            {"id": 12, **box(3, 8, [0, 0, 5, 5])},
            {"id": 13, **box(99, 1, [0, 0, 5, 5])},
        ]
        record["categories"].append({"id": 7, "name": "cow"})

    edit(clean, "val", change)
    report, found = found_in(clean)
    assert {code: finding.count for code, finding in found.items()} == {
        "duplicate-id": 1,
        "missing-image": 1,
        "outside": 1,
        "bad-entry": 1,
        "unknown-class": 2,
        "unknown-image": 1,
    }
    assert report.num_errors == 6 and len(report.data["val"]) == 2
    assert "class 'cow' is not one of the 2 classes" in found["unknown-class"].examples[0]


def test_files_and_sizes(clean):
    images = clean / "images"
    content = (images / "train-a.png").read_bytes()
    (images / "train-a.png").write_bytes(content[: len(content) // 2])
    write_image(images / "train-b.png", (41, 60), seed=5)
    (images / "val-a.png").write_text("no image")
    _, found = found_in(clean)
    assert set(found) == {"unreadable-image", "size-mismatch"} and found["unreadable-image"].count == 2
    assert "train-b.png: is 60x41; annotations say 60x40" in found["size-mismatch"].examples[0]
    _, quick = found_in(clean, pixels=False)
    assert quick["unreadable-image"].count == 1, "the header of a file that is cut short is whole"


def test_a_jpeg_that_is_cut_short(tmp_path):
    write_coco(tmp_path, coco([(1, "a.jpg"), (2, "b.jpg")], [box(1, 1, [0, 0, 9, 9]), box(2, 2, [0, 0, 9, 9])]))
    path = tmp_path / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    _, found = found_in(tmp_path)
    assert (
        set(found) == {"unreadable-image"}
        and "a.jpg: cannot be read as an image" in found["unreadable-image"].examples[0]
    )


def test_images_that_exif_turns(clean):
    exif = pil.Exif()
    exif[0x0112] = 6
    write_image(clean / "images" / "train-a.png", (40, 60), exif=exif)
    _, found = found_in(clean)
    assert (
        "train-a.png: is 40x60 (stored as 60x40, turned by EXIF); annotations say 60x40"
        in found["size-mismatch"].examples[0]
    )
    write_image(clean / "images" / "train-a.png", (60, 40), exif=exif)
    _, found = found_in(clean)
    assert set(found) == {"rotated-image"} and "orientation 6, 60x40" in found["rotated-image"].examples[0]


def test_a_very_wide_image_is_not_decoded(clean, monkeypatch):
    wide = clean / "images" / "train-a.png"
    pil.new("1", (20_000, 8)).save(wide)
    edit(clean, "train", lambda record: record["images"][0].update(width=20_000, height=8))
    load = pil.Image.load

    def guarded(self):
        assert self.width < 10_000
        return load(self)

    monkeypatch.setattr(pil.Image, "load", guarded)
    report, found = found_in(clean)
    assert set(found) == {"huge-image"} | {"beyond-border"} and "is 20000x8" in found["huge-image"].examples[0]
    assert contact_sheet(report).shape[2] == 3


def test_copies_in_and_across_splits(clean):
    images = clean / "images"
    rng = np.random.default_rng(0)
    scene = pil.fromarray(rng.integers(0, 256, (10, 15, 3), np.uint8)).resize((60, 40), pil.Resampling.BICUBIC)
    scene.save(images / "train-a.png")
    (images / "val-a.png").write_bytes((images / "train-a.png").read_bytes())
    report, found = found_in(clean)
    assert set(found) == {"same-image-across"} and report.num_errors == 1
    assert "train-a.png (train) = " in found["same-image-across"].examples[0]
    scene.resize((120, 80)).resize((60, 40)).save(images / "val-a.png")
    assert set(found_in(clean)[1]) == {"near-image-across"}
    write_image(images / "val-a.png", seed=999)
    (images / "train-b.png").write_bytes((images / "train-a.png").read_bytes())
    assert set(found_in(clean)[1]) == {"same-image"}
    scene.save(images / "train-b.png", compress_level=0)
    report, found = found_in(clean)
    assert set(found) == {"near-image"} and found["near-image"].severity == "note"
    assert found_in(clean, pixels=False)[1] == {}


def test_classes_between_splits(clean):
    edit(clean, "val", lambda record: record["annotations"].pop())
    assert found_in(clean)[1]["class-not-in-val"].examples == ("dog",)
    edit(clean, "train", lambda record: record["annotations"].pop(0))
    assert found_in(clean)[1]["class-not-in-train"].examples == ("cat",)


def test_the_order_of_classes(clean):
    def swap(record):
        for category in record["categories"]:
            category["id"] = 3 - category["id"]

    edit(clean, "val", swap)
    report, found = found_in(clean)
    assert set(found) == {"category-order"} and report.data["val"].images[0].labels.tolist() == [1]
    assert any("val has other category ids than train" in text for text in found["category-order"].examples)
    (clean / "data.yaml").write_text("train: annotations/instances_train.json\nnames: [dog, cat]\n")
    assert "train: the ids in label order are 2, 1" in found_in(clean)[1]["category-order"].examples[0]


def test_a_set_without_boxes_and_a_split_that_cannot_be_read(clean):
    edit(clean, "train", lambda record: record["annotations"].clear())
    (clean / "annotations" / "instances_val.json").write_text("{")
    report, found = found_in(clean)
    assert set(found) == {"no-boxes", "unreadable-split"} and list(report.splits) == ["train"]
    (clean / "annotations" / "instances_train.json").write_text("{")
    report, found = found_in(clean)
    assert found["unreadable-split"].count == 1 and report.splits == {} and report.num_errors == 1
    assert contact_sheet(report).shape[2] == 3, "an empty sheet is a sheet"


def test_yolo_labels_without_images_and_images_without_labels(tmp_path):
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5\n1 0.2 0.2 0.1 0.1", "b": None, "c": "5 0.1 0.1 0.1 0.1"})
    (tmp_path / "labels" / "train" / "gone.txt").write_text("")
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    path.write_text("train: images/train\nnames: [cat, dog]\n")
    _, found = found_in(path)
    assert {code: finding.count for code, finding in found.items()} == {
        "no-label-file": 1,
        "no-image": 1,
        "unknown-class": 1,
    }
    assert found["unknown-class"].examples[0].endswith("c.txt: line 1: class is 5; expected an integer in 0 ... 1")


def test_voc_annotations_without_images(tmp_path):
    write_voc(tmp_path, {"a": voc_object("cat", (1, 1, 9, 9)), "b": voc_object("cat", (1, 1, 9, 9))})
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation/>")
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation>")
    _, found = found_in(tmp_path)
    assert set(found) == {"bad-entry", "no-image"}


def test_what_is_no_data_set_is_no_finding(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        check_data(tmp_path / "gone")
    (tmp_path / "data.yaml").write_text("train: gone\n")
    with pytest.raises(DataError, match="no such file or folder"):
        check_data(tmp_path)


def test_every_kind_has_a_severity_and_findings_are_sorted(clean):
    severities = [severity for severity, _ in KINDS.values()]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    edit(clean, "val", lambda record: record["annotations"].pop())
    (clean / "images" / "train-a.png").write_text("no image")
    report = check_data(clean)
    assert [finding.severity for finding in report.findings] == ["error", "note"]
    written = json.loads(json.dumps(report.to_dict()))
    assert (written["num_errors"], written["num_warnings"], written["num_notes"]) == (1, 0, 1)
    assert written["findings"][0]["code"] == "unreadable-image" and written["splits"]["val"]["images"] == 2


def test_same_groups():
    assert same_groups([b"x", b"y", b"x", b"", b"", b"x"]) == [[0, 2, 5]]


def photographs(count):
    """Smooth random pictures, unlike each other."""
    rng = np.random.default_rng(4)
    small = rng.integers(0, 256, (count, 8, 10, 3), np.uint8)
    return [pil.fromarray(pixels).resize((200, 160), pil.Resampling.BICUBIC) for pixels in small]


def thumbnail(image):
    return np.asarray(image.convert("L").resize((32, 32), pil.Resampling.BOX))


def compressed(image):
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=40)
    return pil.open(content)


@pytest.mark.parametrize(
    "change",
    [
        compressed,
        lambda image: image.resize((100, 80)),
        lambda image: image.resize((320, 320)),
        lambda image: image.convert("L"),
        lambda image: image.point(lambda value: round(0.8 * value + 20)),
    ],
    ids=["compressed", "smaller", "stretched", "grey", "pale"],
)
def test_near_copies_are_found_and_nothing_else(change):
    images = photographs(60)
    thumbnails = np.stack([thumbnail(image) for image in [*images, *(change(image) for image in images[:20])]])
    assert near_pairs(thumbnails) == [(index, 60 + index) for index in range(20)]


def test_plain_pictures_are_not_called_copies():
    plain = np.stack([np.full((32, 32), level, np.uint8) for level in range(20)])
    assert near_pairs(plain) == [] and near_pairs(plain[:0]) == []
    assert fingerprints(plain[:0]).shape == (0,)


def test_near_pairs_are_those_of_brute_force():
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, (30, 32, 32)).astype(np.float64)
    noisy = np.concatenate([base, base + rng.normal(0, 6, base.shape), base + rng.normal(0, 16, base.shape)])
    thumbnails = np.clip(noisy, 0, 255).astype(np.uint8)
    prints = fingerprints(thumbnails)
    coarse = np.corrcoef(thumbnails.reshape(90, 16, 2, 16, 2).mean(axis=(2, 4)).reshape(90, -1))
    expected = [
        (i, j)
        for i in range(90)
        for j in range(i + 1, 90)
        if int(prints[i] ^ prints[j]).bit_count() <= 4 and coarse[i, j] >= 0.98
    ]
    assert 0 < len(expected) < 90 and near_pairs(thumbnails) == expected, "some of the copies, not all"


def test_the_contact_sheet_shows_problems_first(clean):
    (clean / "images" / "val-b.png").write_text("no image")
    edit(clean, "val", lambda record: record["annotations"].append({"id": 8, **box(3, 1, [5, 5, 0, 9])}))
    sheet = contact_sheet(check_data(clean))
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    tile = (sheet.shape[1] - 6) // NUM_COLUMNS
    # The first tile is the unreadable image: grey, without a picture; the third has one.
    corners = [sheet[40:60, 6 + tile * column + 10 : 6 + tile * column + 200] for column in range(3)]
    assert corners[0].std() < 1
    middle = sheet[24 + 100 : 24 + 130, 6 + 2 * tile + 60 : 6 + 2 * tile + 160]
    assert middle.std() > 10
    assert len(contact_sheet(check_data(clean), num_tiles=1)) < 400
