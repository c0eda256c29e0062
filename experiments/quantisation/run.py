"""What int8 costs in AP and brings in time, per way of quantising; what is made once is not made again."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx

from detector.artifact_files import read_card
from detector.data.source import load_split
from detector.export import ExportChecks, export_artifacts
from detector.export_accuracy import ExportData
from detector.export_graph import ExportOptions
from detector.export_int8 import Quantised, Quantiser, QuantiseRequest
from detector.export_reference import example_images
from detector.load import load_detector
from detector.quantise import QuantiseSettings, make_quantiser
from detector.quantise_layers import find_layers, share_int8
from detector.quantise_onnx import calibrate
from detector.quantise_sensitivity import measure_sensitivity
from detector.reparam import deploy
from detector.runtimes import SESSIONS, OnnxRuntimeSession
from maenas.profiling.host import describe_host

HERE = Path(__file__).resolve().parent
CALIBRATION_IMAGES = 100
ANY_DROP = 1.0
GATE = 0.005


@dataclass(frozen=True)
class Variant:
    """One artifact.

    Attributes:
        format: Of the artifact.
        precision: Of the artifact.
        quantiser: For int8.
        max_drop: AP that may be lost.
    """

    format: str
    precision: str = "int8"
    quantiser: Quantiser | None = None
    max_drop: float = ANY_DROP


def returned(count: int) -> Quantiser:
    """With the so many most sensitive layers in float32."""

    def quantise(request: QuantiseRequest) -> Quantised:
        layers = find_layers(onnx.load(str(request.onnx_path)), request.card)
        quantiser = calibrate(request, layers, method="minmax", seven_bits=False)
        higher = [entry.layer.name for entry in measure_sensitivity(request, quantiser)[:count]]
        path = request.folder / "model.onnx"
        quantiser.write(path, higher)
        return Quantised(path, {"higher_precision": higher, "share_macs": share_int8(layers, higher)})

    return quantise


def signed(request: QuantiseRequest) -> Quantised:
    """As for TensorRT, measured in ONNX Runtime."""

    def evaluate(path: Path) -> float:
        return request.evaluate_session(OnnxRuntimeSession(path))

    return make_quantiser()(replace(request, format="tensorrt", evaluate=evaluate))


def variants(out: Path) -> dict[str, Variant]:
    """All of them by name."""
    gated = make_quantiser(QuantiseSettings(sensitivity=out))
    return {
        "onnx fp32": Variant("onnx", "fp32"),
        "onnx int8": Variant("onnx", quantiser=gated, max_drop=GATE),
        "openvino fp32": Variant("openvino", "fp32"),
        "openvino int8": Variant("openvino", quantiser=make_quantiser(), max_drop=GATE),
        "onnx int8, 7 bits": Variant("onnx", quantiser=make_quantiser(QuantiseSettings(seven_bits=True))),
        "onnx int8, 5 layers float": Variant("onnx", quantiser=returned(5)),
        "onnx int8, signed (TensorRT)": Variant("onnx", quantiser=signed),
        "onnx int8, entropy": Variant("onnx", quantiser=make_quantiser(QuantiseSettings(method="entropy"))),
        "onnx int8, percentile": Variant("onnx", quantiser=make_quantiser(QuantiseSettings(method="percentile"))),
    }


def main() -> None:
    """Make what is missing, then write results.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, help="annotated images: calibrates with train, measures on val")
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts, kept for the next call")
    parser.add_argument("--no-times", action="store_true", help="artifacts and AP only")
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--rounds", type=int, default=100, help="timed runs of every artifact")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    files = {name: export(name, variant, arguments) for name, variant in variants(arguments.out).items()}
    rows = [row for name, path in files.items() for row in accuracy_rows(name, path)]
    if not arguments.no_times:
        for threads in arguments.threads:
            add_times(rows, files, threads, arguments)
    with (arguments.out / "results.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    packages = ("torch", "onnxruntime", "openvino", "nncf")
    conditions = {"host": describe_host(), "versions": {name: version(name) for name in packages}, "batch": 1}
    (arguments.out / "conditions.json").write_text(json.dumps(conditions, indent=2) + "\n", encoding="utf-8")


def export(name: str, variant: Variant, arguments: argparse.Namespace) -> Path:
    """The artifact's main file, made unless it is there."""
    folder = arguments.work / "".join(letter if letter.isalnum() else "-" for letter in name)
    path = folder / ("model.onnx" if variant.format == "onnx" else "model.xml")
    if path.with_suffix(".json").exists():
        return path
    print(f"exporting {name}", flush=True)
    model, _ = load_detector(arguments.checkpoint)
    names = model.class_names
    train = load_split(arguments.data, "train", class_names=names)
    count = min(CALIBRATION_IMAGES, len(train))
    chosen = tuple(train.images[index * len(train) // count] for index in range(count))
    data = ExportData(load_split(arguments.data, "val", class_names=names), replace(train, images=chosen))
    export_artifacts(
        deploy(model),
        folder,
        class_names=names,
        formats=(variant.format,),
        options=ExportOptions(precision=variant.precision),
        checks=ExportChecks(data=data, force=variant.max_drop == ANY_DROP, max_drop=variant.max_drop),
        quantiser=variant.quantiser,
        progress=lambda line: print(f"  {line}", flush=True),
    )
    return path


def accuracy_rows(name: str, path: Path) -> list[dict[str, object]]:
    """One line per runtime, from the artifact's card."""
    card = read_card(path)
    assert card.parity is not None
    details = card.quantisation or {}
    # Without entries a runtime computes something else; the quantiser's own measurement is what is left.
    kept = {"runtime": "onnxruntime", "ap": details.get("ap"), "torch_ap": details.get("reference_ap")}
    return [
        {
            "artifact": name,
            "runtime": entry["runtime"],
            "ap": round(100 * entry["ap"], 2),
            "ap_drop": round(100 * (entry["torch_ap"] - entry["ap"]), 2),
            "ap50": round(100 * entry["ap50"], 2) if "ap50" in entry else "",
            "layers_float": len(details.get("higher_precision", ())),
            "share_macs_int8": round(details.get("share_macs", 0.0), 3),
            "size_mb": round(sum(file.size_bytes for file in card.files) / 1e6, 2),
        }
        for entry in card.parity["accuracy"] or [kept]
    ]


def add_times(
    rows: list[dict[str, object]], files: dict[str, Path], threads: int, arguments: argparse.Namespace
) -> None:
    """Wall times of one image, all artifacts in turn so that whatever disturbs them disturbs all; kept in a file."""
    kept = arguments.work / f"times-{threads}.json"
    if not kept.exists():
        keys = [f"{row['artifact']}|{row['runtime']}" for row in rows]
        kept.write_text(json.dumps(measure(keys, files, threads, arguments.rounds)), encoding="utf-8")
    times = json.loads(kept.read_text(encoding="utf-8"))
    for row in rows:
        own = times[f"{row['artifact']}|{row['runtime']}"]
        base = times[f"{'onnx' if row['runtime'] == 'onnxruntime' else 'openvino'} fp32|{row['runtime']}"]
        row[f"median_ms_{threads}"] = round(statistics.median(own), 2)
        row[f"min_ms_{threads}"] = round(min(own), 2)
        row[f"speedup_median_{threads}"] = round(statistics.median(base) / statistics.median(own), 2)
        row[f"speedup_min_{threads}"] = round(min(base) / min(own), 2)


def measure(keys: list[str], files: dict[str, Path], threads: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of `rounds` runs each; before a run that counts comes one that does not, for warm caches."""
    sessions = {}
    for key in keys:
        name, runtime = key.split("|")
        sessions[key] = SESSIONS[runtime](files[name], threads=threads)
    card = read_card(next(iter(files.values())))
    inputs = {card.input.name: example_images((1, 3, *card.image_size))}
    times: dict[str, list[float]] = {key: [] for key in keys}
    for _ in range(rounds):
        for key, session in sessions.items():
            session.run(inputs)
            started = time.perf_counter()
            session.run(inputs)
            times[key].append(1e3 * (time.perf_counter() - started))
    return times


if __name__ == "__main__":
    main()
