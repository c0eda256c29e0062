"""Exported files in the runtimes that execute them; torch is not needed.

Tensor letters: B images, P points of all levels, C classes, K = rows per image of the nms form.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maenas.errors import MaenasError
from maenas.extras import openvino_core, require

from .artifact import ModelCard
from .artifact_files import check_files, read_card
from .decode import STRIDES, decode
from .errors import ExportError, InputError
from .nms import select_best
from .tensorrt_session import TensorRtSession
from .types import Detections

READERS = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".engine": ("tensorrt",)}
"""Runtimes that open a file, by its suffix; the first that is installed is the default."""

Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """A graph that a runtime has made ready.

    Attributes:
        version: Of the runtime.
        input_names: In the graph's order.
        output_names: In the graph's order.
    """

    version: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        ...


class OnnxRuntimeSession:
    """A graph in ONNX Runtime, on the CPU.

    Args:
        model: File, or the content of an ONNX file.
        threads: CPU threads; by default the runtime's choice.
        precision: Says nothing new: ONNX Runtime takes it from the file, where the CPU has such arithmetic.
    """

    def __init__(self, model: Path | bytes, *, threads: int | None = None, precision: str = "fp32") -> None:
        runtime = require("onnxruntime", extra="onnx", purpose="running an exported model in ONNX Runtime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        # Worker threads would spin on after a run, and take the time of reading and drawing beside it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        source = model if isinstance(model, bytes) else str(model)
        self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.version: str = runtime.__version__
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        return dict(zip(self.output_names, self._session.run(None, dict(inputs)), strict=True))


class OpenVinoSession:
    """A graph in OpenVINO, on the CPU, for low latency.

    Args:
        model: File, or the content of an ONNX file.
        threads: CPU threads; by default the runtime's choice.
        precision: Of what is not quantised: float32 but for `fp16` on a CPU that has such arithmetic.
    """

    def __init__(self, model: Path | bytes, *, threads: int | None = None, precision: str = "fp32") -> None:
        runtime = require("openvino", extra="openvino", purpose="running an exported model in OpenVINO")
        core = openvino_core(purpose="running an exported model in OpenVINO")
        hint = openvino_hint(core, precision)
        settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        source = model if isinstance(model, bytes) else str(model)
        graph = core.read_model(source)
        self._compiled = core.compile_model(graph, "CPU", settings)
        self.version: str = runtime.__version__.partition("-")[0]
        # As in the file: compiling merges tensors, and their names with them.
        self.input_names = tuple(value.any_name for value in graph.inputs)
        self.output_names = tuple(value.any_name for value in graph.outputs)

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        results = self._compiled(dict(inputs))
        # Copied: the runtime writes the next results into the same memory.
        return {name: np.array(results[index]) for index, name in enumerate(self.output_names)}


SESSIONS: dict[str, type[OnnxRuntimeSession] | type[OpenVinoSession] | type[TensorRtSession]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
    "tensorrt": TensorRtSession,
}
"""Runtimes by the name of their package."""


class ExportedDetector:
    """An exported file as a `detector.predict.Predictor`.

    Attributes:
        card: What the file is.
        path: The file.
        runtime: Name in `SESSIONS`.
        class_names: One name per class, in label order.
        image_size: (height, width) that the file was made for.
        batch_limit: Images that it takes at once, or None for any number.
        fixed_size: Whether other image sizes are refused.
        session_version: Of the runtime.
    """

    def __init__(self, path: Path, card: ModelCard, session: Session, runtime: str) -> None:
        missing = [output.name for output in card.outputs if output.name not in session.output_names]
        if missing or session.input_names != (card.input.name,):
            raise ExportError(
                f"{path}: has inputs {', '.join(session.input_names)} and outputs {', '.join(session.output_names)}; "
                f"expected {card.input.name} and {', '.join(output.name for output in card.outputs)}, as its card says"
            )
        self.path, self.card, self.runtime = path, card, runtime
        self.class_names = card.class_names
        self.image_size = card.image_size
        self.batch_limit = card.batch
        self.fixed_size = card.fixed_size
        self.session_version = session.version
        self._session = session

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The file's own outputs by name; see `detector.export.export_onnx` for what they hold.

        Args:
            images: (B, 3, H, W) RGB in 0 ... 255.

        Raises:
            InputError: Another shape than the file takes.
        """
        images = np.ascontiguousarray(images, dtype=np.float32)
        self._check(images.shape)
        try:
            return self._session.run({self.card.input.name: images})
        except MaenasError:
            raise
        except Exception as error:  # every runtime has its own errors, some of them plain RuntimeErrors
            raise ExportError(f"{self.path}: fails in {self.runtime}: {first_line(error)}") from error

    def detect(
        self,
        images: NDArray[np.float32],
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.7,
        max_detections: int = 500,
    ) -> list[Detections]:
        """Detections of a batch.

        A file of the nms form has settings of its own. A higher score threshold and fewer detections are applied to
        what it finds, which gives the same as if they were inside; it cannot find more than its own `max_detections`.

        Args:
            images: (B, 3, H, W) RGB in 0 ... 255.
            score_threshold: Pairs of point and class strictly above it are kept.
            iou_threshold: Of two boxes of one class that overlap more, the better stays.
            max_detections: Kept per image.

        Returns:
            One `Detections` per image in pixels of the input, not clipped, without names.

        Raises:
            InputError: Another shape than the file takes; or, for the nms form, a lower score threshold or another IoU
                threshold than its own.
        """
        if self.card.nms is not None:
            return self._detect_nms(images, score_threshold, iou_threshold, max_detections)
        outputs = self.run(images)
        size = (images.shape[2], images.shape[3])
        if self.card.form == "raw":
            scores, boxes = decode(outputs["cls_logits"], outputs["box_logits"], size, self.card.structure.strides)
        else:
            scores, boxes = outputs["scores"], outputs["boxes"]
        results = []
        for image_scores, image_boxes in zip(scores, boxes, strict=True):
            found = select_best(
                image_scores,
                image_boxes,
                score_threshold=score_threshold,
                iou_threshold=iou_threshold,
                max_detections=max_detections,
            )
            results.append(Detections(*found, image_size=size))
        return results

    def predict(self, source: Any, **options: Any) -> Detections | list[Detections]:  # noqa: ANN401
        """Find objects in an image, a folder, a glob, a list or a video; see `detector.predict.predict`."""
        from .predict import predict

        return predict(self, source, **options)

    def _detect_nms(
        self, images: NDArray[np.float32], score_threshold: float, iou_threshold: float, max_detections: int
    ) -> list[Detections]:
        own = self.card.nms
        assert own is not None
        if score_threshold < own.score_threshold:
            raise InputError(
                f"score_threshold is {score_threshold:g}; expected at least {own.score_threshold:g}, which is inside "
                f"{self.path.name}: export with a lower one, or without NMS"
            )
        if iou_threshold != own.iou_threshold:
            raise InputError(
                f"iou_threshold is {iou_threshold:g}; expected {own.iou_threshold:g}, which is inside "
                f"{self.path.name}: export with that one, or without NMS"
            )
        outputs = self.run(images)
        results = []
        for index, count in enumerate(outputs["num_dets"][:, 0]):
            scores = outputs["scores"][index, :count]
            kept = np.flatnonzero(scores > score_threshold)[:max_detections]
            boxes, labels = outputs["boxes"][index][kept], outputs["classes"][index][kept]
            results.append(Detections(boxes, scores[kept], labels.astype(np.int64), (images.shape[2], images.shape[3])))
        return results

    def _check(self, shape: tuple[int, ...]) -> None:
        wanted = self.card.input.shape
        if len(shape) != 4 or shape[1] != wanted[1] or not shape[0]:
            raise InputError(f"images have shape {shape}; expected (B, {wanted[1]}, H, W)")
        if wanted[0] is not None and shape[0] != wanted[0]:
            raise InputError(
                f"the batch has {shape[0]} images; expected {wanted[0]}, which {self.path.name} is made for"
            )
        if self.fixed_size and shape[2:] != wanted[2:]:
            made_for = f"{wanted[2]}x{wanted[3]}, which {self.path.name} is made for"
            raise InputError(f"images are {shape[2]}x{shape[3]}; expected {made_for}")
        coarsest = STRIDES[-1]
        for name, side in (("height", shape[2]), ("width", shape[3])):
            if side % coarsest or side < coarsest:
                raise InputError(f"image {name} is {side}; expected a multiple of {coarsest}, at least {coarsest}")


