"""Forward-pass entropy of a backbone by Monte Carlo: what the closed form of the entropy score claims, measured.

The closed form says that ln std of a stage's output is the sum of 1/2 ln(fan-in) over the main-path convolutions up to
there, for Gaussian weights and images. Here the backbone's own modules are run under the assumptions that it makes
(docs/scores.md): folded to their deployed convolutions, weights N(0, 1) without biases, circular padding, and neither
activations nor shortcuts, pyramid pooling or channel gates. Every convolution's output is divided by its root mean
square so that nothing overflows, and the logarithms of these scales add up along the path.

Letters: D draws, S stages and the stem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maenas.structure import Structure

from .backbone import Backbone
from .blocks import CSPStage, InvertedResidual, ResidualUnit
from .layers import SPP, SqueezeExcite
from .reparam import deploy

BATCH_SIZE = 2
FEWEST_DRAWS = 4
LEFT_OUT = (nn.ReLU, nn.SiLU, nn.LeakyReLU, SPP, SqueezeExcite)


@dataclass(frozen=True, slots=True)
class ForwardEntropy:
    """Measured logarithms of standard deviations.

    Attributes:
        log_std: After the stem and after every stage, of the expected variance over the draws, in nats.
        standard_error: Of each, from the spread of the draws.
        draws: Random networks that were run.
    """

    log_std: tuple[float, ...]
    standard_error: tuple[float, ...]
    draws: int


def forward_entropy(
    structure: Structure, *, side: int = 64, accuracy: float = 0.03, max_draws: int = 400, seed: int = 0
) -> ForwardEntropy:
    """Measured ln std of the stem's and of every stage's output map, from random forward passes.

    Draws go on until every standard error is below `accuracy`.

    Args:
        structure: Whose backbone is run.
        side: Height and width of the images, a multiple of 64: the coarsest map must be wider than half a 5 x 5 kernel.
        accuracy: Largest standard error, in nats.
        max_draws: Where to end at the latest.
        seed: Equal seeds give equal values.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        backbone = linear_path(structure)
        rows: list[list[float]] = []
        while len(rows) < max_draws:
            rows.append(_one_draw(backbone, structure, side))
            if len(rows) >= FEWEST_DRAWS:
                log_std, errors = _expected(torch.tensor(rows, dtype=torch.float64))
                if max(errors) < accuracy:
                    break
        log_std, errors = _expected(torch.tensor(rows, dtype=torch.float64))
    return ForwardEntropy(tuple(log_std), tuple(errors), len(rows))


def linear_path(structure: Structure) -> Backbone:
    """A backbone in deployed form, reduced to its convolutions with circular padding."""
    backbone = deploy(Backbone(structure.backbone))
    for module in list(backbone.modules()):
        if isinstance(module, ResidualUnit | InvertedResidual):
            module.has_shortcut = False
        for name, child in list(module.named_children()):
            if isinstance(child, LEFT_OUT):
                setattr(module, name, nn.Identity())
        if isinstance(module, nn.Conv2d):
            module.bias = None
            module.padding_mode = "circular"
    return backbone


def _one_draw(backbone: Backbone, structure: Structure, side: int) -> list[float]:
    """(S,) ln std after the stem and each stage, for one set of weights and images."""
    beside = {
        id(module)
        for stage in backbone.modules()
        if isinstance(stage, CSPStage) and stage.units
        for module in stage.shortcut.modules()
    }
    total, found = 0.0, []

    def rescale(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal total
        scale = output.square().mean().sqrt()
        if id(module) not in beside:  # the second branch of a csp stage is brought to the first one's size
            total += float(scale.log())
        return output / scale

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        found.append(total)

    convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        nn.init.normal_(conv.weight)
    hooks = [conv.register_forward_hook(rescale) for conv in convs]
    hooks += [part.register_forward_hook(note) for part in (backbone.stem, *backbone.stages)]
    backbone(torch.randn(BATCH_SIZE, structure.backbone.stem.in_channels, side, side))
    for hook in hooks:
        hook.remove()
    return found


def _expected(rows: Tensor) -> tuple[list[float], list[float]]:
    """1/2 ln of the mean of exp(2 ln std) over (D, S) draws, and its standard error by the delta method."""
    top = rows.max(dim=0).values
    shares = (2 * (rows - top)).exp()
    mean = shares.mean(dim=0)
    error = shares.std(dim=0) / mean / math.sqrt(len(rows)) / 2
    return (top + mean.log() / 2).tolist(), error.tolist()
