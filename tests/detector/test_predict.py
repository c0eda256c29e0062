"""From sources to detections in pixels of the original image, with a network that sees white rectangles."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")

from detector.errors import InputError  # noqa: E402
from detector.predict import predict, predict_stream  # noqa: E402
from detector.types import Detections  # noqa: E402

NAMES = ("bright", "dark", "other")


class WhiteFinder:
    """Finds the bright part of each image, as class 0 with its brightness as score, and the whole image as class 1."""

    class_names = NAMES
    image_size = (64, 96)

    def __init__(self, *, batch_limit=None, fixed_size=False, reach=0.0):
        self.batch_limit, self.fixed_size, self.reach = batch_limit, fixed_size, reach
        self.batches = []

    def detect(self, images, *, score_threshold, iou_threshold, max_detections):
        assert images.dtype == np.float32 and images.flags.c_contiguous
        self.batches.append(images.shape)
        self.thread = threading.current_thread()
        results = []
        for image in images:
            height, width = image.shape[1:]
            grey = image.mean(axis=0)
            rows, columns = np.nonzero(grey > 128)
            boxes, scores, labels = [[-self.reach, -self.reach, width + self.reach, height + self.reach]], [0.3], [1]
            if len(rows):
                boxes.insert(0, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                scores.insert(0, grey.max() / 256)
                labels.insert(0, 0)
            found = Detections(
                np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels), (height, width)
            )
            found = found.filter(score=score_threshold)
            results.append(found.select(np.arange(min(len(found), max_detections))))
        return results


def picture(height, width, box, value=255):
    """Black, with a bright rectangle (x1, y1, x2, y2)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = value
    return image


def pictures(count):
    """Of different sizes and brightness, each with a rectangle that identifies it."""
    return [picture(64 + 7 * k, 96 + 11 * k, (8 + k, 8, 40 + 2 * k, 32), value=200 + 5 * k) for k in range(count)]


def test_boxes_come_back_in_pixels_of_the_original():
    # 3 x as high and 2 x as wide as the input: borders fall on pixel borders of the input.
    found = predict(WhiteFinder(), picture(192, 192, (32, 24, 128, 144)))
    assert isinstance(found, Detections)
    assert found.image_size == (192, 192) and found.class_names == NAMES and found.names == ["bright", "dark"]
    assert found.boxes.tolist() == [[32, 24, 128, 144], [0, 0, 192, 192]]


def test_a_list_of_one_gives_a_list():
    image = picture(64, 96, (8, 8, 16, 16))
    assert [one.names for one in predict(WhiteFinder(), [image])] == [["bright", "dark"]]


def test_another_image_size():
    network = WhiteFinder()
    found = predict(network, picture(128, 128, (32, 32, 64, 96)), image_size=32)
    assert network.batches == [(1, 3, 32, 32)] and found.boxes[0].tolist() == [32, 32, 64, 96]
    predict(network, picture(128, 128, (32, 32, 64, 96)), image_size=(32, 64))
    assert network.batches[-1] == (1, 3, 32, 64)


def test_boxes_are_clipped_unless_told_otherwise():
    image = picture(128, 192, (0, 0, 9, 9))
    assert predict(WhiteFinder(reach=10), image).boxes[-1].tolist() == [0, 0, 192, 128]
    assert predict(WhiteFinder(reach=10), image, clip=False).boxes[-1].tolist() == [-20, -20, 212, 148]


def test_thresholds_and_classes():
    image = picture(64, 96, (8, 8, 16, 16))
    assert predict(WhiteFinder(), image, score_threshold=0.5).names == ["bright"]
    assert predict(WhiteFinder(), image, classes=["dark"]).names == ["dark"]
    assert predict(WhiteFinder(), image, classes=[0, "1"]).names == ["bright", "dark"]
    assert predict(WhiteFinder(), image, classes=[2]).names == []
    assert predict(WhiteFinder(), image, max_detections=1).names == ["bright"]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_batches_do_not_change_results_or_their_order(batch_size):
    images, network = pictures(7), WhiteFinder()
    alone = [predict(WhiteFinder(), image) for image in images]
    together = predict(network, images, batch_size=batch_size)
    assert [shape[0] for shape in network.batches] == [min(batch_size, 7 - k) for k in range(0, 7, batch_size)]
    assert len(together) == 7
    for first, second in zip(alone, together, strict=True):
        assert first.image_size == second.image_size
        assert np.array_equal(first.boxes, second.boxes) and np.array_equal(first.scores, second.scores)
    assert len({one.scores[0] for one in alone}) == 7


def test_a_fixed_batch_is_filled_up_and_the_filling_dropped():
    network = WhiteFinder(batch_limit=4)
    found = predict(network, pictures(6), batch_size=2)
    assert [shape[0] for shape in network.batches] == [4, 4] and len(found) == 6
    assert [one.image_size for one in found] == [image.shape[:2] for image in pictures(6)]
    assert predict(network, pictures(1)[0]).names == ["bright", "dark"]


