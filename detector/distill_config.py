"""Settings of distillation, and what they say at each step: how much the teacher counts, and until when."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maenas.records import require

METHODS = ("cwd", "mimic", "mgd")
SCHEDULES = ("cosine", "constant", "linear")
STOPS = ("end", "no_aug")
FEATURES = ("neck", "backbone")
FEATURE_CACHES = ("none", "ram")
TEACHER_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """Learning from the feature maps of a trained network; without a teacher none of this counts.

    The defaults are those of the official training, which made the published distilled weights. The paper differs in
    two places, and both have a name: `stop: no_aug`, and for the fixed weight of its Figure 4 `schedule: constant`
    with `weight: 0.5`.

    Attributes:
        teacher: Checkpoint of ours to learn from; None does not distil. Any family and size, any classes.
        method: `cwd` compares where each channel is active (channel-wise distillation), `mimic` the values, `mgd` what
            can be generated from the student's map with most of it hidden (masked generative distillation).
        features: Maps that are compared: those of the `neck` (P3, P4, P5) or of the `backbone` (C3, C4, C5).
        levels: Which of them; level n has stride 2^n.
        weight: Factor of the loss at the beginning.
        schedule: The factor falls along a `cosine` over the whole run, along a straight line (`linear`), or is
            `constant`.
        final_ratio: Factor at the end of the run, relative to the beginning.
        stop: Distil to the `end` of the run as the official training does, or only until the last stage without mosaic
            (`no_aug`), as the paper says. The default is what the published figures were reached with; with the cosine
            the weight has fallen to a tenth there, so little depends on it. The schedule itself always spans the run.
        normalise: Standardise each channel over the batch first: the paper's dynamic temperature.
        sync_norm: With several processes, statistics of that standardisation over all of them; the official training
            takes those of each process.
        temperature: Of the softmax of `cwd`; its loss is multiplied by the square.
        mask_ratio: Share of positions that `mgd` hides.
        mgd_scale: Factor of the loss of `mgd` besides the weight, for it is a sum over all values.
        clip_norm: Largest L2 norm of the network's gradient in a run with a teacher; the smaller one of this and
            `optimizer.clip_norm` counts. None leaves it to the latter.
        precision: What the teacher runs in: `fp32`, or autocast to `bf16` or `fp16`.
        cache: `ram` keeps the teacher's maps of every image it has seen and recognises images pixel by pixel; only
            where views come again (`augment.views`, or without random augmentation). `none` computes them anew.
    """

    teacher: str | None = None
    method: str = "cwd"
    features: str = "neck"
    levels: tuple[int, ...] = (3, 4, 5)
    weight: float = 1.0
    schedule: str = "cosine"
    final_ratio: float = 0.1
    stop: str = "end"
    normalise: bool = True
    sync_norm: bool = False
    temperature: float = 1.0
    mask_ratio: float = 0.65
    mgd_scale: float = 2e-5
    clip_norm: float | None = 30.0
    precision: str = "fp32"
    cache: str = "none"

    def __post_init__(self) -> None:
        choices = {
            "method": METHODS,
            "features": FEATURES,
            "schedule": SCHEDULES,
            "stop": STOPS,
            "precision": TEACHER_PRECISIONS,
            "cache": FEATURE_CACHES,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, name, value, f"one of {', '.join(known)}")
        rising = list(self.levels) == sorted(set(self.levels))
        fits = bool(self.levels) and rising and self.levels[0] >= 1 and self.levels[-1] <= 7
        require(fits, "levels", list(self.levels), "levels from 1 to 7 in rising order, such as [3, 4, 5]")
        require(0 <= self.weight < math.inf, "weight", self.weight, "a number, 0 or more")
        nothing = self.teacher is not None and self.weight == 0
        require(not nothing, "weight", self.weight, "a number above 0 with a teacher, or no teacher")
        require(0 <= self.final_ratio < math.inf, "final_ratio", self.final_ratio, "a number, 0 or more")
        for name in ("temperature", "mgd_scale"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a number above 0")
        require(0 <= self.mask_ratio < 1, "mask_ratio", self.mask_ratio, "a number from 0, below 1")
        norm = self.clip_norm
        require(norm is None or 0 < norm < math.inf, "clip_norm", norm, "a number above 0")

    def weight_at(self, progress: float) -> float:
        """Factor of the distillation loss.

        Args:
            progress: Share of the run that is done before the step, from 0 to 1.

        Source: official training, 1 + (0.1 - 1) (1 - cos(pi it / T)) / 2 with T the iterations of the whole run.
        """
        done = {"cosine": (1 - math.cos(math.pi * progress)) / 2, "linear": progress, "constant": 0.0}[self.schedule]
        return self.weight * (1 + (self.final_ratio - 1) * done)

    def clipped_at(self, usual: float | None) -> float | None:
        """Largest gradient norm of a run whose optimiser has the given one; None does not clip."""
        limits = [norm for norm in (usual, self.clip_norm if self.teacher else None) if norm is not None]
        return min(limits) if limits else None
