"""Resizing, flipping, turning and warping: pixels and boxes move together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

cv2 = pytest.importorskip("cv2")
pytest.importorskip("PIL")

from augment_cases import sample_of, seen_box  # noqa: E402

from detector.data.dataset import Sample  # noqa: E402
from detector.data.geometry import (  # noqa: E402
    GREY,
    Affine,
    box_areas,
    clip_boxes,
    draw_affine,
    fitted_size,
    flip_upside_down,
    mirror,
    pad,
    resize_image,
    select,
    stretch,
    turn,
    warp,
)
from detector.images import resize  # noqa: E402

RULES = {"min_side": 2.0, "min_visible": 0.1, "max_aspect": 20.0}


def affine(matrix, scale=1.0):
    return Affine(np.array(matrix, np.float64), scale)


@st.composite
def one_box(draw):
    """A sample with one painted rectangle, and a small outline that is its box."""
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    x1, y1 = draw(st.integers(0, width - 4)), draw(st.integers(0, height - 4))
    x2, y2 = draw(st.integers(x1 + 3, width)), draw(st.integers(y1 + 3, height))
    outline = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float32)
    return sample_of((height, width), [(x1, y1, x2, y2)], [0], polygons=(outline,))


@pytest.mark.parametrize("size", [(64, 64), (37, 91), (200, 120), (480, 640)])
def test_the_fast_resize_is_within_one_grey_level_of_that_of_evaluation(size):
    image = np.random.default_rng(0).integers(0, 256, (150, 110, 3), np.uint8)
    fast, exact = resize_image(image, size), resize(image, size)
    assert fast.shape == (*size, 3)
    assert np.abs(fast.astype(int) - exact).max() <= 1


def test_an_image_of_the_size_asked_for_is_not_copied():
    image = np.zeros((4, 6, 3), np.uint8)
    assert resize_image(image, (4, 6)) is image


def test_stretching_by_hand():
    sample = sample_of((40, 20), [(2, 10, 6, 30)], [1], polygons=(np.float32([(2, 10), (6, 30)]),))
    stretched = stretch(sample, (20, 60))
    assert stretched.image.shape == (20, 60, 3)
    np.testing.assert_array_equal(stretched.boxes, [[6, 5, 18, 15]])
    np.testing.assert_array_equal(stretched.polygons[0], [[6, 5], [18, 15]])
    np.testing.assert_allclose(seen_box(stretched.image, 1), (6, 5, 18, 15), atol=1)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((480, 640), (640, 640), (480, 640)),
        ((640, 480), (320, 320), (320, 240)),
        ((333, 500), (416, 416), (277, 416)),  # 333 * 0.832 = 277.06
        ((5000, 2), (640, 640), (640, 1)),  # never nothing
    ],
)
def test_the_size_that_fits(size, limit, expected):
    assert fitted_size(size, limit) == expected


@given(one_box())
@pytest.mark.parametrize(
    "move", [mirror, flip_upside_down, lambda s: turn(s, 1), lambda s: turn(s, 2), lambda s: turn(s, 3)]
)
def test_exact_moves_take_pixels_boxes_and_outlines_along(move, sample):
    moved = move(sample)
    assert tuple(moved.boxes[0]) == seen_box(moved.image, 0)
    outline = moved.polygons[0]
    np.testing.assert_array_equal(np.concatenate([outline.min(axis=0), outline.max(axis=0)]), moved.boxes[0])
    assert moved.image.flags.c_contiguous


@given(one_box(), st.integers(0, 4))
def test_moves_are_undone_by_their_opposites(sample, quarters):
    for there, back in (
        (mirror, mirror),
        (flip_upside_down, flip_upside_down),
        (lambda s: turn(s, quarters), lambda s: turn(s, 4 - quarters)),
    ):
        again = back(there(sample))
        np.testing.assert_array_equal(again.image, sample.image)
        np.testing.assert_array_equal(again.boxes, sample.boxes)


def test_a_quarter_turn_goes_counter_clockwise():
    sample = sample_of((20, 30), [(20, 0, 30, 5)], [0])  # top right
    np.testing.assert_array_equal(turn(sample, 1).boxes, [[0, 0, 5, 10]])  # top left


def test_padding_and_clipping():
    sample = sample_of((4, 6), [(0, 0, 2, 2)], [0])
    padded = pad(sample, (8, 9), value=7)
    assert padded.image.shape == (8, 9, 3)
    np.testing.assert_array_equal(padded.image[:4, :6], sample.image)
    assert (padded.image[4:] == 7).all() and (padded.image[:, 6:] == 7).all()
    assert pad(sample, (4, 6), value=7) is sample
    clipped = clip_boxes(np.float32([(-3, 1, 9, 2), (20, 0, 30, 4)]), (4, 6))
    np.testing.assert_array_equal(clipped, [[0, 1, 6, 2], [6, 0, 6, 4]])
    np.testing.assert_array_equal(box_areas(clipped), [6, 0])


def test_selected_boxes_keep_their_own_labels_and_outlines():
    outlines = tuple(np.full((3, 2), value, np.float32) for value in range(3))
    sample = Sample(np.zeros((9, 9, 3), np.uint8), np.zeros((3, 4), np.float32), np.array([5, 6, 7]), outlines)
    kept = select(sample, np.array([True, False, True]))
    assert kept.labels.tolist() == [5, 7]
    assert [outline[0, 0] for outline in kept.polygons] == [0, 2]


def test_the_map_is_translation_shear_rotation_centring_drawn_in_order():
    ranges = {"degrees": 10.0, "scale": (0.1, 2.0), "shear": 2.0, "translate": 0.2}
    drawn = draw_affine(np.random.default_rng(5), source=(1280, 1000), target=(640, 480), **ranges)
    rng = np.random.default_rng(5)
    angle, scale = rng.uniform(-10, 10), rng.uniform(0.1, 2.0)
    shears = [math.tan(math.radians(rng.uniform(-2, 2))) for _ in range(2)]
    x, y = rng.uniform(0.3, 0.7) * 480, rng.uniform(0.3, 0.7) * 640
    centring = np.array([[1, 0, -500], [0, 1, -640], [0, 0, 1.0]])
    rotation = np.eye(3)
    rotation[:2] = cv2.getRotationMatrix2D((0, 0), angle, scale)
    shear = np.array([[1, shears[0], 0], [shears[1], 1, 0], [0, 0, 1]])
    translation = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
    np.testing.assert_allclose(drawn.matrix, (translation @ shear @ rotation @ centring)[:2], atol=1e-9)
    assert drawn.scale == scale


def test_without_ranges_the_middle_is_cut_out():
    still = draw_affine(
        np.random.default_rng(0),
        source=(80, 120),
        target=(40, 60),
        degrees=0,
        scale=(1, 1),
        shear=0,
        translate=0,
    )
    np.testing.assert_allclose(still.matrix, [[1, 0, -30], [0, 1, -20]])


def test_warping_moves_pixels_and_boxes_alike():
    sample = sample_of((60, 80), [(10, 20, 40, 50)], [2])
    moved = warp(sample, affine([[1, 0, 7], [0, 1, -4]]), (64, 64), **RULES)
    np.testing.assert_array_equal(moved.boxes, [[17, 16, 47, 46]])
    assert seen_box(moved.image, 2) == (17, 16, 47, 46)
    assert moved.polygons is None
    assert (moved.image[60:] == GREY).all()


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_warped_boxes_enclose_what_is_seen(seed):
    rng = np.random.default_rng(seed)
    sample = sample_of((120, 120), [(30, 35, 85, 80)], [1])
    map_ = draw_affine(rng, source=(120, 120), target=(96, 128), degrees=20, scale=(0.7, 1.6), shear=5, translate=0.2)
    moved = warp(sample, map_, (96, 128), **RULES)
    if not len(moved.boxes):
        return
    x1, y1, x2, y2 = moved.boxes[0]
    seen = seen_box(moved.image, 1)
    assert x1 - 1.5 <= seen[0] and y1 - 1.5 <= seen[1] and x2 + 1.5 >= seen[2] and y2 + 1.5 >= seen[3]
    assert 0 <= x1 <= x2 <= 128 and 0 <= y1 <= y2 <= 96


@pytest.mark.parametrize(
    ("box", "scale", "kept"),
    [
        ((10, 10, 14, 40), 0.5, False),  # 2 wide: not more than 2
        ((10, 10, 14.2, 40), 0.5, True),
        ((10, 10, 40, 14), 0.5, False),  # 2 high
        ((-27, 10, 3, 40), 1, False),  # exactly a tenth is seen
        ((-26.7, 10, 3.3, 40), 1, True),
        ((2, 10, 62, 13), 1, False),  # twenty times as wide as high
        ((3, 10, 62, 13), 1, True),
    ],
)
def test_which_boxes_stay(box, scale, kept):
    sample = sample_of((64, 64), [], [])
    sample = Sample(sample.image, np.float32([box]), np.array([0]))
    moved = warp(sample, affine([[scale, 0, 0], [0, scale, 0]], scale), (64, 64), **RULES)
    assert len(moved.boxes) == len(moved.labels) == int(kept)


def test_area_is_compared_with_that_of_the_scaled_box():
    # Half as large in each direction: a quarter of the area is all of it.
    sample = sample_of((64, 64), [(10, 10, 50, 50)], [0])
    moved = warp(sample, affine([[0.5, 0, 0], [0, 0.5, 0]], 0.5), (64, 64), **RULES | {"min_visible": 0.9})
    np.testing.assert_allclose(moved.boxes, [[5, 5, 25, 25]])


def test_outlines_give_tighter_boxes_than_corners():
    """A diamond turned by 45 degrees is a square 20 * sqrt(2) wide; the corners of its box would give 40 * sqrt(2)."""
    diamond = np.float32([(40, 20), (60, 40), (40, 60), (20, 40), (40, 20)])
    turned = cv2.getRotationMatrix2D((40, 40), 45, 1)
    sample = sample_of((80, 80), [(20, 20, 60, 60)], [0])
    loose = warp(sample, affine(turned), (80, 80), **RULES)
    tight = warp(Sample(sample.image, sample.boxes, sample.labels, (diamond,)), affine(turned), (80, 80), **RULES)
    half = 10 * math.sqrt(2)
    np.testing.assert_allclose(tight.boxes, [[40 - half, 40 - half, 40 + half, 40 + half]], atol=0.1)
    np.testing.assert_allclose(loose.boxes, [[40 - 2 * half, 40 - 2 * half, 40 + 2 * half, 40 + 2 * half]], atol=1e-3)


def brute_force_box(outline, matrix, size):
    place = np.linspace(0, len(outline) - 1, 1000)
    x, y = (np.interp(place, np.arange(len(outline)), outline[:, axis]) for axis in (0, 1))
    x, y = matrix[:, :2] @ np.stack([x, y]) + matrix[:, 2:]
    inside = (x >= 0) & (y >= 0) & (x <= size[1]) & (y <= size[0])
    if not inside.any():
        return [0, 0, 0, 0]
    return [x[inside].min(), y[inside].min(), x[inside].max(), y[inside].max()]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_outline_boxes_are_those_of_a_thousand_points(seed, count):
    rng = np.random.default_rng(seed)
    outlines = tuple(rng.uniform(0, 100, (int(rng.integers(1, 9)), 2)).astype(np.float32) for _ in range(count))
    matrix = np.concatenate([rng.uniform(-1, 1, (2, 2)), rng.uniform(-20, 80, (2, 1))], axis=1)
    boxes = np.tile(np.float32([0, 0, 1, 1]), (count, 1))
    sample = Sample(np.zeros((100, 100, 3), np.uint8), boxes, np.arange(count), outlines)
    moved = warp(sample, affine(matrix), (70, 90), min_side=0, min_visible=0, max_aspect=1e9)
    expected = np.array([brute_force_box(outline, matrix, (70, 90)) for outline in outlines])
    sides = expected[:, 2:] - expected[:, :2]
    keep = (sides > 0).all(axis=1) & (sides.max(axis=1) < 1e9 * sides.min(axis=1))
    np.testing.assert_array_equal(moved.labels, np.flatnonzero(keep))
    np.testing.assert_allclose(moved.boxes, expected[keep], atol=1e-3)


def test_boxes_without_an_outline_fall_back_to_corners():
    sample = sample_of((40, 40), [(5, 5, 20, 20), (10, 10, 30, 30)], [0, 1])
    sample = Sample(
        sample.image, sample.boxes, sample.labels, (np.float32([(7, 7), (9, 9)]), np.zeros((0, 2), np.float32))
    )
    moved = warp(sample, affine([[1, 0, 0], [0, 1, 0]]), (40, 40), **RULES)
    np.testing.assert_array_equal(moved.boxes, sample.boxes)


def test_no_box_at_all():
    moved = warp(sample_of((40, 40), [], []), affine([[1, 0, 0], [0, 1, 0]]), (20, 20), **RULES)
    assert moved.boxes.shape == (0, 4) and moved.labels.shape == (0,)
    assert moved.boxes.dtype == np.float32
