"""The machine that is measured: what it is, which cores are used, and who else uses them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maenas.errors import ProfileError
from maenas.extras import require

_ISA = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx",
    "asimd": "neon",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""Flags of the operating system to the instruction sets that change how fast a network runs."""

_CPUINFO = Path("/proc/cpuinfo")
_CPU_FOLDER = Path("/sys/devices/system/cpu")
_ALLOWED = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
"""Cores this process could use when it started, so that a second `pin` is not limited by the first."""


def describe_host() -> dict[str, Any]:
    """What the machine is; a value that the operating system does not tell is None.

    Raises:
        MissingExtraError: psutil is not installed.
    """
    psutil = _psutil()
    flags = _cpuinfo("flags", "Features").split()
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    clock = (frequency.max or frequency.current) if frequency else 0
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "isa": sorted({_ISA[flag] for flag in flags if flag in _ISA}),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "governor": _read(_CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor"),
        "clock_mhz": round(clock) if clock else None,
        "virtualised": "hypervisor" in flags if flags else None,
    }


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    named = _cpuinfo("model name", "Model")
    if not named and platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        named = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return " ".join((named or platform.processor() or platform.machine() or "unknown").split())


def fingerprint(host: dict[str, Any]) -> str:
    """12 hex digits of what decides speed: processor, cores, instruction sets. Memory and system do not count."""
    parts = [host[name] for name in ("cpu", "architecture", "physical_cores", "logical_cores", "isa")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def usable_cores() -> int:
    """Cores that this process could use when it started."""
    return len(_ALLOWED) or os.cpu_count() or 1


def check_cores(cores: int) -> None:
    """Refuse more threads than there are cores for them.

    Raises:
        ProfileError: There are not so many; nothing is known, and nothing refused, where the system cannot pin.
    """
    if _ALLOWED and not 1 <= cores <= len(_ALLOWED):
        raise ProfileError(f"threads is {cores}; expected 1 to {len(_ALLOWED)}, as many cores as this process may use")


def pin(cores: int) -> tuple[int, ...]:
    """Keep this process, all its threads and those it starts later, on as many cores.

    Cores of their own come before second threads of the same core, and high numbers before low ones: interrupts
    are mostly served on the first.

    Returns:
        The cores; empty where the operating system cannot pin.

    Raises:
        ProfileError: There are not so many.
    """
    check_cores(cores)
    if not _ALLOWED:
        return ()
    seen: set[str] = set()
    ranks: list[tuple[bool, int]] = []
    for core in reversed(_ALLOWED):
        siblings = _read(_CPU_FOLDER / f"cpu{core}" / "topology" / "thread_siblings_list") or str(core)
        ranks.append((siblings in seen, -core))
        seen.add(siblings)
    return _keep_on(tuple(sorted(-core for _, core in sorted(ranks)[:cores])))


def unpin() -> None:
    """Give this process all the cores back that it could use when it started."""
    if _ALLOWED:
        _keep_on(_ALLOWED)


def _keep_on(chosen: tuple[int, ...]) -> tuple[int, ...]:
    tasks = Path("/proc/self/task")
    for thread in [int(entry.name) for entry in tasks.iterdir()] if tasks.is_dir() else [0]:
        try:
            os.sched_setaffinity(thread, chosen)
        except ProcessLookupError:
            # A thread that ended meanwhile.
            continue
    return chosen


@contextmanager
def same_cores_after() -> Iterator[None]:
    """Give this process the cores back that it has now, whatever the block pins it to."""
    if not _ALLOWED:
        yield
        return
    before = tuple(sorted(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        _keep_on(before)


@contextmanager
def unpinned() -> Iterator[None]:
    """Every core this process started with, for as long as the block lasts; then those it had before."""
    with same_cores_after():
        unpin()
        yield


class LoadGuard:
    """Measures, over a `with` block, what others took of the machine.

    The counters of the operating system advance in ticks (10 ms); two per core are what they may be off, by chance in
    either direction, so a margin that grows with the root of the number of cores is taken off.

    Args:
        cores: The pinned ones; empty: all.

    Attributes:
        seconds: Length of the block.
        others: Cores' worth of time that other processes took on the whole machine.
        others_pinned: The same on the pinned cores.
        steal: Cores' worth that the host of a virtual machine withheld.
    """

    def __init__(self, cores: tuple[int, ...] = ()) -> None:
        self._psutil = _psutil()
        self._cores = cores
        self.seconds = self.others = self.others_pinned = self.steal = 0.0

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, own, busy, steal = (after - before for before, after in zip(self._before, self._read(), strict=True))
        self.seconds = float(wall)
        pinned = [core for core in self._cores if core < len(busy)] or list(range(len(busy)))
        self.others = self._share(busy.sum() - own, len(busy))
        self.others_pinned = self._share(busy[pinned].sum() - own, len(pinned))
        self.steal = self._share(steal.sum(), len(busy))

    @property
    def busy(self) -> float:
        """Cores' worth of time that was taken from this process or could have been."""
        return self.others + self.steal

    def _share(self, seconds: float, num_cores: int) -> float:
        margin = 2.0 * math.sqrt(num_cores) / _ticks_per_second()
        return max(0.0, float(seconds) - margin) / self.seconds if self.seconds > 0 else 0.0

    def _read(self) -> tuple[Any, ...]:
        import numpy as np

        times = self._psutil.cpu_times(percpu=True)
        busy = [
            sum(getattr(core, field, 0.0) for field in ("user", "nice", "system", "irq", "softirq")) for core in times
        ]
        steal = [getattr(core, "steal", 0.0) for core in times]
        return time.perf_counter(), time.process_time(), np.array(busy), np.array(steal)


def busiest_processes(seconds: float = 0.3, *, limit: int = 3) -> str:
    """The other processes that use most processor time now, as text; empty where none does."""
    psutil = _psutil()
    before: dict[int, float] = {}
    for process in psutil.process_iter():
        before[process.pid] = _cpu_seconds(psutil, process)
    time.sleep(seconds)
    shares = []
    for process in psutil.process_iter(["name"]):
        used = _cpu_seconds(psutil, process) - before.get(process.pid, 0.0)
        if process.pid != os.getpid() and process.pid in before and used > 0.05 * seconds:
            shares.append((used / seconds, process.pid, process.info["name"] or "?"))
    return ", ".join(f"{name} ({pid}) {share:.0%}" for share, pid, name in sorted(shares, reverse=True)[:limit])


def _cpu_seconds(psutil: Any, process: Any) -> float:  # noqa: ANN401
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _psutil() -> Any:  # noqa: ANN401
    return require("psutil", extra="profile", purpose="timing networks")


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _cpuinfo(*keys: str) -> str:
    """Value of the first of these keys in Linux's list of processors; empty elsewhere."""
    lines = (_read(_CPUINFO) or "").splitlines()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return next((found[key] for key in keys if found.get(key)), "")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
