"""Whether a runtime computes in the precision that was asked for, told from what it says it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maenas.errors import ProfileError
from maenas.layer_precision import is_heavy
from maenas.profiling.backends.model_file import ModelFile, Node

_SHARE = {"int8": 0.5}
_MOST = 0.9
"""Least share of heavy layers in the precision; of a quantised file, of those that the file quantises: runtimes leave
first and last ones and small ones as they are."""


def heavy_nodes(nodes: Iterable[Node]) -> set[str]:
    """Names of the convolutions and products of a file."""
    return {node.name for node in nodes if is_heavy(node.op_type)}


def check_ran(ran: Mapping[str, str], precision: str, model: ModelFile, runtime: str) -> None:
    """Refuse a network that runs in another precision.

    Args:
        ran: Precision of the heavy layers by name; empty text where the runtime does not tell.
        precision: What was asked for.
        model: The file.
        runtime: As a message calls it.

    Raises:
        ProfileError: Too few of the layers run in it.
    """
    told = {name: found for name, found in ran.items() if found}
    wrong = {name: found for name, found in told.items() if found != precision}
    least, asked = _SHARE.get(precision, _MOST), len(told)
    if precision == "int8":
        # A partly quantised file leaves the others in floating point on purpose.
        asked = min(asked, len(heavy_nodes(model.nodes) & model.quantised_inputs()))
    if told and len(told) - len(wrong) >= least * asked:
        return
    example = next(iter(wrong.items()), None)
    ran_in = f", {example[0]!r} for one in {example[1]}" if example else ""
    quantised = "" if asked == len(told) else f" of the {asked} that the file quantises"
    raise ProfileError(
        f"{model.path}: {len(wrong)} of {len(told)} convolutions and products run in another precision in "
        f"{runtime}{ran_in}; expected at least {least:.0%}{quantised} in {precision}"
    )
