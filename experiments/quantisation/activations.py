"""Which kinds of nodes must be in int8 for a network to be fast? Published networks with made-up weights."""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from detector.artifact_files import read_card
from detector.export import export_onnx
from detector.export_int8 import QuantiseRequest
from detector.export_reference import example_images
from detector.quantise_layers import find_layers
from detector.quantise_onnx import OPERATORS, SILU, calibrate
from detector.reparam import deploy
from detector.runtimes import SESSIONS
from detector.standardise import random_detector
from maenas.published import load_published

HERE = Path(__file__).resolve().parent
SIDE = 320
KINDS = {
    "all": OPERATORS,
    "all but SiLU": tuple(name for name in OPERATORS if name not in SILU),
    "convolutions only": ("Conv", "Relu"),
}


def main() -> None:
    """Write activations.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for files, kept for the next call")
    parser.add_argument("--networks", nargs="+", default=["damo-yolo-t", "damo-yolo-ns"])
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    files = {key: path for name in arguments.networks for key, path in make(name, arguments.work).items()}
    sessions = {
        (*key, runtime): SESSIONS[runtime](path, threads=1)
        for key, path in files.items()
        for runtime in SESSIONS
        if runtime != "tensorrt"
    }
    inputs = {"images": example_images((1, 3, SIDE, SIDE))}
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in sessions}
    for _ in range(arguments.rounds):
        for key, session in sessions.items():
            session.run(inputs)
            started = time.perf_counter()
            session.run(inputs)
            times[key].append(1e3 * (time.perf_counter() - started))
    with (HERE / "activations.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["network", "int8", "runtime", "median_ms", "min_ms", "speedup_median"])
        for (name, kind, runtime), own in times.items():
            speedup = statistics.median(times[name, "none", runtime]) / statistics.median(own)
            writer.writerow(
                [name, kind, runtime, *(f"{value:.2f}" for value in (statistics.median(own), min(own), speedup))]
            )


def make(name: str, work: Path) -> dict[tuple[str, str], Path]:
    """The float file and the quantised ones, made unless they are there."""
    source = work / f"{name}.onnx"
    files = {(name, kind): work / f"{name}-{kind.replace(' ', '-')}.onnx" for kind in KINDS}
    if not source.exists():
        model = random_detector(load_published(name))
        size = (SIDE, SIDE)
        export_onnx(deploy(model), source, class_names=model.class_names, verify=False, image_size=size)
    if not all(path.exists() for path in files.values()):
        card = read_card(source)
        request = QuantiseRequest(
            onnx_path=source,
            card=card,
            format="onnx",
            folder=work,
            images=pictures,
            num_images=2,
            evaluate=lambda path: 0.0,
            evaluate_session=lambda session: 0.0,
            reference_ap=0.0,
            max_drop=0.0,
            progress=print,
        )
        layers = find_layers(onnx.load(str(source)), card)
        quantiser = calibrate(request, layers, method="minmax", seven_bits=False)
        for (_, kind), path in files.items():
            replace(quantiser, operators=KINDS[kind]).write(path)
    return {(name, "none"): source, **files}


def pictures() -> Iterator[NDArray[np.float32]]:
    """Made up: times do not depend on them."""
    return iter([example_images((1, 3, SIDE, SIDE))] * 2)


if __name__ == "__main__":
    main()
