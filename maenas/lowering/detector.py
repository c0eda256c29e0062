"""The whole deployed detector as one ordered list of operators."""

from __future__ import annotations

from maenas.lowering.backbone import lower_backbone
from maenas.lowering.head import lower_head
from maenas.lowering.neck import lower_neck
from maenas.lowering.op import Op
from maenas.structure import Structure

SCOPES = ("detector", "backbone")


def lower(structure: Structure, *, scope: str = "detector") -> list[Op]:
    """The deployed, fused operators of a structure, in execution order.

    Args:
        structure: What to lower.
        scope: `detector` (backbone, neck and head) or `backbone`.

    Returns:
        Operators grouped by their `stage` field; batch norm is folded, no decoding, no NMS.

    Raises:
        ValueError: Another scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; expected one of {', '.join(SCOPES)}")
    ops = lower_backbone(structure.backbone, structure.image_size)
    if scope == "backbone":
        return ops
    sizes = feature_sizes(structure)
    ops += lower_neck(structure.neck, structure.backbone.out_channels, sizes, structure.neck.out_channels)
    ops += lower_head(structure.head, structure.neck.out_channels, sizes, structure.neck.activation)
    return ops


def feature_sizes(structure: Structure) -> tuple[tuple[int, int], ...]:
    """(height, width) of the feature maps of every level."""
    height, width = structure.image_size
    return tuple((height // stride, width // stride) for stride in structure.strides)