def test_broken_files_do_not_stop_a_stream(tmp_path):
    for index, image in enumerate(pictures(5)):
        pil.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").write_text("hello")
    (tmp_path / "4.png").unlink()
    network = WhiteFinder(batch_limit=2)
    found = list(predict_stream(network, tmp_path))
    assert [one.path.name for one in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert [one.detections is None for one in found] == [False, True, False, True]
    assert "1.png: is empty" in found[1].error and "3.png: is no image" in found[3].error
    assert found[2].detections.image_size == pictures(5)[2].shape[:2] == found[2].image.shape[:2]
    assert found[0].read_ms > 0 and found[0].network_ms > 0 and found[1].network_ms == 0
    with pytest.raises(InputError, match=r"1\.png: is empty .*; predict_stream goes on past such files"):
        predict(network, tmp_path)


def test_a_batch_of_broken_files_only_is_not_sent_to_the_network(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    network = WhiteFinder()
    assert [one.error is None for one in predict_stream(network, tmp_path, batch_size=2)] == [False] * 3
    assert network.batches == []


def test_a_single_broken_file_raises(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.png: is empty"):
        predict(WhiteFinder(), tmp_path / "a.png")


def test_an_exif_turned_photo_gives_boxes_as_it_is_seen(tmp_path):
    exif = pil.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the lower left corner goes to the upper left
    pil.fromarray(picture(96, 64, (0, 64, 32, 96))).save(tmp_path / "a.png", exif=exif)
    found = predict(WhiteFinder(), tmp_path / "a.png")
    assert found.image_size == (64, 96) and found.boxes[0].tolist() == [0, 0, 32, 32]


def test_a_stream_reads_only_two_batches_ahead():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield picture(64, 96, (8, 8, 16, 16))

    stream = predict_stream(WhiteFinder(), endless(), batch_size=2)
    next(stream)
    stream.close()
    assert len(drawn) <= 4


def test_an_early_end_leaves_no_thread(tmp_path):
    before = threading.active_count()
    stream = predict_stream(WhiteFinder(), pictures(9), batch_size=1)
    next(stream)
    stream.close()
    assert threading.active_count() <= before


def test_an_error_of_the_network_reaches_the_caller():
    class Failing(WhiteFinder):
        def detect(self, images, **options):
            raise InputError("no")

    with pytest.raises(InputError, match="no"):
        predict(Failing(), pictures(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, r"score_threshold is 1\.5; expected 0 \.\.\. 1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"iou_threshold": -0.1}, "iou_threshold is -0.1"),
        ({"max_detections": 0}, "max_detections is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"image_size": 100}, "image_size is 100; expected a side or .* multiples of 32"),
        ({"image_size": (64, 0)}, "image_size is"),
        ({"image_size": (64, 64, 3)}, "image_size is"),
        ({"classes": ["brigth"]}, "did you mean 'bright'"),
    ],
)
def test_options_out_of_range_are_named_before_anything_runs(options, message):
    network = WhiteFinder()
    with pytest.raises(InputError, match=message):
        predict_stream(network, pictures(1), **options)
    assert network.batches == []


def test_a_model_of_one_size_refuses_others():
    network = WhiteFinder(fixed_size=True)
    with pytest.raises(InputError, match="image_size is 64x64; this model takes 64x96 only"):
        predict_stream(network, pictures(1), image_size=64)
    assert len(predict(network, pictures(2), image_size=(64, 96))) == 2


def test_videos_give_a_result_per_frame(tmp_path):
    pytest.importorskip("cv2")
    from detector.video import VideoWriter

    with VideoWriter(tmp_path / "a.mp4", fps=5, size=(64, 96)) as writer:
        for index in range(5):
            writer.write(picture(64, 96, (8 * index, 16, 8 * index + 32, 48)))
    found = list(predict_stream(WhiteFinder(), tmp_path / "a.mp4", batch_size=2, classes=["bright"]))
    assert [(one.frame, one.time_s) for one in found] == [(k, pytest.approx(k / 5)) for k in range(5)]
    for index, one in enumerate(found):
        assert np.abs(one.detections.boxes[0] - (8 * index, 16, 8 * index + 32, 48)).max() <= 2
    assert len(predict(WhiteFinder(), str(tmp_path / "a.mp4"))) == 5


def test_a_real_network_gives_the_same_alone_and_in_a_batch():
    torch = pytest.importorskip("torch")
    from network_cases import random_structure

    from detector.model import Detector

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Detector(random_structure("res", 3)).eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + 9 * k, 90 - 7 * k, 3), np.uint8) for k in range(5)]
    options = {"score_threshold": 0.0, "max_detections": 20, "image_size": (64, 96)}
    alone = [predict(model, image, **options) for image in images]
    together = predict(model, images, batch_size=3, **options)
    assert model.predict(images[0], **options).names == alone[0].names
    for image, first, second in zip(images, alone, together, strict=True):
        assert len(first) > 0 and first.image_size == image.shape[:2]
        np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-3)
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
        assert first.boxes.min() >= 0 and (first.boxes.max(axis=0) <= image.shape[1::-1] * 2).all()


def test_predicting_needs_no_torch():
    script = (
        "import sys\nsys.modules['torch'] = None\nimport numpy as np\n"
        "import detector.predict, detector.drawing, detector.video\n"
        "from detector.types import Detections\n"
        "print(Detections.empty((40, 60)).draw(np.zeros((40, 60, 3), np.uint8)).shape)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "(40, 60, 3)\n", done.stderr
