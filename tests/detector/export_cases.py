"""Shared by the tests of exported files: a small network that behaves as if trained, and comparable detections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from network_cases import random_structure, randomise_norms
from numpy.typing import NDArray

from detector.model import Detector
from detector.onnx_verify import example_images
from detector.reparam import deploy
from detector.types import Detections
from maenas.structure import Structure


def small_structure() -> Structure:
    """One of the smallest: what an export takes grows with the number of layers. 64x96, 3 classes, a background."""
    structure = random_structure("kxkx", 10)
    head = replace(structure.head, num_classes=3, reg_max=7, background_class=True, tower_depth=0)
    return replace(structure, image_size=(64, 96), head=head)


def lively(structure: Structure, seed: int = 0) -> Detector:
    """A deployed network whose scores and boxes spread out, as after training."""
    torch.manual_seed(seed)
    model = Detector(structure).eval()
    randomise_norms(model, seed)
    images = torch.from_numpy(example_images((1, 3, *structure.image_size)))
    with torch.no_grad():
        maps = model.head.forward_maps(model.features(images))
        for level, (classes, boxes) in enumerate(maps):
            spread_out(model.head.class_convs[level], classes, mean=-2.5, std=2.0)
            spread_out(model.head.box_convs[level], boxes, mean=0.0, std=1.5)
        model.head.scales[1].fill_(1.25)
    return deploy(model)


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
