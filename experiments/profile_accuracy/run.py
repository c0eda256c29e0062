"""How well does a profiled table predict networks that it has not seen? One backend and number of threads per call."""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from maenas.cli.detector import exporter
from maenas.latency.table_networks import NetworkRow, errors_of, networks_to_csv
from maenas.latency.table_plot import plot_networks
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.profiling.backends import open_backend
from maenas.profiling.backends.reference import write_reference
from maenas.profiling.build import network_rows
from maenas.profiling.campaign import QUICK, Sizes
from maenas.profiling.fit import Fit, bare, op_key
from maenas.profiling.harness import run_campaign
from maenas.profiling.host import pin
from maenas.profiling.measurement import Settings, summarize
from maenas.profiling.probes import isolated_op
from maenas.profiling.profile import JOURNAL_FILE, Question, run_profile
from maenas.published import load_published
from maenas.spaces import load_space

FOREIGN = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet1_0",
    "resnet18",
    "resnet50",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "densenet121",
)
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Profile, time the test networks' operators one by one, and add a line to results.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True, choices=["openvino", "onnxruntime"])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--space", nargs="+", default=["mob", "res", "csp"])
    parser.add_argument("--image-side", type=int, default=320, help="of res and csp; mob keeps its own 416")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-isolated", action="store_true")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--work", type=Path, required=True, help="networks, journals and the table")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    name = f"{arguments.backend}-{arguments.threads}t" + ("-quick" if arguments.quick else "")
    work = arguments.work / name
    settings = Settings(force=arguments.force)
    if arguments.quick:
        settings = replace(settings, passes=2, extra_passes=1, min_seconds=0.3, min_runs=5)
    side = arguments.image_side
    question = Question(
        spaces=tuple(
            load_space(space) if space == "mob" else replace(load_space(space), image_size=(side, side))
            for space in arguments.space
        ),
        backend=arguments.backend,
        threads=arguments.threads,
        precision="fp32",
        sizes=QUICK if arguments.quick else Sizes(),
        settings=settings,
        test=() if arguments.quick else tuple(load_published(f"damo-yolo-{model}") for model in ("ns", "nm", "nl")),
        foreign=foreign_networks(arguments.work / "foreign"),
    )
    resumed = (work / JOURNAL_FILE).exists()
    started = time.perf_counter()
    folder, fitted = run_profile(
        question,
        target=arguments.work / "tables" / name,
        work=work,
        export=exporter(0),
        force=True,
        measuring=lambda done, total, left, key: print(f"{done}/{total} {key}", flush=True),
    )
    seconds = time.perf_counter() - started
    rows = network_rows(fitted)
    if not arguments.no_isolated:
        rows = with_isolated(rows, fitted, question, work)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / f"networks-{name}.csv").write_bytes(networks_to_csv(rows))
    plot_networks(rows, arguments.out / f"networks-{name}.png", title=name)
    write_result(arguments.out / "results.csv", name, rows, fitted, None if resumed else seconds)
    print(f"{folder}: {seconds / 60:.1f} min")


def foreign_networks(folder: Path) -> tuple[Path, ...]:
    """Classifiers of torchvision with random weights, 224 x 224, as ONNX."""
    import torchvision

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in FOREIGN:
        path = folder / f"{name}.onnx"
        if not path.exists():
            torch.manual_seed(0)
            model = getattr(torchvision.models, name)(weights=None)
            images = 255 * torch.rand(4, 3, 224, 224)
            with torch.no_grad():
                for module in model.modules():
                    if isinstance(module, torch.nn.BatchNorm2d):
                        module.momentum = 1.0
                model.train()(images)
            program = torch.onnx.export(model.eval(), (images[:1],), dynamo=True, input_names=["images"], verbose=False)
            assert program is not None
            program.save(str(path))
        paths.append(path)
    return tuple(paths)


