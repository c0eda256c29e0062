"""The structure of a detector: one explicit, versioned JSON format, owned here and read by every other part.

Nothing about a layer is implied by its position: widths of every unit, kernels, strides, SPP, SE and the stem are
written out. Field by field: docs/structure-format.md. Loads the standard library only, so that any part can import it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maenas.errors import StructureError, reason_of
from maenas.files import write_text_atomically
from maenas.records import build, require, shown

SCHEMA_VERSION = 1
FAMILIES = ("res", "csp", "mob", "kxkx")
ACTIVATIONS = ("relu", "silu", "leaky_relu")
STEM_KINDS = ("focus", "conv")
FUSION_STYLES = ("conv", "csp", "csp_reparam", "csp_elan")
EXTRA_EDGES = ("none", "down", "up", "both")
LEVEL_STRIDES = ((8, 16, 32), (4, 8, 16, 32))
"""Image pixels per cell of a detector's levels: three, or one more for small objects."""
MAX_CHANNELS = 65_536
MAX_FILE_BYTES = 1_000_000


def _require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, field, value, "one of " + ", ".join(choices))


def _require_channels(field: str, value: int) -> None:
    require(1 <= value <= MAX_CHANNELS, field, value, f"an integer from 1 to {MAX_CHANNELS}")


def _require_kernel(field: str, value: int) -> None:
    require(1 <= value <= 31 and value % 2 == 1, field, value, "an odd integer from 1 to 31")


