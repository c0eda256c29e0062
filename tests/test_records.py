"""What every reader of files shares: numbers told from what only looks like them, hints, one-line reasons, hashes."""

from __future__ import annotations

import hashlib
import math

import pytest

from maenas.errors import did_you_mean, first_line
from maenas.files import sha256_of
from maenas.records import is_count, is_number


@pytest.mark.parametrize(
    ("value", "number", "count"),
    [
        (1, True, True),
        (0, True, False),
        (-2, True, False),
        (2.0, True, False),
        (True, False, False),
        (math.nan, False, False),
        (-math.inf, False, False),
        (10**400, False, True),  # no float holds it, and math.isfinite raises
        ("1", False, False),
        (None, False, False),
    ],
)
def test_numbers(value, number, count):
    assert (is_number(value), is_count(value)) == (number, count)


def test_the_nearest_name_ends_a_message():
    assert did_you_mean("trian", ["train", "val"]) == "; did you mean train?"
    assert did_you_mean("red cel", ("red cell",), quoted=True) == "; did you mean 'red cell'?"
    assert did_you_mean("xyz", {"train": 1, "val": 2}) == did_you_mean("train", []) == ""


def test_an_error_is_told_in_one_line():
    assert first_line(RuntimeError("\n  out of memory\nat 0x0\n")) == "out of memory"
    assert first_line(KeyError()) == "KeyError"


def test_a_hash_is_that_of_all_files(tmp_path):
    first, second = tmp_path / "model.xml", tmp_path / "model.bin"
    first.write_bytes(b"x" * (1 << 20))  # exactly one block
    second.write_bytes(b"weights")
    assert sha256_of(first, second) == hashlib.sha256(b"x" * (1 << 20) + b"weights").hexdigest()
    assert sha256_of(second) == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(OSError, match="missing"):
        sha256_of(first, tmp_path / "missing")
