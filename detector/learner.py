"""What one training step computes: images and boxes in, losses out. Parallel training wraps this module.

Tensor letters: B images, H W size of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .criterion import Criterion
from .model import Detector
from .targets import Targets
from .types import HeadOutput

if TYPE_CHECKING:
    from .distill import Distiller, Guidance

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_CPU_BLOCK = 16
"""Channels that oneDNN takes at once with AVX-512; 8 with AVX2."""


@dataclass(frozen=True, slots=True, eq=False)
class StepLosses:
    """Losses of one batch, scalars.

    Attributes:
        total: Detection losses and, by its weight, distillation; the only one with a gradient.
        quality_focal: Classes.
        giou: Boxes.
        dfl: Distributions of the boxes' sides.
        distill: Distillation before its weight; 0 without a teacher.
        num_positives: Assigned points.
    """

    total: Tensor
    quality_focal: Tensor
    giou: Tensor
    dfl: Tensor
    distill: Tensor
    num_positives: Tensor


class Learner(nn.Module):
    """A network together with its loss.

    Args:
        model: The network that learns.
        criterion: Its loss.
        channels_last: Channels innermost in memory where that is safe; a matter of speed.
        precision: `fp32`, or what the network's convolutions run in under autocast; losses are always in float32.
        loss_scale: Factor of the detection losses, whose normalisers are sums over processes, for what averages over
            processes later. The distillation loss is one of each process.
        frozen: Modules of the network that do not learn: their batch norms stay in evaluation mode.
        compiled: Compile the network with torch.compile.
        distiller: The student's side of distillation; None is without a teacher.
    """

    def __init__(
        self,
        model: Detector,
        criterion: Criterion,
        *,
        channels_last: bool = False,
        precision: str = "fp32",
        loss_scale: float = 1.0,
        frozen: Sequence[nn.Module] = (),
        compiled: bool = False,
        distiller: Distiller | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.distiller = distiller
        self.criterion = criterion
        self.precision = precision
        self.loss_scale = loss_scale
        usable = channels_last and not _corrupts_memory(model)
        self.memory_format = torch.channels_last if usable else torch.contiguous_format
        model.to(memory_format=self.memory_format)
        if distiller is not None:
            distiller.to(memory_format=self.memory_format)
        self._frozen = tuple(frozen)
        # Plain functions: a module here would be registered, and saved, a second time.
        self._maps: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]] = model.both_maps
        self._head: Callable[[list[Tensor]], HeadOutput] = model.head.forward
        if compiled:
            self._maps, self._head = torch.compile(model.both_maps), torch.compile(model.head.forward)

    def train(self, mode: bool = True) -> Learner:
        """Training mode, but for what is frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, targets: Targets, guidance: Guidance | None = None) -> StepLosses:
        """Losses of a batch.

        Args:
            images: (B, 3, H, W) float32 RGB in 0 ... 255.
            targets: On the same device.
            guidance: What the teacher says; None where it is silent.
        """
        images = images.contiguous(memory_format=self.memory_format)
        with autocast(images.device.type, self.precision):
            backbone_maps, neck_maps = self._maps(images)
            output = self._head(neck_maps)
        losses = self.criterion(output, targets, strides=self.model.strides, num_classes=self.model.num_classes)
        total, quality_focal, giou, dfl = (
            part * self.loss_scale for part in (losses.total, losses.quality_focal, losses.giou, losses.dfl)
        )
        distill = torch.zeros_like(quality_focal)
        if self.distiller is not None:
            if guidance is None:
                total = total + self.distiller.nothing()
            else:
                maps = backbone_maps if self.distiller.config.features == "backbone" else neck_maps
                loss = self.distiller(maps, guidance.maps)
                total, distill = total + guidance.weight * loss, loss.detach()
        return StepLosses(total, quality_focal, giou, dfl, distill, num_positives=losses.num_positives)


def autocast(device_type: str, precision: str) -> AbstractContextManager[object]:
    """Where operations run in one of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device_type, dtype=dtype)


def _corrupts_memory(model: Detector) -> bool:
    """Whether oneDNN's weight gradients on the CPU would write past their workspace with channels innermost.

    They do for a strided 1x1 convolution of few channels, as of oneDNN 3.14 and torch 2.14
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    if next(model.parameters()).device.type != "cpu":
        return False
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(
        conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.in_channels // conv.groups < _CPU_BLOCK
        for conv in convs
    )
