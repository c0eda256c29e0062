"""What one training step computes: images and boxes in, losses out. Parallel training wraps this module.

Tensor letters: B images, H W size of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .criterion import Criterion, Losses
from .model import Detector
from .targets import Targets
from .types import HeadOutput

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_CPU_BLOCK = 16
"""Channels that oneDNN takes at once with AVX-512; 8 with AVX2."""


class Learner(nn.Module):
    """A network together with its loss.

    Args:
        model: The network that learns.
        criterion: Its loss.
        channels_last: Channels innermost in memory where that is safe; a matter of speed.
        precision: `fp32`, or what the network's convolutions run in under autocast; losses are always in float32.
        loss_scale: Factor of the losses, for what averages over processes later.
        frozen: Modules of the network that do not learn: their batch norms stay in evaluation mode.
        compiled: Compile the network with torch.compile.
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
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.precision = precision
        self.loss_scale = loss_scale
        usable = channels_last and not _corrupts_memory(model)
        self.memory_format = torch.channels_last if usable else torch.contiguous_format
        model.to(memory_format=self.memory_format)
        self._frozen = tuple(frozen)
        # Plain functions: a module here would be registered, and saved, a second time.
        self._features: Callable[[Tensor], list[Tensor]] = model.features
        self._head: Callable[[list[Tensor]], HeadOutput] = model.head.forward
        if compiled:
            self._features, self._head = torch.compile(model.features), torch.compile(model.head.forward)

    def train(self, mode: bool = True) -> Learner:
        """Training mode, but for what is frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, targets: Targets) -> Losses:
        """Losses of a batch.

        Args:
            images: (B, 3, H, W) float32 RGB in 0 ... 255.
            targets: On the same device.
        """
        images = images.contiguous(memory_format=self.memory_format)
        with self._autocast(images.device.type):
            output = self._head(self._features(images))
        losses = self.criterion(output, targets, strides=self.model.strides, num_classes=self.model.num_classes)
        total, quality_focal, giou, dfl = (
            part * self.loss_scale for part in (losses.total, losses.quality_focal, losses.giou, losses.dfl)
        )
        return Losses(total, quality_focal, giou, dfl, num_positives=losses.num_positives)

    def _autocast(self, device_type: str) -> AbstractContextManager:
        dtype = PRECISIONS[self.precision]
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
