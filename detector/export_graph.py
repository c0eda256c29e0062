"""A deployed network as an ONNX graph in memory, complete with its end and its card.

Tensor letters: B images, P points of all levels, C classes, R = reg_max, K = max_detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from maenas.extras import require

from .artifact import FORMS, INPUT_NAME, PRECISIONS, ModelCard, NmsSettings, TensorSpec
from .backbone import Backbone
from .errors import ExportError
from .model import Detector
from .onnx_tail import Tail, append_decoded, append_nms, append_raw
from .onnx_trace import map_names, trace
from .reparam import is_deployed

OPSETS = (17, 18, 19, 20, 21)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What an artifact holds.

    The input is `images`, float32 (B, 3, H, W), RGB in 0 ... 255. Outputs, with P points, C classes, R = reg_max and
    K = max_detections:

    - `raw`: `cls_logits` (B, P, C) and `box_logits` (B, P, 4, R + 1).
    - `decoded`: `scores` (B, P, C) and `boxes` (B, P, 4), xyxy in pixels of the input, not clipped.
    - `nms`: `num_dets` (B, 1) int64, `boxes` (B, K, 4), `scores` (B, K) falling, `classes` (B, K) int64 counted from 0;
      rows after the detections are 0, 0 and -1. The same detections as `detector.postprocess` with these settings.

    Attributes:
        outputs: `raw`, `decoded` or `nms`.
        precision: `fp32`, `fp16` or `int8`: of weights and maps; input, decoding and outputs are float32 in all.
        dynamic_batch: Leave B free.
        dynamic_size: Leave H and W free (multiples of 32).
        batch_size: B where it is not free.
        image_size: (height, width) where not free; by default the structure's.
        score_threshold: Of the nms form.
        iou_threshold: Of the nms form.
        max_detections: Of the nms form.
        opset: Version of the ONNX operator set.
    """

    outputs: str = "decoded"
    precision: str = "fp32"
    dynamic_batch: bool = False
    dynamic_size: bool = False
    batch_size: int = 1
    image_size: tuple[int, int] | None = None
    score_threshold: float = 0.05
    iou_threshold: float = 0.7
    max_detections: int = 100
    opset: int = 18


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """An ONNX graph, ready but for the metadata inside it.

    Attributes:
        proto: The model proto.
        card: What it is; without files.
        tail: How its end was built.
        precision: `fp32` or `fp16`.
    """

    proto: Any
    card: ModelCard
    tail: Tail
    precision: str


def check_options(model: Detector, options: ExportOptions) -> None:
    """Refuse what cannot be exported.

    Raises:
        ExportError: Naming the option, or the network is not deployed.
    """
    if not is_deployed(model):
        raise ExportError(
            "the network is not deployed; expected detector.reparam.deploy(model), which folds its layers"
        )
    for name, value, choices in (
        ("outputs", options.outputs, FORMS),
        ("precision", options.precision, PRECISIONS),
    ):
        if value not in choices:
            raise ExportError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    if options.batch_size < 1:
        raise ExportError(f"batch_size is {options.batch_size}; expected a whole number, 1 or more")
    if options.opset not in OPSETS:
        raise ExportError(f"opset is {options.opset}; expected one of {', '.join(map(str, OPSETS))}")
    coarsest = model.strides[-1]
    for name, side in zip(("height", "width"), options.image_size or model.image_size, strict=True):
        if side < coarsest or side % coarsest:
            raise ExportError(f"image {name} is {side}; expected a multiple of {coarsest}, at least {coarsest}")


