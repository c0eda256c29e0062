"""What `maenas benchmark` times: files, and each of them in every runtime with every number of threads and images."""

from __future__ import annotations

import argparse
import itertools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from maenas.profiling.backends import Backend, Entry, OpenEntry

ENGINE = ".engine"
SUFFIXES = (".onnx", ".xml", ENGINE)
FOREIGN = "foreign"


@dataclass(frozen=True)
class Model:
    """A file to be timed.

    Attributes:
        label: As it is shown.
        path: The file.
        form: `raw`, `decoded` or `nms` for exports of ours, else `foreign`.
        precision: Where the file alone decides about it: `int8` of quantised files, that of an engine; else None.
        random_weights: Whether it was made of a structure alone, and has no AP worth measuring.
        digest: Of the structure, for exports of ours.
        sha256: Of the file.
        size_bytes: Of the file, for OpenVINO's of both.
    """

    label: str
    path: Path
    form: str
    precision: str | None
    random_weights: bool
    digest: str | None
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Line:
    """One row of the table: a file in a runtime with so many threads and images."""

    model: Model
    backend: Backend
    entry: PinnedEntry


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be.

    Attributes:
        label: Of the model.
        setting: Runtime, threads and images.
        reason: Why not.
    """

    label: str
    setting: str
    reason: str


@dataclass(frozen=True)
class PinnedEntry:
    """An entry whose threads stay on as many cores while it is open; None: on an accelerator, they go anywhere."""

    key: str
    inner: Entry
    threads: int | None

    def open(self) -> AbstractContextManager[OpenEntry]:
        """Pin first: threads that the runtime starts inherit it."""
        from maenas.profiling.host import pin, unpin

        if self.threads is None:
            unpin()
        else:
            pin(self.threads)
        return self.inner.open()


def find_models(path: Path, nms: str) -> list[Model]:
    """The file, the one that a card is about, or the files of an export's folder, that --nms asks for.

    Raises:
        ProfileError: There is none.
        ExportError: An engine has no card.
    """
    from maenas.errors import ProfileError

    files = [path]
    if path.suffix == ".json":
        files = [file for file in (path.with_suffix(suffix) for suffix in SUFFIXES) if file.is_file()] or [path]
    elif path.is_dir():
        # An export in several formats has a folder for each.
        places = (path, *sorted(place for place in path.iterdir() if place.is_dir()))
        inside = [sorted(file for file in place.iterdir() if file.suffix in SUFFIXES) for place in places]
        files = inside[0] or [file for below in inside[1:] for file in below if file.stem == "model"]
    if not files:
        raise ProfileError(f"{path}: holds no {' or '.join(SUFFIXES)} file; expected the folder of an export")
    wanted = {"both": (True, False), "with": (True,), "without": (False,)}[nms]
    models = [model for model in map(_model, files) if (model.form == "nms") in wanted]
    if not models:
        found = "without" if nms == "with" else "with"
        raise ProfileError(f"{path}: has only networks {found} NMS inside; expected --nms {found} or both")
    return models


def make_lines(models: list[Model], arguments: argparse.Namespace) -> tuple[list[Line], list[Skipped]]:
    """Every file in every runtime with every number of threads and images, and the combinations that cannot be.

    Raises:
        ProfileError: No combination can be, or there are not so many cores.
        MissingExtraError: A runtime that was asked for is not installed.
    """
    from maenas.cli.detector import bundled
    from maenas.cli.question import parse_image_size
    from maenas.errors import MissingExtraError, ProfileError
    from maenas.profiling.backends import open_backend
    from maenas.profiling.host import pin

    size = None if arguments.image_size is None else parse_image_size(arguments.image_size)
    thread_counts = list(dict.fromkeys(arguments.threads))
    for threads in thread_counts:
        # Asks for the cores now, not after minutes of measuring.
        pin(threads)
    backends: dict[tuple[str, int, int, str], Backend] = {}
    lines: list[Line] = []
    skipped: list[Skipped] = []
    for model in models:
        precision = model.precision or arguments.precision
        settings = itertools.product(
            dict.fromkeys(arguments.backend or default_backends(model)), thread_counts, dict.fromkeys(arguments.batch)
        )
        for name, threads, batch in settings:
            setting = f"{name} with {threads} threads" + ("" if batch == 1 else f", {batch} images at once")
            try:
                if model.path.suffix == ENGINE and name != "tensorrt":
                    raise ProfileError(f"{model.path}: is a TensorRT engine; expected the backend tensorrt for it")
                if (name, threads, batch, precision) not in backends:
                    backends[name, threads, batch, precision] = open_backend(
                        name, threads=threads, precision=precision, batch=batch, bridge=bundled
                    )
                backend = backends[name, threads, batch, precision]
                key = f"{model.label} in {setting}"
                entry = backend.entry(model.path, key=key, layers=False, image_size=size)
            except MissingExtraError:
                raise
            except ProfileError as error:
                skipped.append(Skipped(model.label, setting, str(error)))
            else:
                lines.append(Line(model, backend, PinnedEntry(key, entry, pinned_threads(backend))))
    if not lines:
        raise ProfileError(skipped[0].reason)
    return lines, skipped


def pinned_threads(backend: Backend) -> int | None:
    """Cores that a runtime is kept on; None on an accelerator."""
    return None if backend.accelerator else backend.threads


def default_backends(model: Model) -> list[str]:
    """The runtimes that a file is timed in where none is named.

    Raises:
        ProfileError: There is none.
    """
    import importlib.util

    from maenas.errors import ProfileError

    if model.path.suffix == ENGINE:
        return ["tensorrt"]
    found = [name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name) is not None]
    if not found:
        raise ProfileError(
            "no runtime is installed; expected OpenVINO or ONNX Runtime: pip install 'maenas[profile,openvino]'"
        )
    return found


def _model(path: Path) -> Model:
    from maenas.files import sha256_of
    from maenas.profiling.backends.model_file import METADATA_KEY, read_model_file

    precision: str | None
    if path.suffix == ENGINE:
        card = _card_beside(path)
        precision = str(card["precision"])
    else:
        file = read_model_file(path)
        card = _card_inside(file.metadata.get(METADATA_KEY))
        precision = "int8" if file.quantised else None
    digest = card.get("digest")
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return Model(
        label=str(path),
        path=path,
        form=str(card.get("form", FOREIGN)),
        precision=precision,
        random_weights=(card.get("provenance") or {}).get("weights") == "random",
        digest=None if digest is None else str(digest),
        sha256=sha256_of(*parts),
        size_bytes=sum(part.stat().st_size for part in parts),
    )


def _card_beside(path: Path) -> dict[str, Any]:
    """The card of an engine, which has nothing inside.

    Raises:
        ExportError: There is none, or it is malformed.
    """
    from maenas.cli.detector import bundled

    return dict(bundled("artifact_files").read_card(path).to_dict())


def _card_inside(text: str | None) -> dict[str, Any]:
    """The card that exports of ours have inside; empty for a foreign file."""
    import json

    try:
        card = json.loads(text or "null")
    except ValueError:
        return {}
    return card if isinstance(card, dict) else {}
