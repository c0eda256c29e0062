"""One sample: the settings, the order of steps, and boxes that fit what is painted."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2")
pil = pytest.importorskip("PIL.Image")

from augment_cases import COLOURS, dataset_of, painted, record_of, rectangles  # noqa: E402

from detector.data.geometry import resize_image  # noqa: E402
from detector.data.pipeline import Augmenter, Moment, jitter_colours  # noqa: E402
from detector.data.sada import PUBLISHED_VECTOR  # noqa: E402
from detector.data.settings import AugmentSettings  # noqa: E402
from detector.data.store import ImageStore  # noqa: E402
from detector.errors import ConfigError, DataError  # noqa: E402
from detector.images import read_image  # noqa: E402
from maenas.records import build  # noqa: E402

SMALL = AugmentSettings(image_size=(128, 128))
STILL = replace(SMALL, mosaic=0.0, flip=0.0, sada=False)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Twelve images with coloured rectangles; two of them show none."""
    return rectangles(tmp_path_factory.mktemp("shapes"), 12, empty=(3, 7))


def augmenter(dataset, chosen):
    return Augmenter(ImageStore(dataset, tile_size=chosen.tile_size), chosen)


def make(dataset, chosen, *, index=0, seed=0, moment=None, image_size=None):
    moment = Moment(progress=1.0) if moment is None else moment
    sample, broken = augmenter(dataset, chosen).sample(
        index, moment, np.random.default_rng(seed), image_size=image_size
    )
    assert not broken
    return sample


def test_the_defaults_are_the_published_recipe():
    defaults = AugmentSettings()
    assert (defaults.image_size, defaults.tile_size) == ((640, 640), (640, 640))
    assert (defaults.mosaic, defaults.mixup, defaults.mixup_scale) == (1.0, 0.15, (0.5, 1.5))
    assert (defaults.degrees, defaults.translate, defaults.scale, defaults.shear) == (10, 0.2, (0.1, 2.0), 2)
    assert (defaults.min_box_side, defaults.min_visible, defaults.max_aspect, defaults.min_area) == (2, 0.1, 20, 4)
    assert defaults.flip == 0.5 and not defaults.keep_ratio
    assert defaults.sada and defaults.sada_in_final_epochs and defaults.sada_ramp == "all"
    assert defaults.sada_box_probability == 0.3 and defaults.sada_vector == PUBLISHED_VECTOR
    extras = ("flip_vertical", "rotate_90", "hue", "saturation", "value")
    assert [getattr(defaults, name) for name in extras] == [0] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [640, 650]}, r"image_size is \[640, 650\]; expected multiples of 32 from 32 to 4096"),
        ({"mosaic_size": [640, 8]}, r"mosaic_size is \[640, 8\]; expected sides from 32 to 4096"),
        ({"mosaic": 1.5}, "mosaic is 1.5; expected a number from 0 to 1"),
        ({"flip": float("nan")}, "flip is NaN; expected a number from 0 to 1"),
        ({"degrees": -1}, "degrees is -1.0; expected a number from 0 to 180"),
        ({"shear": 90}, "shear is 90.0; expected a number from 0 to 60"),
        ({"value": 1.0}, "value is 1.0; expected a number from 0 to below 1"),
        ({"scale": [2.0, 0.1]}, "scale is .*; expected two numbers from 0.01 to 10, the smaller first"),
        ({"mixup_scale": [0.0, 1.0]}, "mixup_scale is .*; expected two numbers from 0.01"),
        ({"max_aspect": 1.0}, "max_aspect is 1.0; expected a number above 1"),
        ({"min_area": -4}, "min_area is -4.*; expected a number of 0 or more"),
        ({"sada_ramp": "half"}, 'sada_ramp is "half"; expected one of all, until_final'),
        ({"sada_vector": [1, 2]}, r"sada_vector is \[1, 2\]; expected 40 integers"),
        ({"mosaik": 1.0}, "mosaik is not a field; did you mean mosaic"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ConfigError, match=f"run.yaml: {message}"):
        build(AugmentSettings, change, source="run.yaml", error=ConfigError)


def test_settings_survive_a_file():
    chosen = replace(SMALL, mosaic_size=(96, 160), hue=0.1)
    content = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(chosen).items()}
    assert build(AugmentSettings, content, source="run.yaml", error=ConfigError) == chosen


def test_without_augmentation_an_image_is_stretched_as_in_evaluation(shapes):
    record = shapes.images[0]
    sample = make(shapes, STILL)
    np.testing.assert_array_equal(sample.image, resize_image(read_image(record.path), (128, 128)))
    height, width = record.size
    factors = np.float32([128 / width, 128 / height] * 2)
    np.testing.assert_allclose(sample.boxes, record.boxes * factors, rtol=1e-6)
    np.testing.assert_array_equal(sample.labels, record.labels)


