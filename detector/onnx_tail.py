"""The end of an exported graph, written node by node: from the head's maps to one of the output forms.

Written by hand because a traced tail drags shape arithmetic along; here every shape is a constant in which 0 stands
for "as the input" and -1 for "the rest", so that one graph serves fixed and free sizes.

Tensor letters: B images, P points of all levels, C classes, R = reg_max, K = max_detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import require

from .artifact import NmsSettings
from .decode import box_frame

SCORE_THRESHOLD = "nms_score_threshold"
"""The initializer that holds the score threshold of the nms form."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What the tail of a graph must know.

    Attributes:
        strides: Image pixels per cell of each level.
        class_maps: Names of the class maps (B, channels, H, W), one per level.
        box_maps: Names of the box maps (B, 4 * (R + 1), H, W).
        num_classes: Class channels to keep; a background channel after them is dropped.
        has_background: Whether there is one.
        reg_max: R.
        image_size: (height, width), or None where it is free.
        batch: B, or None where it is free.
    """

    strides: tuple[int, ...]
    class_maps: Sequence[str]
    box_maps: Sequence[str]
    num_classes: int
    has_background: bool
    reg_max: int
    image_size: tuple[int, int] | None
    batch: int | None

    @property
    def num_points(self) -> int | None:
        """P, or None where the image size is free."""
        if self.image_size is None:
            return None
        return sum((self.image_size[0] // stride) * (self.image_size[1] // stride) for stride in self.strides)


class _Writer:
    """Adds nodes and constants to a graph; every result has the name that it is asked to have."""

    def __init__(self, graph: Any) -> None:  # noqa: ANN401
        self.graph = graph
        self.onnx = require("onnx", extra="onnx", purpose="exporting to ONNX")

    def constant(self, name: str, value: object, dtype: type = np.int64) -> str:
        array: NDArray[Any] = np.asarray(value, dtype=dtype)
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        node = self.onnx.helper.make_node(op, list(inputs), [name], name=f"tail_{name}", **attributes)
        self.graph.node.append(node)
        return name


def append_raw(graph: Any, tail: Tail) -> None:  # noqa: ANN401
    """`cls_logits` (B, P, C) and `box_logits` (B, P, 4, R + 1)."""
    writer = _Writer(graph)
    writer.add("Transpose", [_classes(writer, tail)], "cls_logits", perm=[0, 2, 1])
    _boxes(writer, tail)


def append_decoded(graph: Any, tail: Tail) -> None:  # noqa: ANN401
    """`cls_logits` and `box_logits` as inner tensors, `scores` (B, P, C) and `boxes` (B, P, 4)."""
    writer = _Writer(graph)
    rows = writer.add("Transpose", [_classes(writer, tail)], "cls_logits", perm=[0, 2, 1])
    writer.add("Sigmoid", [rows], "scores")
    _decode_boxes(writer, tail, "boxes")


def append_nms(graph: Any, tail: Tail, settings: NmsSettings) -> None:  # noqa: ANN401
    """`num_dets` (B, 1), `boxes` (B, K, 4), `scores` (B, K), `classes` (B, K); the rest padded with 0, 0 and -1.

    The standard operator marks the survivors of every class; their scores are written into an array of zeros, point
    by point and class by class, from which the K best are taken: equal scores keep the order of `postprocess`.
    """
    writer, keep = _Writer(graph), settings.max_detections
    class_scores = writer.add("Sigmoid", [_classes(writer, tail)], "class_scores")
    points = _decode_boxes(writer, tail, "point_boxes")
    # K per class is enough: no more can be among the best K of all.
    limit = writer.constant("nms_max_detections", [keep])
    overlap = writer.constant("nms_iou_threshold", [settings.iou_threshold], np.float32)
    threshold = writer.constant(SCORE_THRESHOLD, [settings.score_threshold], np.float32)
    chosen = writer.add("NonMaxSuppression", [points, class_scores, limit, overlap, threshold], "nms_chosen")
    values = writer.add("GatherND", [class_scores, chosen], "nms_values")
    order = writer.constant("nms_order", [0, 2, 1])
    places = writer.add("Gather", [chosen, order], "nms_places", axis=1)
    blank = writer.add("ConstantOfShape", [_table_shape(writer, tail, class_scores)], "nms_blank")
    table = writer.add("ScatterND", [blank, places, values], "nms_table")
    rows = writer.add("Reshape", [table, writer.constant("nms_rows_shape", [0, -1])], "nms_rows")
    known = tail.num_points
    if known is None or known * tail.num_classes < keep:
        margin = writer.constant("nms_margin", [0, 0, 0, keep])
        rows = writer.add("Pad", [rows, margin], "nms_padded")
    node = writer.onnx.helper.make_node("TopK", [rows, limit], ["scores", "nms_best"], name="tail_best", axis=1)
    graph.node.append(node)
    _gather_best(writer, tail, points, threshold)


def append_efficient_nms(graph: Any, tail: Tail, settings: NmsSettings) -> None:  # noqa: ANN401
    """The same outputs from TensorRT's EfficientNMS plugin, with int32 for `num_dets` and `classes`.

    Boxes are corners (coding 0), scores are probabilities (no activation), and no class is a background. What stands
    in the rows after the detections is the plugin's business.
    """
    writer = _Writer(graph)
    rows = writer.add("Transpose", [_classes(writer, tail)], "cls_logits", perm=[0, 2, 1])
    scores = writer.add("Sigmoid", [rows], "point_scores")
    points = _decode_boxes(writer, tail, "point_boxes")
    node = writer.onnx.helper.make_node(
        "EfficientNMS_TRT",
        [points, scores],
        ["num_dets", "boxes", "scores", "classes"],
        name="tail_efficient_nms",
        plugin_version="1",
        background_class=-1,
        box_coding=0,
        iou_threshold=settings.iou_threshold,
        max_output_boxes=settings.max_detections,
        score_activation=0,
        score_threshold=settings.score_threshold,
    )
    graph.node.append(node)


def _table_shape(writer: _Writer, tail: Tail, class_scores: str) -> str:
    """Shape of the (B, P, C) table."""
    if tail.batch is not None and tail.num_points is not None:
        return writer.constant("nms_table_shape", [tail.batch, tail.num_points, tail.num_classes])
    shape = writer.add("Shape", [class_scores], "nms_scores_shape")
    return writer.add("Gather", [shape, "nms_order"], "nms_table_shape", axis=0)


def _gather_best(writer: _Writer, tail: Tail, points: str, threshold: str) -> None:
    """Boxes, classes and number of the best entries; `scores` and `nms_best` are there already."""
    classes = writer.constant("nms_num_classes", tail.num_classes)
    valid = writer.add("Greater", ["scores", threshold], "nms_valid")
    counted = writer.add("Cast", [valid], "nms_counted", to=writer.onnx.TensorProto.INT64)
    last_axis = writer.constant("nms_last_axis", [-1])
    writer.add("ReduceSum", [counted, last_axis], "num_dets", keepdims=1)
    found = writer.add("Mod", ["nms_best", classes], "nms_classes")
    writer.add("Where", [valid, found, writer.constant("nms_no_class", -1)], "classes")
    # A padded entry lies beyond the table; the first point stands in for it and is blanked out.
    real = writer.add("Where", [valid, "nms_best", writer.constant("nms_first", 0)], "nms_real")
    index = writer.add("Div", [real, classes], "nms_point")
    index = writer.add("Unsqueeze", [index, last_axis], "nms_point_index")
    found = writer.add("GatherND", [points, index], "nms_boxes", batch_dims=1)
    mask = writer.add("Unsqueeze", [valid, last_axis], "nms_box_valid")
    writer.add("Where", [mask, found, writer.constant("nms_no_box", 0, np.float32)], "boxes")


def _classes(writer: _Writer, tail: Tail) -> str:
    """Class logits of all points, (B, C, P)."""
    shape = writer.constant("class_shape", [0, tail.num_classes + int(tail.has_background), -1])
    levels = [writer.add("Reshape", [name, shape], f"{name}_flat") for name in tail.class_maps]
    if not tail.has_background:
        return writer.add("Concat", levels, "class_logits", axis=2)
    joined = writer.add("Concat", levels, "channel_logits", axis=2)
    bounds = [writer.constant(f"class_{name}", [value]) for name, value in (("start", 0), ("end", tail.num_classes))]
    return writer.add("Slice", [joined, *bounds, writer.constant("class_axis", [1])], "class_logits")


def _boxes(writer: _Writer, tail: Tail) -> str:
    """`box_logits` (B, P, 4, R + 1)."""
    shape = writer.constant("box_shape", [0, 4, tail.reg_max + 1, -1])
    levels = [writer.add("Reshape", [name, shape], f"{name}_flat") for name in tail.box_maps]
    joined = writer.add("Concat", levels, "side_logits", axis=3)
    return writer.add("Transpose", [joined], "box_logits", perm=[0, 3, 1, 2])


def _decode_boxes(writer: _Writer, tail: Tail, name: str) -> str:
    """Boxes (B, P, 4): means of the distributions times the reach, plus the corners they start from."""
    weights = writer.add("Softmax", [_boxes(writer, tail)], "box_weights", axis=-1)
    bins = writer.constant("box_bins", np.arange(tail.reg_max + 1), np.float32)
    cells = writer.add("MatMul", [weights, bins], "box_cells")
    if tail.image_size is None:
        corners, reach = _free_frame(writer, tail)
    else:
        starts, extents = box_frame(tail.image_size, tail.strides)
        corners = writer.constant("box_corners", starts, np.float32)
        reach = writer.constant("box_reach", extents, np.float32)
    return writer.add("Add", [writer.add("Mul", [cells, reach], "box_offsets"), corners], name)


def _free_frame(writer: _Writer, tail: Tail) -> tuple[str, str]:
    """`box_frame` computed from the maps' shapes when the graph runs."""
    zero, one = writer.constant("point_zero", 0), writer.constant("point_one", 1)
    last = writer.constant("point_last", [-1])
    corners, reaches = [], []
    for stride, source in zip(tail.strides, tail.class_maps, strict=True):
        prefix = f"p{stride}"
        shape = writer.add("Shape", [source], f"{prefix}_shape", start=2)
        count = writer.add("ReduceProd", [shape], f"{prefix}_count", keepdims=0)
        width = writer.add("Gather", [shape, one], f"{prefix}_width", axis=0)
        index = writer.add("Range", [zero, count, one], f"{prefix}_index")
        x = writer.add("Unsqueeze", [writer.add("Mod", [index, width], f"{prefix}_x"), last], f"{prefix}_xs")
        y = writer.add("Unsqueeze", [writer.add("Div", [index, width], f"{prefix}_y"), last], f"{prefix}_ys")
        cells = writer.add("Concat", [x, y, x, y], f"{prefix}_cells", axis=1)
        cells = writer.add("Cast", [cells], f"{prefix}_float", to=writer.onnx.TensorProto.FLOAT)
        size = writer.constant(f"{prefix}_stride", stride, np.float32)
        corners.append(writer.add("Mul", [cells, size], f"{prefix}_corners"))
        reach = writer.constant(f"{prefix}_reach", [[-stride, -stride, stride, stride]], np.float32)
        extent = writer.add("Shape", [cells], f"{prefix}_extent")
        reaches.append(writer.add("Expand", [reach, extent], f"{prefix}_reaches"))
    return (
        writer.add("Concat", corners, "box_corners", axis=0),
        writer.add("Concat", reaches, "box_reach", axis=0),
    )
