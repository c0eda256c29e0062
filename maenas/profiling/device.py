"""This machine as the device of a measured table: times whole networks under the table's own conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maenas.errors import ProfileError
from maenas.files import make_folder
from maenas.latency.table import LatencyTable
from maenas.profiling.backends import Bridge, open_backend
from maenas.profiling.backends.reference import write_reference
from maenas.profiling.campaign import Exporter
from maenas.profiling.harness import Progress, run_campaign
from maenas.profiling.host import describe_host, fingerprint, pin
from maenas.profiling.measurement import Settings, Stats, summarize
from maenas.structure import Structure


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """Times networks on this machine.

    Attributes:
        table: A measured table of this machine; backend, threads and precision are its.
        folder: Receives the exported networks and the journals.
        export: Writes the deployed detector of a structure as ONNX.
        settings: How to measure.
        progress: Of the measurements.
        bridge: To the package `detector`, which runs torch.

    Raises:
        ProfileError: The table is none of this machine, or of quantised networks.
    """

    table: LatencyTable
    folder: Path
    export: Exporter
    settings: Settings
    progress: Progress | None = None
    bridge: Bridge | None = None

    def __post_init__(self) -> None:
        if self.table.provenance != "measured" or self.table.fingerprint is None:
            raise ProfileError(
                f"table {self.table.name} is {self.table.provenance}; measuring needs a table of this machine: "
                "maenas profile makes one, then --device local"
            )
        here = fingerprint(describe_host())
        if self.table.fingerprint != here:
            raise ProfileError(
                f"table {self.table.name} is of machine {self.table.fingerprint} ({self.table.device}), "
                f"this is {here}; expected --device local"
            )
        if self.table.precision == "int8":
            raise ProfileError(
                f"table {self.table.name} is of quantised networks (int8), and a search quantises none to measure; "
                "expected a search without --measure"
            )

    def time(self, structures: Sequence[Structure], *, label: str) -> list[Stats]:
        """Statistics of each network, all timed among each other.

        Args:
            structures: Networks.
            label: Names the journal, from which an interrupted measurement of the same networks continues.

        Raises:
            DeviceBusyError: Other work spoiled a measurement in every attempt.
            ProfileError: The table is of another accelerator than the one that is here.
        """
        make_folder(self.folder)
        backend = open_backend(
            self.table.backend,
            threads=self.table.threads or 1,
            precision=self.table.precision,
            batch=self.table.batch,
            bridge=self.bridge,
        )
        if backend.accelerator and backend.device_name != self.table.device:
            raise ProfileError(
                f"table {self.table.name} is of {self.table.device}, this is {backend.device_name}; expected the same"
            )
        reference = self.folder / "reference.onnx"
        if not reference.exists():
            write_reference(reference)
        entries = []
        for structure in structures:
            path = self.folder / f"{structure.digest}.onnx"
            if not path.exists():
                self.export(structure, path)
            entries.append(backend.entry(path, key=structure.digest, layers=False))
        if not backend.accelerator:
            pin(backend.threads)
        records = run_campaign(
            entries,
            settings=self.settings,
            journal=self.folder / f"{label}.jsonl",
            reference=backend.entry(reference, key="reference", layers=False),
            progress=self.progress,
            conditions={
                "fingerprint": self.table.fingerprint,
                "backend": backend.name,
                "version": backend.version,
                "precision": backend.precision,
                "threads": backend.threads,
                "networks": [structure.digest for structure in structures],
            },
            threads=None if backend.accelerator else backend.threads,
        )
        return list(summarize(records).values())
