"""The deployed network as ONNX for timings: class and box maps out, nothing decoded, no card.

This is what published latencies measure and what `maenas.lowering` lists operator by operator.
"""

from __future__ import annotations

import copy
from pathlib import Path

from maenas.extras import require
from maenas.files import write_bytes_atomically

from .errors import ExportError
from .model import Detector
from .onnx_direct import direct_graph
from .onnx_trace import fold_scales, map_names
from .reparam import is_deployed

OPSET = 18


def export_for_timing(model: Detector, path: str | Path, *, batch_size: int = 1) -> None:
    """Write a network at its structure's image size.

    The input is `images`, float32 (B, 3, H, W). The outputs are, level by level, the class probabilities
    (B, channels, H_l, W_l) and the box logits (B, 4 * (R + 1), H_l, W_l).

    Args:
        model: In its deployed form, with a backbone of its own structure.
        path: File to write; replaced if it exists.
        batch_size: B.

    Raises:
        ExportError: The network is not deployed, or has modules of another kind.
        MissingExtraError: onnx is not installed.
        OutputError: The file cannot be written.
    """
    if not is_deployed(model):
        raise ExportError(
            "the network is not deployed; expected detector.reparam.deploy(model), which folds its layers"
        )
    onnx = require("onnx", extra="onnx", purpose="exporting to ONNX")
    copied = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    fold_scales(copied)
    classes, boxes = map_names(model.strides)
    proto = direct_graph(copied, input_name="images", output_names=[*classes, *boxes], opset=OPSET)
    graph, (height, width), kind = proto.graph, model.image_size, onnx.TensorProto.FLOAT
    shape = [batch_size, model.structure.backbone.stem.in_channels, height, width]
    graph.input.append(onnx.helper.make_tensor_value_info("images", kind, shape))
    for level, (class_map, box_map, stride) in enumerate(zip(classes, boxes, model.strides, strict=True)):
        name = f"class_probabilities_{level}"
        graph.node.append(onnx.helper.make_node("Sigmoid", [class_map], [name], name=name))
        sizes = {name: model.head.num_logits, box_map: 4 * (model.head.reg_max + 1)}
        for output, channels in sizes.items():
            shape = [batch_size, channels, height // stride, width // stride]
            graph.output.append(onnx.helper.make_tensor_value_info(output, kind, shape))
    onnx.checker.check_model(proto, full_check=True)
    write_bytes_atomically(Path(path), proto.SerializeToString())
