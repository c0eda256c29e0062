"""How curves look and what they are called: colours, marks, the names of a legend, the notes below a picture.

Colours: Okabe and Ito's palette, which people with every common colour blindness tell apart; each curve has a mark of
its own besides, so that nothing rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from maenas.plot_points import OWN, Group, Point

OWN_COLOUR = "#D55E00"
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
"""Okabe and Ito's colours without yellow, which is too light for lines on white; vermilion is kept for our own."""

OWN_MARK = "*"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h", "d")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: a series under one set of conditions.

    Attributes:
        name: As in the legend.
        colour: As `#rrggbb`.
        gid: SVG id of its line.
        points: Numbers of its points.
    """

    name: str
    colour: str
    gid: str
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Style:
    """How a curve looks.

    Attributes:
        colour: As `#rrggbb`.
        mark: Of matplotlib.
        dashes: Line style of matplotlib.
        own: Whether it is ours.
        gid: SVG id of its line.
    """

    colour: str
    mark: str
    dashes: Any
    own: bool
    gid: str


def curve_key(point: Point, groups: Sequence[Group]) -> tuple[str, int]:
    """A curve: a series within one group."""
    return point.series, next(place for place, group in enumerate(groups) if group.conditions == point.conditions)


def styles_of(groups: Sequence[Group]) -> dict[tuple[str, int], Style]:
    """Colours by series; marks by series too, but by group where unlike groups are mixed."""
    styles: dict[tuple[str, int], Style] = {}
    numbers: dict[str, int] = {}
    for place, group in enumerate(groups):
        for point in group.points:
            key = point.series, place
            if key in styles:
                continue
            mixed, gid = len(groups) > 1, f"c{len(styles)}"
            if point.own:
                mark = MARKS[place % len(MARKS)] if mixed else OWN_MARK
                styles[key] = Style(OWN_COLOUR, mark, _DASHES[point.series != OWN], True, gid)
            else:
                number = numbers.setdefault(point.series, len(numbers))
                mark = MARKS[(place if mixed else number) % len(MARKS)]
                dashes = _DASHES[number // len(COLOURS) % len(_DASHES)]
                styles[key] = Style(COLOURS[number % len(COLOURS)], mark, dashes, False, gid)
    return dict(sorted(styles.items(), key=lambda item: not item[1].own))


def curves_of(
    points: Sequence[Point], groups: Sequence[Group], styles: dict[tuple[str, int], Style]
) -> tuple[Curve, ...]:
    """The curves of a picture, our own first."""
    keys = [curve_key(point, groups) for point in points]
    return tuple(
        Curve(
            name=curve_name(key, groups),
            colour=style.colour,
            gid=style.gid,
            points=tuple(number for number, own in enumerate(keys) if own == key),
        )
        for key, style in styles.items()
    )


def curve_name(key: tuple[str, int], groups: Sequence[Group]) -> str:
    """What the legend calls a curve."""
    series, place = key
    rated = [point for point in groups[place].points if point.series == series and point.ap is not None]
    hollow = bool(rated) and all(point.latency_status == "predicted" for point in rated)
    name = f"{series}, predicted latency" if hollow else series
    return name if len(groups) == 1 else f"{name} ({_how_it_differs(place, groups)})"


def _how_it_differs(place: int, groups: Sequence[Group]) -> str:
    """Who measured a group, and where one laboratory measured in several ways, what is special about this one."""
    who = _laboratory(groups[place])
    ways = [group.conditions for group in groups if _laboratory(group) == who]
    words = {
        name: str(getattr(groups[place].conditions, name))
        for name in ("device", "runtime", "precision", "batch", "threads", "nms")
        if len({getattr(way, name) for way in ways}) > 1
    }
    named = {"batch": "batch {}", "threads": "threads {}", "nms": "NMS {}"}
    return ", ".join([who, *(named.get(name, "{}").format(word) for name, word in words.items())])


def _laboratory(group: Group) -> str:
    how = group.conditions
    return how.protocol if how.measured_by in (OWN, how.protocol) else f"{how.protocol}, {how.measured_by}"


def how_measured(groups: Sequence[Group]) -> str:
    """The conditions of a picture in a line."""
    if _differ_in_precision_alone(groups):
        precisions = dict.fromkeys(group.conditions.precision for group in groups)
        return str(replace(groups[0].conditions, precision=" and ".join(precisions)))
    return f"MIXED: {len(groups)} unlike ways of measuring"


def _differ_in_precision_alone(groups: Sequence[Group]) -> bool:
    """Their latencies can be compared: it is the files that differ, not the way of measuring."""
    return len({replace(group.conditions, precision="") for group in groups}) == 1


def mark_notes(groups: Sequence[Group]) -> list[str]:
    """What the marks of a picture mean, as far as they occur."""
    points = [point for group in groups for point in group.points]
    notes = []
    if len(groups) > 1 and _differ_in_precision_alone(groups):
        notes.append("Each precision has marks and a front of its own.")
    elif len(groups) > 1:
        notes.append(
            f"MIXED: {len(groups)} unlike ways of measuring, marked by shape; do not compare latencies between them."
        )
    if any(point.latency_status == "predicted" for point in points):
        notes.append("Hollow: latency predicted, not measured; bar: one standard deviation.")
    if any(point.own and point.latency_status == "measured" for point in points):
        notes.append("Filled: measured here; bar: 25th to 90th percentile of the runs.")
    if any(point.own and point.ap_status == "published" for point in points):
        notes.append("AP of our points on published networks is the published one, not reproduced here.")
    if any(point.num_evaluations > 1 for point in points):
        notes.append("Upright bars: lowest to highest AP of several evaluations.")
    if any(point.label.endswith("*") for point in points):
        notes.append("*: trained with a teacher.")
    extra = sorted({point.series for point in points if point.extra_data not in ("none", "unspecified")})
    if extra:
        notes.append(f"Trained with further data: {', '.join(extra)}.")
    return notes
