"""What an exported artifact is: its card, `model.json`, which lies beside the files and knows their hashes.

Neither torch nor a runtime is needed to read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from maenas.records import is_count, is_number, shown
from maenas.structure import Structure, structure_from_dict

from .errors import ExportError

SCHEMA_VERSION = 2
METADATA_KEY = "maenas"
"""Under this name the card is also inside ONNX and OpenVINO files, for other programs."""

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine"}
"""Formats and the suffixes of their files."""

FORMS = ("raw", "decoded", "nms")
PRECISIONS = ("fp32", "fp16", "int8")
INPUT_NAME = "images"
RESIZE = "bilinear, stretched, no antialiasing"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: In the file.
        dtype: Such as `float32`.
        shape: One length per axis; None where it is free.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class NmsSettings:
    """Settings inside a file of the nms form.

    Attributes:
        score_threshold: Pairs of point and class strictly above it are kept.
        iou_threshold: Of two boxes of one class that overlap more, the better stays.
        max_detections: Rows per image.
    """

    score_threshold: float = 0.05
    iou_threshold: float = 0.7
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name in ("score_threshold", "iou_threshold"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ExportError(f"{name} is {value!r}; expected a number from 0 to 1")
        if not is_count(self.max_detections):
            raise ExportError(f"max_detections is {self.max_detections!r}; expected a whole number, 1 or more")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the input must hold; the published networks normalise nothing."""

    layout: str = "NCHW"
    channels: str = "RGB"
    value_range: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: str = RESIZE


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of an artifact as it was when it was written.

    Attributes:
        name: Within the card's folder.
        sha256: In hexadecimal digits.
        size_bytes: Of the file.
    """

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a TensorRT engine was built for; it runs nowhere else.

    Attributes:
        tensorrt: Version, such as `10.13.3.9`.
        gpu: Name of the GPU.
        compute_capability: Such as `8.9`.
        smallest: (B, 3, H, W) that the engine takes at least.
        usual: (B, 3, H, W) that it was optimised for.
        largest: (B, 3, H, W) that it takes at most.
        suppression: `plugin` (EfficientNMS) or `operators` (the NMS layer), in the nms form; else None.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    smallest: tuple[int, int, int, int]
    usual: tuple[int, int, int, int]
    largest: tuple[int, int, int, int]
    suppression: str | None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything a user of an exported artifact must know.

    Attributes:
        structure: The network.
        class_names: One name per class, in label order.
        image_size: (height, width) that the file was made for; the only one unless the input's sides are free.
        input: Name, dtype and shape (B, 3, H, W).
        outputs: The same of every output.
        form: One of `FORMS`.
        precision: One of `PRECISIONS`, that was asked for; input, outputs and decoding are float32 in all of them. What
            runtimes really compute in is told by `proofs`.
        nms: Settings inside the file, in the nms form.
        opset: Version of the ONNX operator set that the graph was written in.
        format: One of `FORMATS`.
        files: Of the artifact, without the card itself; empty in the copy of the card inside a file.
        preprocessing: What the input must hold.
        versions: Of the packages that made the file.
        engine: What a TensorRT engine was built for; None for other formats.
        quantisation: How an int8 artifact was made (`detector.export_int8.Quantised.details`); None for others.
        proofs: Per runtime: which precision its convolutions and products ran in (`detector.export_precision`).
        parity: How far runtimes are from torch (`detector.export_parity`); None if nothing was verified.
        provenance: Where the weights come from.
    """

    structure: Structure
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    form: str
    precision: str
    nms: NmsSettings | None
    opset: int
    format: str = "onnx"
    files: tuple[FileRecord, ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    versions: Mapping[str, str] = field(default_factory=dict)
    engine: EngineFacts | None = None
    quantisation: Mapping[str, Any] | None = None
    proofs: tuple[Mapping[str, Any], ...] = ()
    parity: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices: tuple[str, ...]
        for name, value, choices in (
            ("form", self.form, FORMS),
            ("precision", self.precision, PRECISIONS),
            ("format", self.format, tuple(FORMATS)),
        ):
            if value not in choices:
                raise ExportError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
        wanted = self.structure.head.num_classes
        if len(self.class_names) != wanted:
            raise ExportError(f"class_names has {len(self.class_names)} entries; expected {wanted}, as num_classes")
        if (self.form == "nms") != (self.nms is not None):
            raise ExportError(f"nms is {self.nms}; expected settings in the nms form, and none in others")
        if len(self.input.shape) != 4:
            raise ExportError(f"input.shape is {list(self.input.shape)}; expected 4 entries, as (B, 3, H, W)")
        if any(side not in (None, own) for side, own in zip(self.input.shape[2:], self.image_size, strict=True)):
            raise ExportError(
                f"image_size is {list(self.image_size)}; expected {list(self.input.shape[2:])}, the sides of the input"
            )

    @property
    def batch(self) -> int | None:
        """Images per run, or None for any number."""
        return self.input.shape[0]

    @property
    def fixed_size(self) -> bool:
        """Whether only `image_size` is taken."""
        return None not in self.input.shape[2:]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "structure"}
        plain = {
            name: asdict(value) if hasattr(value, "__dataclass_fields__") else value for name, value in values.items()
        }
        plain["outputs"] = [asdict(output) for output in self.outputs]
        plain["files"] = [asdict(file) for file in self.files]
        head = {"schema_version": SCHEMA_VERSION, "digest": self.structure.digest}
        record = {**head, **plain, "structure": self.structure.to_dict()}
        return json.loads(json.dumps(record))

    @classmethod
    def from_dict(cls, content: object, *, source: str) -> ModelCard:
        """Check and read the form that `to_dict` gives.

        Args:
            content: Decoded JSON.
            source: Where it comes from; begins every message.

        Raises:
            ExportError: Naming the field, its value and what was expected.
            StructureError: The structure does not describe a detector.
        """
        _check_version(content, source)
        record = _checked(content, _FIELDS, source)
        structure = structure_from_dict(record["structure"], source=f"{source}: structure")
        if record["digest"] != structure.digest:
            raise ExportError(
                f"{source}: digest is {shown(record['digest'])}; expected {structure.digest}, that of its structure"
            )
        if not all(isinstance(name, str) for name in record["class_names"]):
            raise ExportError(f"{source}: class_names is {shown(record['class_names'])}; expected names only")
        try:
            return cls(
                structure=structure,
                class_names=tuple(record["class_names"]),
                image_size=_sides(record["image_size"], f"{source}: image_size"),
                input=_tensor(record["input"], f"{source}: input"),
                outputs=tuple(_tensor(output, f"{source}: outputs") for output in record["outputs"]),
                form=record["form"],
                precision=record["precision"],
                nms=None if record["nms"] is None else _nms(record["nms"], f"{source}: nms"),
                opset=record["opset"],
                format=record["format"],
                files=tuple(_file(file, f"{source}: files") for file in record["files"]),
                preprocessing=_preprocessing(record["preprocessing"], f"{source}: preprocessing"),
                versions=record["versions"],
                engine=None if record["engine"] is None else _engine(record["engine"], f"{source}: engine"),
                quantisation=record["quantisation"],
                proofs=tuple(record["proofs"]),
                parity=record["parity"],
                provenance=record["provenance"],
            )
        except ExportError as error:
            prefix = "" if str(error).startswith(source) else f"{source}: "
            raise ExportError(f"{prefix}{error}") from error