def test_the_final_epochs_have_no_mosaic_and_no_mixup(shapes):
    chosen = replace(SMALL, flip=0.0, mixup=1.0)
    still = make(shapes, chosen, moment=Moment(1.0, mixing=False, sada=False))
    np.testing.assert_array_equal(still.image, make(shapes, STILL).image)


def test_equal_seeds_give_equal_samples(shapes):
    first, again, other = (make(shapes, SMALL, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert (first.image != other.image).any()


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), index=st.integers(0, 11), progress=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_sample_is_fit_for_training(shapes, seed, index, progress):
    chosen = replace(SMALL, mixup=0.5, rotate_90=0.3, flip_vertical=0.3, hue=0.1, saturation=0.5, value=0.3)
    sample = make(shapes, chosen, index=index, seed=seed, moment=Moment(progress))
    assert sample.image.shape == (128, 128, 3) and sample.image.dtype == np.uint8
    assert sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
    assert sample.boxes.shape == (len(sample.labels), 4) and sample.polygons is None
    assert (sample.boxes >= 0).all() and (sample.boxes <= 128).all()
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()


@settings(max_examples=80)
@given(seed=st.integers(0, 10_000), index=st.integers(0, 11))
def test_boxes_lie_on_what_they_are_named_after(shapes, seed, index):
    """Through mosaic, scaling, moving, resizing, turns and flips: in the middle of a box is the colour of its class.

    Not through rotations: the box around the corners of a turned rectangle may be cut so that little of it is left.
    """
    chosen = replace(SMALL, mixup=0.0, sada=False, degrees=0.0, shear=0.0, image_size=(96, 160))
    chosen = replace(chosen, rotate_90=0.5, flip_vertical=0.5)
    sample = make(shapes, chosen, index=index, seed=seed)
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        x1, y1, x2, y2 = np.rint(box).astype(int)
        if min(x2 - x1, y2 - y1) < 6:
            continue  # mostly edge
        middle = sample.image[(y1 + y2) // 2, (x1 + x2) // 2].astype(int)
        assert np.abs(middle - COLOURS[label]).max() < 60


def test_the_whole_pipeline_loses_no_object(shapes):
    """A scale of one half shows the whole mosaic: four images' boxes, less those that the canvas cut away."""
    chosen = replace(
        SMALL, mixup=0.0, sada=False, scale=(0.5, 0.5), degrees=0.0, shear=0.0, translate=0.0, min_visible=0.0
    )
    sample = make(shapes, chosen, seed=4)
    for label in range(3):
        shown = (np.abs(sample.image.astype(int) - COLOURS[label]).sum(axis=2) < 60).nonzero()
        boxes = sample.boxes[sample.labels == label]
        for y, x in zip(*shown, strict=True):
            covered = (boxes[:, 0] <= x + 1) & (boxes[:, 2] >= x) & (boxes[:, 1] <= y + 1) & (boxes[:, 3] >= y)
            assert covered.any(), f"{(x, y)} shows class {label} and has no box"


def test_a_mosaic_of_another_size_is_resized(shapes):
    chosen = replace(SMALL, image_size=(64, 64), mosaic_size=(128, 128), flip=0.0, sada=False, mixup=0.0)
    large = replace(chosen, image_size=(128, 128))
    small_sample, large_sample = make(shapes, chosen, seed=3), make(shapes, large, seed=3)
    np.testing.assert_array_equal(small_sample.image, resize_image(large_sample.image, (64, 64)))
    np.testing.assert_allclose(small_sample.boxes, large_sample.boxes / 2)


def test_another_size_may_be_asked_for(shapes):
    sample = make(shapes, SMALL, image_size=(64, 160))
    assert sample.image.shape == (64, 160, 3)
    assert (sample.boxes[:, 2] <= 160).all() and (sample.boxes[:, 3] <= 64).all()


def test_tiny_boxes_of_a_mosaic_are_dropped(shapes):
    areas = []
    for seed in range(40):
        chosen = replace(SMALL, mixup=1.0, min_area=60.0, sada=False, scale=(0.1, 0.4))
        boxes = make(shapes, chosen, seed=seed).boxes
        areas += list((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert len(areas) > 20 and min(areas) > 60


def test_mixup_comes_as_often_as_asked(shapes):
    chosen = replace(SMALL, mixup=0.15, sada=False, scale=(0.3, 0.5))
    plain = replace(chosen, mixup=0.0)
    mixed, possible = 0, 0
    for seed in range(300):
        # Both draw alike until MixUp is decided; a flip that is drawn later may differ, so sums are compared.
        without = make(shapes, plain, seed=seed)
        possible += bool(len(without.labels))
        mixed += int(make(shapes, chosen, seed=seed).image.sum()) != int(without.image.sum())
    assert abs(mixed / possible - 0.15) < 0.06


def test_every_annotated_image_may_be_the_partner(shapes, monkeypatch):
    asked = set()
    source = ImageStore(shapes, tile_size=SMALL.tile_size)
    fitted = source.fitted
    monkeypatch.setattr(source, "fitted", lambda index, size: asked.add(index) or fitted(index, size))
    maker = Augmenter(source, replace(SMALL, mixup=1.0))
    for seed in range(120):
        maker.sample(0, Moment(), np.random.default_rng(seed))
    assert asked == set(range(12)) - {3, 7}  # those two have no box


def test_aspect_ratio_may_be_kept(tmp_path):
    path = tmp_path / "wide.png"
    pil.fromarray(painted((40, 80), [(20, 10, 60, 30)], [1])).save(path)
    dataset = dataset_of([record_of(path, (40, 80), [(20, 10, 60, 30)], [1])])
    sample = make(dataset, replace(STILL, keep_ratio=True))
    np.testing.assert_allclose(sample.boxes, [[32, 16, 96, 48]])
    assert (sample.image[64:] == 0).all() and (sample.image[:64] > 0).any(axis=2).all()
    mosaic_sample = make(dataset, replace(SMALL, keep_ratio=True, image_size=(64, 128), mosaic_size=(64, 64)))
    assert mosaic_sample.image.shape == (64, 128, 3)


def test_images_of_no_box_make_samples_without_boxes(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        pil.fromarray(painted((30, 30), [], [])).save(path)
    dataset = dataset_of([record_of(path, (30, 30), [], []) for path in paths])
    sample = make(dataset, replace(SMALL, mixup=1.0))
    assert len(sample.boxes) == 0


def test_ignored_boxes_are_not_trained_on(tmp_path):
    path = tmp_path / "crowd.png"
    pil.fromarray(painted((50, 50), [(5, 5, 20, 20), (30, 30, 45, 45)], [0, 1])).save(path)
    record = record_of(path, (50, 50), [(5, 5, 20, 20), (30, 30, 45, 45)], [0, 1], ignored=[True, False])
    assert make(dataset_of([record]), STILL).labels.tolist() == [1]


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2)])
def test_images_of_odd_shapes(tmp_path, size):
    path = tmp_path / "odd.png"
    pil.fromarray(painted(size, [], [])).save(path)
    dataset = dataset_of([record_of(path, size, [(0, 0, size[1], size[0])], [2])])
    for keep_ratio in (False, True):
        for seed in range(6):
            chosen = replace(SMALL, mixup=1.0, keep_ratio=keep_ratio)
            assert make(dataset, chosen, seed=seed).image.shape == (128, 128, 3)


def test_a_broken_image_is_replaced_by_chance_but_the_same_again(tmp_path, shapes):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    broken_record = record_of(tmp_path / "broken.jpg", (50, 50), [(1, 1, 20, 20)], [0])
    dataset = dataset_of([broken_record, *shapes.images])
    maker = augmenter(dataset, STILL)
    results = [maker.sample(0, Moment(mixing=False), np.random.default_rng(seed)) for seed in (5, 5, 6, 7, 8)]
    for sample, broken in results:
        assert {image.index for image in broken} == {0} and "broken.jpg: is no image" in broken[0].reason
        assert sample.image.shape == (128, 128, 3)
    np.testing.assert_array_equal(results[0][0].image, results[1][0].image)
    assert len({sample.image.tobytes() for sample, _ in results}) > 1
    # A partner of MixUp is replaced by an image that has boxes.
    dataset = dataset_of([broken_record, shapes.images[3], shapes.images[0]])
    for seed in range(20):
        _, broken = augmenter(dataset, replace(SMALL, mixup=1.0)).sample(2, Moment(), np.random.default_rng(seed))
        assert {image.index for image in broken} <= {0}


def test_nothing_but_broken_images_is_an_error(tmp_path):
    dataset = dataset_of([record_of(tmp_path / "gone.jpg", (50, 50), [(1, 1, 20, 20)], [0])])
    with pytest.raises(DataError, match=r"made/train: 50 images in a row cannot be read; .*gone.jpg: no such file"):
        augmenter(dataset, SMALL).sample(0, Moment(), np.random.default_rng(0))


def test_colour_jitter_by_hand():
    image = np.full((2, 2, 3), (200, 100, 100), np.uint8)  # hue 0, saturation 0.5, value 200

    class Draws:
        def uniform(self, low, high, size):
            return np.array([1.0, 1.0, -1.0])

    turned = jitter_colours(image, replace(SMALL, hue=1 / 3), Draws())
    np.testing.assert_allclose(turned[0, 0], [100, 200, 100], atol=2)  # red to green
    stronger = jitter_colours(image, replace(SMALL, saturation=0.5), Draws())
    np.testing.assert_allclose(stronger[0, 0], [200, 50, 50], atol=2)
    darker = jitter_colours(image, replace(SMALL, value=0.5), Draws())
    np.testing.assert_allclose(darker[0, 0], [100, 50, 50], atol=2)
