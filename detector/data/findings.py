"""What an examination of a data set can find, how bad each is, and how findings are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .problems import Problem

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
NUM_EXAMPLES = 5

KINDS: dict[str, tuple[Severity, str]] = {
    # What stops training or evaluation, or makes its result wrong.
    "unreadable-split": ("error", "splits that cannot be read"),
    "no-boxes": ("error", "splits without any usable box"),
    "missing-image": ("error", "images that are listed but do not exist"),
    "missing-annotation": ("error", "listed images whose annotation file does not exist"),
    "unreadable-image": ("error", "images that cannot be read"),
    "outside": ("error", "files that lie outside of the data set's folder"),
    "bad-entry": ("error", "malformed entries"),
    "duplicate-id": ("error", "ids that occur twice"),
    "unknown-image": ("error", "annotations of images that are not listed"),
    "unknown-class": ("error", "boxes of a class that is unknown or out of range"),
    "bad-box": ("error", "boxes that are none: no numbers, negative sides, pixels instead of shares"),
    "size-mismatch": ("error", "images of another size than their annotations state"),
    "same-image-across": ("error", "images that are in two splits"),
    # What training survives, at a price.
    "near-image-across": ("warning", "images with a near copy in another split"),
    "same-image": ("warning", "images that occur more than once in a split"),
    "outside-box": ("warning", "boxes that lie outside of their image"),
    "beyond-border": ("warning", "boxes that reach out of their image by more than a pixel"),
    "empty-box": ("warning", "boxes without area; training leaves them out"),
    "one-pixel-box": ("warning", "boxes that are at most one pixel wide or high"),
    "duplicate-box": ("warning", "boxes that occur twice in an image, of the same class"),
    "rotated-image": ("warning", "images that EXIF turns; their boxes are taken to refer to the upright picture"),
    "huge-image": ("warning", "very large images; only their headers were read"),
    "no-label-file": ("warning", "images without a label file; taken as images without objects"),
    "no-image": ("warning", "label files without an image"),
    "class-not-in-train": ("warning", "classes without a box in train; they cannot be learnt"),
    # What is worth knowing.
    "class-not-in-val": ("note", "classes without a box in val; their accuracy stays unknown"),
    "near-image": ("note", "images with a near copy in the same split"),
    "similar-class": ("note", "class names that differ only in spelling; same_as in the union file makes one of them"),
    "category-order": ("note", "splits whose category ids differ from the label order; classes are matched by name"),
}
"""Code to severity and what the counted things are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """All occurrences of one kind.

    Attributes:
        code: A key of `KINDS`.
        count: Occurrences.
        examples: The first of them, one line each.
        images: The images concerned, as far as they are known, each once.
    """

    code: str
    count: int
    examples: tuple[str, ...]
    images: tuple[Path, ...]

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.code][0]

    @property
    def title(self) -> str:
        """What is counted."""
        return KINDS[self.code][1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the images are left out."""
        shown = {"severity": self.severity, "title": self.title}
        return {"code": self.code, **shown, "count": self.count, "examples": list(self.examples)}


@dataclass(slots=True)
class Gatherer:
    """Collects occurrences one by one; its method `report` is what readers take."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, dict[Path, None]] = field(default_factory=dict)

    def add(self, code: str, text: str, *images: Path) -> None:
        """One occurrence."""
        self.counts[code] = self.counts.get(code, 0) + 1
        examples = self.examples.setdefault(code, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(text)
        self.images.setdefault(code, {}).update(dict.fromkeys(images))

    def report(self, problem: Problem) -> None:
        """A reader's problem as an occurrence."""
        self.add(problem.code, str(problem), *([] if problem.image is None else [problem.image]))

    def findings(self) -> tuple[Finding, ...]:
        """The worst first; within a severity in the order of `KINDS`."""
        codes: Sequence[str] = sorted(self.counts, key=list(KINDS).index)
        return tuple(
            Finding(code, self.counts[code], tuple(self.examples[code]), tuple(self.images[code])) for code in codes
        )
