"""From scores and boxes of all points to detections.

Tensor letters: B images, P points of all levels, C classes, D detections of one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import clip_boxes
from .types import Detections

MAX_DETECTIONS = 500
"""Detections kept per image, as in the official evaluation."""


def postprocess(
    scores: Tensor,
    boxes: Tensor,
    *,
    image_size: tuple[int, int],
    score_threshold: float = 0.05,
    iou_threshold: float = 0.7,
    max_detections: int = MAX_DETECTIONS,
    original_sizes: Sequence[tuple[int, int]] | None = None,
    clip: bool = False,
) -> list[Detections]:
    """Detections of every image, best first.

    Args:
        scores: (B, P, C) probabilities.
        boxes: (B, P, 4) xyxy in pixels of the network's input.
        image_size: (height, width) of that input.
        score_threshold: Pairs of point and class strictly above it are kept; one box may give several classes.
        iou_threshold: Of two boxes of one class that overlap more, the better stays.
        max_detections: Kept per image.
        original_sizes: (height, width) of each image before it was stretched to the input's size; boxes are scaled
            back to it. None leaves them in pixels of the input.
        clip: Cut boxes at the image's borders.

    Returns:
        One `Detections` per image, on the CPU.

    Raises:
        ValueError: `original_sizes` is not one size per image.
    """
    sizes = [image_size] * len(scores) if original_sizes is None else list(original_sizes)
    if len(sizes) != len(scores):
        raise ValueError(f"original_sizes has {len(sizes)} entries; expected one per image, {len(scores)}")
    results = []
    for image_scores, image_boxes, size in zip(scores, boxes, sizes, strict=True):
        kept_boxes, kept_scores, labels = select_best(
            image_scores,
            image_boxes,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )
        kept_boxes = rescale_boxes(kept_boxes, image_size, size)
        if clip:
            kept_boxes = clip_boxes(kept_boxes, size)
        results.append(
            Detections(
                boxes=kept_boxes.detach().float().cpu().numpy(),
                scores=kept_scores.detach().float().cpu().numpy(),
                labels=labels.cpu().numpy(),
                image_size=(size[0], size[1]),
            )
        )
    return results


def select_best(
    scores: Tensor, boxes: Tensor, *, score_threshold: float, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold, class-wise non-maximum suppression and the best of the rest, for one image.

    Args:
        scores: (P, C) probabilities.
        boxes: (P, 4) xyxy.
        score_threshold: Pairs of point and class strictly above it are kept.
        iou_threshold: Of two boxes of one class that overlap more, the better stays.
        max_detections: Largest D.

    Returns:
        Boxes (D, 4), scores (D,) falling, labels (D,) int64; D may be 0.
    """
    points, labels = torch.nonzero(scores > score_threshold, as_tuple=True)
    candidates, candidate_scores = boxes[points], scores[points, labels]
    keep = batched_nms(candidates.float(), candidate_scores.float(), labels, iou_threshold)[:max_detections]
    return candidates[keep], candidate_scores[keep], labels[keep]


def rescale_boxes(boxes: Tensor, image_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """(..., 4) boxes from an image of one (height, width) to the same image stretched to another."""
    if tuple(image_size) == tuple(original_size):
        return boxes
    scale_y, scale_x = original_size[0] / image_size[0], original_size[1] / image_size[1]
    return boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
