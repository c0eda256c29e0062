"""The published networks: shipped as structures, with the figures their report prints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from maenas.errors import StructureError, did_you_mean
from maenas.official import is_official, read_content
from maenas.resources import data_folder
from maenas.structure import Structure, load_structure, structure_from_dict

PUBLISHED = (
    "damo-yolo-t",
    "damo-yolo-s",
    "damo-yolo-m",
    "damo-yolo-l",
    "damo-yolo-ns",
    "damo-yolo-nm",
    "damo-yolo-nl",
    "damo-yolo-n",
)
"""Names that `load_published` and every command accept; damo-yolo-n is the first, superseded nano model."""

_T4 = "NVIDIA T4, TensorRT, FP16, batch 1, no NMS"
_XEON = "Intel Xeon Platinum 8163, OpenVINO, batch 1, no post-processing"
_TABLE_9 = "DAMO-YOLO report (arXiv 2211.15444), Table 9"
_TABLE_10 = "DAMO-YOLO report (arXiv 2211.15444), Table 10"


@dataclass(frozen=True, slots=True)
class PublishedFacts:
    """What a paper prints about a network.

    Attributes:
        latency_ms: Milliseconds per image.
        device: Where and how they were measured.
        ap: COCO val2017 AP, trained without a teacher.
        ap_distilled: The same with distillation, or None where not printed.
        source: Paper and table.
    """

    latency_ms: float
    device: str
    ap: float
    ap_distilled: float | None
    source: str


PUBLISHED_FACTS = {
    "damo-yolo-t": PublishedFacts(2.78, _T4, 42.0, 43.6, _TABLE_9),
    "damo-yolo-s": PublishedFacts(3.83, _T4, 46.0, 47.7, _TABLE_9),
    # Table 9 prints 50.4 for the distilled M; the abstract and the release notes say 50.2.
    "damo-yolo-m": PublishedFacts(5.62, _T4, 49.2, 50.4, _TABLE_9),
    "damo-yolo-l": PublishedFacts(7.95, _T4, 50.8, 51.9, _TABLE_9),
    "damo-yolo-ns": PublishedFacts(4.08, _XEON, 32.3, None, _TABLE_10),
    "damo-yolo-nm": PublishedFacts(5.05, _XEON, 38.2, None, _TABLE_10),
    "damo-yolo-nl": PublishedFacts(6.69, _XEON, 40.5, None, _TABLE_10),
}
"""By published name; the two tables say nothing about damo-yolo-n."""


def load_published(name: str) -> Structure:
    """A published network by name, in any case.

    Raises:
        StructureError: Listing the names and the nearest one.
    """
    known = name.lower()
    if known not in PUBLISHED:
        hint = did_you_mean(known, PUBLISHED)
        raise StructureError(f"structure {name!r} is unknown; expected one of {', '.join(PUBLISHED)}, or a file{hint}")
    return load_structure(data_folder("structures") / f"{known}.json")


def resolve_structure(
    name_or_path: str | Path,
    *,
    family: str | None = None,
    recipe: str | Structure | None = None,
    index: int | None = None,
) -> Structure:
    """A structure from whatever a user names: a published network, a structure file, or an official file.

    Args:
        name_or_path: Published name (any case), or path to a file of our own or an official form.
        family: Reading of an official file, see `maenas.official_import.import_official`; also for the next two.
        recipe: Published name or structure that completes an official file.
        index: Entry of an official search result.

    Raises:
        StructureError: No such name or file, a malformed file, or a setting that applies to official files only.
    """
    # Here, because the importer completes its files with published recipes.
    from maenas.official_import import structure_from_content

    path = Path(name_or_path)
    named = str(name_or_path).lower() in PUBLISHED
    if named or _is_name(path):
        structure = load_published(str(name_or_path))
    else:
        content = read_content(path)
        if is_official(content):
            return structure_from_content(
                content, source=str(path), family=family, recipe=recipe, index=0 if index is None else index
            )
        structure = structure_from_dict(content, source=str(path))
    for option, value in (("family", family), ("recipe", recipe), ("index", index)):
        if value is not None:
            raise StructureError(f"{name_or_path}: {option} is given; expected it for an official file only")
    return structure


def resolve_reference(name_or_path: str | Path, *, index: int = 0) -> Structure:
    """A structure as the reference search tool reads it: plain k1kx or kxkx units, for its own graph.

    Raises:
        StructureError: As `resolve_structure`, or a mob structure: its official file's widths are not recoverable.
    """
    from maenas.official import parse_content
    from maenas.official_export import export_official
    from maenas.official_import import reference_from_content

    path = Path(name_or_path)
    if str(name_or_path).lower() not in PUBLISHED and not _is_name(path):
        content = read_content(path)
        if is_official(content):
            return reference_from_content(content, source=str(path), index=index)
    structure = resolve_structure(name_or_path)
    if structure.backbone.family == "mob":
        raise StructureError(
            f"{name_or_path}: is a mob structure; the reference graph reads res, kxkx and csp, or an official k1kx file"
        )
    content = parse_content(export_official(structure, form="list", dialect="v1"), source=str(name_or_path))
    return replace(reference_from_content(content, source=str(name_or_path)), name=structure.name)


def _is_name(path: Path) -> bool:
    """A bare word that is no file: an unknown name rather than a missing path."""
    return path.name == str(path) and not path.suffix and not path.exists()
