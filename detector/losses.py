"""The losses of single predictions, unweighted and not summed; assignment and weights belong to training.

Tensor letters: N predictions, C classes, R = reg_max.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable
from torch.nn import functional as F

from .boxes import elementwise_giou

LOG_LIMIT = 100.0
"""Largest -ln of a probability, as in PyTorch's binary cross entropy."""


def quality_focal_loss(scores: Tensor, labels: Tensor, qualities: Tensor, *, beta: float = 2.0) -> Tensor:
    """Quality focal loss, summed over classes.

    Args:
        scores: (N, C) probabilities.
        labels: (N,) classes; C means background.
        qualities: (N,) target of the labelled class (its IoU); not read for background.
        beta: Exponent of the distance between score and target.

    Returns:
        (N,) losses.

    Source: Generalized Focal Loss (arXiv 2006.04388), eq. 2.
    """
    targets = torch.zeros_like(scores)
    rows = torch.nonzero(labels < scores.shape[1]).squeeze(1)
    targets[rows, labels[rows]] = qualities[rows].to(scores.dtype)
    entropy = F.binary_cross_entropy(scores, targets, reduction="none")
    return (entropy * (targets - scores).abs().pow(beta)).sum(dim=1)


def quality_focal_loss_with_logits(logits: Tensor, targets: Tensor, *, beta: float = 2.0) -> Tensor:
    """Quality focal loss of every class, exact for logits of any size.

    Args:
        logits: (..., C) before the sigmoid, float32.
        targets: (..., C) between 0 and 1: the IoU for the labelled class, 0 for others.
        beta: Exponent of the distance between score and target.

    Returns:
        (..., C) losses.

    Source: Generalized Focal Loss (arXiv 2006.04388), eq. 2; logarithms limited to -100, as for probabilities.
    """
    losses: Tensor = _QualityFocal.apply(logits, targets, beta)
    return losses


class _QualityFocal(torch.autograd.Function):
    """Loss and gradient in one visit: all classes of all points pass here in every training step."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, targets: Tensor, beta: float) -> Tensor:
        scores = logits.sigmoid()
        distance = scores - targets
        bounded = logits.clamp(-LOG_LIMIT, LOG_LIMIT)
        entropy = bounded.relu() - targets * bounded + log1p(bounded.abs().neg().exp())
        factor = distance.abs().pow(beta)
        # d entropy / d logit is the distance itself, and d |distance|^beta / d logit holds the sigmoid's slope.
        slope = beta * distance.abs().pow(beta - 1) * distance.sign() * scores * (1 - scores)
        gradient = slope * entropy + factor * distance * (bounded == logits)
        ctx.save_for_backward(gradient)
        return factor * entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None


def log1p(values: Tensor) -> Tensor:
    """ln(1 + x) as exact as `torch.log1p`, and several times faster on a CPU; has no gradient at 0."""
    total = 1 + values
    # What rounding has lost in the sum, the quotient puts right (a trick of W. Kahan's).
    return torch.where(total == 1, values, total.log() * values / (total - 1))


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy to the two bins around a target, weighted by their nearness.

    Args:
        logits: (N, R + 1) before the softmax.
        targets: (N,) between 0 and R, R excluded.

    Returns:
        (N,) losses.

    Source: Generalized Focal Loss (arXiv 2006.04388), eq. 6.
    """
    left = targets.long()
    right_weight = targets - left
    left_loss = F.cross_entropy(logits, left, reduction="none")
    right_loss = F.cross_entropy(logits, left + 1, reduction="none")
    return left_loss * (1 - right_weight) + right_loss * right_weight


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """(N, 4) twice to (N,): 1 minus the generalised IoU."""
    return 1 - elementwise_giou(boxes, targets)
