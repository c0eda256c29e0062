"""The files of every format, written from one checked ONNX graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from maenas.extras import openvino_core, require

from .artifact import INPUT_NAME, METADATA_KEY, ModelCard, TensorSpec
from .decode import STRIDES
from .errors import ExportError
from .export_graph import Graph, declare
from .onnx_tail import append_efficient_nms
from .tensorrt_build import EngineOptions, build_engine


def write_format(
    graph: Graph,
    card: ModelCard,
    path: Path,
    *,
    engine: EngineOptions | None = None,
    quantised: Path | None = None,
) -> ModelCard:
    """Write the files of one format, without the card.

    Args:
        graph: Of the network; `fp32` for OpenVINO, which narrows weights itself.
        card: Of the artifact; its format decides.
        path: Main file.
        engine: How TensorRT builds.
        quantised: In place of the graph: an .onnx file, or an OpenVINO .xml.

    Returns:
        The card with what the format adds: versions, an engine's machine.

    Raises:
        ExportError: The format's own tools refuse the graph.
        MissingExtraError: They are not installed.
    """
    return _WRITERS[card.format](graph, card, path, engine, quantised)


def _write_onnx(
    graph: Graph, card: ModelCard, path: Path, _engine: EngineOptions | None, quantised: Path | None
) -> ModelCard:
    onnx = _onnx()
    proto = onnx.ModelProto()
    proto.CopyFrom(graph.proto if quantised is None else _load_quantised(quantised))
    onnx.helper.set_model_props(proto, _metadata(card))
    path.write_bytes(proto.SerializeToString())
    return card


def _write_openvino(
    graph: Graph, card: ModelCard, path: Path, _engine: EngineOptions | None, quantised: Path | None
) -> ModelCard:
    """An intermediate representation: .xml, and .bin with the weights, in half precision where that was asked."""
    openvino = require("openvino", extra="openvino", purpose="exporting to OpenVINO")
    core = openvino_core(purpose="exporting to OpenVINO")
    source: str | bytes = graph.proto.SerializeToString() if quantised is None else str(quantised)
    card = replace(card, versions={**card.versions, "openvino": str(openvino.__version__).partition("-")[0]})
    model = core.read_model(source)
    for name, value in _metadata(card).items():
        model.set_rt_info(value, name if name == METADATA_KEY else ["model_info", name])
    openvino.save_model(model, str(path), compress_to_fp16=card.precision == "fp16")
    return card


def _write_tensorrt(
    graph: Graph, card: ModelCard, path: Path, engine: EngineOptions | None, quantised: Path | None
) -> ModelCard:
    proto = graph.proto if quantised is None else _load_quantised(quantised)
    options = engine or EngineOptions()
    if card.nms is not None and options.suppression == "plugin":
        proto, card = _with_plugin(proto, graph, card)
    plan, facts = build_engine(proto.SerializeToString(), card, options=options)
    path.write_bytes(plan)
    return replace(card, engine=facts, versions={**card.versions, "tensorrt": facts.tensorrt})


def _load_quantised(path: Path) -> Any:  # noqa: ANN401
    """A quantiser's graph with its nodes in an order of execution, which the format demands and quantisers forget."""
    proto = _onnx().load(str(path))
    graph = proto.graph
    known = {"", *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)}
    waiting, ordered = list(graph.node), []
    while waiting:
        left = []
        for node in waiting:
            if known.issuperset(node.input):
                known.update(node.output)
                ordered.append(node)
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise ExportError(f"{path.name}: {left[0].name} reads tensors that no node makes; expected a whole graph")
        waiting = left
    del graph.node[:]
    graph.node.extend(ordered)
    return proto


def _with_plugin(proto: Any, graph: Graph, card: ModelCard) -> tuple[Any, ModelCard]:  # noqa: ANN401
    """The graph up to its maps, and TensorRT's plugin in place of the standard operator."""
    onnx = _onnx()
    assert card.nms is not None
    maps = [*graph.tail.class_maps, *graph.tail.box_maps]
    made = {name for node in proto.graph.node for name in node.output}
    if not made.issuperset(maps):
        raise ExportError("the graph has lost the names of its maps; expected them, to put the NMS plugin behind them")
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    part = onnx.utils.Extractor(whole).extract_model([INPUT_NAME], maps)
    append_efficient_nms(part.graph, graph.tail, card.nms)
    # The plugin counts in 32 bits.
    outputs = tuple(
        TensorSpec(output.name, output.dtype.replace("int64", "int32"), output.shape) for output in card.outputs
    )
    card = replace(card, outputs=outputs)
    declare(part, card)
    return part, card


def _metadata(card: ModelCard) -> dict[str, str]:
    """What other programs find inside a file: names, size and stride in the usual form, and the card."""
    names = {str(label): name for label, name in enumerate(card.class_names)}
    return {
        METADATA_KEY: json.dumps(card.to_dict(), allow_nan=False),
        "names": json.dumps(names),
        "imgsz": json.dumps(list(card.image_size)),
        "stride": str(STRIDES[-1]),
    }


def _onnx() -> Any:  # noqa: ANN401
    return require("onnx", extra="onnx", purpose="exporting to ONNX")


_WRITERS: dict[str, Callable[[Graph, ModelCard, Path, EngineOptions | None, Path | None], ModelCard]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "tensorrt": _write_tensorrt,
}
