"""How fast are the deployed networks beside others of their kind? Medians and ratios on one and two cores."""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from detector.export import export_onnx
from detector.model import Detector
from detector.reparam import deploy
from detector.standardise import random_detector
from maenas.profiling.backends import Entry, open_backend
from maenas.profiling.backends.reference import write_reference
from maenas.profiling.harness import run_campaign
from maenas.profiling.host import describe_host, pin
from maenas.profiling.measurement import Settings, summarize
from maenas.published import load_published

OURS = {"damo-yolo-t": 640, "damo-yolo-ns": 416, "damo-yolo-nm": 416}
HERE = Path(__file__).resolve().parent


@dataclass
class TorchRun:
    """A torch network that is timed like those of the other runtimes."""

    forward: Callable[[torch.Tensor], object]
    images: torch.Tensor
    runs: list[float] = field(default_factory=list)

    def run(self) -> float:
        """One inference; seconds."""
        started = time.perf_counter()
        with torch.inference_mode():
            self.forward(self.images)
        return time.perf_counter() - started

    def discard(self) -> None:
        """Nothing is kept between runs."""

    def layers(self) -> None:
        """Not asked for."""


@dataclass(frozen=True)
class TorchEntry:
    """Builds a network when its turn comes."""

    key: str
    build: Callable[[], Callable[[torch.Tensor], object]]
    side: int
    threads: int

    @contextmanager
    def open(self) -> Iterator[TorchRun]:
        """The network on the same made-up image each time."""
        torch.set_num_threads(self.threads)
        images = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (1, 3, self.side, self.side))).float()
        yield TorchRun(self.build(), images)


class Ssdlite(nn.Module):
    """Torchvision's SSDLite up to its raw class and box outputs: no resizing, decoding or suppression."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=81).eval()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) in 0 ... 255 to box offsets and class logits."""
        out = self.head(list(self.backbone(images / 127.5 - 1.0).values()))
        return out["bbox_regression"], out["cls_logits"]


def main() -> None:
    """Time everything and write results.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--yolo", type=Path, nargs="*", default=[], help="yolo11n-416.onnx, yolo11n-640.onnx")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--force", action="store_true", help="keep disturbed measurements, marked")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files, torch_models = prepare(Path(folder))
        files |= {path.stem: path for path in arguments.yolo}
        reference = Path(folder) / "reference.onnx"
        write_reference(reference)
        for threads in (2, 1):
            pin(threads)
            backends = {name: open_backend(name, threads=threads) for name in ("onnxruntime", "openvino")}
            entries: list[Entry] = [
                backend.entry(path, key=f"{name}|{backend.name}", layers=False)
                for name, path in files.items()
                for backend in backends.values()
            ]
            entries += [
                TorchEntry(f"{name}|torch", build, int(name.rsplit("-", 1)[1].split()[0]), threads)
                for name, build in torch_models.items()
            ]
            records = run_campaign(
                entries,
                settings=Settings(passes=arguments.passes, min_seconds=2.0, min_runs=10, force=arguments.force),
                journal=Path(folder) / f"journal-{threads}.jsonl",
                reference=backends["openvino"].entry(reference, key="reference", layers=False),
                progress=lambda done, total, left, key: print(f"{done}/{total} {key}", flush=True),
                threads=threads,
            )
            rows += table(summarize(records), threads)
    with arguments.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    conditions = {
        "host": describe_host(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "onnxruntime", "openvino")},
        "batch": 1,
        "precision": "fp32",
        "passes": arguments.passes,
    }
    arguments.out.with_name("conditions.json").write_text(json.dumps(conditions, indent=2) + "\n", encoding="utf-8")


def prepare(folder: Path) -> tuple[dict[str, Path], dict[str, Callable[[], Callable[[torch.Tensor], object]]]]:
    """ONNX files by name, and builders of torch networks by name; names end in the image side."""
    files: dict[str, Path] = {}
    builders: dict[str, Callable[[], Callable[[torch.Tensor], object]]] = {}
    for name, side in OURS.items():
        model = random_detector(load_published(name))
        label = f"{name}-{side}"
        files[label] = folder / f"{label}.onnx"
        export_onnx(deploy(model), files[label], class_names=model.class_names, verify=False)
        builders[f"{label} unfused"] = lambda model=model: decoding(model)
        builders[label] = lambda model=model: decoding(deploy(model))
    for side in (416, 640):
        label = f"ssdlite-mobilenet-v3-large-{side}"
        torch.manual_seed(0)
        model = Ssdlite().eval()
        files[label] = folder / f"{label}.onnx"
        program = torch.onnx.export(model, (torch.zeros(1, 3, side, side),), dynamo=True, input_names=["images"])
        assert program is not None
        program.save(str(files[label]))
        builders[label] = lambda model=model: model
    return files, builders


def decoding(model: Detector) -> Callable[[torch.Tensor], object]:
    """Probabilities and boxes, as the exported files give them."""
    return lambda images: model.decode(model(images))


def table(stats: dict, threads: int) -> list[dict[str, object]]:
    """Lines with ratios to YOLO11n of the same size, runtime and threads, and of unfused to fused."""
    rows = []
    for key, each in stats.items():
        name, runtime = key.split("|")
        side = name.rsplit("-", 1)[1].split()[0]
        rival = stats.get(f"yolo11n-{side}|{runtime}")
        unfused = stats.get(f"{name} unfused|{runtime}")
        rows.append(
            {
                "network": name,
                "image_side": side.split()[0],
                "runtime": runtime,
                "threads": threads,
                "p25_ms": round(each.ms_p25, 2),
                "median_ms": round(each.ms_median, 2),
                "min_ms": round(each.ms_min, 2),
                "spread_of_passes": round(each.rel_spread, 3),
                "undisturbed": each.undisturbed,
                "median_over_yolo11n": "" if rival is None else round(each.ms_median / rival.ms_median, 3),
                "min_over_yolo11n": "" if rival is None else round(each.ms_min / rival.ms_min, 3),
                "fused_speedup": "" if unfused is None else round(unfused.ms_median / each.ms_median, 3),
            }
        )
    return rows


if __name__ == "__main__":
    main()
