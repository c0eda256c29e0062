"""Picture of a benchmark: the time of every line with its percentiles, and AP against time where AP was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maenas.cli.benchmark_report import short_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that are told apart by most eyes; a ninth runtime begins again.
_COLOURS = ("#1f5fa8", "#d1651a", "#2f8f5b", "#8d4fa3", "#b3262e", "#6b5a2b", "#2aa3b8", "#7a7a7a")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8", "H", "+")


def report_png(report: Mapping[str, Any]) -> bytes:
    """The picture as the content of a PNG file."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, labels = report["lines"], short_labels(report)
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(_kinds(rows))}
    with_ap = any(row["ap"] is not None for row in rows)
    height = 1.6 + 0.32 * len(rows)
    figure = Figure(figsize=(14.5 if with_ap else 8.5, max(height, 4.4) if with_ap else height), dpi=130)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if with_ap else 1, squeeze=False)[0]
    _draw_times(axes[0], rows, labels, colours)
    if with_ap:
        _draw_ap(axes[1], rows, labels, colours)
    host = report["host"]
    figure.suptitle(f"{host['cpu']}, {host['physical_cores']} cores", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _kind(row: Mapping[str, Any]) -> str:
    return f"{row['backend']} {row['precision']}"


def _kinds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(_kind(row) for row in rows))


def _draw_times(
    axes: Axes, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], colours: Mapping[str, str]
) -> None:
    """Bars to the median, a line on to the 90th percentile, a mark at the 99th."""
    seen: set[str] = set()
    for place, row in enumerate(rows):
        kind = _kind(row)
        axes.barh(place, row["p50_ms"], height=0.6, color=colours[kind], label=None if kind in seen else kind)
        axes.plot([row["p50_ms"], row["p90_ms"]], [place, place], color="black", linewidth=1.2)
        axes.plot([row["p99_ms"]], [place], marker="|", color="black", markersize=8)
        star = "" if row["undisturbed"] else " *"
        axes.annotate(
            f"{row['p50_ms']:.1f}{star}",
            (max(row["p50_ms"], row["p99_ms"]), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
        seen.add(kind)
    names = [f"{label}  ({_load(row)})" for row, label in zip(rows, labels, strict=True)]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.margins(x=0.12)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms per run: bar p50, line p90, tick p99", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=min(4, len(colours)), frameon=False)


def _load(row: Mapping[str, Any]) -> str:
    batch = "" if row["batch"] == 1 else f", batch {row['batch']}"
    return f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}{batch}"


def _draw_ap(axes: Axes, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], colours: Mapping[str, str]) -> None:
    """One point for every line that has an AP; marks tell the models apart, colours the runtimes."""
    names = list(dict.fromkeys(label for row, label in zip(rows, labels, strict=True) if row["ap"] is not None))
    loads = len({(row["threads"], row["batch"]) for row in rows})
    for row, label in zip(rows, labels, strict=True):
        if row["ap"] is not None:
            per_image = row["p50_ms"] / row["batch"]
            mark = _MARKS[names.index(label) % len(_MARKS)]
            axes.plot([per_image], [100 * row["ap"]], mark, color=colours[_kind(row)], markersize=7, alpha=0.85)
            short = f"{row['threads']}t" + ("" if row["batch"] == 1 else f" b{row['batch']}") if loads > 1 else ""
            point = (per_image, 100 * row["ap"])
            axes.annotate(short, point, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=6)
    for place, name in enumerate(names):
        axes.plot([], [], _MARKS[place % len(_MARKS)], color="grey", label=name)
    axes.set_xlabel("ms per image (p50)" + ("; t: threads, b: images at once" if loads > 1 else ""), fontsize=8)
    axes.set_ylabel("AP", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(0.12)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
