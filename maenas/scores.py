"""Training-free scores of a backbone, and how to bring your own (docs/scores.md).

A score is either *separable* - a sum over the stem and the stages, each term computed from that stage alone - and then
goes through the exact solver, or it judges a whole structure, and then goes through the evolutionary search.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from maenas.errors import ScoreError
from maenas.lowering.backbone import StageShape, lower_stage, lower_stem, stage_shapes
from maenas.lowering.costs import num_flops, num_params
from maenas.lowering.op import Channels, Op, Real
from maenas.lowering.reference import lower_reference_stage, lower_reference_stem
from maenas.structure import Backbone, Structure

MADNAS_WEIGHTS = (0.0, 0.0, 1.0, 1.0, 16.0)
"""Level weights of the DAMO-YOLO configurations."""

DEEPMAD_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 8.0)
GRAPHS = ("deployed", "reference")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage (or the stem) as a separable score sees it; channel fields may be arrays that broadcast.

    Attributes:
        index: 0 for the stem, then 1, 2, ... in order.
        num_stages: Number of stages, stem not counted.
        level: Pyramid level: a new one begins at every stride-2 stage.
        num_levels: Number of levels of the backbone.
        ends_level: This is the last stage of its level.
        ops: Operators of the stage in execution order.
        in_channels: Channels of the incoming map.
        out_channels: Channels of the outgoing map.
        hidden_channels: Hidden channels of the units (0 for the stem, and where there are none).
        depth: Number of units (0 for the stem).
        out_size: (height, width) of the outgoing map.
    """

    index: int
    num_stages: int
    level: int
    num_levels: int
    ends_level: bool
    ops: list[Op]
    in_channels: Channels
    out_channels: Channels
    hidden_channels: Channels
    depth: int
    out_size: tuple[int, int]


StageScore = Callable[[StageView], Real]
StructureScore = Callable[[Structure], float]


@dataclass(frozen=True, slots=True)
class Score:
    """A named score; exactly one of the two functions is set.

    Attributes:
        name: As given on the command line.
        stage_score: Term of one stage; the score is their sum (separable).
        structure_score: Value of a whole structure.
    """

    name: str
    stage_score: StageScore | None = None
    structure_score: StructureScore | None = None

    @property
    def separable(self) -> bool:
        """True if the exact solver can maximise it."""
        return self.stage_score is not None

    def __call__(self, structure: Structure, *, graph: str = "deployed") -> float:
        """Score of a structure.

        Raises:
            ScoreError: The value is not a finite number.
        """
        try:
            if self.stage_score is not None:
                value = math.fsum(float(self.stage_score(view)) for view in stage_views(structure, graph))
            else:
                assert self.structure_score is not None
                value = float(self.structure_score(structure))
        except ScoreError:
            raise
        except Exception as error:  # the function may be a user's own and fail in any way
            raise failed_score(self.name, error) from error
        if not math.isfinite(value):
            raise ScoreError(
                f"score {self.name} gave {value} for structure {structure.digest}; expected a finite number"
            )
        return value


def failed_score(name: str, error: Exception) -> ScoreError:
    """The error to raise when a score function did: what it raised, and where."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
    return ScoreError(f"score {name} raised {type(error).__name__}: {error}{where}; expected a finite number")


def separable(function: F) -> F:
    """Mark a user's score as separable: it receives a `StageView` and returns that stage's term."""
    function.separable = True  # type: ignore[attr-defined]
    return function


def levels_of(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Level of the stem and of each stage: a new level begins at every stage of stride 2 (the stem never does)."""
    levels = [0]
    for stride in strides:
        levels.append(levels[-1] + (stride == 2))
    return tuple(levels)


def stage_view(
    index: int, levels: tuple[int, ...], ops: list[Op], shape: StageShape | None, stem_out: Channels = 0
) -> StageView:
    """The view of the stem (no shape) or of one stage."""
    last = len(levels) - 1
    return StageView(
        index=index,
        num_stages=last,
        level=levels[index],
        num_levels=levels[-1] + 1,
        ends_level=index == last or levels[index + 1] > levels[index],
        ops=ops,
        in_channels=ops[-1].in_channels if shape is None else shape.in_channels,
        out_channels=stem_out if shape is None else shape.out_channels,
        hidden_channels=shape.hidden_channels[0] if shape is not None and shape.hidden_channels else 0,
        depth=0 if shape is None else len(shape.hidden_channels),
        out_size=ops[-1].out_size if shape is None else shape.out_size,
    )


