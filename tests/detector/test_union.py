"""Union files, from reading to evaluation: formats, names, ids, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_cases import box, coco, voc_object, write_coco, write_voc, write_yolo
from union_cases import write_pets, write_union

from detector.data.source import load_data, load_split
from detector.data.union import source_truths
from detector.errors import DataError

MICE = {"ambiguous_by_source": {"mouse": {"pets": "mouse (animal)", "desk": "computer mouse"}}}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A union of two sources that both have a class `mouse`."""
    folder = tmp_path_factory.mktemp("pets")
    write_pets(folder)
    return write_union(folder, {"pets": "pets", "desk": folder / "desk"}, MICE)


def test_a_union_is_one_data_set(pets):
    data = load_data(pets)
    assert data.class_names == ("cat", "mouse (animal)", "cup", "computer mouse")
    assert data.test is None and data.train is not None and data.train.union is not None
    train = data.train
    assert [record.source for record in train.images] == [0, 0, 0, 1, 1]
    assert [record.image_id for record in train.images] == [1, 2, 3, 4, 5]
    # The desk's own order is that of its category ids: cup (3), then mouse (7).
    assert [record.labels.tolist() for record in train.images] == [[0], [1], [0], [3], [2]]
    assert train.union.space.labels == ((0, 1), (2, 3))
    desk = train.union.parts[1]
    assert desk.class_names == ("cup", "computer mouse") and desk.category_ids == (3, 7)
    assert [record.image_id for record in desk.images] == [5, 15]
    assert load_split(pets, "val").class_names == data.class_names


def test_a_folder_can_hold_a_union(pets, tmp_path):
    (tmp_path / "data.yaml").write_text(pets.read_text().replace("path: pets", f"path: {pets.parent}/pets"))
    assert load_data(tmp_path).class_names == load_data(pets).class_names


def test_formats_can_be_mixed(tmp_path):
    """YOLO, VOC and COCO sources; classes of equal names are one, wherever they stand."""
    write_yolo(tmp_path / "yolo", {"a": "1 0.5 0.5 0.2 0.2"}, names=("cat", "dog"))
    write_voc(tmp_path / "voc", {"b": voc_object("dog", (3, 3, 30, 30))})
    write_voc(tmp_path / "voc", {"c": voc_object("fox", (3, 3, 30, 30))})
    write_coco(tmp_path / "coco", coco([(4, "d.png")], [box(4, 2, [1, 2, 10, 10])], ((2, "fox"),)))
    data = load_data(write_union(tmp_path, {name: name for name in ("yolo", "voc", "coco")}))
    assert data.class_names == ("cat", "dog", "fox")
    assert data.train is not None and [record.labels.tolist() for record in data.train.images] == [[1], [2], [2]]
    assert data.val is not None and {record.source for record in data.val.images} == {0}


def test_a_given_label_order_is_kept(pets):
    names = ("computer mouse", "cup", "hat", "mouse (animal)", "cat")
    data = load_data(pets, class_names=names)
    assert data.class_names == names and data.train is not None
    assert [record.labels.tolist() for record in data.train.images] == [[4], [3], [4], [0], [1]]


def test_classes_of_one_source_can_become_one(tmp_path):
    images, boxes = [(1, "a.png")], [box(1, 1, [1, 1, 9, 9]), box(1, 2, [20, 1, 9, 9]), box(1, 3, [40, 1, 9, 9])]
    write_coco(tmp_path / "one", coco(images, boxes, ((1, "tv"), (2, "cat"), (3, "Television"))))
    union = write_union(tmp_path, {"one": "one"}, {"same_as": {"television": ["tv", "Television"]}})
    train = load_data(union).train
    assert train is not None and train.union is not None
    assert train.class_names == ("television", "cat") and train.images[0].labels.tolist() == [0, 1, 0]
    part = train.union.parts[0]
    assert part.images[0].labels.tolist() == [0, 1, 0] and part.category_ids == (1, 2)


