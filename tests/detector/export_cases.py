"""Shared by the tests of exported files: a small network that behaves as if trained, and comparable detections."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace

import numpy as np
import torch
from network_cases import random_structure, randomise_norms
from numpy.typing import NDArray

from detector.export_reference import example_images
from detector.model import Detector
from detector.onnx_direct import direct_graph
from detector.onnx_trace import fold_scales, map_names
from detector.reparam import deploy
from detector.standardise import random_images, standardise
from detector.types import Detections
from maenas.cli import export
from maenas.structure import Structure


def small_structure() -> Structure:
    """One of the smallest: what an export takes grows with the number of layers. 64x96, 3 classes, a background."""
    structure = random_structure("kxkx", 10)
    head = replace(structure.head, num_classes=3, reg_max=7, background_class=True, tower_depth=0)
    return replace(structure, image_size=(64, 96), head=head)


def lively(structure: Structure, seed: int = 0) -> Detector:
    """A deployed network whose scores and boxes spread out, as after training."""
    return deploy(lively_in_training(structure, seed))


def lively_in_training(structure: Structure, seed: int = 0) -> Detector:
    """The same in the form that checkpoints hold."""
    torch.manual_seed(seed)
    model = Detector(structure).eval()
    randomise_norms(model, seed)
    # Signals of order one: without, such a network hardly notices what it is shown.
    standardise(model, random_images(8, 3, 128, 128))
    images = torch.from_numpy(example_images((1, 3, *structure.image_size)))
    with torch.no_grad():
        maps = model.head.forward_maps(model.features(images))
        for level, (classes, boxes) in enumerate(maps):
            spread_out(model.head.class_convs[level], classes, mean=-2.5, std=2.0)
            spread_out(model.head.box_convs[level], boxes, mean=0.0, std=1.5)
        model.head.scales[1].fill_(1.25)
    return model


def spread_out(conv: torch.nn.Conv2d, logits: torch.Tensor, *, mean: float, std: float) -> None:
    """Scale and shift a convolution so that the logits it gave have this mean and deviation."""
    assert conv.bias is not None
    scale = std / logits.std().clamp(min=1e-3)
    conv.weight.mul_(scale)
    conv.bias.sub_(logits.mean()).mul_(scale).add_(mean)


def by_score(detections: Detections) -> NDArray[np.float64]:
    """(N, 6) rows in an order that does not depend on how equal scores are ordered."""
    rows = np.column_stack([-detections.scores, detections.labels, detections.boxes])
    return rows[np.lexsort(rows.round(3).T[::-1])]


def quick_trace(model, *, batch, image_size, precision, opset):
    """In the place of `onnx_trace.trace`, which takes seconds: the same network, written from its modules."""
    copied = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    fold_scales(copied)
    names = [name for names in map_names(model.strides) for name in names]
    proto = direct_graph(copied, input_name="images", output_names=names, opset=opset)
    if precision == "fp16":
        halve(proto, names)
    return proto


def halve(proto, maps):
    """Weights and maps in half precision, between a cast of the images and casts of the maps."""
    import onnx

    graph, half, full = proto.graph, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == full and tensor.dims:
            values = onnx.numpy_helper.to_array(tensor)
            scales = any(node.op_type == "Resize" and tensor.name in node.input for node in graph.node)
            if not scales:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for node in graph.node:
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                if name == "images" or name in maps:
                    tensors[index] = f"{name}_half"
    graph.node.insert(0, onnx.helper.make_node("Cast", ["images"], ["images_half"], to=half))
    for name in maps:
        graph.node.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=full))


def run_export(*words: object) -> int:
    """`maenas export` in this process; its errors are raised."""
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(word) for word in words]))
