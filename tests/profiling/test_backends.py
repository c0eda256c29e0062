"""Runtimes on tiny networks: layer times with the ONNX nodes they stand for, and inputs that are refused."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")

from profiling_cases import convolution, save_network, tiny_network  # noqa: E402

from maenas.cli.detector import bundled  # noqa: E402
from maenas.errors import MissingExtraError, ProfileError  # noqa: E402
from maenas.extras import openvino_core  # noqa: E402
from maenas.profiling.backends import BACKENDS, LayerTime, open_backend, pytorch  # noqa: E402
from maenas.profiling.backends.layers import complete_sources  # noqa: E402
from maenas.profiling.backends.model_file import Node, input_shape, random_images, read_model_file  # noqa: E402
from maenas.profiling.backends.reference import write_reference  # noqa: E402

NAMES = {"first", "relu", "second", "gate", "silu", "third", "add", "pool"}
OUTPUTS = {"first_out", "relu_out", "second_out", "gate_out", "silu_out", "third_out", "add_out", "pool_out"}


@pytest.fixture(params=["openvino", "onnxruntime", "torch-cpu"])
def backend(request):
    pytest.importorskip(request.param.partition("-")[0])
    return opened(request.param)


def opened(name, **options):
    return open_backend(name, **{"threads": 1, "bridge": bundled, **options})


def layers_of(backend, path, **options):
    with backend.entry(path, key="tiny", layers=True, **options).open() as run:
        for _ in range(3):
            run.run()
        run.discard()
        seconds = [run.run() for _ in range(10)]
        return run.layers(), seconds


@pytest.mark.export
def test_layers_stand_for_every_node(backend, tmp_path):
    layers, seconds = layers_of(backend, tiny_network(onnx, tmp_path / "tiny.onnx"))
    assert {source for layer in layers for source in layer.sources} == NAMES
    assert len({layer.name for layer in layers}) == len(layers)
    assert all(layer.ms >= 0 for layer in layers)
    assert 0 < sum(layer.ms for layer in layers) < 3000 * max(seconds)
    by_source = {source: layer for layer in layers for source in layer.sources}
    assert "silu" in by_source["gate"].sources
    # Torch fuses nothing else.
    fused = backend.name != "torch-cpu"
    assert ("third" in by_source["add"].sources) is fused
    assert ("first" in by_source["relu"].sources) is fused


@pytest.mark.export
def test_edges_lead_from_the_last_layer_to_the_first(backend, tmp_path):
    layers, _ = layers_of(backend, tiny_network(onnx, tmp_path / "tiny.onnx"))
    by_name = {layer.name: layer for layer in layers}
    fed = {name for layer in layers for name in layer.inputs}
    reached, todo = set(), [layer.name for layer in layers if layer.name not in fed]
    assert len(todo) == 1
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo.extend(by_name[name].inputs)
    assert reached == set(by_name)


@pytest.mark.export
def test_nameless_nodes_are_called_after_their_outputs(backend, tmp_path):
    layers, _ = layers_of(backend, tiny_network(onnx, tmp_path / "tiny.onnx", named=False))
    assert {source for layer in layers for source in layer.sources} == OUTPUTS


@pytest.mark.export
def test_without_layers_there_are_none(backend, tmp_path):
    with backend.entry(tiny_network(onnx, tmp_path / "tiny.onnx"), key="tiny", layers=False).open() as run:
        assert run.run() > 0
        assert run.layers() is None


@pytest.mark.export
def test_layers_are_of_the_runs_since_the_last_call(tmp_path):
    pytest.importorskip("openvino")
    backend = open_backend("openvino", threads=1)
    with backend.entry(tiny_network(onnx, tmp_path / "tiny.onnx"), key="tiny", layers=True).open() as run:
        run.run()
        assert run.layers()
        assert run.layers() == ()
        run.run()
        assert run.layers()


@pytest.mark.export
def test_slow_first_runs_leave_openvinos_counters(tmp_path):
    """The counters are means since compilation: two runs of 100 us, then two of 21.5, have a mean of 60."""
    pytest.importorskip("openvino")
    backend = open_backend("openvino", threads=1)
    with backend.entry(tiny_network(onnx, tmp_path / "tiny.onnx"), key="tiny", layers=True).open() as run:
        run.run()
        real = [info for info in run.request.profiling_info if info.status.name == "EXECUTED"]

        def counters(mean_us):
            status, time = SimpleNamespace(name="EXECUTED"), timedelta(microseconds=mean_us)
            found = [SimpleNamespace(node_name=info.node_name, real_time=time, status=status) for info in real]
            return SimpleNamespace(profiling_info=found)

        run.seconds[:] = [0.5, 0.5]
        run.request = counters(100)
        run.discard()
        run.seconds += [0.001, 0.001]
        run.request = counters(60)
        # Half a microsecond is added to every mean: (4 * 60.5 - 2 * 100.5) / 2.
        assert [layer.ms for layer in run.layers()] == pytest.approx([0.0205] * len(real))


@pytest.mark.export
def test_free_axes_take_batch_and_size(tmp_path, backend):
    path = tiny_network(onnx, tmp_path / "tiny.onnx", dims=("N", 3, "H", "W"))
    wide = opened(backend.name, batch=2)
    layers, _ = layers_of(wide, path, image_size=(64, 96))
    assert layers
    with pytest.raises(ProfileError, match=r"tiny\.onnx: input images is Nx3xHxW, its size is free; expected an image"):
        wide.entry(path, key="tiny", layers=False)


@pytest.mark.export
def test_the_reference_runs_and_is_the_same_file_each_time(backend, tmp_path):
    write_reference(tmp_path / "a.onnx")
    write_reference(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    with backend.entry(tmp_path / "a.onnx", key="reference", layers=False).open() as run:
        assert run.run() > 0


@pytest.mark.export
def test_a_backend_says_what_it_is(backend):
    assert backend.version[0].isdigit()
    assert backend.device_name
    assert (backend.threads, backend.batch, backend.precision, backend.has_layer_times) == (1, 1, "fp32", True)
    assert not backend.accelerator


@pytest.mark.export
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_precision_that_would_run_as_fp32_is_refused(precision, monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ProfileError, match=f"precision is {precision}, but ONNX Runtime computes in fp32 on CPUs"):
        opened("onnxruntime", precision=precision)
    pytest.importorskip("openvino")
    if precision.upper() in openvino_core(purpose="a test").get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert opened("openvino", precision=precision).precision == precision
    else:
        with pytest.raises(
            ProfileError, match=rf"precision is {precision}, but OpenVINO computes in .*FP32.*; expected fp32"
        ):
            opened("openvino", precision=precision)
    pytest.importorskip("torch")
    for instructions, fits in ((["avx2"], False), (["avx512_fp16", "avx512_bf16"], True)):
        monkeypatch.setattr(pytorch, "describe_host", lambda found=instructions: {"isa": found})
        if fits:
            assert opened("torch-cpu", precision=precision).precision == precision
        else:
            with pytest.raises(ProfileError, match=rf"precision is {precision}, but this CPU has none of .*avx512_"):
                opened("torch-cpu", precision=precision)


@pytest.mark.export
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["openvino", "torch-cpu"])
def test_a_precision_that_is_offered_is_the_one_that_runs(name, precision, tmp_path):
    pytest.importorskip(name.partition("-")[0])
    try:
        backend = opened(name, precision=precision)
    except ProfileError as refused:
        pytest.skip(str(refused))
    write_reference(tmp_path / "reference.onnx")
    # Opening asks the runtime what it runs, and refuses another precision.
    layers, _ = layers_of(backend, tmp_path / "reference.onnx")
    assert layers


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trt", {}, "backend is 'trt'; expected one of openvino, onnxruntime, tensorrt, torch-cpu, torch-cuda, "),
        ("openvino", {"threads": 0}, "threads is 0; expected 1 or more"),
        ("openvino", {"batch": 0}, "batch is 0; expected 1 or more"),
        ("openvino", {"precision": "int4"}, "precision is 'int4'; expected one of fp32, fp16, bf16, int8"),
        ("torch-cpu", {"precision": "int8"}, "precision is int8, but torch-cpu runs no quantised files"),
        ("torch-cpu", {"bridge": None}, "backend torch-cpu needs the package detector; expected a call from"),
    ],
)
def test_settings_are_checked(name, options, message):
    with pytest.raises(ProfileError, match=message):
        opened(name, **options)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_missing_runtime_says_how_to_install_it(name, monkeypatch):
    import sys

    package = name.partition("-")[0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}"):
        opened(name)


def test_unsuitable_files_are_refused(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(ProfileError, match=r"net\.onnx: no such file"):
        read_model_file(path)
    for content in (b"", b"\x80\x04pickle", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(ProfileError, match=r"net\.onnx: "):
            read_model_file(path)
    node, constants = convolution(onnx, "conv", "images", 3, 8)
    save_network(onnx, path, [node], constants, output="conv_out", dims=(3, 32, 32))
    with pytest.raises(ProfileError, match=r"input images has 3 axes \(3x32x32\); expected 4"):
        read_model_file(path)
    save_network(onnx, path, [node], constants, output="conv_out", element=onnx.TensorProto.UINT8)
    with pytest.raises(ProfileError, match="input images is of type uint8; expected float32 or float16"):
        read_model_file(path)
    model = onnx.load(tiny_network(onnx, path))
    model.graph.input.append(onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, [1]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ProfileError, match=r"has 2 inputs \(images, scale\); expected one"):
        read_model_file(path)


def test_batch_and_size_must_fit_a_fixed_file(tmp_path):
    model = read_model_file(tiny_network(onnx, tmp_path / "tiny.onnx"))
    assert input_shape(model, batch=1, image_size=None) == (1, 3, 32, 32)
    with pytest.raises(ProfileError, match=r"images is 1x3x32x32, but the batch asked for is 4; expected 1"):
        input_shape(model, batch=4, image_size=None)
    with pytest.raises(ProfileError, match="the image width asked for is 64; expected 32"):
        input_shape(model, batch=1, image_size=(32, 64))


def test_images_are_seeded_and_normal():
    images = random_images((1, 3, 8, 8), "float32")
    assert images.dtype == np.float32
    assert np.array_equal(images, random_images((1, 3, 8, 8), "float32"))
    assert images.max() <= 255 and images[images > 0].min() > 1e-3


def node(name, op_type, *inputs):
    return Node(name, op_type, inputs, (f"{name}.out",))


def completed(layers, nodes):
    return [layer.sources for layer in complete_sources([LayerTime(*layer, 1.0) for layer in layers], nodes)]


def test_a_folded_normalisation_brings_its_convolution_along():
    nodes = [node("a", "Relu", "x"), node("b", "Conv", "a.out"), node("c", "BatchNormalization", "b.out")]
    layers = [("1", "Relu", ("a",), ()), ("2", "Conv", ("c",), ("1",))]
    assert completed(layers, nodes) == [("a",), ("b", "c")]


def test_an_activation_goes_with_its_convolution_and_a_gate_with_its_product():
    nodes = [
        node("conv", "Conv", "x"),
        node("relu", "Relu", "conv.out"),
        node("next", "Conv", "relu.out"),
        node("gate", "Sigmoid", "next.out"),
        node("mul", "Mul", "next.out", "gate.out"),
    ]
    layers = [("1", "Conv", ("conv",), ()), ("2", "Conv", ("next",), ("1",)), ("3", "QuickGelu", ("mul",), ("2",))]
    assert completed(layers, nodes) == [("conv", "relu"), ("next",), ("gate", "mul")]


def test_slices_of_the_images_go_with_what_they_feed():
    nodes = [
        node("even", "Slice", "x"),
        node("odd", "Slice", "x"),
        node("both", "Concat", "even.out", "odd.out"),
        node("value", "Constant"),
    ]
    assert completed([("1", "Gather", ("both",), ())], nodes) == [("even", "odd", "both")]


def test_a_node_may_stand_in_two_layers():
    nodes = [node("conv", "Conv", "x"), node("relu", "Relu", "conv.out")]
    layers = [("1", "Convolution", ("conv",), ()), ("2", "Subgraph", ("conv", "relu"), ("1",))]
    assert completed(layers, nodes) == [("conv",), ("conv", "relu")]


def test_a_node_in_the_same_microsecond_as_its_run(tmp_path):
    """Events are written as they end, so the run's own comes last; two runs, the first of which is left out."""
    from maenas.profiling.backends.onnxruntime import read_profile

    path = tiny_network(onnx, tmp_path / "tiny.onnx")
    events = []
    for start, factor in ((0, 9), (1000, 1)):
        events += [
            {"cat": "Node", "ph": "X", "ts": start, "dur": 10 * factor, "name": "first_kernel_time"},
            {"cat": "Node", "ph": "X", "ts": start + 100, "dur": 20 * factor, "name": "second_kernel_time"},
            {"cat": "Node", "ph": "X", "ts": start + 101, "dur": 7, "name": "inside_a_loop_kernel_time"},
            {"cat": "Session", "ph": "X", "ts": start, "dur": 200, "name": "model_run"},
        ]
    layers = read_profile(events, onnx.load(path).graph, read_model_file(path), skip=1)
    assert [(layer.name, layer.ms) for layer in layers] == [("first", 0.01), ("second", 0.02)]
    with pytest.raises(ProfileError, match="wrote 2 profiled runs; expected more than 2"):
        read_profile(events, onnx.load(path).graph, read_model_file(path), skip=2)
