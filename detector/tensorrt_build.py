"""An ONNX graph as a TensorRT engine. Written from the documentation of TensorRT 10 and 11, not run on hardware.

Networks are strongly typed in both: the graph says what is computed in what, no flag does. TensorRT 11 has no other
kind and no flags for fp16 or int8; TensorRT 10 has to be asked for it. So half precision comes from a graph in half
precision and whole numbers from QuantizeLinear / DequantizeLinear nodes, and nothing falls back silently.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.cuda import Cuda
from maenas.extras import require
from maenas.files import make_folder, write_bytes_atomically

from .artifact import EngineFacts, ModelCard
from .decode import STRIDES
from .errors import ExportError

SUPPRESSIONS = ("plugin", "operators")
_USUAL_LARGEST_BATCH = 8
_LOG = logging.getLogger(__name__)

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        suppression: In the nms form: `plugin` (EfficientNMS) or `operators` (the standard operator, which TensorRT runs
            in its NMS layer).
        workspace_mb: Memory on the GPU that a layer may use while it runs.
        timing_cache: File with the timings of earlier builds; read if it exists, and written. None: none.
        usual_batch: Images that are usual, where their number is free.
        smallest: Shape that the engine takes at least, where axes are free; by default one image of 64 x 64.
        largest: Shape at most; by default 8 images (or `usual_batch`) of twice the height and width.
    """

    suppression: str = "plugin"
    workspace_mb: int = 4096
    timing_cache: Path | None = None
    usual_batch: int = 1
    smallest: Shape | None = None
    largest: Shape | None = None

    def __post_init__(self) -> None:
        if self.suppression not in SUPPRESSIONS:
            raise ExportError(f"suppression is {self.suppression!r}; expected one of {', '.join(SUPPRESSIONS)}")
        for name in ("workspace_mb", "usual_batch"):
            if getattr(self, name) < 1:
                raise ExportError(f"{name} is {getattr(self, name)}; expected a whole number, 1 or more")


def build_engine(content: bytes, card: ModelCard, *, options: EngineOptions) -> tuple[bytes, EngineFacts]:
    """Build an engine for the first GPU of this machine.

    Args:
        content: An ONNX graph of the precision and form of the card.
        card: Of the graph.
        options: How.

    Returns:
        The serialised engine, and what it was built for.

    Raises:
        ExportError: TensorRT cannot parse or build the graph.
        GpuError: There is no working GPU.
        MissingExtraError: TensorRT is not installed.
        OutputError: The timing cache cannot be written.
    """
    trt = require("tensorrt", extra="tensorrt", purpose="building a TensorRT engine")
    cuda = Cuda()
    facts = _facts(card, options, str(trt.__version__), cuda)
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        reasons = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT {trt.__version__} cannot parse the graph ({reasons})")
    config = builder.create_builder_config()
    # The inspector then tells what every layer runs in.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if card.precision == "fp32" and hasattr(trt.BuilderFlag, "TF32"):
        # On by default, and no fp32: 10 bits of mantissa.
        config.clear_flag(trt.BuilderFlag.TF32)
    if card.batch is None or not card.fixed_size:
        profile = builder.create_optimization_profile()
        profile.set_shape(card.input.name, facts.smallest, facts.usual, facts.largest)
        config.add_optimization_profile(profile)
    if options.timing_cache is not None:
        _use_timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT {trt.__version__} cannot build an engine of the graph; its log says why")
    if options.timing_cache is not None:
        make_folder(options.timing_cache.parent)
        write_bytes_atomically(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan), facts


def _use_timing_cache(config: Any, path: Path) -> None:  # noqa: ANN401
    """Timings of earlier builds; those of another GPU or version are refused by TensorRT and made anew."""
    content = path.read_bytes() if path.is_file() else b""
    if config.set_timing_cache(config.create_timing_cache(content), False):
        return
    _LOG.warning("%s: is of another GPU or TensorRT; its timings are made anew", path)
    config.set_timing_cache(config.create_timing_cache(b""), False)


def _facts(card: ModelCard, options: EngineOptions, version: str, cuda: Cuda) -> EngineFacts:
    channels = card.input.shape[1] or 3
    height, width = card.image_size
    usual = (card.batch or options.usual_batch, channels, height, width)
    sides = [min(2 * STRIDES[-1], side) if not card.fixed_size else side for side in (height, width)]
    scale = 1 if card.fixed_size else 2
    smallest = options.smallest or (card.batch or 1, channels, sides[0], sides[1])
    many = card.batch or max(options.usual_batch, _USUAL_LARGEST_BATCH)
    largest = options.largest or (many, channels, scale * height, scale * width)
    for low, middle, high in zip(smallest, usual, largest, strict=True):
        if not low <= middle <= high:
            raise ExportError(
                f"smallest, usual and largest shape are {smallest}, {usual} and {largest}; expected none to be above "
                "the next in any axis"
            )
    return EngineFacts(
        tensorrt=version,
        gpu=cuda.device_name(),
        compute_capability=cuda.compute_capability(),
        smallest=smallest,
        usual=usual,
        largest=largest,
        suppression=options.suppression if card.nms is not None else None,
    )
