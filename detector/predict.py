"""From images of any kind to detections in their own pixels, with any network; without torch.

Tensor letters: B images, H W size of the network's input.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .ahead import Ahead
from .errors import InputError
from .images import to_input
from .sources import Item, Source, open_source
from .tiling import Tiling, detect_tiled
from .types import Detections, class_indices

SCORE_THRESHOLD = 0.25
IOU_THRESHOLD = 0.7
MAX_DETECTIONS = 300
BATCH_SIZE = 8
COARSEST_STRIDE = 32

T = TypeVar("T")


class Predictor(Protocol):
    """What finds objects: a network in torch, or an exported one in its runtime.

    Attributes:
        class_names: One name per class, in label order.
        image_size: (height, width) of the input it was made for.
        batch_limit: A static export takes exactly this many images at once; None: any number.
        fixed_size: Whether other image sizes are refused.
    """

    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    batch_limit: int | None
    fixed_size: bool

    def detect(
        self, images: NDArray[np.float32], *, score_threshold: float, iou_threshold: float, max_detections: int
    ) -> list[Detections]:
        """Detections of (B, 3, H, W) images, RGB in 0 ... 255: in pixels of that input, not clipped, without names."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What was found in one image, or why it could not be read.

    Attributes:
        name: Path as text, or `image 3` for the third of a list of pictures.
        detections: In pixels of the original image, cut at its borders, with class names; None where `error` says why.
        error: What is wrong with the file, in one line.
        image: (H, W, 3) uint8 RGB, upright, in its own size; None where it could not be read.
        path: The file; None for a picture in memory.
        frame: Number of a video's frame, counted from 0.
        time_s: Its time from the start of the video.
        read_ms: Time to read and resize it.
        network_ms: Time in the network and its post-processing: an equal share of its batch.
        taken_s: When the frame came from a live source, by `time.perf_counter`.
    """

    name: str
    detections: Detections | None
    error: str | None
    image: NDArray[np.uint8] | None
    path: Path | None
    frame: int | None
    time_s: float | None
    read_ms: float
    network_ms: float
    taken_s: float | None = None


def predict_stream(
    predictor: Predictor,
    source: Any,  # noqa: ANN401
    *,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int = MAX_DETECTIONS,
    batch_size: int = BATCH_SIZE,
    image_size: int | tuple[int, int] | None = None,
    classes: Iterable[str | int] | None = None,
    clip: bool = True,
    tiling: Tiling | None = None,
) -> Iterator[Prediction]:
    """Find objects in every image of a source, in its order, without holding more than two batches in memory.

    The next batch is read while the network works on this one. Of a live source the newest frame is taken, alone; those
    that come while the network works are dropped. A broken file among several gives a `Prediction` with `error` and
    the run goes on; a source that is one image raises.

    The network works in the thread that asks for the next prediction. To use that time, say for drawing, wrap the
    stream in `detector.ahead.Ahead`.

    Args:
        predictor: The network.
        source: As `detector.sources.open_source` takes.
        score_threshold: Pairs of point and class strictly above it are kept; lower finds more and errs more; by
            default as `usual_thresholds` says.
        iou_threshold: Of two boxes of one class that overlap more, the better stays; default as above.
        max_detections: Kept per image, over all classes.
        batch_size: Images at once; a network with a batch size of its own gets that.
        image_size: Side, or (height, width), that images are stretched to, multiples of 32; by default the network's.
        classes: Names or indices of the classes wanted; picked from the best `max_detections`.
        clip: Cut boxes at the image's borders, and drop those wholly outside.
        tiling: Cut images into tiles, for objects that are small in them; by default images are looked at whole.

    Raises:
        InputError: An option out of range, nothing at the source, or the only image cannot be read.
    """
    usual = usual_thresholds(predictor)
    score_threshold = usual[0] if score_threshold is None else score_threshold
    iou_threshold = usual[1] if iou_threshold is None else iou_threshold
    check_range("score_threshold", score_threshold, 0, 1)
    check_range("iou_threshold", iou_threshold, 0, 1)
    check_range("max_detections", max_detections, 1, None)
    check_range("batch_size", batch_size, 1, None)
    size = input_size(predictor, image_size)
    wanted = None if classes is None else class_indices(classes, predictor.class_names)
    opened = open_source(source)
    ask = {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "max_detections": max_detections}
    if tiling is None:
        answers = _whole_images(predictor, opened, ask, size=size, batch_size=batch_size)
    else:
        answers = _tiled_images(predictor, opened, ask, tiling, size=size, batch_size=batch_size)

    def predictions() -> Iterator[Prediction]:
        with closing(answers):
            for answer in answers:
                item, detections = answer.item, None
                if item.image is not None and answer.detections is not None:
                    detections = answer.detections.rescale((item.image.shape[0], item.image.shape[1]))
                    detections = detections.clip().filter(min_area=0) if clip else detections
                    detections = replace(detections.filter(classes=wanted), class_names=predictor.class_names)
                yield Prediction(
                    name=item.name,
                    detections=detections,
                    error=item.error,
                    image=item.image,
                    path=item.path,
                    frame=item.frame,
                    time_s=item.time_s,
                    read_ms=answer.read_ms,
                    network_ms=answer.network_ms,
                    taken_s=item.taken_s,
                )

    return predictions()


def predict(
    predictor: Predictor,
    source: Any,  # noqa: ANN401
    *,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int = MAX_DETECTIONS,
    batch_size: int = BATCH_SIZE,
    image_size: int | tuple[int, int] | None = None,
    classes: Iterable[str | int] | None = None,
    clip: bool = True,
    tiling: Tiling | None = None,
) -> Detections | list[Detections]:
    """Find objects: `Detections` for one image; for a folder, pattern, list or video a list of them, in its order.

    A broken file raises, also among several: a shorter list would not tell which images it belongs to. To go on past
    broken files, and for the names of files, use `predict_stream`. The options are the same.

    Raises:
        InputError: An option out of range, nothing at the source, or an image that cannot be read.
    """
    opened = open_source(source)
    if opened.live is not None:
        raise InputError(f"{opened.name}: has no end, so a list of its frames has none; expected predict_stream for it")
    found = []
    for prediction in predict_stream(
        predictor,
        opened,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        batch_size=batch_size,
        image_size=image_size,
        classes=classes,
        clip=clip,
        tiling=tiling,
    ):
        if prediction.detections is None:
            raise InputError(f"{prediction.error}; predict_stream goes on past such files")
        found.append(prediction.detections)
    return found[0] if opened.kind == "image" else found


def usual_thresholds(predictor: Predictor) -> tuple[float, float]:
    """Score and IoU threshold where none are asked for: 0.25 and 0.7; of a file with suppression inside its own.

    The score threshold is that of the file where it is higher.
    """
    own = getattr(getattr(predictor, "card", None), "nms", None)
    if own is None:
        return SCORE_THRESHOLD, IOU_THRESHOLD
    return max(SCORE_THRESHOLD, own.score_threshold), own.iou_threshold


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """An item of a source and what was found in it.

    Attributes:
        item: One that could not be read, too.
        detections: Of the network, in pixels of its input or of the image; None for a broken item.
        read_ms: As in `Prediction`.
        network_ms: As in `Prediction`.
    """

    item: Item
    detections: Detections | None
    read_ms: float
    network_ms: float


def _whole_images(
    predictor: Predictor, source: Source, ask: dict[str, Any], *, size: tuple[int, int], batch_size: int
) -> Generator[_Answer, None, None]:
    """Images stretched to the network's input, several at once."""
    count = 1 if source.live is not None else predictor.batch_limit or batch_size
    batches = _batches(source, count, size, at_least=predictor.batch_limit or 1)
    for batch in _ahead(batches, source):
        started = time.perf_counter()
        found = iter(predictor.detect(batch.inputs, **ask) if batch.num_images else [])
        network_ms = 1e3 * (time.perf_counter() - started) / max(1, batch.num_images)
        for item, read_ms in zip(batch.items, batch.read_ms, strict=True):
            if item.image is None:
                yield _Answer(item, None, read_ms, 0.0)
            else:
                yield _Answer(item, next(found), read_ms, network_ms)


