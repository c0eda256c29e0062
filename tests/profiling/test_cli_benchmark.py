"""`maenas benchmark`: files in, table and JSON out, and every refusal."""

from __future__ import annotations

import argparse
import hashlib
import json
import os

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("psutil")

from profiling_cases import convolution, save_network, tiny_network  # noqa: E402

from maenas.cli import benchmark  # noqa: E402
from maenas.errors import OutputError, ProfileError  # noqa: E402

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
    assert report["schema_version"] == 1
    assert report["host"]["fingerprint"]
    for line in report["lines"]:
        assert (
            0 < line["min_ms"] <= line["p25_ms"] <= line["p50_ms"] <= line["p90_ms"] <= line["p95_ms"] <= line["p99_ms"]
        )
        assert line["images_per_second"] == pytest.approx(1000 / line["p50_ms"])
        assert line["ratio"] == pytest.approx(line["p50_ms"] / report["lines"][0]["p50_ms"])
        assert line["runs"] >= 10
        assert (line["form"], line["digest"]) == ("foreign", None)
    assert report["lines"][0]["sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()


def test_the_file_holds_what_json_prints(tmp_path, network, capsys):
    out = tmp_path / "bench.json"
    call(network, *ORT, "--out", out, "--json")
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)


def test_the_table(network, tmp_path, capsys):
    call(network, *ORT, "--out", tmp_path / "bench.json")
    text = capsys.readouterr().out
    for word in ("tiny.onnx", "foreign", "onnxruntime", "p50", "p99", "images/s", "1.00", "bench.json"):
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
        (["--image-size", "416"], "--image-size is '416'; expected height x width"),
        (["--image-size", "0x4"], "--image-size is '0x4'"),
        (["--image-size", "64x64"], r"images is 1x3x32x32, but the image height asked for is 64; expected 32"),
        (["--batch", "2"], "the batch asked for is 2; expected 1"),
        (["--batch", "0"], "--batch is 0; expected at least 1"),
        (["--threads", "1", "0"], "--threads is 0; expected at least 1"),
        (["--threads", "100000"], "number of cores is 100000"),
        (["--precision", "fp16"], "ONNX Runtime computes in fp32"),
    ],
)
def test_options_are_checked(network, words, message):
    with pytest.raises(ProfileError, match=message):
        call(network, *ORT, *words)
    assert len(os.sched_getaffinity(0)) >= 1


def test_files_are_checked(tmp_path, network):
    with pytest.raises(ProfileError, match=r"none\.onnx: cannot be read \(No such file"):
        call(tmp_path / "none.onnx", *ORT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProfileError, match=r"empty: holds no \.onnx file"):
        call(tmp_path / "empty", *ORT)
    with pytest.raises(ProfileError, match="is given twice"):
        call(network, network, *ORT)


def test_a_network_that_a_runtime_cannot_run_is_named(tmp_path):
    node, constants = convolution(onnx, "conv", "images", 5, 8)
    path = save_network(onnx, tmp_path / "wrong.onnx", [node], constants, output="conv_out")
    with pytest.raises(ProfileError, match=r"wrong\.onnx in onnxruntime with 1 threads: failed to run"):
        call(path, *ORT)


def test_an_existing_file_is_kept(tmp_path, network):
    out = tmp_path / "bench.json"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"bench\.json: exists already; expected a new file, or --force"):
        call(network, "--backend", "onnxruntime", "--out", out)
    assert out.read_text() == "mine"
