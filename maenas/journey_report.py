"""The report of a finished journey: one page that needs nothing else, pictures beside it, a record for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maenas import __version__
from maenas.errors import OutputError
from maenas.files import make_folder, write_bytes_atomically, write_text_atomically
from maenas.journey import PICTURES_FOLDER, RECORD_FILE, REPORT_FILE, Journey
from maenas.journey_charts import Chart, all_charts
from maenas.journey_html import Section, esc, page
from maenas.journey_samples import Sample
from maenas.journey_sections import (
    choice_section,
    headline,
    how_measured,
    latency_section,
    network_section,
    tiles,
    verdict,
)
from maenas.journey_sections_results import (
    accuracy_section,
    plot_section,
    precision_section,
    samples_section,
    training_section,
)
from maenas.journey_sections_use import deploy_section, making_section

PLOT = "latency-ap.png"


def report_html(
    facts: Mapping[str, Any],
    charts: Mapping[str, Chart],
    samples: Sequence[Sample],
    pictures: Mapping[str, bytes],
    *,
    threshold: float,
) -> str:
    """The page.

    Args:
        facts: Of `maenas.journey_facts.gather`.
        charts: Of `maenas.journey_charts.all_charts`.
        samples: Images that were drawn; may be empty.
        pictures: PNG files of steps by name: the plot, confusions.
        threshold: Score above which samples show detections.
    """
    sections = [
        latency_section(facts, charts),
        choice_section(facts, charts),
        network_section(facts, charts),
        accuracy_section(facts, charts, pictures),
    ]
    if samples:
        sections.append(samples_section(facts, samples, threshold))
    if facts["training"] is not None:
        sections.append(training_section(facts, charts))
    sections.append(precision_section(facts))
    if PLOT in pictures:
        sections.append(plot_section(facts, pictures[PLOT]))
    sections += [deploy_section(facts), making_section(facts)]
    title = headline(facts)
    links = "".join(f'<a href="#{one.anchor}">{esc(one.title)}</a>' for one in sections)
    device = facts["device"]
    parts = [
        '<header><p class="brand">maenas run</p>',
        f"<h1>{esc(title)}</h1>",
        f'<p class="lead">Searched, trained, exported and timed with {esc(how_measured(device))}.</p>'
        if device["is_here"]
        else f'<p class="lead">For {esc(how_measured(device))}.</p>',
        verdict(facts),
        tiles(facts),
        f'<nav aria-label="Sections">{links}</nav></header>',
        "<main>",
        *map(_section, sections),
        "</main>",
        f"<footer>maenas {esc(__version__)}, {esc(facts['folder'])}. This page needs no other file.</footer>",
    ]
    return page(title, "\n".join(parts))


def _section(section: Section) -> str:
    heading = f'<h2 id="{section.anchor}-heading">{esc(section.title)}</h2>'
    return (
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-heading">{heading}\n{section.body}</section>'
    )


def write_report(
    journey: Journey, facts: Mapping[str, Any], samples: Sequence[Sample], *, threshold: float
) -> tuple[Path, Path]:
    """Write page, pictures and record; the page comes last.

    Returns:
        The page and the record.

    Raises:
        OutputError: A file cannot be read or written.
    """
    charts = all_charts(facts)
    pictures = {}
    for path in (journey.out / "plot" / PLOT, journey.out / "eval" / "confusion.png"):
        if path.exists():
            pictures[path.name] = _content(path)
    html = report_html(facts, charts, samples, pictures, threshold=threshold)
    folder = journey.out / PICTURES_FOLDER
    make_folder(folder)
    for chart in charts.values():
        write_bytes_atomically(folder / f"{chart.name}.png", chart.png)
    for number, sample in enumerate(samples, start=1):
        write_bytes_atomically(folder / f"sample-{number}-truth.jpg", sample.truth)
        write_bytes_atomically(folder / f"sample-{number}-found.jpg", sample.found)
    page_file, record_file = journey.out / REPORT_FILE, journey.out / RECORD_FILE
    write_text_atomically(
        record_file, json.dumps({**facts, "report": str(page_file)}, indent=1, allow_nan=False) + "\n"
    )
    write_text_atomically(page_file, html)
    return page_file, record_file


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error})") from error
