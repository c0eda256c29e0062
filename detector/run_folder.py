"""The folder of a training run: which files it has, and that one run at a time owns it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maenas.errors import OutputError
from maenas.files import make_folder

from .errors import TrainingError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths in the folder of a run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Resolved settings."""
        return self.path / "config.yaml"

    @property
    def structure(self) -> Path:
        """The network, with classes and image size of the data."""
        return self.path / "structure.json"

    @property
    def state(self) -> Path:
        """What a run resumes from."""
        return self.path / "state.safetensors"

    @property
    def best(self) -> Path:
        """Checkpoint of the averaged network with the highest AP so far."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """Checkpoint of the averaged network after the last finished epoch."""
        return self.path / "last.safetensors"

    @property
    def metrics(self) -> Path:
        """A row per epoch."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """The same as a picture."""
        return self.path / "curves.png"

    @property
    def sampling(self) -> Path:
        """Counts of a union's sources and classes, and how often they are shown."""
        return self.path / "sampling.csv"

    @property
    def result(self) -> Path:
        """Figures of the finished run."""
        return self.path / "result.json"

    @property
    def divergence(self) -> Path:
        """What was known when a run was given up."""
        return self.path / "diverged.json"

    @property
    def samples(self) -> Path:
        """Folder of drawn validation images."""
        return self.path / "samples"

    def kept(self, epoch: int) -> Path:
        """A checkpoint that stays beside the best and the last one."""
        return self.path / f"epoch_{epoch:04d}.safetensors"

    def files(self) -> list[Path]:
        """Everything there that a run wrote."""
        named = (self.config, self.structure, self.state, self.best, self.last, self.metrics, self.curves)
        found = [path for path in (*named, self.result, self.divergence) if path.exists()]
        found += [self.sampling] if self.sampling.exists() else []
        return found + sorted(self.path.glob("epoch_*.safetensors")) + sorted(self.samples.glob("epoch_*.jpg"))


@contextmanager
def opened_folder(path: Path, *, resume: bool, force: bool) -> Iterator[RunFolder]:
    """A run's folder, locked for the time of the block.

    Args:
        path: Is made where it does not exist.
        resume: Expect the state of a run in it; otherwise expect none.
        force: Remove the files of a former run.

    Raises:
        TrainingError: Another run owns the folder, or there is nothing to resume.
        OutputError: It holds a run already, or cannot be written.
    """
    folder = RunFolder(path)
    if resume and not folder.state.exists():
        raise TrainingError(f"{path}: holds no run to resume ({folder.state.name} is missing)")
    make_folder(path)
    with _locked(path):
        if not resume and (files := folder.files()):
            if not force:
                raise OutputError(
                    f"{path}: holds a run already ({files[0].name}, ...); expected a new folder, --resume or --force"
                )
            for file in files:
                file.unlink()
        yield folder


def is_locked(path: Path) -> bool:
    """Whether another run is writing into a folder that exists."""
    try:
        with _locked(path):
            return False
    except TrainingError:
        return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it does."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks: two runs are then the user's to keep apart
        yield
        return
    place = path / ".lock"
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"{place}: cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{path}: another run is writing into it; expected another --out") from None
        yield
    finally:
        os.close(descriptor)
