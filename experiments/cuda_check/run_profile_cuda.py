"""Quick tables of the mob space on a CUDA device through torch, in FP32 and FP16, and how far off they are.

    python experiments/cuda_check/run_profile_cuda.py [--out FOLDER]

A minute or two per precision: 15 networks, two passes. Prints the mean error of whole networks that the fit behind each
prediction had not seen, and writes the tables to FOLDER (default: runs/cuda_check).
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path


def main() -> None:
    """Profile in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/cuda_check"))
    parser.add_argument("--backend", default="torch-cuda", help="another one, to try the script without a GPU")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for precision in arguments.precisions:
        profile(arguments.backend, precision, arguments.out)
    shutil.rmtree(arguments.out / "work", ignore_errors=True)


def profile(backend: str, precision: str, out: Path) -> None:
    """One table, and a few lines about it."""
    from maenas.cli.detector import bundled, exporter
    from maenas.profiling.campaign import Sizes
    from maenas.profiling.measurement import Settings
    from maenas.profiling.profile import NETWORKS_FOLDER, Question, run_profile
    from maenas.spaces import load_space

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
    main()
