"""What feature distillation compares: losses between a student's and a teacher's map of equal shape.

Tensor letters: N images, C channels of the teacher, H W feature size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def channel_wise_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """How much the places where each channel is active differ: KL(teacher || student) over positions.

    Each channel of each image becomes a distribution over its H * W positions; divergences are summed, and divided by
    N * C.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W), without gradient.
        temperature: Values are divided by it; the loss is multiplied by its square, so that gradients keep their order.

    Source: Channel-wise Knowledge Distillation (arXiv 2011.13256).
    """
    innermost = _channels_innermost(student)
    wanted = _over_positions(teacher, temperature, innermost)
    found = _over_positions(student, temperature, innermost)
    divergence = (wanted.exp() * (wanted - found)).sum()
    return divergence * (temperature**2 / (student.shape[0] * student.shape[1]))


def mimic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two (N, C, H, W) maps."""
    return (student - teacher).square().mean()


def masked_generative_loss(
    student: Tensor, teacher: Tensor, *, kept: Tensor, generate: Callable[[Tensor], Tensor]
) -> Tensor:
    """Squared difference of the teacher's map and one generated from what is left of the student's, summed, by image.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W), without gradient.
        kept: (N, 1, H, W) of 1 where the student's map is seen and 0 where it is hidden.
        generate: From (N, C, H, W) to the same shape.

    Source: Masked Generative Distillation (arXiv 2205.01529).
    """
    return (generate(student * kept) - teacher).square().sum() / len(student)


def drawn_mask(like: Tensor, *, ratio: float) -> Tensor:
    """(N, 1, H, W) of 0 with a probability of `ratio` and 1 elsewhere, for a (N, C, H, W) map."""
    shape = (like.shape[0], 1, *like.shape[2:])
    return (torch.rand(shape, device=like.device) >= ratio).to(like.dtype)


def _over_positions(features: Tensor, temperature: float, innermost: bool) -> Tensor:
    """Logarithms of each channel's distribution over positions, (N, C, H * W), or (N, H * W, C) if asked for."""
    scaled = features if temperature == 1.0 else features / temperature
    if innermost:
        return scaled.permute(0, 2, 3, 1).flatten(1, 2).log_softmax(dim=1)
    return scaled.flatten(2).log_softmax(dim=2)


def _channels_innermost(features: Tensor) -> bool:
    """Whether flattening positions keeps the memory of a map only with its channels last."""
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
