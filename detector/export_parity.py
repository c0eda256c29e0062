"""How far an exported artifact is from torch: what comes out of the files, opened as a user opens them.

Points count as much as torch is sure that there is an object (square of the best score): in whole numbers most of the
error is where nothing is, and does no harm.

Tensor letters: B images, P points of all levels, C classes, N detections of one image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import openvino_core, require

from .artifact import ModelCard, NmsSettings
from .decode import STRIDES, box_frame, decode
from .errors import ExportError
from .export_reference import FLOORS, Reference, torch_results
from .model import Detector
from .nms import select_best
from .runtimes import READERS, SESSIONS, ExportedDetector, Session, is_installed, load_exported

INT8_ERROR = 0.5
"""Largest `score_error` and `box_error` of an int8 artifact: a quarter of the variance.

At 1 it would say no more than a constant does. Sound artifacts of several trained detectors stay far below
(docs/export.md); whether what is lost matters is for AP to say.
"""

INT8_SHIFT = 0.0125
"""Largest `box_shift` of an int8 artifact, as a part of the boxes' mean side.

A square box that is moved by this part of its side in both directions still overlaps by 0.95 with where it was: one
step of the thresholds that AP is averaged over. Rounding errors of many points average out, a wrong frame does not.
"""

INT8_MISTAKE = 2**0.5
"""Largest `mistake` of an int8 artifact.

With rounding errors q and answers that a mistake changes by d, an artifact with the mistake is off by the root of
q^2 + d^2 from torch and by q from torch with the mistake: their ratio is above this where d > q, that is where the
mistake does more than rounding. A sound artifact has about 1 at most, whatever network and photographs are like.
"""

_TELLS = {"fp32": 0.2, "fp16": 0.2, "int8": 1 / INT8_MISTAKE}
"""How near an artifact must be to torch with a mistake, as a part of its error, for the mistake to be the cause."""

_SHIFT_LEFT = 0.5
"""Part of the box errors that may be left once a shift of all boxes is taken away, for it to be the cause."""

UNMATCHED = {"fp32": 0.02, "fp16": 0.1, "int8": 0.8}
"""Part of the detections that may have no counterpart: scores near the threshold and boxes near the IoU limit flip, and
a flip decides over its neighbours. At least 2 detections are always allowed."""

_MATCH_IOU = 0.9
_EPSILON = 1e-6
_PROBE = ("class_scores", "point_boxes")
"""Inner tensors of the nms form from which the detections are chosen."""

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores (B, P, C) and boxes (B, P, 4) of all points."""


