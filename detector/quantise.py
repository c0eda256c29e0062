"""Int8 with a gate: the quantisers behind `maenas export --precision int8`, for every format.

As many layers as possible are computed in int8. If that costs more AP than may be lost, those that suffer most from it
are returned to higher precision, as few as the AP needs. If the AP cannot be kept, nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.extras import require
from maenas.files import make_folder, write_bytes_atomically, write_text_atomically

from .errors import ExportError
from .export_int8 import Quantised, Quantiser, QuantiseRequest
from .quantise_gate import Trial, fewest_returned, gate_error
from .quantise_layers import count_operators, find_layers, share_int8
from .quantise_onnx import METHODS, OnnxQuantiser, calibrate
from .quantise_openvino import OpenVinoQuantiser
from .quantise_plot import sensitivity_png
from .quantise_presets import PRESETS, preset_layers
from .quantise_sensitivity import Sensitivity, measure_sensitivity, sensitivity_csv

LAYER_CHOICES = ("auto", "all", *PRESETS)
LEAST_SHARE = 0.5
"""Part of the multiply-accumulates that must stay in int8; with less, the file does not deserve the name."""


@dataclass(frozen=True, slots=True)
class QuantiseSettings:
    """How a network becomes int8.

    Attributes:
        layers: `auto` returns sensitive layers to higher precision as far as the AP needs it; `all` returns none; a
            name of `PRESETS` returns the layers that the authors returned in that network.
        method: How ranges of maps are found for ONNX and TensorRT, in `METHODS`.
        accuracy_aware: For OpenVINO with `auto`: NNCF's own search for layers to be returned, which is slower.
        seven_bits: Weights in 7 bits, for processors without VNNI.
        sensitivity: Folder for sensitivity-FORMAT.csv and .png, which are measured then in any case.
    """

    layers: str = "auto"
    method: str = "minmax"
    accuracy_aware: bool = False
    seven_bits: bool = False
    sensitivity: Path | None = None

    def __post_init__(self) -> None:
        for name, choices in (("layers", LAYER_CHOICES), ("method", tuple(METHODS))):
            if getattr(self, name) not in choices:
                raise ExportError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if self.accuracy_aware and self.layers != "auto":
            raise ExportError(f"layers is {self.layers!r}; expected auto, or no accuracy-aware search")


def make_quantiser(settings: QuantiseSettings | None = None) -> Quantiser:
    """What `detector.export.export_artifacts` takes to make int8 of fp32.

    Args:
        settings: How.

    Returns:
        A function that raises `ExportError` where the AP cannot be kept or nothing can be calibrated with, and
        `MissingExtraError` where a package is missing.
    """
    chosen = settings or QuantiseSettings()
    return lambda request: _Job(request, chosen).run()


class _Job:
    """One network on its way to int8."""

    def __init__(self, request: QuantiseRequest, settings: QuantiseSettings) -> None:
        if not 0 <= request.max_drop <= 1:
            raise ExportError(f"max_drop is {request.max_drop:g}; expected a number from 0 to 1")
        if request.num_images < 1:
            raise ExportError("there is no image to calibrate with; expected at least one")
        if settings.accuracy_aware and request.format != "openvino":
            raise ExportError(f"format is {request.format}; expected openvino with an accuracy-aware search")
        onnx = require("onnx", extra="onnx", purpose="quantising a network")
        self.request, self.settings = request, settings
        self.proto = onnx.load(str(request.onnx_path))
        self.layers = find_layers(self.proto, request.card)
        self.calibrated: OnnxQuantiser | None = None
        self.ranking: tuple[Sensitivity, ...] = ()
        self.trials: list[Trial] = []
        self.tool: OnnxQuantiser | OpenVinoQuantiser
        if request.format == "openvino":
            self.tool = OpenVinoQuantiser(request, self.layers, seven_bits=settings.seven_bits)
        else:
            self.tool = self.calibration()

    def run(self) -> Quantised:
        """The quantised network."""
        request, settings = self.request, self.settings
        try:
            if settings.accuracy_aware:
                path, higher, ap = self.by_nncf()
            elif settings.layers == "auto":
                path, higher, ap = self.by_sensitivity()
            else:
                path, higher, ap = self.fixed()
        except ExportError:
            # Whoever asks for the sensitivities wants them most where the AP is lost.
            self.report(())
            raise
        self.report(higher)
        share = share_int8(self.layers, higher)
        request.progress(
            f"{request.format}: int8 keeps AP {100 * ap:.2f} of {100 * request.reference_ap:.2f} with {len(higher)} of "
            f"{len(self.layers)} layers in float32 ({100 * share:.0f} % of the work in int8)"
        )
        return Quantised(path, self.details(higher, share, ap))

    def by_sensitivity(self) -> tuple[Path, tuple[str, ...], float]:
        """With as few layers returned as the AP needs, the most sensitive first."""
        request = self.request

        def measure(count: int) -> float:
            if count and not self.ranking:
                self.rank()
            return self.measure(self.path(count), [entry.layer.name for entry in self.ranking[:count]])

        best = fewest_returned(measure, least_ap=request.reference_ap - request.max_drop, most=self.most_returned)
        if best is None:
            closest = max(self.trials, key=lambda trial: trial.ap)
            raise self.refusal(closest.ap, closest.returned)
        higher = tuple(entry.layer.name for entry in self.ranking[: best.returned])
        return self.path(best.returned), higher, best.ap

    def by_nncf(self) -> tuple[Path, tuple[str, ...], float]:
        """As NNCF's search ends."""
        assert isinstance(self.tool, OpenVinoQuantiser)
        path = self.request.folder / "accuracy_aware.xml"
        self.request.progress("openvino: NNCF looks for layers to be returned")
        higher = self.tool.write_with_accuracy_control(path)
        ap = self.request.evaluate(path)
        self.trials.append(Trial(len(higher), ap))
        self.check(ap, len(higher))
        share = share_int8(self.layers, higher)
        if share < LEAST_SHARE:
            # The search itself knows of AP only.
            raise ExportError(
                f"NNCF's search leaves {100 * share:.0f} % of the work in int8, with {len(higher)} of "
                f"{len(self.layers)} layers in float32; expected at least {100 * LEAST_SHARE:.0f} %: "
                "try a larger --max-drop"
            )
        return path, higher, ap

    def fixed(self) -> tuple[Path, tuple[str, ...], float]:
        """All layers, or those that a preset names."""
        name = self.settings.layers
        higher: tuple[str, ...] = ()
        if name != "all":
            higher = preset_layers(name, self.layers, operators=count_operators(self.proto))
        ap = self.measure(self.path(len(higher)), higher)
        self.check(ap, len(higher))
        return self.path(len(higher)), higher, ap

    def check(self, ap: float, returned: int) -> None:
        """Refuse what loses too much."""
        if ap < self.request.reference_ap - self.request.max_drop:
            raise self.refusal(ap, returned)

    def refusal(self, ap: float, returned: int) -> ExportError:
        reached = f"with {returned} of {len(self.layers)} layers in float32"
        return gate_error(ap, reference_ap=self.request.reference_ap, max_drop=self.request.max_drop, reached=reached)

    def measure(self, path: Path, higher: Sequence[str]) -> float:
        """Write a network and measure its AP."""
        self.tool.write(path, higher)
        ap = self.request.evaluate(path)
        self.trials.append(Trial(len(higher), ap))
        self.request.progress(f"{self.request.format}: AP {100 * ap:.2f} with {len(higher)} layers in float32")
        return ap

    def most_returned(self) -> int:
        """How many layers may be returned until too little work is left in int8."""
        if not self.ranking:
            self.rank()
        names = [entry.layer.name for entry in self.ranking]
        return sum(share_int8(self.layers, names[:count]) >= LEAST_SHARE for count in range(1, len(names) + 1))

    def rank(self) -> None:
        """Measure how sensitive the layers are."""
        self.request.progress(f"measuring how sensitive {len(self.layers)} layers are to int8")
        self.ranking = measure_sensitivity(self.request, self.calibration())

    def calibration(self) -> OnnxQuantiser:
        """The network with the ranges of its maps, found once."""
        if self.calibrated is None:
            settings = self.settings
            self.request.progress(f"calibrating with {self.request.num_images} images")
            self.calibrated = calibrate(
                self.request, self.layers, method=settings.method, seven_bits=settings.seven_bits
            )
        return self.calibrated

    def report(self, higher: Sequence[str]) -> None:
        """Write table and picture of the sensitivities, if they were asked for."""
        folder = self.settings.sensitivity
        if folder is None:
            return
        if not self.ranking:
            self.rank()
        name = self.request.format
        make_folder(folder)
        write_text_atomically(folder / f"sensitivity-{name}.csv", sensitivity_csv(self.ranking, higher))
        title = f"{self.request.card.structure.name}: sensitivity to int8 ({name})"
        write_bytes_atomically(folder / f"sensitivity-{name}.png", sensitivity_png(self.ranking, higher, title=title))

    def path(self, returned: int) -> Path:
        """File of a trial."""
        suffix = ".xml" if self.request.format == "openvino" else ".onnx"
        return self.request.folder / f"returned-{returned}{suffix}"

    def details(self, higher: Sequence[str], share: float, ap: float) -> Mapping[str, Any]:
        """What the card says."""
        request, settings = self.request, self.settings
        if isinstance(self.tool, OpenVinoQuantiser):
            tool, method = self.tool.tool, "accuracy-aware" if settings.accuracy_aware else "plain"
        else:
            runtime = require("onnxruntime", extra="onnx", purpose="quantising a network")
            tool, method = f"onnxruntime {runtime.__version__}", settings.method
        return {
            "tool": tool,
            "activations": "int8" if request.format == "tensorrt" else "uint8",
            "weights": "int8, per output channel" + (", 7 bits" if settings.seven_bits else ""),
            "calibration": {"method": method, "num_images": request.num_images},
            "layers": settings.layers,
            "num_layers": len(self.layers),
            "higher_precision": list(higher),
            "share_macs": share,
            "reference_ap": request.reference_ap,
            "ap": ap,
            "drop": request.reference_ap - ap,
            "max_drop": request.max_drop,
            "trials": [{"returned": trial.returned, "ap": trial.ap} for trial in self.trials],
            "sensitivities": {entry.layer.name: entry.value for entry in self.ranking},
        }
