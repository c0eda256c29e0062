"""Whatever is changed in a good file, it is read or refused with an error of ours, and what was read is sound.

Points files and run folders have such tests in test_plot_points.py and test_plot_runs.py, data sets, recipes,
checkpoints and exports in detector/test_parsers.py.
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journey_cases import made_journey
from parser_cases import FUZZ, NUMBERS, changed, changed_bytes, changed_text, read_or_refused
from search_cases import ROOT, content_of
from table_cases import conv, header, row
from test_tinynas_import import HEADER, line

from maenas.budgets import METRICS, parse_amount
from maenas.cli.question import parse_image_size, parse_margin
from maenas.journey import searched_export
from maenas.journey_record import Attempt, Entry, Finished, RunRecord, new_record, read_record, write_record
from maenas.latency.predict import predict
from maenas.latency.table import load_table
from maenas.latency.table_networks import NetworkRow, networks_to_csv, parse_networks
from maenas.latency.table_rows import list_rows, parse_rows, rows_to_csv
from maenas.latency.table_write import write_table
from maenas.latency.tinynas_library import read_library
from maenas.official import network_from_content, parse_content
from maenas.official_export import export_official
from maenas.official_import import import_official
from maenas.profiling.journal import journal_header, open_journal
from maenas.profiling.measurement import Settings
from maenas.published import load_published
from maenas.spaces import load_space
from maenas.structure import load_structure, save_structure, structure_from_dict

NAMES = ("damo-yolo-t", "damo-yolo-m", "damo-yolo-ns")
STRUCTURES = [load_published(name) for name in NAMES]


# Structures


@FUZZ
@given(st.sampled_from(STRUCTURES).flatmap(lambda one: changed(one.to_dict())))
def test_structures(tmp_path, content):
    structure = read_or_refused(lambda: structure_from_dict(content))
    if structure is not None:
        save_structure(structure, tmp_path / "again.json")
        again = load_structure(tmp_path / "again.json")
        assert (again, again.digest) == (structure, structure.digest)


@FUZZ
@given(changed_bytes(json.dumps(STRUCTURES[0].to_dict()).encode()))
def test_structure_files(tmp_path, content):
    (tmp_path / "structure.json").write_bytes(content)
    read_or_refused(lambda: load_structure(tmp_path / "structure.json"))


@FUZZ
@given(st.sampled_from(STRUCTURES).flatmap(lambda one: changed(parse_content(export_official(one), source="x"))))
def test_official_records(content):
    network = read_or_refused(lambda: network_from_content(content, source="x"))
    assert network is None or all(1 <= block.stride <= 2 and block.num_units >= 1 for block in network.blocks)


@FUZZ
@given(
    st.sampled_from([export_official(STRUCTURES[0], form=form) for form in ("list", "text", "json")]).flatmap(
        changed_text
    )
)
def test_official_files(tmp_path, text):
    (tmp_path / "net.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    structure = read_or_refused(lambda: import_official(tmp_path / "net.txt"))
    assert structure is None or len(structure.backbone.out_stages) == 3


# Search spaces


@FUZZ
@given(st.sampled_from(["res", "csp", "mob"]).flatmap(lambda name: changed(content_of(name))))
def test_spaces(tmp_path, content):
    # JSON is YAML, but for what Python writes of numbers that are none.
    (tmp_path / "space.yaml").write_text(json.dumps(content))
    space = read_or_refused(lambda: load_space(str(tmp_path / "space.yaml")))
    assert space is None or all(len(stage.depth.values) for stage in space.stages)


@FUZZ
@given(changed_text((ROOT / "search_spaces" / "res.yaml").read_text()))
def test_space_files(tmp_path, text):
    (tmp_path / "space.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refused(lambda: load_space(str(tmp_path / "space.yaml")))


# Latency tables


@FUZZ
@given(st.data())
def test_table_headers(tmp_path, data):
    folder = tmp_path / "made"
    if not folder.exists():
        write_table(folder, header(), [row(), row(1.5, op=conv(out_channels=32))])
        (tmp_path / "good.json").write_bytes((folder / "table.json").read_bytes())
    content = data.draw(changed(json.loads((tmp_path / "good.json").read_text())))
    (folder / "table.json").write_text(json.dumps(content))
    table = read_or_refused(lambda: load_table(folder))
    if table is not None:
        prediction = read_or_refused(lambda: predict([conv()], table))
        assert prediction is None or math.isfinite(prediction.latency_ms)


ROWS = rows_to_csv([row(), row(1.5, op=conv(out_channels=32)), row(0.25, op=conv(kernel_size=1))])


@FUZZ
@given(changed_bytes(ROWS))
def test_table_rows(content):
    path = Path("rows.csv")
    rows = read_or_refused(lambda: parse_rows(path, content, ()))
    listed = read_or_refused(lambda: list_rows(path, content))
    if rows is not None:
        assert listed is not None and len(rows) <= len(listed)
        assert all(0 <= one.ms < math.inf and 0 <= one.sigma_ms < math.inf for one in listed)


NETWORKS = [
    NetworkRow("a", "res", "res", "test", 90, 0, 2.5, 2.4, 2.75, 2.6),
    NetworkRow("b, c", "res", "res", "calibration", 80),
]


@FUZZ
@given(changed_bytes(networks_to_csv(NETWORKS)))
def test_network_files(content):
    networks = read_or_refused(lambda: parse_networks(Path("networks.csv"), content))
    if networks is not None:
        assert parse_networks(Path("networks.csv"), networks_to_csv(networks))[:1] == networks[:1]


LIBRARY = "\n".join(line(8 * ratio, 8, side, 1.5 * side) for ratio in (1, 2) for side in (10, 20)) + "\n"
AS_CSV = HEADER + "\n" + "".join(f"Regular,32,8,{side},{side},8,1,1,0,{1.5 * side}\n" for side in (10, 20))


@FUZZ
@given(
    st.sampled_from([LIBRARY, AS_CSV]).flatmap(changed_text).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | changed_bytes(gzip.compress(LIBRARY.encode(), mtime=0))
)
def test_operator_libraries(tmp_path, content):
    (tmp_path / "library").write_bytes(content)
    library = read_or_refused(lambda: read_library(tmp_path / "library"))
    assert library is None or (len(library) > 0 and (library.side >= 1).all())


@FUZZ
@given(st.data())
def test_journals(tmp_path, data):
    path, first = tmp_path / "journal.jsonl", journal_header(Settings(), {"threads": 1}, ["a"], "0")
    layer = {"name": "conv", "kind": "conv", "sources": ["a"], "inputs": ["b"], "ms": 0.5}
    record = {
        "key": "a", "pass_index": 0, "ms": [1.0, 1.1], "cpu_ms": 1.0, "layers": [layer], "reference_ms": [1.0, 1.0],
        "usual_ms": 1.0, "busy": 0.0, "accepted": True, "reason": "", "kept": True, "started": "", "seconds": 1.0,
    }  # fmt: skip
    lines = [first, {"references_ms": [1.0, 1.0, 1.0]}, record]
    at = data.draw(st.integers(0, 2))
    lines[at] = data.draw(changed(lines[at]))
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))

    def read():
        with open_journal(path, first) as journal:
            return journal

    journal = read_or_refused(read)
    assert journal is None or all(isinstance(ms, float) for ms in journal.references)


# What a user types


@FUZZ
@given(st.sampled_from(METRICS), changed_text("3.8ms") | changed_text("20 GiB") | changed_text("1e3kFLOPs"))
def test_amounts(metric, text):
    amount = read_or_refused(lambda: parse_amount(metric, text))
    assert amount is None or 0 < amount < math.inf


@FUZZ
@given(changed_text("1sigma") | NUMBERS.map(lambda number: f"{number:.6g}sigma" if abs(number) < 1e300 else "sigma"))
def test_margins(text):
    margin = read_or_refused(lambda: parse_margin(text))
    assert margin is None or 0 <= margin <= 10


@FUZZ
@given(changed_text("480x640"))
def test_image_sizes(text):
    size = read_or_refused(lambda: parse_image_size(text))
    assert size is None or min(size) >= 1


# Runs


def made_record() -> RunRecord:
    named = (Entry("--budget", "8ms"), Entry("--data", "cells"))
    finished = Finished("search", ("search",), ("search",), named, named, 1.5, 1, "0", "2026-01-01T00:00:00+00:00")
    record = new_record(named, table="t4", profiled=False)
    return replace(record, steps=(finished,), running=Attempt("train", ("train",), named))


@FUZZ
@given(changed(json.loads(json.dumps(asdict(made_record())))))
def test_run_records(tmp_path, content):
    (tmp_path / "run.json").write_text(json.dumps(content))
    record = read_or_refused(lambda: read_record(tmp_path))
    if record is not None:
        write_record(record, tmp_path)
        assert read_record(tmp_path) == record


@FUZZ
@given(changed({"measured": {"finalist": "abc"}}))
def test_what_a_search_left(tmp_path, content):
    journey = made_journey(tmp_path)
    (journey.out / "search").mkdir(parents=True, exist_ok=True)
    (journey.out / "search" / "search.json").write_text(json.dumps(content))
    found = searched_export(journey)
    assert found is None or found.parent == journey.out / "search" / "measured"


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff", b"null", b'{"a": ' + b"9" * 5000 + b"}"])
def test_files_that_are_nothing(tmp_path, content):
    """What no change of a good file comes upon."""
    for name in ("run.json", "structure.json", "space.yaml", "net.txt"):
        (tmp_path / name).write_bytes(content)
    for read in (
        lambda: read_record(tmp_path),
        lambda: load_structure(tmp_path / "structure.json"),
        lambda: load_space(str(tmp_path / "space.yaml")),
        lambda: import_official(tmp_path / "net.txt"),
        lambda: read_library(tmp_path / "net.txt"),
        lambda: parse_networks(tmp_path / "networks.csv", content),
        lambda: parse_rows(tmp_path / "rows.csv", content, ()),
    ):
        assert read_or_refused(read) is None
