"""The picture of a group: AP against every score, a panel each, with names, spread of the seeds and tau."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from maenas.plot_labels import place_labels
from maenas.proxy_report import GroupResult, ScoreResult, label_of
from maenas.rank_statistics import Floats, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
_COLOUR, _SPREAD, _PICK = "#0072B2", "#8a8a8a", "#D55E00"


def group_pictures(group: GroupResult, *, title: str) -> dict[str, bytes]:
    """The picture as the contents of a PNG and of an SVG file, by suffix.

    Args:
        group: What to draw.
        title: Data set and recipe, above the picture.
    """
    import matplotlib

    figure = _draw(group, title)
    found = {}
    with matplotlib.rc_context({"svg.hashsalt": "maenas"}):
        for suffix, date in (("png", "Software"), ("svg", "Date")):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata={date: None})
            found[suffix] = buffer.getvalue()
    return found


def _draw(group: GroupResult, title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(group.scores) // COLUMNS)
    figure = Figure(figsize=(3.9 * COLUMNS, 3.3 * rows + 0.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    usable = []
    for panel, score in zip(panels, group.scores, strict=False):
        if score.problem:
            _say(panel, score)
        else:
            _scatter(panel, group, score)
            usable.append((panel, score))
    for panel in panels[len(group.scores) :]:
        panel.set_visible(False)
    figure.suptitle(f"{title}\n{_conditions(group)}", fontsize=9, parse_math=False)
    figure.draw_without_rendering()  # final sizes, which the names are placed by
    for panel, score in usable:
        _name_points(panel, group, group.values[score.name])
    return figure


def _conditions(group: GroupResult) -> str:
    seeds = f"{len(group.seeds)} seed{'s' if len(group.seeds) > 1 else ''}"
    spread = ", lines from the lowest to the highest seed" if len(group.seeds) > 1 else ""
    text = f"group {group.group}: {len(group.members)} networks, mean of {seeds}{spread}"
    ceiling = group.ceiling
    if ceiling is not None and np.isfinite(ceiling.kendall.value):
        reached = interval_text(ceiling.kendall)
        text += f"; seed noise {100 * ceiling.seed_std:.1f} AP: knowing the true APs would give tau {reached}"
    return text


def interval_text(interval: Interval, *, factor: float = 1.0, digits: int = 2) -> str:
    """`0.45 [0.10, 0.71]`; the ends are left out where there are none."""
    value = f"{factor * interval.value:.{digits}f}"
    if not np.isfinite(interval.low):
        return value
    return f"{value} [{factor * interval.low:.{digits}f}, {factor * interval.high:.{digits}f}]"


def _say(panel: Axes, score: ScoreResult) -> None:
    panel.set_title(score.name, fontsize=9, parse_math=False)
    panel.text(
        0.5, 0.5, textwrap.fill(score.problem, 34), ha="center", va="center", fontsize=8, transform=panel.transAxes
    )
    panel.set_xticks([])
    panel.set_yticks([])


def _scatter(panel: Axes, group: GroupResult, score: ScoreResult) -> None:
    values, means = group.values[score.name], 100 * group.mean_aps
    if len(group.seeds) > 1:
        below, above = means - 100 * group.aps.min(axis=1), 100 * group.aps.max(axis=1) - means
        panel.errorbar(
            values, means, yerr=[below, above], fmt="none", ecolor=_SPREAD, elinewidth=1, capsize=2, zorder=1
        )
    picked = values == values.max()
    panel.scatter(values[~picked], means[~picked], s=22, color=_COLOUR, zorder=2)
    panel.scatter(values[picked], means[picked], s=34, color=_PICK, marker="D", zorder=3)
    assert score.kendall is not None and score.regret is not None
    lost = interval_text(score.regret, factor=100, digits=1)
    panel.set_title(
        f"{score.name}: tau {interval_text(score.kendall)}\nregret {lost} AP", fontsize=8.5, parse_math=False
    )
    panel.set_xlabel(score.name, fontsize=8, parse_math=False)
    panel.set_ylabel("AP", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.xaxis.get_offset_text().set_fontsize(7)
    panel.margins(0.12)
    panel.grid(alpha=0.25, lw=0.6)


def _name_points(panel: Axes, group: GroupResult, values: Floats) -> None:
    """Letters beside the points, where they cover neither each other nor points."""
    figure = panel.figure
    anchors = [tuple(place) for place in panel.transData.transform(np.column_stack([values, 100 * group.mean_aps]))]
    scale = figure.dpi / 72
    names = [label_of(place) for place in range(len(anchors))]
    sizes = [(5.5 * scale * len(name), 8 * scale) for name in names]
    box, half = panel.get_window_extent(), 3.5 * scale
    placed = place_labels(
        [(float(x), float(y)) for x, y in anchors],
        sizes,
        inside=(box.x0, box.y0, box.x1, box.y1),
        marks=[(float(x) - half, float(y) - half, float(x) + half, float(y) + half) for x, y in anchors],
        gap=4.5 * scale,
    )
    for name, place in zip(names, placed, strict=True):
        x, y = panel.transAxes.inverted().transform((place.left, place.bottom))
        panel.text(float(x), float(y), name, fontsize=7, ha="left", va="bottom", transform=panel.transAxes)
