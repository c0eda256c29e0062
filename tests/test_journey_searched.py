"""A finished search that is given to a journey: what is read, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maenas.errors import MaenasError
from maenas.journey import JourneyError
from maenas.journey_searched import read_searched

REMOVED = object()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a search by parameters and latency."""
    from maenas.cli.main import main

    folder = tmp_path_factory.mktemp("searched") / "run"
    words = ["search", "--block", "res", "--device", "t4", "--budget", "3ms", "--max-layers", "60", "--out"]
    assert main([*words, str(folder)]) == 0
    return folder


@pytest.fixture
def changed(searched, tmp_path):
    """Copy the folder with one field of its record changed; its path."""

    def change(*names, value):
        record = json.loads((searched / "search.json").read_text())
        content = record
        for name in names[:-1]:
            content = content[name]
        if value is REMOVED:
            del content[names[-1]]
        else:
            content[names[-1]] = value
        (tmp_path / "search.json").write_text(json.dumps(record))
        (tmp_path / "structure.json").write_bytes((searched / "structure.json").read_bytes())
        return tmp_path

    return change


def test_a_search_is_read_with_its_proof(searched):
    structure, record = read_searched(searched)
    assert structure.digest == record["digest"] == record["shortlist"][0]["digest"]
    assert record["certificate"]["gap"] == 0.0 and record["request"]["device"].startswith("t4")


def test_a_measured_search_is_read(changed):
    timed = {"digest": "abc", "predicted_ms": 3.0, "measured_ms": 3.1}
    measured = {"finalist": "abc", "rounds": 1, "bias": 1.0, "budget_ms": 3.0, "searched_ms": 2.9, "timed": [timed]}
    assert read_searched(changed("measured", value=measured))[1]["measured"] == measured
    with pytest.raises(JourneyError, match=r"measured.timed\[0\].measured_ms is null; expected a number"):
        read_searched(changed("measured", value=measured | {"timed": [timed | {"measured_ms": None}]}))


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        (["certificate"], REMOVED, "search.json: certificate is missing; expected what maenas search wrote"),
        (["request", "space"], 3, "search.json: request.space is 3; expected a text"),
        (["request"], [], r"search.json: request is \[\]; expected an object"),
        (["request", "image_size"], [640], r"request.image_size is \[640\]; expected \[height, width\]"),
        (["request", "budgets", "latency_ms"], "3", 'request.budgets.latency_ms is "3"; expected a number'),
        (["certificate", "upper_bound"], None, "certificate.upper_bound is null; expected a number"),
        (["shortlist", 1, "score"], "high", r'shortlist\[1\].score is "high"; expected a number'),
        (["shortlist", 1], 7, r"shortlist\[1\] is 7; expected an object"),
        (["evolution"], {}, "evolution.candidates is missing"),
        (["request", "scope"], "backbone", "the search bounds backbone by latency_ms, layers; expected the latency of"),
        (["request", "budgets"], {"params": 1e6}, "the search bounds detector by params; expected the latency of the"),
        (["digest"], "0" * 12, 'digest is "000000000000", and structure.json beside it has'),
    ],
)
def test_what_is_no_search_is_refused(changed, names, value, message):
    with pytest.raises(JourneyError, match=message):
        read_searched(changed(*names, value=value))


def test_a_folder_without_a_search(tmp_path):
    with pytest.raises(JourneyError, match=r"search.json: cannot be read \(.*\); expected what maenas search wrote"):
        read_searched(tmp_path)
    (tmp_path / "search.json").write_text("[" * 10**5)
    with pytest.raises(JourneyError, match=r"search\.json: cannot be read"):
        read_searched(tmp_path)


@settings(max_examples=60)
@given(data=st.data())
def test_any_damage_is_a_users_error_or_harmless(searched, tmp_path_factory, data):
    record = json.loads((searched / "search.json").read_text())
    content, name = record, data.draw(st.sampled_from(sorted(record)))
    while isinstance(content[name], dict | list) and content[name] and data.draw(st.booleans()):
        content = content[name]
        name = data.draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
    content[name] = data.draw(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=3))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "search.json").write_text(json.dumps(record))
    (folder / "structure.json").write_bytes((searched / "structure.json").read_bytes())
    try:
        read_searched(folder)
    except MaenasError as error:
        assert str(error).startswith(str(folder)) and "\n" not in str(error)
