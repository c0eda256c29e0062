"""Batch norm whose statistics are those of the whole batch, over all processes; for devices that torch has none for.

Tensor letters: B images of this process, C channels, H W feature size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Normalise(torch.autograd.Function):
    """Normalisation by mean and variance over processes, differentiable in everything."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: SyncNorm2d, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ANN401
        local_variance, local_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        mean, variance, total = _combined(count, local_mean, local_variance, norm.group)
        norm.update_statistics(mean, variance * (total / max(1, total - 1)))
        inverse = torch.rsqrt(variance + norm.eps)
        normalised = (x - _map(mean)) * _map(inverse)
        ctx.save_for_backward(normalised, weight, inverse)
        ctx.group, ctx.total = norm.group, total
        return normalised * _map(weight) + _map(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:  # noqa: ANN401
        normalised, weight, inverse = ctx.saved_tensors
        # Weight and bias get this process's part; parallel training sums those itself.
        bias_gradient = gradient.sum(dim=(0, 2, 3))
        weight_gradient = (gradient * normalised).sum(dim=(0, 2, 3))
        sums = torch.stack([bias_gradient, weight_gradient])
        dist.all_reduce(sums, group=ctx.group)
        mean, slope = sums / ctx.total
        x_gradient = _map(weight * inverse) * (gradient - _map(mean) - normalised * _map(slope))
        return x_gradient, None, weight_gradient, bias_gradient


class SyncNorm2d(nn.BatchNorm2d):
    """A batch norm that adds up its statistics over a process group; in evaluation an ordinary one.

    Every process of the group must run the same norms in the same order, forward and backward.
    """

    group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; B may differ between processes."""
        if not self.training:
            return super().forward(x)
        # A norm that only standardises has no weights.
        weight = x.new_ones(x.shape[1]) if self.weight is None else self.weight
        bias = x.new_zeros(x.shape[1]) if self.bias is None else self.bias
        return _Normalise.apply(x, self, weight, bias)

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, if it has some, towards (C,) those of a batch, with unbiased variance."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def synchronise_norms(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Turn every batch norm of a network into one over a process group, in place; names and values stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _synchronised(child, group))


def _synchronised(norm: nn.BatchNorm2d, group: dist.ProcessGroup | None) -> SyncNorm2d:
    with torch.device("meta"):
        made = SyncNorm2d(
            norm.num_features,
            eps=norm.eps,
            momentum=norm.momentum,
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
        )
    made.group = group
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    return made.train(norm.training)


def _combined(
    count: int, mean: Tensor, variance: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, float]:
    """Mean, biased variance and count over all processes; sums in float64, where nothing cancels."""
    local_mean, local_variance = mean.double(), variance.double()
    counts = local_mean.new_full((1,), float(count))
    sums = torch.cat([counts, count * local_mean, count * (local_variance + local_mean.square())])
    dist.all_reduce(sums, group=group)
    total = float(sums[0])
    first, second = (sums[1:] / total).chunk(2)
    return first.to(mean.dtype), (second - first.square()).clamp_min(0).to(mean.dtype), total


def _map(values: Tensor) -> Tensor:
    """(C,) to (1, C, 1, 1)."""
    return values[None, :, None, None]
