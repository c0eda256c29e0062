"""What `maenas run` is asked, brought together with the data set and the machine."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.budgets import parse_amount
from maenas.cli.detector import bundled
from maenas.cli.question import parse_margin, parse_names, request_from
from maenas.cli.run_given import PRECISIONS, Given, fitted, read_given
from maenas.cli.run_words import check_training, front_words, given_words, search_words, train_words
from maenas.files import make_folder, write_text_atomically
from maenas.journey import Device, Journey, JourneyError
from maenas.journey_facts import DataFacts, Facts, gather
from maenas.journey_record import Entry, RunRecord, file_sha256
from maenas.journey_tables import installed_backend, local_device, named_device, new_device, space_ops
from maenas.latency.table import load_table
from maenas.latency.table_local import LOCAL
from maenas.lowering.detector import lower
from maenas.results import SEARCH_FILE
from maenas.spaces import SearchSpace
from maenas.structure import save_structure

if TYPE_CHECKING:
    from maenas.lowering.op import Op


@dataclass(frozen=True, slots=True)
class Asked:
    """The question.

    Attributes:
        arguments: Of the command line.
        entries: Options, and identities of what they name.
        out: Folder of the run.
        budget_ms: Latency budget.
        data: The data set, a `detector.data.source.DataConfig`.
        data_digest: Of its annotations.
        space: The search space with the data's classes; None where the network is given.
        given: What was given in place of steps, its network with the data's classes.
    """

    arguments: argparse.Namespace
    entries: tuple[Entry, ...]
    out: Path
    budget_ms: float
    data: Any
    data_digest: str
    space: SearchSpace | None
    given: Given

    def journey(self, record: RunRecord | None) -> Journey:
        """The journey on its device.

        Args:
            record: Of an earlier run of the same question, whose table stays; None: one is chosen.

        Raises:
            MaenasError: There is no such table, or options do not go together.
        """
        arguments = self.arguments
        device = _device(self, record)
        given = self.given
        precisions = _precisions(arguments.precision, device, given.exported)
        return Journey(
            out=self.out,
            budget_ms=self.budget_ms,
            device=device,
            data=arguments.data,
            data_digest=self.data_digest,
            search=() if self.space is None else search_words(arguments, self.space),
            front=() if self.space is None else front_words(arguments, self.space),
            train=() if given.is_trained else train_words(arguments, num_train=len(self.data.train)),
            train_inputs=() if arguments.teacher is None else (Path(arguments.teacher),),
            export=given_words(arguments, ("format", "nms")),
            precisions=precisions,
            structure=None if given.structure is None else self.out / "network" / "structure.json",
            searched=None if given.searched is None else self.out / "network" / "search.json",
            weights=given.weights,
            exported=given.exported,
            keep_disturbed=arguments.keep_disturbed,
            union=self.data.val.union is not None,
        )

    def write_given(self, journey: Journey) -> None:
        """Write the given network, fitted to the data, where steps find it."""
        given = self.given
        if given.structure is not None and journey.structure is not None:
            make_folder(journey.structure.parent)
            save_structure(given.structure, journey.structure)
        if given.searched is not None and journey.searched is not None:
            write_text_atomically(journey.searched, json.dumps(given.searched, indent=1) + "\n")

    def report(self, journey: Journey, record: RunRecord) -> tuple[Facts, Path]:
        """Gather what the steps wrote, draw it, and write the report; its facts and its page."""
        from maenas.journey_report import write_report
        from maenas.journey_samples import draw_samples

        train, val = self.data.train, self.data.val
        facts = gather(
            journey,
            record,
            DataFacts(
                source=self.arguments.data,
                name=val.name,
                class_names=tuple(self.data.class_names),
                num_train=0 if train is None else len(train),
                num_val=len(val),
            ),
        )
        best = facts["accuracy"]["best"]
        threshold = 0.25 if best is None else float(best["score_threshold"])
        samples = []
        if not journey.union:
            samples = draw_samples(val, journey.out / "eval", score_threshold=threshold, bridge=bundled)
        page, _ = write_report(journey, facts, samples, threshold=threshold)
        return facts, page


def ask(arguments: argparse.Namespace, *, options: Sequence[tuple[str, str]]) -> Asked:
    """Read what the options name, and check all that needs no latency table.

    Raises:
        MaenasError: An option, the data or a given file cannot be used.
    """
    # A copy: what is filled in here, such as the space, was not asked for.
    arguments = argparse.Namespace(**vars(arguments))
    budget_ms = parse_amount("latency_ms", arguments.budget)
    _check_values(arguments)
    data = bundled("data.source").load_data(arguments.data)
    given = read_given(arguments)
    if arguments.teacher is not None:
        bundled("checkpoint").load_checkpoint(arguments.teacher)  # said now, not after a search
    if data.val is None or (data.train is None and not given.is_trained):
        missing = "val" if data.val is None else "train"
        raise JourneyError(f"{arguments.data}: has no split {missing}; expected train and val")
    num_classes = len(data.class_names)
    space = None
    if given.structure is None:
        space = _space(arguments, num_classes, budget_ms)
    else:
        given = fitted(given, arguments, num_classes=num_classes)
    check_training(arguments, trained=given.is_trained, data=data)
    digest = _digest(data)
    entries = [*(Entry(name, value) for name, value in options), Entry("annotations of --data", digest)]
    entries += _file_entries(arguments)
    return Asked(
        arguments=arguments,
        entries=tuple(entries),
        out=Path(arguments.out) if arguments.out else _default_out(arguments),
        budget_ms=budget_ms,
        data=data,
        data_digest=digest,
        space=space,
        given=given,
    )


def _check_values(arguments: argparse.Namespace) -> None:
    """Refuse options that are wrong by themselves.

    Raises:
        MaenasError: Naming the option.
    """
    parse_margin(arguments.margin)
    if arguments.device is None:
        raise JourneyError("--device is missing; expected a latency table, such as t4, or local for this machine")
    for option, value, low in (
        ("--threads", arguments.threads, 1),
        ("--seed", arguments.seed, 0),
        ("--top-k", arguments.top_k, 1),
    ):
        if value is not None and value < low:
            raise JourneyError(f"{option} is {value}; expected {low} or more")
    if arguments.precision is not None:
        parse_names(arguments.precision, PRECISIONS, option="--precision")


def _file_entries(arguments: argparse.Namespace) -> list[Entry]:
    """The content of files that options name, as far as they are files."""
    named = {"--structure": arguments.structure, "--weights": arguments.weights, "--teacher": arguments.teacher}
    if arguments.searched is not None:
        named["--searched"] = str(Path(arguments.searched) / SEARCH_FILE)
    return [
        Entry(f"SHA-256 of {option}", file_sha256(Path(value)))
        for option, value in named.items()
        if value and Path(value).is_file()
    ]


def _space(arguments: argparse.Namespace, num_classes: int, budget_ms: float) -> SearchSpace:
    """The search space; without one named, a small one for CPUs and a wide one for accelerators."""
    from maenas.journey_tables import ACCELERATORS

    if arguments.block is None and arguments.space is None:
        backend = arguments.backend
        if arguments.device.lower() != LOCAL:
            backend = load_table(arguments.device).backend
        arguments.space = "res" if backend in ACCELERATORS else "res-small"
    # What the search would refuse is refused now, not after a profile of minutes; the table may not be there yet.
    question = vars(arguments) | {"num_classes": num_classes, "scope": "detector", "device": None}
    return request_from(argparse.Namespace(**question), budget_ms, solver=arguments.solver).space


def _digest(data: Any) -> str:  # noqa: ANN401
    """Of the annotations of both splits that are used."""
    import hashlib

    one = bundled("evaluation_report").dataset_digest
    parts = ["" if split is None else one(split) for split in (data.train, data.val)]
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:16]


def _default_out(arguments: argparse.Namespace) -> Path:
    """`runs/run/<data>-<device>-<budget>`."""
    path = Path(arguments.data).resolve()
    name = path.parent.name if path.stem in ("data", "dataset") else path.stem
    device = Path(arguments.device).name
    words = re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{name}-{device}-{arguments.budget}")
    return Path("runs") / "run" / words.strip("_")


def _device(asked: Asked, record: RunRecord | None) -> Device:
    """The latency table: the one named, the one of an earlier run, one of this machine that serves, or a new one."""
    arguments = asked.arguments
    if arguments.device.lower() != LOCAL:
        for option, value in (
            ("--backend", arguments.backend),
            ("--threads", arguments.threads),
            ("--quick", arguments.quick),
        ):
            if value:
                raise JourneyError(f"{option} is given; expected it with --device local only: a table has its own")
        return named_device(arguments.device)
    if record is not None and not record.profiled:
        return named_device(record.table)
    if record is None:
        found = local_device(_ops(asked), backend=arguments.backend, threads=arguments.threads)
        if found is not None:
            return found
    return _new_device(asked)


def _ops(asked: Asked) -> Sequence[Op]:
    """What a table has to know."""
    if asked.space is not None:
        return space_ops(asked.space, asked.arguments.variant)
    assert asked.given.structure is not None
    return lower(asked.given.structure)


def _new_device(asked: Asked) -> Device:
    from maenas.spaces import load_space

    arguments = asked.arguments
    name, space = arguments.block or arguments.space, asked.space
    if space is None:
        assert asked.given.structure is not None
        name = asked.given.structure.backbone.family
        if name not in ("res", "csp", "mob"):
            raise JourneyError(
                f"no latency table of this machine has the {name} network that is given, and a profile makes tables of "
                "search spaces; expected --device with the name of a table"
            )
        space = load_space(name)
    size = space.image_size if asked.given.structure is None else asked.given.structure.image_size
    classes = len(asked.data.class_names) if asked.given.structure is None else asked.given.structure.head.num_classes
    return new_device(
        name,
        space,
        image_size=size,
        num_classes=classes,
        backend=arguments.backend or installed_backend(),
        threads=arguments.threads or 1,
        quick=arguments.quick,
    )


def _precisions(text: str | None, device: Device, exported: dict[str, Path]) -> tuple[str, ...]:
    """Precisions of the exports: those asked for, else those given, else the table's."""
    if text is not None:
        return parse_names(text, PRECISIONS, option="--precision")
    if exported:
        return tuple(exported)
    return (device.precision if device.precision == "fp16" else "fp32",)
