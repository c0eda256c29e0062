"""What makes an entry of a COCO file unusable."""

from __future__ import annotations

import math
from typing import Any

from maenas.records import is_number, shown

_LARGEST_ID = 2**63 - 1
_LARGEST = 1e9
"""Coordinates beyond it are no pixels, and lose their decimals in float32 long before."""


def image_fault(entry: object) -> str | None:
    """The message about an entry of `images`; None if there is nothing to say."""
    if not isinstance(entry, dict):
        return f"is {shown(entry)}; expected an object"
    if not is_id(entry.get("id")):
        return f"id is {shown(entry.get('id'))}; expected an integer"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        return f"file_name is {shown(entry.get('file_name'))}; expected a path (image {entry['id']})"
    for side in ("width", "height"):
        value = entry.get(side)
        if value is not None and not (is_number(value) and value >= 1 and value == int(value)):
            return f"{side} is {shown(value)}; expected a positive integer (image {entry['id']})"
    return None


def annotation_fault(entry: Any, images: set[int], labels: dict[int, int]) -> tuple[str, str] | None:  # noqa: ANN401
    """Code and message of what makes an annotation unusable; None if nothing."""
    try:
        image_id, category_id, box = entry["image_id"], entry["category_id"], entry["bbox"]
        area = entry.get("area")
        x, y, width, height = box
        total = x + y + width + height + (0 if area is None else area)
        in_range = math.isfinite(total) and -_LARGEST <= min(box) <= max(box) <= _LARGEST
        numbers = type(box) is list and bool not in map(type, box)
        positive = width >= 0 and height >= 0 and (area is None or 0 <= area <= _LARGEST**2)
        if in_range and numbers and positive and image_id in images and category_id in labels:
            return None
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        pass
    return _explained(entry, images, labels)


def _explained(entry: Any, images: set[int], labels: dict[int, int]) -> tuple[str, str]:  # noqa: ANN401
    """Code and message about an annotation that cannot be used."""
    if not isinstance(entry, dict):
        return "bad-entry", f"is {shown(entry)}; expected an object"
    image_id, category_id, box, area = (entry.get(key) for key in ("image_id", "category_id", "bbox", "area"))
    if not is_id(image_id) or image_id not in images:
        return "unknown-image", f"image_id is {shown(image_id)}; expected the id of one of the {len(images)} images"
    if not is_id(category_id) or category_id not in labels:
        expected = ", ".join(str(key) for key in list(labels)[:10]) + (", ..." if len(labels) > 10 else "")
        return "unknown-class", f"category_id is {shown(category_id)}; expected one of {expected}"
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        return "bad-box", f"bbox is {shown(box)}; expected four finite numbers x, y, width, height"
    if box[2] < 0 or box[3] < 0:
        return "bad-box", f"bbox is {shown(box)}; expected a width and a height of at least 0"
    if max(map(abs, box)) > _LARGEST:
        return "bad-box", f"bbox is {shown(box)}; expected pixels, at most {_LARGEST:g}"
    return "bad-box", f"area is {shown(area)}; expected square pixels, a number of at least 0"


def is_id(value: object) -> bool:
    """Whether a value can be an id: an integer that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID
