"""Does a training-free score predict AP at equal latency? Two data sets, the same networks; may be stopped, goes on."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from alternatives import write_alternatives

from maenas.budgets import Budget
from maenas.cli.eval_proxy_options import identities_of
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.lowering.detector import lower
from maenas.search import build_request_chain, resolve_request, search
from maenas.solver.solve import Infeasible, solve
from maenas.spaces import SearchSpace, load_space

HERE = Path(__file__).resolve().parent
SPACE, VARIANT, SIDE, NUM_CLASSES = "res-small", "xs", 256, 6
FLOPS = 0.40e9
"""The band lies at the latency of the entropy score's optimum within so many FLOPs."""
EPOCHS = {"bccd": 25, "cards": 18}
"""About 330 steps of 16 images on either set."""
SHORT = ("schedule.no_aug_epochs=5", "eval.every=1000", "eval.every_no_aug=1000")
"""On top of small-data: no evaluation but the last."""


@dataclass(frozen=True)
class Band:
    """What is asked of `maenas eval-proxy`.

    Attributes:
        table: Folder or name of the latency table.
        budget_ms: Upper edge of the band.
        low_ms: Where the wide range begins.
        high_ms: Where it ends.
    """

    table: str
    budget_ms: float
    low_ms: float
    high_ms: float


def main() -> None:
    """Table, band, both campaigns, and what is made of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with bccd/ and cards/")
    parser.add_argument("--work", type=Path, required=True, help="table, structures and runs")
    parser.add_argument("--cores", type=int, nargs="+", required=True, help="one training at a time on each")
    parser.add_argument("--device", help="a latency table of that space; measured first if not given")
    parser.add_argument("--measure", action="store_true", help="the band is of latencies measured on this machine")
    parser.add_argument("--sets", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--structures", type=int, default=12)
    parser.add_argument("--wide-structures", type=int, default=6)
    parser.add_argument("--epochs", type=int, help="for a trial: of both sets")
    parser.add_argument("--set", nargs="+", default=[], help="for a trial: more settings of every training")
    parser.add_argument("--dry-run", action="store_true", help="draw the networks and stop")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, set(arguments.cores))
    os.environ["OMP_NUM_THREADS"] = "1"

    table = arguments.device or measured_table(arguments.work, arguments.cores[0])
    band = band_of(table)
    print(f"band up to {band.budget_ms} ms, wide range {band.low_ms} to {band.high_ms} ms, table {table}", flush=True)
    campaign(arguments.sets[0], band, arguments, dry_run=True)
    for data in arguments.sets[1:]:
        share_networks(arguments.work / arguments.sets[0], arguments.work / data, data, arguments)
    if arguments.dry_run:
        return
    for data in arguments.sets:
        campaign(data, band, arguments)
        keep(arguments.work / data, arguments.out / data, data=data)
    write_alternatives({data: arguments.work / data for data in arguments.sets}, arguments.out)


def measured_table(work: Path, core: int) -> str:
    """A latency table of the space on this machine, made once (2 to 4 minutes, the core must be free)."""
    folder = work / "tables" / "proxy-value"
    if not (folder / "table.json").exists():
        options = ["--space", SPACE, "--image-size", str(SIDE), "--num-classes", str(NUM_CLASSES), "--threads", "1"]
        options += ["--quick", "--name", folder.name, "--out", str(folder.parent), "--work", str(work / "profile")]
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        maenas("profile", "--backend", "openvino", *options)
        os.sched_setaffinity(0, everywhere)
    return str(folder)


def space_here() -> SearchSpace:
    """The space at the side and with the classes of this experiment."""
    space = replace(load_space(SPACE), image_size=(SIDE, SIDE))
    variants = tuple(replace(each, head=replace(each.head, num_classes=NUM_CLASSES)) for each in space.variants)
    return replace(space, variants=variants)


def band_of(device: str) -> Band:
    """The band, from the table alone: equal tables give equal bands."""
    space, table = space_here(), load_table(device)
    best = search(space, budgets=[Budget("flops", FLOPS)], variant=VARIANT, top_k=1).best
    budget_ms = predict(lower(best.structure), table).latency_ms
    request = resolve_request(space, budgets=[Budget("latency_ms", 1e6)], device=table, variant=VARIANT)
    problem = build_request_chain(request)
    unreachable = solve(replace(problem, limits=np.full(1, 1e-9)))
    assert isinstance(unreachable, Infeasible) and unreachable.smallest is not None
    low_ms = max(0.65 * budget_ms, 1.08 * unreachable.smallest[0])
    return Band(device, *(float(f"{value:.3g}") for value in (budget_ms, low_ms, 1.8 * budget_ms)))


def campaign(data: str, band: Band, arguments: argparse.Namespace, *, dry_run: bool = False) -> None:
    """One data set, from where it is; dry, only its networks."""
    words = ["--data", str(arguments.data / data), "--out", str(arguments.work / data)]
    words += ["--space", SPACE, "--variant", VARIANT, "--image-size", str(SIDE), "--num-classes", str(NUM_CLASSES)]
    words += ["--device", band.table, "--budget", f"{band.budget_ms}ms", "--structures", str(arguments.structures)]
    words += ["--wide", f"{band.low_ms}ms", f"{band.high_ms}ms", "--wide-structures", str(arguments.wide_structures)]
    words += ["--recipe", "small-data", "--epochs", str(arguments.epochs or EPOCHS[data])]
    words += ["--seeds", *map(str, arguments.seeds), "--workers", "0", "--train-device", "cpu"]
    words += ["--cores", *map(str, arguments.cores), "--set", *SHORT, *arguments.set]
    words += ["--measure"] * arguments.measure + ["--dry-run"] * dry_run
    maenas("eval-proxy", *words)


def share_networks(first: Path, folder: Path, data: str, arguments: argparse.Namespace) -> None:
    """Begin a campaign with the networks of another one: measurements repeat, but not to the digit."""
    if (folder / "question.json").exists():
        return
    shutil.copytree(first / "structures", folder / "structures", dirs_exist_ok=True)
    for name in ("members.csv", "forward_scores.json"):
        shutil.copyfile(first / name, folder / name)
    question = json.loads((first / "question.json").read_text(encoding="utf-8"))
    trained = argparse.Namespace(
        data=str(arguments.data / data), epochs=arguments.epochs or EPOCHS[data], max_minutes=None, recipe="small-data",
        seeds=arguments.seeds, set=[*SHORT, *arguments.set], train_device="cpu", workers=0,
    )  # fmt: skip
    question |= {"data": trained.data, "epochs": trained.epochs, **identities_of(trained, None)}
    (folder / "question.json").write_text(json.dumps(question, indent=1) + "\n", encoding="utf-8")


def keep(folder: Path, out: Path, *, data: str) -> None:
    """Copy what belongs beside this script; the data set is named, not its place on this machine."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("points.csv", "members.csv", "band.png", "wide.png"):
        shutil.copyfile(folder / name, out / name)
    record = json.loads((folder / "proxy.json").read_text(encoding="utf-8"))
    record["question"]["data"] = f"DATA/{data}"
    (out / "proxy.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def maenas(*words: str) -> None:
    """Run a verb in this terminal."""
    done = subprocess.run([sys.executable, "-m", "maenas", *words], check=False)
    if done.returncode:
        raise SystemExit(f"maenas {words[0]} ended with {done.returncode}; the same command goes on")


if __name__ == "__main__":
    main()
