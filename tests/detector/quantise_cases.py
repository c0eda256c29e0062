"""Shared by the tests of int8: a small network in which one layer does not stand rounding, and requests about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from export_cases import lively, small_structure
from numpy.typing import NDArray

from detector.export_graph import ExportOptions, Graph, build_graph
from detector.export_int8 import QuantiseRequest
from detector.export_reference import example_images
from detector.model import Detector
from detector.runtimes import OnnxRuntimeSession, OpenVinoSession, Session

FRAGILE = "neck.nodes.merge_7.block.conv"
_BEFORE = "neck.nodes.merge_7.down.merge_5.conv"
NAMES = ("a", "b", "c")


def fragile_detector() -> Detector:
    """One layer has huge weights for a channel that is always zero: harmless, until they set the others' scale."""
    model = lively(small_structure())
    before, fragile = model.get_submodule(_BEFORE), model.get_submodule(FRAGILE)
    channel = fragile.in_channels - before.out_channels
    before.weight.data[0], before.bias.data[0] = 0.0, 0.0
    fragile.weight.data[:, channel] = 300 * fragile.weight.abs().max()
    return model


def graph_of(model: Detector, *, names: Sequence[str] = NAMES, **options: object) -> Graph:
    return build_graph(model, names, ExportOptions(**options), "fp32", {})


def images(count: int = 6, batch: int = 1) -> list[NDArray[np.float32]]:
    return [example_images((1, 3, 64, 96)) + np.float32(index) for index in range(count)]


def request(
    graph: Graph,
    folder: Path,
    *,
    format: str = "onnx",
    evaluate: Callable[[Path | Session], float] = lambda model: 0.5,
    max_drop: float = 0.005,
    count: int = 6,
) -> QuantiseRequest:
    """A request whose AP in torch is 0.5."""
    source = folder / "fp32.onnx"
    source.write_bytes(graph.proto.SerializeToString())
    scratch = folder / format
    scratch.mkdir(exist_ok=True)
    return QuantiseRequest(
        onnx_path=source,
        card=graph.card,
        format=format,
        folder=scratch,
        images=lambda: iter(images(count)),
        num_images=count,
        evaluate=evaluate,
        evaluate_session=evaluate,
        reference_ap=0.5,
        max_drop=max_drop,
        progress=lambda line: None,
    )


def outputs(model: Path | bytes | Session) -> dict[str, NDArray]:
    """Of one image, in the runtime that a file is for."""
    if isinstance(model, Path | bytes):
        is_openvino = isinstance(model, Path) and model.suffix == ".xml"
        model = (OpenVinoSession if is_openvino else OnnxRuntimeSession)(model, threads=1)
    return model.run({"images": images(1)[0]})


def closeness(graph: Graph) -> Callable[[Path | Session], float]:
    """Stands for AP: 0.5 less the mean error of the boxes in units of 100 pixels."""
    expected = outputs(graph.proto.SerializeToString())["boxes"]

    def evaluate(model: Path | Session) -> float:
        return 0.5 - float(np.abs(outputs(model)["boxes"] - expected).mean()) / 100

    return evaluate
