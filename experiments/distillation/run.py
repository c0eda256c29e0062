"""Do distillation methods help a small detector, and in which order? Can be stopped and started again at any time."""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from runs import Run, bccd_runs, cards_runs

HERE = Path(__file__).resolve().parent
SIDE = 320
SPACES = {
    "teacher": ("--block", "res", "--variant", "t", "--max-flops", "2.2G"),
    "student": ("--space", str(HERE / "space.yaml"), "--max-flops", "0.5G"),
}
CLASSES = {"bccd": 3, "cards": 6}
TOWER_CHANNELS = 48
FIELDS = (
    *("run", "group", "data", "method", "weight", "towers", "seed", "epochs", "iterations", "minutes", "cpu_minutes"),
    *("ap", "ap50", "ap75", "teacher_ap"),
)


@dataclass(frozen=True)
class Place:
    """Where things are.

    Attributes:
        data: Folder with a folder per data set.
        work: Structures, teachers and runs.
        out: results.csv and a metrics file per run.
    """

    data: Path
    work: Path
    out: Path


def main() -> None:
    """Make what is missing, one run at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with bccd/ and cards/")
    parser.add_argument("--work", type=Path, required=True, help="structures, teachers and runs")
    parser.add_argument("--core", type=int, required=True, help="that everything is pinned to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--teacher", type=Path, help="checkpoint that teaches on bccd; trained if not given")
    parser.add_argument("--cards-teacher", type=Path, help="the same for cards")
    parser.add_argument("--teacher-minutes", type=float, default=20.0)
    parser.add_argument("--cards-minutes", type=float, default=3.0)
    parser.add_argument("--only", nargs="+", help="groups: table8 figure4 head cards")
    parser.add_argument(
        "--set", nargs="+", default=[], help="for a trial: settings of every run, such as train.epochs=2"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    os.environ["OMP_NUM_THREADS"] = "1"
    place = Place(arguments.data, arguments.work, arguments.out)

    groups = arguments.only or ("table8", "figure4", "head", "cards")
    if set(groups) != {"cards"}:
        teacher = teacher_of(place, "bccd", arguments.teacher, minutes=arguments.teacher_minutes)
        for run in bccd_runs(arguments.seeds):
            if run.group in groups:
                make(run, place, teacher, extra=arguments.set)
    if "cards" in groups:
        better = best_methods(place, count=2)
        teacher = teacher_of(place, "cards", arguments.cards_teacher, minutes=arguments.teacher_minutes)
        for run in cards_runs(arguments.seeds, better, minutes=arguments.cards_minutes):
            make(run, place, teacher, extra=arguments.set)


@dataclass(frozen=True)
class Master:
    """A teacher.

    Attributes:
        path: Its checkpoint.
        ap: On the validation images, in percent.
    """

    path: Path
    ap: float


def teacher_of(place: Place, data: str, given: Path | None, *, minutes: float) -> Master:
    """The teacher of a data set, trained and evaluated unless that was done before."""
    path = given
    if path is None:
        structure = searched(place, data, "teacher")
        folder = place.work / f"teacher-{data}"
        path = folder / "last.safetensors"
        if not finished(folder):
            train(
                place, data, structure, folder, ["--max-minutes", str(minutes)], log=place.work / f"teacher-{data}.txt"
            )
    record = place.work / f"teacher-{data}-eval" / "eval.json"
    if not record.exists():
        maenas("eval", str(path), "--data", str(place.data / data), "--out", str(record.parent), "--force")
    content = json.loads(record.read_text(encoding="utf-8"))
    return Master(path, round(100 * content["metrics"]["ap"], 2))


def searched(place: Place, data: str, role: str) -> Path:
    """The structure of most capacity within a role's budget."""
    folder = place.work / f"search-{data}-{role}"
    path = folder / "structure.json"
    if not path.exists():
        classes = str(CLASSES[data])
        sizes = ("--image-size", str(SIDE), "--num-classes", classes, "--max-layers", "17")
        maenas("search", *SPACES[role], *sizes, "--out", str(folder))
    return path


