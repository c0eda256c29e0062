"""How well does the kernel model predict convolutions that were held out of two measured libraries?

Run from the repository root: `python experiments/kernel_model/run.py --library FOLDER`, where FOLDER holds
`v100_tensorrt_fp16_conv.csv.gz` and `v100_tensorrt_fp16_conv_damoyolo.csv.gz`. Writes results.csv,
learning_curve.csv and errors.png beside this file; about ten minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from maenas.latency.kernel_model import KernelModel, fit_kernel_model
from maenas.latency.tinynas import ConvForm, TinyNasPredictor
from maenas.latency.tinynas_library import TinyNasLibrary, read_library
from maenas.lowering.op import Op, conv

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

HERE = Path(__file__).parent
FILES = {"damoyolo": "v100_tensorrt_fp16_conv_damoyolo.csv.gz", "fp16": "v100_tensorrt_fp16_conv.csv.gz"}
SEED = 0
RATIOS = (0.5, 1, 2)
CURVE = (50, 200, 1000, 3000)
BAR = {
    "damoyolo random": 4.1,
    "damoyolo resolution": 4.9,
    "damoyolo out_c": 6.8,
    "damoyolo ratio": 6.0,
    "fp16 b32 random": 8.5,
    "fp16 b1 random": 9.0,
    "fp16 b1 resolution": 10.4,
}
"""Mean error in percent of the best earlier method of each column, known to one decimal."""


class Protocol(NamedTuple):
    """A library and the lines that are held out, in turn; errors of all turns are taken together."""

    name: str
    library: TinyNasLibrary
    held_out: list[Flags]
    batch: int


def main() -> None:
    """Run all protocols and the learning curve; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, required=True, help="folder with the two libraries")
    folder = parser.parse_args().library
    console = Console(width=140)
    libraries = _libraries({name: read_library(folder / file) for name, file in FILES.items()})
    rows = []
    for protocol in _protocols(libraries):
        rows += _evaluate(protocol)
        console.print(rows[-1])
    results = pd.DataFrame(rows)
    results.to_csv(HERE / "results.csv", index=False, float_format="%.2f")
    curve = pd.DataFrame(_learning_curve(libraries))
    curve.to_csv(HERE / "learning_curve.csv", index=False, float_format="%.2f")
    console.print(results.to_string(), curve.to_string())
    _draw(results, curve)


def _libraries(files: dict[str, TinyNasLibrary]) -> dict[str, tuple[TinyNasLibrary, int]]:
    """Libraries by name, with the batch of the roofline: the DAMO-YOLO one's times are those of single images."""
    fp16 = files["fp16"].select(np.isin(files["fp16"].kernel_size, (1, 3)))
    return {
        "damoyolo": (files["damoyolo"], 1),
        "fp16 b32": (fp16.select(fp16.batch == 32), 32),
        "fp16 b1": (fp16.select(fp16.batch == 1), 1),
    }


def _protocols(libraries: dict[str, tuple[TinyNasLibrary, int]]) -> Iterator[Protocol]:
    """The bar's columns, then (name ending in a number) other grid lines, which no choice was made on."""
    for name, (library, batch) in libraries.items():
        random = np.random.default_rng(SEED).random(len(library)) < 0.1
        yield Protocol(f"{name} random", library, [random], batch)
    damo, damo_batch = libraries["damoyolo"]
    ratio = np.where(damo.in_channels == 3, 0, damo.in_channels / damo.out_channels)
    yield Protocol("damoyolo ratio", damo, [ratio == value for value in RATIOS], damo_batch)
    lines = [("damoyolo", "resolution", 1), ("damoyolo", "out_c", 1), ("fp16 b1", "resolution", 1)]
    lines += [(name, what, start) for name, what, _ in lines for start in (2,)] + [("fp16 b32", "resolution", 1)]
    for name, what, start in lines:
        library, batch = libraries[name]
        values = library.side if what == "resolution" else library.out_channels
        held = np.isin(values, np.unique(values)[1:-1][start::3])
        label = f"{name} {what}" + ("" if f"{name} {what}" in BAR and start == 1 else f" {start}")
        yield Protocol(label, library, [held], batch)


def _evaluate(protocol: Protocol) -> list[dict[str, object]]:
    """One row for the reference's interpolation, and one for ours."""
    ours, mended, sigmas, outside, reference = [], [], [], [], []
    for held in protocol.held_out:
        rest, test = protocol.library.select(~held), protocol.library.select(held)
        model = fit_kernel_model(_ops(rest), rest.latency_ms, batch=protocol.batch, precision_bytes=2, folds=2)
        prediction = model.predict(_ops(test))
        ours.append(prediction.ms / test.latency_ms - 1)
        mended.append(_mended(model, test) / test.latency_ms - 1)
        sigmas.append(prediction.relative_sigma)
        outside.append(prediction.extrapolated)
        reference.append(_interpolated(TinyNasPredictor(rest), test) / test.latency_ms - 1)
    errors = np.concatenate(ours)
    common = {"protocol": protocol.name, "lines": len(errors)}
    inside = np.abs(errors) <= np.concatenate(sigmas)
    return [
        common | {"method": "reference interpolation"} | _summary(np.concatenate(reference)),
        common | {"method": "kernel model, made to rise"} | _summary(np.concatenate(mended)),
        common
        | {"method": "kernel model", "best_earlier_mean": BAR.get(protocol.name, np.nan)}
        | _summary(errors)
        | {
            "within_sigma": 100 * inside.mean(),
            "sigma": 100 * np.sqrt(np.mean(np.concatenate(sigmas) ** 2)),
            "extrapolated": 100 * np.concatenate(outside).mean(),
        },
    ]


