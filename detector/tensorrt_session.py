"""A TensorRT engine of ours on the GPU that it was built for. Written from documentation, not run on hardware."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.cuda import Cuda
from maenas.extras import require

from .artifact import EngineFacts
from .artifact_files import read_card
from .errors import ExportError

_PURPOSE = "running a TensorRT engine"


class TensorRtSession:
    """An engine of TensorRT 10 or 11 on the first GPU; see `runtimes.Session`.

    Args:
        model: An .engine file with its card beside it.
        threads: Changes nothing: the network runs on the GPU.
        precision: Changes nothing: the engine was built in one.

    Raises:
        ExportError: The engine was built for another GPU or version of TensorRT, or cannot be read.
        GpuError: There is no working GPU.
        MissingExtraError: TensorRT is not installed.
    """

    def __init__(self, model: Path | bytes, *, threads: int | None = None, precision: str = "fp32") -> None:
        if isinstance(model, bytes):
            raise ExportError("TensorRT runs engines, not ONNX graphs; expected an .engine file")
        trt = require("tensorrt", extra="tensorrt", purpose=_PURPOSE)
        facts = read_card(model).engine
        if facts is None:
            raise ExportError(f"{model}: its card says nothing about an engine; expected one that maenas export wrote")
        self._cuda = Cuda()
        check_machine(model, facts, version=str(trt.__version__), cuda=self._cuda)
        logger = trt.Logger(trt.Logger.ERROR)
        # Registers EfficientNMS, which an engine with the plugin form of suppression needs.
        trt.init_libnvinfer_plugins(logger, "")
        self._runtime = trt.Runtime(logger)
        engine = self._runtime.deserialize_cuda_engine(model.read_bytes())
        if engine is None:
            raise ExportError(f"{model}: TensorRT {trt.__version__} cannot read it; its log says why")
        self._trt, self._engine, self._path, self._facts = trt, engine, model, facts
        self._context = engine.create_execution_context()
        self._stream = self._cuda.stream()
        self._memory: dict[str, tuple[int, int]] = {}
        self.version: str = str(trt.__version__)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.input_names = tuple(inputs)
        self.output_names = tuple(name for name in names if name not in inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises:
            ExportError: A shape outside what the engine was built for, or TensorRT fails.
        """
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, tuple(array.shape)):
                ends = " to ".join("x".join(map(str, shape)) for shape in (self._facts.smallest, self._facts.largest))
                raise ExportError(
                    f"{self._path}: {name} has shape {'x'.join(map(str, array.shape))}; the engine takes {ends}"
                )
            self._cuda.copy_in(self._address(name, array.nbytes), np.ascontiguousarray(array), self._stream)
        outputs = {}
        for name in self.output_names:
            dtype = self._trt.nptype(self._engine.get_tensor_dtype(name))
            outputs[name] = np.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype)
            self._address(name, outputs[name].nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise ExportError(f"{self._path}: TensorRT failed to run the engine; its log says why")
        for name, array in outputs.items():
            self._cuda.copy_out(array, self._memory[name][0], self._stream)
        self._cuda.wait(self._stream)
        return outputs

    def layer_information(self) -> str:
        """The engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._cuda.free([address for address, _ in self._memory.values()], self._stream)
        self._memory = {}

    def _address(self, name: str, num_bytes: int) -> int:
        """Memory of a tensor, made larger where it has to be."""
        address, size = self._memory.get(name, (0, 0))
        if num_bytes > size:
            if address:
                self._cuda.free_memory(address)
            address = self._cuda.allocate(num_bytes)
            self._memory[name] = (address, num_bytes)
        self._context.set_tensor_address(name, address)
        return address


def check_machine(path: Path, facts: EngineFacts, *, version: str, cuda: Any) -> None:  # noqa: ANN401
    """Refuse an engine that was built for another GPU or by another version of TensorRT.

    Raises:
        ExportError: Naming both.
    """
    here = (cuda.device_name(), cuda.compute_capability(), version)
    if here == (facts.gpu, facts.compute_capability, facts.tensorrt):
        return
    raise ExportError(
        f"{path}: was built for {facts.gpu} (compute capability {facts.compute_capability}) with TensorRT "
        f"{facts.tensorrt}; this machine has {here[0]} ({here[1]}) with TensorRT {here[2]}: engines run only where "
        "they were built, so export here with --format tensorrt"
    )
