"""Torch as a timed runtime: marks between calls, compiled networks, and what it refuses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from detector.errors import InputError  # noqa: E402
from detector.torch_timing import TorchAdapter, open_adapter  # noqa: E402
from maenas.profiling.probes import build_probe  # noqa: E402

pytestmark = pytest.mark.export

SHAPE = (1, 3, 64, 64)
IMAGES = np.random.default_rng(0).uniform(0, 255, SHAPE).astype(np.float32)


def probe(seed: int = 3) -> bytes:
    return build_probe(seed, image_side=64).model().SerializeToString()


def loaded(adapter: TorchAdapter, *, layers: bool = True):
    return adapter.load(probe(), IMAGES, where="probe.onnx", layers=layers)


def cpu(**changes) -> TorchAdapter:
    return open_adapter(**{"device": "cpu", "compiled": False, "precision": "fp32", "threads": 1, **changes})


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_call_is_timed_once_and_in_order(channels_last: bool):
    network = loaded(cpu(channels_last=channels_last))
    network.run()
    ms = network.profile()
    assert len(ms) == len(network.calls) > 20 and all(value >= 0 for value in ms)
    names = [call.name for call in network.calls]
    assert len(set(names)) == len(names)
    for index, call in enumerate(network.calls):
        # Fed by earlier calls, or by the images.
        assert set(call.inputs) <= set(names[:index])
    assert sum(not call.inputs for call in network.calls) <= 4
    nodes = {node.name for node in build_probe(3, image_side=64).model().graph.node}
    assert {source for call in network.calls for source in call.sources} == nodes
    assert network.profile() != ms


def test_marks_share_the_weights_and_change_no_result():
    network = loaded(cpu())
    images = torch.from_numpy(IMAGES)
    network._marks.start()
    with torch.inference_mode():
        for plain, marked in zip(network._module(images), network._marked(images), strict=True):
            assert torch.equal(plain, marked)
    plain_weights = {value.data_ptr() for value in network._module.buffers()}
    assert plain_weights == {value.data_ptr() for value in network._marked.buffers()}


def test_without_layers_there_are_no_calls():
    network = loaded(cpu(), layers=False)
    network.run()
    assert network.calls == ()


def test_the_number_of_threads_is_set():
    before = torch.get_num_threads()
    try:
        loaded(cpu(threads=2), layers=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_cuda_device_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match="torch finds no CUDA device; expected one"):
        open_adapter(device="cuda", compiled=False, precision="fp32", threads=1)


def test_results_of_another_precision_are_refused(monkeypatch: pytest.MonkeyPatch):
    wrong = (torch.zeros(1, dtype=torch.float64),)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: lambda images: wrong)
    with pytest.raises(InputError, match=r"probe\.onnx: torch returns torch\.float64; expected torch\.float32$"):
        loaded(cpu(compiled=True), layers=False)


def test_a_cast_to_float32_is_one_to_the_networks_own_precision():
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        [cast],
        "cast",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, SHAPE)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, SHAPE)],
    )
    content = onnx.helper.make_model(graph, ir_version=8).SerializeToString()
    network = TorchAdapter("cpu", False, "bf16", 1, False).load(content, IMAGES, where="cast.onnx", layers=False)
    with torch.inference_mode():
        assert [output.dtype for output in network._module(network._given())] == [torch.bfloat16]


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch):
    def fail(module, dynamic):
        def run(images):
            raise RuntimeError("no C++ compiler found\nmore lines")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(InputError, match=r"probe\.onnx: torch\.compile fails in fp32 \(no C\+\+ compiler found\)$"):
        loaded(cpu(compiled=True), layers=False)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_results():
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler is installed; torch.compile needs one on a CPU")
    eager, compiled = loaded(cpu(), layers=False), loaded(cpu(compiled=True), layers=False)
    compiled.run()
    images = torch.from_numpy(IMAGES)
    with torch.inference_mode():
        for wanted, found in zip(eager._module(images), compiled._module(images), strict=True):
            assert torch.allclose(wanted, found, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    compiled.close()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_cuda_device_times_its_calls(precision: str):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network = loaded(open_adapter(device="cuda", compiled=False, precision=precision, threads=1))
    network.run()
    ms = network.profile()
    assert len(ms) == len(network.calls) and all(value >= 0 for value in ms) and sum(ms) > 0
    with torch.inference_mode():
        found = network._module(network._given())
        wanted = loaded(cpu())._module(torch.from_numpy(IMAGES))
    tolerance = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 2e-1}[precision]
    for own, expected in zip(found, wanted, strict=True):
        assert (own.float().cpu() - expected).abs().max() <= tolerance * float(expected.abs().max())
    network.close()
