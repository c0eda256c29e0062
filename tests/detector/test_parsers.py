"""Whatever is changed in a good file, it is read or refused with an error of ours: data sets, recipes, checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parser_cases import FUZZ, changed, changed_bytes, changed_text, read_or_refused

for module in ("torch", "PIL.Image", "safetensors"):
    pytest.importorskip(module)

from data_cases import box, coco, voc_object, write_coco, write_voc, write_yolo  # noqa: E402
from training_cases import tiny_structure  # noqa: E402

from detector.artifact import EngineFacts, FileRecord, ModelCard, NmsSettings, TensorSpec  # noqa: E402
from detector.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from detector.config import load_config  # noqa: E402
from detector.convert_official import read_official  # noqa: E402
from detector.data.coco import read_coco  # noqa: E402
from detector.data.data_file import read_data_file  # noqa: E402
from detector.data.source import load_data  # noqa: E402
from detector.data.union import read_union  # noqa: E402
from detector.data.voc import read_voc  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.settings_file import RECIPES  # noqa: E402
from detector.training_state import load_training_state  # noqa: E402


def check_dataset(dataset) -> None:
    """Boxes are finite, and labels those of classes."""
    for record in dataset.images:
        assert np.isfinite(record.boxes).all() and record.boxes.shape == (len(record.labels), 4)
        assert ((record.labels >= 0) & (record.labels < len(dataset.class_names))).all()
        assert record.size is None or min(record.size) >= 1
        for outline in record.polygons or ():
            assert np.isfinite(outline).all()


LABELS = "0 0.5 0.5 0.25 0.5\n1 0.1 0.2 0.2 0.4\n"
OUTLINES = "0 0 0 0.5 0.25 0.25 0.5\n"


@FUZZ
@given(st.sampled_from([LABELS, OUTLINES]).flatmap(changed_text))
def test_yolo_labels(tmp_path, text):
    if not (tmp_path / "data.yaml").exists():
        write_yolo(tmp_path, {"a": LABELS, "b": OUTLINES})
    (tmp_path / "labels" / "train" / "b.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    data = read_or_refused(lambda: load_data(tmp_path))
    if data is not None:
        check_dataset(data.train)
        assert len(data.train.images[0].labels) == 2


COCO = coco(
    [(1, "a.png"), {"id": 2, "file_name": "b.png"}],
    [
        box(1, 1, [5, 5, 20, 20], area=400.5, segmentation=[[5, 5, 25, 5, 25.5, 25]]),
        box(2, 2, [1.5, 2, 3, 4], iscrowd=1, segmentation={"counts": [1, 2], "size": [40, 60]}),
    ],
)


@FUZZ
@given(changed(COCO))
def test_coco_files(tmp_path, content):
    path = tmp_path / "annotations" / "instances_train.json"
    if not path.exists():
        write_coco(tmp_path, COCO)
    path.write_text(json.dumps(content))
    dataset = read_or_refused(lambda: read_coco(path, root=tmp_path, name="x"))
    if dataset is not None:
        check_dataset(dataset)


OBJECTS = voc_object("cat", (1, 2, 30.5, 40)) + voc_object("dog", (5, 5, 9, 9), 1)
LONG = 300 * "9"
"""A name that no file system takes."""
XML = f"<annotation><size><width>60</width><height>40</height></size>{OBJECTS}</annotation>"


@FUZZ
@given(changed_bytes(XML.encode()) | changed_text(XML).map(lambda text: text.encode("utf-16", "surrogatepass")))
def test_voc_annotations(tmp_path, content):
    if not (tmp_path / "ImageSets").exists():
        write_voc(tmp_path, {"a": OBJECTS})
    (tmp_path / "Annotations" / "a.xml").write_bytes(content)
    lists = tmp_path / "ImageSets" / "Main" / "train.txt"
    dataset = read_or_refused(lambda: read_voc(lists, ("cat", "dog"), root=tmp_path, name="x"))
    if dataset is not None:
        check_dataset(dataset)


@FUZZ
@example(f"{LONG}\n")
@given(changed_text("a\n"))
def test_voc_lists(tmp_path, text):
    if not (tmp_path / "ImageSets").exists():
        write_voc(tmp_path, {"a": OBJECTS})
    lists = tmp_path / "ImageSets" / "Main" / "train.txt"
    lists.write_bytes(text.encode("utf-8", "surrogatepass"))
    dataset = read_or_refused(lambda: read_voc(lists, ("cat", "dog"), root=tmp_path, name="x"))
    assert dataset is None or {image.path.name for image in dataset.images} == {"a.jpg"}


DATA_FILE = {"path": ".", "train": "images/train", "val": ["images/train"], "names": {0: "cat", 1: "dog"}, "nc": 2}
DATA_TEXT = "path: .\ntrain: images/train\nval: [images/train]\nnames: {0: cat, 1: dog}\nnc: 2\n"


@FUZZ
@example(DATA_TEXT.replace("images/train", LONG))
@example(DATA_TEXT.replace(".", LONG, 1))
@given(changed(DATA_FILE).map(json.dumps) | changed_text(DATA_TEXT))
def test_data_files(tmp_path, text):
    (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    content = read_or_refused(lambda: read_data_file(tmp_path / "data.yaml"))
    if content is not None:
        assert content.splits and all(place.path.exists() for places in content.splits.values() for place in places)
        assert content.class_names is None or len(set(content.class_names)) == len(content.class_names)


UNION = {
    "sources": [{"name": "pets", "path": "pets"}, {"name": "desk", "path": "desk"}],
    "taxonomy": {
        "same_as": {"cat": ["Cat"]},
        "narrower": {"animal": ["cat"]},
        "ambiguous_by_source": {"mouse": {"pets": "mouse (animal)", "desk": "computer mouse"}},
    },
}


@FUZZ
@given(changed(UNION).map(json.dumps) | changed_text(json.dumps(UNION, indent=1)))
def test_union_files(tmp_path, text):
    (tmp_path / "union.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    if "sources" in text:
        union = read_or_refused(lambda: read_union(tmp_path / "union.yaml"))
        assert union is None or len({source.name for source in union.sources}) == len(union.sources)


@FUZZ
@given(changed_text((RECIPES / "small-data.yaml").read_text()) | changed(load_config().to_dict()).map(json.dumps))
def test_recipes(tmp_path, text):
    (tmp_path / "mine.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    config = read_or_refused(lambda: load_config(tmp_path / "mine.yaml"))
    if config is not None:
        (tmp_path / "again.yaml").write_text(config.to_yaml())
        assert load_config(tmp_path / "again.yaml") == config


@FUZZ
@given(changed_text("train.epochs=50") | changed_text("augment.scale=[0.5, 1.5]"))
def test_overrides(text):
    read_or_refused(lambda: load_config("small-data", overrides=[text]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = Detector(tiny_structure(), class_names=("red", "blue"))
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), model.class_names), path)
    return path.read_bytes()


def with_header(content: bytes, change) -> bytes:
    """A safetensors file whose record is another one; the tensors stay."""
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    head["__metadata__"]["maenas"] = json.dumps(change(json.loads(head["__metadata__"]["maenas"])))
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@settings(FUZZ, max_examples=30)
@given(st.data())
def test_checkpoint_records(tmp_path, weights, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header(weights, lambda record: data.draw(changed(record))))
    checkpoint = read_or_refused(lambda: load_checkpoint(path))
    assert checkpoint is None or len(checkpoint.class_names) == checkpoint.structure.head.num_classes


@settings(FUZZ, max_examples=40)
@given(st.data())
def test_checkpoint_files(tmp_path, weights, data):
    path = tmp_path / "a.safetensors"
    # The header is where a change can be noticed.
    head = data.draw(changed_bytes(weights[:4000]))
    path.write_bytes(head + weights[4000:])
    read_or_refused(lambda: load_checkpoint(path))
    read_or_refused(lambda: load_training_state(path))
    read_or_refused(lambda: read_official(path))


CARD = ModelCard(
    structure=tiny_structure(),
    class_names=("red", "blue"),
    image_size=(64, 64),
    input=TensorSpec("images", "float32", (None, 3, 64, 64)),
    outputs=(TensorSpec("num_dets", "int64", (None, 1)),),
    form="nms",
    precision="fp32",
    nms=NmsSettings(0.05, 0.7, 100),
    opset=18,
    files=(FileRecord("model.onnx", "0" * 64, 1000),),
    versions={"onnx": "1"},
    engine=EngineFacts("10", "T4", "7.5", (1, 3, 64, 64), (1, 3, 64, 64), (8, 3, 64, 64), "plugin"),
    proofs=({"runtime": "onnxruntime"},),
    parity={"passed": True},
)


@FUZZ
@given(changed(CARD.to_dict()))
def test_cards(content):
    card = read_or_refused(lambda: ModelCard.from_dict(content, source="model.json"))
    assert card is None or ModelCard.from_dict(card.to_dict(), source="model.json") == card
