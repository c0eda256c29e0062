"""Backbones of the timm library in place of a structure's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maenas.extras import require

from .backbone import STRIDES
from .errors import InputError, did_you_mean, first_line

PROBE_SIZE = (64, 96)
"""(height, width) of the image that a new backbone is tried on."""


class TimmBackbone(nn.Module):
    """Three maps of a timm network, whose own normalisation of the input is done inside.

    A detector takes RGB in 0 ... 255; networks of timm expect values in 0 ... 1, less a mean and divided by a standard
    deviation per channel.

    Attributes:
        channels: Channels of the three maps.
        strides: Image pixels per cell of the three maps: (8, 16, 32).
        network: The timm network, which returns a list of maps.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        picked: tuple[int, int, int],
        channels: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.strides = STRIDES
        self.network = network
        self._picked = picked
        self._channels_last = channels_last
        # Known from the network's name, hence no part of the state dict.
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, in, H, W) in 0 ... 255 to three maps (B, channels[l], H / strides[l], W / strides[l])."""
        maps = self.network((images - self.mean) * self.scale)
        features = [maps[index] for index in self._picked]
        # Transformers of timm keep channels last; necks want them first.
        return [x.permute(0, 3, 1, 2).contiguous() for x in features] if self._channels_last else features


def timm_backbone(
    name: str,
    *,
    pretrained: bool = False,
    out_indices: Sequence[int] | None = None,
    in_channels: int = 3,
    **options: Any,  # noqa: ANN401
) -> TimmBackbone:
    """A network of timm as the backbone of a detector: `Detector(structure, backbone=timm_backbone("resnet18"))`.

    The detector's structure then describes neck and head only: what is computed from the structure alone (latency,
    cost, a checkpoint) does not know this backbone. `deploy` leaves the batch norms in it.

    Args:
        name: Name in timm, such as `resnet50` or `mobilenetv3_small_100`.
        pretrained: Load timm's weights, which are downloaded; their license is stated where they come from.
        out_indices: Feature maps to use, exactly those at strides 8, 16, 32; by default the last one at each stride.
        in_channels: Channels of the image, as the structure's stem has them.
        options: Further arguments of `timm.create_model`.

    Raises:
        MissingExtraError: timm is not installed.
        InputError: No such network, or it has no maps at strides 8, 16 and 32 for images of any size.
    """
    timm = require("timm", extra="timm", purpose="a backbone of another library")
    if ":" not in name and not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise InputError(f"backbone is {name!r}; expected a network of timm (timm.list_models() has their names){hint}")
    if out_indices is not None:
        options["out_indices"] = tuple(out_indices)
    # What timm raises for networks without feature maps, unknown options or a failed download has no common base.
    try:
        network = timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=in_channels, **options)
    except Exception as error:
        raise InputError(f"{name}: cannot be made by timm ({first_line(error)})") from error
    reductions = [int(stride) for stride in network.feature_info.reduction()]
    picked = _picked(name, reductions, exact=out_indices is not None)
    channels = [int(network.feature_info.channels()[index]) for index in picked]
    settings = timm.data.resolve_model_data_config(network)
    backbone = TimmBackbone(
        network,
        picked=picked,
        channels=(channels[0], channels[1], channels[2]),
        mean=_per_channel(settings["mean"], in_channels),
        std=_per_channel(settings["std"], in_channels),
        channels_last=getattr(network, "output_fmt", None) == "NHWC",
    )
    _try(name, backbone, in_channels)
    return backbone


def _picked(name: str, reductions: list[int], *, exact: bool) -> tuple[int, int, int]:
    """Positions of the last map at each stride."""
    found = ", ".join(map(str, reductions))
    if exact and sorted(reductions) != list(STRIDES):
        raise InputError(f"{name}: out_indices picks maps at strides {found}; expected one each at 8, 16 and 32")
    last = {stride: index for index, stride in enumerate(reductions)}
    if any(stride not in last for stride in STRIDES):
        raise InputError(
            f"{name}: its feature maps have strides {found}; expected maps at strides 8, 16 and 32, "
            "as convolutional networks and hierarchical transformers have"
        )
    return last[8], last[16], last[32]


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """The values for RGB, or their mean for every channel of images that are not RGB."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


def _try(name: str, backbone: TimmBackbone, in_channels: int) -> None:
    """Run it once: some networks take one image size only, and stated channels and strides may be wrong.

    Raises:
        InputError: It fails, or its maps are not what it states.
    """
    height, width = PROBE_SIZE
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            maps = backbone(torch.zeros(1, in_channels, height, width))
    # Whatever it is that a network of another library cannot do with the image.
    except Exception as error:
        raise InputError(
            f"{name}: cannot take an image of {height} x {width} ({first_line(error)}); "
            "expected a network for images of any size that is a multiple of 32"
        ) from error
    finally:
        backbone.train(was_training)
    stated = zip(backbone.channels, STRIDES, strict=True)
    expected = [(1, channels, height // stride, width // stride) for channels, stride in stated]
    actual = [tuple(x.shape) for x in maps]
    if actual != expected:
        raise InputError(f"{name}: its maps have shapes {actual}; expected {expected}")
