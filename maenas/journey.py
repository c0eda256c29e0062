"""One journey from a budget to a deployed detector: what is asked, and the commands that lead there.

Every step is a command that a user could have typed; it reads files that a step before it wrote or that the user gave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maenas.errors import MaenasError

REPORT_FILE, RECORD_FILE = "report.html", "report.json"
PICTURES_FOLDER = "pictures"
FRONT_REACH = 0.25
"""Share of the budget that the front of other budgets reaches to either side."""

DIGEST = "DIGEST"
"""Stands in a plan for the digest of a structure that is still to be found."""


class JourneyError(MaenasError, ValueError):
    """A journey that cannot be begun or gone on with as it was asked for."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where latencies come from.

    Attributes:
        table: Name or folder of the latency table; the name it will get where it is still to be made.
        table_hash: Of the table; empty before it is made.
        backend: Runtime that the table is of.
        threads: CPU threads; None on an accelerator.
        precision: Arithmetic that the table is of.
        batch: Images per run.
        is_here: Whether the table is of this machine, so that latencies can be measured.
        table_files: Files of the table.
        profile: Words of `maenas profile` that make the table; empty where it exists.
    """

    table: str
    table_hash: str
    backend: str
    threads: int | None
    precision: str
    batch: int
    is_here: bool
    table_files: tuple[Path, ...]
    profile: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Journey:
    """What is asked for, as words for the verbs that do it.

    Attributes:
        out: Folder of the run.
        budget_ms: Latency budget.
        device: Where latencies come from.
        data: The data set, as the user wrote it.
        data_digest: Of its annotations.
        search: Words of `maenas search` but for device and folder; empty where the network is given.
        front: Words of `maenas front` but for latencies, device and folder; empty where there is none to compute.
        train: Words of `maenas train` but for network, data and folder; empty where the weights are given.
        train_inputs: Files that training reads besides, such as a teacher.
        export: Words of `maenas export` but for model, precision, data and folder.
        precisions: Of the exports, each once.
        structure: The given network, fitted to the data, or None where it is searched.
        searched: Record of the search that the given network comes from, or None.
        weights: The given checkpoint, or None where it is trained.
        exported: Given exports by precision.
        keep_disturbed: Keep timings that other work on the machine disturbed.
        union: Whether the data are several sets; their AP has no place in a plot, which is of one.
    """

    out: Path
    budget_ms: float
    device: Device
    data: str
    data_digest: str
    search: tuple[str, ...]
    train: tuple[str, ...]
    front: tuple[str, ...] = ()
    train_inputs: tuple[Path, ...] = ()
    export: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    structure: Path | None = None
    searched: Path | None = None
    weights: Path | None = None
    exported: Mapping[str, Path] = field(default_factory=dict)
    keep_disturbed: bool = False
    union: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        name: Unique in a journey.
        purpose: What it is for, in a few words.
        command: Words after `maenas`.
        folder: What it writes into; emptied before the step begins anew.
        inputs: Files that it reads.
        identities: What it depends on besides, by name: the data set's annotations.
        outputs: Files that exist once it has ended well.
        stdout: File that receives its standard output.
        shows: Whether its standard output tells people something that no other step does.
        last: The output that is written last, so that a step that has it was only not noted any more.
        continues: Whether a repeated command goes on from what is in the folder.
    """

    name: str
    purpose: str
    command: tuple[str, ...]
    folder: Path
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    identities: Mapping[str, str] = field(default_factory=dict)
    stdout: Path | None = None
    shows: bool = True
    last: Path | None = None
    continues: bool = False


def plan_steps(journey: Journey) -> tuple[Step, ...]:
    """The steps in their order; what is given is left out.

    What the later ones are called with depends on what the earlier ones found, so the plan is asked for again after
    each step.
    """
    steps = []
    if journey.device.profile:
        steps.append(_profile(journey))
    if journey.search:
        steps.append(_search(journey))
    if journey.front:
        steps.append(_front(journey))
    steps.append(_explain(journey))
    if journey.train:
        steps.append(_train(journey))
    steps.append(_evaluate(journey))
    made = [precision for precision in journey.precisions if precision not in journey.exported]
    steps += [_export(journey, precision) for precision in made]
    steps += [_check(journey, precision) for precision in journey.precisions]
    if journey.device.is_here:
        steps.append(_benchmark(journey))
    if not journey.union:
        steps.append(_plot(journey))
    return tuple(steps)


