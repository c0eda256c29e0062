"""Images of every kind as one kind of array: uint8 (H, W, 3), RGB, upright. Without torch.

Tensor letters: B images, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
    ".jp2",
    ".avif",
    ".mpo",
)
"""Files of a folder that are taken for images; a file named by itself may have any suffix."""

# Pillow also reads formats whose decoder starts another program (EPS) or that nobody photographs in.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO")
_BACKGROUND = 255
_LARGE = 24_000_000  # pixels; more than most cameras give
_ORIENTATION_TAG = 0x0112
_ROWS_AT_ONCE = 32


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """An image file as uint8 (H, W, 3) RGB, turned as its EXIF orientation says; of an animation the first frame.

    Other kinds of pixels are converted as `as_rgb` does.

    Raises:
        InputError: Naming the file: missing, empty, no image, cut short, damaged, too large to be honest (more than
            twice `PIL.Image.MAX_IMAGE_PIXELS`), or of a kind that `as_rgb` refuses.
    """
    with _opened(Path(path)) as image:
        return as_rgb(image, source=str(path))


def read_reduced(path: str | Path, *, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As `read_image`, but a JPEG of more than 24 megapixels is decoded at a half, a quarter or an eighth of its size.

    Decoding fewer coefficients costs a fraction of time and memory, and smooths; other files are read as they are.

    Args:
        path: The image file.
        side: Both sides stay at least this long, in pixels.

    Returns:
        The image, and the (height, width), upright, that the file has.
    """
    with _opened(Path(path)) as image:
        stored, upright = image.size, _header(image).size
        if stored[0] * stored[1] > _LARGE:
            image.draft(None, (side, side))
        reduced = image.size != stored
        pixels = as_rgb(image, source=str(path))
        return pixels, upright if reduced else (pixels.shape[0], pixels.shape[1])


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image file says of itself before its pixels.

    Attributes:
        size: (height, width) upright: of what `read_image` returns.
        stored: (height, width) of the stored pixels, before they are turned.
        orientation: EXIF orientation, 1 ... 8; 1 is upright, and what is taken where there is none.
        mode: Pillow's name for the kind of pixels, such as `RGB`.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int
    mode: str


def read_header(path: str | Path) -> ImageHeader:
    """Size and orientation of an image file; no pixel is decoded, so a file that is cut short may pass.

    Raises:
        InputError: As `read_image`, where the header shows it.
    """
    with _opened(Path(path)) as image:
        return _header(image)


def _header(image: Image) -> ImageHeader:
    width, height = image.size
    # Pillow decodes a whole PNG in search of a block that may follow the pixels; nearly all writers put it first.
    orientation = 1 if image.format == "PNG" and "exif" not in image.info else _orientation(image)
    size = (width, height) if orientation >= 5 else (height, width)
    return ImageHeader(size, (height, width), orientation, image.mode)


def read_thumbnail(path: str | Path, side: int) -> NDArray[np.uint8]:
    """An image squeezed to (side, side) grey levels, upright; the whole file is decoded, JPEG at an eighth of its size.

    Raises:
        InputError: As `read_image`.
    """
    with _opened(Path(path)) as image:
        image.draft("RGB", (4 * side, 4 * side))
        picture = _pillow().fromarray(as_rgb(image, source=str(path)))
        return np.asarray(picture.convert("L").resize((side, side), _pillow().Resampling.BOX))


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """An image file in Pillow; what goes wrong inside is an `InputError` that names the file."""
    pil = _pillow()
    if not path.is_file():
        raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}; expected an image")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes); expected an image")
    pil.init()
    try:
        with pil.open(path, formats=[name for name in _FORMATS if name in pil.OPEN]) as image:
            yield image
    except InputError:
        raise
    except pil.DecompressionBombError as error:
        raise InputError(f"{path}: is too large to be read as an image ({error})") from error
    except (OSError, MemoryError) as error:
        if "cannot identify" in str(error):
            raise InputError(f"{path}: is no image that can be read; expected JPEG, PNG, ...") from error
        raise InputError(f"{path}: cannot be read as an image ({error})") from error
    except Exception as error:  # decoders fail in their own ways on bytes that no encoder wrote
        raise InputError(f"{path}: is a damaged image ({type(error).__name__}: {error})") from error


