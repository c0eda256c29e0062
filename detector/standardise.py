"""Signals of order one in a network with random weights.

Freshly drawn weights let the maps of a deep network shrink towards zero, in the end into numbers so small that a
processor computes them many times slower. Timings and comparisons of runtimes then say nothing. One batch in training
mode gives every batch norm the statistics of what it sees, as training would.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maenas.structure import Structure

from .model import Detector


def standardise(model: Detector, images: Tensor) -> None:
    """Set the running statistics of every batch norm to those of one batch, in place.

    Args:
        model: A network in its trained form.
        images: (B, 3, H, W) RGB in 0 ... 255; B * H * W / 1024 must be above 1, or the coarsest map has no variance.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    try:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(images)
    finally:
        model.train(was_training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def random_detector(structure: Structure, seed: int = 0) -> Detector:
    """A network with standardised random weights that depend on structure and seed alone, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Detector(structure)
        images = random_images(8, structure.backbone.stem.in_channels, 128, 128)
        for parameter in model.head.parameters():
            # Initial biases are equal, those of a trained network are not.
            parameter.data += 0.01 * torch.randn_like(parameter)
    standardise(model, images)
    return model.eval()


def random_images(count: int, channels: int, height: int, width: int) -> Tensor:
    """(count, channels, height, width) in 0 ... 255 with structure at every scale, as photographs have it."""
    total = torch.zeros(count, channels, height, width)
    cells = 2
    while cells <= min(height, width):
        coarse = torch.randn(count, channels, cells, cells)
        total += F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        cells *= 2
    return (127.5 + 40 * total).clamp(0, 255)
