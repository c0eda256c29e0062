"""Torch as a runtime to be timed: an ONNX file on a CPU or a CUDA device, eager or compiled, in one precision.

A run takes images from the host's memory and ends when all outputs are back there. Layer times come from a second copy
of the module in which a mark follows every call: a reading of the clock on a CPU, an event on a CUDA device. The plain
copy has none, so whole-network times are those of an undisturbed run.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from .errors import InputError, first_line
from .onnx_torch import OnnxNetwork, read_onnx

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precisions and what weights and maps are then."""

_CAPABILITY = {"fp32": (0, 0), "fp16": (7, 0), "bf16": (8, 0)}
"""First CUDA capability whose arithmetic units have a precision."""


@dataclass(frozen=True, slots=True)
class TimedCall:
    """A call that is timed.

    Attributes:
        name: Of the call, unique within the network.
        kind: Operator of the ONNX node it was made for.
        sources: Names of the ONNX nodes it stands for.
        inputs: Names of the timed calls that feed it.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TorchAdapter:
    """Torch on one device with these settings.

    Attributes:
        device: `cpu` or `cuda`.
        compiled: Whether `torch.compile` makes the module that is run.
        precision: A key of `DTYPES`.
        threads: CPU threads of one inference.
        channels_last: Whether channels are the innermost axis in memory.
    """

    device: str
    compiled: bool
    precision: str
    threads: int
    channels_last: bool

    @property
    def version(self) -> str:
        """Of torch, with the CUDA version it was built for."""
        return torch.__version__

    @property
    def device_name(self) -> str:
        """Of the CUDA device; empty for a CPU."""
        return torch.cuda.get_device_name() if self.device == "cuda" else ""

    def load(self, source: str | bytes, images: NDArray[np.floating], *, where: str, layers: bool) -> TorchNetwork:
        """A network that has run once.

        Args:
            source: Path or content of an ONNX file.
            images: (B, 3, H, W), what every run is given.
            where: What errors call the file.
            layers: Whether its calls are to be timed.

        Raises:
            InputError: The file cannot be run, `torch.compile` fails, or a result is not of the precision.
        """
        torch.set_num_threads(self.threads)
        return TorchNetwork(self, read_onnx(source, images.shape, where=where), images, where, layers)


def open_adapter(
    *, device: str, compiled: bool, precision: str, threads: int, channels_last: bool | None = None
) -> TorchAdapter:
    """Torch on a device.

    Args:
        device: `cpu` or `cuda`, the current CUDA device.
        compiled: Use `torch.compile`.
        precision: `fp32` (without TF32), `fp16` or `bf16`.
        threads: CPU threads of one inference.
        channels_last: Memory layout; by default the usually faster one: on a CPU, and on CUDA in half precision.

    Raises:
        InputError: There is no such device, or it lacks the precision.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError("torch finds no CUDA device; expected one, and a torch that is built for it")
        capability = torch.cuda.get_device_capability()
        if capability < _CAPABILITY[precision]:
            raise InputError(
                f"precision is {precision}, but {torch.cuda.get_device_name()} (compute capability "
                f"{capability[0]}.{capability[1]}) has no units for it; expected fp32"
            )
        # Ten bits of mantissa are no fp32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        # Trying algorithms at every start would choose others in every pass.
        torch.backends.cudnn.benchmark = False
    if channels_last is None:
        channels_last = device == "cpu" or precision != "fp32"
    return TorchAdapter(device, compiled, precision, threads, channels_last)


