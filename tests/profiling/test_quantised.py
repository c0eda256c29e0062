"""Quantised networks: read as the plain ones they stand for, run in int8 or refused, and made into tables."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("psutil")

from made_up import SCALE, UNDISTURBED, MadeUp  # noqa: E402
from profiling_cases import missing_ops, tiny_network  # noqa: E402
from quantised_cases import FORMS, export, gated_ns, quantise  # noqa: E402

from maenas.budgets import Budget  # noqa: E402
from maenas.cli.main import main  # noqa: E402
from maenas.errors import LatencyTableError, ProfileError  # noqa: E402
from maenas.latency.table import load_table, validate  # noqa: E402
from maenas.latency.table_compare import differing_conditions  # noqa: E402
from maenas.latency.table_merge import merge_tables  # noqa: E402
from maenas.latency.table_networks import read_networks  # noqa: E402
from maenas.profiling import profile as profile_module  # noqa: E402
from maenas.profiling.attribute import attribute  # noqa: E402
from maenas.profiling.backends import open_backend  # noqa: E402
from maenas.profiling.backends.model_file import ModelFile, Node  # noqa: E402
from maenas.profiling.backends.precision import check_ran  # noqa: E402
from maenas.profiling.campaign import Sizes  # noqa: E402
from maenas.profiling.device import LocalDevice  # noqa: E402
from maenas.profiling.onnx_ops import read_network_ops  # noqa: E402
from maenas.profiling.onnx_quantised import plain_form  # noqa: E402
from maenas.profiling.profile import Question, run_profile  # noqa: E402
from maenas.published import load_published  # noqa: E402
from maenas.sampling import random_structures  # noqa: E402
from maenas.search import search  # noqa: E402
from maenas.spaces import load_space  # noqa: E402

FLOAT, UINT8, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT8


@pytest.fixture(scope="module", autouse=True)
def quiet_quantisers():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ns and t at 64 px, plain and in all three forms."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("quantised")
    networks = {"ns": gated_ns(), "t": replace(load_published("damo-yolo-t"), image_size=(64, 64))}
    for name, structure in networks.items():
        plain = export(structure, folder / f"{name}.onnx")
        for form in FORMS if name == "ns" else FORMS[:2]:
            quantise(plain, folder / f"{name}-{form}.onnx", form)
    return folder


@pytest.mark.export
@pytest.mark.parametrize("name", ["ns-qdq", "ns-operators", "ns-dynamic", "t-qdq", "t-operators"])
def test_a_quantised_network_is_read_as_its_plain_one(folder: Path, name: str):
    plain = read_network_ops(folder / f"{name.partition('-')[0]}.onnx")
    found = read_network_ops(folder / f"{name}.onnx")
    assert not missing_ops([each.op for each in plain.placed], found.placed)
    assert not missing_ops([each.op for each in found.placed], plain.placed)
    assert not found.unsupported and all(each.exact for each in found.placed)
    assert all(each.quantised for each in found.placed if each.op.kind == "conv")
    assert not any(each.quantised for each in plain.placed)
    # Every node of the file is in exactly one place.
    named = [*found.free, *(name for each in found.placed for name in each.nodes)]
    nodes = [node.name or node.output[0] for node in onnx.load(folder / f"{name}.onnx").graph.node]
    assert sorted(named) == sorted(nodes)


def qdq_chain(zero_points, types, *, residual=False, last="Conv"):
    """x -> conv a -> (+ x) -> conv b, each result quantised with one of the zero points."""
    make, nodes, constants = onnx.helper.make_node, [], []

    def constant(name, values, kind):
        constants.append(onnx.helper.make_tensor(name, kind, np.shape(values), np.ravel(values)))

    constant("scale", 0.5, FLOAT)
    for index, (zero, kind) in enumerate(zip(zero_points, types, strict=True)):
        constant(f"zero_{index}", zero, kind)

    def stored(tensor, index):
        nodes.append(make("QuantizeLinear", [tensor, "scale", f"zero_{index}"], [f"{tensor}_q"], name=f"{tensor}_q"))
        nodes.append(
            make("DequantizeLinear", [f"{tensor}_q", "scale", f"zero_{index}"], [f"{tensor}_d"], name=f"{tensor}_d")
        )
        return f"{tensor}_d"

    constant("w", np.zeros((3, 3, 1, 1)), INT8)
    nodes.append(make("DequantizeLinear", ["w", "scale"], ["weight"], name="weight"))
    tensor = stored("x", 0)
    nodes.append(make("Conv", [tensor, "weight"], ["a"], name="a"))
    result = stored("a", 1)
    if residual:
        nodes.append(make("Add", [result, tensor], ["sum"], name="sum"))
        result = stored("sum", 2)
    nodes.append(make(last, [result, "weight"] if last == "Conv" else [result], ["y"], name="y"))
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x", FLOAT, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, None)],
        constants,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("zero", "kind", "activation"),
    [(0, UINT8, "relu"), (3, UINT8, "none"), (-128, INT8, "relu"), (0, INT8, "none")],
)
def test_a_zero_point_at_the_lowest_value_is_a_relu(zero, kind, activation):
    placed = read_network_ops(qdq_chain((5, zero), (UINT8, kind))).placed
    assert [each.op.activation for each in placed] == [activation, "none"]


@pytest.mark.parametrize("zero", [0, 7])
def test_a_relu_is_put_back_once(zero):
    """Before the sum, whose parts are then positive anyway, or behind it."""
    placed = read_network_ops(qdq_chain((0, zero, 0), (UINT8,) * 3, residual=True)).placed
    assert [(each.op.residual, each.op.activation, each.exact) for each in placed] == [
        (True, "relu", True),
        (False, "none", True),
    ]


def test_a_plain_network_stays_as_it_is(tmp_path: Path):
    model = onnx.load(tiny_network(onnx, tmp_path / "tiny.onnx"))
    nodes, whole = plain_form(onnx, model)
    assert nodes == list(model.graph.node) and not whole


def test_what_runs_after_the_last_dequantise_is_plain():
    placed = read_network_ops(qdq_chain((5, 3), (UINT8, UINT8), last="Sqrt")).placed
    assert [(each.op.kind, each.quantised) for each in placed] == [("conv", True), ("mul", True)]


def timed(backend_name: str, path: Path):
    pytest.importorskip(backend_name)
    with open_backend(backend_name, threads=1, precision="int8").entry(path, key="q", layers=True).open() as run:
        run.run()
        run.discard()
        for _ in range(3):
            run.run()
        return run.layers()


@pytest.mark.export
@pytest.mark.parametrize(
    ("backend", "form"),
    [("onnxruntime", "qdq"), ("onnxruntime", "operators"), ("onnxruntime", "dynamic"), ("openvino", "qdq")],
)
def test_every_convolution_has_a_layer_of_its_own(folder: Path, backend: str, form: str):
    layers = timed(backend, folder / f"ns-{form}.onnx")
    found = read_network_ops(folder / f"ns-{form}.onnx")
    shares = attribute(found.placed, layers)
    convs = [index for index, each in enumerate(found.placed) if each.op.kind == "conv"]
    assert not any(shares.free[index] for index in convs)
    assert shares.unassigned_ms == 0.0
    firsts = {found.placed[index].nodes[0] for index in convs}
    owned = [firsts.intersection(layer.sources) for layer in layers]
    assert max(len(each) for each in owned) == 1


@pytest.mark.export
def test_what_openvino_does_not_run_in_int8_is_refused(folder: Path):
    with pytest.raises(
        ProfileError, match=r"ns-dynamic\.onnx: 95 of 95 .* in another precision in OpenVINO, .*in fp32"
    ):
        timed("openvino", folder / "ns-dynamic.onnx")
    with pytest.raises(ProfileError, match=r"ns-operators\.onnx: OpenVINO cannot read it \(QLinearConv") as refused:
        timed("openvino", folder / "ns-operators.onnx")
    assert "\n" not in str(refused.value)


@pytest.mark.export
def test_the_precision_must_fit_the_file(folder: Path):
    pytest.importorskip("onnxruntime")
    for precision, name, message in (
        ("fp32", "ns-qdq", r"ns-qdq\.onnx: is quantised, but the precision is fp32; expected precision int8"),
        ("int8", "ns", r"ns\.onnx: is not quantised, but the precision is int8; .* makes none"),
    ):
        backend = open_backend("onnxruntime", threads=1, precision=precision)
        with pytest.raises(ProfileError, match=message):
            backend.entry(folder / f"{name}.onnx", key="n", layers=False)


@pytest.mark.parametrize(
    ("ran", "precision", "fits"),
    [
        ({"a": "int8", "b": "fp32"}, "int8", True),
        ({"a": "int8", "b": "fp32", "c": "fp32"}, "int8", False),
        ({"a": "fp16", "b": "fp32"}, "fp16", False),
        ({f"{index}": "bf16" for index in range(9)} | {"last": "fp32"}, "bf16", True),
        ({"a": "fp16", "b": ""}, "fp16", True),
        ({"a": ""}, "fp16", False),
    ],
)
def test_most_heavy_layers_run_in_the_precision(ran, precision, fits):
    model = network_file(quantised=len(ran))
    if fits:
        check_ran(ran, precision, model, "it")
    else:
        with pytest.raises(ProfileError, match=rf"net\.onnx: .* run in another precision in it.*in {precision}"):
            check_ran(ran, precision, model, "it")


def network_file(*, quantised, plain=0):
    """A file of so many convolutions behind a DequantizeLinear, and so many others."""
    nodes = [Node("dequantise", "DequantizeLinear", ("images",), ("whole",))]
    nodes += [Node(f"q{index}", "Conv", ("whole", "w"), (f"q{index}",)) for index in range(quantised)]
    nodes += [Node(f"p{index}", "Conv", ("images", "whole"), (f"p{index}",)) for index in range(plain)]
    return ModelFile(Path("net.onnx"), tuple(nodes), "images", "float32", (1, 3, 8, 8), {}, None)


@pytest.mark.parametrize(("in_int8", "fits"), [(4, True), (2, True), (1, False), (0, False)])
def test_a_partly_quantised_file_is_judged_by_what_it_quantises(in_int8, fits):
    ran = {f"{index}": "int8" if index < in_int8 else "fp32" for index in range(20)}
    model = network_file(quantised=4, plain=16)
    if fits:
        check_ran(ran, "int8", model, "it")
    else:
        with pytest.raises(ProfileError, match="expected at least 50% of the 4 that the file quantises in int8"):
            check_ran(ran, "int8", model, "it")


@pytest.mark.export
def test_benchmark_times_quantised_files_beside_plain_ones(folder: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("onnxruntime")
    files = [str(folder / "ns.onnx"), str(folder / "ns-qdq.onnx")]
    options = ["--backend", "onnxruntime", "--passes", "1", "--seconds", "0", "--force", "--json"]
    assert main(["benchmark", *files, *options]) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert [line["precision"] for line in lines] == ["fp32", "int8"]


def question(paths, **changes) -> Question:
    space = replace(load_space("mob"), image_size=(64, 64))
    asked = Question((space,), "openvino", 1, "int8", Sizes(), UNDISTURBED, quantised=tuple(paths))
    return replace(asked, **changes)


def test_int8_and_quantised_files_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ProfileError, match="precision is int8 without quantised files; expected some"):
        question([])
    with pytest.raises(ProfileError, match="precision is fp32 with quantised files; expected int8"):
        question([tmp_path / "a.onnx"], precision="fp32")
    asked = ["profile", "--backend", "onnxruntime", "--name", "q", "--out", str(tmp_path)]
    assert main([*asked, "--precision", "int8"]) == 2
    assert "int8 without quantised files" in capsys.readouterr().err
    assert main([*asked, "--precision", "int8", "--quantised", "a.onnx", "--networks", "3"]) == 2
    assert "--networks counts random networks, which --quantised replaces" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.export
def test_a_table_of_given_quantised_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("sklearn")
    opened: list[str] = []
    monkeypatch.setattr(
        profile_module,
        "open_backend",
        lambda name, **settings: MadeUp(opened, precision=settings.get("precision", "fp32")),
    )
    space = replace(load_space("mob"), image_size=(64, 64))
    paths = []
    for index, structure in enumerate(random_structures(space, 3, seed=0, max_flops=1e9)):
        plain = export(structure, tmp_path / f"plain-{index}.onnx")
        paths.append(quantise(plain, tmp_path / f"given-{index}.onnx"))

    def never(structure, path):
        raise AssertionError("nothing is exported for int8")

    with pytest.raises(ProfileError, match="2 quantised files are given; expected 3 or more"):
        run_profile(question(paths[:2]), target=tmp_path / "t", work=tmp_path / "w0", export=never)
    (tmp_path / "again").mkdir()
    twin = tmp_path / "again" / "given-0.onnx"
    twin.write_bytes(paths[0].read_bytes())
    with pytest.raises(ProfileError, match="another file is called given-0 too"):
        run_profile(question([*paths, twin]), target=tmp_path / "t", work=tmp_path / "w1", export=never)

    folder, fitted = run_profile(question(paths), target=tmp_path / "q8", work=tmp_path / "work", export=never)
    table = load_table(folder)
    assert validate(folder) == [] and table.precision == "int8"
    assert fitted.line.fixed_ms == 0.0 and fitted.line.scale == pytest.approx(SCALE, rel=0.2)
    rows = read_networks(folder / "networks.csv")
    assert {(row.role, row.group) for row in rows} == {("calibration", "quantised")}
    # Predicted from the other two each: no perfect fit, but no nonsense.
    errors = [abs(row.predicted_ms / row.measured_ms - 1) for row in rows]
    assert 0 < max(errors) < 0.5
    assert table.uncertainty["relative"] == pytest.approx((sum(error**2 for error in errors) / 3) ** 0.5, rel=1e-3)
    # The operators of the given networks are rows as measured.
    statuses = {row.status for row in table.list_rows()}
    assert "measured" in statuses

    again, _ = run_profile(question(paths), target=tmp_path / "b" / "q8", work=tmp_path / "work", export=never)
    assert (again / "rows.csv").read_bytes() == (folder / "rows.csv").read_bytes()

    middle = sorted(result.predicted_ms for result in fitted.results)[1]
    answer = search(space, budgets=[Budget("latency_ms", middle)], device=folder, extrapolate=True, top_k=1)
    assert answer.best.prediction is not None and answer.best.prediction.latency_ms <= middle

    monkeypatch.setattr("maenas.profiling.device.fingerprint", lambda host: table.fingerprint)
    with pytest.raises(ProfileError, match=r"q8 is of quantised networks \(int8\), .*without --measure"):
        LocalDevice(table, tmp_path, never, UNDISTURBED)

    other = json.loads((folder / "table.json").read_text(encoding="utf-8")) | {"precision": "fp32", "name": "q32"}
    copy = tmp_path / "q32"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "table.json").write_text(json.dumps(other), encoding="utf-8")
    plain_table = load_table(copy)
    assert differing_conditions(table, plain_table) == ['precision is "int8" and "fp32"']
    with pytest.raises(LatencyTableError, match='q8 and q32 cannot be merged: precision is "int8" and "fp32"'):
        merge_tables([table, plain_table])
    assert main(["table", "diff", str(folder), str(copy)]) == 2
    assert 'precision is "int8" and "fp32"' in capsys.readouterr().err
