"""The options of `maenas run` as words for the verbs that its steps are made of."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from maenas.cli.detector import bundled
from maenas.journey import JourneyError
from maenas.scores import SCORES
from maenas.spaces import SearchSpace

SMALL_DATA = 10_000
"""Training images up to which the default recipe is that of small data sets; the published ones want COCO's 118,000."""

_SAME_MEANING = ("margin", "max_params", "max_flops", "max_layers", "max_memory", "solver", "top_k")
_TRAINING = ("epochs", "batch", "max_minutes", "workers", "teacher", "seed")
_FIELDS = {
    "epochs": "train.epochs",
    "batch": "train.batch_size",
    "max_minutes": "train.max_minutes",
    "workers": "data.workers",
    "seed": "train.seed",
}
"""Options of the training and the settings that they stand for."""


def search_words(arguments: argparse.Namespace, space: SearchSpace) -> tuple[str, ...]:
    """What `maenas search` is asked, but for device and folder."""
    classes = space.variants[0].head.num_classes
    score = () if arguments.score == "madnas" else ("--score", arguments.score)
    seed = () if arguments.seed is None else ("--seed", str(arguments.seed))
    extrapolate = ("--allow-extrapolation",) if arguments.allow_extrapolation else ()
    place = given_words(arguments, ("block", "space", "variant", "image_size"))
    return ("--budget", arguments.budget, *place, "--num-classes", str(classes), *score,
            *given_words(arguments, _SAME_MEANING), *seed, *extrapolate)  # fmt: skip


def front_words(arguments: argparse.Namespace, space: SearchSpace) -> tuple[str, ...]:
    """What `maenas front` is asked, but for latencies, device and folder; nothing where it cannot answer."""
    score = SCORES.get(arguments.score)
    bounded = arguments.max_params is not None or arguments.max_flops is not None
    if score is None or not score.separable or arguments.solver == "evolution" or bounded or space.graph != "deployed":
        return ()
    names = ("block", "space", "variant", "image_size", "margin", "max_layers", "max_memory")
    own = () if arguments.score == "madnas" else ("--score", arguments.score)
    extrapolate = ("--allow-extrapolation",) if arguments.allow_extrapolation else ()
    classes = str(space.variants[0].head.num_classes)
    return (*given_words(arguments, names), "--num-classes", classes, *own, *extrapolate)


def check_training(arguments: argparse.Namespace, *, trained: bool, data: Any) -> None:  # noqa: ANN401
    """Refuse settings of the training now, not after minutes of measuring and searching.

    Raises:
        MaenasError: A recipe, field or value that cannot be used, or nothing is to be trained.
    """
    given = {name: getattr(arguments, name) for name in (*_TRAINING, "recipe", "set")}
    given = {name: value for name, value in given.items() if value is not None}
    if trained:
        for name in given:
            option = name.replace("_", "-")
            raise JourneyError(f"--{option} is of training, which --weights or --exported leave out")
        return
    changes = {field: given[name] for name, field in _FIELDS.items() if name in given}
    recipe = arguments.recipe or _default_recipe(len(data.train)) or "damo-yolo-s"
    config = bundled("config").load_config(recipe, changes=changes, overrides=arguments.set or [])
    batch, count = config.train.batch_size, len(data.train)
    if batch > count:
        whose = "" if "batch" in given else " by the recipe"
        raise JourneyError(
            f"--batch is {batch}{whose}, and there are {count} training images; expected at most {count}"
        )


def _default_recipe(num_train: int) -> str | None:
    """For small data sets; None: what `maenas train` takes by itself."""
    return "small-data" if num_train <= SMALL_DATA else None


def train_words(arguments: argparse.Namespace, *, num_train: int) -> tuple[str, ...]:
    """How `maenas train` is called, but for network, data and folder."""
    recipe = arguments.recipe or _default_recipe(num_train)
    words = () if recipe is None else ("--recipe", recipe)
    changes = () if not arguments.set else ("--set", *arguments.set)
    return (*words, *given_words(arguments, _TRAINING), *changes)


def given_words(arguments: argparse.Namespace, names: Sequence[str]) -> tuple[str, ...]:
    """Options that the user gave, as they were given."""
    pairs = [(f"--{name.replace('_', '-')}", getattr(arguments, name)) for name in names]
    return tuple(word for option, value in pairs if value is not None for word in (option, str(value)))
