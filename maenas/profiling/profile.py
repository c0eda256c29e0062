"""`maenas profile` from end to end: plan, export, time, fit, write; every step continues what an earlier run left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maenas.errors import ProfileError
from maenas.files import make_folder, sha256_of, write_text_atomically
from maenas.latency.table_write import check_target, write_table
from maenas.profiling.backends import Backend, Bridge, open_backend
from maenas.profiling.backends.reference import write_reference
from maenas.profiling.build import Conditions, describe_space, extra_files, table_header, table_rows
from maenas.profiling.campaign import Exporter, Network, Sizes, given_networks, plan_networks, write_networks
from maenas.profiling.fit import Fit, fit
from maenas.profiling.fit_given import fit_given
from maenas.profiling.harness import Progress, run_campaign
from maenas.profiling.host import check_cores, describe_host, fingerprint, pin
from maenas.profiling.measurement import Record, Settings, speed_range
from maenas.spaces import SearchSpace
from maenas.structure import Structure

JOURNAL_FILE, PLAN_FILE, NETWORKS_FOLDER = "journal.jsonl", "plan.json", "networks"

SPEED_CHANGE = 0.05
"""A larger change of the machine's speed in the course of a campaign is noted in the table."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a profile is asked for.

    Attributes:
        spaces: Search spaces the table is for, image size and classes applied.
        backend: Runtime.
        threads: CPU threads of one inference.
        precision: `fp32`, `fp16`, `bf16`, or `int8` with `quantised` files.
        sizes: How much is measured.
        settings: How it is measured.
        test: Further detectors for the error report.
        foreign: ONNX files of other networks for an error report of their own.
        quantised: ONNX files that are timed in place of networks of the spaces and probes.

    Raises:
        ProfileError: Quantised files without the precision int8, or the reverse.
    """

    spaces: tuple[SearchSpace, ...]
    backend: str
    threads: int
    precision: str
    sizes: Sizes
    settings: Settings
    test: tuple[Structure, ...] = ()
    foreign: tuple[Path, ...] = ()
    quantised: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.quantised and self.precision != "int8":
            raise ProfileError(f"precision is {self.precision} with quantised files; expected int8")
        if self.precision == "int8" and not self.quantised:
            raise ProfileError(
                "precision is int8 without quantised files; expected some: such networks are timed, but not made here"
            )

    def to_dict(self) -> dict[str, Any]:
        """All that decides the figures, as JSON; waiting times are left out."""
        settings = asdict(self.settings)
        for name in ("attempts", "patience_s", "force"):
            del settings[name]
        return {
            "spaces": [{"name": describe_space(space), "digest": space.digest} for space in self.spaces],
            "backend": self.backend,
            "threads": self.threads,
            "precision": self.precision,
            "sizes": asdict(self.sizes),
            "settings": settings,
            "test": [structure.digest for structure in self.test],
            "foreign": [[path.stem, _sha256(path)] for path in self.foreign],
            "quantised": [[path.stem, _sha256(path)] for path in self.quantised],
        }


def run_profile(
    question: Question,
    *,
    target: Path,
    work: Path,
    export: Exporter,
    bridge: Bridge | None = None,
    force: bool = False,
    exporting: Callable[[int, int], None] = lambda done, total: None,
    measuring: Progress | None = None,
) -> tuple[Path, Fit]:
    """Profile this machine and write a table folder.

    Args:
        question: What to measure.
        target: Folder of the new table; its last part is its name.
        work: Folder of the networks and the journal; an earlier run of the same question in it is continued.
        export: Writes the deployed detector of a structure as ONNX.
        bridge: To the package `detector`, which runs torch.
        force: Replace an existing table.
        exporting: Called with networks written and networks in all.
        measuring: Progress of the measurements.

    Raises:
        DeviceBusyError: Other work on the machine spoiled a measurement in every attempt.
        ProfileError: The work folder belongs to another question, or a network failed.
        OutputError: The table exists already, or cannot be written.
    """
    check_target(target, force=force)
    backend = open_backend(question.backend, threads=question.threads, precision=question.precision, bridge=bridge)
    if not backend.has_layer_times:
        raise ProfileError(f"backend {backend.name} gives no layer times; expected one that does")
    if not backend.accelerator:
        check_cores(question.threads)
    make_folder(work)
    claim_work(work, question)
    networks = _networks(question, work, export=export, exporting=exporting)
    plain = open_backend(question.backend, threads=question.threads, bridge=bridge) if question.quantised else backend
    host = describe_host()
    # The threads that feed an accelerator go where they like.
    pinned = () if backend.accelerator else pin(question.threads)
    records = run_campaign(
        [backend.entry(network.path, key=network.key, layers=network.role == "kernels") for network in networks],
        settings=question.settings,
        journal=work / JOURNAL_FILE,
        reference=plain.entry(_reference(work), key="reference", layers=False),
        progress=measuring,
        conditions={
            "fingerprint": fingerprint(host),
            "backend": backend.name,
            "version": backend.version,
            "precision": backend.precision,
            "threads": backend.threads,
        },
        threads=None if backend.accelerator else question.threads,
    )
    fitting = fit_given if question.quantised else fit
    fitted = fitting(networks, records, seed=question.settings.seed, precision=question.precision)
    conditions = _conditions(question, backend, records, host={**host, "pinned_cores": list(pinned)})
    rows = table_rows(fitted, question.spaces)
    folder = write_table(
        target,
        table_header(fitted, rows, question.spaces, conditions),
        rows,
        extra=extra_files(fitted, title=target.name),
        force=force,
    )
    return folder, fitted


def _networks(
    question: Question, work: Path, *, export: Exporter, exporting: Callable[[int, int], None]
) -> list[Network]:
    """The networks that are timed, as files."""
    if question.quantised:
        networks = given_networks(question.quantised, foreign=question.foreign)
    else:
        networks = plan_networks(
            question.spaces,
            question.sizes,
            seed=question.settings.seed,
            folder=work / NETWORKS_FOLDER,
            extra_test=question.test,
            foreign=question.foreign,
        )
    write_networks(
        networks,
        seed=question.settings.seed,
        image_sides=sorted({side for space in question.spaces for side in space.image_size} | {224}, reverse=True),
        export=export,
        progress=lambda done: exporting(done, len(networks)),
    )
    return networks


def _reference(work: Path) -> Path:
    """The network that watches the machine's speed, written once."""
    path = work / NETWORKS_FOLDER / "reference.onnx"
    if not path.exists():
        make_folder(path.parent)
        write_reference(path)
    return path