class TorchNetwork:
    """A loaded network with its images; closing frees it.

    Attributes:
        calls: What `profile` times, in the order of execution; empty where layers were not asked for.
    """

    def __init__(
        self, adapter: TorchAdapter, network: OnnxNetwork, images: NDArray[np.floating], where: str, layers: bool
    ) -> None:
        self._adapter, self._where = adapter, where
        self._dtype = DTYPES[adapter.precision]
        self._layout = torch.channels_last if adapter.channels_last else torch.contiguous_format
        self._on_gpu = adapter.device == "cuda"
        self._images = torch.from_numpy(images)
        self._received: list[Tensor] = []
        if self._on_gpu:
            self._images = self._images.pin_memory()
            self._arrived = torch.empty_like(self._images, device="cuda")
        module: nn.Module = network.module.to(device=adapter.device, dtype=self._dtype)
        module = module.to(memory_format=self._layout)  # type: ignore[call-overload]
        self.calls: tuple[TimedCall, ...] = ()
        self._marked: Callable[[Tensor], tuple[Tensor, ...]] = _closed
        if layers:
            self.calls, self._marked, self._marks = _with_marks(network, on_gpu=self._on_gpu)
        self._module: Callable[[Tensor], tuple[Tensor, ...]] = module
        self._first_run(module)

    def run(self) -> None:
        """One inference: images in, all outputs back, and nothing left to wait for."""
        with torch.inference_mode():
            self._fetch(self._module(self._given()))

    def profile(self) -> list[float]:
        """One inference with marks: milliseconds of each of `calls`."""
        self._marks.start()
        with torch.inference_mode():
            self._fetch(self._marked(self._given()))
        return self._marks.intervals_ms()

    def close(self) -> None:
        """Free weights and buffers."""
        self._module = self._marked = _closed
        if self._adapter.compiled:
            torch._dynamo.reset()
        if self._on_gpu:
            torch.cuda.empty_cache()

    def _given(self) -> Tensor:
        if not self._on_gpu:
            return self._images.to(dtype=self._dtype, memory_format=self._layout)
        self._arrived.copy_(self._images, non_blocking=True)
        return self._arrived.to(dtype=self._dtype, memory_format=self._layout)

    def _fetch(self, outputs: Sequence[Tensor]) -> None:
        if not self._on_gpu:
            return
        if not self._received:
            self._received = [torch.empty_like(output, device="cpu", pin_memory=True) for output in outputs]
        for target, output in zip(self._received, outputs, strict=True):
            target.copy_(output, non_blocking=True)
        torch.cuda.synchronize()

    def _first_run(self, module: nn.Module) -> None:
        """Compile if asked for, and see that the results are of the precision that was claimed."""
        if self._adapter.compiled:
            self._module = torch.compile(module, dynamic=False)
        try:
            with torch.inference_mode():
                outputs = self._module(self._given())
                self._fetch(outputs)
        except Exception as error:
            # A missing compiler, an operator without a kernel of this precision, memory.
            how = "torch.compile fails" if self._adapter.compiled else "torch fails to run it"
            raise InputError(f"{self._where}: {how} in {self._adapter.precision} ({first_line(error)})") from error
        wrong = [output.dtype for output in outputs if output.is_floating_point() and output.dtype != self._dtype]
        if wrong:
            raise InputError(f"{self._where}: torch returns {wrong[0]}; expected {self._dtype}")


def _closed(_images: Tensor) -> tuple[Tensor, ...]:
    raise RuntimeError("the network is closed")


class _ClockMarks(nn.Module):
    """Readings of the clock on a CPU, where a call has ended when it returns."""

    def __init__(self, _count: int) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def forward(self) -> None:
        self.seconds.append(time.perf_counter())

    def start(self) -> None:
        """Begin a run."""
        self.seconds.clear()

    def intervals_ms(self) -> list[float]:
        """Between the marks of the run."""
        return [1000 * (after - before) for before, after in zip(self.seconds, self.seconds[1:], strict=False)]


class _EventMarks(nn.Module):
    """Events on a CUDA device, each recorded when what was queued before it is done."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
        self.recorded = 0

    def forward(self) -> None:
        self.events[self.recorded].record()
        self.recorded += 1

    def start(self) -> None:
        """Begin a run."""
        self.recorded = 0

    def intervals_ms(self) -> list[float]:
        """Between the marks of the run, which has to be over."""
        return [before.elapsed_time(after) for before, after in zip(self.events, self.events[1:], strict=False)]


def _with_marks(
    network: OnnxNetwork, *, on_gpu: bool
) -> tuple[tuple[TimedCall, ...], fx.GraphModule, _ClockMarks | _EventMarks]:
    """The calls of a network, and a copy of it that shares the weights and marks their ends."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    ended = graph.graph_copy(network.module.graph, copies)
    timed = [call for call in network.module.graph.nodes if _is_timed(call)]
    marks = (_EventMarks if on_gpu else _ClockMarks)(len(timed) + 1)
    root = nn.Module()
    for name, buffer in network.module.named_buffers():
        root.register_buffer(name, buffer)
    root.add_module("marks", marks)
    graph.output(ended)
    with graph.inserting_before(copies[timed[0]]):
        graph.call_module("marks")
    for call in timed:
        with graph.inserting_after(copies[call]):
            graph.call_module("marks")
    calls = tuple(
        TimedCall(call.name, network.kinds[call.name], network.sources[call.name], _feeders(call)) for call in timed
    )
    return calls, fx.GraphModule(root, graph), marks


def _is_timed(call: fx.Node) -> bool:
    """Taking one of several results costs nothing."""
    return call.op == "call_function" and call.target is not operator.getitem


def _feeders(call: fx.Node) -> tuple[str, ...]:
    """Names of the timed calls that make what a call reads."""
    found: dict[str, None] = {}
    waiting = list(call.all_input_nodes)
    while waiting:
        feeder = waiting.pop(0)
        if _is_timed(feeder):
            found[feeder.name] = None
        elif feeder.op == "call_function":
            waiting += feeder.all_input_nodes
    return tuple(found)
