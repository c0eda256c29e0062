"""Search spaces as data: which widths, depths and kernels each stage may take, read from YAML.

Every field is documented in the shipped files (search_spaces/*.yaml) and in docs/search-spaces.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from maenas.errors import SpaceError, reason_of
from maenas.lowering.backbone import stage_shapes
from maenas.records import build, parse_yaml, require, shown
from maenas.resources import data_folder
from maenas.scores import GRAPHS, MADNAS_WEIGHTS, levels_of
from maenas.space_parts import MAX_WEIGHT, Regularisers, StageSpace, StemSpace, Variant
from maenas.structure import ACTIVATIONS, FAMILIES, Backbone, Neck, Stage, Stem, Structure

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """A family of detectors (see the shipped YAML files for every field).

    Attributes:
        name: Name of the space.
        description: One line for people.
        family: Block family.
        activation: Activation of units and neck.
        image_size: (height, width).
        stem: Stem choices.
        stages: Stage choices.
        out_stages: Stages the neck reads, counted from 1.
        variants: Neck and head settings; the first is the default.
        max_layers: Limit on main-path convolutions of the backbone, or none.
        graph: `deployed`, or `reference`: cost and score the reference tool's graph (backbone only).
        score_weights: Level weights of the madnas score.
        regularisers: Soft penalties.
    """

    name: str
    description: str
    family: str
    activation: str
    image_size: tuple[int, int]
    stem: StemSpace
    stages: tuple[StageSpace, ...]
    out_stages: tuple[int, int, int]
    variants: tuple[Variant, ...]
    max_layers: int | None = None
    graph: str = "deployed"
    score_weights: tuple[float, ...] = MADNAS_WEIGHTS
    regularisers: Regularisers = field(default_factory=Regularisers)

    def __post_init__(self) -> None:
        require(self.family in FAMILIES, "family", self.family, "one of " + ", ".join(FAMILIES))
        require(self.activation in ACTIVATIONS, "activation", self.activation, "one of " + ", ".join(ACTIVATIONS))
        for index, side in enumerate(self.image_size):
            fits = 32 <= side <= 8192 and side % 32 == 0
            require(fits, f"image_size[{index}]", side, "a multiple of 32 from 32 to 8192")
        require(self.graph in GRAPHS, "graph", self.graph, "one of " + ", ".join(GRAPHS))
        covered = self.graph == "deployed" or self.family in ("res", "kxkx")
        require(covered, "graph", self.graph, "deployed (the reference graph covers res and kxkx only)")
        require(len(self.variants) > 0, "variants", [], "at least one neck and head setting")
        names = [variant.name for variant in self.variants]
        require(len(set(names)) == len(names), "variants", names, "different names")
        require(self.max_layers is None or self.max_layers > 0, "max_layers", self.max_layers, "above 0, or null")
        for index, stage in enumerate(self.stages):
            if self.family != "csp":
                require(stage.depth.min >= 1, f"stages[{index}].depth.min", stage.depth.min, "at least 1")
            require(not stage.se or self.family == "mob", f"stages[{index}].se", stage.se, "false (mob only)")
            if self.family == "csp" or stage.spp:
                even = not np.any(stage.out_channels.values % 2)
                require(even, f"stages[{index}].out_channels", shown(stage.out_channels.divisor), "even widths only")
        num_levels = levels_of(tuple(stage.stride for stage in self.stages))[-1] + 1
        fits = len(self.score_weights) == num_levels
        require(fits, "score_weights", list(self.score_weights), f"{num_levels} numbers, one per level")
        bounded = all(abs(weight) <= MAX_WEIGHT for weight in self.score_weights)
        require(bounded, "score_weights", list(self.score_weights), f"finite numbers of at most {MAX_WEIGHT:g}")
        third = self.out_stages[2] == len(self.stages) and self.out_stages[1] == len(self.stages) - 1
        require(third, "out_stages", list(self.out_stages), "the last two stages and an earlier one")
        for index, variant in enumerate(self.variants):
            try:
                self.structure(Choice.smallest(self), variant)
            except ValueError as problem:
                raise ValueError(f"variants[{index}]: {problem}") from None

    @property
    def digest(self) -> str:
        """Twelve hex digits of the SHA-256 over every field but name and description."""
        content = asdict(self)
        del content["name"], content["description"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def variant(self, name: str | None = None) -> Variant:
        """A variant by name; the first one by default.

        Raises:
            SpaceError: Listing the names.
        """
        for variant in self.variants:
            if name is None or variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise SpaceError(f"space {self.name} has no variant {name!r}; expected one of {known}")

    def nearest_variant(self, structure: Structure) -> Variant:
        """The variant whose neck a structure has; the first one if none fits."""
        neck = structure.neck
        for variant in self.variants:
            fixed = variant.neck.out_channels
            follows = neck.out_channels == structure.backbone.out_channels
            same_widths = follows if fixed is None else neck.out_channels == fixed
            same_blocks = (neck.num_blocks, neck.hidden_ratio) == (variant.neck.num_blocks, variant.neck.hidden_ratio)
            if same_widths and same_blocks and structure.backbone.stem.kind == self.stem_of(variant).kind:
                return variant
        return self.variants[0]

    def stem_of(self, variant: Variant) -> StemSpace:
        """The stem choices under a variant."""
        return variant.stem or self.stem

    def structure(self, choice: Choice, variant: Variant, name: str = "") -> Structure:
        """The detector that a choice of widths, depths and kernels stands for."""
        stem = self.stem_of(variant)
        stages = tuple(
            Stage(out, (hidden,) * depth, stage.stride, kernel, stage.se, stage.spp)
            for stage, out, hidden, depth, kernel in zip(
                self.stages,
                choice.out_channels,
                choice.hidden_channels,
                choice.depths,
                choice.kernel_sizes,
                strict=True,
            )
        )
        stem_spec = Stem(stem.kind, stem.in_channels, choice.stem_channels, stem.kernel_size, stem.stride)
        backbone = Backbone(self.family, self.activation, stem_spec, stages, self.out_stages)
        neck = Neck(
            variant.neck.out_channels or backbone.out_channels,
            variant.neck.num_blocks,
            variant.neck.hidden_ratio,
            self.activation,
            variant.neck.depthwise,
            variant.neck.fusion,
            variant.neck.extra_edges,
        )
        return Structure(name or self.name, self.image_size, backbone, neck, variant.head)

    def why_not(self, structure: Structure) -> str | None:
        """The first reason why a structure is not in this space (in any variant), or None if it is."""
        backbone = structure.backbone
        if backbone.family != self.family:
            return f"backbone.family is {backbone.family}; the space has {self.family}"
        if len(backbone.stages) != len(self.stages) or backbone.out_stages != self.out_stages:
            return f"backbone has {len(backbone.stages)} stages; the space has {len(self.stages)}"
        for index, (space, shape) in enumerate(zip(self.stages, stage_shapes(backbone, self.image_size), strict=True)):
            reason = _why_not_stage(space, backbone.stages[index], int(shape.in_channels))
            if reason:
                return f"backbone.stages[{index}].{reason}"
        choice = Choice.of(structure)
        reasons = []
        for variant in self.variants:
            stem = self.stem_of(variant)
            if choice.stem_channels not in stem.out_channels.values:
                reasons.append(f"backbone.stem.out_channels is {choice.stem_channels}")
            elif self.structure(choice, variant).digest != structure.digest:
                reasons.append(f"stem, activation, image size, neck or head differ from variant {variant.name}")
            else:
                return None
        return "; ".join(reasons)

    def __contains__(self, structure: Structure) -> bool:
        """True if a search of this space (in some variant) can return the structure; layer limit not considered."""
        return self.why_not(structure) is None


@dataclass(frozen=True, slots=True)
class Choice:
    """One point of a space: the numbers that a search decides, one entry per stage."""

    stem_channels: int
    out_channels: tuple[int, ...]
    hidden_channels: tuple[int, ...]
    depths: tuple[int, ...]
    kernel_sizes: tuple[int, ...]

    @classmethod
    def smallest(cls, space: SearchSpace) -> Choice:
        """The smallest value of every field (which need not respect ratios and growths)."""
        return cls(
            stem_channels=int(space.stem.out_channels.values[0]),
            out_channels=tuple(int(stage.out_channels.values[0]) for stage in space.stages),
            hidden_channels=tuple(int(stage.hidden_channels.values[0]) for stage in space.stages),
            depths=tuple(int(stage.depth.values[0]) for stage in space.stages),
            kernel_sizes=tuple(stage.kernel_sizes[0] for stage in space.stages),
        )

    @classmethod
    def of(cls, structure: Structure) -> Choice:
        """The numbers of a structure whose stages each have one hidden width."""
        stages = structure.backbone.stages
        return cls(
            stem_channels=structure.backbone.stem.out_channels,
            out_channels=tuple(stage.out_channels for stage in stages),
            hidden_channels=tuple(stage.hidden_channels[0] if stage.hidden_channels else 1 for stage in stages),
            depths=tuple(stage.depth for stage in stages),
            kernel_sizes=tuple(stage.kernel_size for stage in stages),
        )


def _why_not_stage(space: StageSpace, stage: Stage, in_channels: int) -> str | None:
    if stage.stride != space.stride or stage.se != space.se or stage.spp != space.spp:
        return "stride, se or spp differs"
    if stage.kernel_size not in space.kernel_sizes:
        return f"kernel_size is {stage.kernel_size}"
    if stage.out_channels not in space.out_channels.values:
        return f"out_channels is {stage.out_channels}"
    if stage.depth not in space.depth.values:
        return f"depth is {stage.depth}"
    growth = stage.out_channels / in_channels
    if not space.min_growth <= growth <= space.max_growth:
        return f"out_channels / in_channels is {growth:.3g}"
    if len(set(stage.hidden_channels)) > 1:
        return f"hidden_channels are {list(stage.hidden_channels)} (a space has one width per stage)"
    low, high = space.hidden_bounds(np.array([stage.out_channels]))
    for hidden in stage.hidden_channels[:1]:
        if hidden not in space.hidden_channels.values or not low[0] <= hidden <= high[0]:
            return f"hidden_channels is {hidden} at out_channels {stage.out_channels}"
    return None


def load_space(name_or_path: str) -> SearchSpace:
    """A shipped space by name (`res`, `tinynas-small`, ...), or a YAML file.

    Raises:
        SpaceError: Unknown name, unreadable file, or a field that is wrong (named, with what was expected).
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = data_folder("search_spaces") / f"{name_or_path}.yaml"
        if not path.is_file() or "/" in name_or_path:
            known = ", ".join(space_names())
            raise SpaceError(f"unknown search space {name_or_path!r}; expected one of {known}, or a .yaml file")
    return _read_space(path)


def space_names() -> list[str]:
    """Names of the shipped spaces."""
    return sorted(path.stem for path in data_folder("search_spaces").glob("*.yaml"))


def _read_space(path: Path) -> SearchSpace:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpaceError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; expected a search space")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"{path}: cannot be read as text ({reason_of(error)})") from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise SpaceError(f"{path}: is not valid YAML ({error})") from error
    if not isinstance(content, dict):
        raise SpaceError(f"{path}: is {shown(content)}; expected a mapping of fields")
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise SpaceError(f"{path}: schema_version is {shown(version)}; expected {SCHEMA_VERSION}")
    return build(SearchSpace, content, source=str(path), error=SpaceError)
