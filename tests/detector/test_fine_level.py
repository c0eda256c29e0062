"""A detector with a level at stride 4: the same network as before, with one more level beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from network_cases import (  # noqa: E402
    assert_same_outputs,
    executed_convs,
    lowered_convs,
    published,
    random_structure,
    randomise_norms,
)
from training_cases import fast_config, rectangles, tiny_structure  # noqa: E402

from detector.checkpoint import Checkpoint  # noqa: E402
from detector.errors import CheckpointError  # noqa: E402
from detector.fine_tune import transfer_weights  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.neck import fusion_graph  # noqa: E402
from detector.reparam import deploy  # noqa: E402
from detector.train import train  # noqa: E402
from maenas.cli.main import main  # noqa: E402
from maenas.errors import StructureError  # noqa: E402
from maenas.lowering import neck as lowering_neck  # noqa: E402
from maenas.lowering.costs import num_flops, num_params  # noqa: E402
from maenas.lowering.detector import lower  # noqa: E402
from maenas.published import PUBLISHED, load_published  # noqa: E402
from maenas.structure import EXTRA_EDGES, FAMILIES, load_structure, structure_from_dict, with_fine_level  # noqa: E402


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_network_takes_the_level(name):
    plain = load_published(name)
    fine = with_fine_level(plain)
    assert fine.strides == (4, 8, 16, 32) and plain.strides == (8, 16, 32)
    assert fine.name == f"{name}-p2" and structure_from_dict(fine.to_dict()) == fine
    # The last stage at stride 4, and half of the finest neck width: 32 for T and Nm, 64 for S, M and L.
    expected = {"t": 32, "s": 64, "m": 64, "l": 64, "ns": 24, "nm": 32, "nl": 40, "n": 32}[name.rpartition("-")[2]]
    assert fine.backbone.out_stages == (1, *plain.backbone.out_stages)
    assert fine.neck.out_channels == (expected, *plain.neck.out_channels)
    assert replace(fine, name=plain.name, backbone=plain.backbone, neck=plain.neck) == plain
    with pytest.raises(StructureError, match="has a level at stride 4 already"):
        with_fine_level(fine)


@pytest.mark.parametrize(("family", "seed"), list(product(FAMILIES, range(6))))
def test_the_lowering_lists_what_the_modules_run(family, seed):
    structure = with_fine_level(random_structure(family, seed))
    model, ops = Detector(structure).eval(), lower(structure)
    randomise_norms(model, seed)
    deployed = deploy(model)
    for form, network in (("train", model), ("folded", deployed)):
        assert sum(parameter.numel() for parameter in network.parameters()) == num_params(ops, form)
    images = torch.randn(1, structure.backbone.stem.in_channels, *structure.image_size)
    assert executed_convs(deployed, images) == lowered_convs(ops)
    assert_same_outputs(model, deployed, images)


@pytest.mark.parametrize("edges", EXTRA_EDGES)
def test_both_packages_add_the_same_node(edges):
    own, other = fusion_graph(edges, 4), lowering_neck.fusion_graph(edges, 4)
    assert [node.name for node in own.nodes] == [node.name for node in other.nodes]
    assert own.outputs == other.outputs and len(own.outputs) == 4
    last, same = own.nodes[-1], other.nodes[-1]
    assert (last.name, last.level, last.width) == (same.name, same.level, same.width) == ("merge_2", 2, "out")
    assert [(e.source, e.resample) for e in last.edges] == [(e.source, e.resample) for e in same.edges]


def test_what_the_level_costs():
    plain, fine = (lower(structure) for structure in (published("s"), with_fine_level(published("s"))))
    # By hand for the node at 160 x 160: two 1x1 of 256 to 32, three blocks of 3x3 over 32, 24, 32 (hidden ratio 0.75),
    # 1x1 of 32 + 3 * 32 to 64; two 3x3 projections of 64 to 80 and 68.
    macs = 160 * 160 * (2 * 256 * 32 + 3 * 2 * 9 * 32 * 24 + 128 * 64 + 9 * 64 * (80 + 68))
    assert num_flops(fine) - num_flops(plain) == 2 * macs


def transferred(seed: int, names: tuple[str, ...], fine_names: tuple[str, ...]):
    torch.manual_seed(seed)
    plain = Detector(tiny_structure(num_classes=len(names)), class_names=names)
    randomise_norms(plain, seed)
    structure = with_fine_level(tiny_structure(num_classes=len(fine_names)))
    fine = Detector(structure, class_names=fine_names)
    taken = transfer_weights(fine, Checkpoint(plain.structure, plain.state_dict(), names), source="t")
    return plain.eval(), fine.eval(), taken


def test_weights_of_three_levels_give_the_same_three_levels():
    plain, fine, taken = transferred(0, ("cat", "dog"), ("cat", "dog"))
    assert taken.matched_classes == ("cat", "dog")
    images = 255 * torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before, after = plain(images), fine(images)
    assert after.level_shapes == ((16, 16), *before.level_shapes)
    assert torch.equal(after.cls_logits[:, 256:], before.cls_logits)
    assert torch.equal(after.box_logits[:, 256:], before.box_logits)


def test_classes_are_matched_by_name_on_the_three_levels():
    plain, fine, taken = transferred(0, ("cat", "dog"), ("owl", "fox", "dog"))
    assert (taken.matched_classes, taken.new_classes) == (("dog",), ("owl", "fox"))
    for level in range(3):
        theirs, own = plain.head.class_convs[level].weight, fine.head.class_convs[level + 1].weight
        assert torch.equal(own[2], theirs[1]) and not torch.equal(own[0], theirs[0])
        assert torch.equal(fine.head.box_convs[level + 1].weight, plain.head.box_convs[level].weight)


def test_a_level_is_not_taken_away():
    fine = Detector(with_fine_level(tiny_structure()))
    checkpoint = Checkpoint(fine.structure, fine.state_dict(), fine.class_names)
    with pytest.raises(CheckpointError, match="do not fit"):
        transfer_weights(Detector(tiny_structure()), checkpoint, source="t")


def test_points_of_the_level_decode_to_its_cells():
    model = Detector(with_fine_level(tiny_structure(size=32))).eval()
    for conv in model.head.box_convs:
        torch.nn.init.zeros_(conv.weight)
    with torch.no_grad():
        _, boxes = model.decode(model(torch.zeros(1, 3, 32, 32)))
    # All five bins alike: two cells to every side; the second point of the level at stride 4 is at x = 4.
    assert boxes.shape == (1, 64 + 16 + 4 + 1, 4)
    assert boxes[0, 1].tolist() == pytest.approx([-4, -8, 12, 8], abs=1e-5)
    assert boxes[0, 64].tolist() == pytest.approx([-16, -16, 16, 16], abs=1e-5)


def test_training_and_prediction(tmp_path):
    config = fast_config(train__epochs=2, eval__every=1)
    structure = with_fine_level(tiny_structure())
    result = train(config, structure, rectangles(tmp_path / "data", num_train=8), out=tmp_path / "run")
    assert result.epochs == 2
    model = Detector.from_checkpoint(tmp_path / "run" / "last.safetensors")
    assert model.strides == (4, 8, 16, 32)
    found = model.predict(np.zeros((50, 70, 3), np.uint8), score_threshold=0.0, max_detections=10)
    assert len(found) == 10 and found.image_size == (50, 70)


@pytest.mark.export
@pytest.mark.parametrize(
    "options",
    [
        {"outputs": "raw"},
        {"outputs": "decoded", "dynamic_batch": True, "dynamic_size": True},
        {"outputs": "nms", "score_threshold": 0.3},
    ],
    ids=lambda options: options["outputs"],
)
def test_exported_files_hold_the_level(options, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from export_cases import by_score, lively, quick_trace, small_structure

    from detector import export_graph
    from detector.export import export_onnx
    from detector.runtimes import load_exported

    monkeypatch.setattr(export_graph, "trace", quick_trace)
    model = lively(with_fine_level(small_structure()))
    report = export_onnx(model, tmp_path / "model.onnx", class_names=model.class_names, **options)
    assert report.checks, "compared with torch before it was written"
    images = np.random.default_rng(7).uniform(0, 255, (1, 3, 64, 96)).astype(np.float32)
    asked = {"score_threshold": 0.3, "iou_threshold": 0.7, "max_detections": 100}
    (found,) = load_exported(report.path, runtime="onnxruntime", threads=1).detect(images, **asked)
    (wanted,) = model.detect(images, **asked)
    assert len(wanted) > 5
    np.testing.assert_allclose(by_score(found), by_score(wanted), atol=0.05)


@pytest.mark.export
def test_the_file_for_timings_has_the_level(tmp_path):
    onnx = pytest.importorskip("onnx")
    from detector.timing_export import export_for_timing

    model = deploy(Detector(with_fine_level(tiny_structure())).eval())
    export_for_timing(model, tmp_path / "net.onnx")
    outputs = onnx.load(tmp_path / "net.onnx").graph.output
    sides = [output.type.tensor_type.shape.dim[3].dim_value for output in outputs]
    assert sides == [16, 16, 8, 8, 4, 4, 2, 2]


def test_convert_adds_the_level(tmp_path, capsys):
    assert main(["convert", "structure", "damo-yolo-t", str(tmp_path / "t.json"), "--add-p2"]) == 0
    assert load_structure(tmp_path / "t.json") == with_fine_level(load_published("damo-yolo-t"))
    assert main(["convert", "structure", str(tmp_path / "t.json"), "--to", "list"]) == 2
    assert "out_stages is [1, 2, 4, 5]; expected [2, 4, 5]" in capsys.readouterr().err
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["schema_version"] == 1
