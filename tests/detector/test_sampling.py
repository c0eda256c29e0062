"""Sampling: shares by hand, frequencies that match the formulas, and batches that depend on seed and number alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from union_cases import space_of, union_in_memory

from detector.data.dataset import Dataset
from detector.data.plan import epoch_order
from detector.data.sampling import (
    Partners,
    SamplingSettings,
    draw_images,
    image_shares,
    repeat_factors,
    source_shares,
)
from detector.data.sampling_report import count_sources, sampling_notes, sampling_table


def test_source_shares_by_hand():
    assert source_shares([900, 100], 0.5).tolist() == [0.75, 0.25]
    assert source_shares([900, 100], 1.0).tolist() == [0.9, 0.1]
    assert source_shares([900, 0, 100], 0.0).tolist() == [0.5, 0.0, 0.5]


def test_repeat_factors_by_hand():
    """Class 1 is in one of 16 images, class 2 in four, class 3 in none; with t = 1/4 only class 1 is rare."""
    holds = [np.array(labels, np.int64) for labels in [[0], [0, 1], [], [2, 2], [2], [2], [2], *[[0]] * 9]]
    factors = repeat_factors(holds, 4, 1 / 4)
    assert factors[1] == math.sqrt((1 / 4) / (1 / 16)) == 2.0
    assert (np.delete(factors, 1) == 1).all()


def made_up(class_aware: str = "union", **settings: float) -> tuple[Dataset, SamplingSettings]:
    """900 and 100 images; in the small source class 2 is in one image of 100."""
    space = space_of({"large": ("a", "b"), "small": ("b", "rare")})
    images = [(0, [number % 2]) for number in range(900)] + [(1, [1]) for _ in range(99)] + [(1, [1, 2])]
    return union_in_memory(space, images), SamplingSettings(class_aware=class_aware, **settings)


def test_image_shares_by_hand():
    """Source shares 30 : 10; in the small source the rare class counts sqrt(0.04 / 0.01) = 2 times."""
    dataset, settings = made_up(rare_share=0.04)
    shares = image_shares(dataset, settings)
    assert shares is not None and shares.sum() == pytest.approx(1)
    assert shares[:900] == pytest.approx(0.75 / 900)
    assert shares[900:999] == pytest.approx(0.25 / 101) and shares[999] == pytest.approx(0.25 * 2 / 101)


def test_nothing_to_weigh_gives_no_shares():
    dataset, _ = made_up()
    assert image_shares(dataset, SamplingSettings(source_power=1.0)) is None
    plain = Dataset("plain", ("a", "b", "c"), dataset.images[:900], (0, 1, 2))
    assert image_shares(plain, SamplingSettings(rare_share=1.0)) is None
    assert image_shares(plain, SamplingSettings(class_aware="always")) is None  # no class is rare
    assert image_shares(plain, SamplingSettings(class_aware="always", rare_share=1.0)) is not None


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200), st.integers(0, 2**32))
def test_counts_are_the_nearest_whole_numbers(weights, count, seed):
    shares = np.array(weights) / sum(weights)
    drawn = np.bincount(draw_images(shares, count, np.random.default_rng(seed)), minlength=len(shares))
    assert drawn.sum() == count
    assert (np.abs(drawn - count * shares) < 1 + 1e-6).all()


def test_frequencies_over_epochs_match_the_formula():
    """Image shares in the mean: z scores of 1000 images over 400 epochs, and the shares of sources and of a class."""
    dataset, settings = made_up(rare_share=0.04)
    shares = image_shares(dataset, settings)
    assert shares is not None
    epochs = [epoch_order(1000, seed=5, epoch=epoch, shares=shares) for epoch in range(400)]
    counts = np.stack([np.bincount(order, minlength=1000) for order in epochs])
    # An epoch holds floor or ceil of the expected number: a coin per epoch.
    part = 1000 * shares % 1
    z = (counts.sum(axis=0) - 400 * 1000 * shares) / np.sqrt(400 * part * (1 - part))
    chi_square = float((z**2).sum())
    assert abs(chi_square - 1000) < 6 * math.sqrt(2 * 1000)
    assert np.abs(z).max() < 5
    # Random order of images within an epoch leaves the sources' numbers to chance; in the mean they are 3 : 1.
    assert counts[:, :900].sum() / counts.sum() == pytest.approx(0.75, abs=0.005)
    # The rare class: 0.5 % of what is shown instead of 0.1 %.
    assert counts[:, 999].mean() == pytest.approx(1000 * 0.25 * 2 / 101, rel=0.05)


def test_an_order_depends_on_seed_and_epoch_alone():
    shares = np.array([0.5, 0.3, 0.1, 0.1])[np.arange(40) % 4] / 10
    first = epoch_order(40, seed=1, epoch=2, shares=shares)
    assert first.tolist() == epoch_order(40, seed=1, epoch=2, shares=shares).tolist()
    others = [epoch_order(40, seed=seed, epoch=epoch, shares=shares) for seed, epoch in [(1, 3), (2, 2)]]
    assert all(first.tolist() != other.tolist() for other in others)


def test_equal_shares_show_each_image_once():
    assert sorted(epoch_order(7, seed=0, epoch=0, shares=np.full(7, 1 / 7))) == list(range(7))


def test_partners_come_from_the_same_source_as_often_as_they_are_shown():
    sources = np.array([0, 0, 1, 1, 1])
    shares = np.array([0.25, 0.25, 0.25, 0.125, 0.125])
    partners = Partners(sources, np.array([True, False, True, False, True]), shares)
    rng = np.random.default_rng(0)
    drawn = np.bincount(partners.of(3).draw_several(rng, 4000), minlength=5) / 4000
    assert drawn == pytest.approx([0, 0, 0.5, 0.25, 0.25], abs=0.03)
    assert set(partners.of(0).draw_several(rng, 100)) == {0, 1}
    assert {partners.annotated(1).draw(rng) for _ in range(20)} == {0}
    assert {partners.annotated(3).draw(rng) for _ in range(50)} == {2, 4}


def test_the_report_says_what_is_shown():
    dataset, settings = made_up(rare_share=0.04)
    large, small = count_sources(dataset, settings)
    assert (large.images, large.image_share, large.shown_share) == (900, 0.9, pytest.approx(0.75))
    rare = small.classes[1]
    assert (rare.class_name, rare.images, rare.boxes, rare.image_share) == ("rare", 1, 1, 0.01)
    assert rare.shown_share == pytest.approx(0.5 / 101)
    notes = sampling_notes([large, small], num_classes=3)
    assert notes[0] == "large: 900 training images (90.0%), 900 boxes, 2 of 3 classes; 75.0% of what is shown"
    assert notes[1].endswith("25.0% of what is shown; images of its rarest classes 2 times as often")
    table = sampling_table([large, small]).splitlines()
    assert table[0] == "source,class_name,images,boxes,image_share,shown_share" and len(table) == 5
    assert table[4].startswith("small,rare,1,1,0.01,0.0049")
    plain = Dataset("plain", ("a", "b", "c"), dataset.images[:900], (0, 1, 2))
    assert not count_sources(plain, settings)
    always = SamplingSettings(class_aware="always", rare_share=0.9)
    (counted,) = count_sources(plain, always)
    assert counted.name == "plain" and counted.shown_share == pytest.approx(1)


def test_class_aware_batches_of_a_single_data_set(tmp_path):
    """A class in one of 20 images, with t = 0.45: three times as often as in a permutation, through the loader."""
    pytest.importorskip("cv2")
    torch = pytest.importorskip("torch")
    from augment_cases import dataset_of, record_of

    from detector.data.loader import AugmentSettings, TrainLoader

    image = pytest.importorskip("PIL.Image").fromarray(np.zeros((32, 32, 3), np.uint8))
    image.save(tmp_path / "a.png")
    records = [
        record_of(tmp_path / "a.png", (32, 32), [(2, 2, 12, 12)], [2 if number == 7 else 0], image_id=number)
        for number in range(20)
    ]
    plain = AugmentSettings(image_size=(32, 32), mosaic=0.0, flip=0.0, sada=False)
    settings = SamplingSettings(class_aware="always", rare_share=0.45)
    run = {"batch_size": 5, "seed": 2, "total_iterations": 200, "sampling": settings}
    batches = list(TrainLoader(dataset_of(records), plain, **run))
    shown = torch.stack([(batch.targets.labels == 2).sum() for batch in batches]).view(50, 4).sum(dim=1)
    # 20 * 3 / (19 + 3) = 2.73 times an epoch instead of once.
    assert set(shown.tolist()) == {2, 3}
    assert shown.float().mean().item() == pytest.approx(60 / 22, abs=0.25)
