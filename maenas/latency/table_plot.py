"""Picture of a measured table's errors: predicted against measured networks, and the residuals of each family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maenas.errors import LatencyTableError
from maenas.latency.table_networks import ROLES, NetworkRow, errors_of, relative_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 0.1
"""Half width of the grey band, as a share of the measured time."""

# Colours that are told apart by most eyes; a ninth family begins again.
_COLOURS = ("#1f5fa8", "#d1651a", "#2f8f5b", "#8d4fa3", "#b3262e", "#6b5a2b", "#2aa3b8", "#7a7a7a")
_LOOKS = {
    "test": ("o", "full"),
    "foreign": ("X", "full"),
    "calibration": ("s", "none"),
    "kernels": (".", "none"),
}
_HEADINGS = {
    "test": "test (seen by no fit)",
    "foreign": "foreign (other architectures)",
    "calibration": "calibration (the line was fitted to them)",
    "kernels": "kernels (their layers are rows)",
}


def plot_networks(rows: Sequence[NetworkRow], path: Path, *, title: str = "") -> None:
    """Draw networks that have a measured and a predicted time into a PNG file.

    Args:
        rows: Networks of any role; roles differ in their marks, families in their colours.
        path: The file.
        title: A line above the picture.

    Raises:
        LatencyTableError: No network has both times.
        OutputError: The file cannot be written.
    """
    from maenas.files import write_bytes_atomically

    write_bytes_atomically(path, networks_png(rows, title=title))


def networks_png(rows: Sequence[NetworkRow], *, title: str = "") -> bytes:
    """The picture of `plot_networks` as the content of a PNG file.

    Raises:
        LatencyTableError: No network has both times.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [row for row in rows if relative_error(row) is not None]
    if not drawn:
        raise LatencyTableError("no network has a measured and a predicted time; there is nothing to draw")
    families = sorted({row.family for row in drawn})
    colours = {family: _COLOURS[place % len(_COLOURS)] for place, family in enumerate(families)}
    figure = Figure(figsize=(11.0, 4.8 + 0.12 * max(0, len(families) - 8)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    _draw_times(left, drawn, colours)
    _draw_residuals(right, drawn, families, colours)
    _draw_legend(figure, drawn)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_times(axes: Axes, rows: Sequence[NetworkRow], colours: dict[str, str]) -> None:
    """Predicted over measured on logarithmic axes, with the range of the passes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    times = [value for row in rows for value in (row.measured_ms, row.predicted_ms) if value is not None]
    low, high = 0.8 * min(times), 1.25 * max(times)
    axes.fill_between([low, high], [(1 - BAND) * low, (1 - BAND) * high], [(1 + BAND) * low, (1 + BAND) * high],
                      color="#000000", alpha=0.07, lw=0)  # fmt: skip
    axes.plot([low, high], [low, high], color="#444444", lw=0.8)
    for row in rows:
        assert row.measured_ms is not None
        assert row.predicted_ms is not None
        reach = [
            [row.measured_ms - (row.measured_low_ms or row.measured_ms)],
            [(row.measured_high_ms or row.measured_ms) - row.measured_ms],
        ]
        marker, fill = _LOOKS[row.role]
        axes.errorbar(
            [row.measured_ms], [row.predicted_ms], xerr=reach, color=colours[row.family], marker=marker, ms=5,
            fillstyle="full" if fill == "full" else "none", lw=0, elinewidth=0.7, mew=0.9, alpha=0.85,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        # The usual ticks of a logarithmic axis are its decades: too few here.
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]) if high / low < 10 else LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("measured [ms]; bars: fastest to slowest pass")
    axes.set_ylabel("predicted [ms]")
    axes.set_title(f"whole networks; line: equal, band: within {100 * BAND:.0f} %", fontsize=9)
    axes.grid(alpha=0.3, lw=0.5)


def _draw_residuals(axes: Axes, rows: Sequence[NetworkRow], families: Sequence[str], colours: dict[str, str]) -> None:
    """Relative errors by family, one line of points each."""
    axes.axvspan(-100 * BAND, 100 * BAND, color="#000000", alpha=0.07, lw=0)
    axes.axvline(0.0, color="#444444", lw=0.8)
    labels = []
    for place, family in enumerate(families):
        own = [row for row in rows if row.family == family]
        for index, row in enumerate(own):
            error = relative_error(row)
            assert error is not None
            marker, fill = _LOOKS[row.role]
            shift = 0.5 * ((index + 0.5) / len(own) - 0.5)  # points of a family do not hide each other
            axes.plot(
                [100 * error], [place + shift], color=colours[family], marker=marker, ms=5, lw=0, mew=0.9, alpha=0.85,
                fillstyle="full" if fill == "full" else "none",
            )  # fmt: skip
        unseen = [row for row in own if row.role in ("test", "foreign")]
        stats = errors_of(unseen)
        labels.append(f"{family}\nmean {100 * stats.mean_abs:.1f} %" if stats.n else f"{family}\nno test")
    axes.set_yticks(range(len(families)), labels, fontsize=8)
    for label, family in zip(axes.get_yticklabels(), families, strict=True):
        label.set_color(colours[family])
    axes.set_ylim(len(families) - 0.5, -0.5)
    axes.set_xlabel("predicted / measured - 1 [%]")
    axes.set_title("residuals by family; mean: absolute error, test and foreign networks", fontsize=9)
    axes.grid(alpha=0.3, lw=0.5, axis="x")


def _draw_legend(figure: Figure, rows: Sequence[NetworkRow]) -> None:
    from matplotlib.lines import Line2D

    present = [role for role in reversed(ROLES) if any(row.role == role for row in rows)]
    handles = [
        Line2D([], [], color="#444444", lw=0, ms=5, mew=0.9, marker=_LOOKS[role][0],
               fillstyle="full" if _LOOKS[role][1] == "full" else "none")
        for role in present
    ]  # fmt: skip
    figure.legend(handles, [_HEADINGS[role] for role in present], loc="outside lower center", ncols=4, fontsize=8,
                  frameon=False)  # fmt: skip
