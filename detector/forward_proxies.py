"""Training-free proxies that run the backbone: the Zen score, and NASWOT's count of activation patterns.

Both see the modules that training would see, with random weights and Gaussian images; neither needs data. They are
there to be compared with the closed forms, so they follow their papers, and where a detector's backbone has something
that the papers' networks lack, the choice is written here.

Letters: B images, C channels, H W side of the maps, U activations of one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maenas.structure import Structure

from .backbone import Backbone
from .blocks import CSPStage, InvertedResidual, ResidualUnit
from .layers import NORM_EPS, RepConv

ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.LeakyReLU)


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """How much is computed.

    Attributes:
        side: Height and width of the images, a multiple of 32.
        batch_size: Images at once.
        draws: Random networks that are averaged.
        seed: Equal seeds give equal values.
    """

    side: int = 128
    batch_size: int = 16
    draws: int = 8
    seed: int = 0


DEFAULT = ProxySettings()
ZEN_STEP = 0.01
"""Size of the disturbance, relative to the images."""


def zen_score(structure: Structure, *, settings: ProxySettings = DEFAULT) -> float:
    """Zen score of a backbone: how much a small disturbance of the image changes the last map, in nats.

    Gaussian weights, batch norms in training mode, no shortcuts:
    `ln mean_b sum |f(x) - f(x + 0.01 e)| + sum over norms of ln sqrt(mean of their variances)`. Shortcuts of units are
    taken out, of a two-branch convolution the k x k branch is kept, and a csp stage's second branch is normalised but
    counts no norm, so that the second sum restores exactly what the norms took from the path to the last map.

    Args:
        structure: Whose backbone is judged.
        settings: Images, draws, seed.

    Returns:
        The mean over the draws; may be NaN or infinite for a degenerate network.

    Source: Zen-NAS (arXiv 2102.01063), Algorithm 1 and its public code's constants.
    """
    values = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(settings.seed)
        backbone = chain_of(structure).train()
        norms = _counted_norms(backbone)
        for _ in range(settings.draws):
            _draw_gaussian(backbone)
            images = _images(structure, settings)
            with _recorded_scales(norms) as scales:
                first = backbone(images)[-1]
            second = backbone(images + ZEN_STEP * torch.randn_like(images))[-1]
            change = (first - second).abs().sum(dim=(1, 2, 3)).mean()
            values.append(float(change.log()) + math.fsum(scales))
    return sum(values) / len(values)


def naswot_score(structure: Structure, *, settings: ProxySettings = DEFAULT) -> float:
    """NASWOT of a backbone: ln |det K| of the images' agreement over all activations.

    `K[i, j]` is the number of activations whose input has the same sign for the images i and j. The network has its
    initial weights, and batch norms in training mode; SiLU and leaky ReLU count as ReLU does, by their input's sign.

    Args:
        structure: Whose backbone is judged.
        settings: Images, draws, seed.

    Returns:
        The mean over the draws; minus infinity where two images agree everywhere.

    Source: Mellor et al., Neural Architecture Search without Training (arXiv 2006.04647).
    """
    values = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(settings.seed)
        for _ in range(settings.draws):
            backbone = Backbone(structure.backbone).train()
            kernel = torch.zeros(settings.batch_size, settings.batch_size, dtype=torch.float64)

            def count(_module: nn.Module, inputs: tuple[Tensor, ...], kernel: Tensor = kernel) -> None:
                # (B, U) of 1 and -1: the product counts agreements less disagreements.
                signs = torch.where(inputs[0].flatten(1) > 0, 1.0, -1.0)
                kernel += (signs @ signs.T + signs.shape[1]).double() / 2

            hooks = [m.register_forward_pre_hook(count) for m in backbone.modules() if isinstance(m, ACTIVATIONS)]
            backbone(_images(structure, settings))
            for hook in hooks:
                hook.remove()
            values.append(float(torch.linalg.slogdet(kernel).logabsdet))
    return sum(values) / len(values)


FORWARD_PROXIES: dict[str, Callable[..., float]] = {"zen": zen_score, "naswot": naswot_score}
"""By name; each takes a structure and, by keyword, settings."""


def chain_of(structure: Structure) -> Backbone:
    """A structure's backbone without shortcuts of units, two-branch convolutions reduced to their k x k branch."""
    backbone = Backbone(structure.backbone)
    for module in list(backbone.modules()):
        if isinstance(module, ResidualUnit | InvertedResidual):
            module.has_shortcut = False
        if isinstance(module, ResidualUnit):
            module.projection = nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, RepConv):
                child.dense.act = child.act
                setattr(module, name, child.dense)
    return backbone


def _counted_norms(backbone: nn.Module) -> list[nn.BatchNorm2d]:
    """Norms on the path to the last map."""
    beside = {id(m) for stage in backbone.modules() if isinstance(stage, CSPStage) for m in _branch_beside(stage)}
    return [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) and id(m) not in beside]


def _branch_beside(stage: CSPStage) -> Iterator[nn.Module]:
    if stage.units:
        yield from stage.shortcut.modules()


def _draw_gaussian(backbone: nn.Module) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _images(structure: Structure, settings: ProxySettings) -> Tensor:
    channels = structure.backbone.stem.in_channels
    return torch.randn(settings.batch_size, channels, settings.side, settings.side)


@contextmanager
def _recorded_scales(norms: Sequence[nn.BatchNorm2d]) -> Iterator[list[float]]:
    """For the time of the block a list that receives ln sqrt(mean variance) of what goes into every norm."""
    scales: list[float] = []

    def note(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance = inputs[0].var(dim=(0, 2, 3), unbiased=False).mean() + NORM_EPS
        scales.append(0.5 * float(variance.log()))

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        yield scales
    finally:
        for hook in hooks:
            hook.remove()
