"""The options about tiles that verbs share."""

from __future__ import annotations

import argparse
from typing import Any


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    tiles = parser.add_argument_group("small objects in large images")
    tiles.add_argument("--tile", metavar="N[xM]", help="cut images into tiles of this height x width in their pixels")
    tiles.add_argument("--overlap", type=float, metavar="O", help="share that tiles have in common (default: 0.2)")
    tiles.add_argument("--whole", action="store_true", help="also look at the whole image, for what exceeds a tile")


def parse_tiling(arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """A `detector.tiling.Tiling`, or None without `--tile`.

    Raises:
        InputError: A value out of range, or an option that does nothing.
        SpaceError: The tile is no size.
    """
    from maenas.cli.detector import bundled
    from maenas.cli.question import parse_image_size

    if arguments.tile is None:
        for option, given in (("--overlap", arguments.overlap is not None), ("--whole", arguments.whole)):
            if given:
                error: Exception = bundled("errors").InputError(f"{option} is given; expected it with --tile only")
                raise error
        return None
    overlap = {} if arguments.overlap is None else {"overlap": arguments.overlap}
    tile = parse_image_size(arguments.tile, option="--tile")
    return bundled("tiling").Tiling(tile, whole=arguments.whole, **overlap)
