"""Which latency table a journey takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from table_cases import conv, header, row

from maenas import journey_tables
from maenas.errors import LatencyTableError, MissingExtraError
from maenas.journey import JourneyError
from maenas.journey_tables import installed_backend, local_device, named_device, new_device, serves, space_ops
from maenas.latency import table as tables
from maenas.latency.table import load_table
from maenas.latency.table_write import write_table
from maenas.spaces import load_space

HERE, ELSEWHERE = "0123456789ab", "ba9876543210"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a table into the user's folder, on a machine with the fingerprint HERE."""
    folder = tmp_path / "tables"
    monkeypatch.setenv("MAENAS_TABLES", str(folder))
    monkeypatch.setattr(journey_tables, "local_fingerprint", lambda: HERE)
    monkeypatch.setattr(tables, "local_fingerprint", lambda: HERE)

    def write(name, **changes):
        return write_table(folder / name, header(fingerprint=HERE, **changes), [row(1.0)])

    return write


def chosen(*ops, backend=None, threads=None):
    found = local_device(ops or (conv(),), backend=backend, threads=threads)
    return None if found is None else found.table


def test_a_table_of_this_machine_that_knows_everything(write):
    assert chosen() is None
    write("mine")
    assert chosen() == "mine"
    assert chosen(conv(), conv(16, 24)) is None
    device = local_device([conv()], backend=None, threads=None)
    assert (device.is_here, device.backend, device.threads, device.profile) == (True, "openvino", 1, ())
    assert device.table_hash == load_table("mine").table_hash and all(path.exists() for path in device.table_files)


def test_tables_of_others_and_for_other_uses_are_left_out(write, tmp_path):
    write_table(tmp_path / "tables" / "other", header(fingerprint=ELSEWHERE), [row(1.0)])
    write("quantised", precision="int8")
    write("many", batch=8)
    (write("broken") / "rows.csv").write_text("nonsense")
    assert chosen() is None


def test_fewest_threads_then_the_newest(write):
    write("two", threads=2, date="2026-05-01")
    assert chosen() == "two"
    write("old", date="2025-12-31")
    write("new", date="2026-01-01")
    write("ort", backend="onnxruntime", threads=4)
    assert (chosen(), chosen(threads=2), chosen(threads=3)) == ("new", "two", None)
    assert (chosen(backend="onnxruntime"), chosen(backend="tensorrt")) == ("ort", None)


def test_a_named_table_is_measured_on_if_it_is_of_this_machine(write, tmp_path):
    write("mine")
    write("quantised", precision="int8")
    write_table(tmp_path / "tables" / "other", header(fingerprint=ELSEWHERE, threads=None), [row(1.0)])
    assert named_device("mine").is_here
    assert not named_device("quantised").is_here
    other = named_device("other")
    assert (other.is_here, other.threads) == (False, 1)
    with pytest.raises(LatencyTableError, match="latency table 'gone' is unknown"):
        named_device("gone")


def test_a_table_that_is_to_be_made(write, tmp_path):
    space = load_space("res-small")
    options = {"image_size": (320, 320), "num_classes": 3, "backend": "openvino", "threads": 2, "quick": False}
    device = new_device("res-small", space, **options)
    assert device.table == "openvino-2t-res-small-320-3c-0123" and device.is_here and device.table_hash == ""
    assert device.table_files[0] == tmp_path / "tables" / device.table / "table.json"
    assert device.profile == (
        "--backend", "openvino", "--name", device.table, "--space", "res-small", "--image-size", "320x320",
        "--num-classes", "3", "--threads", "2",
    )  # fmt: skip
    quick = new_device("res-small", space, **{**options, "image_size": (256, 320), "quick": True})
    assert quick.table == "openvino-2t-res-small-256x320-3c-0123" and quick.profile[-1] == "--quick"
    on_gpu = new_device("res", space, **{**options, "backend": "torch-cuda"})
    assert on_gpu.table == "torch-cuda-res-small-320-3c-0123" and "--threads" not in on_gpu.profile
    with pytest.raises(JourneyError, match="space 'my space': cannot be part of a table's name"):
        new_device("my.yaml", replace(space, name="my space"), **options)


def test_a_variant_asks_for_its_own_operators_only():
    space = load_space("res-small")
    small, large = (
        {(op.kind, op.in_channels, op.out_channels, op.in_size) for op in space_ops(space, name)}
        for name in ("xs", "s")
    )
    assert small - large and large - small
    assert serves(load_table("t4"), space_ops(space, "xs")[:200])


def test_without_a_runtime_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(journey_tables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="measuring needs OpenVINO or ONNX Runtime"):
        installed_backend()
    monkeypatch.setattr(journey_tables.importlib.util, "find_spec", lambda name: name == "onnxruntime" or None)
    assert installed_backend() == "onnxruntime"
