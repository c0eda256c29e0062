"""A deployed network as an ONNX file that is written only after runtimes have reproduced torch's results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from maenas.extras import require
from maenas.files import make_folder, write_bytes_atomically, write_text_atomically

from .artifact import FORMS, INPUT_NAME, METADATA_KEY, PRECISIONS, ModelCard, NmsSettings, TensorSpec, card_path
from .backbone import Backbone
from .decode import STRIDES
from .errors import ExportError
from .model import Detector
from .onnx_tail import Tail, append_decoded, append_nms, append_raw
from .onnx_trace import BOX_MAPS, CLASS_MAPS, trace
from .onnx_verify import RuntimeCheck, verify_export
from .reparam import is_deployed

OPSETS = (17, 18, 19, 20, 21)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how well runtimes reproduce it.

    Attributes:
        path: The ONNX file.
        card_path: The JSON beside it.
        card: What both say.
        size_bytes: Of the ONNX file.
        nodes: Number of nodes per operator type.
        checks: One per runtime and input shape; empty if nothing was verified.
    """

    path: Path
    card_path: Path
    card: ModelCard
    size_bytes: int
    nodes: Mapping[str, int]
    checks: tuple[RuntimeCheck, ...]


def export_onnx(
    model: Detector,
    path: str | Path,
    *,
    class_names: Sequence[str],
    outputs: str = "decoded",
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    precision: str = "fp32",
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.7,
    max_detections: int = 100,
    opset: int = 18,
    verify: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a network as ONNX, with its card inside and beside it.

    The input is `images`, float32 (B, 3, H, W), RGB in 0 ... 255. Outputs, with P points, C classes, R = reg_max and
    K = max_detections:

    - `raw`: `cls_logits` (B, P, C) and `box_logits` (B, P, 4, R + 1).
    - `decoded`: `scores` (B, P, C) and `boxes` (B, P, 4), xyxy in pixels of the input, not clipped.
    - `nms`: `num_dets` (B, 1) int64, `boxes` (B, K, 4), `scores` (B, K) falling, `classes` (B, K) int64 counted from 0;
      rows after the detections are 0, 0 and -1. The same detections as `detector.postprocess` with these settings.

    Args:
        model: In its deployed form.
        path: File to write, ending in .onnx; its folder is made. An existing file is replaced.
        class_names: One name per class, in label order.
        outputs: `raw`, `decoded` or `nms`.
        dynamic_batch: Leave B free.
        dynamic_size: Leave H and W free (multiples of 32).
        precision: Of weights and maps: `fp32` or `fp16`; input, decoding and outputs are float32 in both.
        batch_size: B where it is not free.
        image_size: (height, width) where not free; by default the structure's.
        score_threshold: Of the nms form.
        iou_threshold: Of the nms form.
        max_detections: Of the nms form.
        opset: Version of the operator set.
        verify: Compare with torch in ONNX Runtime, and in OpenVINO where it is installed, before anything is written.
        provenance: Where the weights come from; plain JSON for the card.

    Raises:
        ExportError: The network is not deployed, an option is out of range, or a runtime computes something else; no
            file is written then.
        MissingExtraError: onnx, onnxscript, or (to verify) onnxruntime is not installed.
        OutputError: The file cannot be written.
    """
    onnx = require("onnx", extra="onnx", purpose="exporting to ONNX")
    path = Path(path)
    _check(model, path, outputs, precision, batch_size, opset)
    if verify:
        require("onnxruntime", extra="onnx", purpose="verifying an export with ONNX Runtime")
    settings = NmsSettings(score_threshold, iou_threshold, max_detections)
    size = _checked_size(image_size or model.image_size)
    batch = None if dynamic_batch else batch_size
    tail = _tail(model, batch, None if dynamic_size else size)
    card = ModelCard(
        structure=model.structure,
        class_names=tuple(class_names),
        image_size=size,
        input=TensorSpec(INPUT_NAME, "float32", (batch, 3, *(tail.image_size or (None, None)))),
        outputs=_outputs(outputs, tail, settings.max_detections),
        form=outputs,
        precision=precision,
        nms=settings if outputs == "nms" else None,
        opset=opset,
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
        provenance={**(provenance or {}), **_foreign_backbone(model)},
    )
    proto = trace(model, batch=batch, image_size=tail.image_size, precision=precision, opset=opset)
    _append_tail(proto.graph, tail, card)
    _declare(proto, card)
    proto.graph.value_info.extend(_inner_shapes(proto))
    onnx.checker.check_model(proto, full_check=True)
    checks = verify_export(model, proto, card, tail) if verify else ()
    card = replace(card, verification=tuple(check.to_dict() for check in checks))
    return _write(proto, card, path, checks)


def _check(model: Detector, path: Path, outputs: str, precision: str, batch_size: int, opset: int) -> None:
    if path.suffix != ".onnx":
        raise ExportError(f"{path}: suffix is {path.suffix!r}; expected .onnx")
    if not is_deployed(model):
        raise ExportError(
            "the network is not deployed; expected detector.reparam.deploy(model), which folds its layers"
        )
    for name, value, choices in (("outputs", outputs, FORMS), ("precision", precision, PRECISIONS)):
        if value not in choices:
            raise ExportError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    if batch_size < 1:
        raise ExportError(f"batch_size is {batch_size}; expected a whole number, 1 or more")
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}; expected one of {', '.join(map(str, OPSETS))}")
    if model.strides != STRIDES:
        raise ExportError(f"strides are {model.strides}; expected {STRIDES}")


def _foreign_backbone(model: Detector) -> dict[str, str]:
    """What the card adds where the structure does not describe the backbone."""
    if isinstance(model.backbone, Backbone):
        return {}
    return {"backbone": f"{type(model.backbone).__name__}, not the one of the structure"}


def _checked_size(image_size: tuple[int, int]) -> tuple[int, int]:
    for name, side in zip(("height", "width"), image_size, strict=True):
        if side < STRIDES[-1] or side % STRIDES[-1]:
            raise ExportError(f"image {name} is {side}; expected a multiple of {STRIDES[-1]}, at least {STRIDES[-1]}")
    return image_size[0], image_size[1]


def _tail(model: Detector, batch: int | None, image_size: tuple[int, int] | None) -> Tail:
    head = model.head
    return Tail(
        class_maps=CLASS_MAPS,
        box_maps=BOX_MAPS,
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


def _declare(proto: Any, card: ModelCard) -> None:  # noqa: ANN401
    """Set input and outputs, with names for free axes."""
    helper, types = _onnx().helper, _onnx().TensorProto
    del proto.graph.input[:], proto.graph.output[:]
    free = {0: "batch", 1: "points"}
    for target, tensor in [(proto.graph.input, card.input), *((proto.graph.output, output) for output in card.outputs)]:
        names = {0: "batch", 2: "height", 3: "width"} if tensor is card.input else free
        shape = [names[axis] if length is None else length for axis, length in enumerate(tensor.shape)]
        target.append(helper.make_tensor_value_info(tensor.name, getattr(types, _ONNX_TYPES[tensor.dtype]), shape))


_ONNX_TYPES = {"float32": "FLOAT", "int64": "INT64"}


def _inner_shapes(proto: Any) -> list[Any]:  # noqa: ANN401
    return list(_onnx().shape_inference.infer_shapes(proto, data_prop=True).graph.value_info)


def _onnx() -> Any:  # noqa: ANN401
    return require("onnx", extra="onnx", purpose="exporting to ONNX")


def _write(proto: Any, card: ModelCard, path: Path, checks: tuple[RuntimeCheck, ...]) -> ExportReport:  # noqa: ANN401
    try:
        record = json.dumps(card.to_dict(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{path}: provenance must be plain JSON ({error})") from error
    names = {str(label): name for label, name in enumerate(card.class_names)}
    metadata = {
        METADATA_KEY: record,
        "names": json.dumps(names),
        "imgsz": json.dumps(list(card.image_size)),
        "stride": str(STRIDES[-1]),
    }
    _onnx().helper.set_model_props(proto, metadata)
    content = proto.SerializeToString()
    make_folder(path.parent)
    write_bytes_atomically(path, content)
    write_text_atomically(card_path(path), json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n")
    nodes = dict(Counter(node.op_type for node in proto.graph.node).most_common())
    return ExportReport(path, card_path(path), card, len(content), nodes, checks)
