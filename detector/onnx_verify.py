"""Whether runtimes compute from an exported graph what torch computes from the network.

Tensor letters: B images, P points of all levels, C classes, K = rows per image of the nms form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maenas.extras import require

from .artifact import ModelCard, NmsSettings
from .decode import STRIDES
from .errors import ExportError
from .model import Detector
from .nms import select_best
from .onnx_tail import Tail
from .runtimes import SESSIONS, Session, first_line, is_installed

FLOORS = {"fp32": {"scores": 1e-4, "boxes": 0.05}, "fp16": {"scores": 5e-3, "boxes": 0.5}}
"""Smallest tolerances per precision: scores absolute, boxes in pixels."""

LOGIT_FLOORS = {"fp32": (1e-5, 1e-6), "fp16": (5e-3, 2e-3)}
"""Smallest tolerance of logits: parts of their range and of their largest value, the latter a few roundings.

Untrained networks give nearly constant logits, around which errors would hide if only the size counted.
"""

ROUNDING = {"fp32": 10.0, "fp16": 2.0**13}
"""How many times torch's own rounding error (float32 against float64) a runtime may differ from torch.

Another order of the same sums errs about as much as torch does; 10 leaves room for luck. Half precision has 13 bits
less. Only networks with very large activations, such as made-up weights, get past the floors by this.
"""

_SEED = 20221127
_IOU_SLACK = 1e-5
"""Two IoUs that differ by rounding may fall on both sides of the threshold; not counted as an error."""

_INNER = {
    "raw": {},
    "decoded": {"cls_logits": "cls_logits", "box_logits": "box_logits"},
    "nms": {"class_logits": "cls_logits", "box_logits": "box_logits", "class_scores": "scores", "point_boxes": "boxes"},
}
"""Tensors inside a graph that are compared too: name there, and what they are."""

Arrays = dict[str, NDArray]


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


def verify_export(model: Detector, proto: Any, card: ModelCard, tail: Tail) -> tuple[RuntimeCheck, ...]:  # noqa: ANN401
    """Run a graph in every installed runtime and compare it with torch.

    Args:
        model: The deployed network that the graph stands for.
        proto: The graph, complete but for its metadata.
        card: What it claims to be.
        tail: How its end was built.

    Returns:
        One check per runtime and input shape; two shapes where an axis is free.

    Raises:
        ExportError: A runtime refuses the graph or differs by more than the tolerance.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", extra="onnx", purpose="verifying an export with ONNX Runtime")
    network = copy.deepcopy(model).cpu().float().eval()
    content, probe = proto.SerializeToString(), _with_inner_outputs(proto, card).SerializeToString()
    cases = []
    for shape in _shapes(card):
        images = example_images(shape)
        if card.precision == "fp16":
            _check_half_range(network, images)
        expected, rounding = _expected(network, images)
        cases.append((images, expected, _tolerances(expected, rounding, card.precision)))
    checks = []
    for runtime in [name for name in SESSIONS if is_installed(name)]:
        try:
            session, inner = SESSIONS[runtime](content), SESSIONS[runtime](probe)
            ends = None if card.nms is None else SESSIONS[runtime](_nms_part(proto, tail, card).SerializeToString())
            for images, expected, tolerances in cases:
                found = _canonical(inner.run({card.input.name: images}), card)
                own = session.run({card.input.name: images})
                _check_outputs(own, images, card, runtime)
                if card.nms is None:
                    found |= own
                differences = _differences(found, expected, tolerances, runtime)
                count = None
                if ends is not None and card.nms is not None:
                    count = _check_nms(ends, tail, card.nms, images.shape, runtime)
                checks.append(RuntimeCheck(runtime, session.version, images.shape, differences, tolerances, count))
        except ExportError:
            raise
        except Exception as error:  # every runtime has its own errors, some of them plain RuntimeErrors
            raise ExportError(f"the exported graph fails in {runtime}: {first_line(error)}") from error
    return tuple(checks)


