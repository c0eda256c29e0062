"""Where images come from: files, folders, patterns, lists, videos."""

from __future__ import annotations

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")

from detector.errors import InputError, MissingExtraError  # noqa: E402
from detector.sources import open_source  # noqa: E402


def picture(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    pil.new("RGB", (6, 4), (value, 0, 0)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images, a text file, a hidden image, and an image in a folder of its own."""
    root = tmp_path / "photos"
    for name in ("img10.png", "img2.PNG", "b.jpg", ".hidden.png", "more/c.png"):
        picture(root / name)
    (root / "notes.txt").write_text("hello")
    return root


def names(source):
    return [item.path.name for item in source]


def test_an_image_file(tmp_path):
    path = picture(tmp_path / "a.png", 7)
    for given in (path, str(path)):
        source = open_source(given)
        assert (source.kind, source.length, source.paths, source.fps) == ("image", 1, (path,), None)
        (item,) = source
        assert item.name == str(path) and item.image[0, 0].tolist() == [7, 0, 0] and item.error is None
        assert (item.frame, item.time_s) == (None, None)
    assert open_source(source) is source


def test_an_image_needs_no_known_suffix(tmp_path):
    path = picture(tmp_path / "a.png").rename(tmp_path / "upload")
    assert next(iter(open_source(path))).image.shape == (4, 6, 3)


def test_a_folder_in_natural_order(folder):
    source = open_source(folder)
    assert names(source) == ["b.jpg", "img2.PNG", "img10.png"] == names(source)
    assert (source.kind, source.length, source.num_ignored) == ("collection", 3, 1)


def test_patterns(folder):
    assert names(open_source(f"{folder}/*.png")) == ["img10.png"]
    assert names(open_source(f"{folder}/**/*.png")) == ["img10.png", "c.png"]
    everything = open_source(f"{folder}/*")
    assert (everything.length, everything.num_ignored) == (3, 1)


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path):
    path = picture(tmp_path / "a[1].png")
    assert open_source(str(path)).paths == (path,)


def test_pictures_in_memory(tmp_path):
    array, image = np.zeros((3, 5, 3), np.uint8), pil.new("L", (5, 3), 9)
    assert open_source(array).kind == open_source(image).kind == "image"
    assert next(iter(open_source(image))).image[0, 0].tolist() == [9, 9, 9]
    path = picture(tmp_path / "a.png")
    source = open_source([array, image, path, str(path)])
    assert (source.kind, source.length, source.paths) == ("collection", 4, (path, path))
    assert [item.name for item in source] == ["image 1", "image 2", str(path), str(path)]
    endless = open_source(iter([array, image]))
    assert endless.length is None and len(list(endless)) == 2


def test_broken_files_of_a_collection_are_items_with_an_error(folder):
    (folder / "img2.PNG").write_bytes(b"")
    found = list(open_source(folder))
    assert [item.image is None for item in found] == [False, True, False]
    assert "img2.PNG: is empty" in found[1].error
    listed = list(open_source([folder / "none.jpg", np.zeros((2, 2, 3)), folder / "b.jpg"]))
    assert "no such file" in listed[0].error and "image 2: array has dtype float64" in listed[1].error
    assert listed[2].error is None


def test_a_single_broken_file_raises(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(InputError, match=r"a\.jpg: is no image"):
        list(open_source(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ftp://example.org/a.jpg", "is a URL of the kind ftp; expected one of rtsp"),
        (-1, "is a int"),
        (True, "is a bool"),
        ("none.jpg", r"none\.jpg: no such file or folder"),
        ("", "source is ''; expected an image"),
        ("none/*.jpg", "pattern holds no images"),
        ([], "list of images is empty"),
        (3.5, "is a float; expected a PIL image"),
        (None, "is a NoneType"),
        ("none.mp4", r"none\.mp4: no such file"),
    ],
)
def test_sources_that_hold_nothing(source, message):
    with pytest.raises(InputError, match=message):
        open_source(source)


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match=r"folder holds no images; expected files ending in \.jpg"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="folder holds no images among its 1 files"):
        open_source(tmp_path)


@pytest.fixture
def clip(tmp_path):
    """Six frames, 64x48, 10 fps: left half red, right half from black to blue."""
    pytest.importorskip("cv2")
    from detector.video import VideoWriter

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=10.0, size=(48, 64)) as writer:
        for index in range(6):
            writer.write(frame(index))
    return path


def frame(index):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = (220, 30, 20)
    pixels[:, 32:] = (0, 0, 40 * index)
    return pixels


def test_a_video_round_trip_keeps_colours_size_and_rate(clip):
    source = open_source(clip)
    assert (source.kind, source.length, source.fps) == ("video", 6, 10.0)
    items = list(source)
    assert [item.frame for item in items] == list(range(6))
    assert [item.time_s for item in items] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    for item in items:
        # The encoder is lossy; red and blue swapped would differ by 200.
        difference = np.abs(item.image.astype(int) - frame(item.frame))[:, 4:-4]
        assert item.image.shape == (48, 64, 3) and np.median(difference, axis=(0, 1)).max() < 16
    assert len(list(source)) == 6
    assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]


def test_a_video_given_up_leaves_nothing(tmp_path):
    pytest.importorskip("cv2")
    from detector.video import VideoWriter

    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "clip.mp4", fps=10.0, size=(48, 64)) as writer:
        writer.write(frame(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="frame has shape"), VideoWriter(tmp_path / "b.mp4", fps=5, size=(8, 8)) as w:
        w.write(frame(0))


def test_a_file_that_is_no_video(tmp_path):
    pytest.importorskip("cv2")
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(InputError, match=r"a\.mp4: is no video that OpenCV can read"):
        open_source(tmp_path / "a.mp4")


def test_video_without_opencv_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(MissingExtraError, match=r"reading video needs the package cv2"):
        open_source(tmp_path / "a.mp4")
