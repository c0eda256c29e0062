"""From a plan to a table, on a made-up device; the plan and the fit on their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("sklearn")
pytest.importorskip("psutil")

from made_up import FIXED_MS, SCALE, UNDISTURBED, MadeUp

from maenas.budgets import Budget
from maenas.cli.main import main
from maenas.errors import OutputError, ProfileError
from maenas.latency.table import load_table, validate
from maenas.latency.table_networks import errors_of, read_networks
from maenas.profiling import device as device_module
from maenas.profiling import profile as profile_module
from maenas.profiling.campaign import LIGHT, Sizes, plan_networks
from maenas.profiling.device import LocalDevice
from maenas.profiling.fit import fit_line
from maenas.profiling.profile import Question, run_profile
from maenas.reach import reachable_ops
from maenas.sampling import random_structures
from maenas.search import search
from maenas.spaces import load_space

SMALL = Sizes(space_networks=5, probes=2, light_probes=1, calibration=3, test=3)


def mob(side: int = 64):
    return replace(load_space("mob"), image_size=(side, side))


def test_a_line_is_found_and_a_ratio_below_ten_networks():
    sums = np.linspace(1.0, 20.0, 12)
    line = fit_line(sums, 0.5 + 1.2 * sums)
    assert (line.fixed_ms, line.scale) == (pytest.approx(0.5), pytest.approx(1.2))
    assert line.mean_error == pytest.approx(0, abs=1e-9) and line(10.0) == pytest.approx(12.5)
    few = fit_line(sums[:5], 1.2 * sums[:5])
    assert (few.fixed_ms, few.scale) == (0.0, pytest.approx(1.2))


def test_a_negative_fixed_part_becomes_a_ratio():
    sums = np.linspace(1.0, 20.0, 12)
    line = fit_line(sums, 1.2 * sums - 0.4)
    assert line.fixed_ms == 0.0 and 1.0 < line.scale < 1.2


def test_errors_are_of_networks_left_out():
    sums, measured = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0])
    line = fit_line(sums, measured)
    # By hand: the ratio of two networks is (r1 + r2) / (r1^2 + r2^2) with r = sum / measured; left out in turn.
    by_hand = [(0.5 + 1) / (0.25 + 1) * 1 - 1, (0.5 + 1) / (0.25 + 1) * 1 - 1, 1.0 * 0.5 - 1]
    assert line.mean_error == pytest.approx(np.abs(by_hand).mean())
    with pytest.raises(ProfileError, match="2 networks are there for calibration; expected at least 3"):
        fit_line(sums[:2], measured[:2])


def test_a_plan_is_the_same_each_time_and_its_roles_do_not_meet(tmp_path: Path):
    spaces = (mob(), load_space("res"))
    first, again = (plan_networks(spaces, Sizes(), seed=3, folder=tmp_path) for _ in range(2))
    assert first == again
    assert len({network.key for network in first}) == len(first)
    for role, count in (("kernels", 18 + 8 + 8), ("calibration", 12), ("test", 12)):
        assert sum(network.role == role for network in first) == count
    groups = [network.group for network in first if network.role == "test"]
    assert groups.count("mob") == groups.count("res") == 6
    other = plan_networks(spaces, Sizes(), seed=4, folder=tmp_path)
    drawn = {network.key for network in other if network.group not in ("probe", LIGHT)}
    assert drawn.isdisjoint(network.key for network in first)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory):
    """Exporting is the slow part, so both profiles share the files."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from maenas.cli.detector import exporter

    folder, export = tmp_path_factory.mktemp("exports"), exporter(seed=0)

    def cached(structure, path: Path) -> None:
        kept = folder / f"{structure.digest}.onnx"
        if not kept.exists():
            export(structure, kept)
        path.write_bytes(kept.read_bytes())

    return cached


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that the made-up device was asked to run."""
    opened: list[str] = []
    monkeypatch.setattr(profile_module, "open_backend", lambda name, **settings: MadeUp(opened))
    return opened


def question(**changes) -> Question:
    return replace(Question((mob(),), "openvino", 1, "fp32", SMALL, UNDISTURBED), **changes)


@pytest.mark.slow
def test_a_made_up_device_is_profiled_resumed_and_searched_with(
    tmp_path: Path, exports, device: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, fitted = run_profile(question(), target=tmp_path / "one", work=tmp_path / "work", export=exports)
    assert validate(folder) == []
    table = load_table(folder)
    assert (table.provenance, table.backend, table.threads) == ("measured", "openvino", 1)
    assert table.spaces == ("mob 64x64, 80 classes",)
    assert table.num_rows == len(reachable_ops(mob()))
    # Layers of networks are known to the last digit, and networks are a line of their sum: little may be left.
    assert fitted.unassigned == 0.0
    assert errors_of([row for row in read_networks(folder / "networks.csv") if row.role == "test"]).mean_abs < 0.08
    assert fitted.line.scale == pytest.approx(SCALE, rel=0.2) and fitted.line.fixed_ms <= FIXED_MS

    # The same timings give the same table, and nothing is measured again.
    runs = len(device)
    again, _ = run_profile(question(), target=tmp_path / "two" / "one", work=tmp_path / "work", export=exports)
    assert len(device) == runs
    for name in ("table.json", "rows.csv", "samples.csv", "networks.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()

    middle = sorted(result.predicted_ms for result in fitted.results if result.network.group == "mob")[5]
    answer = search(mob(), budgets=[Budget("latency_ms", middle)], device=folder, extrapolate=True, top_k=1)
    assert answer.best.prediction is not None and answer.best.prediction.latency_ms <= middle

    monkeypatch.setattr(device_module, "open_backend", lambda name, **settings: MadeUp(device))
    asked = ["search", "--block", "mob", "--image-size", "64", "--device", str(folder), "--budget", f"{middle:.4f}ms"]
    options = [
        "--measure",
        "--force",
        "--top-k",
        "2",
        "--allow-extrapolation",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    assert main([*asked, *options]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert 0.9 * middle <= measured["measured_ms"] <= middle and measured["budget_ms"] == pytest.approx(
        middle, abs=1e-4
    )
    assert json.loads((tmp_path / "run" / "search.json").read_text(encoding="utf-8"))["measured"] == measured

    with pytest.raises(OutputError, match="exists already; use force"):
        run_profile(question(), target=tmp_path / "one", work=tmp_path / "work", export=exports)
    with pytest.raises(ProfileError, match="holds the measurements of another profile \\(other settings\\)"):
        run_profile(
            question(settings=replace(UNDISTURBED, seed=1)),
            target=tmp_path / "three",
            work=tmp_path / "work",
            export=exports,
        )


@pytest.mark.slow
def test_interrupted_anywhere_a_profile_ends_with_the_same_table(
    tmp_path: Path, exports, device: list[str], monkeypatch: pytest.MonkeyPatch
):
    sizes = Sizes(space_networks=3, probes=1, light_probes=0, calibration=3, test=0)
    asked = question(sizes=sizes)
    whole, _ = run_profile(asked, target=tmp_path / "a" / "t", work=tmp_path / "whole", export=exports)
    assert device

    class Stop(BaseException):
        pass

    left = 0  # calls that are still to come, the one that stops included

    def export(structure, path: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            path.with_suffix(".part").write_bytes(b"half a file")
            raise Stop
        exports(structure, path)

    class Counted(MadeUp):
        def entry(self, onnx_path: Path, *, key: str, layers: bool, image_size=None):
            nonlocal left
            left -= 1
            return super().entry(onnx_path, key=key, layers=layers, image_size=image_size)

    class Broken(list):
        def append(self, key):
            nonlocal left
            left -= 1
            if left == 0:
                raise Stop
            super().append(key)

    monkeypatch.setattr(profile_module, "open_backend", lambda name, **settings: Counted(Broken()))
    target, stops = tmp_path / "b" / "t", 0
    for calls in (1, 4, 19, 9, 10, 12, 12):
        left = calls
        with pytest.raises(Stop):
            run_profile(asked, target=target, work=tmp_path / "work", export=export)
        stops += 1
        assert not target.exists()
    left = -1
    resumed, _ = run_profile(asked, target=target, work=tmp_path / "work", export=export)
    assert stops == 7
    for name in ("rows.csv", "samples.csv", "networks.csv"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_table_of_an_accelerator_has_its_name_and_no_threads(
    tmp_path: Path, exports, monkeypatch: pytest.MonkeyPatch
):
    gpu = MadeUp([], name="torch-cuda", accelerator=True, device_name="a GPU")
    monkeypatch.setattr(profile_module, "open_backend", lambda name, **settings: gpu)
    sizes = Sizes(space_networks=3, probes=1, light_probes=0, calibration=3, test=0)
    asked = question(sizes=sizes, backend="torch-cuda")
    folder, _ = run_profile(asked, target=tmp_path / "gpu", work=tmp_path / "work", export=exports)
    table = load_table(folder)
    assert (table.device, table.threads, table.backend) == ("a GPU", None, "torch-cuda")
    assert table.host is not None and table.host["pinned_cores"] == []

    structure = next(iter(random_structures(mob(), 1, seed=0)))
    local = LocalDevice(table, tmp_path / "measured", exports, UNDISTURBED)
    monkeypatch.setattr(device_module, "open_backend", lambda name, **settings: gpu)
    assert local.time([structure], label="one")[0].ms_p25 > 0
    other = replace(gpu, device_name="another GPU")
    monkeypatch.setattr(device_module, "open_backend", lambda name, **settings: other)
    with pytest.raises(ProfileError, match="table gpu is of a GPU, this is another GPU; expected the same"):
        local.time([structure], label="one")


def test_a_missing_foreign_file_is_named(tmp_path: Path, device: list[str]):
    asked = question(foreign=(tmp_path / "net.onnx",))
    with pytest.raises(ProfileError, match=r"net.onnx: cannot be read .*expected an ONNX file"):
        run_profile(asked, target=tmp_path / "t", work=tmp_path / "w", export=lambda structure, path: None)


def test_only_a_table_of_this_machine_is_measured_with(tmp_path: Path):
    with pytest.raises(ProfileError, match="t4-tensorrt-fp16 is calibrated; measuring needs a table of this machine"):
        LocalDevice(load_table("t4"), tmp_path, lambda structure, path: None, UNDISTURBED)


def test_the_record_of_a_question_is_plain_json():
    assert json.loads(json.dumps(question().to_dict()))["backend"] == "openvino"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "../x"], "--name is '../x'; expected a plain name"),
        (["--name", "local"], "table name 'local' is not usable: it stands for this machine's own table"),
        (["--name", "x", "--threads", "100000"], "threads is 100000; expected 1 to"),
        (["--name", "x", "--out", "file/tables"], "file/tables/x: cannot be written"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys, words, message):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAENAS_TABLES", str(tmp_path / "tables"))
    (tmp_path / "file").touch()
    assert main(["profile", "--backend", "onnxruntime", *words]) == 2
    assert message in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
