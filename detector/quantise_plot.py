"""A picture of how sensitive the layers of a network are to int8."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from .quantise_sensitivity import Sensitivity

_CLASS, _BOX, _FLOAT = "#1f5fa8", "#d1651a", "#b3262e"
_MOST = 60
_ROW_INCHES = 0.19


def sensitivity_png(entries: Sequence[Sensitivity], higher: Collection[str], *, title: str) -> bytes:
    """Bars of both errors of every layer, the most sensitive on top; of many layers the first 60.

    Args:
        entries: Most sensitive first.
        higher: Names of layers that stayed in higher precision; they are written in red.
        title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(entries[:_MOST])
    figure = Figure(figsize=(9.5, 1.3 + _ROW_INCHES * len(shown)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows = range(len(shown))
    axes.barh([row - 0.2 for row in rows], [entry.class_error for entry in shown], 0.4, color=_CLASS, label="classes")
    axes.barh([row + 0.2 for row in rows], [entry.box_error for entry in shown], 0.4, color=_BOX, label="boxes")
    axes.set_yticks(list(rows), [entry.layer.name for entry in shown], fontsize=7)
    for label, entry in zip(axes.get_yticklabels(), shown, strict=True):
        if entry.layer.name in higher:
            label.set_color(_FLOAT)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("error of the network's answers with this layer alone in int8, in units of their deviation")
    rest = f"; first {len(shown)} of {len(entries)} layers" if len(shown) < len(entries) else ""
    marked = "; red: in higher precision" if higher else ""
    axes.set_title(f"{title}{rest}{marked}", fontsize=10)
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    axes.legend(fontsize=8, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
