"""Hostile input for the tests of parsers: a good record, text or file with one part changed, or nothing of the kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from maenas.errors import MaenasError

T = TypeVar("T")
FUZZ = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For tests that write into their `tmp_path`, which examples may share."""

NUMBERS = st.integers(-2, 40) | st.floats() | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400, 1e308, 5e-324])
TEXTS = st.text(max_size=6) | st.sampled_from(["\ud800", "a\0b", "a\nb", "..", "/", "~nobody/x", "x" * 300])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""Whatever a JSON file may hold; NaN and infinities, which Python's reader takes, included."""

FRAGMENTS = st.sampled_from(
    [
        *("", "-", ",", ":", "'", '"', "\n", "\t", "\0", "nan", "1e999", "9" * 5000, "2020-13-45", "[" * 3000),
        *("!!int ''", "!!bool x", "!!timestamp x", "!!python/name:os.system", "&a [*a]", "<<: 1", "é", "\ud7ff\ufeff"),
    ]
)


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """A parsed record with one part replaced, taken away, or added."""
    content = copy.deepcopy(good)
    place = content
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.integers(0, 4)) == 0:
            break
        place = place[key]
    else:
        return draw(JSON)
    how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if how == "remove":
        del place[key]
    elif how == "replace":
        place[key] = draw(JSON)
    elif isinstance(place, dict):
        place[draw(TEXTS)] = draw(JSON)
    else:
        place.insert(key, draw(JSON))
    return content


def changed_text(good: str) -> st.SearchStrategy[str]:
    """A text with a few characters replaced by something else, or any text."""

    def spliced(start: int, length: int, new: str) -> str:
        return good[:start] + new + good[start + length :]

    place = st.integers(0, len(good))
    return st.builds(spliced, place, st.integers(0, 12), FRAGMENTS | st.text(max_size=5)) | st.text(max_size=60)


def changed_bytes(good: bytes) -> st.SearchStrategy[bytes]:
    """A file with a few bytes replaced, cut off somewhere, or of any bytes."""

    def spliced(start: int, length: int, new: bytes) -> bytes:
        return good[:start] + new + good[start + length :]

    place = st.integers(0, len(good))
    return (
        st.builds(spliced, place, st.integers(0, 12), st.binary(max_size=8))
        | place.map(lambda end: good[:end])
        | st.binary(max_size=60)
    )


def read_or_refused(read: Callable[[], T]) -> T | None:
    """What a reader makes of its input; None where it refuses that with an error of ours. Any other error fails."""
    try:
        return read()
    except MaenasError as error:
        assert str(error)
        return None
