"""The TensorRT backend on a fake adapter and hand-written layer information: nothing here has seen a GPU."""

from __future__ import annotations

import json

import pytest

onnx = pytest.importorskip("onnx")

from profiling_cases import tiny_network  # noqa: E402

from maenas.errors import ProfileError  # noqa: E402
from maenas.profiling.backends.model_file import read_model_file  # noqa: E402
from maenas.profiling.backends.tensorrt import TensorRtBackend, read_layer_information  # noqa: E402


def tensor(name, precision, *, version=10):
    if version == 10:
        return {
            "Name": name,
            "Dimensions": [1, 16, 16, 16],
            "Format/Datatype": f"Row major linear {precision.upper()} format",
        }
    types = {"fp16": "Half", "fp32": "Float"}
    return {"Name": name, "Format": "kCHW16", "DataType": types[precision]}


def metadata(*nodes):
    return "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)


def information(precision="fp16", *, version=10, with_metadata=True):
    """The tiny network as an engine: three fused convolutions, a reformat before the pooling."""
    layers = [
        ("first + relu", "CaskConvolution", "images", "relu_out", ("first", "relu")),
        ("second + PWN(PWN(gate), silu)", "CaskConvolution", "relu_out", "silu_out", ("second", "gate", "silu")),
        ("third + add", "CaskConvolution", "silu_out", "add_out", ("third", "add")),
        ("Reformatting CopyNode for Input Tensor 0 to pool", "Reformat", "add_out", "add_out reformatted", ()),
        ("pool", "CaskPooling", "add_out reformatted", "pool_out", ("pool",)),
    ]
    content = {
        "Layers": [
            {
                "Name": name,
                "LayerType": kind,
                "Inputs": [tensor(source, precision, version=version)],
                "Outputs": [tensor(target, precision, version=version)],
                **({"Metadata": metadata(*nodes)} if with_metadata else {}),
            }
            for name, kind, source, target, nodes in layers
        ],
        "Bindings": ["images", "pool_out"],
    }
    return json.dumps(content)


class FakeEngine:
    def __init__(self, text, reports):
        self.text, self.reports = text, reports
        self.executed = self.profiled = self.closed = 0

    def layer_information(self):
        return self.text

    def execute(self, images):
        assert images.shape == (1, 3, 32, 32)
        self.executed += 1

    def profile(self, images):
        self.profiled += 1
        # Every second run is ten times as slow.
        factor = 10 if self.profiled % 2 else 1
        return [(name, ms * factor) for name, ms in self.reports]

    def close(self):
        self.closed += 1


class FakeAdapter:
    version, device_name = "10.13", "Fake GPU"

    def __init__(self, text, reports):
        self.engine = FakeEngine(text, reports)
        self.asked = []

    def build(self, model, shape, *, precision):
        self.asked.append((shape, precision))
        return self.engine


REPORTS = [
    ("first + relu", 0.1),
    ("second + PWN(PWN(gate), silu)", 0.2),
    ("third + add", 0.3),
    ("Reformatting CopyNode for Input Tensor 0 to pool", 0.04),
    ("pool", 0.05),
]


@pytest.fixture
def path(tmp_path):
    return tiny_network(onnx, tmp_path / "tiny.onnx")


def opened(path, text, *, precision="fp16", reports=REPORTS):
    adapter = FakeAdapter(text, reports)
    backend = TensorRtBackend(adapter, precision, 1, 1)
    return adapter, backend.entry(path, key="tiny", layers=True)


@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize("version", [10, 11])
def test_layers_with_sources_edges_and_times(path, version, with_metadata):
    adapter, entry = opened(path, information(version=version, with_metadata=with_metadata))
    with entry.open() as run:
        assert run.run() >= 0
        layers = run.layers()
    assert adapter.asked == [((1, 3, 32, 32), "fp16")]
    assert (adapter.engine.executed, adapter.engine.closed) == (1, 1)
    assert [layer.sources for layer in layers] == [
        ("first", "relu"),
        ("second", "gate", "silu"),
        ("third", "add"),
        (),
        ("pool",),
    ]
    assert [layer.inputs for layer in layers] == [(), *((layer.name,) for layer in layers[:-1])]
    # Four fast runs of seven: the slow ones are left out.
    slow = 10 if layers[0].ms > 0.2 else 1
    assert [layer.ms for layer in layers] == pytest.approx([slow * ms for _, ms in REPORTS], rel=0.7)


def test_untimed_layers_are_looked_through(path):
    _, entry = opened(path, information(), reports=[report for report in REPORTS if "Reformatting" not in report[0]])
    with entry.open() as run:
        layers = run.layers()
    assert layers[-1].inputs == ("third + add",)


@pytest.mark.parametrize("version", [10, 11])
def test_fp16_that_runs_as_fp32_is_refused(path, version):
    adapter, entry = opened(path, information("fp32", version=version))
    with (
        pytest.raises(
            ProfileError,
            match=r"tiny\.onnx: 3 of 3 .* in another precision in TensorRT, 'first \+ relu' for one in fp32",
        ),
        entry.open(),
    ):
        pass
    assert adapter.engine.closed == 1
    _, entry = opened(path, information("fp32", version=version), precision="fp32")
    with entry.open() as run:
        assert run.layers()


def test_names_only_and_other_texts_are_refused(path):
    model = read_model_file(path)
    with pytest.raises(ProfileError, match="layer names only; expected an engine built with details"):
        read_layer_information(json.dumps({"Layers": ["first + relu"]}), model)
    for text in ("", "[]", "{}", '{"Layers": [{}]}', '{"Layers": 3}'):
        with pytest.raises(ProfileError, match=r"tiny\.onnx: TensorRT's layer information cannot be read"):
            read_layer_information(text, model)


def test_a_profile_of_another_engine_is_refused(path):
    _, entry = opened(path, information(), reports=[("other", 1.0)])
    with entry.open() as run, pytest.raises(ProfileError, match="timed the layer 'other'"):
        run.layers()
