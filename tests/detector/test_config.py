"""Settings: defaults that are the recipe, files, overrides, and every message."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

pytest.importorskip("torch")

from detector.config import (
    HARMLESS,
    TrainConfig,
    changed_fields,
    config_from_dict,
    is_harmless,
    load_config,
)
from detector.errors import ConfigError
from detector.settings_file import recipe_names


def test_defaults_are_the_published_recipe():
    config = TrainConfig()
    assert (config.train.epochs, config.train.batch_size) == (300, 256)
    assert config.optimizer.highest_lr(256) == pytest.approx(0.04)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 5e-4)
    schedule = config.schedule
    assert (schedule.warmup_epochs, schedule.final_ratio, schedule.no_aug_epochs) == (5, 0.05, 16)
    assert (config.ema.decay, config.ema.ramp) == (0.9998, 2000)
    assert (config.loss.quality_focal, config.loss.giou, config.loss.dfl) == (1.0, 2.0, 0.25)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    config = load_config(name)
    assert config_from_dict(config.to_dict()) == config
    assert config_from_dict(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "shear", "scale", "mosaic_size"),
    [
        ("damo-yolo-t", "sgd", 0.04, 0.2, (0.1, 2.0), None),
        ("damo-yolo-s", "sgd", 0.04, 2.0, (0.1, 2.0), None),
        ("damo-yolo-m", "sgd", 0.04, 2.0, (0.1, 2.0), None),
        ("damo-yolo-l", "sgd", 0.04, 2.0, (0.1, 2.0), None),
        ("damo-yolo-ns", "adamw", 0.004, 0.2, (0.75, 1.25), (640, 640)),
        ("damo-yolo-nm", "adamw", 0.004, 0.2, (0.1, 2.0), (640, 640)),
        ("damo-yolo-nl", "adamw", 0.004, 0.2, (0.1, 2.0), (640, 640)),
        ("damo-yolo-n", "adamw", 0.004, 0.2, (0.1, 2.0), (640, 640)),
    ],
)
def test_published_recipes(name, optimizer, lr, shear, scale, mosaic_size):
    config = load_config(name)
    assert config.optimizer.name == optimizer
    assert config.optimizer.highest_lr(256) == pytest.approx(lr)
    assert config.optimizer.weight_decay == (5e-4 if optimizer == "sgd" else 1e-2)
    assert (config.augment.shear, config.augment.scale, config.augment.mosaic_size) == (shear, scale, mosaic_size)
    assert (config.train.epochs, config.train.batch_size, config.augment.mixup) == (300, 256, 0.15)
    assert load_config("damo-yolo-s") == TrainConfig(), "its file only writes defaults out"


def test_overrides_have_the_type_of_the_field():
    config = load_config(overrides=["train.epochs=50", "optimizer.lr=1e-2", "ema.enabled=false", "model.freeze=[neck]"])
    assert config.train.epochs == 50 and config.optimizer.lr == 0.01
    assert config.ema.enabled is False and config.model.freeze == ("neck",)
    assert config.optimizer.highest_lr(64) == 0.01, "a learning rate of its own does not grow with the batch"


def test_a_file_extends_a_recipe_or_a_file_beside_it(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: damo-yolo-nm\ntrain: {epochs: 60, batch_size: 8}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ntrain: {epochs: 70}\noptimizer: {lr_per_image: 5e-5}\n")
    config = load_config(tmp_path / "top.yaml")
    assert (config.train.epochs, config.train.batch_size, config.optimizer.name) == (70, 8, "adamw")
    assert config.optimizer.lr_per_image == 5e-5
    assert config.augment.mosaic_size == (640, 640)


def test_changes_come_before_overrides():
    config = load_config(changes={"train.epochs": 30, "train.seed": 3}, overrides=["train.epochs=40"])
    assert (config.train.epochs, config.train.seed) == (40, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epoch=5"], r"train\.epoch is not a field; did you mean epochs\?"),
        (["trian.epochs=5"], r"trian is not a field; did you mean train\?"),
        (["train.epochs=five"], r'train\.epochs is "five"; expected an integer'),
        (["train.epochs=50.5"], r"train\.epochs is 50\.5; expected an integer"),
        (["train.epochs"], r"--set train\.epochs: expected field=value"),
        (["train.epochs=[1"], r"--set train\.epochs=\[1: is not valid YAML"),
        (["train=5"], r"train is 5; expected an object"),
        (["train=5", "train.epochs=3"], r"train\.epochs: train is no section"),
        (["train.epochs=21"], r"train\.epochs is 21; expected more than .* together, 21"),
        (["train.batch_size=0"], r"train\.batch_size is 0; expected an integer, 1 or more"),
        (["train.batch_size=4", "train.accumulate=5"], r"train\.accumulate is 5; expected at most batch_size, 4"),
        (["train.precision=fp8"], r'train\.precision is "fp8"; expected one of fp32, bf16, fp16'),
        (["train.max_minutes=0"], r"train\.max_minutes is 0\.0; expected a number above 0"),
        (["train.multi_scale=[320, 330]"], r"train\.multi_scale\[1\] is 330; expected a multiple of 32"),
        (["optimizer.name=sdg"], r'optimizer\.name is "sdg"; expected one of sgd, adamw'),
        (["optimizer.lr=.nan"], r"optimizer\.lr is NaN; expected a number above 0"),
        (["optimizer.lr=.inf"], r"optimizer\.lr is Infinity; expected a number above 0"),
        (["optimizer.betas=[0.9]"], r"optimizer\.betas has 1 entries; expected 2"),
        (["schedule.final_ratio=2"], r"schedule\.final_ratio is 2\.0; expected a number from 0 to 1"),
        (["ema.decay=1"], r"ema\.decay is 1\.0; expected a number from 0, below 1"),
        (["loss.assigner=align"], r'loss\.assigner is "align"; expected one of align_ota'),
        (["model.freeze=[head]"], r'model\.freeze\[0\] is "head"; expected backbone, neck or stage N'),
        (["model.image_size=[320, 100]"], r"model\.image_size\[1\] is 100; expected a multiple of 32"),
        (
            ["augment.image_size=[320, 320]"],
            r"augment\.image_size is \[320, 320\]; expected nothing: model\.image_size",
        ),
        (["data.workers=-1"], r"data\.workers is -1; expected an integer from 0 to 256"),
        (["eval.score_threshold=2"], r"eval\.score_threshold is 2\.0; expected a number from 0 to 1"),
    ],
)
def test_wrong_settings_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe 'small_data' is unknown; .* did you mean small-data\?"):
        load_config("small_data")
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read as text"):
        load_config(tmp_path / "gone.yaml")
    for text, message in {
        "train: [1": "is not valid YAML",
        "- train": "is list; expected sections with fields",
        "extends: [a, b]": "extends is .* expected one recipe or file",
        "extends: own.yaml": "chain of at most 8",
        "x: !!python/object/apply:os.system [echo]": "is not valid YAML",
        "when: 2020-01-01": "when is not a field",
        "1: 2": "1 is not a field",
    }.items():
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_config(tmp_path / "own.yaml")


def test_image_size_reaches_the_augmentation():
    config = load_config(changes={"model.image_size": [320, 416]}).for_image_size((320, 416))
    assert config.augment.image_size == (320, 416)
    assert config_from_dict(config.to_dict()) == config


def test_changed_fields_by_name():
    old = TrainConfig()
    new = replace(old, train=replace(old.train, seed=7), data=replace(old.data, workers=0))
    assert changed_fields(old.to_dict(), new.to_dict()) == {"data.workers": (4, 0), "train.seed": (0, 7)}
    assert changed_fields(old.to_dict(), old.to_dict()) == {}
    assert is_harmless("data.workers") and is_harmless("eval.every") and not is_harmless("train.seed")


def test_harmless_fields_exist():
    sections = TrainConfig().to_dict()
    for name in HARMLESS:
        section, _, field = name.partition(".")
        assert section in sections and (not field or field in sections[section]), name