def _tiled_images(
    predictor: Predictor,
    source: Source,
    ask: dict[str, Any],
    tiling: Tiling,
    *,
    size: tuple[int, int],
    batch_size: int,
) -> Generator[_Answer, None, None]:
    """Images one after the other, the tiles of each several at once."""
    for item, read_ms in _ahead(_timed(source), source):
        if item.image is None:
            yield _Answer(item, None, read_ms, 0.0)
            continue
        started = time.perf_counter()
        found = detect_tiled(predictor, item.image, tiling, size=size, batch_size=batch_size, **ask)
        yield _Answer(item, found, read_ms, 1e3 * (time.perf_counter() - started))


def _timed(source: Source) -> Generator[tuple[Item, float]]:
    """The items and the milliseconds that each took to read."""
    items = iter(source)
    while True:
        started = time.perf_counter()
        item = next(items, None)
        if item is None:
            return
        yield item, 1e3 * (time.perf_counter() - started)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Items of a source, and the images among them as the network takes them.

    Attributes:
        items: In order, broken ones too.
        inputs: (B, 3, H, W) float32; where B is fixed, zeros follow the images.
        num_images: Items that could be read.
        read_ms: Time to read and resize each item.
    """

    items: list[Item]
    inputs: NDArray[np.float32]
    num_images: int
    read_ms: list[float]


def _batches(source: Source, count: int, size: tuple[int, int], *, at_least: int) -> Generator[_Batch]:
    items = iter(source)
    while True:
        taken: list[Item] = []
        read_ms: list[float] = []
        started = time.perf_counter()
        for item in islice(items, count):
            taken.append(item)
            read_ms.append(1e3 * (time.perf_counter() - started))
            started = time.perf_counter()
        if not taken:
            return
        images = [item.image for item in taken if item.image is not None]
        inputs = to_input(images, size)
        if images and len(images) < at_least:
            inputs = np.concatenate([inputs, np.zeros((at_least - len(images), *inputs.shape[1:]), np.float32)])
        resize_ms = 1e3 * (time.perf_counter() - started) / max(1, len(images))
        read_ms = [ms + (resize_ms if item.image is not None else 0.0) for ms, item in zip(read_ms, taken, strict=True)]
        yield _Batch(taken, inputs, len(images), read_ms)


def _ahead(values: Generator[T], source: Source) -> Iterator[T]:
    """The same values; unless the source is live, each is made by a second thread while the one before is in use."""
    # A live source has a thread of its own; what is read ahead of the network would be old by then.
    if source.live is not None:
        with closing(values):
            yield from values
        return
    with Ahead(values) as ahead:
        yield from ahead


def input_size(predictor: Predictor, asked: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) that images are stretched to: as asked for, by default the network's own.

    Raises:
        InputError: Not a multiple of 32, or another size than the network's fixed one.
    """
    height, width = predictor.image_size
    if asked is None:
        return height, width
    size = (asked, asked) if isinstance(asked, int) else tuple(asked)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 or side % COARSEST_STRIDE for side in size):
        raise InputError(f"image_size is {asked}; expected a side or (height, width), multiples of {COARSEST_STRIDE}")
    if predictor.fixed_size and size != (height, width):
        raise InputError(f"image_size is {size[0]}x{size[1]}; this model takes {height}x{width} only")
    return size[0], size[1]


def check_range(name: str, value: float, low: float, high: float | None) -> None:
    """Raise `InputError` unless a number is between two, both included; without an upper one, at least the lower."""
    if isinstance(value, bool) or not value >= low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"{low} ... {high}"
        raise InputError(f"{name} is {value}; expected {expected}")
