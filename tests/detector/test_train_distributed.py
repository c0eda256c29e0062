"""Two processes against one: same batches, same statistics, same weights but for rounding."""

from __future__ import annotations

import csv

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")

from process_cases import CONFIG, assert_close, run_two  # noqa: E402
from training_cases import fast_config, rectangles, tiny_structure  # noqa: E402

from detector.data.source import load_data  # noqa: E402
from detector.distributed import SINGLE, joined_processes, pick_device  # noqa: E402
from detector.errors import ConfigError  # noqa: E402
from detector.train import train  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rectangles")
    rectangles(folder)
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def single(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("single") / "run"
    train(fast_config(**CONFIG), tiny_structure(), load_data(data), out=out)
    return out


@pytest.mark.slow
def test_two_processes_equal_one(data, single, tmp_path):
    run_two(data, tmp_path / "two")
    assert_close(tmp_path / "two" / "last.safetensors", single / "last.safetensors")
    mine, theirs = ([*csv.DictReader((out / "metrics.csv").open())] for out in (tmp_path / "two", single))
    for row, expected in zip(mine, theirs, strict=True):
        for name in ("loss", "quality_focal", "giou", "dfl", "positives_per_image", "gradient_norm"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4), name


@pytest.mark.slow
def test_a_stop_reaches_both_and_the_run_goes_on(data, single, tmp_path):
    """Only one process gets the signal; both end after the same step, and one process goes on alone."""
    out = tmp_path / "two"
    run_two(data, out, stop=True)
    result = train(fast_config(**CONFIG), tiny_structure(), load_data(data), out=out, resume=True)
    assert result.ended_by == "completed" and result.iterations == 4
    assert_close(out / "last.safetensors", single / "last.safetensors")


def test_without_torchrun_there_is_one_process():
    with joined_processes({}, device="cpu") as processes:
        assert processes is SINGLE and processes.is_first
        assert processes.sum([1, 2.5]) == [1.0, 2.5] and processes.from_first("x") == "x"
        value = torch.ones(2)
        assert processes.total(value) is value
    with joined_processes({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, device="cpu") as processes:
        assert processes is SINGLE


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        (
            {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"},
            "cpu",
            "WORLD_SIZE=two, .*; expected numbers",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "cpu", "LOCAL_RANK=None; expected numbers in all three"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "mps", "device is 'mps' with 2 processes"),
        ({"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98"}, "cuda", "process 98 of this machine has no GPU"),
    ],
)
def test_a_broken_environment_is_named(environment, device, message):
    with pytest.raises(ConfigError, match=message), joined_processes(environment, device=device):
        pass


def test_devices_are_checked():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="device is 'cuda:77'; cannot be used"):
        pick_device("cuda:77")


def test_batches_must_be_shared_evenly(data, tmp_path):
    from detector.distributed import Processes

    with pytest.raises(ConfigError, match="expected a multiple of the number of processes, 3"):
        train(
            fast_config(train__sync_norm=False),
            tiny_structure(),
            load_data(data),
            out=tmp_path / "run",
            processes=Processes(0, 3, 0),
        )
