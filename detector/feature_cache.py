"""Maps of images that come again, found by the pixels themselves: a map is never another image's.

Tensor letters: B images, C channels, H W feature size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor


class FeatureCache:
    """Keeps the maps of every image in memory, as they were computed.

    A batch with an image that is not known yet is computed as a whole, so that what an image's maps are does not
    depend on what is kept already: a run that goes on with an empty cache computes the same again.

    Attributes:
        hits: Images found.
        misses: Images of batches that were computed.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, list[Tensor]] = {}
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def maps(self, images: Tensor, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Maps of a batch, on the CPU or where they were computed.

        Args:
            images: (B, 3, H, W) uint8 on the CPU.
            compute: Gives the (B, C, H, W) maps.
        """
        keys = [_key(image) for image in images]
        if all(key in self._kept for key in keys):
            self.hits += len(keys)
            rows = [self._kept[key] for key in keys]
            return [torch.stack(level).permute(0, 3, 1, 2) for level in zip(*rows, strict=True)]
        self.misses += len(keys)
        maps = compute()
        # Channels innermost, as convolutions leave them: putting a batch together is then one copy per image.
        levels = [level.permute(0, 2, 3, 1).cpu() for level in maps]
        for place, key in enumerate(keys):
            if key not in self._kept:
                self._kept[key] = [level[place].clone(memory_format=torch.contiguous_format) for level in levels]
        return maps


def _key(image: Tensor) -> bytes:
    """Digest of an image's pixels, and of its height, for two sizes may have as many."""
    height = str(image.shape[1]).encode()
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16, person=height).digest()
