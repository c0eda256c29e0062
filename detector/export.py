"""A deployed network as artifacts that are kept only after runtimes have reproduced torch's results from the files."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.errors import MaenasError
from maenas.extras import require
from maenas.files import check_place, make_folder, write_bytes_atomically, write_text_atomically

from .artifact import FORMATS, ModelCard
from .artifact_files import card_path, read_card, record_file
from .errors import ExportError
from .export_accuracy import Accuracy, ExportData, check_accuracy, measure, quantise_request
from .export_formats import write_format
from .export_graph import ExportOptions, Graph, build_graph, check_options
from .export_parity import ParityCheck, check_parity
from .export_precision import PrecisionProof, prove_precision
from .export_reference import Reference, check_half_range, make_references
from .model import Detector
from .onnx_verify import RuntimeCheck, verify_export
from .tensorrt_build import EngineOptions

if TYPE_CHECKING:
    from .export_int8 import Quantiser

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how well runtimes reproduce it.

    Attributes:
        path: The artifact's main file.
        card_path: Its card.
        card: What that says.
        size_bytes: Of all files but the card.
        nodes: Number of ONNX nodes per operator type, in the graph the artifact was made of.
        checks: Comparisons of the graph's inner tensors with torch's, before writing; empty without verification.
        parity: Comparisons of what comes out of the written files; empty without verification.
        accuracy: AP of torch and of the artifact, per runtime; empty without data.
        proofs: Which precision the runtimes compute in; empty without verification.
        complaints: Why the artifact is wrong, if it was kept by force; else empty.
    """

    path: Path
    card_path: Path
    card: ModelCard
    size_bytes: int
    nodes: Mapping[str, int]
    checks: tuple[RuntimeCheck, ...] = ()
    parity: tuple[ParityCheck, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    proofs: tuple[PrecisionProof, ...] = ()
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportChecks:
    """How an export is checked.

    Attributes:
        verify: Compare with torch at all.
        data: Pictures and annotations for parity, AP and calibration; None: made-up images only.
        force: Keep artifacts that differ from torch; the card and the report then say so.
        max_drop: Largest loss of AP (0 ... 1) against torch, where there is data; None: that of the precision.
    """

    verify: bool = True
    data: ExportData | None = None
    force: bool = False
    max_drop: float | None = None


def export_onnx(
    model: Detector,
    path: str | Path,
    *,
    class_names: Sequence[str],
    outputs: str = "decoded",
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    precision: str = "fp32",
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.7,
    max_detections: int = 100,
    opset: int = 18,
    verify: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a network as ONNX with its card; `export_artifacts` for one file and without data.

    Args:
        model: In its deployed form.
        path: File to write, ending in .onnx; its folder is made. An existing file is replaced.
        class_names: One name per class, in label order.
        outputs: `raw`, `decoded` or `nms`; see `detector.export_graph.ExportOptions`, as for all that follow.
        dynamic_batch: Leave B free.
        dynamic_size: Leave H and W free (multiples of 32).
        precision: Of weights and maps: `fp32` or `fp16`; input, decoding and outputs are float32 in both.
        batch_size: B where it is not free.
        image_size: (height, width) where not free; by default the structure's.
        score_threshold: Of the nms form.
        iou_threshold: Of the nms form.
        max_detections: Of the nms form.
        opset: Version of the operator set.
        verify: Compare with torch in ONNX Runtime, and in OpenVINO where it is installed, before anything is kept.
        provenance: Where the weights come from; plain JSON for the card.

    Raises:
        ExportError: The network is not deployed, an option is out of range, or a runtime computes something else; no
            file is written then.
        MissingExtraError: onnx, onnxscript, or (to verify) onnxruntime is not installed.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ExportError(f"{path}: suffix is {path.suffix!r}; expected .onnx")
    options = ExportOptions(
        outputs=outputs,
        precision=precision,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
        batch_size=batch_size,
        image_size=image_size,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        opset=opset,
    )
    job = _Job(model, tuple(class_names), options, ExportChecks(verify=verify), provenance or {})
    check_place(path)
    return job.export("onnx", path)


def export_artifacts(
    model: Detector,
    folder: str | Path,
    *,
    class_names: Sequence[str],
    formats: Sequence[str] = ("onnx",),
    options: ExportOptions | None = None,
    checks: ExportChecks | None = None,
    engine: EngineOptions | None = None,
    quantiser: Quantiser | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[ExportReport, ...]:
    """Write a network in one or several formats, each with its card, after comparing the files with torch.

    Args:
        model: In its deployed form.
        folder: Of the artifact; with several formats each has a folder of its name below it. Existing files are
            replaced.
        class_names: One name per class, in label order.
        formats: `onnx`, `openvino`, `tensorrt`.
        options: What the artifacts hold.
        checks: How they are checked.
        engine: How TensorRT builds.
        quantiser: Makes int8 of fp32; needed for that precision, as is data.
        provenance: Where the weights come from; plain JSON for the cards.
        progress: Called with one line per step.

    Returns:
        One report per format.

    Raises:
        ExportError: The network is not deployed, an option is out of range, or an artifact computes something else and
            `checks.force` is not set; formats before it are kept then.
        MissingExtraError: A package is not installed.
        OutputError: A file cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or len(set(formats)) != len(formats):
        raise ExportError(
            f"formats is {', '.join(formats) or 'empty'}; expected some of {', '.join(FORMATS)}, each once"
        )
    options, checks = options or ExportOptions(), checks or ExportChecks()
    job = _Job(model, tuple(class_names), options, checks, provenance or {}, engine, quantiser, progress)
    paths = artifact_paths(Path(folder), formats)
    for path in paths.values():
        check_place(path)
    return tuple(job.export(name, path) for name, path in paths.items())


def artifact_paths(folder: Path, formats: Sequence[str]) -> dict[str, Path]:
    """The main file of every format: in the folder itself where there is one format, below it where there are more."""
    places = {name: folder if len(formats) == 1 else folder / name for name in formats}
    return {name: place / f"model{FORMATS[name]}" for name, place in places.items()}


@dataclass
class _Job:
    """A network to be written, with what its formats have in common; graphs and references are made once."""

    model: Detector
    class_names: tuple[str, ...]
    options: ExportOptions
    checks: ExportChecks
    provenance: Mapping[str, Any]
    engine: EngineOptions | None = None
    quantiser: Quantiser | None = None
    progress: Progress | None = None
    graphs: dict[str, Graph] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    graph_checks: dict[str, tuple[RuntimeCheck, ...]] = field(default_factory=dict)
    graph_complaints: dict[str, str] = field(default_factory=dict)
    torch_accuracy: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_options(self.model, self.options)
        try:
            json.dumps(dict(self.provenance), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ExportError(f"provenance must be plain JSON ({error})") from error
        if self.checks.verify:
            require("onnxruntime", extra="onnx", purpose="verifying an export with ONNX Runtime")
        if self.options.precision == "int8" and (self.quantiser is None or self.checks.data is None):
            raise ExportError("precision is 'int8'; expected a quantiser and data to calibrate and measure it with")

    def export(self, name: str, path: Path) -> ExportReport:
        """Write one format, check what was written, and keep it if it is right."""
        precision = self.options.precision
        # OpenVINO narrows weights itself; int8 begins at fp32.
        graph = self.graph("fp16" if precision == "fp16" and name != "openvino" else "fp32")
        with tempfile.TemporaryDirectory(prefix="maenas-export-") as scratch:
            staged = Path(scratch) / "artifact" / path.name
            staged.parent.mkdir()
            self.tell(f"{name}: writing")
            card = self.write(name, graph, staged, Path(scratch))
            card = replace(card, files=tuple(record_file(file) for file in sorted(staged.parent.iterdir())))
            _write_card(card, staged)
            complaints = [self.graph_complaints[graph.precision]] if graph.precision in self.graph_complaints else []
            parity: tuple[ParityCheck, ...] = ()
            accuracy: tuple[Accuracy, ...] = ()
            proofs: tuple[PrecisionProof, ...] = ()
            if self.checks.verify:
                self.tell(f"{name}: comparing with torch")
                parity = check_parity(staged, self.model, self.references)
                complaints += [check.complaint() for check in parity if check.failures]
                if self.checks.data is not None and not complaints:
                    self.tell(f"{name}: measuring AP")
                    reference = self.reference_accuracy(card)
                    accuracy = check_accuracy(staged, reference, self.checks.data, max_drop=self.checks.max_drop)
                    complaints += [entry.complaint() for entry in accuracy if not entry.passed]
                proofs = prove_precision(staged)
            if complaints and not self.checks.force:
                raise ExportError(f"{complaints[0]}; no file was written")
            card = replace(
                card,
                proofs=tuple(proof.to_dict() for proof in proofs),
                parity=self.parity_record(graph, parity, accuracy, complaints),
            )
            _keep(card, staged, path)
        return ExportReport(
            path=path,
            card_path=card_path(path),
            card=card,
            size_bytes=sum(file.size_bytes for file in card.files),
            nodes=dict(Counter(node.op_type for node in graph.proto.graph.node).most_common()),
            checks=self.graph_checks.get(graph.precision, ()),
            parity=parity,
            accuracy=accuracy,
            proofs=proofs,
            complaints=tuple(complaints),
        )

    def graph(self, precision: str) -> Graph:
        """The network in one precision, compared with torch."""
        if precision not in self.graphs:
            self.tell(f"tracing the network in {precision}")
            graph = build_graph(self.model, self.class_names, self.options, precision, self.provenance)
            self.graphs[precision] = graph
            if self.checks.verify:
                if not self.references:
                    photographs = (
                        () if self.checks.data is None else self.checks.data.photographs(graph.card.image_size)
                    )
                    self.references = make_references(self.model, graph.card, photographs)
                if precision == "fp16":
                    check_half_range(self.model, self.references[0].images)
                self.tell("comparing the graph with torch")
                self.verify(graph)
        return self.graphs[precision]

    def verify(self, graph: Graph) -> None:
        """Compare inner tensors, which shows errors that results hide."""
        try:
            self.graph_checks[graph.precision] = verify_export(self.references, graph.proto, graph.card, graph.tail)
        except ExportError as error:
            if not self.checks.force:
                raise ExportError(f"{error}; no file was written") from error
            self.graph_complaints[graph.precision] = str(error)

    def write(self, name: str, graph: Graph, staged: Path, scratch: Path) -> ModelCard:
        """Write the files of a format; returns the card, without its files."""
        card = replace(graph.card, format=name, precision=self.options.precision)
        if card.precision != "int8":
            return write_format(graph, card, staged, engine=self.engine)
        assert self.quantiser is not None and self.checks.data is not None
        reference = self.reference_accuracy(card)
        request = quantise_request(graph, reference, self.checks, name=name, scratch=scratch, progress=self.tell)
        quantised = self.quantiser(request)
        card = replace(card, quantisation=dict(quantised.details))
        return write_format(graph, card, staged, engine=self.engine, quantised=quantised.path)

    def reference_accuracy(self, card: ModelCard) -> tuple[float, float]:
        """AP and AP50 in torch, measured once."""
        assert self.checks.data is not None
        if self.torch_accuracy is None:
            self.tell("measuring AP in torch")
            self.torch_accuracy = measure(self.model, card, self.checks.data)
        return self.torch_accuracy

    def parity_record(
        self,
        graph: Graph,
        parity: Sequence[ParityCheck],
        accuracy: Sequence[Accuracy],
        complaints: Sequence[str],
    ) -> dict[str, Any] | None:
        """What the card says about the comparison."""
        if not self.checks.verify:
            return None
        return {
            "passed": not complaints,
            "complaints": list(complaints),
            "graph": [check.to_dict() for check in self.graph_checks.get(graph.precision, ())],
            "artifact": [check.to_dict() for check in parity],
            "accuracy": [entry.to_dict() for entry in accuracy],
        }

    def tell(self, line: str) -> None:
        """Say what is going on."""
        if self.progress is not None:
            self.progress(line)


def _write_card(card: ModelCard, path: Path) -> None:
    text = json.dumps(card.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(card_path(path), text + "\n")


def _keep(card: ModelCard, staged: Path, path: Path) -> None:
    """Copy the files to their place, the card last: until then the old card's hashes tell that they do not belong.

    Files of the artifact that was there before and are no part of the new one are taken away: its card is gone.
    """
    make_folder(path.parent)
    try:
        before = {file.name for file in read_card(card_path(path)).files}
    except MaenasError:
        before = set()
    for file in card.files:
        write_bytes_atomically(path.parent / file.name, (staged.parent / file.name).read_bytes())
    _write_card(card, path)
    for name in before - {file.name for file in card.files}:
        (path.parent / name).unlink(missing_ok=True)
