"""Batch norm over processes: two processes with a part each against one with the whole batch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")

import torch.distributed as dist  # noqa: E402
from process_cases import learn, make_batch, make_network, normalise_in_one_of_two  # noqa: E402
from torch import multiprocessing  # noqa: E402

from detector.sync_norm import SyncNorm2d, synchronise_norms  # noqa: E402


def test_two_processes_equal_one(tmp_path):
    results = multiprocessing.Manager().dict()
    arguments = (str(tmp_path / "meeting"), results)
    multiprocessing.start_processes(normalise_in_one_of_two, arguments, nprocs=2, start_method="spawn")
    expected = learn(make_network().double(), make_batch().double())
    first, second = ({name: torch.from_numpy(value) for name, value in results[rank].items()} for rank in (0, 1))
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"):
        torch.testing.assert_close(first[name] + second[name], expected[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat([first["batch"], second["batch"]]), expected["batch"], rtol=1e-9, atol=1e-9)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(first[name], expected[name], rtol=1e-9, atol=1e-9)
        assert torch.equal(first[name], second[name])
    assert first["1.num_batches_tracked"] == 1


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_is_plain_batch_norm(alone):
    network = make_network()
    synchronise_norms(network, None)
    assert isinstance(network[1], SyncNorm2d) and list(network.state_dict()) == list(make_network().state_dict())
    found, expected = learn(network, make_batch()), learn(make_network(), make_batch())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_differences(alone):
    norm = SyncNorm2d(2).double()
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, (x,)), (x, norm.weight, norm.bias)
    )


def test_in_evaluation_it_uses_its_statistics():
    network = make_network().eval()
    expected = network(make_batch())
    synchronise_norms(network, None)
    assert torch.equal(network(make_batch()), expected)