def load_exported(path: str | Path, *, runtime: str | None = None, threads: int | None = None) -> ExportedDetector:
    """Open an exported file.

    Args:
        path: An .onnx, .xml (OpenVINO) or .engine (TensorRT) file with its card beside it, or a folder that holds one.
        runtime: Name in `SESSIONS`; by default ONNX Runtime for .onnx where it is installed, else OpenVINO.
        threads: CPU threads; by default the runtime's choice.

    Raises:
        ExportError: No such file, no card beside it, changed since it was exported, contradicted by its card, an engine
            of another machine, or refused by the runtime.
        GpuError: An engine on a machine without a working GPU.
        InputError: An unknown runtime, one that does not read such files, or fewer than 1 thread.
        MissingExtraError: The runtime is not installed.
    """
    if runtime is not None and runtime not in SESSIONS:
        raise InputError(f"runtime is {runtime!r}; expected one of {', '.join(SESSIONS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected a whole number, 1 or more")
    path = _model_file(Path(path))
    card = read_card(path)
    check_files(path, card)
    name = runtime or _default_runtime(path)
    if name not in READERS[path.suffix]:
        raise InputError(
            f"{path}: runtime is {name!r}; expected {' or '.join(READERS[path.suffix])} for {path.suffix} files"
        )
    try:
        session = SESSIONS[name](path, threads=threads, precision=card.precision)
    except MaenasError:
        raise
    except Exception as error:  # every runtime has its own errors, some of them plain RuntimeErrors
        raise ExportError(f"{path}: cannot be opened in {name}: {first_line(error)}") from error
    return ExportedDetector(path, card, session, name)


