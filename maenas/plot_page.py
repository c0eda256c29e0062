"""The picture as one self-contained HTML page: the drawn SVG, a note beside the pointer, curves to switch, a table."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from maenas.plot_picture import Drawn, picture_bytes
from maenas.plot_points import Group, Point

_TABLE = (
    ("network", "label"),
    ("curve", "series"),
    ("AP", "ap"),
    ("ms", "latency_ms"),
    ("latency", "latency_status"),
    ("input", "image_size"),
    ("params M", "params_m"),
    ("GFLOPs", "gflops"),
    ("further data", "extra_data"),
    ("digest", "digest"),
    ("source", "source"),
    ("note", "note"),
)

# Nothing is fetched: the policy forbids it, so that a page can be opened from anywhere.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.25rem; }}
svg {{ width: 100%; height: auto; }}
fieldset {{ border: 1px solid #ddd; }}
fieldset label {{ margin-right: 1rem; white-space: nowrap; }}
.swatch {{ display: inline-block; width: .8em; height: .8em; margin: 0 .3em; }}
[id^="p"]:focus {{ outline: 2px solid #000; }}
#tip {{ position: absolute; display: none; max-width: 24rem; padding: .5rem .7rem; background: #fff;
  border: 1px solid #888; box-shadow: 0 2px 6px #0003; font-size: 12px; white-space: pre-line; pointer-events: none; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 12px; }}
th, td {{ text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }}
td:nth-child(-n+2) {{ white-space: nowrap; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
tr.lit {{ background: #fff3cd; }}
.notes {{ color: #555; }}
</style>
</head>
<body>
<h1>{title}</h1>
<fieldset><legend>curves</legend>{switches}</fieldset>
{svg}
<div id="tip" role="status"></div>
<p class="notes">{notes}</p>
<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>
{rows}
</tbody></table></div>
<script type="application/json" id="data">{data}</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const get = (id) => document.getElementById(id);
data.points.forEach((text, number) => {{
  const mark = get("p" + number), row = get("r" + number);
  if (!mark) return;
  mark.setAttribute("tabindex", "0");
  mark.setAttribute("aria-label", text);
  mark.style.cursor = "pointer";
  const show = () => {{
    const box = mark.getBoundingClientRect();
    tip.textContent = text;
    tip.style.display = "block";
    const left = Math.min(box.right + 10, document.documentElement.clientWidth - tip.offsetWidth - 10);
    tip.style.left = window.scrollX + Math.max(10, left) + "px";
    tip.style.top = window.scrollY + box.bottom + 8 + "px";
    row.classList.add("lit");
  }};
  const hide = () => {{ tip.style.display = "none"; row.classList.remove("lit"); }};
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("focus", show);
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("blur", hide);
}});
document.querySelectorAll("fieldset input").forEach((box, number) => {{
  box.addEventListener("change", () => {{
    const curve = data.curves[number];
    const ids = [curve.gid, ...curve.points.flatMap((p) => ["p" + p, "n" + p, "l" + p, "r" + p])];
    const bars = curve.points.flatMap((p) => [...document.querySelectorAll(`[id^="b${{p}}-"]`)]);
    for (const part of [...ids.map(get), ...bars]) if (part) part.style.display = box.checked ? "" : "none";
  }});
}});
</script>
</body>
</html>
"""


def page_html(drawn: Drawn, groups: Sequence[Group], *, title: str, notes: Sequence[str]) -> str:
    """The page; texts of users are escaped, and nothing in it needs a network.

    Args:
        drawn: The picture.
        groups: What it was drawn from.
        title: Heading of the page.
        notes: What the marks mean.
    """
    svg = picture_bytes(drawn.figure, "svg").decode("utf-8")
    conditions = {group.conditions: str(group.conditions) for group in groups}
    texts = [_tip(point, conditions[point.conditions]) for point in drawn.points]
    data = {
        "points": texts,
        "curves": [{"gid": curve.gid, "points": list(curve.points)} for curve in drawn.curves],
    }
    switches = "".join(
        f'<label><input type="checkbox" checked><span class="swatch" style="background:{curve.colour}"></span>'
        f"{html.escape(curve.name)}</label> "
        for curve in drawn.curves
    )
    return _PAGE.format(
        title=html.escape(title or "Accuracy against latency"),
        switches=switches,
        # Without the declaration and the document type, which belong to files of their own.
        svg=svg[svg.index("<svg") :],
        notes="<br>".join(html.escape(note) for note in (*notes, *conditions.values())),
        headings="".join(f"<th>{heading}</th>" for heading, _ in _TABLE),
        rows="\n".join(_row(point, number) for number, point in enumerate(drawn.points)),
        # A text that ends the script element would leave it.
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def _row(point: Point, number: int) -> str:
    cells = []
    for _, name in _TABLE:
        value = getattr(point, name)
        if isinstance(value, float):
            digits = 1 if name == "ap" else 2
            cells.append(f'<td class="number">{value:.{digits}f}</td>')
        else:
            cells.append(f"<td>{html.escape('' if value is None else str(value))}</td>")
    return f'<tr id="r{number}">{"".join(cells)}</tr>'


def _tip(point: Point, conditions: str) -> str:
    """What the pointer shows of a point."""
    ap = "no AP: not trained" if point.ap is None else f"AP {point.ap:.1f} ({point.ap_status}, {point.data})"
    spread = ""
    if point.latency_high_ms > point.latency_low_ms:
        spread = f" [{point.latency_low_ms:.2f} to {point.latency_high_ms:.2f}]"
    costs = [f"{value:.2f} {unit}" for value, unit in ((point.params_m, "M params"), (point.gflops, "GFLOPs")) if value]
    lines = [
        point.label,
        ap,
        f"{point.latency_ms:.2f} ms{spread} ({point.latency_status})",
        conditions,
        ", ".join(costs),
        f"trained with {point.extra_data} besides" if point.extra_data not in ("none", "unspecified") else "",
        point.source,
        point.note,
    ]
    return "\n".join(line for line in lines if line)