def example_images(shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Made-up pictures, the same for the same shape: flat patches of 32 pixels under noise, whole numbers 0 ... 255."""
    rng = np.random.default_rng([_SEED, *shape])
    batch, channels, height, width = shape
    patches = rng.uniform(0, 205, (batch, channels, height // 32, width // 32))
    noise = rng.uniform(0, 50, shape)
    return np.round(patches.repeat(32, axis=2).repeat(32, axis=3) + noise).astype(np.float32)


def _shapes(card: ModelCard) -> list[tuple[int, int, int, int]]:
    height, width = card.image_size
    channels = card.input.shape[1] or 3
    first = (card.batch or 1, channels, height, width)
    if card.batch is not None and card.fixed_size:
        return [first]
    # Another number of images, and sides that differ from each other.
    other = card.image_size if card.fixed_size else (2 * STRIDES[-1], 3 * STRIDES[-1])
    return [first, (card.batch or 2, channels, *other)]


def _expected(network: Detector, images: NDArray[np.float32]) -> tuple[Arrays, dict[str, float]]:
    """Torch's results in float32, and how far they are from those in float64."""
    single = _torch_results(network, torch.from_numpy(images))
    try:
        double = _torch_results(network.double(), torch.from_numpy(images).double())
    finally:
        network.float()
    return single, {name: _largest(single[name], double[name]) for name in single}


def _check_half_range(network: Detector, images: NDArray[np.float32]) -> None:
    """Refuse a network whose maps overflow half precision: on a CPU, runtimes compute in float32 and hide it."""
    largest: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            largest[name] = float(output.abs().max())

        return hook

    convs = [(name, module) for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    hooks = [module.register_forward_hook(note(name)) for name, module in convs]
    try:
        with torch.inference_mode():
            network(torch.from_numpy(images))
    finally:
        for handle in hooks:
            handle.remove()
    name, value = max(largest.items(), key=lambda item: item[1])
    limit = torch.finfo(torch.float16).max
    if not value <= limit:
        raise ExportError(f"{name} gives values up to {value:.3g}; half precision holds up to {limit:.0f}: use fp32")


def _torch_results(network: Detector, images: torch.Tensor) -> Arrays:
    with torch.inference_mode():
        output = network(images)
        scores, boxes = network.decode(output)
    logits = output.cls_logits[..., : network.num_classes]
    tensors = {"cls_logits": logits, "box_logits": output.box_logits, "scores": scores, "boxes": boxes}
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def _tolerances(expected: Arrays, rounding: Mapping[str, float], precision: str) -> dict[str, float]:
    floors, factor, (spread, size) = FLOORS[precision], ROUNDING[precision], LOGIT_FLOORS[precision]
    limits = {}
    for name, values in expected.items():
        of_logits = spread * float(np.ptp(values)) + size * float(np.abs(values).max())
        limits[name] = max(floors.get(name, of_logits), factor * rounding[name])
    return limits


def _differences(found: Arrays, expected: Arrays, tolerances: Mapping[str, float], runtime: str) -> dict[str, float]:
    differences = {}
    for name, values in found.items():
        if values.shape != expected[name].shape:
            raise ExportError(f"{name} has shape {values.shape} in {runtime}; torch gives {expected[name].shape}")
        if not np.isfinite(values).all():
            raise ExportError(
                f"{name} holds numbers that are not finite in {runtime}; expected finite ones; no file was written"
            )
        difference = _largest(values, expected[name])
        if difference > tolerances[name]:
            raise ExportError(
                f"{name} differs from torch by {difference:.3g} in {runtime}; expected at most {tolerances[name]:.3g}; "
                "no file was written"
            )
        differences[name] = difference
    return differences


def _largest(first: NDArray, second: NDArray) -> float:
    return float(np.abs(first.astype(np.float64) - second).max())


def _check_outputs(outputs: Arrays, images: NDArray, card: ModelCard, runtime: str) -> None:
    """Names, shapes and types as the card says."""
    for output in card.outputs:
        values = outputs[output.name]
        wanted = [images.shape[0], *output.shape[1:]]
        agree = all(w in (None, f) for w, f in zip(wanted, values.shape, strict=False))
        if values.ndim != len(wanted) or not agree or str(values.dtype) != output.dtype:
            raise ExportError(
                f"{output.name} is {values.dtype} {values.shape} in {runtime}; expected {output.dtype} {tuple(wanted)}"
            )


def _with_inner_outputs(proto: Any, card: ModelCard) -> Any:  # noqa: ANN401
    onnx = _onnx()
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    for name in _INNER[card.form] or [output.name for output in card.outputs]:
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return probe


def _canonical(outputs: Arrays, card: ModelCard) -> Arrays:
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
            raise ExportError(
                f"the detections of {runtime} are not those of the network's post-processing; no file was written"
            )
        total += int(count)
    return total


def _wanted(outputs: Arrays, image: int, settings: NmsSettings, slack: float) -> tuple[NDArray, NDArray, NDArray]:
    return select_best(
        outputs["class_scores"][image].T,
        outputs["point_boxes"][image],
        score_threshold=settings.score_threshold,
        iou_threshold=settings.iou_threshold + slack,
        max_detections=settings.max_detections,
    )


def _sorted_rows(boxes: NDArray, scores: NDArray, labels: NDArray) -> NDArray:
    """(D, 6) rows in an order that does not depend on how equal scores are ordered."""
    rows = np.column_stack([-scores, labels, boxes]).astype(np.float64)
    return rows[np.lexsort(rows.T[::-1])]


def _same_rows(found: NDArray, wanted: NDArray) -> bool:
    return found.shape == wanted.shape and bool(np.array_equal(found, wanted))


def _example_maps(tail: Tail, settings: NmsSettings, shape: tuple[int, ...]) -> Arrays:
    """Random maps in which up to 2000 pairs of point and class pass the threshold, many of them of one class."""
    rng = np.random.default_rng([_SEED, *shape])
    batch, _, height, width = shape
    sizes = [(height // stride, width // stride) for stride in STRIDES]
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
