"""The network that tells, before and after each measurement, whether the machine still runs as fast."""

from __future__ import annotations

from pathlib import Path

from maenas.extras import require
from maenas.files import write_bytes_atomically

_CHANNELS = 64
_SIDE = 56
_CONVOLUTIONS = 3


def write_reference(path: Path, *, batch: int = 1) -> None:
    """Write three 3x3 convolutions of 64 channels on 56x56 maps: 0.7 GFLOPs, about 10 ms on one core.

    The weights are seeded, so the file says the same everywhere.

    Raises:
        MissingExtraError: The package onnx is not installed.
        OutputError: The file cannot be written.
    """
    onnx = require("onnx", extra="profile", purpose="profiling")
    import numpy as np

    shape = (_CHANNELS, _CHANNELS, 3, 3)
    scale = (2.0 / (_CHANNELS * 9)) ** 0.5
    random = np.random.default_rng(0)
    nodes, constants = [], []
    tensor = "images"
    lift = random.normal(0.0, 1.0, (_CHANNELS, 3, 1, 1)) / 255
    weights = [lift, *(random.normal(0.0, scale, shape) for _ in range(_CONVOLUTIONS))]
    for index, weight in enumerate(weights):
        side = weight.shape[-1]
        constants.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"weight_{index}"))
        bias = random.normal(0.0, 0.1, _CHANNELS).astype(np.float32)
        constants.append(onnx.numpy_helper.from_array(bias, f"bias_{index}"))
        nodes.append(
            onnx.helper.make_node(
                "Conv",
                [tensor, f"weight_{index}", f"bias_{index}"],
                [f"conv_{index}"],
                name=f"conv_{index}",
                kernel_shape=[side, side],
                pads=[side // 2] * 4,
            )
        )
        nodes.append(onnx.helper.make_node("Relu", [f"conv_{index}"], [f"relu_{index}"], name=f"relu_{index}"))
        tensor = f"relu_{index}"
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "reference",
        [onnx.helper.make_tensor_value_info("images", float32, [batch, 3, _SIDE, _SIDE])],
        [onnx.helper.make_tensor_value_info(tensor, float32, [batch, _CHANNELS, _SIDE, _SIDE])],
        constants,
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    write_bytes_atomically(path, model.SerializeToString())
