"""How good a network is on an annotated data set: any network, one way of measuring; without torch.

Tensor letters: B images, H W size of the network's input, N detections.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .class_match import ClassMatch
from .coco_metrics import CocoMetrics, coco_metrics
from .data.dataset import Dataset, ImageRecord
from .errors import CheckpointError, DataError, InputError
from .evaluation_set import EvaluationSet, Picture, stack, without_classes
from .images import resize
from .predict import BATCH_SIZE, Predictor, check_range, input_size
from .tiling import Tiling, detect_tiled
from .types import Detections

MAX_DETECTIONS = 500
"""Per image over all classes, as in the official evaluation; COCO's figures use the best 100 of each class."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a network was asked.

    Attributes:
        score_threshold: Pairs of point and class strictly above it were kept.
        iou_threshold: Of two boxes of one class that overlapped more, the better stayed.
        max_detections: Kept per image, over all classes.
        image_size: (height, width) that images were stretched to.
        batch_size: Images at once; of tiles, tiles.
        tiling: How images were cut into tiles; None: each was looked at whole.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int
    image_size: tuple[int, int]
    batch_size: int
    tiling: Tiling | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Time per image in network and post-processing while the accuracy was measured: an indication, no benchmark.

    Attributes:
        median_ms: Of the images of all batches but the first, which warms up; of all where there is one batch.
        p90_ms: Nine images of ten were faster.
        total_s: Whole run with reading, without the computation of the figures.
    """

    median_ms: float
    p90_ms: float
    total_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What was found in a data set, and how good that is.

    Attributes:
        metrics: COCO's figures.
        dataset: What was measured: without images that could not be read and classes that the network does not know.
        detections: One entry per image of `dataset`: pixels of the original image, not clipped, labels of `dataset`.
        settings: How the network was asked.
        timing: Measured on the way.
        missing_classes: Classes of the data set that the network does not know and that were left out.
        skipped: Reason for every image that was left out.
    """

    metrics: CocoMetrics
    dataset: Dataset
    detections: tuple[Detections, ...]
    settings: Settings
    timing: Timing
    missing_classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def to_coco(self) -> list[dict[str, Any]]:
        """All detections as COCO's result files list them, with the data set's own image and category ids."""
        return [
            row
            for record, found in zip(self.dataset.images, self.detections, strict=True)
            for row in found.to_coco(record.image_id, category_ids=self.dataset.category_ids)
        ]


def evaluate(
    predictor: Predictor,
    dataset: Dataset | EvaluationSet,
    *,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int = MAX_DETECTIONS,
    batch_size: int = BATCH_SIZE,
    image_size: int | tuple[int, int] | None = None,
    allow_missing: bool = False,
    skip_unreadable: bool = False,
    counts_as: Mapping[str, Sequence[str]] | None = None,
    tiling: Tiling | None = None,
    progress: Callable[[int, int], None] | None = None,
    interrupt: Callable[[], bool] | None = None,
) -> Evaluation:
    """Find objects in every image of a data set and compare them with its boxes, as COCO does.

    Images are stretched to the network's input, boxes scaled back and not cut at the image's borders, as in the
    official evaluation. Classes are matched by name; what is found of classes that the data set lacks is passed over.

    Args:
        predictor: The network; a torch one may be in either mode, and is left in it.
        dataset: The truth; an `EvaluationSet` keeps its images for the next time.
        score_threshold: Pairs of point and class strictly above it count; by default as `default_thresholds` says.
        iou_threshold: Of two boxes of one class that overlap more, the better stays; default as above.
        max_detections: Kept per image, over all classes.
        batch_size: Images at once; a network with a batch size of its own gets that.
        image_size: Side, or (height, width), that images are stretched to; by default that of the `EvaluationSet`, else
            the network's.
        allow_missing: Leave out classes that the network does not know instead of refusing.
        skip_unreadable: Leave out images that cannot be read instead of refusing; they are listed in the result.
        counts_as: Classes of the network with those of the data set that they are kinds of: what is found of them
            counts as these, once where both were found.
        tiling: Cut images into tiles, as `detector.predict.predict_stream` does; not with an `EvaluationSet`.
        progress: Called with images done and images in all.
        interrupt: Asked before every batch; once it says yes, the evaluation ends with `KeyboardInterrupt`.

    Raises:
        InputError: An option out of range, or an image size that the network refuses.
        DataError: Nothing to be found in the data set, classes that the network does not know, or an image that cannot
            be read or has another size than the data set says.
        CheckpointError: The network gives values that are no numbers.
    """
    settings = _settings(
        predictor,
        dataset,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        batch_size=batch_size,
        image_size=image_size,
        tiling=tiling,
    )
    if isinstance(dataset, EvaluationSet):
        pictures = dataset
    else:
        pictures = EvaluationSet(dataset, settings.image_size if tiling is None else None, keep_mb=0)
    missing = _check_classes(predictor.class_names, pictures.dataset, allow_missing=allow_missing)
    measured = without_classes(pictures.dataset, missing)
    _check_content(measured)
    classes = ClassMatch.by_name(predictor.class_names, measured.class_names, counts_as or {})
    started = time.perf_counter()
    found, skipped, network_ms = _find(
        predictor,
        pictures,
        measured,
        settings,
        classes=classes,
        skip_unreadable=skip_unreadable,
        progress=progress,
        interrupt=interrupt,
    )
    total_s = time.perf_counter() - started
    if skipped:
        kept = [index for index, entry in enumerate(found) if entry is not None]
        measured = replace(measured, images=tuple(measured.images[index] for index in kept))
        _check_content(measured)
    detections = tuple(entry for entry in found if entry is not None)
    return Evaluation(
        metrics=coco_metrics(measured, detections),
        dataset=measured,
        detections=detections,
        settings=settings,
        timing=_timing(network_ms, settings.batch_size, total_s),
        missing_classes=missing,
        skipped=tuple(skipped),
    )


