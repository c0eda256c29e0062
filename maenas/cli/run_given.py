"""What `maenas run` is given in place of steps: a network, a search, trained weights, exports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maenas.cli.detector import bundled
from maenas.cli.question import parse_image_size
from maenas.journey import JourneyError, card_file
from maenas.journey_searched import read_searched
from maenas.published import resolve_structure
from maenas.structure import Structure

PRECISIONS = ("fp32", "fp16", "int8")

_OF_SEARCH = (
    *("variant", "margin", "max_params", "max_flops", "max_layers", "max_memory"),
    *("solver", "top_k", "allow_extrapolation"),
)
"""Options that mean nothing where the network is given, besides space and score."""


@dataclass(frozen=True, slots=True)
class Given:
    """What was given.

    Attributes:
        structure: The network, or None where it is searched.
        searched: The record of the search that it comes from, or None.
        weights: The checkpoint, or None.
        exported: Folders of exports by precision.
    """

    structure: Structure | None
    searched: dict[str, Any] | None
    weights: Path | None
    exported: dict[str, Path]

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to train."""
        return self.weights is not None or bool(self.exported)


def read_given(arguments: argparse.Namespace) -> Given:
    """Read whatever the options name.

    Raises:
        MaenasError: It cannot be read, or two things that were given are of different networks.
    """
    weights = None if arguments.weights is None else Path(arguments.weights)
    cards = _cards(arguments.exported or ())
    found, searched = (None, None) if arguments.searched is None else read_searched(Path(arguments.searched))
    return Given(
        structure=_given_structure(arguments, weights, cards, found),
        searched=searched,
        weights=weights,
        exported={precision: folder for precision, (folder, _) in cards.items()},
    )


def fitted(given: Given, arguments: argparse.Namespace, *, num_classes: int) -> Given:
    """The same with the data's classes and the image size asked for.

    Raises:
        JourneyError: Options ask for a search, a trained network for another size, or a search was of another network.
    """
    network = given.structure
    assert network is not None
    _check_no_search(arguments)
    changed = _fitted(network, arguments, num_classes=num_classes, trained=given.is_trained)
    if given.searched is not None and changed.digest != network.digest:
        size = "x".join(map(str, network.image_size))
        raise JourneyError(
            f"--searched {arguments.searched}: its network is for {network.head.num_classes} classes at {size} px; "
            f"expected one for {num_classes} classes"
            + ("" if arguments.image_size is None else f" at {arguments.image_size} px")
            + " (maenas search --num-classes), or --structure, without the search's proof"
        )
    return replace(given, structure=changed)


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
