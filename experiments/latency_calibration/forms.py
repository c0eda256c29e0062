"""How much does choosing the T4 formula on its own thirteen rows flatter it? Nested leave-one-out over 96 formulas.

For every left-out row, the formula with the least leave-one-out error on the other twelve rows is chosen and predicts
it. Run from the repository root: `python experiments/latency_calibration/forms.py` (minutes); writes forms.json.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maenas.latency.calibrate import T4_PRIORS, t4_model
from maenas.latency.calibrated import t4_work
from maenas.latency.calibration_baseline import TILES
from maenas.latency.calibration_facts import count_matrix, read_published
from maenas.latency.calibration_fit import Errors, Floats, Model, fit


class Form(NamedTuple):
    """One way to write the T4 formula.

    Attributes:
        waves: How tiles fill the forty processors.
        merged: Pointwise operators pay part of their traffic and start, not all.
        outputs: The network's outputs are copied to the host.
        copy_share: Part of a concat or slice that is paid.
        cache_bytes: Traffic well below this is free.
        overlap: Exponent of the norm that joins arithmetic and traffic; 1 adds them.
    """

    waves: str
    merged: bool
    outputs: bool
    copy_share: float
    cache_bytes: float
    overlap: int


CHOICES = (
    ("fractional", "whole up to four", "at least one"),
    (True, False),
    (True, False),
    (1.0, 0.5),
    (0.0, 4e6),
    (1, 3),
)
SHIPPED = Form("fractional", merged=True, outputs=True, copy_share=1.0, cache_bytes=0.0, overlap=1)


def forms() -> dict[Form, Model]:
    """Every combination of CHOICES as a model of the fitted rows."""
    rows = read_published("nvidia-t4", use="fit")
    ops = [op for row in rows for op in row.ops]
    work = [t4_work(op) for op in ops]
    traffic = np.array([float(one.bytes) for one in work])
    merged_traffic = np.array([float(one.pointwise_bytes) for one in work])
    merged = np.array([float(one.pointwise) for one in work])
    host = np.array([float(one.host_bytes) for one in work])
    conv = np.array([op.kind == "conv" for op in ops])
    copied = np.array([op.kind in ("concat", "slice") for op in ops])
    positions = np.array([op.out_size[0] * op.out_size[1] for op in ops])
    columns = np.array([np.ceil(op.out_channels / 8) * 8 for op in ops])
    taps = np.array([np.ceil(op.in_channels / 8) * 8 * op.kernel_size**2 for op in ops]) * conv
    tiles = np.array([np.ceil(positions / m) * np.ceil(columns / n) for m, n, _ in TILES])
    areas = np.array([[m * n] for m, n, _ in TILES])
    powers = np.array([[power] for _, _, power in TILES])
    waves = {
        "fractional": tiles,
        "whole up to four": np.where(tiles <= 160, 40 * np.ceil(tiles / 40), tiles),
        "at least one": np.maximum(tiles, 40),
    }
    sums = count_matrix(rows)
    shipped = t4_model(rows)

    def model(form: Form) -> Model:
        flops = waves[form.waves] * areas * 2 * taps

        def predict(c: Mapping[str, float]) -> Floats:
            def memory(moved: Floats) -> Floats:
                missed: Floats = moved / np.maximum(moved + form.cache_bytes, 1)
                return missed * moved / (1e6 * c["memory_gb_s"])

            start = 1e-3 * c["launch_us"]
            compute = (flops * c["tile_penalty"] ** powers).min(axis=0) / (1e9 * c["compute_tflop_s"])
            kernel = (compute**form.overlap + memory(traffic) ** form.overlap) ** (1 / form.overlap)
            ms: Floats = np.where(copied, form.copy_share, 1.0) * (start * (conv | (merged == 0)) + kernel)
            light = c["pointwise_bytes"] * memory(merged_traffic) + c["pointwise_launch"] * start * merged
            alone = memory(merged_traffic) + start * merged
            ms = ms + (light if form.merged else np.where(conv, light, alone))
            if form.outputs:
                ms = ms + host / (1e6 * c["host_gb_s"])
            total: Floats = sums @ ms + c["fixed_ms"]
            return total

        priors = shipped.priors
        if not form.outputs:  # then something else must pay for leaving the engine
            priors = tuple(replace(prior, centre=0.5) if prior.name == "fixed_ms" else prior for prior in priors)
        return replace(shipped, priors=priors, predict=predict)

    return {form: model(form) for form in itertools.starmap(Form, itertools.product(*CHOICES))}


def main() -> None:
    """Fit every form with every row, and every pair of rows, left out; write forms.json beside this file."""
    models = forms()
    published = models[SHIPPED].published_ms
    num_rows = len(published)
    outer = np.empty((len(models), num_rows))
    inner = np.empty((len(models), num_rows))
    for index, model in enumerate(models.values()):
        pair = np.empty((num_rows, num_rows))
        for left in range(num_rows):
            for also in range(left, num_rows):
                kept = np.ones(num_rows)
                kept[[left, also]] = 0
                ms = model.predict(fit(model, kept))
                pair[left, also], pair[also, left] = ms[also], ms[left]
        errors = np.abs(pair / published - 1)
        outer[index] = np.diag(pair)
        inner[index] = (errors.sum(axis=1) - np.diag(errors)) / (num_rows - 1)
        print(f"{index + 1}/{len(models)}", *list(models)[index], f"{np.diag(errors).mean():.2%}", flush=True)
    chosen = inner.argmin(axis=0)
    nested = Errors.of(outer[chosen, np.arange(num_rows)], published)
    names = list(models)
    shipped = Errors.of(outer[names.index(SHIPPED)], published)
    report = {
        "nested": {"mean_abs": round(nested.mean_abs, 4), "rms": round(nested.rms, 4)},
        "shipped": {"mean_abs": round(shipped.mean_abs, 4), "rms": round(shipped.rms, 4)},
        "rms_ratio": round(nested.rms / shipped.rms, 3),
        "held": {prior.name: prior.centre for prior in T4_PRIORS if prior.spread == 0},
        "chosen_for_each_row": [names[index]._asdict() for index in chosen],
        "forms": [
            form._asdict() | {"loo": round(Errors.of(outer[index], published).mean_abs, 4)}
            for index, form in enumerate(names)
        ],
    }
    path = Path(__file__).with_name("forms.json")
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