@dataclass(frozen=True, slots=True)
class ParityCheck:
    """One artifact in one runtime with one batch of images.

    Attributes:
        runtime: Name of the runtime.
        version: Of the runtime.
        source: Of the images: `made up` or `photographs`.
        shape: (B, 3, H, W).
        figures: `scores` and `boxes` (pixels): largest absolute differences; `score_error` and `box_error`: root mean
            square of the differences of score logits and of box sides, in units of their own deviation; `box_shift`:
            the mean difference of the coordinate that is off most, in pixels; `mistake`, in int8: error from torch in
            units of that from torch with the usual mistake about its input that fits best; `unmatched`: in the nms
            form, detections without a counterpart of the same class. What a file does not tell is left out.
        limits: Largest value allowed, for the figures that decide.
        num_detections: In the nms form, what torch found; else None.
        cause: Where a limit is exceeded: what explains the differences, if anything simple does.
    """

    runtime: str
    version: str
    source: str
    shape: tuple[int, int, int, int]
    figures: Mapping[str, float]
    limits: Mapping[str, float]
    num_detections: int | None = None
    cause: str | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Figures above their limit."""
        return tuple(name for name, limit in self.limits.items() if not self.figures[name] <= limit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        figures = {name: value if np.isfinite(value) else None for name, value in self.figures.items()}
        return {**asdict(self), "shape": list(self.shape), "figures": figures, "passed": not self.failures}

    def complaint(self) -> str:
        """One line about what is wrong."""
        name = self.failures[0]
        shape = "x".join(map(str, self.shape))
        because = f" ({self.cause})" if self.cause else ""
        return (
            f"{name} is off by {self.figures[name]:.3g} from torch in {self.runtime}, {shape} {self.source}; expected "
            f"at most {self.limits[name]:.3g}{because}"
        )


def check_parity(path: Path, model: Detector, references: Sequence[Reference]) -> tuple[ParityCheck, ...]:
    """Run an artifact in every installed runtime that reads it and compare with torch.

    Args:
        path: Main file of an artifact with its card.
        model: The deployed network that it stands for; asked again only to explain differences.
        references: What torch makes of images of the shapes that the artifact takes.

    Raises:
        ExportError: A runtime refuses the artifact, or its outputs have other shapes.
    """
    checks = []
    for runtime in READERS[path.suffix]:
        if not is_installed(runtime):
            continue
        predictor = load_exported(path, runtime=runtime)
        probe = None if predictor.card.nms is None else _open_probe(path, runtime)
        asked = references
        if predictor.card.precision == "int8":
            # Its numbers reach as far as photographs need; made-up pictures go beyond.
            asked = [reference for reference in references if reference.source != "made up"] or references
        for group in _groups(asked):
            checks.append(_compare(predictor, probe, model, group))
    return tuple(checks)


def _groups(references: Sequence[Reference]) -> list[list[Reference]]:
    """References of one kind of images and one shape, which are judged together."""
    found: dict[object, list[Reference]] = {}
    for reference in references:
        found.setdefault((reference.source, reference.images.shape), []).append(reference)
    return list(found.values())


def _compare(
    predictor: ExportedDetector, probe: Session | None, model: Detector, references: Sequence[Reference]
) -> ParityCheck:
    card, first = predictor.card, references[0]
    size = (first.images.shape[2], first.images.shape[3])
    expected = _joined([(reference.tensors["scores"], reference.tensors["boxes"]) for reference in references])
    figures: dict[str, float] = {}
    limits: dict[str, float] = {}
    count, cause = None, None
    found = _found(predictor, probe, references)
    if found is not None:
        for name, values, wanted in zip(("scores", "boxes"), found, expected, strict=True):
            if values.shape != wanted.shape:
                raise ExportError(f"{name} has shape {values.shape} in {predictor.runtime}; torch gives {wanted.shape}")
        figures = point_figures(found, expected, size, model.strides)
        limits = _limits(card.precision, references, expected)
        if card.precision == "int8":
            figures["mistake"], cause = _likeliest_mistake(found, figures["score_error"], model, references)
    if card.nms is not None:
        matching, count = _match(predictor, card.nms, references)
        figures = {**matching, **figures}
        limits = {**limits, "unmatched": max(2.0, UNMATCHED[card.precision] * count)}
        if found is None and card.precision != "int8":
            limits |= {n: limit for n, limit in _limits(card.precision, references, expected).items() if n in figures}
    shape = (len(expected[0]), *first.images.shape[1:])
    version = predictor.session_version
    check = ParityCheck(predictor.runtime, version, first.source, shape, figures, limits, count)
    if found is None or not check.failures:
        return check
    if card.precision != "int8":
        _, cause = _likeliest_mistake(found, figures["score_error"], model, references, _TELLS[card.precision])
    return replace(check, cause=cause or _common_shift(found, expected, size, model.strides))


def _found(predictor: ExportedDetector, probe: Session | None, references: Sequence[Reference]) -> Pair | None:
    """Predictions of all points; None where the artifact does not tell them."""
    card, results = predictor.card, []
    for reference in references:
        if card.nms is None:
            results.append(_points(predictor.run(reference.images), card, reference.images.shape[2:]))
        elif probe is not None:
            inner = probe.run({card.input.name: reference.images})
            results.append((inner[_PROBE[0]].swapaxes(1, 2), inner[_PROBE[1]]))
    return _joined(results) if results else None


def _joined(pairs: Sequence[Pair]) -> Pair:
    """Predictions of several batches as of one."""
    return np.concatenate([scores for scores, _ in pairs]), np.concatenate([boxes for _, boxes in pairs])


def _limits(precision: str, references: Sequence[Reference], expected: Pair) -> dict[str, float]:
    if precision == "int8":
        scores, boxes = expected
        sides = np.abs(boxes[..., 2:] - boxes[..., :2]).mean(axis=-1)
        shift = INT8_SHIFT * float((_weights(scores) * sides).sum())
        return {"mistake": INT8_MISTAKE, "score_error": INT8_ERROR, "box_error": INT8_ERROR, "box_shift": shift}
    tolerances = [reference.tolerances(precision) for reference in references]
    scores_limit, boxes_limit = (max(entry[name] for entry in tolerances) for name in ("scores", "boxes"))
    # Where single boxes may be off by much, all together may not.
    shift = max(FLOORS[precision]["boxes"] / 2, boxes_limit / 20)
    return {"scores": scores_limit, "boxes": boxes_limit, "box_shift": shift}


def point_figures(
    found: Pair, expected: Pair, image_size: tuple[int, int], strides: Sequence[int] = STRIDES
) -> dict[str, float]:
    """Figures of a `ParityCheck` from the predictions of all points; not finite where a prediction is not."""
    corners, reach = box_frame(image_size, strides)
    logits = [np.clip(scores.astype(np.float64), _EPSILON, 1 - _EPSILON) for scores, _ in (found, expected)]
    logits = [np.log(values / (1 - values)) for values in logits]
    sides = [(boxes.astype(np.float64) - corners) / reach for _, boxes in (found, expected)]
    differences = found[1].astype(np.float64) - expected[1]
    weights = _weights(expected[0])
    return {
        "scores": float(np.abs(found[0].astype(np.float64) - expected[0]).max()),
        "boxes": float(np.abs(differences).max()),
        "score_error": _relative(logits[0], logits[1], weights),
        "box_error": _relative(sides[0], sides[1], weights),
        "box_shift": float(np.abs((weights[..., None] * differences).sum(axis=(0, 1))).max()),
    }


def _weights(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """(B, P) how much each point counts; the sum is 1."""
    best = np.square(scores.astype(np.float64).max(axis=-1)) + _EPSILON**2
    return best / best.sum()


def _relative(found: NDArray[np.float64], expected: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Root of the weighted mean square of the differences, in units of the deviation of what is expected."""
    shares = weights[..., None] / expected.shape[-1]
    spread = float(np.sqrt((shares * np.square(expected - (shares * expected).sum())).sum()))
    return float(np.sqrt((shares * np.square(found - expected)).sum())) / max(spread, _EPSILON)