def openvino_hint(core: Any, precision: str) -> str:  # noqa: ANN401
    """The arithmetic to ask OpenVINO's CPU plugin for; without asking it may round float32 networks to bfloat16."""
    return "f16" if precision == "fp16" and "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def is_installed(runtime: str) -> bool:
    """Whether the package of a runtime is there."""
    try:
        return importlib.util.find_spec(runtime) is not None
    except ValueError:  # a module without a specification, such as a test's stand-in
        return False


def first_line(error: BaseException) -> str:
    """The first line of a runtime's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _default_runtime(path: Path) -> str:
    readers = READERS[path.suffix]
    return next((name for name in readers if is_installed(name)), readers[0])


def _model_file(path: Path) -> Path:
    """The exported file that a path names, itself or as the folder around it."""
    if path.is_dir():
        for suffix in READERS:
            if (path / f"model{suffix}").is_file():
                return path / f"model{suffix}"
        found = sorted(file for file in path.iterdir() if file.suffix in READERS)
        if len(found) != 1:
            names = "the exported files " + ", ".join(file.name for file in found) if found else "no exported file"
            below = sorted(file.parent.name for suffix in READERS for file in path.glob(f"*/model{suffix}"))
            or_below = f", or one of its folders {', '.join(below)}" if below and not found else ""
            raise ExportError(f"{path}: holds {names}; expected model.onnx, or exactly one{or_below}")
        return found[0]
    if path.suffix not in READERS:
        raise ExportError(f"{path}: suffix is {path.suffix!r}; expected {' or '.join(READERS)}, or a folder with one")
    return path
