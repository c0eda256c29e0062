"""`maenas eval-proxy` end to end: options, drawing, files, guards, and going on after a kill."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")

from cli_cases import answer  # noqa: E402
from proxy_cases import network, write_result  # noqa: E402
from search_cases import content_of, made_table, write_space  # noqa: E402
from training_cases import assert_same_weights, write_rectangles  # noqa: E402

from detector import forward_proxies  # noqa: E402
from maenas.cli.main import main  # noqa: E402
from maenas.journey_process import owned  # noqa: E402
from maenas.structure import Head, load_structure, save_structure  # noqa: E402

DEPTHS = ((1, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 2))

FAILS = "train.batch_size=7"
"""A run with this setting ends without a result."""

OWN = """
import math

def broken(structure):
    return math.nan if structure.backbone.stages[1].depth == 2 else 1.0

def flat(structure):
    return 5.0

def units(structure):
    return float(sum(stage.depth for stage in structure.backbone.stages))
"""


class Asked(list):
    """Training runs that were asked for, and the digests of networks whose runs fail."""

    def __init__(self):
        super().__init__()
        self.failing = set()


@pytest.fixture
def structures(tmp_path):
    """Files of three networks."""
    for place, depths in enumerate(DEPTHS):
        structure = replace(network(*depths), name=f"n{place}", head=Head(6, 4, 3))
        save_structure(structure, tmp_path / f"n{place}.json")
    return [f"n{place}.json" for place in range(len(DEPTHS))]


@pytest.fixture
def maenas(tmp_path, monkeypatch, capsys):
    """Run the verb beside a small data set: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    write_rectangles(Path("data"), num_train=2, num_val=1)

    def run(*arguments):
        return answer(capsys, "eval-proxy", *arguments)

    return run


@pytest.fixture
def trained(monkeypatch):
    """Training takes no time here, and networks of more units end with a higher AP; the runs that were asked for."""
    asked = Asked()

    def run_all(runs, *, is_locked, cores, progress):
        for run in runs:
            asked.append(run)
            units = sum(stage.depth for stage in load_structure(run.arguments[0]).backbone.stages)
            seed = int(run.arguments[run.arguments.index("--seed") + 1])
            digest = Path(run.arguments[0]).stem
            if (FAILS not in run.arguments or seed == 0) and digest not in asked.failing:
                write_result(run.folder, {4: 0.30, 5: 0.35}.get(units, 0.50) + 0.01 * seed)
        return {run.name: "it diverged" for run in runs if not run.finished}

    quick = forward_proxies.ProxySettings(side=64, batch_size=4, draws=1)
    for name, function in list(forward_proxies.FORWARD_PROXIES.items()):
        monkeypatch.setitem(
            forward_proxies.FORWARD_PROXIES,
            name,
            lambda structure, function=function: function(structure, settings=quick),
        )
    monkeypatch.setattr("maenas.proxy_runs.run_all", run_all)
    return asked


