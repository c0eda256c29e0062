"""Pieces of a journey's page: everything that comes from files or users is escaped here, pictures become part of it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #5c6672; --line: #dfe3e8;
  --blue: #0067a6; --orange: #c05000; --green: #007d5b; --good: #0a6b4e; --good-bg: #e2f4ec; --bad: #8f3200;
  --bad-bg: #fdebdd; --calm: #2b4a6b; --calm-bg: #e6eef7; --code: #f0f2f5;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --page: #101316; --card: #181c21; --ink: #e6e9ed; --soft: #9aa5b1;
  --line: #2c333b; --blue: #5bb0ea; --orange: #f08a46; --green: #3fc39a; --good: #7fe0bd; --good-bg: #12352a;
  --bad: #ffb98a; --bad-bg: #402311; --calm: #a9c9ec; --calm-bg: #1b2c40; --code: #21262d; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.6 var(--font); }
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
.brand { color: var(--soft); font-size: .85rem; letter-spacing: .04em; margin: 0; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em; margin: .4rem 0 .5rem; }
.lead { color: var(--soft); margin: 0 0 1.25rem; max-width: 46rem; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--blue); }
nav { margin: 1.25rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .92rem; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.5rem 1.6rem;
  margin: 1.25rem 0; scroll-margin-top: 1rem; }
.verdict { border-radius: 12px; padding: .9rem 1.1rem; margin: 0 0 1.1rem; font-size: 1.05rem; max-width: none; }
.verdict strong { font-weight: 650; }
.good { background: var(--good-bg); color: var(--good); } .bad { background: var(--bad-bg); color: var(--bad); }
.calm { background: var(--calm-bg); color: var(--calm); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.8rem, 1fr)); gap: .75rem; margin: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.tile dt { color: var(--soft); font-size: .84rem; } .tile dd { margin: 0; }
.tile dd:first-of-type { white-space: nowrap; font-size: 1.45rem; font-weight: 650; letter-spacing: -.02em;
  line-height: 1.3; }
.tile dd:first-of-type small { font-size: .95rem; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.tile dd + dd { color: var(--soft); font-size: .84rem; line-height: 1.35; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem 2rem;
  align-items: start; }
figure { margin: 1rem 0 .5rem; } figure svg, figure img { display: block; width: 100%; height: auto; }
figure svg { max-width: 36rem; }
figure img { border-radius: 8px; } figure.plot img { background: #fff; padding: .5rem; border: 1px solid var(--line); }
figcaption { font-size: .88rem; color: var(--soft); margin-top: .4rem; }
figcaption b { color: var(--ink); font-weight: 600; }
.shots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem 1.25rem; }
.shots figure { margin: .25rem 0; } .two { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding: .2rem 0 .4rem; }
th, td { text-align: left; padding: .42rem .8rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .84rem; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
tr.pick td { font-weight: 650; } tr.pick td:first-child { box-shadow: -.6rem 0 0 -.4rem var(--orange); }
td code { white-space: nowrap; }
details code, li code { white-space: normal; overflow-wrap: anywhere; }
code, pre { font-family: var(--mono); font-size: .86em; }
code { background: var(--code); border-radius: 5px; padding: .1em .35em; }
pre { background: var(--code); border-radius: 10px; padding: .9rem 1rem; overflow-x: auto; line-height: 1.5; }
pre code { background: none; padding: 0; font-size: 1em; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--blue); }
.note { color: var(--soft); font-size: .92rem; }
ul { padding-left: 1.2rem; max-width: 46rem; } li { margin: .25rem 0; }
footer { color: var(--soft); font-size: .86rem; padding-top: .5rem; padding-bottom: 3rem; }
@media (max-width: 34rem) { header { padding-top: 1.5rem; }
  main, header, footer { padding-left: .8rem; padding-right: .8rem; }
  section { padding: 1.1rem 1rem; border-radius: 12px; } .tiles { grid-template-columns: 1fr 1fr; }
  table { font-size: .86rem; } .two { grid-template-columns: 1fr; } }
@media print { body { background: #fff; } nav { display: none; }
  section { border: 0; padding: 0; break-inside: avoid-page; } }
"""

# Nothing is fetched and nothing runs: the policy forbids both, so that a page can be opened from anywhere.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: For links to it.
        title: Its heading.
        body: Its HTML.
    """

    anchor: str
    title: str
    body: str


def esc(value: object) -> str:
    """Text as HTML; what cannot be UTF-8 is written out."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def page(title: str, body: str) -> str:
    """The whole file."""
    return _PAGE.format(title=esc(title), style=_STYLE, body=body)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of HTML."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def tile(name: str, value: str, unit: str = "", note: str = "") -> str:
    """A figure in large letters; all texts are plain."""
    small = f" <small>{esc(unit)}</small>" if unit else ""
    below = f"<dd>{esc(note)}</dd>" if note else ""
    return f'<div class="tile"><dt>{esc(name)}</dt><dd>{esc(value)}{small}</dd>{below}</div>'


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    kinds: str = "",
    picked: int | None = None,
) -> str:
    """A table of HTML cells.

    Args:
        headings: Plain texts.
        rows: Cells, as HTML.
        caption: Plain text above it.
        kinds: A letter per column: `t` for text, `n` for numbers; by default one column of text, then numbers.
        picked: Row that stands out.
    """
    letters = kinds or "t" + "n" * (len(headings) - 1)
    looks = [' class="n"' if letter == "n" else "" for letter in letters]
    top = "".join(f'<th scope="col"{kind}>{esc(heading)}</th>' for kind, heading in zip(looks, headings, strict=True))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(looks, row, strict=True))
        lines.append(f'<tr class="pick">{cells}</tr>' if number == picked else f"<tr>{cells}</tr>")
    above = f"<caption>{esc(caption)}</caption>" if caption else ""
    body = "\n".join(lines)
    return f'<div class="wide"><table>{above}<thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def drawing(svg: str, *, title: str, text: str, anchor: str) -> str:
    """An inline SVG with its caption; `text` says the same in words."""
    label = f'role="img" aria-labelledby="{esc(anchor)}-title"'
    named = svg.replace("<svg", f"<svg {label}", 1)
    inside = f'<title id="{esc(anchor)}-title">{esc(title)}. {esc(text)}</title>'
    end = named.index(">", named.index("<svg")) + 1
    return (
        f"<figure>{named[:end]}{inside}{named[end:]}<figcaption><b>{esc(title)}.</b> {esc(text)}</figcaption></figure>"
    )


def picture(content: bytes, kind: str, *, alt: str) -> str:
    """An image as part of the page."""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode("ascii")}" alt="{esc(alt)}">'


def code(text: str) -> str:
    """Lines of code."""
    return f"<pre><code>{esc(text)}</code></pre>"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, as it is printed."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def counted(count: int, name: str) -> str:
    """Such as `1 round`, `2 rounds`."""
    return f"{count:,} {name}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Such as `42 s`, `7.1 min`, `3 h 2 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes, such as `19.0 MB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def points(value: float | None) -> str:
    """A share as AP is written."""
    return DASH if value is None else f"{100 * value:.1f}"
