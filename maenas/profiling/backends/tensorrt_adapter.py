"""The calls to TensorRT. Not run on hardware; features are asked for, not versions."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from maenas.cuda import Cuda
from maenas.errors import ProfileError
from maenas.extras import require
from maenas.profiling.backends.model_file import ModelFile


@dataclass
class TensorRtAdapter:
    """TensorRT itself; see `tensorrt.Adapter`."""

    runtime: ModuleType
    cuda: Cuda
    version: str
    device_name: str

    def build(self, model: ModelFile, shape: tuple[int, int, int, int], *, precision: str) -> TensorRtEngine:
        """Build an engine; see `tensorrt.Adapter.build`.

        Raises:
            ProfileError: TensorRT cannot parse the file, or build an engine of it.
        """
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
        GpuError: No CUDA runtime or no GPU.
        MissingExtraError: TensorRT is not installed.
    """
    trt = require("tensorrt", extra="tensorrt", purpose="profiling with TensorRT")
    cuda = Cuda()
    return TensorRtAdapter(trt, cuda, str(trt.__version__), cuda.device_name())
