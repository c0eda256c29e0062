"""From APs and scores to the report: guards, regret, labels, files, pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from proxy_cases import MEMBERS, NETWORKS, results, values

from maenas.cli.eval_proxy_report import print_members, print_report
from maenas.errors import OutputError, ProxyError
from maenas.proxy_folder import Member, ProxyFolder
from maenas.proxy_plot import group_pictures
from maenas.proxy_report import group_sizes, judge_group, label_of, points_csv, problem_of, report_record

APS = [[0.30, 0.32], [0.41, 0.39], [0.20, 0.24], [0.50, 0.46], [0.36, 0.34], [0.10, 0.12]]
HEADER = "group,structure,name,predicted_ms,measured_ms\n"
MEANS = [0.31, 0.40, 0.22, 0.48, 0.35, 0.11]
SCORES = [
    values("madnas", [3, 4, 2, 5, 6, 1]),
    values("twin", [3, 4, 2, 5, 6, 1]),
    values("params", [1, 2, 3, 4, 5, 6]),
    values("broken", [1, math.nan, math.nan, 4, 5, math.nan], reason="no such layer"),
    values("endless", [1, math.inf, 2, 3, 4, math.nan]),
    values("flat", [7.0] * 6),
]


def judged(**options):
    given = {"members": MEMBERS, "seeds": [0, 1], "results": results(APS), "values": SCORES, **options}
    return judge_group("given", given["members"], given["seeds"], given["results"], given["values"], resamples=200)


def test_a_group_by_hand():
    group = judged()
    assert [member.digest for member in group.members] == [MEMBERS[place].digest for place in (3, 1, 4, 0, 2, 5)]
    assert group.mean_aps == pytest.approx(sorted(MEANS, reverse=True))
    scores = {score.name: score for score in group.scores}
    # madnas has one swapped pair among those of the best three: it puts the third first, before the first and second.
    assert scores["madnas"].kendall.value == pytest.approx((13 - 2) / 15)
    assert scores["madnas"].pick == "C" and scores["madnas"].regret.value == pytest.approx(0.48 - 0.35)
    assert scores["params"].pick == "F" and scores["params"].regret.value == pytest.approx(0.48 - 0.11)
    assert scores["madnas"].less_madnas is None and scores["params"].less_madnas.value < 0
    assert scores["twin"].note == "equal to madnas" and scores["twin"].less_madnas.high == 0.0
    assert group.random_regret == pytest.approx(0.48 - np.mean(MEANS))
    assert group.ceiling.seed_std == pytest.approx(0.0216, abs=5e-4)


def test_a_score_that_is_no_score_is_named_and_kept():
    scores = {score.name: score for score in judged().scores}
    assert list(scores) == [each.name for each in SCORES]
    assert scores["broken"].problem == "not usable: NaN for 3 of 6 (no such layer)"
    assert scores["endless"].problem == "not usable: NaN for 1 of 6, infinite for 1 of 6"
    assert scores["flat"].problem == "not usable: the same value, 7, for all 6"
    assert all(scores[name].kendall is None and scores[name].regret is None for name in ("broken", "endless", "flat"))


def test_equal_up_to_rounding_is_constant():
    rounded = 1e6 + np.array([0.0, 1e-10, 2e-10])
    assert problem_of(rounded, np.array([0.1, 0.2, 0.3])).startswith("not usable: the same value, 1e+06")
    assert problem_of(np.zeros(3), np.array([0.1, 0.2, 0.3])) == "not usable: the same value, 0, for all 3"
    assert problem_of(np.arange(3.0), np.full(3, 0.25)) == "not usable: AP is the same, 25.00, for all 3"
    assert problem_of(np.arange(3.0), np.arange(3.0)) == ""


def test_madnas_itself_not_usable_leaves_no_difference():
    broken = [values("madnas", [math.nan] * 6), SCORES[2]]
    scores = judged(values=broken).scores
    assert scores[0].problem and scores[1].kendall is not None and scores[1].less_madnas is None


def test_tied_picks():
    tied = [values("tied", [1, 9, 1, 1, 9, 1])]
    (score,) = judged(values=tied).scores
    assert score.pick == "B+C" and score.regret.value == pytest.approx(0.48 - (0.40 + 0.35) / 2)


def test_one_seed_has_no_ceiling():
    group = judged(seeds=[0])
    assert group.ceiling is None and group.aps.shape == (6, 1)


def test_a_network_that_lacks_a_run_is_left_out_and_named():
    known = results(APS)
    del known[MEMBERS[0].digest, 1]
    group = judged(results=known)
    assert group.left_out == (MEMBERS[0].digest,) and len(group.members) == 5
    few = {key: value for key, value in known.items() if key[0] in [member.digest for member in MEMBERS[:3]]}
    with pytest.raises(ProxyError, match="group given has 2 networks with results; expected at least 3"):
        judged(results=few)


def test_labels():
    assert [label_of(place) for place in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_group_sizes():
    assert group_sizes(MEMBERS) == {"given": 6}
    with pytest.raises(ProxyError, match="group given has 2 structures; expected at least 3"):
        group_sizes(MEMBERS[:2])
    with pytest.raises(ProxyError, match=f"has structure {NETWORKS[0].digest} 2 times; expected different"):
        group_sizes([*MEMBERS, MEMBERS[0]])


def test_points():
    known = results(APS)
    del known[MEMBERS[5].digest, 1]
    rows = list(csv.DictReader(io.StringIO(points_csv(MEMBERS, [0, 1], known, SCORES, [judged()]))))
    assert len(rows) == 12
    header = points_csv(MEMBERS, [0, 1], known, SCORES, []).splitlines()[0].split(",")
    assert len(set(header)) == len(header) and "score params" in header
    first = rows[0]
    assert (first["structure"], first["seed"], first["label"], first["ap"]) == (
        NETWORKS[0].digest,
        "0",
        "D",
        "0.300000",
    )
    assert (first["predicted_ms"], first["measured_ms"], first["score madnas"], rows[2]["score broken"]) == (
        "2",
        "",
        "3",
        "nan",
    )
    assert rows[11]["ap"] == "" and int(first["params"]) > 0 and first["layers"] == "9"


def test_the_record_is_json_without_nan():
    group = judged()
    record = report_record({"data": "x"}, [group], {"a-seed0": "why"})
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record and record["failures"] == {"a-seed0": "why"}
    (one,) = record["groups"]
    assert one["networks"][0]["label"] == "A" and one["networks"][0]["scores"]["broken"] == 4
    assert one["networks"][1]["scores"]["broken"] is None and one["scores"][3]["problem"].startswith("not usable")
    assert one["scores"][0]["kendall"]["value"] == pytest.approx(11 / 15)


def test_the_picture():
    few = judged(values=[SCORES[0], SCORES[3]])
    pictures = group_pictures(few, title="made-up data")
    assert pictures["png"].startswith(b"\x89PNG") and group_pictures(few, title="made-up data") == pictures
    ElementTree.fromstring(pictures["svg"])
    assert len(group_pictures(judged(values=SCORES[:1], seeds=[0]), title="one seed")) == 2


def test_the_screen(capsys, tmp_path):
    print_report([judged()], {"x-seed1": "it was too hot"}, ProxyFolder(tmp_path))
    out = capsys.readouterr().out
    for expected in (
        "0.73 [",
        "broken: not usable: NaN for 3 of 6 (no such layer)",
        "flat: not usable: the same value, 7",
        "twin: equal to madnas",
        "AP per run; between networks 13.",
        "ceiling: a score that knew the true APs would reach tau 0.",
        "FAILED: x-seed1: it was too hot",
        "a network taken blindly loses 16.8 AP on average",
    ):
        assert expected in out, expected
    print_members(MEMBERS, SCORES, as_json=False)
    assert "not usable: NaN for 3 of 6" in capsys.readouterr().out
    print_members(MEMBERS, SCORES, as_json=True)
    assert json.loads(capsys.readouterr().out)[1]["scores"]["broken"] is None


def test_small_scores_of_opposite_order_are_not_equal():
    tiny = [values("b", [1e-10 * k for k in (3, 4, 2, 5, 6, 1)]), values("c", [-1e-10 * k for k in (3, 4, 2, 5, 6, 1)])]
    first, second = judged(values=tiny).scores
    assert second.note == "" and first.kendall.value == -second.kendall.value > 0.5


def test_names_with_dollars_are_no_formulas():
    assert group_pictures(judged(values=[values("own:$_$", [3, 4, 2, 5, 6, 1])]), title="set_$_a_$.yaml")["png"]


# The folder


def test_a_folder_goes_on_with_its_own_question_only(tmp_path):
    folder, question = ProxyFolder(tmp_path / "new"), {"data": "a", "epochs": 3}
    folder.check(question)
    assert folder.load_members() is None
    members = [MEMBERS[0], Member("wide", NETWORKS[1], None, 4.25)]
    folder.begin(question, members)
    assert folder.load_members() == members
    folder.check(question)
    with pytest.raises(OutputError, match=r"holds a campaign with other epochs \(3 -> 4\); expected another --out"):
        folder.check({"data": "a", "epochs": 4})
    folder.structure(NETWORKS[0].digest).write_bytes(folder.structure(NETWORKS[1].digest).read_bytes())
    with pytest.raises(OutputError, match=f"holds structure {NETWORKS[1].digest}; expected the one"):
        folder.load_members()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group,structure,name\nband,{0},made\n", "members.csv: cannot be read ('predicted_ms')"),
        (HEADER + "band,{0},made,fast,\n", "members.csv: cannot be read (could not convert string to float: 'fast')"),
        (HEADER, "members.csv: cannot be read (no network is listed)"),
        (None, "members.csv: cannot be read (No such file or directory)"),
    ],
)
def test_a_damaged_folder_is_a_users_error(tmp_path, content, message):
    folder = ProxyFolder(tmp_path)
    folder.begin({"data": "a"}, MEMBERS[:1])
    if content is None:
        folder.members.unlink()
    else:
        folder.members.write_text(content.format(MEMBERS[0].digest))
    with pytest.raises(OutputError, match=re.escape(message)):
        folder.load_members()


@pytest.mark.parametrize("content", ['{"slow": 3}', '{"slow": {"DIGEST": "fast"}}', '{"slow": {"DIGEST": null}}'])
def test_damaged_scores_are_named(tmp_path, content):
    folder = ProxyFolder(tmp_path)
    folder.forward_scores.write_text(content.replace("DIGEST", NETWORKS[0].digest))
    with pytest.raises(OutputError, match=r"forward_scores\.json: slow is damaged; remove the file"):
        folder.remembered("slow", lambda structure: 1.0)(NETWORKS[0])


def test_networks_that_were_timed_are_removed_and_their_journal_is_not(tmp_path):
    folder = ProxyFolder(tmp_path)
    folder.drop_exports()  # nothing was measured
    folder.measured.mkdir()
    for name in ("a.onnx", "b.onnx", "b-2.jsonl"):
        (folder.measured / name).write_text("x")
    folder.drop_exports()
    assert [path.name for path in folder.measured.iterdir()] == ["b-2.jsonl"]


@pytest.mark.parametrize("value", [1.25, math.nan, -math.inf])
def test_slow_scores_are_computed_once(tmp_path, value):
    calls = []

    def slow(structure):
        calls.append(structure.digest)
        return value

    folder = ProxyFolder(tmp_path)
    for _ in range(2):
        found = [folder.remembered("slow", slow)(structure) for structure in NETWORKS[:2]]
        assert found == pytest.approx([value] * 2, nan_ok=True)
    assert folder.remembered("other", slow)(NETWORKS[0]) == pytest.approx(value, nan_ok=True)
    assert calls == [NETWORKS[0].digest, NETWORKS[1].digest, NETWORKS[0].digest]
