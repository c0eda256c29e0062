"""Networks in int8 for OpenVINO, made by NNCF: plain, or with NNCF's own search for layers to be returned."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maenas.extras import keeping_signal_stack, openvino_core, require

from .export_int8 import QuantiseRequest
from .quantise_layers import Layer
from .quantise_onnx import batches
from .runtimes import Arrays, OpenVinoSession

_PURPOSE = "quantising a network for OpenVINO"
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_TAIL = "tail_"
_EPSILON = 1e-12
RANKING_IMAGES = 16
"""Calibration images on which NNCF ranks layers."""


class OpenVinoQuantiser:
    """A float network from which quantised ones are made.

    Args:
        request: What is to be quantised.
        layers: Its convolutions.
        seven_bits: Weights in 7 bits, for processors without VNNI.

    Raises:
        MissingExtraError: NNCF or OpenVINO is not installed.
    """

    def __init__(self, request: QuantiseRequest, layers: Sequence[Layer], *, seven_bits: bool) -> None:
        self._nncf = _import_nncf()
        self._openvino = require("openvino", extra="openvino", purpose=_PURPOSE)
        self._model = openvino_core(purpose=_PURPOSE).read_model(str(request.onnx_path))
        self._request = request
        self._layers = tuple(layers)
        self._seven_bits = seven_bits
        self.tool = f"nncf {self._nncf.__version__}"

    def write(self, path: Path, higher: Collection[str] = ()) -> None:
        """Write the network in int8, but for the layers named `higher`.

        Args:
            path: An .xml file; its .bin lies beside it.
            higher: Names of layers that stay in float32.
        """
        nodes = {layer.node for layer in self._layers if layer.name in higher}
        with keeping_signal_stack(), _quiet():
            model = self._nncf.quantize(self._model, self._data(), **self._settings(self._operations(nodes)))
        self._save(model, path)

    def write_with_accuracy_control(self, path: Path) -> tuple[str, ...]:
        """Write the network that NNCF's search ends with; it may lose more AP than was allowed.

        NNCF returns groups of operations until the AP holds, those first without which the outputs are most like the
        float network's.

        Args:
            path: An .xml file; its .bin lies beside it.

        Returns:
            Names of the layers that are in float32.
        """
        request, settings = self._request, self._settings(())
        settings["advanced_quantization_parameters"] = settings.pop("advanced_parameters")
        pictures = list(islice(batches(request), RANKING_IMAGES + 1))
        float_session = OpenVinoSession(request.onnx_path)
        expected = [float_session.run({request.card.input.name: picture}) for picture in pictures]

        def validate(compiled: Any, items: Iterable[int]) -> tuple[float, list[float]]:  # noqa: ANN401
            session = _Compiled(compiled, request.card.input.name, float_session.output_names)
            likeness = []
            for index in items:
                found = session.run({request.card.input.name: pictures[index]})
                likeness.append(-_difference(found, expected[index]))
            # NNCF asks about all items where it wants the AP, and about some of them to rank operations.
            everything = len(likeness) == len(pictures)
            return request.evaluate_session(session) if everything else float(np.mean(likeness)), likeness

        with keeping_signal_stack(), _quiet():
            model = self._nncf.quantize_with_accuracy_control(
                self._model,
                self._data(),
                self._nncf.Dataset(list(range(len(pictures))), lambda index: pictures[index]),
                validate,
                max_drop=request.max_drop,
                advanced_accuracy_restorer_parameters=self._nncf.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=max(1, len(self._layers) // 2),
                    ranking_subset_size=max(1, len(pictures) - 1),
                    num_ranking_workers=1,
                ),
                **settings,
            )
        self._save(model, path)
        quantised = _quantised_operations(model)
        return tuple(layer.name for layer in self._layers if layer.node not in quantised)

    def _operations(self, nodes: Collection[str]) -> list[str]:
        """OpenVINO's names of convolutions, given the names of their ONNX nodes; a bias is an operation of its own."""
        found = [op.get_friendly_name() for op in self._model.get_ordered_ops() if op.get_type_name() in _CONVOLUTIONS]
        return [name for name in found if name.partition("/")[0] in nodes]

    def _settings(self, ignored: Sequence[str]) -> dict[str, Any]:
        nncf = self._nncf
        return {
            "preset": nncf.QuantizationPreset.MIXED,
            "target_device": nncf.TargetDevice.CPU,
            "subset_size": self._request.num_images,
            "ignored_scope": nncf.IgnoredScope(names=list(ignored), patterns=[f"^{_TAIL}.*"], validate=False),
            "advanced_parameters": nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if self._seven_bits else nncf.OverflowFix.DISABLE
            ),
        }

    def _data(self) -> Any:  # noqa: ANN401
        return self._nncf.Dataset(_Batches(self._request))

    def _save(self, model: Any, path: Path) -> None:  # noqa: ANN401
        self._openvino.save_model(model, str(path), compress_to_fp16=False)


class _Batches:
    """Calibration batches, again from the beginning for every pass."""

    def __init__(self, request: QuantiseRequest) -> None:
        self._request = request

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return batches(self._request)


class _Compiled:
    """What NNCF hands to a validation as a `detector.runtimes.Session`."""

    def __init__(self, compiled: Any, input_name: str, output_names: Sequence[str]) -> None:  # noqa: ANN401
        self._compiled = compiled
        self.version = "openvino"
        self.input_names: tuple[str, ...] = (input_name,)
        self.output_names = tuple(output_names)

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        results = self._compiled(dict(inputs))
        # By name: what NNCF returns to float32 has its outputs in another order.
        return {
            name: np.array(results[output])
            for name in self.output_names
            for output in self._compiled.outputs
            if name in output.get_names()
        }


def _difference(found: Arrays, expected: Arrays) -> float:
    """Mean square of the differences in units of the mean square of what is expected, over all outputs."""
    squares = []
    for name, values in expected.items():
        wanted = values.astype(np.float64)
        squares.append(((found[name] - wanted) ** 2).mean() / max(float((wanted**2).mean()), _EPSILON))
    return float(np.mean(squares))


def _quantised_operations(model: Any) -> set[str]:  # noqa: ANN401
    """ONNX node names of the convolutions whose weights are rounded."""
    found = set()
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _CONVOLUTIONS:
            maker = operation.input_value(1).get_node()
            # Weights in float32 are a constant; rounded ones come out of a conversion.
            if maker.get_type_name() != "Constant":
                found.add(operation.get_friendly_name().partition("/")[0])
    return found


def _import_nncf() -> Any:  # noqa: ANN401
    # Read when the package is imported; otherwise it would send what was called over the network.
    os.environ.setdefault("NNCF_CI", "1")
    with _quiet():
        nncf = require("nncf", extra="int8", purpose=_PURPOSE)
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars on standard output and without notes of the packages that are imported on the way."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
