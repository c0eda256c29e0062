"""Values of every score that `maenas eval-proxy` compares; one that cannot be computed is a NaN with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from maenas.errors import MaenasError, ScoreError
from maenas.latency.predict import predict
from maenas.latency.table import LatencyTable
from maenas.lowering.backbone import lower_backbone
from maenas.lowering.costs import num_layers
from maenas.lowering.detector import lower
from maenas.official import parse_content
from maenas.official_export import export_official
from maenas.official_import import reference_from_content
from maenas.scores import SCORES, Score, failed_score, stage_views
from maenas.structure import Structure

REFERENCE = "madnas-reference"

ForwardProxy = Callable[[Structure], float]
"""A proxy that runs the network, such as the Zen score."""


@dataclass(frozen=True, slots=True)
class ScoreValues:
    """One score of all networks.

    Attributes:
        name: Of the score.
        values: By digest, to 12 digits; NaN where there is none.
        reasons: Why, by digest, where it is known.
    """

    name: str
    values: Mapping[str, float]
    reasons: Mapping[str, str]


def score_values(
    structures: Sequence[Structure],
    *,
    madnas: Score,
    table: LatencyTable | None = None,
    measured_ms: Mapping[str, float] | None = None,
    forward: Mapping[str, ForwardProxy] | None = None,
    own: Sequence[Score] = (),
    progress: Callable[[str], None] = lambda name: None,
) -> list[ScoreValues]:
    """All scores of some networks: closed forms, baselines, forward passes, then the user's own.

    Args:
        structures: Networks.
        madnas: The entropy score with the level weights to use.
        table: Where latencies come from.
        measured_ms: Measured latencies by digest, in place of the table's.
        forward: Proxies that run the network.
        own: The user's scores.
        progress: Called with the name of each score before it is computed.

    Raises:
        ScoreError: A user's score raised an exception, or has a name that is taken.
    """
    functions: dict[str, Callable[[Structure], float]] = {
        "madnas": lambda structure: raw_score(madnas, structure),
        REFERENCE: lambda structure: raw_score(madnas, reference_reading(structure), graph="reference"),
        **{name: _shipped(SCORES[name]) for name in ("deepmad", "params", "flops")},
        "latency": lambda structure: _latency(structure, table, measured_ms or {}),
        "depth": lambda structure: float(num_layers(lower_backbone(structure.backbone, structure.image_size))),
        **(forward or {}),
    }
    found = []
    for name, function in functions.items():
        progress(name)
        found.append(_all_values(name, function, structures))
    for score in own:
        if score.name in functions:
            raise ScoreError(f"score {score.name!r} is compared already; expected another one")
        progress(score.name)
        values = {structure.digest: _settled(raw_score(score, structure)) for structure in structures}
        found.append(ScoreValues(score.name, values, {}))
    return found


def raw_score(score: Score, structure: Structure, *, graph: str = "deployed") -> float:
    """A score as it comes, also where it is no finite number.

    Raises:
        ScoreError: The function raised an exception.
    """
    try:
        if score.stage_score is not None:
            terms = [float(score.stage_score(view)) for view in stage_views(structure, graph)]
            # math.fsum refuses infinities of both signs.
            return math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)
        assert score.structure_score is not None
        return float(score.structure_score(structure))
    except MaenasError:
        raise
    except Exception as error:  # the function may be a user's own and fail in any way
        raise failed_score(score.name, error) from error


def reference_reading(structure: Structure) -> Structure:
    """A structure as the reference search tool reads it: plain k1kx or kxkx units at full width.

    Raises:
        ScoreError: There is no such reading of the family.
        StructureError: The official form cannot hold the structure.
    """
    if structure.backbone.family == "mob":
        raise ScoreError("the reference graph covers no mob networks")
    if structure.backbone.family != "csp":
        return structure
    content = parse_content(export_official(structure, form="list", dialect="v1"), source=structure.name)
    return replace(reference_from_content(content, source=structure.name), name=structure.name)


def _settled(value: float) -> float:
    """Without the digits that depend on the order of summation: equal scores must tie, not be ranked by rounding."""
    return float(f"{value:.12g}")


def _shipped(score: Score) -> Callable[[Structure], float]:
    return lambda structure: raw_score(score, structure)


def _latency(structure: Structure, table: LatencyTable | None, measured_ms: Mapping[str, float]) -> float:
    if structure.digest in measured_ms:
        return measured_ms[structure.digest]
    if table is None:
        raise ScoreError("no latency table was given (--device)")
    return predict(lower(structure), table).latency_ms


def _all_values(name: str, function: Callable[[Structure], float], structures: Sequence[Structure]) -> ScoreValues:
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for structure in structures:
        try:
            values[structure.digest] = _settled(function(structure))
        except MaenasError as error:
            values[structure.digest] = math.nan
            reasons[structure.digest] = str(error)
    return ScoreValues(name, values, reasons)
