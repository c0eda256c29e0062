"""Figure 1 (a) and (b) of the DAMO-YOLO report from its tables, our structures under the calibrated latency tables.

Run from the repository root: `python experiments/figure1/run.py`. Writes one PNG and one CSV per half beside this file;
with `--folder DIR` also SVG and HTML, there. Needs no torch and no data besides what is shipped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from maenas.budgets import Budget
from maenas.files import write_bytes_atomically, write_text_atomically
from maenas.frontier import load_frontier
from maenas.plot_page import page_html
from maenas.plot_picture import draw, picture_bytes
from maenas.plot_points import frontier_points, grouped, points_csv
from maenas.plot_runs import run_points
from maenas.plot_styles import mark_notes
from maenas.search import search
from maenas.structure import save_structure

HERE = Path(__file__).parent
HALVES = {
    "a": (
        "t4",
        "damo-paper-t4",
        ("damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "damo-yolo-l"),
        (("res", 2.78), ("res", 3.83), ("csp", 5.62), ("csp", 7.95)),
    ),
    "b": (
        "intel-8163",
        "damo-paper-8163",
        ("damo-yolo-ns", "damo-yolo-nm", "damo-yolo-nl"),
        (("mob", 4.08), ("mob", 5.05), ("mob", 6.69)),
    ),
}
"""Latency table, protocol of the published points, networks that we rebuild, spaces and budgets that we search."""

TITLES = {
    "a": "Latency and accuracy on a T4 (Figure 1 a of the report, redrawn from Table 9)",
    "b": "Latency and accuracy on a CPU (Figure 1 b of the report, redrawn from Table 10)",
}


def main() -> None:
    """Draw both halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="also write SVG and HTML here")
    folder = parser.parse_args().folder
    frontier = load_frontier()
    for half, (table, protocol, names, budgets) in HALVES.items():
        with tempfile.TemporaryDirectory() as scratch:
            files = [searched(space, limit, table, Path(scratch)) for space, limit in budgets]
            own, notes = run_points([*names, *files], frontier=frontier, tables=[table])
        published = frontier_points([row for row in frontier if row.protocol == protocol])
        groups = grouped([*own, *published])
        drawn = draw(groups, title=TITLES[half])
        write_bytes_atomically(HERE / f"figure1{half}.png", picture_bytes(drawn.figure, "png"))
        write_text_atomically(HERE / f"figure1{half}.csv", points_csv(groups))
        if folder is not None:
            write_bytes_atomically(folder / f"figure1{half}.svg", picture_bytes(drawn.figure, "svg"))
            page = page_html(drawn, groups, title=TITLES[half], notes=mark_notes(groups))
            write_text_atomically(folder / f"figure1{half}.html", page)
        print(f"{half}: {len(own)} points of ours, {len(published)} published; {notes or 'nothing left out'}")


def searched(space: str, limit_ms: float, table: str, folder: Path) -> str:
    """The exact optimum of a space within a budget, as a file."""
    from dataclasses import replace

    best = search(space, budgets=[Budget("latency_ms", limit_ms)], device=table, top_k=1).best.structure
    path = folder / f"{space}-{limit_ms}.json"
    save_structure(replace(best, name=f"{space}, budget {limit_ms} ms"), path)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
