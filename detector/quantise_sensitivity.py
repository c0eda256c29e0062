"""How much the network's answers suffer when one layer alone is computed in int8.

Tensor letters: B images, P points of all levels, C classes, R = reg_max.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .export_int8 import QuantiseRequest
from .quantise_layers import Layer
from .quantise_onnx import OnnxQuantiser, batches
from .runtimes import OnnxRuntimeSession

IMAGES = 8
"""Calibration images that the sensitivity is measured on."""

_ANSWERS = ("class_logits", "box_logits")
"""Inner tensors that every form of an export has."""

_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Of one layer.

    Attributes:
        layer: Which one.
        class_error: Root mean square of the change of class logits, in units of their deviation over all points.
        box_error: The same of the distances from points to box sides.
    """

    layer: Layer
    class_error: float
    box_error: float

    @property
    def value(self) -> float:
        """Both together; layers are ranked by it."""
        return float(np.hypot(self.class_error, self.box_error))


def measure_sensitivity(
    request: QuantiseRequest, quantiser: OnnxQuantiser, *, progress: Callable[[int, int], None] | None = None
) -> tuple[Sensitivity, ...]:
    """Quantise every layer alone and compare the answers with the float network's, in ONNX Runtime.

    Rounded are its input, also for others that read it, its weights and its result.

    Points count as much as the float network is sure that there is an object: errors where nothing is do no harm.

    Args:
        request: Whose images are used, the first `IMAGES`.
        quantiser: Of the network, calibrated.
        progress: Called with layers done and layers in all.

    Returns:
        One entry per layer, the most sensitive first.
    """
    images = list(islice(batches(request), -(-IMAGES // (request.card.batch or 1))))
    expected = [_answers(quantiser.proto, images)]
    found = []
    for done, layer in enumerate(quantiser.layers, start=1):
        errors = _errors(_answers(quantiser.only(layer), images), expected[0])
        found.append(Sensitivity(layer, *errors))
        if progress is not None:
            progress(done, len(quantiser.layers))
    return tuple(sorted(found, key=lambda entry: -entry.value))


def sensitivity_csv(entries: Sequence[Sensitivity], higher: Sequence[str]) -> str:
    """A table: layer, both errors, their sum, multiply-accumulates, precision of the layer in the end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "sensitivity", "class_error", "box_error", "macs", "precision"])
    for entry in entries:
        precision = "float" if entry.layer.name in higher else "int8"
        errors = (entry.value, entry.class_error, entry.box_error)
        writer.writerow([entry.layer.name, *(f"{error:.6g}" for error in errors), entry.layer.macs, precision])
    return text.getvalue()


def _answers(proto: Any, images: Sequence[NDArray[np.float32]]) -> tuple[NDArray[Any], NDArray[Any]]:  # noqa: ANN401
    """Class logits (B, C, P) and distances to the box sides in cells (B, P, 4) of all images."""
    onnx = require("onnx", extra="onnx", purpose="quantising a network")
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    for name in _ANSWERS:
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = OnnxRuntimeSession(probe.SerializeToString())
    results = [session.run({session.input_names[0]: batch}) for batch in images]
    logits, boxes = (np.concatenate([result[name] for result in results]).astype(np.float64) for name in _ANSWERS)
    weights = np.exp(boxes - boxes.max(axis=-1, keepdims=True))
    cells = (weights * np.arange(boxes.shape[-1])).sum(axis=-1) / weights.sum(axis=-1)
    return logits, cells


def _errors(
    found: tuple[NDArray[Any], NDArray[Any]], expected: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[float, float]:
    logits, cells = expected
    sure = (1 / (1 + np.exp(-logits))).max(axis=1)
    per_point = (((found[0] - logits) ** 2).mean(axis=1), ((found[1] - cells) ** 2).mean(axis=2))
    spread = (logits.std(), cells.std())
    errors = [
        float(np.sqrt((sure * squares).sum() / sure.sum()) / max(float(deviation), _EPSILON))
        for squares, deviation in zip(per_point, spread, strict=True)
    ]
    return errors[0], errors[1]