@dataclass(frozen=True, slots=True)
class Stem:
    """First convolution: `focus` (space-to-depth by 2, then a stride-1 conv) or `conv` (a conv with a stride).

    Attributes:
        kind: One of STEM_KINDS.
        in_channels: Channels of the image; a focus stem's conv sees four times as many.
        out_channels: Width of the stem.
        kernel_size: Odd kernel side.
        stride: Stride of the convolution itself; 1 for focus (the rearrangement halves the map already).
    """

    kind: str
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int

    def __post_init__(self) -> None:
        _require_choice("kind", self.kind, STEM_KINDS)
        _require_channels("in_channels", self.in_channels)
        _require_channels("out_channels", self.out_channels)
        _require_kernel("kernel_size", self.kernel_size)
        allowed = (1,) if self.kind == "focus" else (1, 2)
        require(self.stride in allowed, "stride", self.stride, "1 for a focus stem, 1 or 2 for a conv stem")

    @property
    def total_stride(self) -> int:
        """Image pixels per cell of the stem's output."""
        return 2 if self.kind == "focus" else self.stride


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the backbone: units of one width, the first of which (or a down-sampler, in csp) has the stride.

    Attributes:
        out_channels: Output width; in csp the units run at half of it.
        hidden_channels: Hidden (bottleneck or expansion) width of each unit, one entry per unit; csp allows none.
        stride: 1 or 2.
        kernel_size: Kernel of the units' spatial convolution (the depthwise one in mob).
        se: Squeeze-and-excitation in every unit (mob only).
        spp: Spatial pyramid pooling after the first unit (after the down-sampler in csp).
    """

    out_channels: int
    hidden_channels: tuple[int, ...]
    stride: int
    kernel_size: int
    se: bool = False
    spp: bool = False

    def __post_init__(self) -> None:
        _require_channels("out_channels", self.out_channels)
        for index, hidden in enumerate(self.hidden_channels):
            _require_channels(f"hidden_channels[{index}]", hidden)
        require(len(self.hidden_channels) <= 256, "hidden_channels", list(self.hidden_channels), "at most 256 units")
        require(self.stride in (1, 2), "stride", self.stride, "1 or 2")
        _require_kernel("kernel_size", self.kernel_size)

    @property
    def depth(self) -> int:
        """Number of units."""
        return len(self.hidden_channels)


@dataclass(frozen=True, slots=True)
class Backbone:
    """Stem and stages of one block family.

    Attributes:
        family: `res` (1x1 then kxk), `kxkx` (kxk then kxk), `csp` (kxkx units inside a cross-stage-partial stage) or
            `mob` (inverted residual: 1x1, depthwise kxk, 1x1).
        activation: Activation of the units (csp's block-level convs are always ReLU, SPP always SiLU).
        stem: The first convolution.
        stages: The stages in order.
        out_stages: The stages (counted from 1) whose outputs the neck reads, at strides 8, 16 and 32, or 4, 8, 16, 32.
    """

    family: str
    activation: str
    stem: Stem
    stages: tuple[Stage, ...]
    out_stages: tuple[int, ...]

    def __post_init__(self) -> None:
        _require_choice("family", self.family, FAMILIES)
        _require_choice("activation", self.activation, ACTIVATIONS)
        require(3 <= len(self.stages) <= 64, "stages", len(self.stages), "3 to 64 stages")
        for index, stage in enumerate(self.stages):
            self._check_stage(f"stages[{index}]", stage)
        increasing = list(self.out_stages) == sorted(set(self.out_stages))
        within = all(1 <= s <= len(self.stages) for s in self.out_stages)
        few = len(self.out_stages) in (3, 4)
        expected = f"three or four increasing of 1 to {len(self.stages)}"
        require(few and increasing and within, "out_stages", list(self.out_stages), expected)
        strides = self.out_strides
        expected = f"strides 8, 16, 32 or 4, 8, 16, 32 (they are {strides})"
        require(strides in LEVEL_STRIDES, "out_stages", list(self.out_stages), expected)

    def _check_stage(self, field: str, stage: Stage) -> None:
        if self.family == "csp":
            require(stage.stride == 2, f"{field}.stride", stage.stride, "2 (a csp stage starts with a down-sampler)")
            even = stage.out_channels % 2 == 0
            require(even, f"{field}.out_channels", stage.out_channels, "an even number (csp units run at half of it)")
        else:
            require(stage.depth >= 1, f"{field}.hidden_channels", [], f"at least one unit in family {self.family}")
        if stage.spp:
            require(stage.out_channels % 2 == 0, f"{field}.out_channels", stage.out_channels, "an even number with spp")
        require(not stage.se or self.family == "mob", f"{field}.se", stage.se, "false (only family mob has SE)")
        if stage.se:
            for index, hidden in enumerate(stage.hidden_channels):
                require(hidden >= 4, f"{field}.hidden_channels[{index}]", hidden, "at least 4 with SE")

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per cell after the stem (index 0) and after each stage (index 1, 2, ...)."""
        strides = [self.stem.total_stride]
        for stage in self.stages:
            strides.append(strides[-1] * stage.stride)
        return tuple(strides)

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Image pixels per cell of the feature maps handed to the neck."""
        return tuple(self.strides[index] for index in self.out_stages)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the feature maps handed to the neck."""
        return tuple(self.stages[index - 1].out_channels for index in self.out_stages)


@dataclass(frozen=True, slots=True)
class Neck:
    """RepGFPN neck.

    Attributes:
        out_channels: Channels of the outputs, one per level of the backbone.
        num_blocks: Basic blocks in each fusion block; 0 keeps only its 1x1 convs.
        hidden_ratio: Hidden width of a basic block relative to its width (not used when depthwise).
        activation: Activation everywhere in the neck.
        depthwise: Inverted-residual basic blocks and depthwise-separable down-samplers.
        fusion: Fusion block: `csp_elan` (the released one), `csp_reparam`, `csp` or `conv` (paper, Table 5).
        extra_edges: Queen-fusion edges: `down` (the released ones), `none`, `up` or `both` (paper, Table 4; `up` and
            `both` follow the nearest known reading, see docs/structure-format.md).
    """

    out_channels: tuple[int, ...]
    num_blocks: int
    hidden_ratio: float
    activation: str
    depthwise: bool
    fusion: str = "csp_elan"
    extra_edges: str = "down"

    def __post_init__(self) -> None:
        few = len(self.out_channels) in (3, 4)
        require(few, "out_channels", list(self.out_channels), "three or four widths")
        for index, channels in enumerate(self.out_channels):
            require(2 <= channels <= MAX_CHANNELS, f"out_channels[{index}]", channels, "an integer of at least 2")
        require(0 <= self.num_blocks <= 64, "num_blocks", self.num_blocks, "an integer from 0 to 64")
        require(0.0 < self.hidden_ratio <= 8.0, "hidden_ratio", self.hidden_ratio, "a number above 0, at most 8")
        _require_choice("activation", self.activation, ACTIVATIONS)
        _require_choice("fusion", self.fusion, FUSION_STYLES)
        _require_choice("extra_edges", self.extra_edges, EXTRA_EDGES)
        depthwise_fits = not self.depthwise or self.fusion == "csp_elan"
        require(depthwise_fits, "fusion", self.fusion, "csp_elan when depthwise is true")


@dataclass(frozen=True, slots=True)
class Head:
    """ZeroHead: one class conv and one box conv per level, optionally behind towers (paper, Table 6).

    Attributes:
        num_classes: Object classes.
        reg_max: Largest bin R of the box distribution; each side has R + 1 bins.
        kernel_size: Kernel of the two projections.
        tower_depth: Convs per tower before each projection; 0 is ZeroHead.
        tower_channels: Width of the towers (ignored without towers).
        background_class: A trailing background channel (old checkpoints trained with `legacy`).
    """

    num_classes: int
    reg_max: int
    kernel_size: int
    tower_depth: int = 0
    tower_channels: int = 256
    background_class: bool = False

    def __post_init__(self) -> None:
        require(1 <= self.num_classes <= 100_000, "num_classes", self.num_classes, "an integer from 1 to 100000")
        require(1 <= self.reg_max <= 128, "reg_max", self.reg_max, "an integer from 1 to 128")
        _require_kernel("kernel_size", self.kernel_size)
        require(0 <= self.tower_depth <= 16, "tower_depth", self.tower_depth, "an integer from 0 to 16")
        _require_channels("tower_channels", self.tower_channels)


@dataclass(frozen=True, slots=True)
class Structure:
    """A whole detector: image size, backbone, neck, head.

    Attributes:
        name: Label for people; no part of the digest.
        image_size: Input (height, width) in pixels, multiples of 32.
        backbone: Feature extractor.
        neck: Feature fusion.
        head: Prediction layers.
    """

    name: str
    image_size: tuple[int, int]
    backbone: Backbone
    neck: Neck
    head: Head

    def __post_init__(self) -> None:
        plain = self.name.isprintable() and len(self.name) <= 200
        require(plain, "name", self.name, "at most 200 printable characters")
        for index, side in enumerate(self.image_size):
            fits = 32 <= side <= 8192 and side % 32 == 0
            require(fits, f"image_size[{index}]", side, "a multiple of 32 from 32 to 8192")
        levels, widths = len(self.backbone.out_stages), list(self.neck.out_channels)
        agree = len(widths) == levels
        require(agree, "neck.out_channels", widths, f"{levels} widths, as many as backbone.out_stages has stages")

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per cell of the levels that are predicted on, fine to coarse."""
        return self.backbone.out_strides

    @property
    def digest(self) -> str:
        """Twelve hex digits of the SHA-256 of the canonical JSON without the name; the same on every machine."""
        content = self.to_dict()
        del content["name"]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, with `schema_version` first."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"schema_version": SCHEMA_VERSION, **content}


def with_fine_level(structure: Structure) -> Structure:
    """The detector with one more level, at stride 4, for small objects; everything else stays as it is.

    The level reads the last stage at stride 4. Its neck output has half the channels of the next level, rounded up to
    a multiple of 8.

    Raises:
        StructureError: It has the level already.
    """
    backbone, neck = structure.backbone, structure.neck
    if structure.strides[0] == LEVEL_STRIDES[1][0]:
        raise StructureError(f"{structure.name}: has a level at stride 4 already; expected 8, 16, 32")
    stage = max(index for index, stride in enumerate(backbone.strides) if stride == LEVEL_STRIDES[1][0])
    width = (neck.out_channels[0] // 2 + 7) // 8 * 8
    return dataclasses.replace(
        structure,
        name=f"{structure.name}-p2",
        backbone=dataclasses.replace(backbone, out_stages=(stage, *backbone.out_stages)),
        neck=dataclasses.replace(neck, out_channels=(width, *neck.out_channels)),
    )


def structure_from_dict(content: object, *, source: str = "structure") -> Structure:
    """Build and check a structure from a parsed JSON object.

    Raises:
        StructureError: Naming source, field, value and what was expected.
    """
    if not isinstance(content, dict):
        raise StructureError(f"{source}: is {type(content).__name__}; expected a JSON object")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StructureError(f"{source}: schema_version is {shown(version)}; expected {SCHEMA_VERSION}")
    fields = {key: value for key, value in content.items() if key != "schema_version"}
    return build(Structure, fields, source=source, error=StructureError)


def load_structure(path: str | Path) -> Structure:
    """Read a structure file.

    Raises:
        StructureError: The file cannot be read, is not JSON, or does not describe a detector.
    """
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise StructureError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; expected a structure file")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StructureError(f"{path}: cannot be read as text ({reason_of(error)})") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StructureError(f"{path}: is not valid JSON ({error}); expected a structure file") from error
    return structure_from_dict(content, source=str(path))


def save_structure(structure: Structure, path: str | Path) -> None:
    """Write a structure file; the old file stays whole until the new one is complete.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    write_text_atomically(Path(path), json.dumps(structure.to_dict(), indent=2) + "\n")
