"""Quantised networks for tests: small detectors put through ONNX Runtime's quantisers with random images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maenas.published import load_published

FORMS = ("qdq", "operators", "dynamic")


def export(structure, path: Path) -> Path:
    pytest.importorskip("torch")
    from maenas.cli.detector import exporter

    exporter(seed=0)(structure, path)
    return path


def gated_ns(side: int = 64):
    """The smallest published network, one of its stages with gates."""
    structure = replace(load_published("damo-yolo-ns"), image_size=(side, side))
    stages = [replace(stage, se=index == 1) for index, stage in enumerate(structure.backbone.stages)]
    return replace(structure, backbone=replace(structure.backbone, stages=tuple(stages)))


def quantise(path: Path, target: Path, form: str = "qdq", *, side: int = 64) -> Path:
    """Write the quantised form of a network; scales from two random images."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    if form == "dynamic":
        quantization.quantize_dynamic(path, target, weight_type=quantization.QuantType.QUInt8)
        return target

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [np.random.default_rng(seed).uniform(0, 255, (1, 3, side, side)) for seed in range(2)]

        def get_next(self):
            return {"images": self.left.pop().astype(np.float32)} if self.left else None

    quantization.quantize_static(
        path,
        target,
        Images(),
        quant_format=quantization.QuantFormat.QDQ if form == "qdq" else quantization.QuantFormat.QOperator,
        per_channel=True,
        # ONNX Runtime on x86 runs most convolutions of signed maps in fp32.
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return target
