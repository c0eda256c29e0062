"""SADA: the policy, each operation, and the short cut held against the definition on the whole image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2")
pil = pytest.importorskip("PIL.Image")
from augment_cases import sample_of  # noqa: E402
from PIL import ImageEnhance, ImageOps  # noqa: E402

from detector.data.dataset import Sample  # noqa: E402
from detector.data.sada import (  # noqa: E402
    PUBLISHED_VECTOR,
    SadaPolicy,
    Step,
    change_boxes,
    change_colours,
    sada,
)
from detector.data.sada_ops import COLOUR_OPS, change_crop, gaussian, translation  # noqa: E402

SPREADS = (6.0, 2.0, 0.4)
WHOLE = (slice(0, 40), slice(0, 56))


def noise(seed=0, size=(40, 56)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def apply(name, image, level):
    return COLOUR_OPS[name](image, level, (slice(0, image.shape[0]), slice(0, image.shape[1])))


def test_the_published_policy():
    policy = SadaPolicy.from_vector(PUBLISHED_VECTOR)
    assert policy.pairs == (
        (Step("Color", 0.4, 2), Step("translateX", 0.4, 4)),
        (Step("Brightness", 0.2, 4), Step("rotate", 0.4, 2)),
        (Step("Sharpness", 0.4, 2), Step("shearX", 0.2, 6)),
        (Step("SolarizeAdd", 0.2, 2), Step("hflip", 0.5, 1)),
        (Step("Color", 0.0, 8), Step("translateY", 0.2, 8)),
    )
    assert policy.colour_shares == (7, 5, 1) and policy.geometric_shares == (3, 3, 3)
    assert policy.spreads == SPREADS


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (PUBLISHED_VECTOR[:39], "expected 40 integers between 0 and 10"),
        ((*PUBLISHED_VECTOR[:39], 11), "expected 40 integers between 0 and 10"),
        ((*PUBLISHED_VECTOR[:37], 0, 0, 0), "and not all 0 of either three"),
        ((*PUBLISHED_VECTOR[:34], 10, 5, 1, 3, 3, 3), "expected 0 to 9 each"),
    ],
)
def test_vectors_that_are_no_policy(vector, message):
    with pytest.raises(ValueError, match=message):
        SadaPolicy.from_vector(vector)


@pytest.mark.parametrize(("name", "theirs"), [("AutoContrast", ImageOps.autocontrast), ("Equalize", ImageOps.equalize)])
@pytest.mark.parametrize("low", [0, 60, 200])
def test_histogram_operations_are_pillows(name, theirs, low):
    image = (low + noise() // 5).clip(0, 255).astype(np.uint8)
    image[..., 2] = 77  # a channel of one value
    np.testing.assert_array_equal(apply(name, image, 0), np.asarray(theirs(pil.fromarray(image))))


@pytest.mark.parametrize("level", [2, 4, 5, 8, 10])
@pytest.mark.parametrize(("name", "theirs"), [("Color", ImageEnhance.Color), ("Brightness", ImageEnhance.Brightness)])
def test_blends_are_pillows_but_for_its_rounding(name, theirs, level):
    expected = np.asarray(theirs(pil.fromarray(noise())).enhance(level / 10 * 1.8 + 0.1))
    assert np.abs(apply(name, noise(), level) - expected).max() < 2.5


def test_sharpness_is_pillows_inside():
    expected = np.asarray(ImageEnhance.Sharpness(pil.fromarray(noise())).enhance(0.46), np.float32)
    assert np.abs(apply("Sharpness", noise(), 2) - expected)[1:-1, 1:-1].max() < 1.5


def test_sharpness_reflects_at_the_border_by_hand():
    image = np.zeros((3, 3, 3), np.uint8)
    image[1, 1] = 130
    # Level 0: a tenth of the image on nine tenths of the smoothed one. The corner sees the centre four times.
    assert apply("Sharpness", image, 0)[0, 0, 0] == pytest.approx(0.9 * 4 * 130 / 13)
    assert apply("Sharpness", image, 0)[1, 1, 0] == pytest.approx(0.9 * 5 * 130 / 13 + 0.1 * 130)


def test_colours_by_hand():
    image = np.full((2, 2, 3), (100, 50, 200), np.uint8)
    grey = 0.2989 * 100 + 0.5870 * 50 + 0.1140 * 200
    np.testing.assert_allclose(
        apply("Color", image, 2)[0, 0], grey + 0.46 * (np.array([100, 50, 200]) - grey), rtol=1e-5
    )
    np.testing.assert_allclose(apply("Brightness", image, 4)[0, 0], [82, 41, 164], rtol=1e-5)
    np.testing.assert_allclose(apply("Brightness", image, 10)[0, 0], [190, 95, 255], rtol=1e-5)
    added = 0.2 * 0.4296875 * 255
    np.testing.assert_allclose(apply("SolarizeAdd", image, 2)[0, 0], [100 + added, 50 + added, 200], rtol=1e-5)
    edge = np.array([[[127, 128, 127]]], np.uint8)
    np.testing.assert_allclose(apply("SolarizeAdd", edge, 10)[0, 0], [127 + 0.4296875 * 255, 128, 236.5703], rtol=1e-5)
    image[0] = 0
    np.testing.assert_allclose(apply("Contrast", image, 0)[0, 0], [0.9 * grey / 2] * 3, rtol=1e-5)


@settings(max_examples=30)
@given(st.sampled_from(sorted(COLOUR_OPS)), st.integers(0, 10), st.integers(0, 39), st.integers(0, 55), st.data())
def test_a_window_is_a_part_of_the_whole(name, level, top, left, data):
    window = (
        slice(top, data.draw(st.integers(top + 1, 40))),
        slice(left, data.draw(st.integers(left + 1, 56))),
    )
    image = noise()
    expected = COLOUR_OPS[name](image, level, WHOLE)[window]
    np.testing.assert_allclose(COLOUR_OPS[name](image, level, window), expected, rtol=1e-5, atol=1e-3)


def test_the_gaussian_by_hand():
    weight = gaussian((slice(0, 9), slice(3, 12)), (7.0, 4.0), (2.0, 3.0))
    assert weight.shape == (9, 9)
    assert weight[4, 4] == 1
    assert weight[4, 6] == pytest.approx(math.exp(-0.5))  # a sigma to the right
    assert weight[1, 4] == pytest.approx(math.exp(-0.5))  # a sigma up
    assert weight[7, 2] == pytest.approx(math.exp(-1))


def reference_colours(image, boxes, step, spreads):
    """The definition, on whole images in floating point."""
    height, width = image.shape[:2]
    small, middle, large = (split * min(height, width) / 800 for split in (2048, 10240, 51200))
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    weight = np.zeros((height, width))
    for x1, y1, x2, y2 in boxes.astype(np.float64):
        w, h = x2 - x1, y2 - y1
        area = w * h
        if area < small:
            ratio = spreads[0] * small / area
        elif area < middle:
            ratio = spreads[1] * (small + middle) / 2 / area
        elif area < large:
            ratio = spreads[2] * large / area
        else:
            ratio = spreads[2]
        reach = math.sqrt(ratio * height * width / (2 * math.pi))
        sigma_x, sigma_y = w / width * reach, h / height * reach
        dx, dy = columns - (x1 + w // 2), rows - (y1 + h // 2)
        weight += np.exp(-(dx**2 / (2 * sigma_x**2) + dy**2 / (2 * sigma_y**2)))
    weight = np.minimum(weight, 1)[..., None]
    return image * (1 - weight) + apply(step.name, image, step.level).astype(np.float64) * weight


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(sorted(COLOUR_OPS)), st.integers(1, 5))
def test_colours_change_as_defined_also_beyond_the_window(seed, name, count):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(60, 220, 2))
    image = noise(seed, (height, width))
    corners = rng.uniform(0, 0.8, (count, 2)) * (width, height)
    sides = rng.uniform(0.01, 1, (count, 2)) ** 2 * (width, height)
    boxes = np.concatenate([corners, np.minimum(corners + sides + 1, (width, height))], axis=1).astype(np.float32)
    step = Step(name, 1.0, int(rng.integers(11)))
    sample = Sample(image, boxes, np.zeros(count, np.int64))
    changed = change_colours(sample, np.arange(count), step, spreads=SPREADS).image
    expected = reference_colours(image, boxes, step, SPREADS)
    # Rounded to the nearest everywhere; a thousandth for 32-bit arithmetic.
    assert np.abs(changed - expected).max() <= 0.501


def test_the_window_of_a_small_box_is_small():
    """Pixels far from a box are not touched: by the definition they would change by less than half a level."""
    image = noise(1, (200, 200))
    sample = Sample(image, np.float32([(20, 20, 60, 60)]), np.zeros(1, np.int64))
    changed = change_colours(sample, np.arange(1), Step("Brightness", 1.0, 0), spreads=SPREADS).image
    assert (changed[40, 40] <= image[40, 40] * 0.1 + 0.5).all()
    np.testing.assert_array_equal(changed[:, 190:], image[:, 190:])


def test_empty_boxes_are_passed_over():
    sample = Sample(noise(), np.float32([(5, 5, 5, 20), (3, 9, 20, 9)]), np.zeros(2, np.int64))
    changed = change_colours(sample, np.arange(2), Step("Brightness", 1.0, 0), spreads=SPREADS)
    np.testing.assert_array_equal(changed.image, sample.image)
    moved = change_boxes(sample, np.arange(2), Step("translateX", 1.0, 4), sign=1)
    np.testing.assert_array_equal(moved.boxes, sample.boxes)


def test_translations_are_in_pixels():
    assert translation("translateX", 4) == (48.0, 0.0)
    assert translation("translateY", 8) == (0.0, 96.0)
    assert translation("rotate", 8) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "level", "sign", "expected"),
    [
        ("translateX", 4, 1, (58, 30, 98, 70)),
        ("translateY", 1, -1, (10, 18, 50, 58)),
        ("translateX", 10, 1, (110, 30, 150, 70)),  # 120, shortened to 100: the right side stays inside
        ("translateX", 4, -1, (0, 30, 2, 70)),  # the left part leaves the image
        ("translateX", 10, -1, None),  # all of it does
    ],
)
def test_a_translation_copies_the_box(name, level, sign, expected):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (120, 150, 3), np.uint8)
    sample = Sample(image, np.float32([(100, 90, 110, 100), (10, 30, 50, 70)]), np.array([4, 2]))
    moved = change_boxes(sample, np.array([1]), Step(name, 1.0, level), sign=sign)
    np.testing.assert_array_equal(moved.boxes[:2], sample.boxes)
    if expected is None:
        assert moved.labels.tolist() == [4, 2]
        np.testing.assert_array_equal(moved.image, image)
        return
    assert moved.labels.tolist() == [4, 2, 2]
    np.testing.assert_array_equal(moved.boxes[2], expected)
    # In the middle of what is seen, the copy shows what the box showed there.
    x1, y1, x2, y2 = expected
    shift_x = (x2 - 50) if name == "translateX" else 0
    shift_y = (y2 - 70) if name == "translateY" else 0
    middle = (y1 + (y2 - y1) // 2, x1 + (x2 - x1) // 2)
    np.testing.assert_array_equal(moved.image[middle], image[middle[0] - shift_y, middle[1] - shift_x])
    outside = np.ones(image.shape[:2], bool)
    outside[y1:y2, x1:x2] = False
    np.testing.assert_array_equal(moved.image[outside], image[outside])


def test_a_box_that_cannot_move_is_not_copied():
    sample = sample_of((60, 60), [(20, 20, 60, 40)], [0])
    moved = change_boxes(sample, np.array([0]), Step("translateX", 1.0, 4), sign=1)
    assert len(moved.labels) == 1


@pytest.mark.parametrize("name", ["hflip", "rotate", "shearX", "shearY"])
def test_other_operations_change_pixels_in_the_box_only(name):
    sample = Sample(noise(2, (80, 90)), np.float32([(20.6, 10.2, 61.9, 50.7)]), np.array([1]))
    before = sample.image.copy()
    changed = change_boxes(sample, np.array([0]), Step(name, 1.0, 6), sign=1)
    np.testing.assert_array_equal(changed.boxes, sample.boxes)
    differs = (changed.image != before).any(axis=2)
    assert differs[10:50, 20:61].mean() > 0.5
    differs[10:50, 20:61] = False
    assert not differs.any()
    np.testing.assert_array_equal(sample.image, before)


def test_crops_are_mirrored_and_turned_about_their_middle():
    crop = noise(4, (9, 9))
    np.testing.assert_array_equal(change_crop(crop, "hflip", level=1, sign=1), crop[:, ::-1])
    for name in ("rotate", "shearX", "shearY"):
        np.testing.assert_array_equal(change_crop(crop, name, level=0, sign=1), crop)
        turned, other = (change_crop(crop, name, level=10, sign=sign) for sign in (1, -1))
        np.testing.assert_array_equal(turned[4, 4], crop[4, 4])
        assert (turned != other).any()
    # 30 degrees counter-clockwise: what is right of the middle goes up.
    spot = np.zeros((41, 41, 3), np.uint8)
    spot[20, 36] = 255
    row, column = np.unravel_index(change_crop(spot, "rotate", level=10, sign=1)[..., 0].argmax(), (41, 41))
    assert (row, column) == (12, 34)  # 20 - 16 sin 30, 20 + 16 cos 30
    sheared = change_crop(spot[:, ::-1].transpose(1, 0, 2), "shearX", level=10, sign=1)
    assert sheared[..., 0].argmax() // 41 == 4  # rows stay
    assert (change_crop(crop, "rotate", level=10, sign=1)[0, 0] == (102, 115, 122)).all()


def always(*, share=(1, 1, 1)):
    """A policy whose steps always happen."""
    pair = (Step("Brightness", 1.0, 4), Step("translateX", 1.0, 4))
    return SadaPolicy((pair,), share, share, SPREADS)


def test_the_ramp_begins_with_nothing():
    sample = Sample(noise(), np.float32([(5, 5, 30, 30)] * 3), np.zeros(3, np.int64))
    for seed in range(20):
        done = sada(sample, always(), progress=0.0, box_probability=3.0, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(done.image, sample.image)
        assert len(done.labels) == 3
    done = sada(sample, always(), progress=1.0, box_probability=3.0, rng=np.random.default_rng(0))
    assert len(done.labels) == 6 and (done.image != sample.image).any()


def test_how_often_boxes_are_chosen():
    """Each of the steps alone, counted over many boxes of each size; three standard deviations are allowed."""
    size = (400, 400)  # splits at 1024 and 5120 square pixels
    for side, share in ((8, 7), (40, 5), (90, 1)):
        boxes = np.tile(np.float32([(200, 200, 200 + side, 200 + side)]), (4000, 1))
        sample = Sample(np.zeros((*size, 3), np.uint8), boxes, np.zeros(4000, np.int64))
        policy = SadaPolicy(((Step("Color", 0.0, 1), Step("translateX", 1.0, 4)),), (1, 1, 1), (7, 5, 1), SPREADS)
        done = sada(sample, policy, progress=1.0, box_probability=0.3, rng=np.random.default_rng(side))
        chance = 0.3 * share / 13
        spread = math.sqrt(4000 * chance * (1 - chance))
        assert abs(len(done.labels) - 4000 - 4000 * chance) < 3 * spread


def test_no_box_at_all():
    sample = sample_of((40, 40), [], [])
    for seed in range(20):
        done = sada(sample, always(), progress=1.0, box_probability=1.0, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(done.image, sample.image)
        assert done.boxes.shape == (0, 4)