def _points(outputs: Mapping[str, NDArray[Any]], card: ModelCard, image_size: tuple[int, int]) -> Pair:
    if card.form == "raw":
        return decode(outputs["cls_logits"], outputs["box_logits"], image_size, card.structure.strides)
    return outputs["scores"], outputs["boxes"]


def _match(
    predictor: ExportedDetector, settings: NmsSettings, references: Sequence[Reference]
) -> tuple[dict[str, float], int]:
    """Figures from pairs of one class whose boxes overlap by `_MATCH_IOU`, and the number of torch's detections."""
    options = asdict(settings)
    unmatched = total = 0
    scores = boxes = 0.0
    for reference in references:
        tensors = reference.tensors
        results = zip(predictor.detect(reference.images, **options), tensors["scores"], tensors["boxes"], strict=True)
        for found, image_scores, image_boxes in results:
            wanted = select_best(image_scores, image_boxes, **options)
            total += len(wanted[0])
            pairs = _pairs(wanted[0], wanted[2], found.boxes, found.labels)
            unmatched += len(wanted[0]) + len(found.boxes) - 2 * len(pairs)
            for first, second in pairs:
                scores = max(scores, float(abs(wanted[1][first] - found.scores[second])))
                boxes = max(boxes, float(np.abs(wanted[0][first] - found.boxes[second]).max()))
    return {"scores": scores, "boxes": boxes, "unmatched": float(unmatched)}, total


