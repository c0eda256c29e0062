"""Tiles of an image: where they lie, and that every object is reported once, wherever a border cuts it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import InputError
from detector.predict import predict, predict_stream
from detector.tiling import Tiling, Window, detect_tiled, merge_tiles, tile_windows
from detector.types import Detections

NAMES = ("a", "b")


class RectangleFinder:
    """Finds what it sees of rectangles that are each of one colour: red tells them apart, green is the class.

    The score is drawn anew for each box, so that a part may have a better one than the whole.
    """

    class_names = NAMES

    def __init__(self, size, *, batch_limit=None, seed=0):
        self.image_size, self.batch_limit, self.fixed_size = size, batch_limit, batch_limit is not None
        self.rng = np.random.default_rng(seed)
        self.batches = []

    def detect(self, images, *, score_threshold, iou_threshold, max_detections):
        assert images.dtype == np.float32 and images.flags.c_contiguous
        self.batches.append(len(images))
        return [self._find(image).filter(score=score_threshold) for image in images]

    def _find(self, image):
        boxes, labels = [], []
        for colour in np.unique(image[0][image[0] > 0]):
            rows, columns = np.nonzero(image[0] == colour)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            labels.append(int(image[1][rows[0], columns[0]]))
        scores = np.sort(self.rng.uniform(0.3, 0.9, len(boxes)).astype(np.float32))[::-1]
        order = self.rng.permutation(len(boxes))
        size = (image.shape[1], image.shape[2])
        return Detections(
            np.array(boxes, np.float32).reshape(-1, 4)[order], scores, np.array(labels, np.int64)[order], size
        )


def painted(size, boxes, labels):
    image = np.zeros((*size, 3), np.uint8)
    for number, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True), start=1):
        image[y1:y2, x1:x2] = (number, label, 0)
    return image


def found_boxes(detections):
    return sorted(
        (int(label), *map(float, box)) for label, box in zip(detections.labels, detections.boxes, strict=True)
    )


def of_tiles(*parts):
    """Detections of one tile each from (x1, y1, x2, y2, score, label) in pixels of the tile."""
    made = []
    for size, rows in parts:
        table = np.array(rows, np.float32).reshape(-1, 6)
        made.append(Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), size))
    return made


def test_tiles_are_spread_evenly_with_the_overlap_at_least():
    # 0.2 of 100 leaves steps of 80 at most: (250 - 100) / 80 gives two steps of 75.
    windows = tile_windows((60, 250), Tiling((100, 100)))
    assert windows == [Window(0, 0, 100, 60), Window(75, 0, 175, 60), Window(150, 0, 250, 60)]
    rows = tile_windows((150, 250), Tiling((100, 250), overlap=0.0, whole=True))
    assert rows == [Window(0, 0, 250, 100), Window(0, 50, 250, 150), Window(0, 0, 250, 150)]
    assert tile_windows((100, 100), Tiling((100, 100), whole=True)) == [Window(0, 0, 100, 100)]


sides = st.integers(1, 700)


@given(sides, sides, st.integers(32, 300), st.integers(32, 300), st.floats(0, 0.9))
@settings(max_examples=60)
def test_tiles_cover_the_image_and_overlap_enough(height, width, tile_height, tile_width, overlap):
    windows = tile_windows((height, width), Tiling((tile_height, tile_width), overlap))
    size = (min(height, tile_height), min(width, tile_width))
    assert all(window.size == size for window in windows) and len(set(windows)) == len(windows)
    for starts, length, tile in (
        ({window.y1 for window in windows}, height, tile_height),
        ({window.x1 for window in windows}, width, tile_width),
    ):
        ordered = sorted(starts)
        assert ordered[0] == 0 and ordered[-1] + min(tile, length) == length
        assert all(after - before <= max(1, tile * (1 - overlap)) for before, after in pairwise(ordered))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": (640, 16)}, r"tile is \(640, 16\); expected \(height, width\), at least 32"),
        ({"tile": (64, 64), "overlap": 0.95}, r"overlap is 0\.95; expected 0 \.\.\. 0\.9"),
        ({"tile": (64, 64), "overlap": float("nan")}, "overlap is nan"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Tiling(**options)


@st.composite
def scenes(draw):
    """Rectangles of two classes, at most one per cell of a coarse grid or one long one across several cells."""
    size = draw(st.tuples(st.integers(40, 260), st.integers(40, 260)))
    boxes = []
    for top in range(0, size[0] - 24, 60):
        right = 0
        for left in range(0, size[1] - 24, 60):
            if left < right or draw(st.booleans()):
                continue
            # Up to three cells long: longer than any overlap, and at times longer than a tile.
            x1, y1 = left + draw(st.integers(0, 12)), top + draw(st.integers(0, 12))
            x2 = min(size[1], x1 + draw(st.integers(8, 160)))
            y2 = min(size[0], y1 + draw(st.integers(8, 40)))
            boxes.append((x1, y1, x2, y2))
            right = x2 + 1
    return size, boxes, [draw(st.integers(0, 1)) for _ in boxes]


@given(
    scenes(),
    st.sampled_from([(64, 64), (64, 96), (96, 128)]),
    st.sampled_from([0.15, 0.3]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=80)
def test_every_object_is_reported_once_and_whole(scene, tile, overlap, whole, seed):
    size, boxes, labels = scene
    # The network sees pixels as they are; the whole image, which would be shrunk, is seen at its own size too.
    finder = RectangleFinder(tile, seed=seed)
    windows = tile_windows(size, Tiling(tile, overlap, whole))
    image = painted(size, boxes, labels)
    parts = [finder._find(image[w.y1 : w.y2, w.x1 : w.x2].transpose(2, 0, 1).astype(np.float32)) for w in windows]
    merged = merge_tiles(parts, windows, size)
    assert found_boxes(merged) == sorted((label, *map(float, box)) for box, label in zip(boxes, labels, strict=True))
    assert (np.diff(merged.scores) <= 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
@settings(max_examples=30)
def test_one_tile_changes_nothing(seed, count):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-20, 120, (count, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    scores = np.sort(rng.choice(np.linspace(0.1, 0.9, 9), count).astype(np.float32))[::-1]
    plain = Detections(boxes, scores, rng.integers(0, 2, count), (80, 100))
    merged = merge_tiles([plain], [Window(0, 0, 100, 80)], (80, 100))
    assert merged.boxes.tolist() == boxes.tolist() and merged.scores.tolist() == scores.tolist()
    assert merged.labels.tolist() == plain.labels.tolist() and merged.image_size == (80, 100)


def test_an_image_no_larger_than_the_tile_is_predicted_as_without_tiles():
    image = painted((60, 90), [(5, 6, 30, 40), (50, 10, 80, 55)], [0, 1])
    for options in ({}, {"clip": False}, {"classes": ["b"]}, {"score_threshold": 0.5}):
        plain = predict(RectangleFinder((64, 96)), image, **options)
        tiled = predict(RectangleFinder((64, 96)), image, tiling=Tiling((64, 96), whole=True), **options)
        assert tiled.boxes.tolist() == plain.boxes.tolist() and tiled.scores.tolist() == plain.scores.tolist()
        assert tiled.names == plain.names and tiled.image_size == plain.image_size == (60, 90)


# Two tiles of 100 x 100 that have columns 80 ... 100 in common.
LEFT, RIGHT = Window(0, 0, 100, 100), Window(80, 0, 180, 100)


def merged_pair(left, right):
    return merge_tiles(of_tiles(((100, 100), left), ((100, 100), right)), [LEFT, RIGHT], (100, 180))


def test_a_part_with_the_better_score_gives_way_to_the_whole():
    # 60 x 40 at x = 60: the left tile ends it at 100 with a score of 0.9, the right one sees from 80 on.
    merged = merged_pair([(60, 20, 100, 60, 0.9, 0)], [(0, 20, 40, 60, 0.5, 0)])
    assert merged.boxes.tolist() == [[60, 20, 120, 60]] and merged.scores.tolist() == [np.float32(0.9)]


def test_each_side_comes_from_the_best_box_that_sees_it():
    # Both see top and bottom: those of the better box stay. Left and right are each seen by one.
    merged = merged_pair([(60, 21, 100, 60, 0.5, 0)], [(0, 20, 40, 61, 0.9, 0)])
    assert merged.boxes.tolist() == [[60, 20, 120, 61]]


def test_neighbours_that_overlap_stay_two_as_each_tile_says():
    left = [(82, 10, 96, 50, 0.9, 0), (84, 10, 98, 50, 0.8, 0)]
    right = [(4, 10, 18, 50, 0.85, 0), (2, 10, 16, 50, 0.7, 0)]
    merged = merged_pair(left, right)
    assert merged.boxes.tolist() == [[82, 10, 96, 50], [84, 10, 98, 50]]


def test_other_classes_and_objects_outside_the_common_part_are_left_alone():
    assert len(merged_pair([(82, 10, 96, 50, 0.9, 0)], [(2, 10, 16, 50, 0.8, 1)])) == 2
    # Alike in tile coordinates only.
    assert len(merged_pair([(2, 10, 16, 50, 0.9, 0)], [(50, 10, 64, 50, 0.8, 0)])) == 2


def test_a_sliver_inside_a_box_of_the_other_tile_is_dropped_and_does_not_change_it():
    merged = merged_pair([(40, 20, 90, 80, 0.5, 0)], [(0, 60, 8, 78, 0.9, 0)])
    assert merged.boxes.tolist() == [[40, 20, 90, 80]] and merged.scores.tolist() == [0.5]
    # The same box a little away from the border is an object of its own.
    assert len(merged_pair([(40, 20, 90, 80, 0.5, 0)], [(2, 60, 8, 78, 0.9, 0)])) == 2


def test_the_whole_image_finds_what_no_tile_holds():
    # Tiles see nothing of the large object but one part of it; the whole image sees it all.
    windows = [LEFT, RIGHT, Window(0, 0, 180, 100)]
    parts = of_tiles(((100, 100), []), ((100, 100), [(0, 5, 60, 95, 0.4, 0)]), ((100, 180), [(10, 4, 170, 96, 0.8, 0)]))
    merged = merge_tiles(parts, windows, (100, 180))
    assert merged.boxes.tolist() == [[10, 4, 170, 96]] and merged.scores.tolist() == [np.float32(0.8)]


@pytest.mark.parametrize(("batch_limit", "batches"), [(None, [4, 2]), (4, [4, 4]), (1, [1] * 6)])
def test_batches_of_tiles(batch_limit, batches):
    boxes = [(10, 10, 30, 30), (60, 20, 90, 50), (100, 70, 139, 99)]
    image = painted((100, 140), boxes, [0, 1, 0])
    finder = RectangleFinder((64, 64), batch_limit=batch_limit)
    found = detect_tiled(
        finder,
        image,
        Tiling((64, 64)),
        size=(64, 64),
        score_threshold=0.1,
        iou_threshold=0.7,
        max_detections=2,
        batch_size=4,
    )
    assert finder.batches == batches
    assert len(found) == 2 and set(found_boxes(found)) <= {
        (label, *map(float, box)) for box, label in zip(boxes, [0, 1, 0], strict=True)
    }


def test_a_stream_with_broken_files_among_its_images(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    image = painted((100, 140), [(60, 20, 90, 50)], [1])
    pil.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    pil.fromarray(image).save(tmp_path / "c.png")
    stream = predict_stream(RectangleFinder((64, 64)), tmp_path, tiling=Tiling((64, 64)))
    first, broken, last = stream
    assert broken.detections is None and broken.error is not None and broken.network_ms == 0
    for one in (first, last):
        assert one.detections.boxes.tolist() == [[60, 20, 90, 50]] and one.detections.names == ["b"]
        assert one.read_ms > 0 and one.network_ms > 0
