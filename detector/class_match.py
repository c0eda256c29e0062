"""Classes of a network and those that it is measured on: matched by name, narrower ones counted as broader ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .nms import suppress
from .types import Detections


@dataclass(frozen=True, slots=True, eq=False)
class ClassMatch:
    """What becomes of the labels of a network.

    Attributes:
        label_of: Label in the data set of every label of the network, -1 for none.
        broader: Further labels in the data set of labels of the network.
    """

    label_of: NDArray[np.int64]
    broader: Mapping[int, tuple[int, ...]]

    @classmethod
    def by_name(
        cls, model_names: Sequence[str], names: Sequence[str], counts_as: Mapping[str, Sequence[str]]
    ) -> ClassMatch:
        """Match.

        Args:
            model_names: Of the network.
            names: Of the data set.
            counts_as: Classes of the network with those of the data set that they are kinds of.
        """
        places = {name: label for label, name in enumerate(names)}
        label_of = np.array([places.get(name, -1) for name in model_names], np.int64)
        broader = {
            label: tuple(places[other] for other in counts_as[name] if other in places)
            for label, name in enumerate(model_names)
            if name in counts_as
        }
        return cls(label_of, {label: targets for label, targets in broader.items() if targets})

    def translate(self, found: Detections, *, iou_threshold: float, max_detections: int) -> Detections:
        """Detections of an image with labels of the data set; those of classes that it lacks are dropped.

        Args:
            found: Labels of the network.
            iou_threshold: An object that was found under a class and under a narrower one is one detection: of two
                boxes that overlap more, the better stays.
            max_detections: Best ones that stay.
        """
        labels = self.label_of[found.labels]
        if not self.broader:
            return replace(found.select(labels >= 0), labels=labels[labels >= 0])
        pairs = [
            (row, target)
            for row, (own, label) in enumerate(zip(found.labels.tolist(), labels.tolist(), strict=True))
            for target in (*(() if label < 0 else (label,)), *self.broader.get(own, ()))
        ]
        rows = np.array([row for row, _ in pairs], np.int64)
        targets = np.array([target for _, target in pairs], np.int64)
        order = np.argsort(-found.scores[rows], kind="stable")
        rows, targets = rows[order], targets[order]
        kept = np.ones(len(rows), np.bool_)
        for label in {target for several in self.broader.values() for target in several}:
            members = np.flatnonzero(targets == label)
            kept[members] = False
            kept[members[suppress(found.boxes[rows[members]], iou_threshold, limit=max_detections)]] = True
        rows, targets = rows[kept][:max_detections], targets[kept][:max_detections]
        return replace(found.select(rows), labels=targets)
