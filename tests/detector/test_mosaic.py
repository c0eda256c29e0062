"""Mosaic and MixUp, pixel by pixel on small pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2")
pytest.importorskip("PIL")

from augment_cases import painted, sample_of, seen_box

from detector.data.dataset import Sample
from detector.data.geometry import GREY
from detector.data.mosaic import mix_up, mosaic


def flat_tile(value, size=(6, 8)):
    return Sample(np.full((*size, 3), value, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_four_images_meet_in_a_point(seed):
    rng = np.random.default_rng(seed)
    tiles = [Sample(rng.integers(0, 256, (6, 8, 3), np.uint8), *_nothing()) for _ in range(4)]
    canvas = mosaic(tiles, np.random.default_rng(seed)).image
    draws = np.random.default_rng(seed)
    x, y = int(draws.uniform(0.5, 1.5) * 8), int(draws.uniform(0.5, 1.5) * 6)
    assert canvas.shape == (12, 16, 3)
    for row in range(12):
        for column in range(16):
            tile = tiles[(row >= y) * 2 + (column >= x)].image
            in_row, in_column = row - (y if row >= y else y - 6), column - (x if column >= x else x - 8)
            inside = 0 <= in_row < 6 and 0 <= in_column < 8
            expected = tile[in_row, in_column] if inside else (GREY, GREY, GREY)
            np.testing.assert_array_equal(canvas[row, column], expected)


def _nothing():
    return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_boxes_keep_their_labels_when_one_of_the_middle_goes(seed):
    """Each tile has a box in its outer corner, which is cut away from some tiles, and one in its middle."""
    size = (40, 60)
    middle = [(20, 12, 40, 28)]
    corners = [(0, 0, 4, 4), (56, 0, 60, 4), (0, 36, 4, 40), (56, 36, 60, 40)]
    tiles = [
        Sample(painted(size, [], []), np.float32([corner, *middle]), np.array([10 * place, 10 * place + 1]))
        for place, corner in enumerate(corners)
    ]
    made = mosaic(tiles, np.random.default_rng(seed))
    draws = np.random.default_rng(seed)
    x, y = int(draws.uniform(0.5, 1.5) * 60), int(draws.uniform(0.5, 1.5) * 40)
    offsets = [(x - 60, y - 40), (x, y - 40), (x - 60, y), (x, y)]
    expected = []
    for place, (tile, offset) in enumerate(zip(tiles, offsets, strict=True)):
        for box, label in zip(tile.boxes + np.float32(offset * 2), tile.labels, strict=True):
            box = np.clip(box, 0, (120, 80, 120, 80))
            if box[2] > box[0] and box[3] > box[1]:
                expected.append((int(label), *box))
        assert place * 10 + 1 in made.labels  # the middle of a tile is always seen
    found = [(int(label), *box) for label, box in zip(made.labels, made.boxes, strict=True)]
    assert found == expected


def test_outlines_are_kept_where_every_box_has_one():
    triangle = np.float32([(1, 1), (5, 1), (5, 5)])
    with_outline = sample_of((20, 20), [(1, 1, 5, 5)], [0], polygons=(triangle,))
    without = sample_of((20, 20), [(1, 1, 5, 5)], [0])
    empty = sample_of((20, 20), [], [])
    kept = mosaic([with_outline, empty, empty, with_outline], np.random.default_rng(0))
    assert kept.polygons is not None and len(kept.polygons) == len(kept.labels) > 0
    for outline, box in zip(kept.polygons, kept.boxes, strict=True):
        np.testing.assert_array_equal([*outline.min(axis=0), *outline.max(axis=0)], box)  # cut together
    assert mosaic([with_outline, without, empty, empty], np.random.default_rng(0)).polygons is None


def test_the_mean_is_rounded_down():
    one, other = flat_tile(101, (4, 4)), flat_tile(50, (4, 4))
    mixed = mix_up(one, other, scale=(1, 1), rng=np.random.default_rng(0))
    assert (mixed.image == 75).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1), (0.5, 0.5), (1.5, 1.5), (0.5, 1.5)]))
def test_the_partners_box_lies_on_the_partner(seed, scale):
    # Not square, so that axes cannot be confused; the partner is lower than the image.
    image = sample_of((100, 140), [], [])
    partner = sample_of((80, 140), [(30, 20, 90, 60)], [2])
    mixed = mix_up(image, partner, scale=scale, rng=np.random.default_rng(seed))
    assert mixed.image.shape == (100, 140, 3)
    assert mixed.labels.tolist() == [2]
    # The background of both is the same grey, so twice the mean less one of them shows the partner.
    shown = np.clip(2 * mixed.image.astype(int) - 114, 0, 255).astype(np.uint8)
    x1, y1, x2, y2 = mixed.boxes[0]
    if x2 - x1 > 3 and y2 - y1 > 3:
        np.testing.assert_allclose(seen_box(shown, 2), mixed.boxes[0], atol=1.5)


def test_beside_a_small_partner_is_black():
    image = flat_tile(200, (40, 40))
    partner = flat_tile(100, (40, 40))
    mixed = mix_up(image, partner, scale=(0.5, 0.5), rng=np.random.default_rng(1)).image
    assert (mixed[:20, :20] == 150).all()
    assert (mixed[20:] == 100).all() and (mixed[:, 20:] == 100).all()


def test_both_mirrored_and_unmirrored_partners_come():
    image = flat_tile(0, (20, 20))
    partner = sample_of((20, 20), [(0, 0, 4, 4)], [0])
    lefts = {
        float(mix_up(image, partner, scale=(1, 1), rng=np.random.default_rng(seed)).boxes[0, 0]) for seed in range(20)
    }
    assert lefts == {0.0, 16.0}


def test_the_crop_of_a_grown_partner_is_drawn_in_both_directions():
    """Scaled by 1.5 there are 10 pixels too many, so it starts at 0 to 9 in x and in y."""
    image = flat_tile(0, (20, 20))
    partner = sample_of((20, 20), [(8, 8, 12, 12)], [0])  # in the middle: mirrored it is the same
    boxes = [mix_up(image, partner, scale=(1.5, 1.5), rng=np.random.default_rng(seed)).boxes[0] for seed in range(300)]
    for axis in (0, 1):
        assert {float(box[axis]) for box in boxes} == {12.0 - start for start in range(10)}
    assert len({(float(box[0]), float(box[1])) for box in boxes}) > 60


def test_boxes_of_the_image_come_first_and_are_unchanged():
    image, partner = sample_of((30, 30), [(1, 2, 9, 8)], [0]), sample_of((30, 30), [(3, 3, 20, 20)], [1])
    mixed = mix_up(image, partner, scale=(1, 1), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(mixed.boxes[0], [1, 2, 9, 8])
    assert mixed.labels.tolist() == [0, 1]