def build_graph(
    model: Detector,
    class_names: Sequence[str],
    options: ExportOptions,
    precision: str,
    provenance: Mapping[str, Any],
) -> Graph:
    """Trace a network and write the end of its graph.

    Args:
        model: Deployed; stays as it is.
        class_names: One name per class, in label order.
        options: Checked already.
        precision: `fp32` or `fp16`: of this graph, whatever the options ask for.
        provenance: For the card.

    Raises:
        ExportError: Thresholds or names do not fit.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    onnx = require("onnx", extra="onnx", purpose="exporting to ONNX")
    settings = NmsSettings(options.score_threshold, options.iou_threshold, options.max_detections)
    size = options.image_size or model.image_size
    batch = None if options.dynamic_batch else options.batch_size
    tail = _tail(model, batch, None if options.dynamic_size else size)
    channels = model.structure.backbone.stem.in_channels
    card = ModelCard(
        structure=model.structure,
        class_names=tuple(class_names),
        image_size=(size[0], size[1]),
        input=TensorSpec(INPUT_NAME, "float32", (batch, channels, *(tail.image_size or (None, None)))),
        outputs=_outputs(options.outputs, tail, settings.max_detections),
        form=options.outputs,
        precision=precision,
        nms=settings if options.outputs == "nms" else None,
        opset=options.opset,
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
        provenance={**provenance, **_foreign_backbone(model)},
    )
    proto = trace(model, batch=batch, image_size=tail.image_size, precision=precision, opset=options.opset)
    _append_tail(proto.graph, tail, card)
    declare(proto, card)
    proto.graph.value_info.extend(onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.value_info)
    onnx.checker.check_model(proto, full_check=True)
    return Graph(proto, card, tail, precision)


def declare(proto: Any, card: ModelCard) -> None:  # noqa: ANN401
    """Set input and outputs of a graph as its card says, with names for free axes."""
    onnx = require("onnx", extra="onnx", purpose="exporting to ONNX")
    del proto.graph.input[:], proto.graph.output[:]
    free = {0: "batch", 1: "points"}
    for target, tensor in [(proto.graph.input, card.input), *((proto.graph.output, output) for output in card.outputs)]:
        names = {0: "batch", 2: "height", 3: "width"} if tensor is card.input else free
        shape = [names[axis] if length is None else length for axis, length in enumerate(tensor.shape)]
        kind = getattr(onnx.TensorProto, tensor.dtype.upper().replace("FLOAT32", "FLOAT"))
        target.append(onnx.helper.make_tensor_value_info(tensor.name, kind, shape))


def _foreign_backbone(model: Detector) -> dict[str, str]:
    """What the card adds where the structure does not describe the backbone."""
    if isinstance(model.backbone, Backbone):
        return {}
    return {"backbone": f"{type(model.backbone).__name__}, not the one of the structure"}


def _tail(model: Detector, batch: int | None, image_size: tuple[int, int] | None) -> Tail:
    head = model.head
    class_maps, box_maps = map_names(model.strides)
    return Tail(
        strides=model.strides,
        class_maps=class_maps,
        box_maps=box_maps,
        num_classes=head.num_classes,
        has_background=head.num_logits > head.num_classes,
        reg_max=head.reg_max,
        image_size=image_size,
        batch=batch,
    )


def _outputs(form: str, tail: Tail, max_detections: int) -> tuple[TensorSpec, ...]:
    batch, points, keep = tail.batch, tail.num_points, max_detections
    if form == "raw":
        return (
            TensorSpec("cls_logits", "float32", (batch, points, tail.num_classes)),
            TensorSpec("box_logits", "float32", (batch, points, 4, tail.reg_max + 1)),
        )
    if form == "decoded":
        return (
            TensorSpec("scores", "float32", (batch, points, tail.num_classes)),
            TensorSpec("boxes", "float32", (batch, points, 4)),
        )
    return (
        TensorSpec("num_dets", "int64", (batch, 1)),
        TensorSpec("boxes", "float32", (batch, keep, 4)),
        TensorSpec("scores", "float32", (batch, keep)),
        TensorSpec("classes", "int64", (batch, keep)),
    )


def _append_tail(graph: Any, tail: Tail, card: ModelCard) -> None:  # noqa: ANN401
    if card.nms is not None:
        append_nms(graph, tail, card.nms)
    elif card.form == "decoded":
        append_decoded(graph, tail)
    else:
        append_raw(graph, tail)
