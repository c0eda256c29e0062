"""What images of a union of data sets teach of classes that their source does not mark: nothing.

Tensor letters: S sources, B images, P points of all levels, C class channels, G largest number of boxes of an image,
N positives of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data.taxonomy import LabelSpace
from .targets import Targets


@dataclass(frozen=True, slots=True, eq=False)
class LabelRules:
    """Tables of a label space, on one device.

    Attributes:
        negatives: (S, C + 1, C) bool as of `LabelSpace.negatives`.
        implied: (C, C) bool as of `LabelSpace.implied`.
    """

    negatives: Tensor
    implied: Tensor

    @classmethod
    def of(cls, space: LabelSpace, *, channels: int, device: torch.device | str) -> LabelRules:
        """The tables for a head with so many class channels; one after the classes is background, known everywhere."""
        negatives, implied = torch.from_numpy(space.negatives()), torch.from_numpy(space.implied())
        for channel in range(implied.shape[0], channels):
            known = negatives.new_ones(negatives.shape[0], negatives.shape[1], 1)
            negatives = torch.cat([negatives, known], dim=2)
            # No box is labelled as background: a row in the middle, so that the last one stays what it is.
            negatives = torch.cat([negatives[:, :channel], negatives[:, -1:], negatives[:, -1:]], dim=1)
            implied = torch.nn.functional.pad(implied, (0, 1, 0, 1))
        return cls(negatives.to(device), implied.to(device))

    def judging(self, targets: Targets) -> Targets:
        """The same targets with the classes that each box is known not to be of."""
        assert targets.sources is not None
        return replace(targets, judged=self.negatives[targets.sources[:, None], targets.labels])

    def learnt(self, targets: Targets, image: Tensor, point: Tensor, box: Tensor, *, num_points: int) -> Tensor:
        """(B, P, C) bool: the classes that each point learns.

        A point that answers for a box learns the box's class, the broader ones, and those that the box is known not to
        be of; any other point those that its image's source would have marked.

        Args:
            targets: As of `judging`.
            image: (N,) of the positives.
            point: (N,) of the positives.
            box: (N,) that each answers for.
            num_points: P.
        """
        assert targets.sources is not None and targets.judged is not None
        learnt = self.negatives[targets.sources, -1][:, None].repeat(1, num_points, 1)
        learnt[image, point] = targets.judged[image, box] | self.implied[targets.labels[image, box]]
        return learnt