def test_truth_of_a_source(tmp_path):
    """A sedan is a car to a source that marks both; a source of cars alone takes found sedans for cars."""
    classes = {"cars": ((1, "car"), (2, "cup")), "both": ((1, "sedan"), (2, "car")), "sedans": ((1, "sedan"),)}
    for name, own in classes.items():
        boxes = [box(1, number, [10 * number, 1, 9, 9]) for number, _ in own]
        write_coco(tmp_path / name, coco([(1, f"{name}.png")], boxes, own), "val")
    union = write_union(tmp_path, {name: name for name in classes}, {"narrower": {"car": "sedan"}})
    truths = {truth.name: truth for truth in source_truths(load_split(union, "val"))}
    assert {name: truth.counts_as for name, truth in truths.items()} == {
        "cars": {"sedan": ("car",)},
        "both": {},
        "sedans": {},
    }
    both = truths["both"].dataset
    assert both.class_names == ("sedan", "car") and both.images[0].labels.tolist() == [0, 1, 1]
    assert both.images[0].boxes[:, 0].tolist() == [10, 20, 10]
    assert truths["sedans"].dataset.images[0].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sources: []", r"sources is \[\]; expected a list of 1 ... 200, name and path"),
        ("sources: [pets]", r'sources\[0\] is "pets"; expected an object'),
        ("sources: [{name: a}]", r"sources\[0\].path is missing"),
        ("sources: [{name: a, pth: x}]", r"sources\[0\].pth is not a field; did you mean path\?"),
        ("sources: [{name: ../a, path: x}]", r'sources\[0\].name is "../a"; expected up to 40 letters'),
        ("sources: [{name: a, path: 'http://x/y'}]", r"path is .*; expected a path, as nothing is fetched"),
        ("sources: [{name: a, path: x}, {name: a, path: y}]", r"sources\[1\].name is 'a', as of an earlier one"),
        ("sources: [{name: a, path: x}]\nnames: [b]", '"names" is not a field; expected sources and taxonomy'),
        ("sources: [{name: a, path: nowhere}]", "nowhere: no such file or folder"),
        ("sources: !!python/object/apply:os.system [ls]", "is not valid YAML"),
    ],
)
def test_malformed_unions_are_named(tmp_path, content, message):
    (tmp_path / "union.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "union.yaml")


def test_a_union_of_unions_is_refused(pets, tmp_path):
    union = write_union(tmp_path, {"all": pets})
    with pytest.raises(DataError, match="sources makes this a union of data sets; expected one data set"):
        load_data(union)


def test_a_split_that_no_source_has(pets):
    with pytest.raises(DataError, match="none of its sources has a split 'test'"):
        load_split(pets, "test")


def test_images_may_not_leave_their_source(pets, tmp_path):
    """Each source keeps to its own folder, as a data set of its own would."""
    record = coco([(1, "../../secret.png")], [], ((1, "cat"),))
    write_coco(tmp_path / "bad", record, images=False)
    (tmp_path / "secret.png").write_bytes((pets.parent / "pets/images/pets-train-0.png").read_bytes())
    with pytest.raises(DataError, match=r"leads out of .*bad; expected a file of the data set"):
        load_data(write_union(tmp_path, {"bad": "bad"}))


def test_batches_carry_their_sources_and_do_not_mix_them(pets):
    """The same in workers, however many; every mosaic is of one source."""
    torch = pytest.importorskip("torch")
    from detector.data.loader import AugmentSettings, TrainLoader

    train = load_data(pets).train
    assert train is not None
    settings = AugmentSettings(image_size=(64, 64), mixup=1.0, scale=(0.9, 1.1))
    run = {"batch_size": 4, "seed": 1, "total_iterations": 12, "last": "fill"}
    here = list(TrainLoader(train, settings, **run))
    for batch in here:
        assert batch.targets.sources is not None and len(batch.targets.sources) == 4
        for place, source in enumerate(batch.targets.sources.tolist()):
            labels = batch.targets.labels[place][batch.targets.valid[place]].tolist()
            assert all((label >= 2) == (source == 1) for label in labels)
    there = list(TrainLoader(train, settings, **run, num_workers=2))
    resumed = list(TrainLoader(train, settings, **run, start_iteration=7))
    for first, second in [*zip(here, there, strict=True), *zip(here[7:], resumed, strict=True)]:
        assert torch.equal(first.images, second.images) and torch.equal(first.targets.sources, second.targets.sources)
    shown = torch.cat([batch.targets.sources for batch in here])
    # 3 and 2 images, smoothed: 55 % and 45 %.
    assert shown.float().mean().item() == pytest.approx(np.sqrt(2) / (np.sqrt(2) + np.sqrt(3)), abs=0.1)


def test_a_packed_batch_keeps_its_sources():
    torch = pytest.importorskip("torch")
    from detector.data.batches import MadeBatch, PackedBatch
    from detector.targets import Batch, Targets

    targets = Targets.from_lists([torch.ones(2, 4)], [torch.tensor([1, 2])], sources=torch.tensor([3]))
    for given in (targets, Targets(targets.boxes, targets.labels, targets.valid)):
        back = PackedBatch.pack(MadeBatch(Batch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), given, 5))).unpack()
        found = back.batch.targets.sources
        assert (found is None) == (given.sources is None) and (found is None or found.tolist() == [3])


def test_the_record_of_a_part_has_its_own_ids(pets):
    """So that results can be handed in where the data set came from."""
    val = load_split(pets, "val")
    assert val.union is not None
    written = json.loads((pets.parent / "desk/annotations/instances_val.json").read_text())
    assert [record.image_id for record in val.union.parts[1].images] == [entry["id"] for entry in written["images"]]
