"""The recipes: one for each published network, its pupil and each search space, at three scales; and their table."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL.Image")

from training_cases import rectangles, write_rectangles

from detector.config import load_config
from detector.errors import ConfigError
from detector.run_plan import plan_run
from detector.settings_file import recipe_names
from maenas.cli.main import main
from maenas.lowering.costs import num_flops, num_params
from maenas.lowering.detector import lower
from maenas.published import PUBLISHED, PUBLISHED_FACTS, load_published
from maenas.sampling import random_structures
from maenas.spaces import load_space
from maenas.structure import Structure, save_structure

ROOT = Path(__file__).resolve().parents[2]
SPACES = sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml"))
TEACHERS = {"t": "s", "s": "m", "m": "l", "l": "l"}
SCALES = ("one-gpu", "smoke")
PRINTED = {
    # Tables 9 and 10 of the report: millions of parameters, GFLOPs.
    "damo-yolo-t": ("8.5", "18.1"),
    "damo-yolo-s": ("16.3", "37.8"),
    "damo-yolo-m": ("28.2", "61.8"),
    "damo-yolo-l": ("42.1", "97.3"),
    "damo-yolo-ns": ("1.41", "1.56"),
    "damo-yolo-nm": ("2.14", "3.69"),
    "damo-yolo-nl": ("5.69", "6.04"),
}


def test_every_published_network_and_every_space_has_a_recipe():
    pupils = {f"damo-yolo-{pupil}-distilled" for pupil in TEACHERS}
    assert set(recipe_names()) == {*PUBLISHED, *pupils, *SPACES, *SCALES, "small-data", "fine-tune"}


@pytest.mark.parametrize("pupil", TEACHERS)
def test_distilled_recipes_add_the_published_teacher_and_nothing_else(pupil):
    plain, taught = load_config(f"damo-yolo-{pupil}"), load_config(f"damo-yolo-{pupil}-distilled")
    distill = taught.distill
    assert distill.teacher == f"runs/train/damo-yolo-{TEACHERS[pupil]}/best.safetensors"
    # detector.md, section 7: channel-wise, neck maps, cosine from 1 to 0.1 over the whole run, gradients cut at 30.
    assert (distill.method, distill.features, distill.levels, distill.temperature) == ("cwd", "neck", (3, 4, 5), 1.0)
    assert [distill.weight_at(share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    assert (distill.stop, distill.normalise, distill.sync_norm, distill.clip_norm) == ("end", True, False, 30)
    changed, usual = taught.to_dict(), plain.to_dict()
    assert changed.pop("distill") != usual.pop("distill") and changed == usual


def test_one_gpu_keeps_learning_rate_and_batch():
    for name in PUBLISHED:
        plain, alone = load_config(name), load_config(f"{name}+one-gpu")
        assert alone.train.batch_size // alone.train.accumulate == 32
        assert alone.optimizer == plain.optimizer and alone.train.batch_size == plain.train.batch_size
        assert alone.augment == plain.augment and alone.schedule == plain.schedule


def test_of_joined_recipes_the_later_one_counts(tmp_path):
    (tmp_path / "own.yaml").write_text("train: {epochs: 7}\n")
    config = load_config(f"damo-yolo-ns+smoke+{tmp_path}/own.yaml")
    assert (config.train.epochs, config.train.batch_size, config.optimizer.name) == (7, 4, "adamw")
    assert config.augment.mosaic_size == (640, 640) and config.model.image_size == (64, 64)
    (tmp_path / "a+b.yaml").write_text("extends: damo-yolo-s+one-gpu\n")
    assert load_config(tmp_path / "a+b.yaml") == load_config("damo-yolo-s+one-gpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("damo-yolo-s+smok", "recipe 'smok' is unknown; .* did you mean smoke"),
        ("damo-yolo-s+", "recipe '' is unknown; expected a .yaml file or "),
    ],
)
def test_an_unknown_layer_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        load_config(name)


def networks() -> list[tuple[str, str]]:
    """Every recipe of a network, with the network: a published one, or the name of a space."""
    pairs = [(name, name) for name in PUBLISHED]
    pairs += [(f"damo-yolo-{pupil}-distilled", f"damo-yolo-{pupil}") for pupil in TEACHERS]
    return pairs + [(space, space) for space in SPACES]


def network(name: str) -> Structure:
    return load_published(name) if name in PUBLISHED else next(random_structures(load_space(name), 1, seed=0))


@pytest.mark.parametrize(("recipe", "name"), networks())
def test_every_recipe_plans_a_run(recipe, name, tmp_path):
    # A teacher must be there before its pupil is planned; the slow test has them.
    config = load_config(f"{recipe}+smoke", overrides=["distill.teacher=null"])
    plan = plan_run(config, network(name), rectangles(tmp_path, num_train=4, num_val=1))
    assert plan["steps"] == 3 and plan["image_size"] == [64, 64]
    assert plan["optimizer"].startswith("adamw" if config.optimizer.name == "adamw" else "sgd")


@pytest.mark.slow
def test_every_recipe_runs_at_the_smallest_scale(tmp_path, monkeypatch):
    """As docs/recipes.md says: teachers first, then their pupils, from one folder."""
    monkeypatch.chdir(tmp_path)
    data = write_rectangles(tmp_path / "data", num_train=4, num_val=2)
    for recipe, name in networks():
        out = Path("runs", "train", recipe)
        if name not in PUBLISHED:
            save_structure(network(name), tmp_path / f"{name}.json")
            name = f"{name}.json"
        arguments = ["train", name, "--recipe", f"{recipe}+smoke", "--data", str(data), "--out", str(out)]
        assert main(arguments) == 0, recipe
        assert (out / "best.safetensors").exists(), recipe
        if recipe in PUBLISHED:
            (out / "state.safetensors").unlink()
        else:  # no teacher
            shutil.rmtree(out)


def row(name: str) -> str:
    """The row of a published network in docs/recipes.md."""
    ops, facts, printed = lower(load_published(name)), PUBLISHED_FACTS.get(name), PRINTED.get(name, ("-", "-"))
    counted = (f"{num_params(ops, 'reparameterised') / 1e6:.2f}", f"{num_flops(ops, 'conv') / 1e9:.2f}")
    figures = ["-", "-", "-"]
    if facts is not None:
        distilled = "-" if facts.ap_distilled is None else f"{facts.ap_distilled:.1f}"
        figures = [f"{facts.ap:.1f}", distilled, f"{facts.latency_ms:.2f} {'T4' if 'T4' in facts.device else 'CPU'}"]
    sizes = [f"{own} ({paper})" for own, paper in zip(counted, printed, strict=True)]
    return " | ".join([f"| `{name}`", *figures, *sizes]) + " |"


def test_the_table_of_published_figures():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if re.match(r"\| `damo-yolo-\w+` \| [\d-]", line)] == list(
        map(row, PUBLISHED)
    )


def test_the_document_names_every_recipe():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert not {name for name in recipe_names() if f"`{name}`" not in text}
