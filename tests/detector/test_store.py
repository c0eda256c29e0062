"""The cache gives what the files give, or says that it cannot; huge photographs are decoded small."""

from __future__ import annotations

import multiprocessing
import os
import threading

import numpy as np
import pytest

pytest.importorskip("cv2")
pil = pytest.importorskip("PIL.Image")

from augment_cases import dataset_of, painted, record_of, rectangles  # noqa: E402

from detector.data import memory, store  # noqa: E402
from detector.data.store import ImageStore  # noqa: E402
from detector.errors import ConfigError, InputError  # noqa: E402
from detector.images import read_image, read_reduced  # noqa: E402


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return rectangles(tmp_path_factory.mktemp("shapes"), 6)


@pytest.mark.parametrize("tile", [(32, 64), (96, 96), (640, 640)])
def test_kept_images_are_those_of_the_files(shapes, tile):
    """Small tiles are kept as tiles, large ones as the image itself."""
    plain, kept = ImageStore(shapes, tile_size=tile), ImageStore(shapes, tile_size=tile, cache="ram")
    for index in range(len(shapes)):
        for size in (tile, (64, 64), (128, 32)):
            for name in ("stretched", "fitted"):
                expected, found = (getattr(source, name)(index, size) for source in (plain, kept))
                np.testing.assert_array_equal(found.image, expected.image)
                np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_what_is_kept_is_not_read_again(shapes, monkeypatch):
    kept = ImageStore(shapes, tile_size=(32, 32), cache="ram")

    def refuse(*_, **__):
        raise InputError("read again")

    monkeypatch.setattr(store, "read_reduced", refuse)
    kept.stretched(0, (32, 32))
    kept.fitted(0, (32, 32))
    with pytest.raises(InputError, match="read again"):
        kept.stretched(0, (64, 64))  # of a tile this size could not be made


def test_a_cache_that_does_not_fit_is_refused(shapes, monkeypatch):
    monkeypatch.setattr(store, "available_bytes", lambda: 10_000)
    with pytest.raises(ConfigError, match=r"cache is 'ram', which needs 0.0 GB for 6 images; expected at most 0.0 GB"):
        ImageStore(shapes, tile_size=(64, 64), cache="ram")
    monkeypatch.setattr(store, "available_bytes", lambda: None)
    ImageStore(shapes, tile_size=(64, 64), cache="ram")


def test_other_caches_are_unknown(shapes):
    with pytest.raises(ConfigError, match="cache is 'disk'; expected one of none, ram"):
        ImageStore(shapes, tile_size=(64, 64), cache="disk")


def test_a_broken_image_stays_broken_in_the_cache(tmp_path, shapes):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    dataset = dataset_of([record_of(tmp_path / "broken.jpg", (9, 9), [], [], stated=False), shapes.images[0]])
    kept = ImageStore(dataset, tile_size=(64, 64), cache="ram")
    kept.stretched(1, (64, 64))
    with pytest.raises(InputError, match=r"broken\.jpg"):
        kept.stretched(0, (64, 64))


def test_images_with_a_box_to_train_on(tmp_path, shapes):
    crowd = record_of(tmp_path / "a.png", (9, 9), [(1, 1, 5, 5)], [0], ignored=[True])
    empty = record_of(tmp_path / "b.png", (9, 9), [], [])
    assert ImageStore(dataset_of([crowd, shapes.images[0], empty]), tile_size=(32, 32)).annotated.tolist() == [1]


@pytest.fixture(scope="module")
def panorama(tmp_path_factory):
    """25 megapixels, smooth, as a JPEG and turned by EXIF, with a box around a green rectangle."""
    path = tmp_path_factory.mktemp("huge") / "panorama.jpg"
    exif = pil.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    stored = painted((2500, 10_000), [(4000, 500, 8000, 1500)], [1])
    pil.fromarray(stored).save(path, quality=70, exif=exif)
    return path


def test_huge_photographs_are_decoded_small(panorama):
    reduced, size = read_reduced(panorama, side=600)
    assert size == (10_000, 2500)  # upright
    assert reduced.shape == (2500, 625, 3)
    whole, size = read_reduced(panorama, side=2000)
    assert size == whole.shape[:2] == (10_000, 2500)


def test_boxes_fit_a_photograph_that_was_decoded_small(panorama):
    # Turned clockwise, x becomes y, and y is counted from the other side.
    record = record_of(panorama, (10_000, 2500), [(1000, 4000, 2000, 8000)], [1])
    sample = ImageStore(dataset_of([record]), tile_size=(160, 160)).stretched(0, (160, 160))
    np.testing.assert_allclose(sample.boxes, [[64, 64, 128, 128]])
    green = (sample.image[..., 1].astype(int) - sample.image[..., 0] > 100).nonzero()
    np.testing.assert_allclose(
        [green[1].min(), green[0].min(), green[1].max(), green[0].max()], [64, 64, 127, 127], atol=2
    )


def test_photographs_stay_twice_as_large_as_tiles(panorama, monkeypatch):
    sides = []
    monkeypatch.setattr(
        store, "read_reduced", lambda path, *, side: sides.append(side) or read_reduced(path, side=side)
    )
    record = record_of(panorama, (10_000, 2500), [], [])
    ImageStore(dataset_of([record]), tile_size=(96, 160)).stretched(0, (32, 32))
    assert sides == [320]


def test_ordinary_photographs_are_decoded_whole(tmp_path):
    path = tmp_path / "photo.jpg"
    pil.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(path)
    image, size = read_reduced(path, side=10)
    assert size == (300, 400)
    np.testing.assert_array_equal(image, read_image(path))


def test_free_memory_is_the_smaller_of_machine_and_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == 1_024_000  # no container
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 1_024_000  # no limit
    (tmp_path / "memory.max").write_text("900000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert memory.available_bytes() == 500_000


def test_free_memory_of_other_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() > 0
    monkeypatch.delattr("os.sysconf")
    assert memory.available_bytes() is None


def test_threads_that_read_stay_so_that_no_fork_meets_one_that_ends(shapes):
    ImageStore(shapes, tile_size=(64, 64), cache="ram")
    reading = [thread for thread in threading.enumerate() if thread.name.startswith("maenas-images")]
    assert reading
    ImageStore(shapes, tile_size=(64, 64), cache="ram")
    assert all(thread.is_alive() for thread in reading)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_reads_with_threads_of_its_own(shapes):
    ImageStore(shapes, tile_size=(64, 64), cache="ram")
    child = multiprocessing.get_context("fork").Process(
        target=ImageStore, args=(shapes,), kwargs={"tile_size": (64, 64), "cache": "ram"}
    )
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
