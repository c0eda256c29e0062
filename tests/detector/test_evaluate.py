"""From a predictor and a data set to figures: classes, sizes, images, batches, and what is refused."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("PIL.Image")
pytest.importorskip("faster_coco_eval")

from evaluation_cases import NAMES, Seer, dataset, record, write_scenes

from detector.errors import CheckpointError, DataError, InputError
from detector.evaluate import _timing, default_thresholds, evaluate
from detector.evaluation_set import EvaluationSet, without_classes
from detector.tiling import Tiling


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def scenes(folder):
    return write_scenes(folder)


def with_image(scenes, place, **changes):
    """The data set with one record changed."""
    images = list(scenes.images)
    images[place] = dataclasses.replace(images[place], **changes)
    return dataclasses.replace(scenes, images=tuple(images))


def test_a_network_that_finds_everything(scenes):
    result = evaluate(Seer(), scenes)
    assert result.metrics.ap == 1 and result.metrics.num_detections == 9
    assert result.settings.image_size == (64, 96) and result.settings.max_detections == 500
    assert [len(entry) for entry in result.detections] == [1, 2, 3, 1, 2]
    # In pixels of the original, and rows with the data set's own ids.
    np.testing.assert_allclose(result.detections[2].boxes[:, 0].min(), scenes.images[2].boxes[:, 0].min())
    rows = result.to_coco()
    assert [row["image_id"] for row in rows] == [11, 12, 12, 13, 13, 13, 14, 15, 15]
    assert {row["category_id"] for row in rows} == {2, 7, 12}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_change_nothing(scenes, batch_size):
    seer, calls = Seer(), []
    result = evaluate(seer, scenes, batch_size=batch_size, progress=lambda done, total: calls.append((done, total)))
    assert result.metrics.to_dict() == evaluate(Seer(), scenes).metrics.to_dict()
    assert sum(shape[0] for shape in seer.batches) == 5 and max(shape[0] for shape in seer.batches) <= batch_size
    assert calls[-1] == (5, 5) and len(calls) == len(seer.batches)


def test_a_network_with_a_batch_size_of_its_own(scenes):
    seer = Seer(batch_limit=4)
    result = evaluate(seer, scenes, batch_size=2)
    assert [shape[0] for shape in seer.batches] == [4, 4] and result.metrics.ap == 1
    assert result.settings.batch_size == 4


@pytest.mark.parametrize("whole", [False, True])
def test_tiles(scenes, whole):
    # 128 x 192 in tiles of 64 x 96 with an overlap of a fifth: three rows of three; a rectangle may be cut twice.
    seer = Seer(batch_limit=4)
    result = evaluate(seer, scenes, tiling=Tiling((64, 96), whole=whole))
    assert result.metrics.ap == 1 and result.metrics.num_detections == 9
    assert len(seer.batches) == 5 * 3 and result.settings.tiling == Tiling((64, 96), whole=whole)
    np.testing.assert_allclose(np.sort(result.detections[2].boxes, axis=0), np.sort(scenes.images[2].boxes, axis=0))


def test_tiles_of_networks_that_find_nothing_are_checked(scenes):
    class Broken(Seer):
        def detect(self, images, **options):
            return [entry.select(np.zeros(0, np.int64)) for entry in super().detect(images, **options)]

        def run(self, images):
            assert images.shape == (1, 3, 64, 96)
            return {"scores": np.full((1, 4, 3), np.nan, np.float32)}

    with pytest.raises(CheckpointError, match="values that are no numbers"):
        evaluate(Broken(), scenes, tiling=Tiling((64, 96)))
    with pytest.raises(InputError, match="expected a data set with tiling"):
        evaluate(Seer(), EvaluationSet(scenes, (64, 96)), tiling=Tiling((64, 96)))


def test_another_image_size(scenes):
    seer = Seer()
    assert evaluate(seer, scenes, image_size=(128, 192)).metrics.ap == 1
    assert seer.batches[0] == (5, 3, 128, 192)


def test_classes_are_matched_by_name(scenes):
    turned = dataset(
        *(dataclasses.replace(entry, labels=2 - entry.labels) for entry in scenes.images), names=NAMES[::-1]
    )
    result = evaluate(Seer(), turned)
    assert result.metrics.ap == 1
    assert [entry.num_boxes for entry in result.metrics.classes] == [1, 3, 5]


def test_what_the_data_set_lacks_is_passed_over(scenes):
    fewer = dataset(
        *(record(entry.boxes[:1], [0], image_id=entry.image_id, path=entry.path, size=entry.size)
          for entry in scenes.images),
        names=("cat",),
    )  # fmt: skip
    result = evaluate(Seer(("cat", "bus", "tree")), fewer)
    assert result.metrics.ap == 1 and result.metrics.num_detections == 5


def test_what_the_network_lacks(scenes):
    seer = Seer(("dog", "cat", "bus"))
    with pytest.raises(DataError, match=r"made up: the network does not know its class 'fox'; the network's are 'dog'"):
        evaluate(seer, scenes)
    result = evaluate(seer, scenes, allow_missing=True)
    assert result.missing_classes == ("fox",) and result.dataset.class_names == ("cat", "dog")
    assert result.dataset.category_ids == (2, 7) and sum(result.metrics.num_boxes) == 8
    with pytest.raises(DataError, match="classes 'cat', 'dog', 'fox'"):
        evaluate(Seer(("a", "b", "c")), scenes, allow_missing=True)


def test_outlines_follow_their_boxes(scenes):
    entry = scenes.images[2]
    outlines = tuple(np.full((3, 2), label, np.float32) for label in entry.labels)
    fewer = without_classes(with_image(scenes, 2, polygons=outlines), ["dog"]).images[2]
    assert fewer.labels.tolist() == [0, 1] and [outline[0, 0] for outline in fewer.polygons] == [0, 2]
    np.testing.assert_array_equal(fewer.boxes, entry.boxes[[0, 2]])


def test_images_are_read_once(tmp_path):
    scenes = write_scenes(tmp_path)
    kept = EvaluationSet(scenes, (64, 96))
    first = evaluate(Seer(), kept)
    for entry in scenes.images:
        entry.path.unlink()
    assert evaluate(Seer(), kept, batch_size=2).metrics.to_dict() == first.metrics.to_dict()
    with pytest.raises(DataError, match="no such file"):
        evaluate(Seer(), scenes)


def test_images_beyond_the_memory_are_read_again(tmp_path):
    scenes = write_scenes(tmp_path)
    # 3 x 64 x 96 = 18,432 bytes an image: room for two.
    kept = EvaluationSet(scenes, (64, 96), keep_mb=0.04)
    evaluate(Seer(), kept)
    scenes.images[1].path.unlink()
    assert evaluate(Seer(), kept).metrics.ap == 1
    scenes.images[2].path.unlink()
    with pytest.raises(DataError, match=r"scene 2\.png: no such file"):
        evaluate(Seer(), kept)


def test_a_set_has_one_size(scenes):
    with pytest.raises(InputError, match=r"image_size is \(32, 32\); expected \(64, 96\)"):
        evaluate(Seer(), EvaluationSet(scenes, (64, 96)), image_size=32)
    with pytest.raises(InputError, match="this model takes 32x32 only"):
        evaluate(Seer(fixed_size=True, image_size=(32, 32)), EvaluationSet(scenes, (64, 96)))


def test_unreadable_images_are_refused_or_counted(scenes, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no image")
    spoilt = with_image(scenes, 1, path=broken)
    with pytest.raises(DataError, match=r"broken\.jpg: is no image"):
        evaluate(Seer(), spoilt)
    result = evaluate(Seer(), spoilt, skip_unreadable=True, batch_size=2)
    assert len(result.skipped) == 1 and "broken.jpg" in result.skipped[0]
    assert [entry.image_id for entry in result.dataset.images] == [11, 13, 14, 15]
    assert result.metrics.ap == 1 and result.metrics.num_images == 4
    every = dataclasses.replace(spoilt, images=(spoilt.images[1],))
    with pytest.raises(DataError, match="holds no image that can be read; there is nothing to measure"):
        evaluate(Seer(), every, skip_unreadable=True)


def test_an_image_of_another_size_than_stated(scenes):
    with pytest.raises(DataError, match=r"scene 0\.png: is 128x192 pixels, height x width; expected 64x96, as made up"):
        evaluate(Seer(), with_image(scenes, 0, size=(64, 96)))
    assert evaluate(Seer(), with_image(scenes, 0, size=None)).metrics.ap == 1


def test_nothing_to_measure(scenes):
    with pytest.raises(DataError, match="made up: holds no image"):
        evaluate(Seer(), dataset())
    empty = [record([], [], image_id=entry.image_id, path=entry.path, size=entry.size) for entry in scenes.images]
    with pytest.raises(DataError, match=r"its images \(5\) hold no box to be found"):
        evaluate(Seer(), dataset(*empty))
    with pytest.raises(DataError, match=r"its images \(1\) hold no box to be found"):
        evaluate(Seer(), dataset(record([[0, 0, 5, 5]], [0], ignored=[True])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold is 1.5; expected 0 ... 1"),
        ({"iou_threshold": float("nan")}, "iou_threshold is nan"),
        ({"max_detections": 0}, "max_detections is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"image_size": 65}, "image_size is 65; expected a side or .* multiples of 32"),
    ],
)
def test_options_out_of_range(scenes, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(Seer(), scenes, **options)


def test_an_interrupt_ends_between_batches(scenes):
    seer, answers = Seer(), iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        evaluate(seer, scenes, batch_size=1, interrupt=lambda: next(answers))
    assert len(seer.batches) == 2


def test_boxes_that_are_no_numbers(scenes):
    class Broken(Seer):
        def detect(self, images, **options):
            results = super().detect(images, **options)
            results[-1].boxes[:] = np.nan
            return results

    with pytest.raises(CheckpointError, match=r"scene 4\.png: the network gives values that are no numbers"):
        evaluate(Broken(), scenes)


def test_thresholds_of_the_families():
    def network(family, nms=None):
        structure = SimpleNamespace(backbone=SimpleNamespace(family=family))
        if nms is None:
            return SimpleNamespace(structure=structure)
        return SimpleNamespace(card=SimpleNamespace(structure=structure, nms=nms))

    assert default_thresholds(network("res")) == (0.05, 0.7)
    assert default_thresholds(network("csp")) == (0.05, 0.7)
    assert default_thresholds(network("mob")) == (0.03, 0.65)
    assert default_thresholds(Seer()) == (0.01, 0.7)
    inside = SimpleNamespace(score_threshold=0.25, iou_threshold=0.6, max_detections=7)
    assert default_thresholds(network("mob", inside)) == (0.25, 0.6)


def test_detections_that_nms_inside_a_file_allows(scenes):
    seer = Seer()
    seer.card = SimpleNamespace(structure=None, nms=SimpleNamespace(
        score_threshold=0.25, iou_threshold=0.6, max_detections=1))  # fmt: skip
    result = evaluate(seer, scenes)
    assert (result.settings.max_detections, result.settings.score_threshold) == (1, 0.25)
    assert max(len(entry) for entry in result.detections) == 1


def test_the_first_batch_warms_up():
    assert _timing([900.0, 900.0, 1.0, 2.0, 3.0], 2, 9.0).median_ms == 2
    assert _timing([8.0, 8.0], 2, 9.0).median_ms == 8


@pytest.fixture(scope="module")
def network():
    """A small network that finds many things everywhere."""
    pytest.importorskip("torch")
    from export_cases import lively, small_structure

    model = lively(small_structure())
    model.class_names = NAMES
    return model


def test_a_torch_network_in_either_mode(network, scenes):
    kept = EvaluationSet(scenes, (64, 96))
    quiet = evaluate(network.eval(), kept)
    assert not network.training
    loud = evaluate(network.train(), kept)
    assert network.training and network.head.class_convs[0].weight.grad is None
    assert loud.to_coco() == quiet.to_coco() and quiet.metrics.num_detections > 20


def test_scores_that_are_no_numbers(network, scenes):
    import copy

    broken = copy.deepcopy(network)
    for conv in broken.head.class_convs:
        conv.bias.data[1] = float("nan")
    with pytest.raises(CheckpointError, match=r"scene 0\.png: the network gives values that are no numbers"):
        evaluate(broken, scenes, score_threshold=0.999)
    # A network that finds nothing is no broken one.
    assert evaluate(network, scenes, score_threshold=1.0).metrics.ap == 0


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("outputs", ["raw", "decoded", "nms"])
def test_exported_networks_measure_the_same(tmp_path, runtime, outputs):
    """AP within 0.1 points of torch, on boxes that the network itself has found, moved and partly relabelled."""
    for package in ("torch", "onnx", "onnxscript", runtime):
        pytest.importorskip(package)
    from export_cases import lively, small_structure

    from detector.export import export_onnx
    from detector.images import read_image, to_input
    from detector.runtimes import load_exported

    model = lively(small_structure())
    model.class_names = NAMES
    rng = np.random.default_rng(3)
    (tmp_path / "images").mkdir()
    records = []
    for number in range(12):
        path = tmp_path / "images" / f"{number}.png"
        _write_noise(path, rng)
        best = model.detect(to_input([read_image(path)], (64, 96)), score_threshold=0.3, max_detections=12)[0]
        boxes = best.boxes * 2 + rng.normal(0, 4, best.boxes.shape)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
        labels = np.where(rng.random(len(best)) < 0.2, rng.integers(0, 3, len(best)), best.labels)
        records.append(record(boxes, labels, image_id=number, path=path, size=(128, 192)))
    truth = dataset(*records)
    options = {"score_threshold": 0.05, "iou_threshold": 0.7, "max_detections": 100}
    expected = evaluate(model, truth, **options)
    export_onnx(model, tmp_path / "model.onnx", class_names=NAMES, outputs=outputs, verify=False)
    exported = evaluate(load_exported(tmp_path / "model.onnx", runtime=runtime), truth, **options)
    assert 0.1 < expected.metrics.ap < 0.95 and expected.metrics.num_detections > 200
    assert len({row["score"] for row in expected.to_coco()}) > 150
    for name in ("ap", "ap50", "ar100"):
        assert abs(getattr(exported.metrics, name) - getattr(expected.metrics, name)) < 0.001, name


def _write_noise(path, rng):
    from PIL import Image

    coarse = rng.integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(coarse).resize((192, 128), Image.Resampling.BICUBIC).save(path)
