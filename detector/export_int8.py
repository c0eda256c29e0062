"""The seam between an export and a quantiser: what a quantiser is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artifact import ModelCard
from .runtimes import Session


@dataclass(frozen=True, slots=True)
class QuantiseRequest:
    """A float network to be quantised, and the means to judge the result.

    Attributes:
        onnx_path: The network in fp32, in the form that was asked for, checked against torch already; not to be
            changed. Weights keep the names of their modules (`model.backbone...weight`), so a convolution is known
            by its second input.
        card: What that file is (`precision` is `fp32`).
        format: `onnx`, `openvino` or `tensorrt`: what the result is for.
        folder: Exists, is empty and belongs to the quantiser: results and intermediate files go here.
        images: Calibration images, each (1, 3, H, W) float32, RGB in 0 ... 255, resized as for prediction; every call
            begins anew and gives the same images in the same order.
        num_images: How many `images` gives.
        evaluate: AP between 0 and 1 of a file in `folder` (.onnx, or .xml with its .bin), measured on the data that
            was given, as `maenas eval` would; the lowest of the installed runtimes that read it; takes as long as that.
        evaluate_session: The same of a graph that a runtime holds already, with the inputs and outputs of the file.
        reference_ap: The same of the network in torch.
        max_drop: How much AP (0 ... 1) may be lost; a quantiser that cannot keep it raises `ExportError`.
        progress: Called with one line now and then.
    """

    onnx_path: Path
    card: ModelCard
    format: str
    folder: Path
    images: Callable[[], Iterator[NDArray[np.float32]]]
    num_images: int
    evaluate: Callable[[Path], float]
    evaluate_session: Callable[[Session], float]
    reference_ap: float
    max_drop: float
    progress: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Quantised:
    """A quantised network.

    Attributes:
        path: In the request's folder: .onnx with QuantizeLinear / DequantizeLinear for the formats `onnx` and
            `tensorrt`, an .xml with its .bin beside it for `openvino`. Inputs and outputs are those of the request's
            file: same names, shapes and types.
        details: For the card, plain JSON: tool and version, settings, layers left in higher precision, sensitivities.
    """

    path: Path
    details: Mapping[str, Any] = field(default_factory=dict)


Quantiser = Callable[[QuantiseRequest], Quantised]
"""Raises `ExportError` where the AP cannot be kept, `MissingExtraError` where its package is missing."""
