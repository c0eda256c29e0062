"""Distillation in two processes against one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cv2")

from process_cases import CONFIG, assert_close, run_two  # noqa: E402
from training_cases import fast_config, rows_of, tiny_structure, weights_of, write_rectangles  # noqa: E402

from detector.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from detector.data.source import load_data  # noqa: E402
from detector.model import Detector  # noqa: E402
from detector.train import train  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(1)
    model = Detector(tiny_structure(width=12)).eval()
    save_checkpoint(Checkpoint(model.structure, model.state_dict(), model.class_names), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cwd", "mimic"])
def test_two_processes_equal_one(method, data, teacher, tmp_path):
    """With statistics over both: after one step the optimiser's momentum, which is the gradient, is the same."""
    options = {"distill__teacher": teacher, "distill__method": method, "distill__sync_norm": True}
    options |= {"train__batch_size": 12, "train__epochs": 1, "schedule__no_aug_epochs": 0}
    run_two(data, tmp_path / "two", **options)
    train(fast_config(**{**CONFIG, **options}), tiny_structure(), load_data(data), out=tmp_path / "one")
    mine, theirs = (weights_of(tmp_path / name / "state.safetensors") for name in ("two", "one"))
    gradients = [name for name in theirs if name.endswith("|momentum_buffer")]
    assert "optimizer/distiller.align.0.weight|momentum_buffer" in gradients
    for name in gradients:
        # Standardisation takes away what a bias of the projection adds: its gradient is rounding alone.
        if ".align." not in name or "bias" not in name:
            assert (mine[name] - theirs[name]).norm() <= 1e-3 * theirs[name].norm(), name
    for row, expected in zip(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"), strict=True):
        for name in ("loss", "distill", "distill_weight", "gradient_norm"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4), name


@pytest.mark.slow
def test_statistics_of_each_process(data, teacher, tmp_path):
    """As officially, losses are those of halves of the batch. In the second epoch the teacher is silent; a resume."""
    options = {"distill__teacher": teacher, "distill__stop": "no_aug"}
    run_two(data, tmp_path / "two", **options)
    run_two(data, tmp_path / "again", **options, stop=True)
    run_two(data, tmp_path / "again", **options, resume=True)
    train(fast_config(**{**CONFIG, **options}), tiny_structure(), load_data(data), out=tmp_path / "one")
    assert_close(tmp_path / "again" / "last.safetensors", tmp_path / "two" / "last.safetensors")
    mine, theirs = (float(rows_of(tmp_path / name)[0]["distill"]) for name in ("two", "one"))
    assert mine == pytest.approx(theirs, rel=0.2) and mine != pytest.approx(theirs, rel=1e-4)
