"""The options of a search question, shared by the verbs that ask one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maenas.evolve import Settings
    from maenas.latency.table import LatencyTable
    from maenas.search import Request
    from maenas.spaces import SearchSpace


def add_space_arguments(parser: argparse.ArgumentParser, *, classes: bool = True) -> None:
    """Where to search; without `classes` their number comes from elsewhere."""
    group = parser.add_argument_group("space")
    group.add_argument("--block", metavar="FAMILY", help="block family: the wide space of res, csp or mob")
    group.add_argument("--space", metavar="FILE", help="a search space: YAML file, or name such as res-small")
    group.add_argument("--variant", metavar="NAME", help="neck and head setting of the space (default: its first)")
    group.add_argument("--image-size", metavar="N[xM]", help="input height x width, multiples of 32")
    if classes:
        group.add_argument("--num-classes", type=int, metavar="N", help="object classes (default: the space's, 80)")


def add_goal_arguments(parser: argparse.ArgumentParser, *, scope: bool = True) -> None:
    """What to maximise, on which device, within what besides latency; without `scope` it is the whole detector."""
    group = parser.add_argument_group("goal")
    group.add_argument("--device", metavar="NAME", help="latency table: name, alias (t4, intel-8163), folder, or local")
    if scope:
        group.add_argument(
            "--scope",
            choices=["detector", "backbone"],
            default="detector",
            help="what budgets bound (default: detector)",
        )
    group.add_argument("--margin", metavar="Nsigma", help="bound value + N standard deviations, e.g. 1sigma")
    group.add_argument("--max-params", metavar="N", help="deployed parameters, e.g. 9M")
    group.add_argument("--max-flops", metavar="N", help="2 x multiply-accumulates, e.g. 20G")
    group.add_argument("--max-layers", metavar="N", help="main-path convolutions of the backbone, e.g. 25")
    group.add_argument("--max-memory", metavar="SIZE", help="largest working set of one operator in FP16, e.g. 8MB")
    group.add_argument(
        "--score",
        default="madnas",
        help="madnas (default), deepmad, params, flops, madnas-w8a8 (quantised), or your own package.module:function",
    )
    group.add_argument(
        "--allow-extrapolation",
        action="store_true",
        default=None,
        help="use operators outside the table's range (flagged); by default they are left out",
    )


def space_from(arguments: argparse.Namespace) -> SearchSpace:
    """The space the user named, with image size and classes applied.

    Raises:
        SpaceError: Neither or both of --block and --space, or an unknown one.
    """
    from maenas.errors import SpaceError
    from maenas.spaces import load_space
    from maenas.structure import FAMILIES

    if (arguments.block is None) == (arguments.space is None):
        raise SpaceError("give either --block (res, csp or mob) or --space FILE")
    if arguments.block is not None and arguments.block not in ("res", "csp", "mob"):
        hint = "; family kxkx has no wide space, use --space" if arguments.block in FAMILIES else ""
        raise SpaceError(f"unknown block {arguments.block!r}; expected one of res, csp, mob{hint}")
    return resize_space(
        load_space(arguments.block or arguments.space),
        image_size=arguments.image_size,
        num_classes=arguments.num_classes,
    )


def resize_space(space: SearchSpace, *, image_size: str | None, num_classes: int | None) -> SearchSpace:
    """A space with the values of --image-size and --num-classes, where given.

    Raises:
        SpaceError: One of them is malformed or does not fit the space.
    """
    from dataclasses import replace

    from maenas.errors import SpaceError

    if image_size is not None:
        space = _revised(space, "--image-size", image_size=parse_image_size(image_size))
    if num_classes is not None:
        try:
            variants = tuple(
                replace(variant, head=replace(variant.head, num_classes=num_classes)) for variant in space.variants
            )
        except ValueError as error:
            raise SpaceError(f"--num-classes: {error}") from None
        space = replace(space, variants=variants)
    return space


def _revised(space: SearchSpace, option: str, *, image_size: tuple[int, int]) -> SearchSpace:
    from dataclasses import replace

    from maenas.errors import SpaceError

    try:
        return replace(space, image_size=image_size)
    except ValueError as error:
        raise SpaceError(f"{option}: {error}") from None


def parse_image_size(text: str, *, option: str = "--image-size") -> tuple[int, int]:
    """`640` or `480x640` (height x width) as (height, width).

    Args:
        text: What the user wrote.
        option: After which option, for messages.

    Raises:
        SpaceError: Not one or two whole numbers above 0.
    """
    from maenas.errors import SpaceError

    parts = text.lower().split("x")
    numbers = [int(part) if part.isascii() and part.isdigit() and len(part) <= 6 else 0 for part in parts]
    if len(parts) > 2 or not all(numbers):
        raise SpaceError(f"{option} is {text!r}; expected N or HxW, such as 640 or 480x640")
    return numbers[0], numbers[-1]


def parse_names(text: str, choices: Sequence[str], *, option: str) -> tuple[str, ...]:
    """Distinct names between commas, in the user's order.

    Args:
        text: What the user wrote.
        choices: The names that there are.
        option: After which option, for messages.

    Raises:
        OptionError: Another name, or one twice.
    """
    from maenas.errors import OptionError

    names = tuple(name.strip() for name in text.split(","))
    if not set(names) <= set(choices) or len(set(names)) != len(names):
        raise OptionError(f"{option} is {text!r}; expected one or more of {','.join(choices)}, each once")
    return names


def parse_margin(text: str | None) -> float:
    """`1sigma`, `0.5sigma` or None as a number of standard deviations.

    Raises:
        BudgetError: Anything else.
    """
    from maenas.errors import BudgetError

    if text is None:
        return 0.0
    number = text.removesuffix("sigma")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if number == text or not 0.0 <= value <= 10.0:
        raise BudgetError(f"--margin is {text!r}; expected a number from 0 to 10 with sigma, such as 1sigma")
    return value


def request_from(
    arguments: argparse.Namespace,
    latency_ms: float | None,
    *,
    solver: str | None = None,
    top_k: int = 5,
    settings: Settings | None = None,
    workers: int = 1,
) -> Request:
    """The resolved question of the options that all verbs share; the others as in `maenas.search.search`."""
    from maenas.budgets import Budget, parse_budget
    from maenas.search import resolve_request

    budgets = [] if latency_ms is None else [Budget("latency_ms", latency_ms)]
    for metric, text in (
        ("params", arguments.max_params),
        ("flops", arguments.max_flops),
        ("layers", arguments.max_layers),
        ("memory_bytes", arguments.max_memory),
    ):
        if text is not None:
            budgets.append(parse_budget(metric, text))
    request = resolve_request(
        space_from(arguments),
        budgets=budgets,
        device=arguments.device,
        score=arguments.score,
        scope=arguments.scope,
        margin_sigmas=parse_margin(arguments.margin),
        variant=arguments.variant,
        extrapolate=arguments.allow_extrapolation,
        top_k=top_k,
        solver=solver,
        settings=settings,
        workers=workers,
    )
    if request.goal.table is not None:
        warn_if_stale(request.goal.table)
    return request


def warn_if_stale(table: LatencyTable) -> None:
    """Say on standard error that a table was measured with an older backend than the one installed here."""
    from maenas.latency.table_local import staleness

    line = staleness(table)
    if line is not None:
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {line}", style="yellow", markup=False)
