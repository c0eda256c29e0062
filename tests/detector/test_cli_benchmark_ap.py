"""`maenas benchmark` with a data set: AP beside the times, in every runtime that evaluates."""

from __future__ import annotations

import csv
import json

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("psutil")
pytest.importorskip("faster_coco_eval")
pil = pytest.importorskip("PIL.Image")

from evaluation_cases import NAMES, write_scenes  # noqa: E402
from export_cases import lively, quick_trace, small_structure  # noqa: E402

from detector import export_graph  # noqa: E402
from detector.evaluate import evaluate  # noqa: E402
from detector.export import ExportChecks, ExportOptions, export_artifacts  # noqa: E402
from detector.runtime import load  # noqa: E402
from detector.runtimes import is_installed  # noqa: E402
from maenas.cli.main import main  # noqa: E402

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export of ours with suppression inside, a foreign file, and a data set."""
    folder = tmp_path_factory.mktemp("benchmark")
    model = lively(small_structure())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_graph, "trace", quick_trace)
        export_artifacts(
            model,
            folder / "ours",
            class_names=NAMES,
            options=ExportOptions(outputs="nms", score_threshold=0.1),
            checks=ExportChecks(verify=False),
        )
    foreign = onnx.load(folder / "ours" / "model.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, folder / "foreign.onnx")
    write_scenes(folder / "cells")
    return folder


def test_ap_stands_beside_the_times_of_our_exports(folder, tmp_path, capsys):
    runtimes = [name for name in ("onnxruntime", "openvino") if is_installed(name)]
    words = ["benchmark", folder / "ours", folder / "foreign.onnx", "--backend", *runtimes, "--data", folder / "cells"]
    words += ["--passes", "1", "--seconds", "0", "--force", "--out", tmp_path / "bench.json"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "bench.json").read_text())
    dataset = write_scenes(folder / "cells")
    for line in report["lines"]:
        if line["form"] == "foreign":
            assert (line["ap"], line["ap50"]) == (None, None)
            continue
        wanted = evaluate(load(folder / "ours", runtime=line["backend"]), dataset).metrics
        assert (line["ap"], line["ap50"]) == pytest.approx((wanted.ap, wanted.ap50), abs=1e-4)
    assert len(report["lines"]) == 2 * len(runtimes) and " AP " in printed and " - " in printed
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert [row["ap"] == "" for row in rows] == [line["ap"] is None for line in report["lines"]]
    with pil.open(tmp_path / "bench.png") as picture:
        assert picture.size[0] > 1500  # both halves


def test_the_plot_joins_it_with_runs_on_the_same_images(folder, tmp_path, capsys):
    data, bench = ["--data", folder / "cells"], tmp_path / "runs" / "bench.json"
    bench.parent.mkdir()

    def call(*words):
        assert main([str(word) for word in words]) == 0

    def points():
        call("plot", bench.parent, "--no-published", "--json", "--out", tmp_path / "plot.png", "--force")
        rows = csv.DictReader((tmp_path / "plot.csv").read_text().splitlines())
        return [row for row in rows if row["ap"]]

    timed = ["--backend", "onnxruntime", "--passes", "1", "--seconds", "0", "--force", "--no-plot"]
    call("benchmark", folder / "ours", *timed, *data, "--out", bench)
    call("eval", folder / "ours", *data, "--out", tmp_path / "eval", "--runtime", "onnxruntime")
    report, evaluated = (json.loads(file.read_text()) for file in (bench, tmp_path / "eval" / "eval.json"))
    assert report["conditions"]["data"] == evaluated["data"]
    (alone,) = points()
    (line,) = report["lines"]
    assert float(alone["ap"]) == pytest.approx(100 * line["ap"], abs=0.01)
    assert float(alone["latency_ms"]) == pytest.approx(line["p50_ms"], rel=0.01)
    (tmp_path / "eval" / "eval.json").rename(bench.with_name("eval.json"))
    (joined,) = points()
    assert (joined["data"], joined["ap"], joined["digest"]) == (alone["data"], alone["ap"], alone["digest"])
    capsys.readouterr()


def test_random_weights_get_no_ap(folder, tmp_path, capsys):
    proto = onnx.load(folder / "ours" / "model.onnx")
    inside = {entry.key: entry.value for entry in proto.metadata_props}
    inside["maenas"] = json.dumps(json.loads(inside["maenas"]) | {"provenance": {"weights": "random"}})
    onnx.helper.set_model_props(proto, inside)
    onnx.save(proto, tmp_path / "random.onnx")
    words = ["benchmark", tmp_path / "random.onnx", "--backend", "onnxruntime", "--data", folder / "cells", "--force"]
    assert main([*map(str, words), "--passes", "1", "--seconds", "0", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["lines"]
    assert line["ap"] is None and line["form"] == "nms"


def test_a_data_set_that_cannot_be_used_is_said_before_anything_is_timed(folder, capsys):
    words = ["benchmark", folder / "ours", "--backend", "onnxruntime", "--data", folder / "nothing", "--force"]
    assert main([str(word) for word in words]) == 2
    assert "nothing" in capsys.readouterr().err