def test_given_structures(maenas, structures, trained, tmp_path, monkeypatch):
    (tmp_path / "own_scores_a.py").write_text(OWN)
    own = [word for name in ("broken", "flat", "units") for word in ("--score", f"own_scores_a:{name}")]
    options = (
        *structures,
        "--data",
        "data/data.yaml",
        "--epochs",
        20,
        "--set",
        "train.batch_size=4",
        "--image-size",
        96,
        *own,
    )
    code, out, err = maenas(*options)
    assert code == 0, err
    assert [run.name[-1] for run in trained] == ["0"] * 3 + ["1"] * 3, "seed by seed"
    words = trained[0].arguments
    assert words[1:7] == ("--data", "data/data.yaml", "--recipe", "small-data", "--epochs", "20")
    assert words[7:] == ("--seed", "0", "--set", "eval.samples=0", "log.curves=false", "train.batch_size=4")
    for expected in (
        "group given: 3 networks, best first",
        "madnas-reference: equal to madnas",
        "own_scores_a:broken: not usable: NaN for 1 of 3",
        "own_scores_a:flat: not usable: the same value, 5, for all 3",
        "seed noise: 0.00 AP per run",
        "written: runs/eval-proxy/points.csv",
    ):
        assert expected in out, expected
    folder = tmp_path / "runs" / "eval-proxy"
    rows = rows_of(folder / "points.csv")
    assert len(rows) == 6 and {row["label"] for row in rows} == {"A", "B", "C"}
    assert {float(row["ap"]) for row in rows if row["label"] == "A"} == {0.50, 0.51}
    record = json.loads((folder / "proxy.json").read_text())
    (group,) = record["groups"]
    scores = {score["name"]: score for score in group["scores"]}
    assert (
        scores["own_scores_a:units"]["kendall"]["value"] == 1.0
        and scores["own_scores_a:units"]["regret"]["value"] == 0.0
    )
    assert scores["own_scores_a:broken"]["problem"] == "not usable: NaN for 1 of 3"
    assert scores["own_scores_a:flat"]["problem"] == "not usable: the same value, 5, for all 3"
    assert scores["latency"]["problem"] == "not usable: NaN for 3 of 3 (no latency table was given (--device))"
    assert record["question"]["seeds"] == [0, 1] and (folder / "given.svg").exists() and (folder / "given.png").exists()
    structure = json.loads(next((folder / "structures").iterdir()).read_text())
    assert structure["image_size"] == [96, 96]
    # The same command again, with a third seed: what is there is not made again.
    code, out, err = maenas(*options, "--seeds", 0, 1, 2, "--json")
    assert code == 0 and json.loads(out)["groups"][0]["seeds"] == [0, 1, 2]
    code, _, err = maenas(*options[:-6], "--epochs", 24)
    assert code == 2 and "holds a campaign with other epochs (20 -> 24); expected another --out" in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_one_campaign_at_a_time_owns_a_folder(maenas, structures, trained):
    with owned(Path("out"), waiting=lambda: None):
        code, _, error = maenas(*structures, "--data", "data", "--epochs", "20", "--out", "out")
    assert code == 2 and not trained
    assert "out: another run, or a step of it, is still writing into it; expected another --out" in error


def test_a_failed_run_leaves_its_network_out(maenas, structures, trained):
    code, _, err = maenas(*structures, "--data", "data/data.yaml", "--set", FAILS)
    assert code == 2 and "group given has 0 networks with results; expected at least 3; " in err
    assert "-seed1 failed: it diverged" in err


def test_the_same_names_with_other_content_are_another_question(maenas, structures, trained, tmp_path):
    options = (*structures, "--data", "data/data.yaml", "--epochs", 20, "--set", "train.batch_size=4", "--dry-run")
    assert maenas(*options)[0] == 0
    code, _, err = maenas(*options[:-2], "train.batch_size=2", "--dry-run")
    assert code == 2 and "holds a campaign with other set " in err
    labels = next(Path("data").rglob("train.json"))
    before = labels.read_text()
    labels.write_text(before.replace('"bbox": [', '"bbox": [1, ', 1).replace('"bbox": [1, ', '"bbox": [', 1))
    assert maenas(*options)[0] == 0, "the same boxes"
    content = json.loads(before)
    content["annotations"][0]["bbox"][2] -= 1
    labels.write_text(json.dumps(content))
    code, _, err = maenas(*options)
    assert code == 2 and "holds a campaign with other annotations (" in err
    labels.write_text(before)
    save_structure(replace(load_structure("n0.json"), name="other", head=Head(6, 5, 3)), "n0.json")
    code, _, err = maenas(*options)
    assert code == 2 and "holds a campaign with other networks (" in err


def test_a_group_too_thin_to_judge_does_not_take_the_others_with_it(maenas, trained, tmp_path):
    from maenas.proxy_folder import Member, ProxyFolder

    members = [
        Member(group, replace(network(1, 1, 1, depth, width=width), head=Head(6, 4, 3)), 2.0 + depth)
        for group, width in (("band", 8), ("wide", 16))
        for depth in (1, 2, 3)
    ]
    for place, member in enumerate(members):
        save_structure(member.structure, f"m{place}.json")
    options = (*(f"m{place}.json" for place in range(6)), "--data", "data/data.yaml", "--epochs", 20, "--seeds", 1)
    assert maenas(*options, "--dry-run")[0] == 0
    folder = ProxyFolder(Path("runs/eval-proxy"))
    folder.begin(json.loads(folder.question.read_text()), members)
    folder.plot("wide", "png").write_text("of an earlier report")
    trained.failing.add(members[5].digest)
    code, out, err = maenas(*options, "--json")
    assert code == 1, err
    record = json.loads(out)
    assert [group["group"] for group in record["groups"]] == ["band"]
    assert record["failures"]["group wide"] == "group wide has 2 networks with results; expected at least 3"
    assert folder.report.exists() and folder.points.exists()
    assert folder.plot("band", "png").exists() and not folder.plot("wide", "png").exists()
    folder.members.write_text("group,structure,name,predicted_ms,measured_ms\n")
    code, _, err = maenas(*options)
    assert code == 2 and "members.csv: cannot be read (no network is listed); expected another --out" in err


