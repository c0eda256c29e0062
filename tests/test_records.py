"""What every reader of files shares: numbers told from what only looks like them, hints, one-line reasons, hashes."""

from __future__ import annotations

import hashlib
import math

import pytest

from maenas.errors import did_you_mean, first_line
from maenas.files import sha256_of
from maenas.records import is_count, is_number, parse_yaml


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


def test_yaml_is_read_with_its_aliases_and_merge_keys():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\nsame: *base\n"
    assert parse_yaml(text) == {"base": {"a": 1, "b": 2}, "other": {"a": 1, "b": 3}, "same": {"a": 1, "b": 2}}
    assert parse_yaml("") is None


@pytest.mark.parametrize("first", ["{k: 1}", "[1, 2]"], ids=["merge-keys", "lists"])
def test_yaml_that_would_grow_without_end_is_refused_before_it_does(first):
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 30):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{aliases}]}}" if "k" in first else f"[{aliases}]"))
    with pytest.raises(ValueError, match="with its aliases it holds more than 1000000 values"):
        parse_yaml("\n".join(lines))


def test_a_yaml_number_that_no_float_holds():
    with pytest.raises(ValueError, match="int too large to convert to float"):
        parse_yaml("nc: " + ":".join(["1"] * 200) + ".0")


def test_yaml_that_contains_itself_is_refused():
    with pytest.raises(ValueError, match="line 2: a value contains itself"):
        parse_yaml("a: 1\nb: &b [1, *b]\n")
