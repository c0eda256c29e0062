"""Predicting from an exported artifact with numpy and one runtime: neither torch nor a training package is needed.

`pip install maenas[onnx]` or `maenas[openvino]` is enough. Videos and cameras need OpenCV (`maenas[video]`) too.

    from detector.runtime import load

    found = load("exported/model.json").predict("photo.jpg")
"""

from __future__ import annotations

from pathlib import Path

from .artifact import FORMATS
from .artifact_files import read_card
from .predict import Prediction, predict_stream
from .runtimes import ExportedDetector, load_exported
from .types import Detection, Detections

__all__ = ["Detection", "Detections", "ExportedDetector", "Prediction", "load", "predict_stream"]


def load(path: str | Path, *, runtime: str | None = None, threads: int | None = None) -> ExportedDetector:
    """Open an exported artifact.

    Args:
        path: Its card (`model.json`), its main file (.onnx, .xml, .engine), or the folder that holds them.
        runtime: `onnxruntime`, `openvino` or `tensorrt`; by default one that is installed and reads the file.
        threads: CPU threads; by default the runtime's choice.

    Returns:
        What finds objects: `predict` takes images, folders and videos, `detect` arrays as the network takes them.

    Raises:
        ExportError: There is no card, it is malformed, a file of the artifact is missing or was changed, or the runtime
            refuses it.
        InputError: An unknown runtime, or one that does not read the file.
        MissingExtraError: The runtime is not installed.
    """
    path = Path(path)
    if path.suffix == ".json":
        path = path.with_suffix(FORMATS[read_card(path).format])
    return load_exported(path, runtime=runtime, threads=threads)