def _summary(errors: Floats) -> dict[str, float]:
    """Percentages; errors are NaN where a method has no answer."""
    missing = np.isnan(errors)
    size = np.abs(errors[~missing])
    median, p90 = np.quantile(size, [0.5, 0.9])
    parts = {"mean": size.mean(), "median": median, "p90": p90, "largest": size.max(), "missing": missing.mean()}
    return {name: 100 * float(value) for name, value in parts.items()}


def _ops(library: TinyNasLibrary) -> list[Op]:
    lines = zip(
        library.in_channels.tolist(), library.out_channels.tolist(), library.side.tolist(),
        library.kernel_size.tolist(), library.stride.tolist(), library.depthwise.tolist(), library.fused.tolist(),
        strict=True,
    )  # fmt: skip
    return [_op(*line) for line in lines]


def _op(
    in_c: int | NDArray[np.int64],
    out_c: int | NDArray[np.int64],
    side: int,
    kernel: int,
    stride: int,
    depthwise: bool,
    fused: bool,
) -> Op:
    return conv(
        in_c, out_c, (side, side), kernel_size=kernel, stride=stride, depthwise=depthwise, residual=fused,
        activation="relu", name="", stage="",
    )  # fmt: skip


def _forms(library: TinyNasLibrary) -> Iterator[tuple[ConvForm, Flags]]:
    columns = np.stack([library.kernel_size, library.stride, library.fused, library.depthwise])
    for form in np.unique(columns, axis=1).T:
        kernel, stride, fused, depthwise = form.tolist()
        yield ConvForm(kernel, stride, bool(fused), bool(depthwise)), (columns == form[:, None]).all(axis=0)


def _interpolated(predictor: TinyNasPredictor, test: TinyNasLibrary) -> Floats:
    ms = np.full(len(test), np.nan)
    for form, at in _forms(test):
        ms[at] = predictor.estimate(
            form, batch=int(test.batch[0]), in_channels=test.in_channels[at], out_channels=test.out_channels[at],
            side=test.side[at],
        ).ms  # fmt: skip
    return ms


def _mended(model: KernelModel, test: TinyNasLibrary) -> Floats:
    """Predictions made to rise with the channels (at one ratio) and the side, over the grid of the tested lines."""
    ms = np.empty(len(test))
    ratio = np.where(test.in_channels == 3, 0, test.in_channels / test.out_channels)
    for form, of_form in _forms(test):
        for value in np.unique(ratio[of_form]):
            at = of_form & (ratio == value)
            widths, column = np.unique(test.out_channels[at], return_inverse=True)
            sides, row = np.unique(test.side[at], return_inverse=True)
            in_c = np.full(len(widths), 3) if value == 0 else np.round(value * widths).astype(np.int64)
            grid = [
                model.predict(_op(in_c, widths, side, form.kernel_size, form.stride, form.depthwise, form.fused)).ms
                for side in sides.tolist()
            ]
            ms[at] = _rising(np.stack(grid))[row, column]
    return ms


def _rising(ms: Floats) -> Floats:
    """A grid of times made to rise along every axis, by the smallest possible largest relative change."""
    log_ms = np.log(ms)
    above, below = log_ms, log_ms
    for axis in range(log_ms.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    result: Floats = np.exp((above + below) / 2)
    return result


def _learning_curve(libraries: dict[str, tuple[TinyNasLibrary, int]]) -> list[dict[str, object]]:
    """Error on 3,000 random lines by the number of random lines fitted."""
    rows = []
    for name, (library, batch) in libraries.items():
        for num in CURVE:
            errors, sigmas = [], []
            for seed in range(2):
                order = np.random.default_rng(seed).permutation(len(library))
                rest, test = library.select(order[3000 : 3000 + num]), library.select(order[:3000])
                model = fit_kernel_model(_ops(rest), rest.latency_ms, batch=batch, precision_bytes=2, folds=2)
                prediction = model.predict(_ops(test))
                errors.append(prediction.ms / test.latency_ms - 1)
                sigmas.append(prediction.relative_sigma)
            error = np.concatenate(errors)
            within = 100 * np.mean(np.abs(error) <= np.concatenate(sigmas))
            rows.append({"library": name, "kernels": num} | _summary(error) | {"within_sigma": within})
    return rows


def _draw(results: pd.DataFrame, curve: pd.DataFrame) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=(1.7, 1))
    shown = results[results.protocol.isin(BAR)]
    place = np.arange(len(BAR))
    series = (
        ("reference interpolation", shown[shown.method == "reference interpolation"], "#9aa7b5"),
        ("kernel model", shown[shown.method == "kernel model"], "#1f5fa8"),
    )
    for shift, (label, part, colour) in zip((-0.27, 0.27), series, strict=True):
        left.bar(place + shift, part.set_index("protocol")["mean"].reindex(list(BAR)), 0.26, label=label, color=colour)
    left.bar(place, list(BAR.values()), 0.26, label="best earlier method of the column", color="#d9822b")
    left.set_xticks(place, [name.rpartition(" ")[0] + "\n" + name.rpartition(" ")[2] for name in BAR])
    left.set_ylabel("mean absolute error, %")
    left.set_title("Held-out convolutions", fontsize=11)
    left.legend(frameon=False)
    for (name, part), colour in zip(curve.groupby("library"), ("#1f5fa8", "#d9822b", "#b3261e"), strict=True):
        right.plot(part.kernels, part["mean"], marker="o", label=name, color=colour)
    right.set_xscale("log")
    right.set_xticks(CURVE, [f"{num:,}" for num in CURVE])
    right.minorticks_off()
    right.set_ylim(bottom=0)
    right.set_xlabel("kernels fitted (random)")
    right.set_title("Learning curve", fontsize=11)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "errors.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
