"""Quick tables of the mob space on a CUDA device through torch, in FP32 and FP16, and how far off they are.

    python experiments/cuda_check/run_profile_cuda.py [--out FOLDER] [--tests]

Takes about two minutes: 22 networks, two passes. Prints per precision the mean error of whole networks that the fit
behind each prediction had not seen, and writes the tables to FOLDER (default: $OUT, else runs/cuda_check). With --tests
the tests marked `gpu` come first. Packages in build/site are used where the environment lacks them (psutil, for one).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]
sys.path.append(str(ROOT / "build" / "site"))

NEEDED = ("numpy", "onnx", "pandas", "psutil", "scipy", "sklearn", "torch", "yaml")


def stand_in(name: str) -> None:
    """An empty module for a package that is imported, but does nothing for timings."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            sys.modules[".".join(parts[:depth])] = types.ModuleType(".".join(parts[:depth]))
        sys.modules["torchvision.ops"].batched_nms = None


def main() -> int:
    """Profile in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "runs" / "cuda_check")))
    parser.add_argument("--backend", default="torch-cuda", help="another one, to try the script without a GPU")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--tests", action="store_true")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing packages: {', '.join(missing)}")
        return 2
    stand_in("torchvision.ops")
    if arguments.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/detector/test_torch_timing.py"]
        subprocess.run(command, cwd=ROOT, check=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for precision in arguments.precisions:
        profile(arguments.backend, precision, arguments.out)
    shutil.rmtree(arguments.out / "work", ignore_errors=True)
    return 0


def profile(backend: str, precision: str, out: Path) -> None:
    """One table, and a few lines about it."""
    from maenas.cli.detector import bundled, exporter
    from maenas.profiling import build
    from maenas.profiling.campaign import Sizes
    from maenas.profiling.measurement import Settings
    from maenas.profiling.profile import NETWORKS_FOLDER, Question, run_profile
    from maenas.spaces import load_space

    if importlib.util.find_spec("matplotlib") is None:
        build.networks_png = lambda rows, title: b"no matplotlib here\n"
    question = Question(
        spaces=(load_space("mob"),),
        backend=backend,
        threads=1,
        precision=precision,
        sizes=Sizes(space_networks=5, probes=2, light_probes=1, calibration=10, test=4),
        settings=Settings(passes=2, extra_passes=0, min_seconds=0.15, attempts=2, patience_s=5.0, force=True),
    )
    begun = time.perf_counter()
    steps: list[float] = []
    # Both precisions time the same files.
    networks = out / "work" / NETWORKS_FOLDER
    own = out / "work" / precision
    own.mkdir(parents=True, exist_ok=True)
    networks.mkdir(exist_ok=True)
    (own / NETWORKS_FOLDER).symlink_to(networks)
    folder, fitted = run_profile(
        question,
        target=out / f"cuda-{precision}",
        work=own,
        export=exporter(seed=0),
        bridge=bundled,
        force=True,
        exporting=lambda done, total: steps.append(time.perf_counter()),
    )
    seconds = time.perf_counter() - begun
    print(f"\n{precision}: {folder}, {seconds:.0f} s, of which {steps[-1] - begun:.0f} s to write the networks")
    print(
        f"  line {fitted.line.fixed_ms:.3f} ms + {fitted.line.scale:.3f} x sum, {len(fitted.times.samples)} operators"
    )
    print(f"  calibration, each left out: mean error {fitted.line.mean_error:.1%}")
    for role in ("test", "kernels"):
        errors = [abs(result.error) for result in fitted.results if result.network.role == role]
        print(f"  {role}: mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%} of {len(errors)}")
    for result in fitted.results:
        layers = "" if result.layers_ms is None else f", layers {result.layers_ms:.3f}"
        print(
            f"    {result.network.key:22} {result.measured_ms:8.3f} ms ({result.low_ms:.3f} to {result.high_ms:.3f})"
            f", predicted {result.predicted_ms:.3f}{layers}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
