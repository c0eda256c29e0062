"""What torch makes of some images, and how far an exported artifact may be from it.

Tensor letters: B images, P points of all levels, C classes, R = reg_max.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .artifact import ModelCard
from .decode import STRIDES
from .errors import ExportError
from .model import Detector

FLOORS = {"fp32": {"scores": 1e-4, "boxes": 0.05}, "fp16": {"scores": 5e-3, "boxes": 0.5}}
"""Smallest tolerances per precision: scores absolute, boxes in pixels. Whole numbers have none: see `export_parity`."""

LOGIT_FLOORS = {"fp32": (1e-5, 1e-6), "fp16": (5e-3, 2e-3)}
"""Smallest tolerance of logits: parts of their range and of their largest value, the latter a few roundings.

Untrained networks give nearly constant logits, around which errors would hide if only the size counted.
"""

ROUNDING = {"fp32": 10.0, "fp16": 4 * 2.0**13}
"""How many times torch's own rounding error (float32 against float64) a runtime may differ from torch.

Another order of the same sums errs about as much as torch does; 10 leaves room for luck. Half precision has 13 bits
less, and weights are rounded too. Only networks that magnify errors, such as made-up weights, get past the floors by
this.
"""

_SEED = 20221127

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Images and what torch makes of them in float32.

    Attributes:
        source: `made up` or `photographs`.
        images: (B, 3, H, W) RGB in 0 ... 255.
        tensors: `cls_logits` (B, P, C), `box_logits` (B, P, 4, R + 1), `scores` (B, P, C), `boxes` (B, P, 4).
        rounding: Largest difference of the same tensors from those in float64.
    """

    source: str
    images: NDArray[np.float32]
    tensors: Mapping[str, NDArray[Any]]
    rounding: Mapping[str, float]

    def tolerances(self, precision: str) -> dict[str, float]:
        """Largest difference allowed per tensor, for `fp32` and `fp16`."""
        factor, (spread, size) = ROUNDING[precision], LOGIT_FLOORS[precision]
        limits = {}
        for name, values in self.tensors.items():
            of_logits = spread * float(np.ptp(values)) + size * float(np.abs(values).max())
            limits[name] = max(FLOORS[precision].get(name, of_logits), factor * self.rounding[name])
        return limits


def make_references(
    model: Detector, card: ModelCard, photographs: Sequence[NDArray[np.float32]] = ()
) -> tuple[Reference, ...]:
    """What torch makes of made-up images of every shape to be tried, and of photographs.

    Args:
        model: Deployed.
        card: What is exported: says which shapes.
        photographs: Each (3, H, W), resized to `card.image_size`, RGB in 0 ... 255.
    """
    network = copy.deepcopy(model).cpu().float().eval()
    found = [_reference(network, example_images(shape), "made up") for shape in _shapes(card)]
    count = card.batch or len(photographs)
    for start in range(0, len(photographs), max(count, 1)):
        # The last batch is filled up from the beginning.
        batch = np.stack([photographs[(start + index) % len(photographs)] for index in range(count)])
        found.append(_reference(network, batch, "photographs"))
    return tuple(found)


def example_images(shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Made-up pictures, the same for the same shape: flat patches of 32 pixels under noise, whole numbers 0 ... 255."""
    rng = np.random.default_rng([_SEED, *shape])
    batch, channels, height, width = shape
    patches = rng.uniform(0, 205, (batch, channels, height // 32, width // 32))
    noise = rng.uniform(0, 50, shape)
    return np.round(patches.repeat(32, axis=2).repeat(32, axis=3) + noise).astype(np.float32)


def torch_results(network: Detector, images: NDArray[Any]) -> Arrays:
    """Tensors of a `Reference` for (B, 3, H, W) images, in the dtype of the network."""
    with torch.inference_mode():
        output = network(torch.from_numpy(np.ascontiguousarray(images)))
        scores, boxes = network.decode(output)
    logits = output.cls_logits[..., : network.num_classes]
    tensors = {"cls_logits": logits, "box_logits": output.box_logits, "scores": scores, "boxes": boxes}
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def largest_difference(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Absolute, over all entries."""
    return float(np.abs(first.astype(np.float64) - second).max())


def check_half_range(model: Detector, images: NDArray[np.float32]) -> None:
    """Refuse a network whose maps overflow half precision: on a CPU, runtimes compute in float32 and hide it.

    Raises:
        ExportError: Naming the layer.
    """
    network = copy.deepcopy(model).cpu().float().eval()
    largest: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            largest[name] = float(output.abs().max())

        return hook

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note(name))
    with torch.inference_mode():
        network(torch.from_numpy(images))
    name, value = max(largest.items(), key=lambda item: item[1])
    limit = torch.finfo(torch.float16).max
    if not value <= limit:
        raise ExportError(f"{name} gives values up to {value:.3g}; half precision holds up to {limit:.0f}: use fp32")


def _reference(network: Detector, images: NDArray[np.float32], source: str) -> Reference:
    single = torch_results(network, images)
    try:
        double = torch_results(network.double(), images.astype(np.float64))
    finally:
        network.float()
    rounding = {name: largest_difference(single[name], double[name]) for name in single}
    return Reference(source, images, single, rounding)


def _shapes(card: ModelCard) -> list[tuple[int, int, int, int]]:
    height, width = card.image_size
    channels = card.input.shape[1] or 3
    first = (card.batch or 1, channels, height, width)
    if card.batch is not None and card.fixed_size:
        return [first]
    # Another number of images, and sides that differ from each other.
    other = card.image_size if card.fixed_size else (2 * STRIDES[-1], 3 * STRIDES[-1])
    return [first, (card.batch or 2, channels, *other)]
