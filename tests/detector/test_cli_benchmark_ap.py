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
    assert report["conditions"]["data"] == {"source": str(folder / "cells"), "split": "val"}
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


def test_a_data_set_that_cannot_be_used_is_said_before_anything_is_timed(folder, capsys):
    words = ["benchmark", folder / "ours", "--backend", "onnxruntime", "--data", folder / "nothing", "--force"]
    assert main([str(word) for word in words]) == 2
    assert "nothing" in capsys.readouterr().err
