"""What `maenas run` is asked, brought together with the data set and the machine."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.budgets import parse_amount
from maenas.cli.detector import bundled
from maenas.cli.question import parse_image_size, parse_margin, parse_names, request_from
from maenas.cli.run_words import check_training, front_words, given_words, search_words, train_words
from maenas.files import make_folder, write_text_atomically
from maenas.journey import Device, Journey, JourneyError, card_file
from maenas.journey_facts import DataFacts, Facts, gather
from maenas.journey_record import Entry, RunRecord, file_sha256
from maenas.journey_searched import read_searched
from maenas.journey_tables import installed_backend, local_device, named_device, new_device, space_ops
from maenas.latency.table import load_table
from maenas.latency.table_local import LOCAL
from maenas.lowering.detector import lower
from maenas.published import resolve_structure
from maenas.results import SEARCH_FILE
from maenas.spaces import SearchSpace
from maenas.structure import Structure, save_structure

if TYPE_CHECKING:
    from maenas.lowering.op import Op

PRECISIONS = ("fp32", "fp16", "int8")

_OF_SEARCH = (
    *("variant", "margin", "max_params", "max_flops", "max_layers", "max_memory"),
    *("solver", "top_k", "allow_extrapolation"),
)
"""Options that mean nothing where the network is given, besides space and score."""


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
        structure: The given network with the data's classes, or None.
        searched: The record of the search that it comes from, or None.
        weights: The given checkpoint, or None.
        exported: Given exports by precision.
    """

    arguments: argparse.Namespace
    entries: tuple[Entry, ...]
    out: Path
    budget_ms: float
    data: Any
    data_digest: str
    space: SearchSpace | None
    structure: Structure | None
    searched: str | None
    weights: Path | None
    exported: dict[str, Path]

    def journey(self, record: RunRecord | None) -> Journey:
        """The journey on its device.

        Args:
            record: Of an earlier run of the same question, whose table stays; None: one is chosen.

        Raises:
            MaenasError: There is no such table, or options do not go together.
        """
        arguments = self.arguments
        device = _device(self, record)
        precisions = _precisions(arguments.precision, device, self.exported)
        given = self.weights is not None or bool(self.exported)
        return Journey(
            out=self.out,
            budget_ms=self.budget_ms,
            device=device,
            data=arguments.data,
            data_digest=self.data_digest,
            search=() if self.space is None else search_words(arguments, self.space),
            front=() if self.space is None else front_words(arguments, self.space),
            train=() if given else train_words(arguments, num_train=len(self.data.train)),
            train_inputs=() if arguments.teacher is None else (Path(arguments.teacher),),
            export=given_words(arguments, ("format", "nms")),
            precisions=precisions,
            structure=None if self.structure is None else self.out / "network" / "structure.json",
            searched=None if self.searched is None else self.out / "network" / "search.json",
            weights=self.weights,
            exported=self.exported,
            keep_disturbed=arguments.keep_disturbed,
            union=self.data.val.union is not None,
        )

    def write_given(self, journey: Journey) -> None:
        """Write the given network, fitted to the data, where steps find it."""
        if self.structure is not None and journey.structure is not None:
            make_folder(journey.structure.parent)
            save_structure(self.structure, journey.structure)
        if self.searched is not None and journey.searched is not None:
            write_text_atomically(journey.searched, self.searched)

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
    data = bundled("data.source").load_data(arguments.data)
    weights = None if arguments.weights is None else Path(arguments.weights)
    cards = _cards(arguments.exported or ())
    exported = {precision: folder for precision, (folder, _) in cards.items()}
    searched = None if arguments.searched is None else read_searched(Path(arguments.searched))
    given = _given_structure(arguments, weights, cards, None if searched is None else searched[0])
    if arguments.teacher is not None:
        bundled("checkpoint").load_checkpoint(arguments.teacher)  # said now, not after a search
    if data.val is None or (data.train is None and weights is None and not exported):
        missing = "val" if data.val is None else "train"
        raise JourneyError(f"{arguments.data}: has no split {missing}; expected train and val")
    num_classes = len(data.class_names)
    space = None
    if given is None:
        space = _space(arguments, num_classes, budget_ms)
    else:
        _check_no_search(arguments)
        fitted = _fitted(given, arguments, num_classes=num_classes, trained=weights is not None or bool(exported))
        if searched is not None and fitted.digest != given.digest:
            size = "x".join(map(str, given.image_size))
            raise JourneyError(
                f"--searched {arguments.searched}: its network is for {given.head.num_classes} classes at {size} px; "
                f"expected one for {num_classes} classes"
                + ("" if arguments.image_size is None else f" at {arguments.image_size} px")
                + " (maenas search --num-classes), or --structure, without the search's proof"
            )
        given = fitted
    check_training(arguments, trained=weights is not None or bool(exported), data=data)
    digest = _digest(data)
    files = [("--structure", arguments.structure), ("--weights", arguments.weights), ("--teacher", arguments.teacher)]
    if arguments.searched is not None:
        files.append(("--searched", str(Path(arguments.searched) / SEARCH_FILE)))
    named = [
        Entry(f"SHA-256 of {option}", file_sha256(Path(value)))
        for option, value in files
        if value and Path(value).is_file()
    ]
    entries = (*(Entry(name, value) for name, value in options), Entry("annotations of --data", digest), *named)
    out = Path(arguments.out) if arguments.out else _default_out(arguments)
    record = None if searched is None else json.dumps(searched[1], indent=1) + "\n"
    return Asked(arguments, entries, out, budget_ms, data, digest, space, given, record, weights, exported)


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