def student_of(place: Place, run: Run) -> Path:
    """The student's structure; with towers, the same one with another head."""
    path = searched(place, run.data, "student")
    if not run.towers:
        return path
    content = json.loads(path.read_text(encoding="utf-8"))
    content["head"] |= {"tower_depth": run.towers, "tower_channels": TOWER_CHANNELS}
    other = place.work / f"student-{run.data}-towers{run.towers}.json"
    other.write_text(json.dumps(content), encoding="utf-8")
    return other


def make(run: Run, place: Place, teacher: Master, *, extra: list[str]) -> None:
    """Train a student unless it has a line in results.csv already; a run that was stopped goes on."""
    lines = read_lines(place.out / "results.csv")
    if run.name in lines:
        return
    folder = place.work / "runs" / run.name
    options = ["--seed", str(run.seed)]
    if run.method != "none":
        options += ["--teacher", str(teacher.path)]
    if run.minutes is not None:
        options += ["--max-minutes", str(run.minutes)]
    before = cpu_minutes()
    result = train(
        place, run.data, student_of(place, run), folder, options, settings=[*run.settings(), *extra],
        log=place.out / "logs" / f"{run.name}.txt",
    )  # fmt: skip
    (place.out / "metrics").mkdir(parents=True, exist_ok=True)
    metrics = place.out / "metrics" / f"{run.name}.csv"
    shutil.copyfile(folder / "metrics.csv", metrics)
    with metrics.open(newline="", encoding="utf-8") as stream:
        last = list(csv.DictReader(stream))[-1]
    lines[run.name] = {
        "run": run.name,
        "group": run.group,
        "data": run.data,
        "method": run.method,
        "weight": "" if run.method == "none" else "cosine" if run.weight is None else f"{run.weight:g}",
        "towers": str(run.towers),
        "seed": str(run.seed),
        "epochs": str(result["epochs"]),
        "iterations": str(result["iterations"]),
        "minutes": f"{result['seconds'] / 60:.2f}",
        "cpu_minutes": f"{cpu_minutes() - before:.2f}",
        **{name: f"{100 * float(last[name]):.2f}" for name in ("ap", "ap50", "ap75")},
        "teacher_ap": f"{teacher.ap:.2f}",
    }
    write_lines(lines, place.out / "results.csv")
    print(f"{run.name}: AP {lines[run.name]['ap']}, {lines[run.name]['minutes']} min", flush=True)


def train(
    place: Place,
    data: str,
    structure: Path,
    folder: Path,
    options: list[str],
    *,
    settings: Sequence[str] = (),
    log: Path,
) -> dict:
    """A run through the command line, from where it was stopped; the content of its result.json."""
    if not finished(folder):
        goes_on = (folder / "state.safetensors").exists()
        command = ["train", str(structure), "--data", str(place.data / data), "--recipe", "small-data", *options]
        command += ["--workers", "0", "--device", "cpu", "--out", str(folder), "--resume" if goes_on else "--force"]
        maenas(*command, *(["--set", *settings] if settings else []), log=log)
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def finished(folder: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    path = folder / "result.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["ended_by"] == "completed"


def best_methods(place: Place, *, count: int) -> list[str]:
    """Methods of most AP in Table 8, on average over the seeds."""
    found: dict[str, list[float]] = {}
    for line in read_lines(place.out / "results.csv").values():
        if line["group"] == "table8" and line["method"] != "none":
            found.setdefault(line["method"], []).append(float(line["ap"]))
    return sorted(found, key=lambda method: -mean(found[method]))[:count]


def cpu_minutes() -> float:
    """CPU time of the ended processes that this one started."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (spent.ru_utime + spent.ru_stime) / 60


def maenas(*words: str, log: Path | None = None) -> None:
    """Run a verb; what it says goes into a log."""
    command = [sys.executable, "-m", "maenas", *words]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with open(log or os.devnull, "a", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {log.read_text()[-2000:] if log else ''}")


def read_lines(path: Path) -> dict[str, dict[str, str]]:
    """Lines of a results.csv by run."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        return {line["run"]: line for line in csv.DictReader(stream)}


def write_lines(lines: dict[str, dict[str, str]], path: Path) -> None:
    """Replace a results.csv at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines.values())
    new.replace(path)


if __name__ == "__main__":
    main()