_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "schema_version": object,
    "digest": str,
    "structure": dict,
    "class_names": list,
    "image_size": list,
    "input": dict,
    "outputs": list,
    "form": str,
    "precision": str,
    "nms": (dict, type(None)),
    "opset": int,
    "format": str,
    "files": list,
    "preprocessing": dict,
    "versions": dict,
    "engine": (dict, type(None)),
    "quantisation": (dict, type(None)),
    "proofs": list,
    "parity": (dict, type(None)),
    "provenance": dict,
}
_KINDS = {str: "text", dict: "an object", list: "a list", int: "a whole number", type(None): "null"}


def _check_version(content: object, source: str) -> None:
    """Before the fields, which differ between versions."""
    version = content.get("schema_version") if isinstance(content, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise ExportError(
            f"{source}: schema_version is {shown(version)}; expected {SCHEMA_VERSION}: export again with this version"
        )


def _checked(content: object, fields: Mapping[str, type | tuple[type, ...]], source: str) -> dict[str, Any]:
    """The content, if it is an object with exactly these fields of these kinds."""
    if not isinstance(content, dict):
        raise ExportError(f"{source}: the card is {shown(content)}; expected an object")
    for name in content:
        if name not in fields:
            raise ExportError(f"{source}: {name} is unknown; expected {', '.join(fields)}")
    for name, kinds in fields.items():
        if name not in content:
            raise ExportError(f"{source}: {name} is missing")
        if not isinstance(content[name], kinds):
            expected = " or ".join(_KINDS[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise ExportError(f"{source}: {name} is {shown(content[name])}; expected {expected}")
    return content


def _tensor(content: object, source: str) -> TensorSpec:
    record = _checked(content, {"name": str, "dtype": str, "shape": list}, source)
    shape = record["shape"]
    if not all(length is None or is_count(length) for length in shape):
        raise ExportError(f"{source}: shape is {shown(shape)}; expected whole numbers, or null where free")
    return TensorSpec(record["name"], record["dtype"], tuple(shape))


def _file(content: object, source: str) -> FileRecord:
    record = FileRecord(**_checked(content, {"name": str, "sha256": str, "size_bytes": int}, source))
    if not re.fullmatch(r"[^/\\\x00]+", record.name) or record.name in (".", ".."):
        raise ExportError(f"{source}: name is {shown(record.name)}; expected the name of a file beside the card")
    return record


def _engine(content: object, source: str) -> EngineFacts:
    shapes = ("smallest", "usual", "largest")
    kinds = {**dict.fromkeys(("tensorrt", "gpu", "compute_capability"), str), **dict.fromkeys(shapes, list)}
    record = _checked(content, {**kinds, "suppression": (str, type(None))}, source)
    for name in shapes:
        shape = record[name]
        if len(shape) != 4 or not all(is_count(length) for length in shape):
            raise ExportError(f"{source}: {name} is {shown(shape)}; expected [B, 3, H, W]")
        record[name] = tuple(shape)
    return EngineFacts(**record)


def _nms(content: object, source: str) -> NmsSettings:
    fields = {"score_threshold": object, "iou_threshold": object, "max_detections": object}
    try:
        return NmsSettings(**_checked(content, fields, source))
    except ExportError as error:
        prefix = "" if str(error).startswith(source) else f"{source}: "
        raise ExportError(f"{prefix}{error}") from error


def _preprocessing(content: object, source: str) -> Preprocessing:
    """The record, which must state what readers of this version do; none is silently ignored."""
    record = _checked(content, dict.fromkeys(Preprocessing.__dataclass_fields__, object), source)
    expected = json.loads(json.dumps(asdict(Preprocessing())))
    for name, value in record.items():
        if value != expected[name]:
            raise ExportError(f"{source}: {name} is {shown(value)}; expected {shown(expected[name])}")
    return Preprocessing()


def _sides(content: object, source: str) -> tuple[int, int]:
    if not isinstance(content, list) or len(content) != 2 or not all(is_count(side) for side in content):
        raise ExportError(f"{source} is {shown(content)}; expected [height, width]")
    return content[0], content[1]