def stage_views(structure: Structure, graph: str = "deployed") -> list[StageView]:
    """Stem and stages of a structure as a separable score sees them, on the deployed or the reference graph."""
    backbone = structure.backbone
    levels = levels_of(tuple(stage.stride for stage in backbone.stages))
    stem = _lower_stem(backbone, structure.image_size, graph)
    views = [stage_view(0, levels, stem, None, backbone.stem.out_channels)]
    lower = lower_reference_stage if graph == "reference" else lower_stage
    for index, shape in enumerate(stage_shapes(backbone, structure.image_size), start=1):
        views.append(stage_view(index, levels, lower(shape), shape))
    return views


def _lower_stem(backbone: Backbone, image_size: tuple[int, int], graph: str) -> list[Op]:
    if graph == "reference":
        return lower_reference_stem(backbone.stem, image_size)
    return lower_stem(backbone.stem, backbone.activation, image_size)


def log_deviation(ops: list[Op], extra: Callable[[Op], float] | None = None) -> Real:
    """Logarithm of the expected standard deviation that the main-path convolutions add: sum of 1/2 ln(fan_in)."""
    total: Real = 0.0
    for op in ops:
        if op.main_path:
            term = 0.5 * np.log(op.fan_in) + (extra(op) if extra else 0.0)
            total = total + op.count * term
    return total


def madnas(weights: tuple[float, ...] = MADNAS_WEIGHTS, extra: Callable[[Op], float] | None = None) -> StageScore:
    """The maximum-entropy score: sum over levels i of a_i (S_i + ln C_i) (docs/scores.md).

    S_i is the ln-deviation accumulated from the input to the end of level i, so a stage of level l counts with the
    weight of every level from l on.

    Args:
        weights: a_i, one per level.
        extra: Added to the term of every main-path convolution (the quantisation-entropy variant).

    Raises:
        ScoreError: By the score: the backbone has another number of levels.
    """

    def stage_score(view: StageView) -> Real:
        if view.num_levels != len(weights):
            raise ScoreError(f"score has {len(weights)} level weights; the backbone has {view.num_levels} levels")
        score: Real = math.fsum(weights[view.level :]) * log_deviation(view.ops, extra)
        if view.ends_level and weights[view.level]:
            score = score + weights[view.level] * np.log(view.out_channels)
        return score

    return stage_score


def quantised_deviation(std: float, bits: int) -> float:
    """Standard deviation of a zero-mean Gaussian after rounding and clamping to +-2^(bits-1) (docs/scores.md)."""
    limit = 2 ** (bits - 1)

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / (std * math.sqrt(2.0)))

    variance = 2.0 * limit**2 * below(0.5 - limit)
    for value in range(1, limit):
        variance += 2.0 * value**2 * (below(value + 0.5) - below(value - 0.5))
    return math.sqrt(variance)


def quantised_madnas(
    weight_bits: int,
    activation_bits: int,
    *,
    weight_std: float = 1.0,
    activation_std: float = 1.0,
    weights: tuple[float, ...] = MADNAS_WEIGHTS,
) -> StageScore:
    """The madnas score of a network quantised uniformly: each conv gains ln(LUT_a * LUT_w) - ln(activation_std).

    Raises:
        ScoreError: A number of bits out of 2 ... 8.
    """
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if not 2 <= bits <= 8:
            raise ScoreError(f"{name} is {bits}; expected 2 to 8")
    gain = quantised_deviation(activation_std, activation_bits) * quantised_deviation(weight_std, weight_bits)
    per_conv = math.log(gain) - math.log(activation_std)
    return madnas(weights, lambda op: per_conv)


