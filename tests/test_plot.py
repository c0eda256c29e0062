"""`maenas plot` end to end: files, filters, refusals, and a golden CSV."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plot_cases import benchmark, evaluation, line, points_file, row, small, write_json, write_structure

from maenas.cli.main import main

GOLDEN = Path(__file__).parent / "fixtures" / "plot" / "points.csv"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two evaluated and timed networks, one that is only timed, and a rival."""
    work = tmp_path / "work"
    for classes, ap, ms in ((3, 0.40, 5.0), (4, 0.45, 8.0)):
        write_structure(work / "runs" / f"train{classes}", small(classes))
        write_json(work / "runs" / f"eval{classes}" / "eval.json", evaluation(small(classes), ap))
        write_json(work / "runs" / f"bench{classes}.json", benchmark(line(small(classes), ms)))
    write_json(work / "runs" / "bench5.json", benchmark(line(small(5), 6.0)))
    write_structure(work / "runs" / "train5", small(5))
    (work / "rivals.csv").write_text(
        points_file(row(), row(model="Rival-M", latency_ms="7", ap="41")), encoding="utf-8"
    )
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def plot(here, capsys):
    """Run the verb in this process: (exit code, standard output, standard error)."""

    def run(*words):
        capsys.readouterr()
        code = main(["plot", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(result):
    code, out, err = result
    assert (code, out) == (2, "") and err.count("\n") == 1
    return err


def test_runs_to_picture_page_and_csv(plot, here):
    words = ["runs", "--points", "rivals.csv", "--title", "cells $ & <b>", "--out", "a.png", "--out", "b.html"]
    code, out, err = plot(*words, "--out", "c.svg", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["files"] == ["a.png", "a.csv", "b.html", "b.csv", "c.svg", "c.csv"]
    (group,) = answer["groups"]
    assert group["conditions"]["protocol"] == "maenas benchmark"
    assert [(point["label"], point["on_front"]) for point in group["points"]] == [
        ("ns-3", "yes"), ("ns-5", "no"), ("Rival-M", "yes"), ("ns-4", "yes"), ("Rival-S", "no"),
    ]  # fmt: skip
    assert "88 published points are left out" in err
    assert (here / "a.png").read_bytes().startswith(PNG)
    assert (here / "a.csv").read_text(encoding="utf-8") == (here / "c.csv").read_text(encoding="utf-8")
    marks = {element.get("id") for element in ElementTree.parse(here / "c.svg").iter()}
    assert {"p0", "p1", "p4", "n0", "front"} <= marks


def test_the_page_needs_no_network_and_escapes_texts(plot, here):
    hostile = '</script><script>alert("1")</script>'
    (here / "rivals.csv").write_text(
        points_file(row(model=hostile.replace(",", ""), note="<img src=x>")), encoding="utf-8"
    )
    code, _, _ = plot("runs", "--points", "rivals.csv", "--out", "b.html", "--title", "<b>cells</b>")
    assert code == 0
    text = (here / "b.html").read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(text)
    assert (
        seen.tags.count("script") == 2 and "img" not in seen.tags and "b" not in seen.tags and "link" not in seen.tags
    )
    assert not [value for value in seen.sources if not value.startswith(("#", "data:"))]
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert "default-src 'none'" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert any(tip.startswith(hostile) for tip in data["points"])
    assert [curve["points"] for curve in data["curves"]] == [[0, 1, 2], [3]]


class Seen(HTMLParser):
    """The tags of a page and where they load from."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_golden_csv(plot, here):
    assert plot("runs", "--points", "rivals.csv", "--out", "a.svg")[0] == 0
    assert (here / "a.csv").read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_equal_questions_give_equal_files(plot, here, kind):
    for name in ("a", "b"):
        assert plot("runs", "--out", f"{name}.{kind}", "--labels", "none")[0] == 0
    assert (here / f"a.{kind}").read_bytes() == (here / f"b.{kind}").read_bytes()


def test_a_pdf_for_a_paper(plot, here):
    assert plot("runs", "--out", "a.pdf", "--title", "cells")[0] == 0
    content = (here / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    # TrueType letters, and nothing that tells when or with what it was made.
    assert b"/Type0" in content and b"/Type3" not in content
    assert not re.search(rb"/(CreationDate|Producer|Creator)\b", content)


def test_published_points_measured_alike_come_by_themselves(plot, here):
    code, _, err = plot("damo-yolo-ns", "--predict", "intel-8163", "--out", "a.svg", "--labels", "none")
    assert code == 0 and "78 published points are left out" in err
    with open(here / "a.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 11 and {entry["protocol"] for entry in rows} == {"damo-paper-8163"}
    statuses = {entry["label"]: entry["latency_status"] for entry in rows}
    assert statuses["damo-yolo-ns"] == "predicted" and statuses["DAMO-YOLO-Ns"] == "published"
    digests = {entry["label"]: entry["digest"] for entry in rows}
    assert digests["damo-yolo-ns"] == digests["DAMO-YOLO-Ns"] != ""


def test_mixing_needs_a_word(plot, here):
    write_json(here / "runs" / "more.json", benchmark(line(small(3), 4.0, threads=2)))
    err = refused(plot("runs", "--out", "a.svg"))
    assert "latencies were measured in 2 unlike ways: Some CPU, OpenVINO 2026.4, fp32, batch 1, 1 thread" in err
    assert "--mix" in err and not (here / "a.svg").exists()
    code, out, _ = plot("runs", "--out", "a.svg", "--labels", "none", "--mix", "--json")
    assert code == 0 and len(json.loads(out)["groups"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.svg"], "measured in 12 unlike ways"),
        (["--out", "a.svg", "--protocol", "damo"], "--protocol is 'damo'; expected some of damo-paper-t4, "),
        (["runs", "--out", "a.jpg"], "--out is 'a.jpg'; expected a file that ends in .png, .svg, .pdf, .html"),
        (["runs", "--out", "rivals.svg"], "rivals.csv: exists already; expected a new file, or --force"),
        (["runs", "--out", "no/such/a.svg"], "no/such/a.svg: cannot be written"),
        (["nowhere", "--out", "a.svg"], "nowhere: no such run folder or file"),
        (["runs", "--out", "a.svg", "--device", "T5"], "no point is left to draw"),
        (["runs", "--out", "a.svg", "--points", "none.csv"], "none.csv: cannot be read as text"),
        (["damo-yolo-t", "--predict", "t5", "--out", "a.svg"], "t5"),
        (["damo-yolo-t", "--out", "a.svg"], "nothing of the runs can be drawn: structure damo-yolo-t "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals_are_one_line(plot, words, message):
    assert message in refused(plot(*words))


def test_a_plot_loads_no_torch(here):
    script = (
        "import sys; from maenas.cli.main import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
    )
    words = ["plot", "runs", "--out", "a.svg", "--labels", "none", "--json"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False 0", done.stderr
