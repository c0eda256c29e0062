"""Whether runtimes compute from an exported graph what torch computes from the network.

Tensor letters: B images, P points of all levels, C classes, K = rows per image of the nms form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .artifact import ModelCard, NmsSettings
from .errors import ExportError
from .export_reference import Arrays, Reference, largest_difference
from .nms import select_best
from .onnx_tail import Tail
from .runtimes import SESSIONS, Session, first_line, is_installed

RUNTIMES = ("onnxruntime", "openvino")
"""Those that read ONNX files on any machine."""

_SEED = 20221127
_IOU_SLACK = 1e-5
"""Two IoUs that differ by rounding may fall on both sides of the threshold; not counted as an error."""

_INNER = {
    "raw": {},
    "decoded": {"cls_logits": "cls_logits", "box_logits": "box_logits"},
    "nms": {"class_logits": "cls_logits", "box_logits": "box_logits", "class_scores": "scores", "point_boxes": "boxes"},
}
"""Tensors inside a graph that are compared too: name there, and what they are."""


@dataclass(frozen=True, slots=True)
class RuntimeCheck:
    """One comparison with torch.

    Attributes:
        runtime: Name of the runtime.
        version: Of the runtime.
        shape: (B, 3, H, W) of the input.
        differences: Largest absolute difference per tensor, boxes in pixels.
        tolerances: Largest that was allowed.
        num_detections: In the nms form: detections of made-up predictions that were compared one by one with
            `detector.postprocess`; None in others.
    """

    runtime: str
    version: str
    shape: tuple[int, int, int, int]
    differences: Mapping[str, float]
    tolerances: Mapping[str, float]
    num_detections: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {**asdict(self), "shape": list(self.shape)}


def verify_export(
    references: Sequence[Reference],
    proto: Any,  # noqa: ANN401
    card: ModelCard,
    tail: Tail,
) -> tuple[RuntimeCheck, ...]:
    """Run a graph in every installed runtime and compare it with torch.

    Args:
        references: What torch makes of some images.
        proto: The graph, complete but for its metadata; fp32 or fp16.
        card: What it claims to be.
        tail: How its end was built.

    Returns:
        One check per runtime and reference.

    Raises:
        ExportError: A runtime refuses the graph or differs by more than the tolerance.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", extra="onnx", purpose="verifying an export with ONNX Runtime")
    content, probe = proto.SerializeToString(), with_inner_outputs(proto, card).SerializeToString()
    checks = []
    for runtime in [name for name in RUNTIMES if is_installed(name)]:
        try:
            session, inner = SESSIONS[runtime](content), SESSIONS[runtime](probe)
            ends = None if card.nms is None else SESSIONS[runtime](_nms_part(proto, tail, card).SerializeToString())
            for reference in references:
                images, tolerances = reference.images, reference.tolerances(card.precision)
                found = canonical(inner.run({card.input.name: images}), card)
                own = session.run({card.input.name: images})
                _check_outputs(own, images, card, runtime)
                if card.nms is None:
                    found |= own
                differences = _differences(found, reference.tensors, tolerances, runtime)
                count = None
                if ends is not None and card.nms is not None:
                    count = _check_nms(ends, tail, card.nms, images.shape, runtime)
                checks.append(RuntimeCheck(runtime, session.version, images.shape, differences, tolerances, count))
        except ExportError:
            raise
        except Exception as error:  # every runtime has its own errors, some of them plain RuntimeErrors
            raise ExportError(f"the exported graph fails in {runtime}: {first_line(error)}") from error
    return tuple(checks)


def _differences(
    found: Arrays, expected: Mapping[str, NDArray[Any]], tolerances: Mapping[str, float], runtime: str
) -> dict[str, float]:
    differences = {}
    for name, values in found.items():
        if values.shape != expected[name].shape:
            raise ExportError(f"{name} has shape {values.shape} in {runtime}; torch gives {expected[name].shape}")
        if not np.isfinite(values).all():
            raise ExportError(f"{name} holds numbers that are not finite in {runtime}; expected finite ones")
        difference = largest_difference(values, expected[name])
        if difference > tolerances[name]:
            raise ExportError(
                f"{name} differs from torch by {difference:.3g} in {runtime}; expected at most {tolerances[name]:.3g}"
            )
        differences[name] = difference
    return differences


