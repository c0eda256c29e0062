"""The picture of accuracy against latency, drawn once for PNG, SVG, PDF and the page."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maenas.errors import PlotError
from maenas.plot_labels import place_labels
from maenas.plot_points import Group, Point, pareto_front
from maenas.plot_styles import (
    OWN_MARK,
    Curve,
    Style,
    curve_key,
    curve_name,
    curves_of,
    how_measured,
    mark_notes,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LABELS = ("auto", "all", "front", "none")
MANY_POINTS = 45
"""Above it, `auto` names only what is ours or on the front of everything."""

MANY_CURVES = 13
"""Above it, the legend would cover points and stands beside them."""
SMALLEST_SPAN = 4.0
"""AP from bottom to top at least: a tenth of a point is no difference and should not look like one."""

_FRONT = "#8a8a8a"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture and what is in it.

    Attributes:
        figure: Not yet written.
        points: In the order of their numbers: `p3` and `n3` are the SVG ids of the mark and the name of point 3.
        curves: In the legend's order.
    """

    figure: Figure
    points: tuple[Point, ...]
    curves: tuple[Curve, ...]


def draw(
    groups: Sequence[Group],
    *,
    title: str = "",
    labels: str = "auto",
    logarithmic: bool = False,
) -> Drawn:
    """Draw groups of points: curves by series, fronts by group, hollow marks where the latency is predicted.

    Args:
        groups: Of `maenas.plot_points.grouped`; several are marked as unlike.
        title: Above the picture.
        labels: Which points are named: one of LABELS.
        logarithmic: Draw latency on a logarithmic axis.

    Raises:
        PlotError: `labels` is something else.
    """
    if labels not in LABELS:
        raise PlotError(f"labels is {labels!r}; expected one of {', '.join(LABELS)}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    styles = styles_of(groups)
    many = len(styles) > MANY_CURVES
    figure = Figure(figsize=(11.4 if many else 8.4, 5.4), dpi=200, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = tuple(point for group in groups for point in group.points)
    _set_axes(axes, groups, title=title, logarithmic=logarithmic)
    fronts = [group for group in groups if _shows_front(group, mixed=len(groups) > 1)]
    for group in fronts:
        _draw_front(axes, group)
    lines = _drawcurves_of(axes, groups, styles)
    for number, point in enumerate(points):
        _draw_point(axes, point, styles[curve_key(point, groups)], number)
    _draw_legend(axes, groups, styles, fronts=bool(fronts), outside=many)
    _add_notes(figure, mark_notes(groups))
    # Fixes the layout, without which no pixel is where it will be.
    canvas.draw()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    _name_points(axes, _named(points, labels), points, lines)
    return Drawn(figure, points, curves_of(points, groups, styles))


_UNSTABLE_METADATA = {"png": ["Software"], "svg": ["Date", "Creator"], "pdf": ["CreationDate", "Creator", "Producer"]}
"""What would name the time or the version of the library; left out."""


def picture_bytes(figure: Figure, kind: str) -> bytes:
    """The content of a `png`, `svg` or `pdf` file; equal pictures give equal files."""
    import matplotlib

    buffer = io.BytesIO()
    # TrueType in PDF: the usual Type 3 fonts are refused by some publishers.
    with matplotlib.rc_context({"svg.hashsalt": "maenas", "svg.fonttype": "path", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(_UNSTABLE_METADATA[kind]))
    return buffer.getvalue()


def _set_axes(axes: Axes, groups: Sequence[Group], *, title: str, logarithmic: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points = [point for group in groups for point in group.points]
    rated = [point for point in points if point.ap is not None]
    times = [time for point in points for time in (point.latency_low_ms, point.latency_high_ms)]
    low, high = min(times), max(times)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.15, high * 1.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        margin = 0.06 * (high - low) or 0.2 * high
        axes.set_xlim(max(0.0, low - margin), high + margin)
    heights = [ap for point in rated for ap in (point.ap_low, point.ap_high) if ap is not None]
    if heights:
        span = max(heights) - min(heights)
        margin = max(0.07 * span, (SMALLEST_SPAN - span) / 2)
        # Networks without AP need room at the bottom.
        below = 2.2 if len(rated) < len(points) else 1.0
        axes.set_ylim(max(-2.0, min(heights) - below * margin), max(heights) + margin)
    else:
        axes.set_ylim(0.0, 1.0)
        axes.set_yticks([])
    # The digest of the annotations is in the CSV.
    data = re.sub(r", [0-9a-f]{16}\)$", ")", next((point.data for point in rated), ""))
    axes.set_xlabel(f"latency [ms]\n{how_measured(groups)}", fontsize=9, parse_math=False)
    axes.set_ylabel(f"AP on {data} [%]" if data else "no AP", fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8.5)
    if title:
        axes.set_title(title, fontsize=11, parse_math=False)
    axes.grid(alpha=0.25, lw=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shows_front(group: Group, *, mixed: bool) -> bool:
    """A front says something where curves compete; beside unlike measurements, only ours has one."""
    competing = len({point.series for point in group.points}) > 1 and len(group.front) > 1
    return competing and (not mixed or any(point.own for point in group.points))


def _draw_front(axes: Axes, group: Group) -> None:
    """The stairs of what is attainable."""
    times = [point.latency_ms for point in group.front]
    heights = [point.ap if point.ap is not None else 0.0 for point in group.front]
    axes.step([*times, axes.get_xlim()[1]], [*heights, heights[-1]], where="post", color=_FRONT, lw=4, alpha=0.3,
              zorder=1, solid_capstyle="butt", gid="front")  # fmt: skip


def _drawcurves_of(
    axes: Axes, groups: Sequence[Group], styles: dict[tuple[str, int], Style]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Lines through the points of each series; their pieces in the units of the axes."""
    pieces = []
    for key, style in styles.items():
        run = [point for point in groups[key[1]].points if point.series == key[0] and point.ap is not None]
        ends = [(point.latency_ms, float(point.ap or 0.0)) for point in run]
        pieces += list(itertools.pairwise(ends))
        # A curve of predictions is drawn thinner than one of measurements.
        sure = all(point.latency_status != "predicted" for point in run)
        axes.plot([x for x, _ in ends], [y for _, y in ends], color=style.colour, ls=style.dashes, zorder=2,
                  lw=1.4 if sure else 0.9, alpha=0.9 if style.own else 0.6, gid=style.gid)  # fmt: skip
    return pieces


def _draw_point(axes: Axes, point: Point, style: Style, number: int) -> None:
    """Mark and bars of one point; without AP, a hollow mark at the bottom edge."""
    hollow = point.latency_status == "predicted" or point.ap is None
    look: dict[str, Any] = {
        "color": style.colour,
        "mfc": "white" if hollow else style.colour,
        "mec": style.colour,
        "mew": 1.1,
        "ms": (11 if style.mark == OWN_MARK else 7.5) if style.own else 6,
        "lw": 0,
        "elinewidth": 0.9,
        "capsize": 2,
        "zorder": 4 if style.own else 3,
    }
    across = [[point.latency_ms - point.latency_low_ms], [point.latency_high_ms - point.latency_ms]]
    if point.ap is None:
        look |= {"ms": 6, "transform": axes.get_xaxis_transform()}
        container = axes.errorbar([point.latency_ms], [0.03], xerr=across, marker="^", **look)
    else:
        low, high = point.ap_low or 0.0, point.ap_high or 0.0
        up = [[point.ap - low], [high - point.ap]] if high > low else None
        wide = point.latency_high_ms > point.latency_low_ms
        container = axes.errorbar(
            [point.latency_ms], [point.ap], xerr=across if wide else None, yerr=up, marker=style.mark, **look
        )
    # So that a page finds the mark and its bars.
    mark, caps, bars = container.lines
    mark.set_gid(f"p{number}")
    for index, part in enumerate((*caps, *bars)):
        part.set_gid(f"b{number}-{index}")


def _draw_legend(
    axes: Axes, groups: Sequence[Group], styles: dict[tuple[str, int], Style], *, fronts: bool, outside: bool
) -> None:
    from matplotlib.lines import Line2D

    handles: list[Line2D] = []
    names: list[str] = []
    for key, style in styles.items():
        series, place = key
        curve = [point for point in groups[place].points if point.series == series]
        rated = [point for point in curve if point.ap is not None]
        hollow = all(point.latency_status == "predicted" for point in rated)
        if rated:
            handles.append(
                Line2D([], [], color=style.colour, ls=style.dashes, lw=1.2, marker=style.mark, mec=style.colour,
                       ms=9 if style.mark == OWN_MARK else 6, mfc="white" if hollow else style.colour)
            )  # fmt: skip
            names.append(curve_name(key, groups))
        if len(rated) < len(curve):
            handles.append(Line2D([], [], color=style.colour, lw=0, marker="^", ms=6, mfc="white"))
            names.append(f"{series}: not trained, no AP")
    if fronts:
        handles.append(Line2D([], [], color=_FRONT, lw=4, alpha=0.3))
        names.append("front of what was measured")
    if outside:
        legend = axes.figure.legend(
            handles, names, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.6
        )
    else:
        legend = axes.legend(
            handles, names, loc="best", fontsize=7, framealpha=0.9, edgecolor="#dddddd", handlelength=2.6
        )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _add_notes(figure: Figure, notes: Sequence[str]) -> None:
    import textwrap

    if notes:
        text = "\n".join(
            line for note in [" ".join(notes)] for line in textwrap.wrap(note, round(20 * figure.get_figwidth()))
        )
        figure.supxlabel(text, fontsize=6.5, color="#444444", x=0.01, ha="left", parse_math=False)


def _named(points: Sequence[Point], labels: str) -> list[int]:
    """Which points get their names."""
    if labels == "none":
        return []
    # A rebuilt network lies beside the published one of the same structure, whose name does for both.
    others = {(point.digest, point.ap) for point in points if not point.own and point.digest}
    twins = {number for number, point in enumerate(points) if point.own and (point.digest, point.ap) in others}
    if labels == "all" or (labels == "auto" and len(points) <= MANY_POINTS):
        return [number for number in range(len(points)) if number not in twins]
    fronts = pareto_front(points)
    return [number for number, point in enumerate(points) if number not in twins and (point.own or point in fronts)]


def _name_points(
    axes: Axes,
    named: Sequence[int],
    points: Sequence[Point],
    pieces: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> None:
    """Write names beside their points."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    low, high = axes.get_ylim()
    scale = figure.dpi / 72.0
    places = []
    for point in points:
        height = low + 0.03 * (high - low) if point.ap is None else point.ap
        places.append(tuple(float(value) for value in axes.transData.transform((point.latency_ms, height))))
    sizes = []
    for number in named:
        probe = Text(0, 0, points[number].label, fontsize=6.5, parse_math=False, figure=figure)
        extent = probe.get_window_extent(renderer)
        sizes.append((extent.width, extent.height))
    half = 3.6 * scale
    lines = []
    for start, end in pieces:
        ends = axes.transData.transform((start, end))
        lines.append((float(ends[0][0]), float(ends[0][1]), float(ends[1][0]), float(ends[1][1])))
    for number, point in enumerate(points):
        if point.latency_high_ms > point.latency_low_ms:
            left, right = (
                axes.transData.transform((ms, low))[0] for ms in (point.latency_low_ms, point.latency_high_ms)
            )
            lines.append((float(left), places[number][1], float(right), places[number][1]))
    frame = axes.get_window_extent(renderer)
    legend = axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent(renderer)]
    placed = place_labels(
        [(places[number][0], places[number][1]) for number in named],
        sizes,
        inside=(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2),
        marks=[
            *((x - half, y - half, x + half, y + half) for x, y in places),
            *((box.x0, box.y0, box.x1, box.y1) for box in taken),
        ],
        lines=lines,
        gap=4.5 * scale,
    )
    back = axes.transData.inverted()
    for number, spot, size in zip(named, placed, sizes, strict=True):
        x, y = back.transform((spot.left, spot.bottom))
        colour = "#222222" if not points[number].own else "#7a3500"
        # Anchored at the middle of the left edge of the extent that was measured.
        axes.text(x, y, points[number].label, fontsize=6.5, color=colour, parse_math=False, va="bottom", zorder=6,
                  gid=f"n{number}", path_effects=[withStroke(linewidth=1.8, foreground="white")])  # fmt: skip
        if spot.far:
            middle = back.transform((spot.left + size[0] / 2, spot.bottom + size[1] / 2))
            mark = back.transform(places[number])
            axes.plot([mark[0], middle[0]], [mark[1], middle[1]], color="#888888", lw=0.5, zorder=1.5, gid=f"l{number}")