def default_thresholds(predictor: Predictor) -> tuple[float, float]:
    """Score and IoU threshold of a network's family, as its published figures were measured with.

    The general networks have 0.05 and 0.7, those with mobile backbones 0.03 and 0.65; others get 0.01 and 0.7. AP never
    falls as the score threshold does: detections below it can only add recall. A file with NMS inside has thresholds
    of its own, which cannot be undercut.
    """
    card = getattr(predictor, "card", None)
    structure = getattr(predictor if card is None else card, "structure", None)
    backbone = getattr(structure, "backbone", None)
    if backbone is None:
        score, iou = 0.01, 0.7
    else:
        score, iou = (0.03, 0.65) if backbone.family == "mob" else (0.05, 0.7)
    own = getattr(card, "nms", None)
    return (score, iou) if own is None else (max(score, own.score_threshold), own.iou_threshold)


def _settings(
    predictor: Predictor,
    dataset: Dataset | EvaluationSet,
    *,
    score_threshold: float | None,
    iou_threshold: float | None,
    max_detections: int,
    batch_size: int,
    image_size: int | tuple[int, int] | None,
    tiling: Tiling | None,
) -> Settings:
    """The options of `evaluate`, checked, where they are open filled in, and held to what an export can do."""
    defaults = default_thresholds(predictor)
    score_threshold = defaults[0] if score_threshold is None else score_threshold
    iou_threshold = defaults[1] if iou_threshold is None else iou_threshold
    check_range("score_threshold", score_threshold, 0, 1)
    check_range("iou_threshold", iou_threshold, 0, 1)
    check_range("max_detections", max_detections, 1, None)
    check_range("batch_size", batch_size, 1, None)
    own = getattr(getattr(predictor, "card", None), "nms", None)
    max_detections = max_detections if own is None else min(max_detections, own.max_detections)
    if isinstance(dataset, EvaluationSet):
        if tiling is not None or dataset.image_size is None:
            raise InputError("an EvaluationSet holds whole images at one size; expected a data set with tiling")
        size = input_size(predictor, dataset.image_size if image_size is None else image_size)
        if size != tuple(dataset.image_size):
            raise InputError(f"image_size is {size}; expected {dataset.image_size}, that of the evaluation set")
    else:
        size = input_size(predictor, image_size)
    batch_size = predictor.batch_limit or batch_size
    return Settings(score_threshold, iou_threshold, max_detections, size, batch_size, tiling)


def _find(
    predictor: Predictor,
    pictures: EvaluationSet,
    measured: Dataset,
    settings: Settings,
    *,
    classes: ClassMatch,
    skip_unreadable: bool,
    progress: Callable[[int, int], None] | None,
    interrupt: Callable[[], bool] | None,
) -> tuple[list[Detections | None], list[str], list[float]]:
    """Detections of every image, None where it was skipped; why it was; and each image's share of its batch's time."""
    found: list[Detections | None] = []
    skipped: list[str] = []
    network_ms: list[float] = []
    checked = False
    batches = pictures.batches(settings.batch_size if settings.tiling is None else 1)
    try:
        while True:
            if interrupt is not None and interrupt():
                raise KeyboardInterrupt
            batch = next(batches, None)
            if batch is None:
                break
            readable = [entry for entry in batch if isinstance(entry, Picture)]
            problems = [entry for entry in batch if isinstance(entry, str)]
            if problems and not skip_unreadable:
                raise DataError(problems[0])
            skipped += problems
            results: Iterator[Detections] = iter(())
            if readable:
                answers, spent_ms = _ask(predictor, readable, settings)
                network_ms += [spent_ms] * len(readable)
                if not checked and any(len(entry) == 0 for entry in answers):
                    # A value that is no number is above no threshold: it would pass for a network that finds nothing.
                    inputs = stack([_at_size(entry, settings.image_size) for entry in readable], predictor.batch_limit)
                    _check_outputs(predictor, inputs, measured.images[len(found)])
                    checked = True
                results = iter(answers)
            for entry in batch:
                record = measured.images[len(found)]
                found.append(
                    _in_original(next(results), entry, record, classes, settings)
                    if isinstance(entry, Picture)
                    else None
                )
            if progress is not None:
                progress(len(found), len(measured))
    finally:
        batches.close()
    return found, skipped, network_ms