def _check_outputs(outputs: Arrays, images: NDArray[Any], card: ModelCard, runtime: str) -> None:
    """Names, shapes and types as the card says."""
    for output in card.outputs:
        values = outputs[output.name]
        wanted = [images.shape[0], *output.shape[1:]]
        agree = all(w in (None, f) for w, f in zip(wanted, values.shape, strict=False))
        if values.ndim != len(wanted) or not agree or str(values.dtype) != output.dtype:
            raise ExportError(
                f"{output.name} is {values.dtype} {values.shape} in {runtime}; expected {output.dtype} {tuple(wanted)}"
            )


def with_inner_outputs(proto: Any, card: ModelCard) -> Any:  # noqa: ANN401
    """A copy of a graph whose outputs are the inner tensors that torch has too."""
    onnx = _onnx()
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    for name in _INNER[card.form] or [output.name for output in card.outputs]:
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return probe


def canonical(outputs: Arrays, card: ModelCard) -> Arrays:
    """Inner tensors under the names of torch's, class by point turned to point by class."""
    names = _INNER[card.form]
    return {
        names.get(name, name): values.swapaxes(1, 2) if name.startswith("class_") else values
        for name, values in outputs.items()
    }


def _nms_part(proto: Any, tail: Tail, card: ModelCard) -> Any:  # noqa: ANN401
    """The graph's own end, from the head's maps on, with its decoded tensors as further outputs."""
    onnx = _onnx()
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    outputs = [*(output.name for output in card.outputs), "class_scores", "point_boxes"]
    return onnx.utils.Extractor(whole).extract_model([*tail.class_maps, *tail.box_maps], outputs)


def _check_nms(session: Session, tail: Tail, settings: NmsSettings, shape: tuple[int, ...], runtime: str) -> int:
    """Detections of made-up maps must be those of `select_best`; returns how many there were."""
    outputs = session.run(_example_maps(tail, settings, shape))
    total = 0
    for image, count in enumerate(outputs["num_dets"][:, 0]):
        rows = [outputs[name][image] for name in ("boxes", "scores", "classes")]
        found = _sorted_rows(*(values[:count] for values in rows))
        blanks = [values[count:] for values in rows]
        padded = not blanks[0].any() and not blanks[1].any() and bool((blanks[2] == -1).all())
        if not padded or not any(
            _same_rows(found, _sorted_rows(*_wanted(outputs, image, settings, slack)))
            for slack in (0.0, _IOU_SLACK, -_IOU_SLACK)
        ):
            raise ExportError(f"the detections of {runtime} are not those of the network's post-processing")
        total += int(count)
    return total


def _wanted(
    outputs: Arrays, image: int, settings: NmsSettings, slack: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return select_best(
        outputs["class_scores"][image].T,
        outputs["point_boxes"][image],
        score_threshold=settings.score_threshold,
        iou_threshold=settings.iou_threshold + slack,
        max_detections=settings.max_detections,
    )


def _sorted_rows(boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """(D, 6) rows in an order that does not depend on how equal scores are ordered."""
    rows = np.column_stack([-scores, labels, boxes]).astype(np.float64)
    return rows[np.lexsort(rows.T[::-1])]


def _same_rows(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return found.shape == wanted.shape and bool(np.array_equal(found, wanted))


def _example_maps(tail: Tail, settings: NmsSettings, shape: tuple[int, ...]) -> Arrays:
    """Random maps in which up to 2000 pairs of point and class pass the threshold, many of them of one class."""
    rng = np.random.default_rng([_SEED, *shape])
    batch, _, height, width = shape
    sizes = [(height // stride, width // stride) for stride in tail.strides]
    channels = tail.num_classes + int(tail.has_background)
    pairs = tail.num_classes * sum(rows * columns for rows, columns in sizes)
    threshold = min(max(settings.score_threshold, 1e-3), 1 - 1e-3)
    maps = {}
    classes = [rng.standard_normal((batch, channels, *size)) for size in sizes]
    for level in classes:
        level[:, 0] += 3
    flat = np.concatenate([level[:, : tail.num_classes].reshape(batch, -1) for level in classes], axis=1)
    shift = np.log(threshold / (1 - threshold)) - np.quantile(flat, 1 - min(0.1, 2000 / pairs))
    for name, level in zip(tail.class_maps, classes, strict=True):
        maps[name] = (level + shift).astype(np.float32)
    for name, size in zip(tail.box_maps, sizes, strict=True):
        maps[name] = rng.standard_normal((batch, 4 * (tail.reg_max + 1), *size)).astype(np.float32)
    return maps


def _onnx() -> Any:  # noqa: ANN401
    return require("onnx", extra="onnx", purpose="verifying an export")
