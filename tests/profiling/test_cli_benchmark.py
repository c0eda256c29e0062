"""`maenas benchmark`: files in, table and JSON out, and every refusal."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("psutil")

from profiling_cases import convolution, save_network, tiny_network  # noqa: E402

from maenas.cli import benchmark  # noqa: E402
from maenas.cli.benchmark_lines import Line, Model, PinnedEntry  # noqa: E402
from maenas.cli.benchmark_report import make_report, short_labels  # noqa: E402
from maenas.errors import MissingExtraError, OutputError, ProfileError, SpaceError  # noqa: E402
from maenas.profiling.measurement import Record, Settings  # noqa: E402

pytestmark = pytest.mark.export


def call(*words, fast=True):
    """Run the verb; forced and short, as these tests are about anything but time."""
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    extra = ["--passes", "1", "--seconds", "0"] if fast else []
    return benchmark.run(parser.parse_args([*map(str, words), *extra]))


ORT = ("--backend", "onnxruntime", "--force")


@pytest.fixture
def network(tmp_path):
    return tiny_network(onnx, tmp_path / "tiny.onnx")


def test_every_model_in_every_runtime_with_every_number_of_threads(tmp_path, network, capsys):
    pytest.importorskip("openvino")
    other = tiny_network(onnx, tmp_path / "other.onnx", dims=(1, 3, 64, 64))
    threads = ["1"] + (["2"] if len(os.sched_getaffinity(0)) > 1 else [])
    before = os.sched_getaffinity(0)
    call(network, other, "--backend", "openvino", "onnxruntime", "--threads", *threads, "--force", "--json")
    assert os.sched_getaffinity(0) == before
    report = json.loads(capsys.readouterr().out)
    lines = [(line["model"], line["backend"], line["threads"]) for line in report["lines"]]
    assert lines == [
        (str(path), name, int(count))
        for path in (network, other)
        for name in ("openvino", "onnxruntime")
        for count in threads
    ]
    assert report["schema_version"] == 2
    assert report["host"]["fingerprint"]
    for line in report["lines"]:
        assert (
            0 < line["min_ms"] <= line["p25_ms"] <= line["p50_ms"] <= line["p90_ms"] <= line["p95_ms"] <= line["p99_ms"]
        )
        assert line["images_per_second"] == pytest.approx(1000 / line["p50_ms"])
        assert 0 < line["ratio_low"] <= line["ratio"] <= line["ratio_high"]
        assert line["runs"] >= 10
        assert (line["form"], line["digest"]) == ("foreign", None)
    assert report["lines"][0]["sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()


def test_the_file_holds_what_json_prints(tmp_path, network, capsys):
    out = tmp_path / "bench.json"
    call(network, *ORT, "--out", out, "--json")
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)


def test_a_table_and_a_picture_lie_beside_the_file(tmp_path, network, capsys):
    pytest.importorskip("matplotlib")
    pil = pytest.importorskip("PIL.Image")
    call(network, *ORT, "--out", tmp_path / "bench.json", "--json")
    printed = json.loads(capsys.readouterr().out)
    (row,) = csv.DictReader((tmp_path / "bench.csv").read_text().splitlines())
    assert float(row["p99_ms"]) == printed["lines"][0]["p99_ms"] and row["ap"] == ""
    assert (row["batch"], row["undisturbed"]) == ("1", str(printed["lines"][0]["undisturbed"]))
    with pil.open(tmp_path / "bench.png") as picture:
        assert picture.size[0] > 800
    call(network, *ORT, "--out", tmp_path / "other.json", "--no-plot")
    assert (tmp_path / "other.csv").exists() and not (tmp_path / "other.png").exists()


def test_what_the_figures_depend_on_is_noted(network, capsys):
    call(network, *ORT, "--json")
    report = json.loads(capsys.readouterr().out)
    assert {"python", "numpy", "onnxruntime"} <= set(report["versions"])
    conditions = report["conditions"]
    assert conditions["started"].endswith("+00:00") and conditions["settings"]["passes"] == 1
    assert conditions["load_average_before"] >= 0 and isinstance(conditions["busiest_before"], str)
    assert report["lines"][0]["busy"] >= 0 and report["lines"][0]["size_bytes"] == network.stat().st_size


def test_batches_that_a_file_does_not_take_are_left_out_and_named(tmp_path, network, capsys):
    free = tiny_network(onnx, tmp_path / "free.onnx", dims=("N", 3, 32, 32))
    call(network, free, *ORT, "--batch", "1", "4", "--json")
    report = json.loads(capsys.readouterr().out)
    lines = [(os.path.basename(line["model"]), line["batch"]) for line in report["lines"]]
    assert lines == [("tiny.onnx", 1), ("free.onnx", 1), ("free.onnx", 4)]
    (left_out,) = report["skipped"]
    assert left_out["setting"] == "onnxruntime with 1 threads, 4 images at once"
    assert "the batch asked for is 4; expected 1" in left_out["reason"]
    for line in report["lines"]:
        assert line["images_per_second"] == pytest.approx(1000 * line["batch"] / line["p50_ms"])
    call(network, free, *ORT, "--batch", "1", "4")
    printed = " ".join(capsys.readouterr().out.split())
    assert f"left out in onnxruntime with 1 threads, 4 images at once: {network}: input images is 1x3x32x32" in printed


def test_a_runtime_that_lacks_the_precision_leaves_the_others(network, capsys):
    pytest.importorskip("openvino")
    call(network, "--backend", "onnxruntime", "openvino", "--force", "--json", "--precision", "fp32")
    assert json.loads(capsys.readouterr().out)["skipped"] == []
    with pytest.raises(ProfileError, match="ONNX Runtime computes in fp32 on CPUs"):
        call(network, "--backend", "onnxruntime", "--force", "--precision", "bf16")


def test_openvino_s_own_files(tmp_path, network, capsys):
    openvino = pytest.importorskip("openvino")
    from maenas.extras import openvino_core

    (folder := tmp_path / "export").mkdir()
    path = folder / "model.xml"
    graph = openvino_core(purpose="a test").read_model(network)
    graph.set_rt_info(json.dumps({"digest": "abc123", "form": "raw"}), "maenas")
    openvino.save_model(graph, path, compress_to_fp16=False)
    # What lies beside it may be the card of another export.
    (folder / "model.json").write_text(json.dumps({"digest": "other", "form": "nms"}))
    call(folder, network, "--backend", "openvino", "onnxruntime", "--force", "--json")
    report = json.loads(capsys.readouterr().out)
    lines = [(line["form"], line["backend"], line["digest"]) for line in report["lines"]]
    assert lines == [("raw", "openvino", "abc123"), ("foreign", "openvino", None), ("foreign", "onnxruntime", None)]
    assert report["lines"][0]["size_bytes"] == path.stat().st_size + path.with_suffix(".bin").stat().st_size
    assert "model.xml: is an OpenVINO file; expected an ONNX file" in report["skipped"][0]["reason"]
    path.with_suffix(".bin").unlink()
    with pytest.raises(ProfileError, match=r"model\.bin: no such file; expected the two files"):
        call(path, "--backend", "openvino", "--force")
    path.with_suffix(".bin").write_bytes(b"")
    path.write_text("<net>")
    with pytest.raises(ProfileError, match=r"model\.xml: cannot be read"):
        call(path, "--backend", "openvino", "--force")


def test_a_missing_runtime_says_what_to_install(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime.*maenas\[onnx\]"):
        call(network, *ORT)


def test_ratios_are_taken_pass_by_pass():
    # The second pass is twice as slow for both: of medians over all runs, nothing would be left.
    def record(key, index, ms):
        return Record(key, index, (ms,) * 5, ms, None, (1.0, 1.0), 1.0, 0.1 * index, True, "", True, "", 1.0)

    backend = SimpleNamespace(
        name="it", version="1", device_name="d", precision="fp32", threads=1, batch=1, accelerator=False
    )
    lines = [
        Line(Model(key, Path(key), "raw", None, False, None, "", 1), backend, PinnedEntry(key, None, 1)) for key in "ab"
    ]
    records = [record("a", 0, 10), record("a", 1, 20), record("b", 0, 5), record("b", 1, 11)]
    report = make_report(
        lines,
        records,
        settings=Settings(),
        skipped=[],
        accuracy={("b", "it"): {"ap": 0.5, "ap50": 0.75}},
        conditions={"data": None},
    )
    first, second = report["lines"]
    assert (first["ratio"], first["ratio_low"], first["ratio_high"], first["ap"]) == (1, 1, 1, None)
    assert (second["ratio_low"], second["ratio_high"]) == (0.5, pytest.approx(0.55))
    assert (second["ratio"], second["ap"], second["busy"]) == (pytest.approx(0.525), 0.5, 0.1)


def test_models_are_called_by_as_much_of_their_paths_as_is_needed():
    def labels(*paths):
        return short_labels({"lines": [{"model": path} for path in paths]})

    assert labels("a/model.onnx") == ["a"] and labels("model.onnx") == ["model.onnx"]
    assert labels("a/x.onnx", "a/y.onnx", "a/x.onnx") == ["x.onnx", "y.onnx", "x.onnx"]
    assert labels("r/a/model.onnx", "r/b/model.onnx", "c.onnx") == ["a", "b", "c.onnx"]
    assert labels("r/a/model.onnx", "s/a/model.onnx") == ["r/a", "s/a"]
    assert labels("a/model.onnx", "a/model.xml") == ["model.onnx", "model.xml"]


def test_the_table(network, tmp_path, capsys):
    call(network, *ORT, "--out", tmp_path / "bench.json")
    text = capsys.readouterr().out
    for word in ("tiny.onnx", "foreign", "onnxruntime", "p50", "p99", "images/s", "1.00", "bench.json", "bench.png"):
        assert word in text


def test_our_exports_are_known_by_their_metadata(tmp_path, capsys):
    (folder := tmp_path / "export").mkdir()
    for name, form in (("plain.onnx", "raw"), ("all.onnx", "nms")):
        card = json.dumps({"digest": "abc123", "form": form})
        tiny_network(onnx, folder / name, metadata={"maenas": card})

    def forms(*words):
        call(folder, *ORT, "--json", *words)
        return [(line["form"], line["digest"]) for line in json.loads(capsys.readouterr().out)["lines"]]

    assert forms() == [("nms", "abc123"), ("raw", "abc123")]
    assert forms("--nms", "with") == [("nms", "abc123")]
    assert forms("--nms", "without") == [("raw", "abc123")]
    with pytest.raises(
        ProfileError, match=r"plain\.onnx: has only networks without NMS inside; expected --nms without"
    ):
        call(folder / "plain.onnx", *ORT, "--nms", "with")


@pytest.mark.parametrize("text", ["{broken", "[1]", ""])
def test_strange_metadata_are_a_foreign_model(tmp_path, text, capsys):
    call(tiny_network(onnx, tmp_path / "tiny.onnx", metadata={"maenas": text}), *ORT, "--json")
    assert json.loads(capsys.readouterr().out)["lines"][0]["form"] == "foreign"


def test_free_axes_need_a_size(tmp_path, capsys):
    path = tiny_network(onnx, tmp_path / "free.onnx", dims=("N", 3, "H", "W"))
    with pytest.raises(ProfileError, match=r"free\.onnx: input images is Nx3xHxW, its size is free"):
        call(path, *ORT)
    call(path, *ORT, "--image-size", "32x64", "--batch", "2", "--json")
    line = json.loads(capsys.readouterr().out)["lines"][0]
    assert line["batch"] == 2
    assert line["images_per_second"] == pytest.approx(2000 / line["p50_ms"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "64"], r"images is 1x3x32x32, but the image height asked for is 64; expected 32"),
        (["--image-size", "64x64"], r"images is 1x3x32x32, but the image height asked for is 64; expected 32"),
        (["--batch", "2"], "the batch asked for is 2; expected 1"),
        (["--batch", "0"], "--batch is 0; expected at least 1"),
        (["--threads", "1", "0"], "--threads is 0; expected at least 1"),
        (["--threads", "100000"], "threads is 100000"),
        (["--precision", "fp16"], "ONNX Runtime computes in fp32"),
    ],
)
def test_options_are_checked(network, words, message):
    with pytest.raises(ProfileError, match=message):
        call(network, *ORT, *words)
    assert len(os.sched_getaffinity(0)) >= 1


@pytest.mark.parametrize("size", ["0x4", "x4", "4x4x4"])
def test_image_sizes_are_as_of_other_verbs(network, size):
    with pytest.raises(SpaceError, match=f"--image-size is '{size}'; expected N or HxW"):
        call(network, *ORT, "--image-size", size)


def test_files_are_checked(tmp_path, network):
    with pytest.raises(ProfileError, match=r"none\.onnx: no such file"):
        call(tmp_path / "none.onnx", *ORT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProfileError, match=r"empty: holds no \.onnx or \.xml or \.engine file"):
        call(tmp_path / "empty", *ORT)
    with pytest.raises(ProfileError, match="is given twice"):
        call(network, network, *ORT)


def test_a_network_that_a_runtime_cannot_run_is_named(tmp_path):
    node, constants = convolution(onnx, "conv", "images", 5, 8)
    path = save_network(onnx, tmp_path / "wrong.onnx", [node], constants, output="conv_out")
    with pytest.raises(ProfileError, match=r"wrong\.onnx in onnxruntime with 1 threads: failed to run"):
        call(path, *ORT)


def test_weights_that_were_left_behind_are_named(tmp_path, network):
    """A network whose weights lie in a second file, moved without it."""
    onnx.save(onnx.load(network), tmp_path / "large.onnx", save_as_external_data=True, size_threshold=0, location="w")
    call(tmp_path / "large.onnx", *ORT)
    (tmp_path / "w").unlink()
    with pytest.raises(ProfileError, match=r"large\.onnx in onnxruntime with 1 threads: failed to run"):
        call(tmp_path / "large.onnx", *ORT)


def test_the_card_and_the_folder_of_several_formats_are_taken(tmp_path, capsys):
    for name in ("onnx", "openvino"):
        (tmp_path / "out" / name).mkdir(parents=True)
    tiny_network(onnx, tmp_path / "out" / "onnx" / "model.onnx")
    (tmp_path / "out" / "onnx" / "model.json").write_text("{}")
    for path in (tmp_path / "out", tmp_path / "out" / "onnx" / "model.json"):
        call(path, *ORT, "--json")
        (line,) = json.loads(capsys.readouterr().out)["lines"]
        assert line["model"] == str(tmp_path / "out" / "onnx" / "model.onnx")


def test_the_folder_of_the_files_is_made_and_tried_first(tmp_path, network):
    call(network, *ORT, "--out", tmp_path / "new" / "bench.json", "--no-plot")
    assert (tmp_path / "new" / "bench.csv").is_file()
    with pytest.raises(OutputError, match=r"bench\.json: cannot be written \(.*tiny\.onnx is no folder\)"):
        call(tmp_path / "nothing.onnx", *ORT, "--out", network / "bench.json")


def test_an_existing_file_is_kept(tmp_path, network):
    out = tmp_path / "bench.json"
    for name in ("bench.json", "bench.csv", "bench.png"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match=rf"{name}: exists already; expected a new file, or --force"):
            call(network, "--backend", "onnxruntime", "--out", out)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    with pytest.raises(OutputError, match=r"bench\.csv: suffix is \.csv; expected \.json"):
        call(network, *ORT, "--out", tmp_path / "bench.csv")
