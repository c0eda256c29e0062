"""Images of every kind as RGB arrays, and the resize that the networks expect."""

from __future__ import annotations

import io

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from detector.errors import InputError  # noqa: E402
from detector.images import as_rgb, read_image, resize, to_input  # noqa: E402

# A 16x16 block per colour, so that JPEG keeps the blocks' middles: red, green / blue, white, on the left two of three.
CORNERS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def corner_picture():
    """48 wide, 32 high: red and green in the upper corners, blue and white in the lower ones, black between."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 32:] = CORNERS["red"], CORNERS["green"]
    pixels[16:, :16], pixels[16:, 32:] = CORNERS["blue"], CORNERS["white"]
    return pixels


def corner_names(pixels):
    """Colours at the middles of the four corners, row by row."""
    height, width = pixels.shape[:2]
    middles = [(y, x) for y in (8, height - 8) for x in (8, width - 8)]
    distance = {n: [np.abs(pixels[m].astype(int) - c).sum() for m in middles] for n, c in CORNERS.items()}
    return [min(CORNERS, key=lambda name, k=k: distance[name][k]) for k in range(4)]


# By the EXIF standard: which picture corners a viewer shows upper left, upper right, lower left, lower right.
SHOWN = {
    1: ["red", "green", "blue", "white"],
    2: ["green", "red", "white", "blue"],
    3: ["white", "blue", "green", "red"],
    4: ["blue", "white", "red", "green"],
    5: ["red", "blue", "green", "white"],
    6: ["blue", "red", "white", "green"],
    7: ["white", "green", "blue", "red"],
    8: ["green", "white", "red", "blue"],
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = pil.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    pil.fromarray(corner_picture()).save(path, exif=exif, quality=95)
    pixels = read_image(path)
    assert pixels.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    assert corner_names(pixels) == SHOWN[orientation]
    assert np.array_equal(as_rgb(pil.open(path)), pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_hide_the_picture(tmp_path):
    path = tmp_path / "odd.jpg"
    pil.fromarray(corner_picture()).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff broken", quality=95)
    assert corner_names(read_image(path)) == SHOWN[1]


def saved(image, tmp_path, name, **options):
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


def test_grey_and_one_bit_become_three_equal_channels(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    pixels = saved(pil.fromarray(grey), tmp_path, "grey.png")
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.stack([grey] * 3, axis=2))
    assert (
        saved(pil.fromarray(grey > 100), tmp_path, "bit.png").tolist() == (np.stack([grey > 100] * 3, 2) * 255).tolist()
    )


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], np.uint16)
    expected = [[0, 0, 1, 1], [128, 254, 255, 255]]
    assert saved(pil.fromarray(values), tmp_path, "deep.png")[:, :, 1].tolist() == expected
    assert saved(pil.fromarray(values), tmp_path, "deep.tif")[:, :, 1].tolist() == expected
    assert as_rgb(values)[:, :, 2].tolist() == expected
    assert as_rgb(np.stack([values] * 3, 2))[:, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(tmp_path, mode):
    path = tmp_path / "wide.tif"
    pil.new(mode, (4, 4), 3).save(path)
    with pytest.raises(InputError, match=rf"wide\.tif: image has mode {mode} \(32 bits a pixel\); expected 8 or 16"):
        read_image(path)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    # 51 / 255 is a fifth: 0.2 * (0, 100, 255) + 0.8 * 255
    expected = [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]]
    assert saved(pil.fromarray(rgba), tmp_path, "rgba.png").tolist() == expected
    assert as_rgb(rgba).tolist() == expected
    grey_alpha = pil.fromarray(np.array([[[50, 255], [50, 0]]], np.uint8), mode="LA")
    assert saved(grey_alpha, tmp_path, "la.png").tolist() == [[[50] * 3, [255] * 3]]
    premultiplied = pil.fromarray(rgba[:, :2]).convert("RGBa")
    assert as_rgb(premultiplied).tolist() == [expected[0][:2]]
    assert as_rgb(grey_alpha.convert("La")).tolist() == [[[50] * 3, [255] * 3]]


def test_palette_with_a_transparent_entry(tmp_path):
    picture = pil.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    for x in range(3):
        picture.putpixel((x, 0), x)
    assert saved(picture, tmp_path, "plain.png").tolist() == [[[255, 0, 0], [0, 0, 255], [9, 9, 9]]]
    assert saved(picture, tmp_path, "hole.png", transparency=1).tolist() == [[[255, 0, 0], [255] * 3, [9, 9, 9]]]
    assert saved(picture, tmp_path, "hole.gif", transparency=1).tolist() == [[[255, 0, 0], [255] * 3, [9, 9, 9]]]


def test_a_colour_key_is_transparency(tmp_path):
    rgb = pil.fromarray(np.array([[[1, 2, 3], [7, 8, 9]]], np.uint8))
    assert saved(rgb, tmp_path, "key.png", transparency=(7, 8, 9)).tolist() == [[[1, 2, 3], [255] * 3]]


def test_cmyk_and_ycbcr_become_rgb(tmp_path):
    cmyk = pil.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(saved(cmyk, tmp_path, "cmyk.jpg", quality=95).astype(int) - (255, 0, 0)).max() < 8
    assert np.abs(as_rgb(pil.new("RGB", (2, 2), (200, 10, 30)).convert("YCbCr")).astype(int) - (200, 10, 30)).max() < 3


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [pil.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif").tolist() == [[[255, 0, 0]] * 4] * 3


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays_of_every_accepted_shape(shape):
    values = np.full(shape, 255, np.uint8)
    result = as_rgb(values)
    assert result.shape == (5, 7, 3) and result.min() == 255 and result.flags.c_contiguous


def test_array_channels_are_taken_as_rgb_and_strides_do_not_matter():
    values = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert as_rgb(values) is values
    flipped = as_rgb(values[:, ::-1, ::-1])
    assert flipped[0, 0].tolist() == values[0, -1, ::-1].tolist() and flipped.flags.c_contiguous


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32; expected uint8"),
        (np.zeros((4, 4), bool), "dtype bool; expected uint8"),
        (np.zeros((3, 40, 50), np.uint8), r"shape \(3, 40, 50\); expected .*; channels come last"),
        (np.zeros((2, 4, 4, 3), np.uint8), "give several images as a list"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        ([[1, 2]], "is a list; expected a PIL image or a numpy array"),
        ("a.jpg", "is a str"),
    ],
)
def test_other_arrays_and_things_are_refused(image, message):
    with pytest.raises(InputError, match=message):
        as_rgb(image)


def jpeg_bytes():
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pil.fromarray(noise).save(stream, format="JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file\n", "is no image that can be read"),
        (jpeg_bytes()[:600], "(cannot be read as an image|damaged)"),
        (jpeg_bytes()[:3], "is no image|cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "is no image|damaged|cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image that can be read"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken\.jpg: .*({message})"):
        read_image(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg: no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="is no file; expected an image"):
        read_image(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    pil.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(pil, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(InputError, match=r"bomb\.png: is too large"):
        read_image(tmp_path / "bomb.png")


def one_row(*values):
    return np.array([[[value] * 3 for value in values]], np.uint8)


def test_resize_by_hand():
    # Twice as wide: output centres lie at -0.25 (held at 0), 0.25, 0.75, 1.25 (held at 1).
    assert resize(one_row(0, 100), (1, 4))[0, :, 0].tolist() == [0, 25, 75, 100]
    # Half as wide: centres at 0.5 and 2.5. No smoothing beyond the two neighbours.
    assert resize(one_row(0, 10, 200, 100), (1, 2))[0, :, 0].tolist() == [5, 150]
    # A quarter: the centre at 1.5 sees the middle two only, where a smoothing resize would see all four.
    assert resize(one_row(255, 0, 0, 255), (1, 1))[0, :, 0].tolist() == [0]
    # 3 to 2: centres at 0.25 and 1.75.
    assert resize(one_row(0, 100, 200), (1, 2))[0, :, 0].tolist() == [25, 175]
    # Rows as columns, and both at once: the middle of four pixels.
    column = np.array([[[0] * 3], [[100] * 3]], np.uint8)
    assert resize(column, (4, 1))[:, 0, 0].tolist() == [0, 25, 75, 100]
    square = np.array([[[0, 10, 20], [40, 10, 20]], [[80, 10, 21], [121, 10, 21]]], np.uint8)
    assert resize(square, (1, 1)).tolist() == [[[60, 10, 21]]]  # 60.25, 10, 20.5: halves go up


def test_resize_keeps_an_image_of_the_right_size():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    assert resize(image, (32, 64)) is image


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    value=st.integers(0, 255),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_resize_properties(shape, size, value, seed):
    assert (resize(np.full((*shape, 3), value, np.uint8), size) == value).all()
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    result = resize(image, size)
    assert result.shape == (*size, 3) and result.dtype == np.uint8
    assert (result >= image.min(axis=(0, 1))).all() and (result <= image.max(axis=(0, 1))).all()
    mirrored = resize(image[::-1, ::-1], size)[::-1, ::-1]
    assert np.abs(mirrored.astype(int) - result).max() <= 1
    assert np.array_equal(resize(np.ascontiguousarray(image[:, :, ::-1]), size)[:, :, ::-1], result)


@pytest.mark.parametrize(("shape", "size"), [((72, 128), (64, 64)), ((30, 40), (64, 96)), ((300, 40), (32, 32))])
def test_resize_agrees_with_opencv_within_one_level(shape, size):
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    theirs = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize(image, size).astype(int) - theirs).max() <= 1


def test_to_input_stacks_stretched_images():
    images = [np.full((10, 20, 3), (1, 2, 3), np.uint8), np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)]
    batch = to_input(images, (32, 64))
    assert batch.shape == (2, 3, 32, 64) and batch.dtype == np.float32 and batch.flags.c_contiguous
    assert batch[0].reshape(3, -1).T.tolist() == [[1, 2, 3]] * (32 * 64)
    assert np.array_equal(batch[1], resize(images[1], (32, 64)).transpose(2, 0, 1))
    assert to_input([], (32, 64)).shape == (0, 3, 32, 64)