def deepmad(
    structure: Structure,
    *,
    weights: tuple[float, ...] = DEEPMAD_WEIGHTS,
    depth_penalty: float = 10.0,
    image_size: int | None = 224,
    graph: str = "deployed",
) -> float:
    """DeepMAD's score: sum of a_i (ln C_i + ln r_i^2) S_i, less depth_penalty * exp(std of the stage depths).

    Args:
        structure: Backbone to score.
        weights: a_i, one per level.
        depth_penalty: Ratio of the penalty (10 in the reference's configurations; 0 switches it off).
        image_size: Side the map sides r_i are counted at; None takes the structure's own.
        graph: Which graph's main path to read.

    Raises:
        ScoreError: The backbone has another number of levels than there are weights.

    Source: DeepMAD (arXiv 2303.02165). S_i holds halves of logarithms, as the reference code has it, not full ones as
    the paper writes; the penalty likewise takes the standard deviation, not the variance.
    """
    views = stage_views(structure, graph)
    if views[0].num_levels != len(weights):
        raise ScoreError(f"deepmad has {len(weights)} level weights; the backbone has {views[0].num_levels} levels")
    scale = 1.0 if image_size is None else image_size / math.sqrt(structure.image_size[0] * structure.image_size[1])
    total, accumulated = 0.0, 0.0
    for view in views:
        accumulated += float(log_deviation(view.ops))
        if view.ends_level:
            cells = view.out_size[0] * view.out_size[1] * scale**2
            total += weights[view.level] * (math.log(float(view.out_channels)) + math.log(cells)) * accumulated
    depths = [view.depth for view in views[1:]]
    return total - depth_penalty * math.exp(float(np.std(depths))) if depth_penalty else total


def effectiveness(structure: Structure, *, graph: str = "deployed") -> float:
    """DeepMAD's rho: the largest, over levels, of depth / geometric-mean width product on the main path.

    Around 0.06 for sensible nets of 25 layers, 0.5 for degenerate deep and thin ones.
    """
    depth, log_width, worst = 0, 0.0, 0.0
    for view in stage_views(structure, graph):
        for op in view.ops:
            if op.main_path:
                depth += 1
                log_width += math.log(float(op.fan_in))
        if view.ends_level:
            worst = max(worst, math.exp(math.log(depth) - log_width / depth))
    return worst


def _backbone_params(view: StageView) -> Real:
    return np.float64(1.0) * num_params(view.ops)


def _backbone_flops(view: StageView) -> Real:
    return np.float64(1.0) * num_flops(view.ops)


SCORES: dict[str, Score] = {
    "madnas": Score("madnas", stage_score=madnas()),
    "deepmad": Score("deepmad", structure_score=deepmad),
    "params": Score("params", stage_score=_backbone_params),
    "flops": Score("flops", stage_score=_backbone_flops),
}
"""Scores by name; `params` and `flops` are the baselines that every proxy must beat."""

_QUANTISED = re.compile(r"madnas-w(\d+)a(\d+)")


def resolve_score(name: str, weights: tuple[float, ...] = MADNAS_WEIGHTS) -> Score:
    """A score by name: one of SCORES, `madnas-w4a8` (quantised), or a user's own `package.module:function`.

    Args:
        name: What the user wrote.
        weights: Level weights of the search space, for madnas and its quantised form.

    Raises:
        ScoreError: Naming what is known, or what could not be imported.
    """
    if ":" in name:
        return _user_score(name)
    if name == "madnas":
        return Score(name, stage_score=madnas(weights))
    quantised = _QUANTISED.fullmatch(name)
    if quantised:
        return Score(name, stage_score=quantised_madnas(int(quantised[1]), int(quantised[2]), weights=weights))
    if name not in SCORES:
        known = ", ".join(SCORES)
        raise ScoreError(f"unknown score {name!r}; expected one of {known}, madnas-w8a8 or package.module:function")
    return SCORES[name]


def _user_score(name: str) -> Score:
    """Import `package.module:function`; the current folder is searched too, as with `python -m`."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ScoreError(f"score {name!r}: module {module_name!r} cannot be imported ({reason})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ScoreError(f"score {name!r}: {module_name} has no function {function_name!r}")
    if getattr(function, "separable", False):
        return Score(name, stage_score=function)
    return Score(name, structure_score=function)