def _check_no_search(arguments: argparse.Namespace) -> None:
    """Refuse what asks for a search where the network is given: it would have no effect.

    Raises:
        JourneyError: Naming the option.
    """
    if arguments.block is not None or arguments.space is not None:
        raise JourneyError("--block or --space is given, and so is the network; expected one of them")
    if arguments.score != "madnas":
        raise JourneyError("--score is of the search, and the network is given; expected one of them")
    for name in _OF_SEARCH:
        if getattr(arguments, name) not in (None, False):
            option = name.replace("_", "-")
            raise JourneyError(f"--{option} is of the search, and the network is given; expected one of them")


def _given_structure(
    arguments: argparse.Namespace,
    weights: Path | None,
    cards: dict[str, tuple[Path, Any]],
    searched: Structure | None,
) -> Structure | None:
    """The network of whatever was given that has one.

    Raises:
        MaenasError: It cannot be read, or two things that were given are of different networks.
    """
    found: dict[str, Structure] = {f"--exported ({name})": card.structure for name, (_, card) in cards.items()}
    if searched is not None:
        if arguments.structure is not None:
            raise JourneyError("--structure is given, and so is --searched; expected one of them")
        found["--searched"] = searched
    if weights is not None:
        found["--weights"] = bundled("checkpoint").load_checkpoint(weights).structure
    if arguments.structure is not None:
        structure = resolve_structure(arguments.structure)
        if not found:
            return structure
        found["--structure"] = structure
    if len({structure.digest for structure in found.values()}) > 1:
        listed = ", ".join(f"{name} {structure.digest}" for name, structure in found.items())
        raise JourneyError(f"what was given is of different networks: {listed}; expected one")
    return next(iter(found.values()), None)


def _fitted(given: Structure, arguments: argparse.Namespace, *, num_classes: int, trained: bool) -> Structure:
    """A given network with the data's classes and the image size asked for; a trained one has its own."""
    size = given.image_size if arguments.image_size is None else parse_image_size(arguments.image_size)
    if trained:
        if tuple(size) != tuple(given.image_size):
            raise JourneyError(
                f"--image-size is {arguments.image_size}; expected none: the trained network has its own"
            )
        return given
    try:
        return replace(given, image_size=size, head=replace(given.head, num_classes=num_classes))
    except ValueError as error:
        raise JourneyError(f"--image-size: {error}") from None


def _cards(folders: Sequence[str]) -> dict[str, tuple[Path, Any]]:
    """Given exports by their precision: folder and card; their files are those that the card is about.

    Raises:
        MaenasError: One is none, was changed, or is of the precision of another.
    """
    files = bundled("artifact_files")
    found: dict[str, tuple[Path, Any]] = {}
    for folder in map(Path, folders):
        if not card_file(folder).is_file():
            raise JourneyError(f"{folder}: has no {card_file(folder).name}; expected the folder of an export")
        card = files.read_card(card_file(folder))
        if card.precision in found or not card.files:
            expected = f"files in one of {', '.join(PRECISIONS)}, each once"
            raise JourneyError(f"{card_file(folder)}: precision is {card.precision}; expected {expected}")
        files.check_files(folder / card.files[0].name, card)
        found[card.precision] = folder, card
    return found


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
    assert asked.structure is not None
    return lower(asked.structure)


def _new_device(asked: Asked) -> Device:
    from maenas.spaces import load_space

    arguments = asked.arguments
    name, space = arguments.block or arguments.space, asked.space
    if space is None:
        assert asked.structure is not None
        name = asked.structure.backbone.family
        if name not in ("res", "csp", "mob"):
            raise JourneyError(
                f"no latency table of this machine has the {name} network that is given, and a profile makes tables of "
                "search spaces; expected --device with the name of a table"
            )
        space = load_space(name)
    size = space.image_size if asked.structure is None else asked.structure.image_size
    classes = len(asked.data.class_names) if asked.structure is None else asked.structure.head.num_classes
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
