"""Points of accuracy against latency: what was measured how, which may share a curve, and which no other one beats."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

from maenas.errors import PlotError
from maenas.frontier import FrontierRow
from maenas.published import load_published

OWN = "maenas"
"""Name of our own curves, and of who measured them."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a latency was measured (or what a prediction stands for); only equal ones are comparable.

    Attributes:
        device: Processor.
        runtime: Runtime and its version where known.
        precision: Such as `fp16`.
        batch: Images per run.
        threads: CPU threads, or None.
        nms: `yes`, `no` or `unspecified`.
        protocol: Name of the way of measuring.
        measured_by: Who measured, `maenas` for our own.
    """

    device: str
    runtime: str
    precision: str
    batch: int
    threads: int | None
    nms: str
    protocol: str
    measured_by: str

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads != 1)}"
        nms = {"yes": "with NMS", "no": "no NMS"}.get(self.nms, "NMS not stated")
        who = "" if self.measured_by in (OWN, self.protocol) else f" by {self.measured_by}"
        how = f"{self.device}, {self.runtime}, {self.precision}, batch {self.batch}{threads}, {nms}"
        return f"{how} ({self.protocol}{who})"


@dataclass(frozen=True, slots=True)
class Point:
    """One network in the picture.

    Attributes:
        label: Its name.
        series: Networks that form one curve.
        own: Whether it comes from runs of ours, not from a table of points.
        latency_ms: Milliseconds per run.
        latency_low_ms: Lower end of its bar.
        latency_high_ms: Upper end of its bar.
        latency_status: `measured`, `predicted` or `published`.
        conditions: How the latency was measured.
        ap: Average precision in percent; None where nobody has measured it.
        ap_low: Lowest of several evaluations.
        ap_high: Highest of several evaluations.
        ap_status: `measured` or `published`; empty without AP.
        num_evaluations: How many evaluations `ap` is the mean of.
        data: Images that AP is measured on; empty without AP.
        image_size: Input (height, width) as text, or empty.
        extra_data: Training data besides, `none`, or `unspecified`.
        distilled: `yes`, `no` or `unspecified`.
        params_m: Parameters in millions.
        gflops: 2 x multiply-accumulates / 1e9.
        digest: Of the structure, or empty.
        source: Where the figures come from.
        note: What to know before trusting them.
    """

    label: str
    series: str
    own: bool
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    latency_status: str
    conditions: Conditions
    ap: float | None
    ap_low: float | None
    ap_high: float | None
    ap_status: str
    num_evaluations: int
    data: str
    image_size: str
    extra_data: str
    distilled: str
    params_m: float | None
    gflops: float | None
    digest: str
    source: str
    note: str


@dataclass(frozen=True, slots=True)
class Group:
    """Points whose latencies are comparable.

    Attributes:
        conditions: Of all of them.
        points: The fastest first.
        front: Those of them that no other one beats, the fastest first; predictions take part only where all points
            are predictions.
    """

    conditions: Conditions
    points: tuple[Point, ...]
    front: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which points are wanted; a text fits where it is part of the value, in any case.

    Attributes:
        device: Any of these; everything where empty, as all others.
        runtime: Any of these.
        precision: Any of these, exactly.
        nms: Any of these, exactly.
        data: Any of these.
        family: Any of these series.
        extra_data: Whether published networks trained with other data (or with unstated data) are kept.
    """

    device: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    precision: tuple[str, ...] = ()
    nms: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    family: tuple[str, ...] = ()
    extra_data: bool = True

    def keep(self, point: Point) -> bool:
        """Whether a point is wanted."""
        how = point.conditions
        return (
            _part_of(self.device, how.device)
            and _part_of(self.runtime, how.runtime)
            and (not self.precision or how.precision in self.precision)
            and (not self.nms or how.nms in self.nms)
            and (not point.data or _part_of(self.data, point.data))
            and (point.own or _part_of(self.family, point.series))
            and (point.own or self.extra_data or point.extra_data == "none")
        )


def _part_of(wanted: Sequence[str], value: str) -> bool:
    return not wanted or any(text.casefold() in value.casefold() for text in wanted)


