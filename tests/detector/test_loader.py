"""Batches: the same for any number of workers and processes, and wherever a run is taken up again."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cv2")
pil = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")

from augment_cases import dataset_of, record_of, rectangles  # noqa: E402

from detector.data import loader as loader_module  # noqa: E402
from detector.data import store  # noqa: E402
from detector.data.batches import MadeBatch, PackedBatch  # noqa: E402
from detector.data.loader import AugmentSettings, TrainLoader, count_iterations  # noqa: E402
from detector.data.plan import epoch_order, sample_generator  # noqa: E402
from detector.errors import ConfigError, DataError, TrainingError  # noqa: E402
from detector.targets import Batch, Targets  # noqa: E402

SETTINGS = AugmentSettings(image_size=(64, 64))
PLAIN = replace(SETTINGS, mosaic=0.0, flip=0.0, sada=False)
RUN = {"batch_size": 4, "seed": 3, "total_iterations": 9, "final_epochs": 1}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return rectangles(tmp_path_factory.mktemp("shapes"), 14)


@pytest.fixture(scope="module")
def flats(tmp_path_factory):
    """Ten images of one grey value each, ten times their number."""
    folder = tmp_path_factory.mktemp("flats")
    records = []
    for index in range(10):
        path = folder / f"{index}.png"
        pil.fromarray(np.full((20, 20, 3), 10 * index, np.uint8)).save(path)
        records.append(record_of(path, (20, 20), [(2, 2, 12, 12)], [index % 3], image_id=index))
    return dataset_of(records)


@pytest.fixture(scope="module")
def expected(shapes):
    return list(TrainLoader(shapes, SETTINGS, **RUN))


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for batch, other in zip(found, wanted, strict=True):
        assert batch.index == other.index
        assert torch.equal(batch.images, other.images)
        for name in ("boxes", "labels", "valid"):
            assert torch.equal(getattr(batch.targets, name), getattr(other.targets, name))


def shown(batches):
    """Indices of the images of `flats` in each batch."""
    return [[int(image[0, 0, 0]) // 10 for image in batch.images] for batch in batches]


def test_what_a_batch_is(expected):
    assert [batch.index for batch in expected] == list(range(9))
    for batch in expected:
        assert batch.images.shape == (4, 3, 64, 64) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        targets = batch.targets
        assert targets.boxes.shape == (*targets.valid.shape, 4) and targets.boxes.dtype == torch.float32
        assert targets.labels.dtype == torch.int64 and targets.valid.dtype == torch.bool
        assert targets.valid.any()
        x1, y1, x2, y2 = targets.boxes[targets.valid].unbind(1)
        assert (x1 >= 0).all() and (x1 < x2).all() and (x2 <= 64).all() and (y1 < y2).all() and (y2 <= 64).all()


def test_channels_come_first(flats, tmp_path):
    path = tmp_path / "red.png"
    pil.fromarray(np.full((20, 20, 3), (200, 100, 50), np.uint8)).save(path)
    dataset = dataset_of([record_of(path, (20, 20), [], [])])
    (batch,) = TrainLoader(dataset, PLAIN, batch_size=1, seed=0, total_iterations=1)
    assert batch.images[0, :, 5, 5].tolist() == [200, 100, 50]


@pytest.mark.parametrize("options", [{"num_workers": 1}, {"num_workers": 2}, {"cache": "ram"}])
def test_workers_and_caches_change_nothing(shapes, expected, options):
    assert_equal(list(TrainLoader(shapes, SETTINGS, **RUN, **options)), expected)


def test_forked_workers_share_the_cache(shapes, expected):
    loader = TrainLoader(shapes, SETTINGS, **RUN, cache="ram", num_workers=2)
    assert_equal(list(loader), expected)
    assert_equal(list(loader), expected)  # once more from the start


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="asks for the cores as Linux does")
def test_more_workers_than_cores_are_no_warning(shapes, expected, monkeypatch, recwarn):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert_equal(list(TrainLoader(shapes, SETTINGS, **RUN, num_workers=2)), expected)
    assert not [str(warning.message) for warning in recwarn if "worker" in str(warning.message)]


@pytest.mark.slow
def test_workers_may_be_started_afresh(shapes, expected, monkeypatch):
    """As on systems that do not fork; each imports torch."""
    monkeypatch.setattr(loader_module, "_context", lambda: "spawn")
    assert_equal(list(TrainLoader(shapes, SETTINGS, **RUN, num_workers=1)), expected)


@pytest.mark.parametrize("start", [1, 4, 8, 9])
def test_a_run_taken_up_again_goes_on_as_if_it_had_not_stopped(shapes, expected, start):
    loader = TrainLoader(shapes, SETTINGS, **RUN, start_iteration=start)
    assert len(loader) == 9 - start
    assert_equal(list(loader), expected[start:])


def test_processes_together_see_what_one_sees(shapes, expected):
    parts = [list(TrainLoader(shapes, SETTINGS, **RUN, rank=rank, world_size=2)) for rank in (0, 1)]
    for whole, first, second in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), whole.images)
        for name in ("boxes", "labels"):
            pieces = [getattr(part.targets, name)[part.targets.valid] for part in (first, second)]
            assert torch.equal(torch.cat(pieces), getattr(whole.targets, name)[whole.targets.valid])


def test_another_length_shares_the_cache(shapes, expected, monkeypatch):
    first = TrainLoader(shapes, SETTINGS, **RUN | {"total_iterations": 30}, cache="ram")
    monkeypatch.setattr(store, "read_reduced", None)  # nothing is read again
    again = first.with_length(total_iterations=9, final_epochs=1, start_iteration=5)
    assert_equal(list(again), expected[5:])
    assert len(first) == 30


def test_each_epoch_shows_each_image_once(flats):
    loader = TrainLoader(flats, PLAIN, batch_size=5, seed=1, total_iterations=6)
    assert loader.iterations_per_epoch == 2
    batches = shown(loader)
    epochs = [batches[0] + batches[1], batches[2] + batches[3], batches[4] + batches[5]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == epoch_order(10, seed=1, epoch=0).tolist()


@pytest.mark.parametrize(("last", "sizes"), [("drop", [4, 4, 4, 4]), ("keep", [4, 4, 2, 4]), ("fill", [4, 4, 4, 4])])
def test_the_last_batch_of_an_epoch(flats, last, sizes):
    loader = TrainLoader(flats, PLAIN, batch_size=4, seed=1, total_iterations=4, last=last)
    batches = shown(loader)
    assert [len(batch) for batch in batches] == sizes
    order = epoch_order(10, seed=1, epoch=0).tolist()
    if last == "drop":
        assert loader.iterations_per_epoch == 2 and batches[:2] == [order[:4], order[4:8]]
    else:
        rest = order[8:] + order[:2] if last == "fill" else order[8:]
        assert loader.iterations_per_epoch == 3 and batches[:3] == [order[:4], order[4:8], rest]


def test_views_come_again_in_turn(shapes):
    """Mosaics included: with two views an image looks in epoch 2 as in epoch 0, in whatever batch and process."""
    chosen = replace(SETTINGS, views=2, sada=False, scale=(0.8, 1.2))
    options = {"batch_size": 14, "seed": 3, "total_iterations": 4, "world_size": 2}
    parts = [list(TrainLoader(shapes, chosen, rank=rank, **options)) for rank in range(2)]
    pairs = zip(*parts, strict=True)
    epochs = [{image.numpy().tobytes() for batch in pair for image in batch.images} for pair in pairs]
    assert [len(epoch) for epoch in epochs] == [14] * 4
    assert epochs[0] == epochs[2] and epochs[1] == epochs[3] and not epochs[0] & epochs[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, math.inf),
        ({"sada": False}, math.inf),
        ({"sada": False, "mosaic": 0.0}, 2),
        ({"sada": False, "mosaic": 0.0, "flip": 1.0}, 1),
        ({"sada": False, "mosaic": 0.0, "flip_vertical": 0.5, "rotate_90": 0.1}, 16),
        ({"sada": False, "mosaic": 0.0, "hue": 0.1}, math.inf),
        ({"sada": False, "hue": 0.1, "views": 3}, 3),
        ({"views": 3}, math.inf),
    ],
)
def test_different_samples_of_an_image(changes, expected):
    assert replace(SETTINGS, **changes).samples_per_image == expected


def test_a_batch_larger_than_the_data_set_may_be_filled(flats):
    (batch,) = shown(TrainLoader(flats, PLAIN, batch_size=24, seed=0, total_iterations=1, last="fill"))
    assert sorted(Counter(batch).values()) == [2] * 6 + [3] * 4


@given(st.integers(1, 200), st.integers(1, 200))
def test_batches_of_an_epoch(num_images, batch_size):
    kept = count_iterations(num_images, batch_size, last="keep")
    assert (kept - 1) * batch_size < num_images <= kept * batch_size
    assert count_iterations(num_images, batch_size, last="fill") == kept
    if batch_size <= num_images:
        dropped = count_iterations(num_images, batch_size)
        assert dropped * batch_size <= num_images < (dropped + 1) * batch_size


def test_streams_of_random_numbers_differ():
    """Order, sizes and samples never draw from the same stream, neither do neighbouring samples or seeds."""
    firsts = [
        sample_generator(seed=seed, number=number, position=position).random()
        for seed in range(3)
        for number in range(3)
        for position in range(3)
    ]
    assert len(set(firsts)) == 27
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_final_epochs_show_images_as_they_are(flats):
    chosen = replace(PLAIN, mosaic=1.0)
    loader = TrainLoader(flats, chosen, batch_size=5, seed=1, total_iterations=6, final_epochs=1)
    flat = [bool((batch.images == batch.images[:, :, :1, :1]).all()) for batch in loader]
    assert flat == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("ramp", "in_final", "expected"),
    [
        ("all", True, [(0, True), (0.25, True), (0.5, True), (0.75, True)]),
        ("all", False, [(0, True), (0.25, True), (0.5, False), (0.75, False)]),
        ("until_final", True, [(0, True), (0.5, True), (1, True), (1, True)]),
    ],
)
def test_when_sada_is_on_and_how_often(flats, ramp, in_final, expected):
    chosen = replace(SETTINGS, sada_ramp=ramp, sada_in_final_epochs=in_final)
    loader = TrainLoader(flats, chosen, batch_size=5, seed=0, total_iterations=4, final_epochs=1)
    moments = [loader._plan.moment(number) for number in range(4)]
    assert [(moment.progress, moment.sada) for moment in moments] == expected
    assert [moment.mixing for moment in moments] == [True, True, False, False]


def test_sizes_drawn_by_chance(shapes):
    options = {"multi_scale": (64, 96, 128), "multi_scale_every": 2, "total_iterations": 24, "batch_size": 2, "seed": 5}
    ranks = [TrainLoader(shapes, PLAIN, **options, rank=rank, world_size=2) for rank in (0, 1)]
    sizes = [[tuple(batch.images.shape[2:]) for batch in loader] for loader in ranks]
    assert sizes[0] == sizes[1]
    assert sizes[0][::2] == sizes[0][1::2]
    assert set(sizes[0]) == {(64, 64), (96, 96), (128, 128)}


@pytest.fixture
def with_broken(flats, tmp_path):
    """Twenty images; the files of the given number of them are no pictures."""

    def make(count):
        paths = [tmp_path / f"broken{index}.jpg" for index in range(count)]
        for path in paths:
            path.write_bytes(b"no picture")
        records = [record_of(path, (20, 20), [(2, 2, 9, 9)], [0]) for path in paths]
        return dataset_of([*records, *(flats.images * 2)[: 20 - count]])

    return make


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_named_once_and_replaced(with_broken, caplog, num_workers):
    loader = TrainLoader(with_broken(2), PLAIN, batch_size=5, seed=0, total_iterations=8, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        assert len(list(loader)) == 8
    assert len(caplog.messages) == 2
    assert all(
        "is no image that can be read" in message and "takes its place" in message for message in caplog.messages
    )
    assert loader.num_broken >= 4  # each in both epochs


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_broken_images_end_the_run(with_broken, num_workers):
    loader = TrainLoader(with_broken(3), PLAIN, batch_size=5, seed=0, total_iterations=8, num_workers=num_workers)
    with pytest.raises(
        DataError, match=r"made/train: 3 of 20 images cannot be read, more than 10%; the last: .*broken"
    ):
        list(loader)


def test_an_error_of_a_worker_comes_as_one_line(tmp_path):
    dataset = dataset_of([record_of(tmp_path / "gone.jpg", (9, 9), [], [])] * 4)
    with pytest.raises(
        DataError, match=r"^made/train: 50 images in a row cannot be read; \S*gone.jpg: no such file[^\n]*$"
    ):
        list(TrainLoader(dataset, PLAIN, batch_size=2, seed=0, total_iterations=2, num_workers=1))


def test_a_worker_that_dies(flats, monkeypatch):
    monkeypatch.setattr(store, "read_reduced", lambda *_, **__: os._exit(1))
    with pytest.raises(TrainingError, match=r"DataLoader worker .* exited unexpectedly.*; out of memory, most often"):
        list(TrainLoader(flats, PLAIN, batch_size=2, seed=0, total_iterations=2, num_workers=1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_pass_over_interrupts(number, flats, monkeypatch):
    """Ctrl-C reaches all processes of a terminal, SIGTERM often all of a job; the training process answers them."""
    read = store.read_reduced

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), number)
        return read(*arguments, **options)

    monkeypatch.setattr(store, "read_reduced", interrupted)
    loader = TrainLoader(flats, PLAIN, batch_size=5, seed=0, total_iterations=2, num_workers=1)
    assert len(list(loader)) == 2


def test_batches_go_through_a_pipe_where_shared_memory_is_small(shapes, expected, monkeypatch):
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    loader = TrainLoader(shapes, SETTINGS, **RUN, num_workers=1)
    kinds = {type(item) for item in loader._made()}
    assert kinds == {PackedBatch}
    assert_equal(list(loader), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_pinned(shapes, expected):
    found = list(TrainLoader(shapes, SETTINGS, **RUN, num_workers=1))
    assert all(batch.images.is_pinned() and batch.targets.boxes.is_pinned() for batch in found)
    assert_equal(found, expected)


def test_packing_is_undone():
    targets = Targets.from_lists([torch.ones(2, 4)], [torch.tensor([1, 2])])
    made = MadeBatch(Batch(torch.ones(1, 3, 2, 2, dtype=torch.uint8), targets, 7), error="why")
    again = PackedBatch.pack(made).unpack()
    assert_equal([again.batch], [made.batch])
    assert again.error == "why"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 11}, "batch_size is 11 with only 10 training images; expected at most 10, or last batches"),
        ({"batch_size": 0}, "batch_size is 0 with 10 training images; expected at least 1 of each"),
        ({"last": "loop"}, "last is 'loop'; expected one of drop, keep, fill"),
        ({"world_size": 3}, "batch_size is 4 and last is 'drop' with 3 processes; expected a multiple of 3"),
        ({"world_size": 2, "last": "keep"}, "expected a multiple of 2, and no smaller last batch"),
        ({"rank": 1}, "rank is 1; expected 0 ... 0"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"num_workers": -1}, "num_workers is -1; expected at least 0"),
        ({"total_iterations": 0}, "total_iterations is 0; expected at least 1"),
        ({"start_iteration": 10}, "start_iteration is 10; expected 0 ... 9"),
        ({"final_epochs": -1}, "final_epochs is -1; expected at least 0"),
        ({"multi_scale": (64, 65)}, r"multi_scale is \[65, 65\]; expected multiples of 32"),
        ({"multi_scale_every": 0}, "multi_scale_every is 0; expected at least 1"),
        ({"cache": "disk"}, "cache is 'disk'; expected one of none, ram"),
    ],
)
def test_arguments_that_make_no_sense(flats, change, message):
    with pytest.raises(ConfigError, match=message):
        TrainLoader(flats, SETTINGS, **RUN | change)


def test_a_cache_that_workers_would_not_share(flats, monkeypatch):
    monkeypatch.setattr(loader_module, "_context", lambda: None)
    with pytest.raises(
        ConfigError, match="cache is 'ram' with workers that do not share memory; expected num_workers 0"
    ):
        TrainLoader(flats, SETTINGS, **RUN, cache="ram", num_workers=2)
