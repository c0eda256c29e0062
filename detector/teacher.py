"""The teacher's side of distillation: a trained network that shows its maps, as cheaply as it can.

No gradients, branches merged and norms folded, nothing behind the maps that are compared, channels innermost in
memory, in reduced precision where the settings allow it, and once per image where images come again.

Tensor letters: B images, C channels, H W size of the network's input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from maenas.structure import Structure

from .checkpoint import load_checkpoint
from .distill import MapShapes, map_shapes
from .distill_config import DistillConfig
from .errors import CheckpointError
from .feature_cache import FeatureCache
from .learner import autocast
from .model import Detector
from .reparam import deploy


class Teacher:
    """A network whose maps are compared; it learns nothing, and no state of a run holds it.

    Args:
        model: The trained network; not changed.
        config: Which maps, in which precision, kept or not.
        device: Where it computes.
        digest: Of its weights; see `weights_digest`.
        compiled: Compile it with torch.compile.

    Attributes:
        shapes: Of its maps.
        structure: Of its network.
        cache: Maps that are kept; None computes them anew.

    Raises:
        ConfigError: It has no map of a level that the settings name.
    """

    def __init__(
        self, model: Detector, config: DistillConfig, *, device: torch.device, digest: str, compiled: bool = False
    ) -> None:
        self.shapes: MapShapes = map_shapes(model, config, whose="teacher")
        self.structure: Structure = model.structure
        self.digest = digest
        self.cache = FeatureCache() if config.cache == "ram" else None
        self._precision = config.precision
        self._device = device
        network = deploy(model).requires_grad_(False).to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        maps: Callable[[Tensor], list[Tensor]] = network.features if config.features == "neck" else network.backbone
        self._maps = torch.compile(maps) if compiled else maps

    def maps(self, images: Tensor, on_device: Tensor) -> list[Tensor]:
        """The compared maps of a batch, in the teacher's precision.

        Args:
            images: (B, 3, H, W) uint8 on the CPU, which images are recognised by.
            on_device: The same as float32 on the teacher's device.
        """
        if self.cache is None:
            return self._compute(on_device)
        maps = self.cache.maps(images, lambda: self._compute(on_device))
        return [level.to(self._device, non_blocking=True) for level in maps]

    def bytes_per_image(self, size: tuple[int, int]) -> int:
        """Memory of an image's maps.

        Args:
            size: (height, width) of the images.
        """
        pairs = zip(self.shapes.channels, self.shapes.strides, strict=True)
        values = sum(channels * (size[0] // stride) * (size[1] // stride) for channels, stride in pairs)
        return values * (4 if self._precision == "fp32" else 2)

    @torch.no_grad()
    def _compute(self, images: Tensor) -> list[Tensor]:
        # Not in inference mode: its tensors cannot stand in a student's loss.
        with autocast(images.device.type, self._precision):
            maps = self._maps(images.contiguous(memory_format=torch.channels_last))
        return [maps[index] for index in self.shapes.indices]


def load_teacher(path: str | Path, config: DistillConfig, *, device: torch.device, compiled: bool = False) -> Teacher:
    """The network of a checkpoint as a teacher.

    Torch's random state is left as it was, so that a student begins as it would without a teacher.

    Raises:
        CheckpointError: The file cannot be read, is no checkpoint of ours, or does not fit its own structure.
        ConfigError: Its network has no map of a level that the settings name.
    """
    if Path(path).suffix == ".pth":
        raise CheckpointError(
            f"{path}: names no structure; expected a checkpoint of ours as teacher: "
            f"maenas convert weights {path} teacher.safetensors --structure NAME"
        )
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"teacher {error}") from error
    with torch.random.fork_rng(devices=[]):
        model = checkpoint.build()
    digest = weights_digest(checkpoint.weights, checkpoint.structure)
    return Teacher(model, config, device=device, digest=digest, compiled=compiled)


def weights_digest(weights: Mapping[str, Tensor], structure: Structure) -> str:
    """Twelve hex digits of a network and its weights, whatever file they lie in."""
    digest = hashlib.sha256(structure.digest.encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name};{tuple(value.shape)};{value.dtype};".encode())
        if value.numel():
            digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