def frontier_points(rows: Sequence[FrontierRow]) -> list[Point]:
    """Rows of a points file as points; those of published networks carry their structure's digest."""
    digests = {name: load_published(name).digest for name in {row.structure for row in rows} if name}
    return [
        Point(
            label=row.model,
            series=row.family,
            own=False,
            latency_ms=row.latency_ms,
            latency_low_ms=row.latency_ms,
            latency_high_ms=row.latency_ms,
            latency_status="published",
            conditions=row_conditions(row),
            ap=row.ap,
            ap_low=row.ap,
            ap_high=row.ap,
            ap_status="published",
            num_evaluations=1,
            data=row.data,
            image_size="" if row.image_size is None else f"{row.image_size}x{row.image_size}",
            extra_data=row.extra_data,
            distilled=row.distilled,
            params_m=row.params_m,
            gflops=row.gflops,
            digest=digests.get(row.structure, ""),
            source=row.source,
            note=row.note,
        )
        for row in rows
    ]


def row_conditions(row: FrontierRow) -> Conditions:
    """How a row was measured."""
    return Conditions(
        device=row.device,
        runtime=row.runtime,
        precision=row.precision,
        batch=row.batch,
        threads=row.threads,
        nms=row.nms,
        protocol=row.protocol,
        measured_by=row.measured_by,
    )


def grouped(points: Sequence[Point], *, mix: bool = False) -> list[Group]:
    """Points by the conditions of their latencies, in order of first appearance.

    Args:
        points: What shall share a picture.
        mix: Allow unlike conditions in one picture; each has a front of its own.

    Raises:
        PlotError: No point; AP on different images; unlike conditions without `mix`. Says how to choose.
    """
    if not points:
        raise PlotError("no point is left to draw; expected runs with a latency, or fewer filters")
    data = list(dict.fromkeys(point.data for point in points if point.data))
    if len(data) > 1:
        raise PlotError(
            f"AP is measured on {len(data)} sets of images: {_listed(data)}; they never share a picture: choose one "
            "with --data"
        )
    members: dict[Conditions, list[Point]] = {}
    for point in points:
        members.setdefault(point.conditions, []).append(point)
    if len(members) > 1 and not mix:
        raise PlotError(
            f"latencies were measured in {len(members)} unlike ways: {_listed([str(how) for how in members])}; choose "
            "with --protocol, --device, --runtime, --precision or --nms, or draw them together, marked, with --mix"
        )
    return [
        Group(
            how,
            tuple(sorted(inside, key=lambda point: point.latency_ms)),
            # A prediction must not push a measurement off the front.
            tuple(pareto_front([point for point in inside if point.latency_status != "predicted"] or inside)),
        )
        for how, inside in members.items()
    ]


def _listed(items: Sequence[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points with an AP that no other one beats in both figures, the fastest first.

    Of points with equal figures all stay.
    """
    rated = [(point.latency_ms, point.ap, point) for point in points if point.ap is not None]
    rated.sort(key=lambda entry: (entry[0], -entry[1]))
    front: list[Point] = []
    best: tuple[float, float] | None = None
    for latency, ap, point in rated:
        if best is None or ap > best[1] or (latency, ap) == best:
            front.append(point)
            best = latency, ap
    return front


POINT_COLUMNS = tuple(field.name for field in fields(Point) if field.name not in ("conditions", "own"))
CONDITION_COLUMNS = tuple(field.name for field in fields(Conditions))


def point_record(point: Point, *, on_front: bool) -> dict[str, object]:
    """The figures of a point by column; None where there is none."""
    record: dict[str, object] = {name: getattr(point, name) for name in POINT_COLUMNS}
    record |= {name: getattr(point.conditions, name) for name in CONDITION_COLUMNS}
    record["on_front"] = "yes" if on_front else "no"
    return record


def points_csv(groups: Sequence[Group]) -> str:
    """Everything that is in a picture, one line per point."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*POINT_COLUMNS, *CONDITION_COLUMNS, "on_front"], lineterminator="\n")
    writer.writeheader()
    for group in groups:
        for point in group.points:
            record = point_record(point, on_front=point in group.front)
            writer.writerow({name: _cell(value) for name, value in record.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    # Six significant digits: more than any of these figures has.
    return f"{value:.6g}" if isinstance(value, float) else value