def with_isolated(rows: list[NetworkRow], fitted: Fit, question: Question, work: Path) -> list[NetworkRow]:
    """Add the sums of operators timed one by one for the test networks."""
    ops_of: dict[str, list[Op]] = {}
    for result in fitted.results:
        network = result.network
        if network.role == "test" and network.structure is not None:
            ops_of[network.key] = [bare(op) for op in lower(network.structure)]
    distinct = {repr(op_key(op)): op for ops in ops_of.values() for op in ops if op.kind != "mul"}
    folder = work / "isolated"
    folder.mkdir(exist_ok=True)
    backend = open_backend(question.backend, threads=question.threads)
    entries = []
    for number, (key, op) in enumerate(sorted(distinct.items())):
        path = folder / f"{number:04d}.onnx"
        if not path.exists():
            path.write_bytes(isolated_op(op).SerializeToString())
        entries.append(backend.entry(path, key=key, layers=False))
    reference = folder / "reference.onnx"
    write_reference(reference)
    print(f"{len(entries)} operators one by one", flush=True)
    pin(question.threads)
    records = run_campaign(
        entries,
        # Single operators are tiny: a reference around each still takes longer than they do.
        settings=Settings(passes=1, min_seconds=0.025, warmup=2, force=True, attempts=1),
        journal=work / "isolated.jsonl",
        reference=backend.entry(reference, key="reference", layers=False),
        conditions={"threads": question.threads},
        progress=lambda done, total, left, key: (
            print(f"isolated {done}/{total}", flush=True) if done % 100 == 0 else None
        ),
    )
    ms = {key: stats.ms_p25 for key, stats in summarize(records).items()}
    found = []
    for row in rows:
        ops = ops_of.get(row.network)
        if ops is not None:
            times = [(op, ms.get(repr(op_key(op)), 0.0)) for op in ops]
            row = row._replace(
                isolated_sum_ms=sum(value for _, value in times),
                isolated_conv_sum_ms=sum(value for op, value in times if op.kind == "conv"),
            )
        found.append(row)
    return found


def write_result(path: Path, name: str, rows: list[NetworkRow], fitted: Fit, seconds: float | None) -> None:
    """Replace the line of this table in results.csv; a resumed run leaves the minutes of the first one."""
    test = [row for row in rows if row.role == "test"]
    foreign = [row for row in rows if row.role == "foreign"]
    of_test, of_foreign = errors_of(test), errors_of(foreign)
    spread = np.median([(r.high_ms - r.low_ms) / r.measured_ms for r in fitted.results])
    extrapolated = [r.extrapolated_share for r in fitted.results if r.network.role == "foreign"]
    lines = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            lines = {row["table"]: row for row in csv.DictReader(stream)}
    line = {
        "table": name,
        "minutes": lines.get(name, {}).get("minutes", "") if seconds is None else round(seconds / 60, 1),
        "samples": len(fitted.times.samples),
        "test_networks": of_test.n,
        "test_mean_error": round(of_test.mean_abs, 4),
        "test_max_error": round(of_test.max_abs, 4),
        "test_bias": round(of_test.bias, 4),
        "test_spearman": round(of_test.spearman, 4),
        "calibration_leave_one_out": round(fitted.line.mean_error, 4),
        "raw_sum_error": round(errors_of(test, "sum_ms").mean_abs, 4),
        "isolated_sum_error": round(errors_of(test, "isolated_sum_ms").mean_abs, 4),
        "isolated_conv_sum_error": round(errors_of(test, "isolated_conv_sum_ms").mean_abs, 4),
        "foreign_networks": of_foreign.n,
        "foreign_mean_error": round(of_foreign.mean_abs, 4),
        "foreign_max_error": round(of_foreign.max_abs, 4),
        "foreign_extrapolated_share": round(float(np.mean(extrapolated)), 4),
        "spread_of_passes": round(float(spread), 4),
        "fixed_ms": round(fitted.line.fixed_ms, 4),
        "scale": round(fitted.line.scale, 4),
    }
    lines[name] = {key: str(value) for key, value in line.items()}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(line), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[key] for key in sorted(lines))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