def _conditions(question: Question, backend: Backend, records: Sequence[Record], *, host: dict[str, Any]) -> Conditions:
    """What the table's header says of the measurements."""
    return Conditions(
        device=backend.device_name if backend.accelerator else str(host["cpu"]),
        host=host,
        fingerprint=fingerprint(host),
        backend=backend.name,
        backend_version=backend.version,
        precision=backend.precision,
        threads=None if backend.accelerator else backend.threads,
        batch=backend.batch,
        date=min(record.started for record in records)[:10],
        seed=question.settings.seed,
        flags=flags_of(records),
        reference_ms=sorted(record.reference_ms[0] for record in records)[len(records) // 2],
    )


def claim_work(work: Path, question: Question) -> None:
    """Make sure that a work folder answers this question.

    Raises:
        ProfileError: It belongs to another one.
    """
    path, asked = work / PLAN_FILE, question.to_dict()
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = None
        if held != asked:
            changed = [name for name in asked if not isinstance(held, dict) or held.get(name) != asked[name]]
            raise ProfileError(
                f"{work}: holds the measurements of another profile (other {', '.join(changed)}); choose another --work"
            )
        return
    write_text_atomically(path, json.dumps(asked, indent=2) + "\n")


def flags_of(records: Iterable[Record]) -> tuple[str, ...]:
    """What a user of the table should know of the measurements."""
    records = list(records)
    flags = []
    forced = sorted({record.key for record in records if not record.accepted})
    if forced:
        flags.append(f"{len(forced)} networks were disturbed and kept by force")
    change = speed_range(records)
    if change > SPEED_CHANGE:
        flags.append(f"the machine changed its speed by up to {change:.1%}; all times are given at the middle speed")
    return tuple(flags)


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror or error}); expected an ONNX file") from error
