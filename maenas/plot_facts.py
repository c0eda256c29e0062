"""What files of runs say, as the plot joins it: AP, measured and predicted latencies, structures."""

from __future__ import annotations

from dataclasses import dataclass, field

from maenas.structure import Structure

EVALUATED, TIMED, TRAINED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class EvaluationFact:
    """AP of one file of weights on some images.

    Attributes:
        digest: Of the structure.
        sha256: Of the evaluated file, or empty.
        ap: In percent.
        data: Name and identity of the images.
        rank: Of several kinds the lowest counts: EVALUATED, TIMED (beside a benchmark) or TRAINED (in training).
        note: What to know before trusting it.
        source: The file that says so.
    """

    digest: str
    sha256: str
    ap: float
    data: str
    rank: int
    note: str
    source: str


@dataclass(frozen=True, slots=True)
class TimingFact:
    """Time of one exported file in one runtime.

    Attributes:
        digest: Of the structure.
        sha256: Of the timed file.
        form: `raw`, `decoded` or `nms`.
        ms: Median.
        low_ms: 25th percentile.
        high_ms: 90th percentile.
        device: Processor.
        runtime: Backend's name.
        runtime_version: Its version.
        precision: Such as `fp32` or `int8`.
        batch: Images per run.
        threads: CPU threads.
        note: What to know before trusting it.
        source: The file that says so.
    """

    digest: str
    sha256: str
    form: str
    ms: float
    low_ms: float
    high_ms: float
    device: str
    runtime: str
    runtime_version: str
    precision: str
    batch: int
    threads: int
    note: str
    source: str


@dataclass(frozen=True, slots=True)
class SearchFact:
    """Latency that a search gave to its answer, from a table or measured in its course.

    Attributes:
        digest: Of the structure.
        table: Name of the latency table.
        table_hash: Of the table.
        provenance: `measured`, `calibrated` or `imported`: the table's.
        ms: Predicted.
        sigma_ms: One standard deviation.
        measured_ms: Measured by the search, or None.
        source: The file that says so.
    """

    digest: str
    table: str
    table_hash: str
    provenance: str
    ms: float
    sigma_ms: float
    measured_ms: float | None
    source: str


@dataclass(slots=True)
class RunFacts:
    """Everything that was found.

    Attributes:
        structures: By digest.
        evaluations: In the order of the files.
        timings: In the order of the files.
        searches: In the order of the files.
        notes: What was left out, and why.
    """

    structures: dict[str, Structure] = field(default_factory=dict)
    evaluations: list[EvaluationFact] = field(default_factory=list)
    timings: list[TimingFact] = field(default_factory=list)
    searches: list[SearchFact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
