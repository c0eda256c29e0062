"""What int8 costs in AP and brings in time, per way of quantising; what is made once is not made again."""

from __future__ import annotations

import argparse
import csv
import json
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
from detector.load import load_detector
from detector.quantise import QuantiseSettings, make_quantiser
from detector.quantise_layers import find_layers, share_int8
from detector.quantise_onnx import calibrate
from detector.quantise_sensitivity import measure_sensitivity
from detector.reparam import deploy
from maenas.profiling.backends import Entry, open_backend
from maenas.profiling.backends.reference import write_reference
from maenas.profiling.harness import run_campaign
from maenas.profiling.host import describe_host, pin
from maenas.profiling.measurement import Settings, summarize

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
    """As for TensorRT, run in the runtimes of ONNX."""
    return make_quantiser()(replace(request, format="tensorrt"))


def variants(out: Path) -> dict[str, Variant]:
    """All of them by name."""

    def free(format: str, quantiser: Quantiser) -> Variant:
        return Variant(format, quantiser=quantiser)

    gated = make_quantiser(QuantiseSettings(sensitivity=out))
    return {
        "onnx fp32": Variant("onnx", "fp32"),
        "onnx int8": Variant("onnx", quantiser=gated, max_drop=GATE),
        "openvino fp32": Variant("openvino", "fp32"),
        "openvino int8": Variant("openvino", quantiser=make_quantiser(), max_drop=GATE),
        "onnx int8, 7 bits": free("onnx", make_quantiser(QuantiseSettings(seven_bits=True))),
        "onnx int8, 5 layers float": free("onnx", returned(5)),
        "onnx int8, signed (TensorRT)": free("onnx", signed),
        "onnx int8, entropy": free("onnx", make_quantiser(QuantiseSettings(method="entropy"))),
        "onnx int8, percentile": free("onnx", make_quantiser(QuantiseSettings(method="percentile"))),
    }


def main() -> None:
    """Make what is missing, then write results.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, help="annotated images: calibrates with train, measures on val")
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts, kept for the next call")
    parser.add_argument("--no-times", action="store_true", help="artifacts and AP only")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--force", action="store_true", help="keep disturbed measurements, marked")
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
    return [
        {
            "artifact": name,
            "runtime": entry["runtime"],
            "ap": round(100 * entry["ap"], 2),
            "ap_drop": round(100 * (entry["torch_ap"] - entry["ap"]), 2),
            "ap50": round(100 * entry["ap50"], 2),
            "layers_float": len(details.get("higher_precision", ())),
            "share_macs_int8": round(details.get("share_macs", 0.0), 3),
            "size_mb": round(sum(file.size_bytes for file in card.files) / 1e6, 2),
        }
        for entry in card.parity["accuracy"]
    ]


def add_times(
    rows: list[dict[str, object]], files: dict[str, Path], threads: int, arguments: argparse.Namespace
) -> None:
    """Medians and their ratio to fp32 of the same runtime, interleaved in three passes."""
    pin(threads)
    backends = {
        (name, precision): open_backend(name, threads=threads, precision=precision)
        for name in ("onnxruntime", "openvino")
        for precision in ("fp32", "int8")
    }
    reference = arguments.work / "reference.onnx"
    write_reference(reference)
    entries: list[Entry] = [
        backends[str(row["runtime"]), "fp32" if "fp32" in str(row["artifact"]) else "int8"].entry(
            files[str(row["artifact"])], key=f"{row['artifact']}|{row['runtime']}", layers=False
        )
        for row in rows
    ]
    stats = summarize(
        run_campaign(
            entries,
            settings=Settings(min_seconds=0.5, min_runs=20, force=arguments.force),
            journal=arguments.work / f"times-{threads}.jsonl",
            reference=backends["openvino", "fp32"].entry(reference, key="reference", layers=False),
            progress=lambda done, total, left, key: print(f"{done}/{total} {key}", flush=True),
            threads=threads,
        )
    )
    for row in rows:
        key = f"{row['artifact']}|{row['runtime']}"
        base = stats.get(f"{'onnx' if row['runtime'] == 'onnxruntime' else 'openvino'} fp32|{row['runtime']}")
        if key not in stats:
            continue
        row[f"median_ms_{threads}"] = round(stats[key].ms_median, 2)
        row[f"p25_ms_{threads}"] = round(stats[key].ms_p25, 2)
        row[f"spread_{threads}"] = round(stats[key].rel_spread, 3)
        row[f"undisturbed_{threads}"] = stats[key].undisturbed
        row[f"speedup_{threads}"] = "" if base is None else round(base.ms_median / stats[key].ms_median, 2)


if __name__ == "__main__":
    main()
