"""The charts of a journey's report, each drawn once: as PNG for other uses, as SVG that takes the page's colours.

A chart is small, so that its letters can be read on a telephone; a page puts several beside each other.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maenas.journey_html import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, CARD = "#1b1f24", "#6b7480", "#fefefe"
"""Text, lines and ground; in the page they follow its light or dark colours."""

BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
"""Of Okabe and Ito's palette: told apart with every common colour blindness, on white and on black."""

_LIVE = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    CARD: "var(--card)",
    BLUE: "var(--blue)",
    GREEN: "var(--green)",
    ORANGE: "var(--orange)",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture.

    Attributes:
        name: Of its file, without suffix.
        title: What it shows.
        text: The same in words, for those who do not see it.
        png: Light background.
        svg: No background; colours are the page's variables.
    """

    name: str
    title: str
    text: str
    png: bytes
    svg: str


def latency_chart(facts: Mapping[str, Any]) -> Chart:
    """The budget, and what was predicted and measured of the network."""
    latency = facts["latency"]
    budget = latency["budget_ms"]
    rows: list[tuple[str, float, float, float, str, bool]] = []
    ms, sigma = latency["predicted_ms"], latency["predicted_sigma_ms"] or 0.0
    rows.append(("predicted by the table", ms, ms - sigma, ms + sigma, BLUE, False))
    if latency["searched_ms"] is not None:
        value = latency["searched_ms"]
        rows.append(("measured in the search", value, value, value, GREEN, True))
    if latency["again_ms"] is not None and latency["final_ms"] != latency["again_ms"]:
        value = latency["again_ms"]
        rows.append(("the same file at the end", value, value, value, GREEN, True))
    if latency["final"] is not None:
        final = latency["final"]
        rows.append(("trained, at the end", final["p25_ms"], final["min_ms"], final["p90_ms"], ORANGE, True))

    def draw(axes: Axes) -> None:
        axes.axvspan(0.95 * budget, 1.05 * budget, color=SOFT, alpha=0.16, lw=0)
        axes.axvline(budget, color=INK, lw=1.4)
        for place, (label, value, low, high, colour, filled) in enumerate(reversed(rows)):
            if high > low:
                axes.plot([low, high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot([value], [place], "o", ms=8, color=colour, mfc=colour if filled else CARD, mew=1.8)
            axes.text(
                0.0, place + 0.26, label, transform=axes.get_yaxis_transform(), color=INK, fontsize=9, va="bottom"
            )
            axes.text(1.0, place + 0.26, f"{value:.2f} ms", transform=axes.get_yaxis_transform(), color=INK, fontsize=9,
                      va="bottom", ha="right", fontweight="bold")  # fmt: skip
        ends = [0.93 * budget, 1.07 * budget, *(row[2] for row in rows), *(row[3] for row in rows)]
        margin = 0.06 * (max(ends) - min(ends))
        axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.set_ylim(-0.55, len(rows) - 0.2)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"ms per image; line: the budget of {budget:g} ms, band: 5 % around it", color=SOFT)

    words = "; ".join(f"{label} {value:.2f} ms" for label, value, *_ in rows)
    bars = "Bar: one sigma of the prediction" + (
        "" if latency["final"] is None else "; of the trained network from the fastest run to the 90th percentile"
    )
    text = f"The budget is {budget:g} ms; {words}. {bars}."
    return _chart("latency", "Latency against the budget", text, draw, 0.9 + 0.52 * len(rows))


def search_chart(facts: Mapping[str, Any]) -> Chart | None:
    """Every network that the search timed: predicted against measured; None where it timed none."""
    measured = (facts["choice"] or {}).get("measured")
    if measured is None:
        return None
    timed, budget = measured["timed"], measured["budget_ms"]

    def draw(axes: Axes) -> None:
        values = [value for each in timed for value in (each["predicted_ms"], each["measured_ms"])] + [budget]
        low, high = 0.985 * min(values), 1.015 * max(values)
        axes.plot([low, high], [low, high], color=SOFT, lw=1, ls=(0, (4, 3)))
        axes.axhspan(0.95 * budget, 1.05 * budget, color=SOFT, alpha=0.16, lw=0)
        axes.axhline(budget, color=INK, lw=1.4)
        for each in timed:
            chosen = each["digest"] == measured["finalist"]
            axes.plot(each["predicted_ms"], each["measured_ms"], "*" if chosen else "o", ms=15 if chosen else 6.5,
                      color=ORANGE if chosen else BLUE, mec="none", alpha=1 if chosen else 0.75, zorder=3)  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("predicted, ms (star: chosen)", color=SOFT)
        axes.set_ylabel("measured, ms", color=SOFT)

    text = f"{len(timed)} networks were timed in {counted(measured['rounds'], 'round')}; measured times are about "
    text += f"{measured['bias']:.3f} of the predicted ones near {budget:g} ms."
    return _chart("search", "Networks timed in the search", text, draw, 3.1)


def front_chart(facts: Mapping[str, Any]) -> Chart | None:
    """Score against predicted latency of the best networks around the budget; None where the front is not known."""
    choice, budget = facts["choice"] or {}, facts["budget_ms"]
    front = choice.get("front")
    if not front:
        return None

    def draw(axes: Axes) -> None:
        times, scores = zip(*front, strict=True)
        axes.step(times, scores, where="post", color=BLUE, lw=1.8)
        axes.axvline(budget, color=INK, lw=1.4)
        axes.plot([choice["latency_ms"]], [choice["objective"]], "*", ms=15, color=ORANGE, mec="none", zorder=3)
        axes.set_xlabel("predicted, ms (star: chosen; line: budget)", color=SOFT)
        axes.set_ylabel("score", color=SOFT)

    text = "The best network of the space at every latency around the budget, exactly."
    return _chart("front", "What other budgets would buy", text, draw, 3.1)


def shares_chart(facts: Mapping[str, Any]) -> Chart:
    """Where the milliseconds go, part by part."""
    shares = [(str(share["name"]).replace("stage", "stage "), share["ms"]) for share in facts["network"]["shares"]]
    if facts["network"]["fixed_ms"] > 0:
        shares.append(("fixed", facts["network"]["fixed_ms"]))
    total = sum(ms for _, ms in shares)

    def draw(axes: Axes) -> None:
        for place, (name, ms) in enumerate(reversed(shares)):
            axes.barh(place, ms, height=0.66, color={"neck": ORANGE, "head": GREEN, "fixed": SOFT}.get(name, BLUE))
            _beside(axes, ms, place, f"{100 * ms / total:.0f} %")
        axes.set_yticks(range(len(shares)), [name for name, _ in reversed(shares)])
        axes.set_xlim(0, 1.14 * max(ms for _, ms in shares))
        axes.set_xlabel("predicted ms", color=SOFT)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", lw=0)

    text = ", ".join(f"{name} {100 * ms / total:.0f} %" for name, ms in shares)
    return _chart(
        "shares", "Where the milliseconds go", f"Of the predicted latency: {text}.", draw, 0.8 + 0.3 * len(shares)
    )


def loss_chart(facts: Mapping[str, Any]) -> Chart | None:
    """Losses by epoch; None where nothing was trained here."""
    if facts["training"] is None:
        return None
    rows = facts["training"]["rows"]
    series = {"loss": ("all", BLUE), "quality_focal": ("classes", ORANGE), "giou": ("boxes", GREEN),
              "dfl": ("box sides", SKY), "distill": ("teacher", PURPLE)}  # fmt: skip

    def draw(axes: Axes) -> None:
        for name, (label, colour) in series.items():
            _curve(axes, rows, name, label, colour, width=2.2 if name == "loss" else 1.3)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch", color=SOFT)
        axes.set_ylabel("loss", color=SOFT)
        _legend(axes)

    ends = [row["loss"] for row in rows if row.get("loss") is not None]
    text = (
        f"The loss falls from {ends[0]:.2f} to {ends[-1]:.2f} in {counted(len(rows), 'epoch')}."
        if ends
        else "No epoch ended."
    )
    return _chart("loss", "Loss", text, draw, 2.7)


def ap_chart(facts: Mapping[str, Any]) -> Chart | None:
    """AP on the validation images by epoch; None where nothing was trained here."""
    if facts["training"] is None:
        return None
    rows = facts["training"]["rows"]

    def draw(axes: Axes) -> None:
        for name, label, colour in (("ap50", "AP50", SKY), ("ap", "AP", BLUE), ("ap75", "AP75", GREEN)):
            _curve(axes, rows, name, label, colour, width=2.2 if name == "ap" else 1.3, scale=100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch", color=SOFT)
        axes.set_ylabel("AP, validation images", color=SOFT)
        _legend(axes)

    found = [100 * row["ap"] for row in rows if row.get("ap") is not None]
    text = (
        f"AP was measured {counted(len(found), 'time')}; it ends at {found[-1]:.1f}."
        if found
        else "AP was never measured."
    )
    return _chart("ap", "Accuracy while training", text, draw, 2.7)


def classes_chart(facts: Mapping[str, Any], *, most: int = 20) -> Chart | None:
    """AP and AP50 of the classes, best first; None where there are none."""
    classes = [one for one in facts["accuracy"]["classes"] if one["ap"] is not None]
    if not classes:
        return None
    ranked = sorted(classes, key=lambda one: -one["ap"])
    left = max(0, len(ranked) - most)
    # The worst ones are what a user has to know.
    shown = ranked if not left else ranked[: most // 2] + ranked[-(most // 2) :]

    def draw(axes: Axes) -> None:
        for place, one in enumerate(reversed(shown)):
            axes.barh(place, 100 * (one["ap50"] or 0.0), height=0.7, color=SKY, alpha=0.45)
            axes.barh(place, 100 * one["ap"], height=0.7, color=BLUE)
            _beside(axes, 100 * one["ap"], place, f"{100 * one['ap']:.0f}")
        axes.set_yticks(range(len(shown)))
        axes.set_yticklabels([_short(one["name"]) for one in reversed(shown)], parse_math=False)
        axes.set_xlim(0, 100)
        axes.set_xlabel("AP (dark), AP50 (light)", color=SOFT)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", lw=0)

    text = ", ".join(f"{_short(one['name'])} {100 * one['ap']:.1f}" for one in shown)
    note = f" {left} classes in the middle are left out." if left else ""
    return _chart("classes", "AP by class", f"{text}.{note}", draw, 0.8 + 0.3 * len(shown))


def size_chart(facts: Mapping[str, Any]) -> Chart:
    """AP of all objects and by their size."""
    metrics = facts["accuracy"]["metrics"]
    counts = metrics.get("num_boxes_by_size") or {}
    bars = [("all", metrics["ap"], metrics.get("num_boxes"))]
    bars += [(size, metrics.get(f"ap_{size}"), counts.get(size)) for size in ("small", "medium", "large")]
    bars = [bar for bar in bars if bar[1] is not None]

    def draw(axes: Axes) -> None:
        for place, (_, value, _) in enumerate(bars):
            axes.bar(place, 100 * value, width=0.62, color=BLUE if place == 0 else SKY)
            axes.text(place, 100 * value + 1.5, f"{100 * value:.1f}", ha="center", color=INK, fontsize=9)
        labels = [name if count is None else f"{name}\n{count} boxes" for name, _, count in bars]
        axes.set_xticks(range(len(bars)), labels)
        axes.set_ylim(0, max(10.0, 1.15 * max((100 * value for _, value, _ in bars), default=0.0)))
        axes.set_ylabel("AP", color=SOFT)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", lw=0)

    text = ", ".join(f"{name} {100 * value:.1f}" for name, value, _ in bars)
    return _chart("sizes", "AP by size of the object", f"AP: {text}.", draw, 2.7)


def all_charts(facts: Mapping[str, Any]) -> dict[str, Chart]:
    """The charts that there is something for, by name."""
    found: Sequence[Chart | None] = [
        latency_chart(facts),
        search_chart(facts),
        front_chart(facts),
        shares_chart(facts),
        size_chart(facts),
        classes_chart(facts),
        loss_chart(facts),
        ap_chart(facts),
    ]
    return {chart.name: chart for chart in found if chart is not None}


def _curve(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    label: str,
    colour: str,
    *,
    width: float,
    scale: float = 1.0,
) -> None:
    points = [(row["epoch"], scale * row[name]) for row in rows if row.get(name) is not None]
    if points:
        mark = "o" if len(points) <= 40 else ""
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=colour, lw=width, marker=mark, ms=3, label=label
        )


def _beside(axes: Axes, end: float, place: float, text: str) -> None:
    """A figure to the right of a bar's end."""
    axes.annotate(text, (end, place), (4, 0), textcoords="offset points", color=INK, fontsize=8.5, va="center")


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.4)


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "\N{HORIZONTAL ELLIPSIS}"


def _chart(name: str, title: str, text: str, draw: Callable[[Axes], None], height: float, wide: float = 4.6) -> Chart:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    look: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": SOFT,
        "axes.labelsize": 8.5,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": SOFT,
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(wide, height), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.grid(alpha=0.22, lw=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        draw(axes)
        return Chart(name, title, text, _png(figure), _svg(figure, name))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure, name: str) -> str:
    """The element alone, ids told apart from those of other charts, colours as variables of the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    for colour, live in _LIVE.items():
        text = re.sub(re.escape(colour), live, text, flags=re.IGNORECASE)
    # The page's own letters; DejaVu Sans is wider than any of them, so that nothing runs over.
    return re.sub(r"'DejaVu Sans'[^;\"']*", "var(--font)", text)