def _pairs(
    wanted: NDArray[np.float32], wanted_labels: NDArray[Any], found: NDArray[np.float32], found_labels: NDArray[Any]
) -> list[tuple[int, int]]:
    """Indices of counterparts, each used once, best scores first."""
    free = np.ones(len(found), dtype=bool)
    pairs = []
    for index, (box, label) in enumerate(zip(wanted, wanted_labels, strict=True)):
        overlaps = np.where(free & (found_labels == label), _overlaps(box, found), 0.0)
        if len(overlaps) and overlaps.max() >= _MATCH_IOU:
            best = int(overlaps.argmax())
            free[best] = False
            pairs.append((index, best))
    return pairs


def _overlaps(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """IoU of one box with many; boxes without an area overlap with themselves only."""
    first, others = box.astype(np.float64), boxes.astype(np.float64)
    sides = np.minimum(first[2:], others[:, 2:]) - np.maximum(first[:2], others[:, :2])
    shared = sides.clip(0).prod(axis=1)
    union = (first[2:] - first[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    same = np.abs(others - first).max(axis=1) < _EPSILON if len(others) else np.zeros(0, dtype=bool)
    return np.where(union > 0, shared / np.where(union > 0, union, 1), same)


def _open_probe(path: Path, runtime: str) -> Session | None:
    """The artifact with the predictions of all points as outputs too; None where its format or graph has none."""
    if path.suffix == ".onnx":
        onnx = require("onnx", extra="onnx", purpose="verifying an export")
        proto = onnx.load(str(path))
        if not set(_PROBE) <= {name for node in proto.graph.node for name in node.output}:
            return None
        for name in _PROBE:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return SESSIONS[runtime](proto.SerializeToString())
    if path.suffix != ".xml":
        return None
    graph = openvino_core(purpose="verifying an export").read_model(str(path))
    try:
        graph.add_outputs(list(_PROBE))
    except RuntimeError:
        return None
    openvino = require("openvino", extra="openvino", purpose="verifying an export")
    with tempfile.TemporaryDirectory(prefix="maenas-") as folder:
        copy = Path(folder) / "probe.xml"
        openvino.serialize(graph, str(copy))
        return SESSIONS[runtime](copy)


def _likeliest_mistake(
    found: Pair, error: float, model: Detector, references: Sequence[Reference], tells: float = 1 / INT8_MISTAKE
) -> tuple[float, str | None]:
    """Error of the scores in units of the least one from torch with a mistake, and that mistake where it is the cause.

    Args:
        found: Predictions of the artifact.
        error: `score_error` of them.
        model: The network.
        references: Images.
        tells: How near torch with a mistake must be, as a part of the error, for it to be the cause.
    """
    first = references[0].images
    size, others = (first.shape[2], first.shape[3]), {}
    for told, change in _MISTAKES.items():
        results = [torch_results(model, change(reference.images)) for reference in references]
        changed = _joined([(tensors["scores"], tensors["boxes"]) for tensors in results])
        others[told] = point_figures(found, changed, size, model.strides)["score_error"]
    told, least = min(others.items(), key=lambda entry: entry[1])
    return error / max(least, _EPSILON), told if least < tells * error else None


def _common_shift(found: Pair, expected: Pair, size: tuple[int, int], strides: Sequence[int]) -> str | None:
    """What is said where all boxes are off by the same, in pixels or in cells of their level."""
    shares = _weights(expected[0])[..., None]
    differences = found[1].astype(np.float64) - expected[1]
    for unit, scaled in (("pixels", differences), ("cells", differences / np.abs(box_frame(size, strides)[1]))):
        middle = (shares * scaled).sum(axis=(0, 1))
        left, whole = ((shares * np.square(values)).sum() for values in (scaled - middle, scaled))
        if left < _SHIFT_LEFT**2 * whole:
            return f"all boxes are shifted by {', '.join(f'{value:.3g}' for value in middle)} {unit}"
    return None


_MISTAKES = {
    "it takes BGR images, not RGB": lambda images: np.ascontiguousarray(images[:, ::-1]),
    "it halves its input": lambda images: images / 2,
    "it divides its input by 255": lambda images: images / 255,
    "it multiplies its input by 255": lambda images: images * 255,
}
"""Mistakes about the input, and what they do to it."""
