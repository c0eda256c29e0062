"""The losses of single predictions, unweighted and not summed; assignment and weights belong to training.

Tensor letters: N predictions, C classes, R = reg_max.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import elementwise_giou


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
