"""What an artifact loses in AP on annotated images, and the images that a quantiser calibrates with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maenas.files import write_text_atomically

from .artifact import ModelCard
from .artifact_files import card_path, read_card, record_file
from .data.dataset import Dataset
from .evaluate import MAX_DETECTIONS, default_thresholds, evaluate
from .evaluation_set import EvaluationSet
from .images import read_image, to_input
from .predict import Predictor
from .runtimes import READERS, ExportedDetector, Session, is_installed, load_exported

if TYPE_CHECKING:
    from .export import ExportChecks
    from .export_graph import Graph
    from .export_int8 import QuantiseRequest

MAX_DROPS = {"fp32": 0.001, "fp16": 0.003, "int8": 0.005}
"""Largest loss of AP against torch (0 ... 1) per precision, unless another one is asked for.

In fp32 only detections whose score or overlap lies on a threshold can flip; half precision moves a few more; 0.5 points
are what published int8 detectors lose.
"""

PHOTOGRAPHS = 4
"""Images that are compared point by point with torch."""


@dataclass(frozen=True, slots=True, eq=False)
class ExportData:
    """Annotated images for parity, AP and calibration.

    Attributes:
        measured: Images that AP is measured on.
        calibration: Images that a quantiser sees.
        batch_size: Images at once while AP is measured, where their number is free.
    """

    measured: Dataset
    calibration: Dataset
    batch_size: int = 8
    sets: dict[tuple[int, int], EvaluationSet] = field(default_factory=dict, repr=False)

    def pictures(self, image_size: tuple[int, int]) -> EvaluationSet:
        """The measured images at one size, read once."""
        return self.sets.setdefault(image_size, EvaluationSet(self.measured, image_size))

    def photographs(self, image_size: tuple[int, int]) -> tuple[NDArray[np.float32], ...]:
        """The first measured images, each (3, H, W)."""
        return tuple(
            to_input([read_image(record.path)], image_size)[0] for record in self.measured.images[:PHOTOGRAPHS]
        )

    def calibration_images(self, image_size: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
        """Each (1, 3, H, W), as for prediction."""
        for record in self.calibration.images:
            yield to_input([read_image(record.path)], image_size)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """AP of an artifact beside torch's, on the same images with the same thresholds.

    Attributes:
        runtime: That the artifact ran in.
        data: Name of the data set.
        num_images: How many were measured.
        torch_ap: AP of the network in torch, 0 ... 1.
        ap: Of the artifact.
        torch_ap50: AP at an overlap of 0.5, in torch.
        ap50: Of the artifact.
        max_drop: How much `ap` may be below `torch_ap`.
    """

    runtime: str
    data: str
    num_images: int
    torch_ap: float
    ap: float
    torch_ap50: float
    ap50: float
    max_drop: float

    @property
    def passed(self) -> bool:
        """Whether no more AP is lost than may be."""
        return self.torch_ap - self.ap <= self.max_drop

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {**asdict(self), "passed": self.passed}

    def complaint(self) -> str:
        """One line about what is lost."""
        return (
            f"AP in {self.runtime} is {100 * self.ap:.2f}, {100 * (self.torch_ap - self.ap):.2f} below torch's "
            f"{100 * self.torch_ap:.2f} on {self.num_images} images of {self.data}; expected to lose at most "
            f"{100 * self.max_drop:.2f}"
        )


def check_accuracy(
    path: Path, reference: tuple[float, float], data: ExportData, *, max_drop: float | None = None
) -> tuple[Accuracy, ...]:
    """Measure AP in every installed runtime that reads an artifact.

    Args:
        path: Main file of an artifact with its card.
        reference: AP and AP50 of the network in torch, as `measure` gives them.
        data: What to measure on.
        max_drop: Largest loss; None: that of the artifact's precision.

    Raises:
        DataError: The data cannot be measured on.
        ExportError: The artifact cannot be used.
    """
    card = read_card(path)
    limit = MAX_DROPS[card.precision] if max_drop is None else max_drop
    found = []
    for runtime in READERS[path.suffix]:
        if is_installed(runtime):
            metrics = measure(load_exported(path, runtime=runtime), card, data)
            found.append(
                Accuracy(
                    runtime=runtime,
                    data=data.measured.name,
                    num_images=len(data.measured.images),
                    torch_ap=reference[0],
                    ap=metrics[0],
                    torch_ap50=reference[1],
                    ap50=metrics[1],
                    max_drop=limit,
                )
            )
    return tuple(found)


def measure(predictor: Predictor, card: ModelCard, data: ExportData) -> tuple[float, float]:
    """AP and AP50 (0 ... 1) with the settings that are inside an artifact, if there are any: torch gets the same ones.

    Raises:
        DataError: The data cannot be measured on.
    """
    nms = card.nms
    score, iou = default_thresholds(predictor) if nms is None else (nms.score_threshold, nms.iou_threshold)
    limit = MAX_DETECTIONS if nms is None else nms.max_detections
    evaluation = evaluate(
        predictor,
        data.pictures(card.image_size),
        score_threshold=score,
        iou_threshold=iou,
        max_detections=limit,
        batch_size=data.batch_size,
    )
    ap, ap50 = evaluation.metrics.ap, evaluation.metrics.ap50
    # A data set without boxes was refused.
    assert ap is not None and ap50 is not None
    return ap, ap50


def quantise_request(
    graph: Graph,
    reference: tuple[float, float],
    checks: ExportChecks,
    *,
    name: str,
    scratch: Path,
    progress: Callable[[str], None],
) -> QuantiseRequest:
    """What a quantiser is given.

    Args:
        graph: The network in fp32, checked.
        reference: AP and AP50 of the network in torch.
        checks: With data.
        name: Of the format.
        scratch: Folder for its files.
        progress: Called with one line now and then.
    """
    from .export_int8 import QuantiseRequest

    data, card = checks.data, graph.card
    assert data is not None
    size = card.image_size
    source = scratch / "fp32.onnx"
    source.write_bytes(graph.proto.SerializeToString())
    folder = scratch / "quantised"
    folder.mkdir()

    def evaluate_file(path: Path) -> float:
        kind = "openvino" if path.suffix == ".xml" else "onnx"
        files = [path, *([path.with_suffix(".bin")] if kind == "openvino" else [])]
        candidate = replace(card, format=kind, precision="int8", files=tuple(record_file(file) for file in files))
        write_text_atomically(card_path(path), json.dumps(candidate.to_dict()))
        # As it will run. What is made for TensorRT is tried in ONNX Runtime, which takes any numbers.
        runtimes = READERS[path.suffix] if kind == name else ("onnxruntime",)
        found = [load_exported(path, runtime=runtime) for runtime in runtimes if is_installed(runtime)]
        return min(measure(predictor, candidate, data)[0] for predictor in found)

    def evaluate_session(session: Session) -> float:
        return measure(ExportedDetector(source, card, session, session.version), card, data)[0]

    return QuantiseRequest(
        onnx_path=source,
        card=card,
        format=name,
        folder=folder,
        images=lambda: data.calibration_images(size),
        num_images=len(data.calibration.images),
        evaluate=evaluate_file,
        evaluate_session=evaluate_session,
        reference_ap=reference[0],
        max_drop=MAX_DROPS["int8"] if checks.max_drop is None else checks.max_drop,
        progress=progress,
    )
