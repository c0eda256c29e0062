"""How far an exported artifact is from torch: what comes out of the files, opened as a user opens them.

Tensor letters: B images, P points of all levels, C classes, N detections of one image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

INT8_ERROR = 0.3
"""Largest `score_error` and `box_error` of an int8 artifact.

A trained detector had 0.03 and 0.06 in int8 on photographs; with channels swapped it had 0.42 and 0.33, with a halved
input 1.3 and 1.8. Whether what is lost matters is for AP to say.
"""

INT8_SHIFT = 0.03
"""Largest `box_shift` of an int8 artifact, as a part of the boxes' mean side (at least `_LEAST_SHIFT_PX`): rounding
errors of many points average out, a wrong frame does not. The same detector was off by 0.011 of it."""

_LEAST_SHIFT_PX = 1.0

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
            the mean difference of the coordinate that is off most, in pixels; `unmatched`: in the nms form, detections
            without a counterpart of the same class. What a file does not tell is left out.
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
        for reference in asked:
            checks.append(_compare(predictor, probe, model, reference))
    return tuple(checks)


def _compare(predictor: ExportedDetector, probe: Session | None, model: Detector, reference: Reference) -> ParityCheck:
    card, images = predictor.card, reference.images
    expected = (reference.tensors["scores"], reference.tensors["boxes"])
    figures: dict[str, float] = {}
    limits: dict[str, float] = {}
    count, found = None, None
    if card.nms is None:
        found = _points(predictor.run(images), card, images.shape[2:])
    elif probe is not None:
        inner = probe.run({card.input.name: images})
        found = (inner[_PROBE[0]].swapaxes(1, 2), inner[_PROBE[1]])
    if found is not None:
        for name, values, wanted in zip(("scores", "boxes"), found, expected, strict=True):
            if values.shape != wanted.shape:
                raise ExportError(f"{name} has shape {values.shape} in {predictor.runtime}; torch gives {wanted.shape}")
        figures = point_figures(found, expected, images.shape[2:], model.strides)
        limits = _limits(card.precision, reference)
    if card.nms is not None:
        matching, count = _match(predictor, card.nms, expected, images)
        figures = {**matching, **figures}
        limits = {**limits, "unmatched": max(2.0, UNMATCHED[card.precision] * count)}
        if found is None and card.precision != "int8":
            limits |= {name: limit for name, limit in _limits(card.precision, reference).items() if name in figures}
    version = predictor.session_version
    check = ParityCheck(predictor.runtime, version, reference.source, images.shape, figures, limits, count)
    if found is None or not check.failures:
        return check
    return ParityCheck(
        check.runtime, version, check.source, check.shape, figures, limits, count, _cause(found, model, reference)
    )


def _limits(precision: str, reference: Reference) -> dict[str, float]:
    if precision == "int8":
        boxes = reference.tensors["boxes"]
        side = float(np.abs(boxes[..., 2:] - boxes[..., :2]).mean())
        shift = max(_LEAST_SHIFT_PX, INT8_SHIFT * side)
        return {"score_error": INT8_ERROR, "box_error": INT8_ERROR, "box_shift": shift}
    tolerances = reference.tolerances(precision)
    # Where single boxes may be off by much, all together may not.
    shift = max(FLOORS[precision]["boxes"] / 2, tolerances["boxes"] / 20)
    return {"scores": tolerances["scores"], "boxes": tolerances["boxes"], "box_shift": shift}


def point_figures(
    found: Pair, expected: Pair, image_size: tuple[int, int], strides: Sequence[int] = STRIDES
) -> dict[str, float]:
    """Figures of a `ParityCheck` from the predictions of all points; not finite where a prediction is not."""
    corners, reach = box_frame(image_size, strides)
    logits = [np.clip(scores.astype(np.float64), _EPSILON, 1 - _EPSILON) for scores, _ in (found, expected)]
    logits = [np.log(values / (1 - values)) for values in logits]
    sides = [(boxes.astype(np.float64) - corners) / reach for _, boxes in (found, expected)]
    differences = found[1].astype(np.float64) - expected[1]
    return {
        "scores": float(np.abs(found[0].astype(np.float64) - expected[0]).max()),
        "boxes": float(np.abs(differences).max()),
        "score_error": _relative(*logits),
        "box_error": _relative(*sides),
        "box_shift": float(np.abs(differences.mean(axis=(0, 1))).max()),
    }


def _relative(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    spread = float(expected.std())
    error = float(np.sqrt(np.square(found - expected).mean()))
    return error / max(spread, _EPSILON)


def _points(outputs: Mapping[str, NDArray], card: ModelCard, image_size: tuple[int, int]) -> Pair:
    if card.form == "raw":
        return decode(outputs["cls_logits"], outputs["box_logits"], image_size, card.structure.strides)
    return outputs["scores"], outputs["boxes"]


def _match(
    predictor: ExportedDetector, settings: NmsSettings, expected: Pair, images: NDArray[np.float32]
) -> tuple[dict[str, float], int]:
    """Figures from pairs of one class whose boxes overlap by `_MATCH_IOU`, and the number of torch's detections."""
    options = asdict(settings)
    unmatched = total = 0
    scores = boxes = 0.0
    results = zip(predictor.detect(images, **options), *expected, strict=True)
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
    wanted: NDArray[np.float32], wanted_labels: NDArray, found: NDArray[np.float32], found_labels: NDArray
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


def _cause(found: Pair, model: Detector, reference: Reference) -> str | None:
    """What explains the differences: a usual mistake about the input, or boxes that are all off by the same."""
    expected, size = reference.tensors["scores"], reference.images.shape[2:]
    error = point_figures(found, (expected, reference.tensors["boxes"]), size, model.strides)
    for told, change in _MISTAKES.items():
        changed = torch_results(model, change(reference.images))
        other = point_figures(found, (changed["scores"], changed["boxes"]), size, model.strides)
        if other["score_error"] < 0.2 * error["score_error"]:
            return told
    differences = found[1].astype(np.float64) - reference.tensors["boxes"]
    for unit, scaled in (("pixels", differences), ("cells", differences / np.abs(box_frame(size, model.strides)[1]))):
        middle = np.median(scaled, axis=(0, 1))
        if np.abs(middle).max() > 0 and np.abs(scaled - middle).max() < 0.1 * np.abs(middle).max():
            return f"all boxes are shifted by {', '.join(f'{value:.3g}' for value in middle)} {unit}"
    return None


_MISTAKES = {
    "it takes BGR images, not RGB": lambda images: np.ascontiguousarray(images[:, ::-1]),
    "it halves its input": lambda images: images / 2,
    "it divides its input by 255": lambda images: images / 255,
    "it multiplies its input by 255": lambda images: images * 255,
}
"""Mistakes about the input, and what they do to it."""
