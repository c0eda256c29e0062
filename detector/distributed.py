"""One process or several (torchrun): who this process is, and the few things that processes tell each other."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError, first_line
from .sync_norm import synchronise_norms

# While the first process evaluates the others wait for it, without a limit that an evaluation could reach.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one training run, seen from one of them.

    Attributes:
        rank: Number of this process, from 0; the first one writes files.
        world_size: How many there are.
        local_rank: Number of this process on its machine: the GPU that it uses.
        control: Group over the CPU's network stack for messages between steps; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, the same everywhere."""
        if self.world_size == 1:
            return [float(value) for value in values]
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message, group=self.control)
        return message.tolist()

    def total(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all processes, without a gradient."""
        if self.world_size == 1:
            return value
        result = value.detach().clone()
        dist.all_reduce(result)
        return result

    def from_first(self, value: Any) -> Any:  # noqa: ANN401
        """The first process's value, everywhere; the others wait for it as long as it takes."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def parallel(self, module: nn.Module, device: torch.device, *, unused_parameters: bool) -> nn.Module:
        """The module with gradients averaged over processes; itself where there is one process."""
        if self.world_size == 1:
            return module
        with warnings.catch_warnings():
            # Newer torch has another name for broadcast_buffers, older torch has this one only.
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                module,
                device_ids=[device.index] if device.type == "cuda" else None,
                # Statistics are synchronised as they are made, so that every process has the same buffers.
                broadcast_buffers=False,
                find_unused_parameters=unused_parameters,
            )

    def synchronise_norms(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with batch norms over all processes; on CUDA torch's own, elsewhere ours."""
        if self.world_size == 1:
            return model
        if device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        synchronise_norms(model, self.control)
        return model


SINGLE = Processes()


@contextmanager
def joined_processes(environment: Mapping[str, str], *, device: str) -> Iterator[Processes]:
    """The processes that torchrun started, for the time of the block; one without torchrun.

    Args:
        environment: Variables of the environment: RANK, WORLD_SIZE, LOCAL_RANK and torch's own.
        device: `cpu`, or `cuda`, which needs a GPU per process.

    Raises:
        ConfigError: A variable is no number, or the device cannot be shared by processes.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "WORLD_SIZE" not in environment:
        yield SINGLE
        return
    try:
        rank, world_size, local_rank = (int(environment[name]) for name in names)
    except (KeyError, ValueError):
        found = ", ".join(f"{name}={environment.get(name)}" for name in names)
        raise ConfigError(f"{found}; expected numbers in all three, as torchrun sets them") from None
    if world_size == 1:
        yield SINGLE
        return
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r} with {world_size} processes; expected cpu or cuda")
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(f"process {local_rank} of this machine has no GPU; it has {torch.cuda.device_count()}")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(control, dist.ProcessGroup)  # every process belongs to it
        yield Processes(rank, world_size, local_rank, control)
    finally:
        dist.destroy_process_group()


def pick_device(name: str, processes: Processes = SINGLE) -> torch.device:
    """The device of this process.

    Args:
        name: `auto` (CUDA, else MPS, else CPU), or a torch device such as `cpu`, `cuda`, `cuda:1` or `mps`.
        processes: With several, `cuda` is one GPU for each.

    Raises:
        ConfigError: The device is unknown or not there.
    """
    if name == "auto":
        name = best_device()
    if name == "cuda" and processes.world_size > 1:
        name = f"cuda:{processes.local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device is {name!r}; cannot be used ({first_line(error)})") from error
    return device


def best_device() -> str:
    """`cuda`, `mps` or `cpu`: the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
