"""From the trained to the deployed form: branches merged, batch norms folded, the original untouched."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from .layers import ConvNormAct, RepConv

Model = TypeVar("Model", bound=nn.Module)


def fuse_reparam(model: Model) -> Model:
    """A copy in evaluation mode whose two-branch convolutions are single ones; every other batch norm stays.

    This is the form in which the published sizes are counted and official tools evaluate.
    """
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        if isinstance(module, RepConv):
            module.merge_branches()
    return fused


def deploy(model: Model) -> Model:
    """A copy in evaluation mode in which a bias stands for every batch norm of the detector's own layers.

    Batch norms of a foreign backbone stay.
    """
    folded = fuse_reparam(model)
    for module in list(folded.modules()):
        if isinstance(module, ConvNormAct):
            module.fold_norm()
    return folded


def is_deployed(model: nn.Module) -> bool:
    """Whether nothing is left for `deploy` to fold."""
    unmerged = any(isinstance(module, RepConv) and not module.merged for module in model.modules())
    unfolded = any(isinstance(m, ConvNormAct) and isinstance(m.norm, nn.BatchNorm2d) for m in model.modules())
    return not unmerged and not unfolded
