"""What `maenas export` prints of an artifact: files, comparison with torch, precision that really runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_FIGURES = {
    "scores": "scores",
    "boxes": "boxes, px",
    "score_error": "score error",
    "box_error": "box error",
    "box_shift": "shift, px",
    "mistake": "mistake",
    "unmatched": "unmatched",
}
"""Figures of a comparison, and their headings."""


def record(report: Any) -> dict[str, Any]:  # noqa: ANN401
    """One artifact as plain JSON."""
    card = report.card
    return {
        "path": str(report.path),
        "card": str(report.card_path),
        "digest": card.structure.digest,
        "format": card.format,
        "form": card.form,
        "precision": card.precision,
        "size_bytes": report.size_bytes,
        "nodes": dict(report.nodes),
        "parity": card.parity,
        "proofs": list(card.proofs),
    }


def print_reports(reports: Sequence[Any]) -> None:
    """Artifacts one after the other."""
    from maenas.cli.report import console

    out = console()
    for report in reports:
        card = report.card
        shape = "x".join("?" if length is None else str(length) for length in card.input.shape)
        nodes = ", ".join(f"{count} {kind}" for kind, count in list(report.nodes.items())[:5])
        outputs = ", ".join(output.name for output in card.outputs)
        out.print(f"file:    {report.path}, {report.size_bytes / 1e6:.2f} MB, {card.precision}", markup=False)
        out.print(f"input:   {card.input.name} {shape}, RGB in 0 ... 255; outputs: {outputs}", markup=False)
        before = ", before it was quantised" if card.precision == "int8" else ""
        count = sum(report.nodes.values())
        out.print(f"graph:   {count} nodes ({nodes}, ...), opset {card.opset}{before}", markup=False)
        if card.parity is None:
            out.print("checked: NOT VERIFIED (--no-verify)", markup=False)
            continue
        out.print(_parity_table(report))
        if report.accuracy:
            out.print(_accuracy_table(report.accuracy))
        out.print(_precision_table(report.proofs))
        out.print(f"written: {report.path}, {report.card_path.name}", markup=False)


def _parity_table(report: Any) -> Table:  # noqa: ANN401
    """Differences between torch and what comes out of the files."""
    table = _table("differences from torch (largest allowed)")
    names = [name for name in _FIGURES if any(name in check.figures for check in report.parity)]
    for heading in ("runtime", "images", "input"):
        table.add_column(heading)
    for name in names:
        table.add_column(_FIGURES[name], justify="right")
    for check in report.parity:
        cells = []
        for name in names:
            limit = f" ({check.limits[name]:.1e})" if name in check.limits else ""
            cells.append(f"{check.figures[name]:.1e}{limit}" if name in check.figures else "-")
        table.add_row(f"{check.runtime} {check.version}", check.source, "x".join(map(str, check.shape)), *cells)
    return table


def _accuracy_table(entries: Sequence[Any]) -> Table:
    table = _table(f"AP on {entries[0].num_images} images of {entries[0].data}")
    table.add_column("runtime")
    for heading in ("AP", "torch", "lost", "allowed", "AP50", "torch"):
        table.add_column(heading, justify="right")
    for entry in entries:
        values = (entry.ap, entry.torch_ap, entry.torch_ap - entry.ap, entry.max_drop, entry.ap50, entry.torch_ap50)
        table.add_row(entry.runtime, *(f"{100 * value:.2f}" for value in values))
    return table


def _precision_table(proofs: Sequence[Any]) -> Table:
    """What convolutions and products really run in."""
    table = _table("convolutions and products by the precision that they run in")
    for heading in ("runtime", "on", "asked"):
        table.add_column(heading)
    for heading in ("layers so", "work so", "layers"):
        table.add_column(heading, justify="right")
    for proof in proofs:
        share = "-" if proof.share_macs is None else f"{proof.share_macs:.0%}"
        counts = ", ".join(f"{count} {name}" for name, count in proof.layers.items())
        table.add_row(
            f"{proof.runtime} {proof.version}", proof.device, proof.asked, f"{proof.share_layers:.0%}", share, counts
        )
    return table


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left")
