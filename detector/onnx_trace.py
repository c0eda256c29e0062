"""From a deployed network to an ONNX graph that ends with the head's maps.

Tensor letters: B images, R = reg_max, H W feature size.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maenas.extras import require

from .decode import STRIDES
from .layers import set_kernel
from .model import Detector


def map_names(strides: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the class maps and of the box maps in a graph, one of each per level."""
    return tuple(f"classes_p{stride}" for stride in strides), tuple(f"sides_p{stride}" for stride in strides)


class _Maps(nn.Module):
    """The network up to the head's maps; the input is cast to the weights' dtype, the maps come as float32."""

    def __init__(self, model: Detector, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to the class maps of all levels, then the box maps (B, channels, H, W)."""
        maps = self.model.head.forward_maps(self.model.features(images.to(self.dtype)))
        return (*(classes for classes, _ in maps), *(boxes for _, boxes in maps))


def trace(model: Detector, *, batch: int | None, image_size: tuple[int, int] | None, precision: str, opset: int) -> Any:  # noqa: ANN401
    """The ONNX model proto of a deployed network, without names of source files and without intermediate shapes.

    Args:
        model: Deployed; stays as it is.
        batch: Images per run, or None where free.
        image_size: (height, width), or None where free.
        precision: `fp32` or `fp16`.
        opset: Version of the operator set.

    Returns:
        A proto with the input `images` and the outputs of `map_names`.
    """
    require("onnxscript", extra="onnx", purpose="exporting to ONNX")
    copied = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    fold_scales(copied)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    classes, boxes = map_names(model.strides)
    height, width = image_size or (2 * STRIDES[-1], 3 * STRIDES[-1])
    example = torch.zeros(2 if batch is None else batch, model.structure.backbone.stem.in_channels, height, width)
    free: dict[int, Any] = {}
    if batch is None:
        free[0] = torch.export.Dim("batch")
    if image_size is None:
        free[2] = STRIDES[-1] * torch.export.Dim("rows", min=1, max=1024)
        free[3] = STRIDES[-1] * torch.export.Dim("columns", min=1, max=1024)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Maps(copied.to(dtype), dtype).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=[*classes, *boxes],
            dynamic_shapes={"images": free} if free else None,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    _give_each_conv_its_bias(proto.graph)
    return proto


def fold_scales(model: Detector) -> None:
    """Move the box scale of every level into its convolution."""
    for conv, scale in zip(model.head.box_convs, model.head.scales, strict=True):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        set_kernel(conv, conv.weight.double() * scale, conv.bias.double() * scale)
        scale.fill_(1.0)


def _strip(proto: Any) -> None:  # noqa: ANN401
    """Drop what a runtime does not read: stack traces with paths of this machine, names of symbols."""
    graph = proto.graph
    del graph.value_info[:], graph.metadata_props[:], proto.metadata_props[:], proto.functions[:]
    graph.name, graph.doc_string = "detector", ""
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]


def _give_each_conv_its_bias(graph: Any) -> None:  # noqa: ANN401
    """Undo the merging of equal biases, such as the zeros of untrained layers.

    Runtimes do not fuse a bias that several convolutions share, so an untrained network would run slower than the
    trained one it stands for.
    """
    constants = {constant.name: constant for constant in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        name = node.input[2]
        if name in taken:
            own = graph.initializer.add()
            own.CopyFrom(constants[name])
            own.name = node.input[2] = f"{node.name}_bias"
        taken.add(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports its progress and warns about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