def _ask(predictor: Predictor, pictures: Sequence[Picture], settings: Settings) -> tuple[list[Detections], float]:
    """Detections of pictures in pixels of the input, or of the image where it is cut; milliseconds for each."""
    options: dict[str, Any] = {
        "score_threshold": settings.score_threshold,
        "iou_threshold": settings.iou_threshold,
        "max_detections": settings.max_detections,
    }
    if settings.tiling is None:
        inputs = stack(pictures, predictor.batch_limit)
        started = time.perf_counter()
        answers = predictor.detect(inputs, **options)
        return answers, 1e3 * (time.perf_counter() - started) / len(inputs)
    size, batch_size = settings.image_size, settings.batch_size
    started = time.perf_counter()
    answers = [
        detect_tiled(
            predictor, picture.pixels.transpose(1, 2, 0), settings.tiling, size=size, batch_size=batch_size, **options
        )
        for picture in pictures
    ]
    return answers, 1e3 * (time.perf_counter() - started) / len(pictures)


def _at_size(picture: Picture, size: tuple[int, int]) -> Picture:
    """Stretched as a network takes it, unless it is already."""
    pixels = resize(picture.pixels.transpose(1, 2, 0), size).transpose(2, 0, 1)
    return replace(picture, pixels=pixels)


def _in_original(
    found: Detections, picture: Picture, record: ImageRecord, classes: ClassMatch, settings: Settings
) -> Detections:
    """Detections in pixels of the original image and labels of the data set; classes that it lacks are dropped."""
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise CheckpointError(f"{record.path}: {_NO_NUMBERS}")
    return classes.translate(
        found.rescale(picture.original_size),
        iou_threshold=settings.iou_threshold,
        max_detections=settings.max_detections,
    )


_NO_NUMBERS = "the network gives values that are no numbers; its weights are damaged, or its training diverged"


def _check_outputs(predictor: Predictor, inputs: NDArray[np.float32], first: ImageRecord) -> None:
    """Look at what a network gives for a batch before thresholds are applied."""
    outputs: list[NDArray[Any]] = []
    if hasattr(predictor, "run"):
        outputs = list(predictor.run(inputs).values())
    elif hasattr(predictor, "forward"):
        import torch

        was_training = predictor.training  # type: ignore[attr-defined]
        predictor.eval()  # type: ignore[attr-defined]
        try:
            with torch.inference_mode():
                device = next(predictor.parameters()).device  # type: ignore[attr-defined]
                raw = predictor.forward(torch.from_numpy(inputs).to(device))
                outputs = [value.float().cpu().numpy() for value in (raw.cls_logits, raw.box_logits)]
        finally:
            predictor.train(was_training)  # type: ignore[attr-defined]
    if not all(np.isfinite(values).all() for values in outputs):
        raise CheckpointError(f"{first.path}: {_NO_NUMBERS}")


def _check_classes(names: Sequence[str], dataset: Dataset, *, allow_missing: bool) -> tuple[str, ...]:
    """Classes of the data set that the network does not know."""
    missing = tuple(name for name in dataset.class_names if name not in set(names))
    if missing and (not allow_missing or len(missing) == len(dataset.class_names)):
        classes = f"class{'es' if len(missing) > 1 else ''} {_listed(missing)}"
        raise DataError(f"{dataset.name}: the network does not know its {classes}; the network's are {_listed(names)}")
    return missing


def _listed(names: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _check_content(dataset: Dataset) -> None:
    if not len(dataset):
        raise DataError(f"{dataset.name}: holds no image that can be read; there is nothing to measure")
    if not any((~record.ignored).any() for record in dataset.images):
        count = len(dataset)
        raise DataError(f"{dataset.name}: its images ({count}) hold no box to be found; there is nothing to measure")


def _timing(network_ms: Sequence[float], batch_size: int, total_s: float) -> Timing:
    warm = network_ms[batch_size:] or network_ms
    return Timing(statistics.median(warm), float(np.quantile(warm, 0.9)), total_s)
