"""The options of `maenas eval-proxy`: what they are, which go together, and the question they ask."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.budgets import parse_amount
from maenas.cli.question import add_space_arguments
from maenas.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maenas.latency.table import LatencyTable
    from maenas.proxy_folder import Member
    from maenas.search import Request

_OWN_OPTIONS = {"train.seed": "--seeds", "data.path": "--data"}
"""Settings that would make runs other than they are said to be, and the options for them."""

IN_BAND, OVER_RANGE = 12, 6
"""Networks drawn unless another number is asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "structures", metavar="STRUCTURE", nargs="*", help="files or published names to compare; or draw some:"
    )
    parser.add_argument(
        "--data", metavar="PATH", required=True, help="data.yaml, COCO file or folder with train and val"
    )
    add_space_arguments(parser)
    drawn = parser.add_argument_group("networks drawn from a space")
    drawn.add_argument("--device", metavar="NAME", help="latency table: name, alias, folder, or local")
    drawn.add_argument("--budget", metavar="TIME", help="upper edge of the latency band, e.g. 8ms")
    drawn.add_argument(
        "--band", default="2%", metavar="N%", help="width of the band, a share of the budget (default: 2%%)"
    )
    drawn.add_argument("--structures", dest="count", type=int, metavar="N", help="networks in the band (default: 12)")
    drawn.add_argument(
        "--wide", nargs=2, metavar=("LOW", "HIGH"), help="also draw networks over this range of latencies"
    )
    drawn.add_argument("--wide-structures", type=int, metavar="N", help="how many (default: 6)")
    drawn.add_argument("--draw-seed", type=int, default=0, metavar="N", help="same seed, same networks (default: 0)")
    drawn.add_argument("--measure", action="store_true", help="also measure the latency here; the band is then of that")
    drawn.add_argument(
        "--allow-extrapolation", action="store_true", default=None, help="use operators outside the table's range"
    )
    training = parser.add_argument_group("training, the same for all")
    training.add_argument("--recipe", default="small-data", metavar="NAME", help="names or files (default: small-data)")
    training.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    training.add_argument("--max-minutes", type=float, metavar="T", help="equal wall time for each run instead")
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="runs per network (0 1)")
    training.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="K=V", help="any field, such as train.batch_size=8"
    )
    training.add_argument("--train-device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    training.add_argument("--workers", type=int, metavar="N", help="processes that read and augment, per run")
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--score", action="append", default=[], metavar="MODULE:FUNCTION", help="compare your own too; may be repeated"
    )
    how = parser.add_argument_group("how to run")
    how.add_argument("--cores", type=int, nargs="+", default=[], metavar="N", help="one run at a time pinned to each")
    how.add_argument("--out", metavar="DIR", default="runs/eval-proxy", help="folder; the same command goes on in it")
    how.add_argument(
        "--dry-run", action="store_true", help="draw the networks, print them and their scores, train nothing"
    )
    how.add_argument("--json", action="store_true", help="print the report as one JSON object")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        ProxyError: Naming the option.
    """
    space = arguments.block is not None or arguments.space is not None
    if bool(arguments.structures) == space:
        raise ProxyError("give either structures, or a space to draw them from (--block or --space)")
    if space and (arguments.budget is None or arguments.device is None):
        raise ProxyError("drawing networks needs a latency band; expected --device and --budget")
    if not space:
        for option in ("budget", "count", "wide", "wide_structures", "variant", "num_classes"):
            if getattr(arguments, option) is not None:
                name = {"count": "structures"}.get(option, option).replace("_", "-")
                raise ProxyError(f"--{name} is given; expected it with a space to draw networks from")
        if arguments.measure:
            raise ProxyError("--measure is given; expected it with a space to draw networks from")
    if arguments.wide_structures is not None and arguments.wide is None:
        raise ProxyError("--wide-structures is given; expected it with --wide LOW HIGH")
    for option, count in (("--structures", arguments.count), ("--wide-structures", arguments.wide_structures)):
        if count is not None and count < 3:
            raise ProxyError(f"{option} is {count}; expected at least 3")
    seeds = arguments.seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ProxyError(f"--seeds are {' '.join(map(str, seeds))}; expected different numbers, 0 or more")
    parse_share(arguments.band)
    if arguments.wide is not None:
        low, high = (parse_amount("latency_ms", text) for text in arguments.wide)
        if low >= high:
            raise ProxyError(f"--wide is {' '.join(arguments.wide)}; expected the smaller latency first")
    for text in arguments.set:
        own = _OWN_OPTIONS.get(text.partition("=")[0].strip())
        if own is not None:
            raise ProxyError(f"--set {text}: expected {own}")
    if arguments.draw_seed < 0:
        raise ProxyError(f"--draw-seed is {arguments.draw_seed}; expected 0 or more")


def parse_share(text: str) -> float:
    """`2%` as 0.02.

    Raises:
        ProxyError: No number.
    """
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise ProxyError(f"--band is {text!r}; expected a percentage such as 2%") from None


def question_of(arguments: argparse.Namespace, request: Request | None, table: LatencyTable | None) -> dict[str, Any]:
    """What a resumed campaign must ask again; seeds, own scores and cores may change."""
    question: dict[str, Any] = {
        "data": arguments.data,
        "recipe": arguments.recipe,
        "epochs": arguments.epochs,
        "max_minutes": arguments.max_minutes,
        "set": list(arguments.set),
        "table_hash": None if table is None else table.table_hash,
    }
    if request is None:
        return question | {"structures": list(arguments.structures), "image_size": arguments.image_size}
    return question | {
        "space": request.space.name,
        "space_digest": request.space.digest,
        "variant": request.variant.name,
        "image_size": list(request.space.image_size),
        "num_classes": request.variant.head.num_classes,
        "device": None if table is None else table.name,
        "budget_ms": request.goal.limit("latency_ms"),
        "band": arguments.band,
        "structures": arguments.count or IN_BAND,
        "wide": arguments.wide,
        "wide_structures": arguments.wide_structures or OVER_RANGE if arguments.wide else None,
        "draw_seed": arguments.draw_seed,
        "measure": arguments.measure,
        "extrapolate": bool(arguments.allow_extrapolation),
    }


def identities_of(arguments: argparse.Namespace, given: Sequence[Member] | None) -> dict[str, Any]:
    """What names and paths of the question stand for: settings, annotations and given networks, as digests.

    Refused now is what every training would refuse after the networks were drawn and timed.

    Raises:
        ConfigError: The recipe, a setting or the device cannot be used.
        DataError: There is no such data set, or it lacks a split.
    """
    from maenas.cli.detector import bundled

    changes = {
        "train.epochs": arguments.epochs,
        "train.max_minutes": arguments.max_minutes,
        "train.device": arguments.train_device,
        "data.workers": arguments.workers,
        "train.seed": max(arguments.seeds),
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    config = bundled("config").load_config(arguments.recipe, changes=changes, overrides=arguments.set)
    bundled("distributed").pick_device(config.train.device)
    settings = config.to_dict()
    # Seeds may be added, and a campaign may go on elsewhere.
    del settings["train"]["seed"], settings["train"]["device"], settings["data"]["workers"]
    splits = [bundled("data.source").load_split(arguments.data, split) for split in ("train", "val")]
    return {
        "content of the recipe": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12],
        "annotations": [bundled("evaluation_report").dataset_digest(split) for split in splits],
        "networks": None if given is None else [each.digest for each in given],
    }


def title_of(arguments: argparse.Namespace) -> str:
    """Data set and training, for pictures."""
    length = "" if arguments.epochs is None else f", {arguments.epochs} epochs"
    length += "" if arguments.max_minutes is None else f", {arguments.max_minutes:g} min each"
    return f"{Path(arguments.data).name}, recipe {Path(arguments.recipe).name}{length}"
