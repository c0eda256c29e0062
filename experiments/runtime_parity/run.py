"""Do ONNX Runtime and OpenVINO find the same objects as torch? Boxes and scores on photographs, network by network."""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from detector.boxes import pairwise_iou
from detector.export import export_onnx
from detector.images import read_image, to_input
from detector.model import Detector
from detector.reparam import deploy
from detector.runtimes import load_exported
from detector.types import Detections
from maenas.budgets import Budget
from maenas.published import load_published
from maenas.search import search
from maenas.structure import Structure

PUBLISHED = ("t", "s", "m", "ns", "nm")
SEARCHED = {"searched-res-3ms": ("res", "t4", 3.0), "searched-mob-5ms": ("mob", "intel-8163", 5.0)}
FORMS = ("decoded", "nms")
RUNTIMES = ("onnxruntime", "openvino")
SCORE_THRESHOLD, IOU_THRESHOLD, MAX_DETECTIONS = 0.3, 0.7, 100
BOX_LIMIT, SCORE_LIMIT = 0.05, 1e-3
POINTS_PER_PHOTO = 60
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Comparison:
    """Two sets of detections of the same images; a tie is a detection that a threshold or a cap may drop either way."""

    matched: int
    ties: int
    unmatched: int
    max_box_px: float
    max_score: float


def main() -> None:
    """Compare every network, form and runtime, and write results.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", help="folders of photographs")
    parser.add_argument("--per-folder", type=int, default=4, help="photographs of each folder")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    paths = [path for folder in arguments.photos for path in sorted(folder.glob("*.jpg"))[: arguments.per_folder]]
    rows = []
    for name, structure in structures().items():
        images = to_input([read_image(path) for path in paths], structure.image_size)
        rows += compare_network(name, structure, images)
    with arguments.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    conditions = {
        "photos": len(paths),
        "thresholds": {"score": SCORE_THRESHOLD, "iou": IOU_THRESHOLD, "max_detections": MAX_DETECTIONS},
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "openvino")},
        "machine": platform.machine(),
        "limits": {"box_px": BOX_LIMIT, "score": SCORE_LIMIT},
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(conditions, indent=2) + "\n", encoding="utf-8")
    failed = [
        row for row in rows if row["unmatched"] or row["max_box_px"] >= BOX_LIMIT or row["max_score"] >= SCORE_LIMIT
    ]
    print(f"{len(rows)} comparisons, {len(failed)} beyond the limits; written: {arguments.out}")
    raise SystemExit(bool(failed))


def structures() -> dict[str, Structure]:
    """Published networks and two that searches find."""
    found = {f"damo-yolo-{name}": load_published(f"damo-yolo-{name}") for name in PUBLISHED}
    for name, (space, device, limit) in SEARCHED.items():
        found[name] = search(space, budgets=[Budget("latency_ms", limit)], device=device, top_k=1).best.structure
    return found


def compare_network(name: str, structure: Structure, images: np.ndarray) -> list[dict[str, object]]:
    """All forms and runtimes of one network against torch."""
    # These weights are made for inputs of unit variance; trained ones take 0 ... 255.
    images = ((images - images.mean()) / images.std()).astype(np.float32)
    model = deploy(synthetic(structure, images))
    options = {"score_threshold": SCORE_THRESHOLD, "iou_threshold": IOU_THRESHOLD, "max_detections": MAX_DETECTIONS}
    expected = [found for image in images for found in model.detect(image[None], **options)]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            report = export_onnx(
                model,
                Path(folder) / f"{form}.onnx",
                class_names=model.class_names,
                outputs=form,
                **options,  # type: ignore[arg-type]
            )
            for runtime in RUNTIMES:
                exported = load_exported(report.path, runtime=runtime)
                found = [each for image in images for each in exported.detect(image[None], **options)]
                result = compare(expected, found)
                rows.append(
                    {
                        "network": name,
                        "form": form,
                        "runtime": runtime,
                        "detections": sum(map(len, expected)),
                        "matched": result.matched,
                        "ties": result.ties,
                        "unmatched": result.unmatched,
                        "max_box_px": float(f"{result.max_box_px:.3g}"),
                        "max_score": float(f"{result.max_score:.3g}"),
                    }
                )
                print(*rows[-1].values(), flush=True)
    return rows


def synthetic(structure: Structure, images: np.ndarray) -> Detector:
    """A network with random weights and signals of order one; some 60 points a photo pass the threshold."""
    model = Detector(structure).eval()
    with torch.no_grad():
        low, high = 0.4, 2.5
        for _ in range(6):
            gain = math.sqrt(low * high)
            fill(model, gain)
            # The liveliest photograph counts: where signals explode, rounding does too, in torch as elsewhere.
            spread = max(
                float(level.std()) for image in images for level in model.features(torch.from_numpy(image[None]))
            )
            low, high = (gain, high) if spread < 1.0 else (low, gain)
        logits = torch.cat([model(torch.from_numpy(image[None])).cls_logits.flatten() for image in images])
        limit = logits.topk(POINTS_PER_PHOTO * len(images)).values[-1]
        shift = math.log(SCORE_THRESHOLD / (1 - SCORE_THRESHOLD)) - float(limit)
        for conv in model.head.class_convs:
            conv.bias.add_(shift)
    return model


def fill(model: Detector, gain: float) -> None:
    """Seeded weights; `gain` is the variance of a convolution's weights times its fan-in."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if value.dim() == 4:
            spread = 4.0 if name.startswith("head.") else gain
            value.normal_(0.0, math.sqrt(spread / value[0].numel()))
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0.0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("norm.weight"):
            value.uniform_(0.8, 1.2)


def compare(expected: list[Detections], found: list[Detections]) -> Comparison:
    """Match by label and overlap; what rounding alone may drop is a tie."""
    matched = ties = unmatched = 0
    max_box = max_score = 0.0
    for one, other in zip(expected, found, strict=True):
        left = set(range(len(other)))
        overlaps = pairwise_iou(torch.from_numpy(one.boxes), torch.from_numpy(other.boxes)).numpy()
        for index in range(len(one)):
            partners = [j for j in left if one.labels[index] == other.labels[j] and overlaps[index, j] > 0.9]
            if partners:
                partner = max(partners, key=lambda j: overlaps[index, j] - abs(one.scores[index] - other.scores[j]))
                left.remove(partner)
                matched += 1
                max_box = max(max_box, float(np.abs(one.boxes[index] - other.boxes[partner]).max()))
                max_score = max(max_score, abs(float(one.scores[index] - other.scores[partner])))
            elif is_tie(one, index):
                ties += 1
            else:
                unmatched += 1
        for index in left:
            if is_tie(other, index):
                ties += 1
            else:
                unmatched += 1
    return Comparison(matched, ties, unmatched, max_box, max_score)


def is_tie(found: Detections, index: int) -> bool:
    """Whether rounding alone can decide if a detection is kept."""
    score = float(found.scores[index])
    at_cap = len(found) == MAX_DETECTIONS and score - float(found.scores.min()) < SCORE_LIMIT
    same = np.flatnonzero((found.labels == found.labels[index]) & (np.arange(len(found)) != index))
    overlaps = pairwise_iou(torch.from_numpy(found.boxes[[index]]), torch.from_numpy(found.boxes[same])).numpy()
    return at_cap or score - SCORE_THRESHOLD < SCORE_LIMIT or bool((np.abs(overlaps - IOU_THRESHOLD) < 0.01).any())


if __name__ == "__main__":
    main()