def network_file(journey: Journey) -> Path:
    """The structure of the journey: searched or given."""
    return journey.structure or journey.out / "search" / "structure.json"


def weights_file(journey: Journey) -> Path | None:
    """The trained checkpoint; None where only exports of it are given."""
    if journey.weights is not None or not journey.train:
        return journey.weights
    return journey.out / "train" / "best.safetensors"


def export_folder(journey: Journey, precision: str) -> Path:
    """Where the files in a precision are."""
    return journey.exported.get(precision, journey.out / "export" / precision)


def check_folder(journey: Journey, precision: str) -> Path:
    """Where the accuracy of an export is."""
    return journey.out / "check" / precision


def searched_export(journey: Journey) -> Path | None:
    """What the measured search timed of its answer; None where nothing was timed in a search."""
    if not (journey.search and journey.device.is_here):
        return None
    measured = journey.out / "search" / "measured"
    try:
        record = json.loads((journey.out / "search" / "search.json").read_text(encoding="utf-8"))
        found = measured / f"{record['measured']['finalist']}.onnx"
    except (OSError, ValueError, KeyError, TypeError):
        return measured / f"{DIGEST}.onnx"
    # It may have been removed to save space.
    return found if found.exists() else None


def _profile(journey: Journey) -> Step:
    folder = journey.out / "profile"
    return Step(
        name="profile",
        purpose="measure this machine",
        command=("profile", *journey.device.profile, *_disturbed(journey), "--work", str(folder)),
        folder=folder,
        inputs=(),
        outputs=journey.device.table_files,
        last=journey.device.table_files[0],
        continues=True,
    )


def _search(journey: Journey) -> Step:
    folder = journey.out / "search"
    measure = ("--measure", *_disturbed(journey)) if journey.device.is_here else ()
    words = ("search", *journey.search, "--device", journey.device.table, *measure, "--out", str(folder))
    return Step(
        name="search",
        purpose="find the network" + (", timed on this machine" if measure else ""),
        command=words,
        folder=folder,
        inputs=journey.device.table_files,
        outputs=(folder / "structure.json", folder / "search.json"),
        last=folder / "search.json",
        continues=True,
    )


def _front(journey: Journey) -> Step:
    folder, budget = journey.out / "front", journey.budget_ms
    reach = ("--from", f"{(1 - FRONT_REACH) * budget:.4g}ms", "--to", f"{(1 + FRONT_REACH) * budget:.4g}ms")
    return Step(
        name="front",
        purpose="see what other budgets would buy",
        command=("front", *reach, *journey.front, "--device", journey.device.table, "--out", str(folder)),
        folder=folder,
        inputs=journey.device.table_files,
        outputs=(folder / "front.csv", folder / "front.json"),
        last=folder / "front.json",
    )


def _explain(journey: Journey) -> Step:
    structure, file = network_file(journey), journey.out / "explain" / "explain.json"
    return Step(
        name="explain",
        purpose="see where its milliseconds go",
        command=("explain", str(structure), "--device", journey.device.table, "--json"),
        folder=file.parent,
        inputs=(structure, *journey.device.table_files),
        outputs=(file,),
        stdout=file,
    )


def _train(journey: Journey) -> Step:
    structure, folder = network_file(journey), journey.out / "train"
    words = ("train", str(structure), "--data", journey.data, *journey.train, "--out", str(folder))
    return Step(
        name="train",
        purpose="train it",
        command=words,
        folder=folder,
        inputs=(structure, *journey.train_inputs),
        outputs=(folder / "best.safetensors", folder / "result.json", folder / "metrics.csv"),
        identities={"data": journey.data_digest},
        continues=True,
    )


