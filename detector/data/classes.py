"""Class names: the one thing that files, splits and models have in common; ids and orders may differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import did_you_mean


def label_map(own: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """For every class of a file its label in the wanted order; -1 where the name does not occur there."""
    labels = {name: label for label, name in enumerate(wanted)}
    return np.array([labels.get(name, -1) for name in own], np.int64)


def unknown_class(name: str, wanted: Sequence[str]) -> str:
    """The message about a class that is not among the wanted ones, with the nearest of them."""
    hint = did_you_mean(name, wanted, quoted=True) or f"; expected one of {listed(wanted)}"
    return f"class {name!r} is not one of the {len(wanted)} classes of the data set (names, or else train){hint}"


def listed(names: Sequence[str], limit: int = 10) -> str:
    """Names for a message, cut after `limit`."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
