"""An engine that `maenas export` built, timed in the session that predicts with it. Not run on hardware."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.errors import ProfileError
from maenas.profiling.backends import Bridge
from maenas.profiling.backends.layers import LayerTime
from maenas.profiling.backends.model_file import ModelFile, input_shape, random_images

SUFFIX = ".engine"


@dataclass(frozen=True)
class EngineEntry:
    """An engine that is loaded on opening; see `Entry`."""

    key: str
    model: ModelFile
    shape: tuple[int, int, int, int]
    bridge: Bridge

    @contextmanager
    def open(self) -> Iterator[EngineRun]:
        """Load it."""
        session = self.bridge("tensorrt_session").TensorRtSession(self.model.path)
        try:
            images = random_images(self.shape, self.model.input_dtype)
            yield EngineRun(session, {self.model.input_name: images})
        finally:
            session.close()


@dataclass
class EngineRun:
    """A loaded engine; see `OpenEntry`."""

    session: Any
    inputs: dict[str, Any]

    def run(self) -> float:
        """One inference, copies to the GPU and back included."""
        started = time.perf_counter()
        self.session.run(self.inputs)
        return time.perf_counter() - started

    def discard(self) -> None:
        """Nothing is kept of runs."""

    def layers(self) -> tuple[LayerTime, ...] | None:
        """None: whole engines are timed."""
        return None


def open_engine(
    path: Path,
    *,
    key: str,
    precision: str,
    batch: int,
    image_size: tuple[int, int] | None,
    bridge: Bridge | None,
) -> EngineEntry:
    """An engine whose files, machine and arithmetic were checked as `maenas export` does it.

    Args:
        path: With its card beside it.
        key: Names the entry.
        precision: That it is said to run in.
        batch: Images per run.
        image_size: (height, width) where its sides are free; None: those it was optimised for.
        bridge: To the package `detector`.

    Raises:
        ProfileError: It was built in another precision, does not run in the one it was built in, or takes another batch
            or size.
        MaenasError: It has no card, was changed, or was built for another GPU or version of TensorRT.
    """
    if bridge is None:
        raise ProfileError(f"{path}: is a TensorRT engine, which needs the package detector; expected an ONNX file")
    files = bridge("artifact_files")
    card = files.read_card(path)
    files.check_files(path, card)
    if card.precision != precision:
        raise ProfileError(f"{path}: was built in {card.precision}, but the precision is {precision}")
    dims = tuple("" if length is None else length for length in card.input.shape)
    model = ModelFile(path, (), card.input.name, card.input.dtype, dims, {}, None)
    shape = input_shape(model, batch=batch, image_size=image_size or card.image_size)
    (proof,) = bridge("export_precision").prove_precision(path)
    if complaint := proof.complaint():
        raise ProfileError(f"{path}: {complaint}")
    return EngineEntry(key, model, shape, bridge)