def _evaluate(journey: Journey) -> Step:
    weights, folder = weights_file(journey), journey.out / "eval"
    model = weights or export_folder(journey, journey.precisions[0])
    return Step(
        name="eval",
        purpose="measure its accuracy",
        command=("eval", str(model), "--data", journey.data, "--out", str(folder)),
        folder=folder,
        inputs=(weights or card_file(model),),
        outputs=(folder / "eval.json",),
        last=folder / "eval.json",
        identities={"data": journey.data_digest},
    )


def _export(journey: Journey, precision: str) -> Step:
    weights, folder = weights_file(journey), journey.out / "export" / precision
    if weights is None:
        raise JourneyError(f"--precision has {precision}, which is not in --exported; expected --weights to make it of")
    data = ("--data", journey.data) if precision == "int8" else ()
    words = ("export", str(weights), "--precision", precision, *journey.export, *data, "--out", str(folder))
    return Step(
        name=f"export-{precision}",
        purpose=f"write it in {precision} and prove that equal",
        command=words,
        folder=folder,
        inputs=(weights,),
        outputs=(card_file(folder),),
        last=card_file(folder),
        identities={"data": journey.data_digest} if data else {},
    )


def _check(journey: Journey, precision: str) -> Step:
    exported, folder = export_folder(journey, precision), check_folder(journey, precision)
    runtime = ("--runtime", journey.device.backend) if journey.device.backend in ("openvino", "onnxruntime") else ()
    words = ("eval", str(exported), "--data", journey.data, *runtime, "--no-plots", "--out", str(folder))
    return Step(
        name=f"check-{precision}",
        purpose=f"measure the accuracy of the {precision} files",
        command=words,
        folder=folder,
        inputs=(card_file(exported),),
        shows=False,
        outputs=(folder / "eval.json",),
        last=folder / "eval.json",
        identities={"data": journey.data_digest},
    )


def _benchmark(journey: Journey) -> Step:
    device, folder = journey.device, journey.out / "benchmark"
    before, file = searched_export(journey), folder / "benchmark.json"
    exports = [export_folder(journey, precision) for precision in journey.precisions]
    # What the search timed is timed again beside the trained files: so a machine that has changed can be told from a
    # network that has.
    models = [*([] if before is None else [before]), *exports]
    precision = ("--precision", device.precision) if device.precision in ("fp16", "bf16") else ()
    threads = () if device.threads is None else ("--threads", str(device.threads))
    batch = () if device.batch == 1 else ("--batch", str(device.batch))
    words = (
        "benchmark",
        *map(str, models),
        *("--backend", device.backend),
        *threads,
        *batch,
        *precision,
        *_disturbed(journey),
        *("--out", str(file)),
    )
    return Step(
        name="benchmark",
        purpose="time the files on this machine",
        command=words,
        folder=folder,
        inputs=(*([] if before is None else [before]), *map(card_file, exports)),
        outputs=(file,),
    )


def _plot(journey: Journey) -> Step:
    folder = journey.out / "plot"
    # A table predicts the arithmetic that it is of: accuracy in another one has no place beside it.
    checked = journey.precisions if journey.device.is_here else journey.precisions[:1]
    sources = [network_file(journey), *(check_folder(journey, precision) for precision in checked)]
    inputs = [network_file(journey), *(source / "eval.json" for source in sources[1:])]
    timed = journey.out / "benchmark" / "benchmark.json"
    if journey.device.is_here:
        sources, inputs = [*sources, timed], [*inputs, timed]
    predicted = () if journey.device.is_here else ("--predict", journey.device.table)
    picture = folder / "latency-ap.png"
    words = ("plot", *map(str, sources), *predicted, "--mix", "--out", str(picture))
    return Step(
        name="plot",
        purpose="draw accuracy against latency",
        command=(*words, "--out", str(picture.with_suffix(".html"))),
        folder=folder,
        inputs=tuple(inputs),
        shows=False,
        outputs=(picture, picture.with_suffix(".html"), picture.with_suffix(".csv")),
    )


def card_file(folder: Path) -> Path:
    """The card of an export; the export is given by its folder."""
    return folder / "model.json"


def _disturbed(journey: Journey) -> tuple[str, ...]:
    return ("--force",) if journey.keep_disturbed else ()
