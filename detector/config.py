"""Settings of a training run: the defaults are the recipe of the larger published networks; files name what differs."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from maenas.records import build, require

from .assign import ASSIGNERS
from .data.plan import LAST_BATCHES
from .data.sampling import SamplingSettings
from .data.settings import AugmentSettings
from .data.store import CACHES
from .distill_config import DistillConfig
from .ema import EmaConfig
from .errors import ConfigError, did_you_mean
from .learner import PRECISIONS
from .optim import OptimizerConfig
from .schedule import ScheduleConfig
from .settings_file import parse_yaml, read_settings, set_field

CLASS_HEADS = ("match", "new")
COARSEST_STRIDE = 32


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network, and where its weights begin.

    Attributes:
        name: What the user called the network; for records only.
        image_size: Training and evaluation (height, width), multiples of 32; None keeps the structure's.
        weights: Checkpoint to start from, ours or an official .pth; None starts from scratch.
        class_head: `match` takes over the classes that the checkpoint knows by name; `new` starts all of them anew.
        freeze: Parts that do not learn: `backbone`, `neck`, or `stage N` for the stem and the stages up to N.
    """

    name: str = ""
    image_size: tuple[int, int] | None = None
    weights: str | None = None
    class_head: str = "match"
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_choice("class_head", self.class_head, CLASS_HEADS)
        for index, side in enumerate(self.image_size or ()):
            _require_side(f"image_size[{index}]", side)
        for index, part in enumerate(self.freeze):
            known = re.fullmatch(r"backbone|neck|stage [1-9][0-9]?", part) is not None
            require(known, f"freeze[{index}]", part, "backbone, neck or stage N")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """The data set and how it is read.

    Attributes:
        path: File that describes it.
        workers: Processes that read and augment, per training process; 0 reads in the training process itself.
        cache: `ram` keeps resized images in memory, `none` reads them anew.
    """

    path: str = ""
    workers: int = 4
    cache: str = "none"

    def __post_init__(self) -> None:
        require(0 <= self.workers <= 256, "workers", self.workers, "an integer from 0 to 256")
        _require_choice("cache", self.cache, CACHES)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Length, batch and arithmetic.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes.
        accumulate: Portions that a process computes its part of the batch in; saves memory. Batch-norm statistics and
            loss normalisers are then those of a portion.
        max_minutes: Limit of wall time in which schedule and evaluations end; None is without. With a limit runs are
            not bit-reproducible.
        patience: Evaluations without a better AP after which the run ends; None never does.
        seed: Of initial weights, order and augmentation.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, ...
        precision: `fp32`, or autocast to `bf16` or `fp16` (with gradient scaling).
        channels_last: Memory order of images and weights; a matter of speed.
        compile: Compile the network with torch.compile.
        sync_norm: With several processes, batch-norm statistics over all of them.
        last_batch: What becomes of the images of an epoch that make no whole batch: `fill` it up with others, `drop`
            them, or `keep` a smaller batch.
        multi_scale: Sides of square inputs that are drawn by chance; empty keeps one size.
        multi_scale_every: Steps before a side is drawn again.
        max_bad_steps: Steps in a row without finite losses or gradients after which the run is given up.
    """

    epochs: int = 300
    batch_size: int = 256
    accumulate: int = 1
    max_minutes: float | None = None
    patience: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    sync_norm: bool = True
    last_batch: str = "fill"
    multi_scale: tuple[int, ...] = ()
    multi_scale_every: int = 10
    max_bad_steps: int = 3

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "max_bad_steps", "multi_scale_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer, 1 or more")
        fits = self.accumulate <= self.batch_size
        require(fits, "accumulate", self.accumulate, f"at most batch_size, {self.batch_size}")
        minutes = self.max_minutes
        require(minutes is None or 0 < minutes < math.inf, "max_minutes", minutes, "a number above 0")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "an integer, 1 or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "an integer from 0, below 2^63")
        _require_choice("precision", self.precision, tuple(PRECISIONS))
        _require_choice("last_batch", self.last_batch, LAST_BATCHES)
        for index, side in enumerate(self.multi_scale):
            _require_side(f"multi_scale[{index}]", side)


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Label assignment and weights of the losses.

    Attributes:
        assigner: Which point answers for which box: one of `detector.assign.ASSIGNERS`.
        quality_focal: Weight of the class loss.
        giou: Weight of the box loss.
        dfl: Weight of the distribution loss.
        partial_labels: In a union of data sets, what a source does not mark is unknown in its images and teaches
            nothing; if off, it counts as absent.
    """

    assigner: str = "align_ota"
    quality_focal: float = 1.0
    giou: float = 2.0
    dfl: float = 0.25
    partial_labels: bool = True

    def __post_init__(self) -> None:
        _require_choice("assigner", self.assigner, tuple(ASSIGNERS))
        for name in ("quality_focal", "giou", "dfl"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "a number, 0 or more")


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Evaluation on the validation images.

    Attributes:
        every: Epochs from one evaluation to the next; the last epoch is always evaluated.
        every_no_aug: The same in the last stage, where mosaic and MixUp are off.
        batch_size: Images at once.
        score_threshold: Scores above it count; None is what the network's family is published with.
        iou_threshold: Of two boxes of one class that overlap more, the better stays; None as above.
        samples: Validation images drawn with predictions and truth at each evaluation.
    """

    every: int = 10
    every_no_aug: int = 1
    batch_size: int = 32
    score_threshold: float | None = None
    iou_threshold: float | None = None
    samples: int = 4

    def __post_init__(self) -> None:
        for name in ("every", "every_no_aug", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer, 1 or more")
        for name in ("score_threshold", "iou_threshold"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, name, value, "a number from 0 to 1")
        require(0 <= self.samples <= 64, "samples", self.samples, "an integer from 0 to 64")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What a run leaves behind besides its results.

    Attributes:
        save_every_steps: Steps from one resume file to the next within an epoch; 0 saves after each epoch only.
        keep_every_epochs: Epochs from one kept checkpoint to the next; 0 keeps the best and the last one only.
        curves: Draw curves.png after each evaluation.
        tensorboard: Also write events for TensorBoard.
        wandb: Project at Weights & Biases to report to; None does not.
        mlflow: Experiment at MLflow to report to; None does not.
    """

    save_every_steps: int = 0
    keep_every_epochs: int = 0
    curves: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    mlflow: str | None = None

    def __post_init__(self) -> None:
        for name in ("save_every_steps", "keep_every_epochs"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "an integer, 0 or more")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything about a run but the network itself and the images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        stages = self.schedule.warmup_epochs + self.schedule.no_aug_epochs
        expected = f"more than schedule.warmup_epochs and schedule.no_aug_epochs together, {stages:g}"
        require(stages < self.train.epochs, "train.epochs", self.train.epochs, expected)
        again = self.distill.cache == "none" or self.augment.samples_per_image < math.inf
        expected = "none, or samples that come again: augment.views above 0, and augment.sada false"
        require(again, "distill.cache", self.distill.cache, expected)
        size = self.augment.image_size
        one = size in (AugmentSettings().image_size, self.model.image_size)
        require(one, "augment.image_size", list(size), "nothing: model.image_size is the one to set")

    def for_image_size(self, size: tuple[int, int]) -> TrainConfig:
        """The same settings with the input size that a network has after all."""
        model, augment = replace(self.model, image_size=size), replace(self.augment, image_size=size)
        return replace(self, model=model, augment=augment)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a YAML file of settings has them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def to_yaml(self) -> str:
        """A file of settings that names every field."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


HARMLESS = (
    "model.name",
    "data.path",
    "data.workers",
    "data.cache",
    "train.max_minutes",
    "train.patience",
    "train.device",
    "train.max_bad_steps",
    "distill.teacher",
    "distill.cache",
    "eval.",
    "log.",
)
"""Fields, or their beginnings, that may change when a run is resumed: they do not enter the weights."""


def load_config(
    source: str | Path | None = None, *, overrides: Iterable[str] = (), changes: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Settings from a recipe, with overrides.

    Args:
        source: Name of a recipe (see `recipe_names`) or a YAML file; None is all defaults.
        overrides: Texts such as `train.epochs=50`; values are read as YAML.
        changes: Values by dotted field name, applied before the overrides.

    Raises:
        ConfigError: An unknown recipe or field (with the nearest name), a value of the wrong type or out of range.
    """
    content = {} if source is None else read_settings(source)
    return config_from_dict(content, source=str(source or "settings"), overrides=overrides, changes=changes)


def config_from_dict(
    content: Mapping[str, Any],
    *,
    source: str = "settings",
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """As `load_config`, from parsed content; the same errors."""
    settings = copy.deepcopy(dict(content))
    for name, value in (changes or {}).items():
        set_field(settings, name, value)
    texts = list(overrides)
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"--set {text}: expected field=value, such as train.epochs=50")
        set_field(settings, name.strip(), parse_yaml(value, f"--set {text}"))
    label = source if not texts else f"{source} with --set {' '.join(texts)}"
    return build(TrainConfig, settings, source=label, error=ConfigError)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields that two settings differ in, with the old and the new value."""
    before, after = _flat(old), _flat(new)
    names = dict.fromkeys([*before, *after])
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def is_harmless(field_name: str) -> bool:
    """Whether a run may be resumed with another value of a field."""
    return field_name.startswith(HARMLESS)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        require(False, name, value, f"one of {', '.join(choices)}{did_you_mean(value, choices)}")


def _require_side(name: str, side: int) -> None:
    fits = side >= COARSEST_STRIDE and side % COARSEST_STRIDE == 0
    require(fits, name, side, f"a multiple of {COARSEST_STRIDE}")
