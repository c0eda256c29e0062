"""One way to open whatever holds a detector: a checkpoint, an exported file, or a bare structure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maenas.structure import Structure, load_structure

from .errors import CheckpointError, InputError, first_line

if TYPE_CHECKING:
    from .model import Detector
    from .predict import Predictor

EXPORTED = (".onnx", ".xml", ".engine")
RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt")


def load_detector(source: str | Path | Structure) -> tuple[Detector, bool]:
    """A torch network in evaluation mode, and whether its weights were loaded (or are random).

    Args:
        source: A checkpoint (.safetensors), a structure file (.json), or a structure.

    Raises:
        CheckpointError: The file is no checkpoint of ours.
        StructureError: The file does not describe a detector.
        InputError: The suffix is neither.
    """
    if isinstance(source, Structure):
        return _initial(source), False
    path = Path(source)
    if path.suffix == ".json":
        if model := _described(path):
            raise InputError(f"{path}: describes the exported file beside it; expected a structure, or {model}")
        return _initial(load_structure(path)), False
    if path.suffix == ".pth":
        raise CheckpointError(
            f"{path}: an official checkpoint names no structure; convert it first: "
            f"maenas convert weights {path} {path.with_suffix('.safetensors').name} --structure damo-yolo-t"
        )
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: suffix is {path.suffix!r}; expected .safetensors (a checkpoint) or .json (a structure)"
        )
    from .model import Detector  # after what needs no torch to be refused

    return Detector.from_checkpoint(path), True


def _initial(structure: Structure) -> Detector:
    """A network with the initial weights of a training run, the same each time, in evaluation mode."""
    import torch

    from .model import Detector

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Detector(structure).eval()


def _described(card: Path) -> Path | None:
    """The exported file that lies beside a card; None where a .json file is something else."""
    return next((file for file in map(card.with_suffix, EXPORTED) if file.exists()), None)


def load_predictor(
    source: str | Path | Structure,
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Predictor:
    """Anything that finds objects: a torch network in its deployed form, or an exported file in its runtime.

    Args:
        source: As `load_detector` takes, an exported .onnx, .xml or .engine, its card, or the folder of an export.
        runtime: `torch`, `onnxruntime`, `openvino` or `tensorrt`; by default the one that fits the source.
        device: Torch device, such as `cuda`; only for torch.
        threads: CPU threads; by default the runtime's own choice.

    Raises:
        InputError: The runtime or the device cannot be used for the source.
        CheckpointError: A checkpoint that cannot be used.
        ExportError: An exported file that cannot be used.
        MissingExtraError: The runtime's package is not installed.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise InputError(f"runtime is {runtime!r}; expected one of {', '.join(RUNTIMES)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected a whole number, 1 or more")
    if not isinstance(source, Structure) and Path(source).suffix == ".json":
        source = _described(Path(source)) or source
    exported = not isinstance(source, Structure) and (Path(source).suffix in EXPORTED or Path(source).is_dir())
    if exported:
        if runtime == "torch" or device is not None:
            raise InputError(f"{source}: is an exported file; expected a runtime that reads it and no device")
        from .runtimes import load_exported

        return load_exported(Path(str(source)), runtime=runtime, threads=threads)
    if runtime not in (None, "torch"):
        raise InputError(f"runtime is {runtime!r}; expected torch, or an exported model: maenas export {source}")
    network = load_detector(source)[0]
    import torch

    from .reparam import deploy

    if threads is not None:
        torch.set_num_threads(threads)
    model = deploy(network)
    try:
        return model.to(device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device is {device!r}; cannot be used ({first_line(error)})") from error