def as_rgb(image: Image | NDArray[Any], *, source: str = "image") -> NDArray[np.uint8]:
    """A PIL image or an array as uint8 (H, W, 3) RGB.

    - Grey, black-and-white, palette, CMYK and YCbCr images become RGB; transparency is laid over white, the page.
    - 16-bit values are divided by 257, so that 65535 becomes 255. Integers of 32 bits and floats are refused: their
      range is not known.
    - A PIL image is turned as its EXIF orientation says, and its current frame is taken.
    - An array is (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, of uint8 or uint16. OpenCV's arrays are BGR:
      turn them with `image[..., ::-1]` first.

    Args:
        image: What to convert.
        source: What messages call it.

    Returns:
        C-contiguous; shares memory with an array that already is what is asked for.

    Raises:
        InputError: Any other kind of image.
    """
    if isinstance(image, np.ndarray):
        return _array_as_rgb(image, source)
    if isinstance(image, _pillow().Image):
        return _picture_as_rgb(image, source)
    raise InputError(f"{source}: is a {type(image).__name__}; expected a PIL image or a numpy array")


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Stretch to (height, width): plain bilinear, pixel centres at halves, no smoothing, aspect ratio not kept.

    It is what the published networks were trained and evaluated with; OpenCV's INTER_LINEAR gives the same within one
    grey level. An image of that size already is returned as it is.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) wanted.

    Returns:
        (height, width, 3) uint8, rounded to the nearest.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    above, below, down = _taps(height, size[0])
    left, right, across = _taps(width, size[1])
    channels = np.arange(3)
    left, right = ((3 * pixel[:, None] + channels).ravel() for pixel in (left, right))
    across = np.repeat(across, 3)
    rows = np.ascontiguousarray(image).reshape(height, 3 * width)
    result = np.empty((size[0], 3 * size[1]), np.uint8)
    # A few rows at a time stay in the processor's cache; whole images would be three times slower.
    for start in range(0, size[0], _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        mixed, other = rows[above[part]].astype(np.float32), rows[below[part]].astype(np.float32)
        other -= mixed
        other *= down[part, None]
        mixed += other
        values, other = mixed.take(left, axis=1), mixed.take(right, axis=1)
        other -= values
        other *= across
        values += other
        values += 0.5
        result[part] = values
    return result.reshape(size[0], size[1], 3)


def to_input(images: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> NDArray[np.float32]:
    """Images of any sizes as what a network takes: float32 (B, 3, height, width) RGB in 0 ... 255, C-contiguous."""
    batch = np.empty((len(images), 3, *size), np.float32)
    for place, image in zip(batch, images, strict=True):
        place[...] = resize(image, size).transpose(2, 0, 1)
    return batch


def _pillow() -> ModuleType:
    return require("PIL.Image", extra="detector", purpose="reading images")


def _taps(length: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For every output pixel the two input pixels it lies between, and the share of the second."""
    centres = (np.arange(wanted) + 0.5) * (length / wanted) - 0.5
    centres = np.clip(centres, 0, length - 1)
    first = centres.astype(np.intp)
    return first, np.minimum(first + 1, length - 1), (centres - first).astype(np.float32)


def _array_as_rgb(image: NDArray[Any], source: str) -> NDArray[np.uint8]:
    shape = image.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        hint = "; channels come last" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        hint = "; give several images as a list" if len(shape) == 4 else hint
        raise InputError(f"{source}: array has shape {shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}")
    if 0 in shape:
        raise InputError(f"{source}: array has shape {shape}; expected at least one pixel")
    if image.dtype == np.uint16:
        image = _to_eight_bits(image)
    elif image.dtype != np.uint8:
        raise InputError(
            f"{source}: array has dtype {image.dtype}; expected uint8 in 0 ... 255, or uint16 in 0 ... 65535"
        )
    if len(shape) == 2:
        image = image[:, :, None]
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    elif image.shape[2] == 4:
        image = _over_background(image)
    return np.ascontiguousarray(image)


def _picture_as_rgb(image: Image, source: str) -> NDArray[np.uint8]:
    if 0 in image.size:
        raise InputError(f"{source}: image has size {image.size}; expected at least one pixel")
    image.load()
    turned = _turned(image)
    # 16-bit grey PNG files come as 32-bit integers from older versions of Pillow.
    if turned.mode.startswith("I;16") or (turned.mode == "I" and image.format == "PNG"):
        values = np.asarray(turned)
        return _array_as_rgb(values.astype(np.uint16), source)
    if turned.mode in ("I", "F"):
        raise InputError(f"{source}: image has mode {turned.mode} (32 bits a pixel); expected 8 or 16 bits")
    if turned.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in turned.info:
        if turned.mode == "La":
            turned = turned.convert("LA")
        return _over_background(np.asarray(turned.convert("RGBA")))
    try:
        return np.array(turned.convert("RGB"))
    except ValueError as error:
        raise InputError(f"{source}: image has mode {turned.mode}, which cannot be converted to RGB") from error


def _turned(image: Image) -> Image:
    """The picture upright."""
    turns = _pillow().Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info.update(image.info)
    return turned


def _orientation(image: Image) -> int:
    """EXIF orientation; a damaged EXIF block says nothing and is passed over."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the block is not needed to see the picture
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _to_eight_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_background(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 4) RGBA laid over white, rounded to the nearest."""
    colour, alpha = image[:, :, :3].astype(np.uint32), image[:, :, 3:].astype(np.uint32)
    return ((colour * alpha + _BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)
