"""Made-up data: boxes fit the drawn pixels, the same seed gives the same files, and nothing of the user's is lost."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")

from detector.data import sample_data  # noqa: E402
from detector.data.checks import check_data  # noqa: E402
from detector.data.sample_data import write_sample_data  # noqa: E402
from detector.data.sample_scenes import draw_scene  # noqa: E402
from detector.data.sample_shapes import CLASSES  # noqa: E402
from detector.data.source import load_data  # noqa: E402
from detector.errors import ConfigError  # noqa: E402
from maenas.errors import OutputError  # noqa: E402


def files_of(folder):
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([7, index])) for index in range(80)]


def test_boxes_are_tight_around_the_visible_pixels(scenes):
    for scene in scenes:
        for number, drawn in enumerate(scene.objects):
            mask = scene.owners == number
            x, y, width, height = drawn.box
            assert drawn.area == mask.sum() > 0
            inside = mask[y : y + height, x : x + width]
            assert inside.sum() == drawn.area, "nothing of it lies outside of the box"
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_owned_pixels_are_those_that_were_drawn(monkeypatch):
    """Of a picture drawn twice, the second time without its last object, the pixels that differ are the object's."""
    from detector.data import sample_scenes

    monkeypatch.setattr(sample_scenes, "_photographed", lambda pixels, rng: np.round(pixels).astype(np.uint8))
    paint, calls = sample_scenes._paint, []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) != skipped:
            paint(*arguments, **options)

    monkeypatch.setattr(sample_scenes, "_paint", counted)
    compared = 0
    for seed in range(12):
        skipped = -1
        calls.clear()
        whole = draw_scene(np.random.default_rng(seed))
        skipped, expected = len(calls), len(whole.objects) - 1
        if expected < 0 or whole.objects[-1].is_crowd:
            continue
        # The last object is the last that is painted, and nothing is drawn from the generator after it.
        calls.clear()
        without = draw_scene(np.random.default_rng(seed))
        if len(without.objects) != len(whole.objects) or not np.array_equal(without.owners, whole.owners):
            continue
        changed = (whole.image.astype(int) - without.image).any(axis=2)
        rows, columns = np.nonzero(changed)
        x, y, width, height = whole.objects[expected].box
        # Pixels that are less than half covered make the changed part larger, by two where it ends in a point.
        for drawn, marked in (
            (columns.min(), x),
            (rows.min(), y),
            (columns.max() + 1, x + width),
            (rows.max() + 1, y + height),
        ):
            assert abs(int(drawn) - marked) <= 2
        assert not (~changed & (whole.owners == expected)).sum() > 0.02 * whole.objects[expected].area
        compared += 1
    assert compared >= 5


def test_hard_and_easy_cases_occur(scenes):
    objects = [(scene, drawn) for scene in scenes for drawn in scene.objects]
    sides = np.array([max(drawn.box[2:]) for _, drawn in objects if not drawn.is_crowd])
    at_border = [
        drawn.box[0] == 0 or drawn.box[1] == 0 or drawn.box[0] + drawn.box[2] == scene.owners.shape[1]
        for scene, drawn in objects
    ]
    assert {drawn.label for _, drawn in objects} == set(range(len(CLASSES)))
    assert 0 < sum(not scene.objects for scene in scenes) < 20
    assert 1 <= sum(drawn.is_crowd for _, drawn in objects) < 20
    assert 0.75 < ((sides >= 24) & (sides <= 170)).mean() < 1 and (sides < 24).any() and sum(at_border) > 3
    assert len({scene.owners.shape for scene in scenes}) > 50
    assert all(256 <= side <= 384 for scene in scenes for side in scene.owners.shape)


def test_files_and_repeatability(tmp_path):
    counts = write_sample_data(tmp_path / "a", num_train=12, seed=3)
    write_sample_data(tmp_path / "b", num_train=12, seed=3)
    write_sample_data(tmp_path / "c", num_train=12, seed=4)
    write_sample_data(tmp_path / "d", num_train=14, seed=3)
    a, b, c, d = (files_of(tmp_path / name) for name in "abcd")
    assert a == b and a["images/train/train_00000.jpg"] != c["images/train/train_00000.jpg"]
    assert {name: d[name] for name in a if name.endswith(".jpg")} == {n: a[n] for n in a if n.endswith(".jpg")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"], "no temporary folder is left"
    data = load_data(tmp_path / "a" / "data.yaml")
    assert data.class_names == tuple(CLASSES) and len(data.train) == 12 and len(data.val) == 3
    for split, one in (("train", data.train), ("val", data.val)):
        ignored = sum(int(record.ignored.sum()) for record in one.images)
        boxes = sum(len(record.labels) for record in one.images) - ignored
        assert counts[split] == {"images": len(one), "boxes": boxes, "crowds": ignored}
    report = check_data(tmp_path / "a")
    assert not [finding for finding in report.findings if not finding.code.startswith("class-not-in")]
    with pil.open(tmp_path / "a" / "images" / "train" / "train_00000.jpg") as image:
        assert image.format == "JPEG" and image.quantization[0][0] == 3  # 16 at quality 50, times 0.2 at 90


def test_a_folder_in_use(tmp_path):
    folder = tmp_path / "set"
    write_sample_data(folder, num_train=2)
    first = files_of(folder)
    with pytest.raises(OutputError, match="set: holds files already; expected a new folder, or --force"):
        write_sample_data(folder, num_train=1, seed=1)
    assert files_of(folder) == first
    (folder / "mine.txt").write_text("precious")
    write_sample_data(folder, num_train=1, seed=1, force=True)
    now = files_of(folder)
    assert (folder / "mine.txt").read_text() == "precious" and now["data.yaml"] == first["data.yaml"]
    assert sum(name.endswith(".jpg") for name in now) == 2, "no picture of the earlier set is left"


def test_other_peoples_files_are_never_replaced(tmp_path):
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="holds images of something else, which is never overwritten"):
        write_sample_data(folder, num_train=1, force=True)
    assert files_of(folder).keys() == {"images/a.jpg"}
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: is a file; expected a new folder"):
        write_sample_data(tmp_path / "file", num_train=1, force=True)


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def draw(rng):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(rng)

    monkeypatch.setattr(sample_data, "draw_scene", draw)
    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "set", num_train=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"), [({"num_train": 0}, "number of images is 0"), ({"seed": -1}, "seed is -1")]
)
def test_numbers_out_of_range(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        write_sample_data(tmp_path / "set", **options)
    assert list(tmp_path.iterdir()) == []