@pytest.mark.slow
def test_drawn_networks(maenas, trained, tmp_path):
    def stage(out, hidden, depth):
        sides = {"min": out, "max": 2 * out, "divisor": 8}
        inner = {"min": 8, "max": hidden, "divisor": 8}
        return {"stride": 2, "out_channels": sides, "hidden_channels": inner, "depth": {"min": 1, "max": depth}}

    content = content_of("res", stages=[stage(8, 16, 2), stage(16, 24, 2), stage(24, 24, 3), stage(32, 32, 2)])
    coefficients = {"conv_ms": 0.02, "other_ms": 0.005, "ms_per_gflop": 80.0}
    made_table(tmp_path / "cpu", kind="cpu-linear", coefficients=coefficients)
    space = write_space(tmp_path, content)
    options = ("--space", space, "--device", str(tmp_path / "cpu"), "--data", "data/data.yaml", "--band", "8%")
    options += ("--budget", "2.3ms", "--structures", 3, "--wide", "2ms", "2.8ms", "--wide-structures", 3)
    code, out, err = maenas(*options, "--dry-run")
    assert code == 0, err
    assert "networks to train" in out and out.count("wide ") == 3 and not trained
    code, out, err = maenas(*options, "--json", "--seeds", 4)
    assert code == 0, err
    record = json.loads(out)
    band, wide = record["groups"]
    assert (band["group"], wide["group"]) == ("band", "wide") and band["noise_ceiling"] is None
    assert all(0.92 * 2.3 <= each["predicted_ms"] <= 2.3 for each in band["networks"])
    latencies = sorted(each["predicted_ms"] for each in wide["networks"])
    assert latencies[0] <= 2.0 and 0.92 * 2.8 <= latencies[2] <= 2.8
    assert len({each["structure"] for group in record["groups"] for each in group["networks"]}) == 6
    assert record["question"]["budget_ms"] == 2.3 and len(trained) == 6
    code, _, err = maenas(*options, "--draw-seed", 1)
    assert code == 2 and "holds a campaign with other draw seed (0 -> 1)" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either structures, or a space to draw them from"),
        (["a.json", "--block", "res"], "give either structures, or a space to draw them from"),
        (["--block", "res", "--budget", "3ms"], "needs a latency band; expected --device and --budget"),
        (["--block", "res", "--device", "t4"], "needs a latency band; expected --device and --budget"),
        (["a.json", "--budget", "3ms"], "--budget is given; expected it with a space to draw networks from"),
        (["a.json", "--structures", "5"], "--structures is given; expected it with a space to draw networks from"),
        (["a.json", "--measure"], "--measure is given; expected it with a space to draw networks from"),
        (["a.json", "--wide-structures", "5"], "--wide-structures is given; expected it with"),
        (["--block", "res", "--device", "t4", "--budget", "3ms", "--structures", "2"], "--structures is 2; expected"),
        (["a.json", "--seeds", "1", "1"], "--seeds are 1 1; expected different numbers, 0 or more"),
        (["a.json", "--band", "wide"], "--band is 'wide'; expected a percentage such as 2%"),
        (["a.json", "--draw-seed", "-1"], "--draw-seed is -1; expected 0 or more"),
        (["a.json", "--score", "madnas"], "--score is 'madnas'; expected module:function"),
        (["a.json", "--set", "train.seed=7"], "--set train.seed=7: expected --seeds"),
        (["--block", "res", "--device", "t4", "--budget", "3ms", "--wide", "5ms", "4ms"], "--wide is 5ms 4ms"),
        (["--block", "res", "--device", "t4", "--budget", "3ms", "--wide", "5ms", "frog"], "'frog'"),
        (["damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "--image-size", "100"], "--image-size: image_size[0] is 100"),
        (["damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "--train-device", "cude"], "device is 'cude'; cannot be used"),
        (["damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "--workers", "-3"], "data.workers is -3; expected"),
        (["a.json", "--cores", "9999"], "--cores are 9999; expected different ones of"),
        (["damo-yolo-t", "damo-yolo-s"], "group given has 2 structures; expected at least 3"),
        (["damo-yolo-t", "damo-yolo-s", "damo-yolo-m"], "gone: "),
        (["damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "--recipe", "smal-data"], "recipe 'smal-data' is unknown; "),
        (["damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "--set", "train.epoch=3"], "train.epoch is not a field"),
        (["damo-yolo-t", "damo-yolo-s", "damo-yolo-m", "--epochs", "0"], "train.epochs is 0; expected"),
    ],
)  # fmt: skip
def test_messages(maenas, words, message):
    code, _, err = maenas("--data", "gone", *words)
    assert code == 2 and message in err, err
    assert not Path("runs").exists(), "nothing was begun"


def rows_of(path):
    """Lines of a CSV file."""
    return list(csv.DictReader(io.StringIO(Path(path).read_text())))


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    return [
        int(word)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for word in (thread / "children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children of a process are looked up in /proc")
def test_a_killed_campaign_goes_on(maenas, structures, tmp_path):
    """Parent and child are killed while the second network trains; the same command makes what is missing."""
    assert main(["sample-data", "shapes", "--images", "16"]) == 0
    settings = ["train.batch_size=8", "schedule.warmup_epochs=0", "schedule.no_aug_epochs=1", "train.device=cpu"]
    options = [*structures, "--data", "shapes/data.yaml", "--epochs", "12", "--seeds", "0", "--workers", "0"]
    options += ["--out", "out", "--set", *settings]
    first = subprocess.Popen([sys.executable, "-m", "maenas", "eval-proxy", *options], stderr=subprocess.PIPE)
    digests: list[str] = []
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and first.poll() is None:
        if not digests and Path("out/members.csv").exists():
            digests = [row["structure"] for row in rows_of("out/members.csv")]
        log = Path(f"out/runs/{digests[1]}-seed0/metrics.csv") if digests else Path("no")
        if log.exists() and len(log.read_text().splitlines()) > 2:
            break
        time.sleep(0.05)
    (child,) = children(first.pid)
    first.kill()
    os.kill(child, signal.SIGKILL)
    first.wait()
    assert Path(f"out/runs/{digests[0]}-seed0/result.json").exists()
    assert not Path(f"out/runs/{digests[1]}-seed0/result.json").exists() and not Path("out/proxy.json").exists()
    done = Path(f"out/runs/{digests[0]}-seed0/last.safetensors").stat().st_mtime_ns
    code, out, err = maenas(*options, "--json")
    assert code == 0, err
    assert Path(f"out/runs/{digests[0]}-seed0/last.safetensors").stat().st_mtime_ns == done, "not made again"
    record = json.loads(out)
    assert record == json.loads(Path("out/proxy.json").read_text()) and not record["failures"]
    rows = rows_of("out/points.csv")
    assert [row["epochs"] for row in rows] == ["12"] * 3 and all(math.isfinite(float(row["score zen"])) for row in rows)
    # Bit for bit what a run in one go gives.
    whole = [
        "train",
        f"out/structures/{digests[1]}.json",
        "--data",
        "shapes/data.yaml",
        "--recipe",
        "small-data",
        "--epochs",
        "12",
        "--seed",
        "0",
    ]
    whole += ["--workers", "0", "--out", "whole", "--set", "eval.samples=0", "log.curves=false", *settings]
    # A process of its own, like the campaign's: this one may compute with another number of threads.
    subprocess.run([sys.executable, "-m", "maenas", *whole], check=True, capture_output=True)
    assert_same_weights(Path("whole/last.safetensors"), Path(f"out/runs/{digests[1]}-seed0/last.safetensors"))
