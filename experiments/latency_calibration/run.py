"""How far off are the calibrated T4 and Xeon 8163 models on networks they have not seen?

Run from the repository root: `python experiments/latency_calibration/run.py`. Writes report.json and
predicted_vs_published.png beside this file.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from figure import draw
from rich.console import Console
from rich.table import Table

from maenas.latency.calibrate import CPU_PRIORS, T4_PRIORS, calibrate_8163, calibrate_t4
from maenas.latency.calibration_fit import Prior
from maenas.latency.calibration_report import Calibration
from maenas.latency.calibration_unseen import mean_abs, unseen_networks, unseen_table

HERE = Path(__file__).parent


def main() -> None:
    """Calibrate, print the tables, try each assumption without it, and write report and figure."""
    console = Console(width=120)
    report: dict[str, object] = {}
    results = []
    for calibration, variants in ((calibrate_t4(), _without_t4()), (calibrate_8163(), _without_8163())):
        unseen = unseen_networks(calibration)
        console.print(calibration.table())
        console.print(unseen_table(unseen))
        console.print(_variant_table(variants))
        report[calibration.device] = calibration.to_dict() | {
            "unseen": [network.to_dict() for network in unseen],
            "unseen_mean_abs": round(mean_abs(unseen), 4),
            "variants": {name: [round(error, 4) for error in errors] for name, errors in variants.items()},
        }
        results.append((calibration, [network.result for network in unseen if network.counted]))
    (HERE / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draw(results, HERE / "predicted_vs_published.png")


def _variant_table(variants: dict[str, tuple[float, float]]) -> Table:
    table = Table("variant", "leave one out", "leave family out", title="what each assumption is worth")
    for name, (loo, lofo) in variants.items():
        table.add_row(name, f"{loo:.1%}", f"{lofo:.1%}")
    return table


def _errors(calibration: Calibration) -> tuple[float, float]:
    return calibration.loo.mean_abs, calibration.lofo.mean_abs


def _held(priors: tuple[Prior, ...], **values: float) -> tuple[Prior, ...]:
    held = {
        prior.name: replace(prior, centre=values[prior.name], spread=0.0) for prior in priors if prior.name in values
    }
    return tuple(held.get(prior.name, prior) for prior in priors)


def _widened(priors: tuple[Prior, ...], factor: float) -> tuple[Prior, ...]:
    return tuple(replace(prior, spread=prior.spread * factor) for prior in priors)


def _without_t4() -> dict[str, tuple[float, float]]:
    variants = {
        "as shipped": T4_PRIORS,
        "outputs free (no host copy)": _held(T4_PRIORS, host_gb_s=1e9),
        "outputs free, fixed .5 ms instead": _held(T4_PRIORS, host_gb_s=1e9, fixed_ms=0.5),
        "pointwise operators pay in full": _held(T4_PRIORS, pointwise_bytes=1.0, pointwise_launch=1.0),
        "pointwise operators free": _held(T4_PRIORS, pointwise_bytes=1e-9, pointwise_launch=0.0),
        "no start of a merged pointwise operator": _held(T4_PRIORS, pointwise_launch=0.0),
        "all tiles equally good": _held(T4_PRIORS, tile_penalty=1.0),
        "no fixed cost": _held(T4_PRIORS, fixed_ms=0.0),
        "fixed .3 ms": _held(T4_PRIORS, fixed_ms=0.3),
        "priors half as wide": _widened(T4_PRIORS, 0.5),
        "priors twice as wide": _widened(T4_PRIORS, 2.0),
        "priors only, nothing fitted": _widened(T4_PRIORS, 0.0),
    }
    return {name: _errors(calibrate_t4(priors=priors)) for name, priors in variants.items()}


def _without_8163() -> dict[str, tuple[float, float]]:
    variants = {
        "as shipped": CPU_PRIORS,
        "other operators free": _held(CPU_PRIORS, other_ms=0.0),
        "fixed .3 ms": _held(CPU_PRIORS, fixed_ms=0.3),
        "priors half as wide": _widened(CPU_PRIORS, 0.5),
        "priors twice as wide": _widened(CPU_PRIORS, 2.0),
        "priors only, nothing fitted": _widened(CPU_PRIORS, 0.0),
    }
    return {name: _errors(calibrate_8163(priors=priors)) for name, priors in variants.items()}


if __name__ == "__main__":
    main()
