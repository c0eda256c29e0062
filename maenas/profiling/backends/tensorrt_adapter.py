"""The calls to TensorRT and to the CUDA runtime. Not run on hardware; features are asked for, not versions."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from maenas.errors import ProfileError
from maenas.extras import require
from maenas.profiling.backends.model_file import ModelFile

_CUDA_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so", "cudart64_13.dll", "cudart64_12.dll")
_TO_DEVICE, _TO_HOST = 1, 2
_PROPERTIES_BYTES = 1 << 14
_NAME_BYTES = 256


class Cuda:
    """The few functions of the CUDA runtime that are needed, called through its shared library."""

    def __init__(self) -> None:
        self._library = _load_cuda()

    def device_name(self) -> str:
        """Of the first GPU."""
        # The name is the first field of the structure, whose length differs between versions.
        buffer = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", buffer, 0)
        return buffer.raw[:_NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")

    def stream(self) -> int:
        """A new stream."""
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(handle))
        return handle.value or 0

    def allocate(self, num_bytes: int) -> int:
        """Address of memory on the GPU."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(num_bytes))
        return pointer.value or 0

    def copy_in(self, device: int, array: Any, stream: int) -> None:  # noqa: ANN401
        """Array to the GPU."""
        self._copy(device, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def copy_out(self, array: Any, device: int, stream: int) -> None:  # noqa: ANN401
        """Array from the GPU."""
        self._copy(array.ctypes.data, device, array.nbytes, _TO_HOST, stream)

    def wait(self, stream: int) -> None:
        """Until the stream is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def free(self, addresses: Iterable[int], stream: int) -> None:
        """Give memory and stream back."""
        for address in addresses:
            self._call("cudaFree", ctypes.c_void_p(address))
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def _copy(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(num_bytes),
            kind,
            ctypes.c_void_p(stream),
        )

    def _call(self, function: str, *arguments: Any) -> None:  # noqa: ANN401
        code = getattr(self._library, function)(*arguments)
        if code:
            raise ProfileError(f"{function} of the CUDA runtime failed with code {code}; expected a working NVIDIA GPU")


def _load_cuda() -> ctypes.CDLL:
    packages = [Path(folder) / "nvidia" for folder in sys.path if folder]
    beside = [str(found) for folder in packages if folder.is_dir() for found in folder.glob("**/libcudart.so.*")]
    for name in (*_CUDA_LIBRARIES, *sorted(beside, reverse=True)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ProfileError("the CUDA runtime (libcudart) is not found; expected an installation of CUDA 12 or 13")


@dataclass
class TensorRtAdapter:
    """TensorRT itself; see `tensorrt.Adapter`."""

    runtime: ModuleType
    cuda: Cuda
    version: str
    device_name: str

    def build(self, model: ModelFile, shape: tuple[int, int, int, int], *, precision: str) -> TensorRtEngine:
        """Build an engine; see `tensorrt.Adapter.build`."""
        trt = self.runtime
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse(model.content) if model.content else parser.parse_from_file(str(model.path))
        if not parsed:
            reasons = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
            raise ProfileError(f"{model.path}: TensorRT cannot parse it ({reasons})")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        flag = getattr(trt.BuilderFlag, precision.upper(), None)
        if flag is not None:
            config.set_flag(flag)
        if precision == "fp32" and hasattr(trt.BuilderFlag, "TF32"):
            # On by default, and no fp32: 10 bits of mantissa.
            config.clear_flag(trt.BuilderFlag.TF32)
        if any(isinstance(dim, str) for dim in model.input_dims):
            profile = builder.create_optimization_profile()
            profile.set_shape(model.input_name, shape, shape, shape)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ProfileError(f"{model.path}: TensorRT cannot build an engine of it; its log says why")
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        return TensorRtEngine(trt, self.cuda, engine, model.input_name, shape)


class TensorRtEngine:
    """An engine with one context to run and one to profile; see `tensorrt.Engine`."""

    def __init__(
        self,
        trt: ModuleType,
        cuda: Cuda,
        engine: Any,  # noqa: ANN401
        input_name: str,
        shape: tuple[int, int, int, int],
    ) -> None:
        import numpy as np

        self._trt, self._cuda, self._engine, self._input = trt, cuda, engine, input_name
        self._plain, self._profiled = engine.create_execution_context(), engine.create_execution_context()
        self._reports: list[tuple[str, float]] = []
        self._profiled.profiler = _profiler(trt, self._reports)
        self._stream = cuda.stream()
        self._device: dict[str, int] = {}
        self._outputs: dict[str, Any] = {}
        for context in (self._plain, self._profiled):
            context.set_input_shape(input_name, shape)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            array = np.empty(tuple(self._plain.get_tensor_shape(name)), dtype=trt.nptype(engine.get_tensor_dtype(name)))
            self._device[name] = cuda.allocate(max(array.nbytes, 1))
            if name != input_name:
                self._outputs[name] = array
            for context in (self._plain, self._profiled):
                context.set_tensor_address(name, self._device[name])

    def layer_information(self) -> str:
        """The engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def execute(self, images: Any) -> None:  # noqa: ANN401
        """See `tensorrt.Engine.execute`."""
        self._run(self._plain, images)

    def profile(self, images: Any) -> list[tuple[str, float]]:  # noqa: ANN401
        """See `tensorrt.Engine.profile`."""
        self._reports.clear()
        self._run(self._profiled, images)
        return list(self._reports)

    def close(self) -> None:
        """Free engine and buffers."""
        self._cuda.free(self._device.values(), self._stream)
        self._device = {}

    def _run(self, context: Any, images: Any) -> None:  # noqa: ANN401
        self._cuda.copy_in(self._device[self._input], images, self._stream)
        if not context.execute_async_v3(self._stream):
            raise ProfileError("TensorRT failed to run the engine; its log says why")
        for name, array in self._outputs.items():
            self._cuda.copy_out(array, self._device[name], self._stream)
        self._cuda.wait(self._stream)


def _profiler(trt: ModuleType, reports: list[tuple[str, float]]) -> Any:  # noqa: ANN401
    class Profiler(trt.IProfiler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            reports.append((layer_name, ms))

    return Profiler()


def open_adapter() -> TensorRtAdapter:
    """TensorRT and the first GPU.

    Raises:
        ProfileError: No CUDA runtime or no GPU.
        MissingExtraError: TensorRT is not installed.
    """
    trt = require("tensorrt", extra="tensorrt", purpose="profiling with TensorRT")
    cuda = Cuda()
    return TensorRtAdapter(trt, cuda, str(trt.__version__), cuda.device_name())
