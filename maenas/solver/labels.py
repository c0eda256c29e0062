"""Forward label setting: every partial path that may still reach a threshold, minus the dominated ones.

A label is a partial path at a state (C3 index, output width index, layers left) with an objective and costs. It is
dropped when its cheapest completion breaks a limit, when some multiplier vector proves that it cannot reach the
threshold, or when another label of the same state is at least as good in objective and in every cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maenas.solver.problem import Floats, Integers, Solution, weigh
from maenas.solver.relaxation import Relaxation, Values

NDArrayBool = NDArray[np.bool_]

PAIRS_PER_CHUNK = 1_000_000
TOLERANCE = 1e-9
"""Relative slack of bound comparisons, so that rounding never drops the optimum."""


@dataclass(slots=True)
class Labels:
    """Partial paths after one decision; all arrays have length N.

    Attributes:
        third: C3 index.
        width: Output width index.
        left: Units of layers left.
        objective: Sum of gains.
        cost: (M, N) costs without the fixed cost.
        parent: Index of the label before.
        option: Option chosen.
    """

    third: Integers
    width: Integers
    left: Integers
    objective: Floats
    cost: Floats
    parent: Integers
    option: Integers

    def __len__(self) -> int:
        """Number of labels."""
        return len(self.objective)

    def take(self, keep: Integers) -> Labels:
        """The labels at some indices, in that order."""
        return Labels(
            self.third[keep],
            self.width[keep],
            self.left[keep],
            self.objective[keep],
            self.cost[:, keep],
            self.parent[keep],
            self.option[keep],
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one forward pass found.

    Attributes:
        finals: Complete labels within the limits, fixed cost not included.
        layers: Labels kept after each decision, to trace paths back.
        kept: Labels kept in total.
        pruned: Extensions dropped by bounds or dominance.
    """

    finals: Labels
    layers: tuple[Labels, ...]
    kept: int
    pruned: int

    def solution(self, relaxation: Relaxation, index: int) -> Solution:
        """The complete path of a final label."""
        path: list[tuple[int, int]] = []
        label, place = self.finals, index
        for layer in reversed(self.layers):
            path.append((int(label.width[place]), int(label.option[place])))
            place, label = int(label.parent[place]), layer
        path.append((int(label.width[place]), int(label.option[place])))
        cost = self.finals.cost[:, index] + relaxation.problem.fixed_cost
        return Solution(float(self.finals.objective[index]), tuple(float(c) for c in cost), tuple(reversed(path)))


def sweep(
    relaxation: Relaxation,
    threshold: float,
    values: Sequence[Values],
    cheapest: Sequence[Values],
    *,
    room: Floats | None = None,
) -> Sweep:
    """One forward pass.

    Args:
        relaxation: The problem and its tables.
        threshold: Paths whose objective is below it may be dropped.
        values: Tables of a few multiplier vectors, for bounds.
        cheapest: For each cost, tables of its smallest completions.
        room: (M,) limits less fixed cost; the problem's own by default.
    """
    limit = relaxation.room if room is None else room
    count = len(limit)
    none = np.zeros(1, dtype=np.int64)
    start = np.array([relaxation.grid.capacity])
    labels = Labels(none, none, start, np.zeros(1), np.zeros((count, 1)), none, none)
    layers: list[Labels] = []
    kept = pruned = 0
    for index in range(len(relaxation.problem.decisions)):
        labels, dropped = _extend(relaxation, index, labels, threshold, values, cheapest, limit)
        pruned += dropped
        kept += len(labels)
        if index < len(relaxation.problem.decisions) - 1:
            layers.append(labels)
    return Sweep(labels, tuple(layers), kept, pruned)


def _extend(
    relaxation: Relaxation,
    index: int,
    labels: Labels,
    threshold: float,
    values: Sequence[Values],
    cheapest: Sequence[Values],
    limit: Floats,
) -> tuple[Labels, int]:
    """All useful extensions of the labels by one decision."""
    problem = relaxation.problem
    decision = problem.decisions[index]
    alive = _alive_options(relaxation, index, labels, threshold, values, limit)
    came_in, out, option = np.nonzero(alive)
    first = np.searchsorted(came_in, np.arange(len(decision.in_channels) + 1))
    fan = (first[1:] - first[:-1])[labels.width]
    ends = np.cumsum(fan)
    total = int(ends[-1]) if len(ends) else 0
    parts: list[Labels] = []
    begin = 0
    while begin < len(labels):
        base = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, base + PAIRS_PER_CHUNK, side="right")))
        parent = np.repeat(np.arange(begin, stop), fan[begin:stop])
        within = np.arange(len(parent)) - np.repeat(ends[begin:stop] - fan[begin:stop] - base, fan[begin:stop])
        choice = first[labels.width[parent]] + within
        part = _children(relaxation, index, labels, parent, out[choice], option[choice])
        keep = _promising(relaxation, index, part, threshold, values, cheapest, limit)
        parts.append(_undominated(part.take(keep)))
        begin = stop
    if not parts:
        parts = [_children(relaxation, index, labels, *(np.zeros(0, dtype=np.int64),) * 3)]
    merged = parts[0] if len(parts) == 1 else _undominated(_concatenate(parts))
    return merged, total - len(merged)


def _children(
    relaxation: Relaxation, index: int, labels: Labels, parent: Integers, out: Integers, option: Integers
) -> Labels:
    problem = relaxation.problem
    decision = problem.decisions[index]
    came_in, third = labels.width[parent], labels.third[parent]
    objective = labels.objective[parent] + decision.gain[came_in, out, option]
    cost = labels.cost[:, parent] + decision.cost[:, came_in, out, option]
    if index == len(problem.decisions) - 1:
        objective = objective + problem.tail_gain[third, came_in, out]
        cost = cost + problem.tail_cost[:, third, came_in, out]
    left = labels.left[parent] - relaxation.grid.steps[index][option]
    return Labels(out if index == problem.tap else third, out, left, objective, cost, parent, option)


def _alive_options(
    relaxation: Relaxation,
    index: int,
    labels: Labels,
    threshold: float,
    values: Sequence[Values],
    limit: Floats,
) -> NDArrayBool:
    """(I, O, P) options that some label could use and still reach the threshold, by every multiplier vector."""
    problem, grid = relaxation.problem, relaxation.grid
    decision = problem.decisions[index]
    alive: NDArrayBool = np.isfinite(decision.gain)
    slack = TOLERANCE * (1.0 + abs(threshold))
    for each in values:
        reduced = labels.objective - weigh(each.multipliers, labels.cost)
        shape = (each.tables[index].shape[0], len(decision.in_channels), grid.capacity + 1)
        prefix = np.full(shape, -np.inf)
        np.maximum.at(prefix, (labels.third, labels.width, labels.left), reduced)
        best = np.full((*decision.gain.shape[:2], len(grid.levels[index])), -np.inf)
        for place, level in enumerate(grid.levels[index]):
            if level > grid.capacity:
                continue
            before = prefix[:, :, None, level:]
            if index == len(problem.decisions) - 1:
                through = np.max(before, axis=3) + each.tables[-1]
            else:
                ahead = relaxation.next_values(each, index)[:, None, :, : grid.capacity + 1 - level]
                through = np.max(before + ahead, axis=3)
            best[..., place] = np.max(through, axis=0)
        place_of = np.searchsorted(grid.levels[index], grid.steps[index])
        bound = relaxation.reduced_gain(index, each.multipliers) + best[..., place_of] + weigh(each.multipliers, limit)
        alive &= bound >= threshold - slack
    return alive


def _promising(
    relaxation: Relaxation,
    index: int,
    part: Labels,
    threshold: float,
    values: Sequence[Values],
    cheapest: Sequence[Values],
    limit: Floats,
) -> Integers:
    """Indices of extensions that keep every limit and may reach the threshold."""
    last = index == len(relaxation.problem.decisions) - 1
    ok = (part.left >= 0) & np.isfinite(part.objective)
    slack = TOLERANCE * (1.0 + abs(threshold))
    third, left = part.third, np.maximum(part.left, 0)
    if index == relaxation.problem.tap:
        third = np.zeros_like(third)
    for metric, each in enumerate(cheapest):
        ahead = 0.0 if last else relaxation.next_values(each, index)[third, part.width, left]
        # The limit itself is exact for complete paths; completions get room for rounding.
        tolerance = 0.0 if last else 1e-12 * abs(limit[metric])
        ok &= part.cost[metric] - ahead <= limit[metric] + tolerance
    for each in values:
        ahead = 0.0 if last else relaxation.next_values(each, index)[third, part.width, left]
        bound = part.objective + ahead + weigh(each.multipliers, limit[:, None] - part.cost)
        ok &= bound >= threshold - slack
    return np.flatnonzero(ok)


def _undominated(labels: Labels) -> Labels:
    """Labels that no other of the same state beats in objective and every cost."""
    if len(labels) < 2:
        return labels
    wide, deep = int(labels.width.max()) + 1, int(labels.left.max()) + 1
    state = (labels.third * wide + labels.width) * deep + labels.left
    order = np.lexsort((-labels.objective, *labels.cost[::-1], state))
    labels, state = labels.take(order), state[order]
    same = np.zeros(len(labels), dtype=bool)
    same[1:] = state[1:] == state[:-1]
    group = np.cumsum(~same)
    if len(labels.cost) == 1:
        # Ascending cost inside a group: keep what exceeds the running maximum of the objective. Ranks keep it exact.
        rank = np.unique(labels.objective, return_inverse=True)[1].astype(np.int64)
        height = group * (int(rank.max()) + 2) + rank
        highest = np.maximum.accumulate(height)
        keep = np.ones(len(labels), dtype=bool)
        keep[1:] = height[1:] > np.where(same[1:], highest[:-1], -1)
        return labels.take(np.flatnonzero(keep))
    return labels.take(np.flatnonzero(~_dominated_nearby(labels, group)))


def _dominated_nearby(labels: Labels, group: Integers, reach: int = 48) -> NDArrayBool:
    """Several costs: compare each label with its `reach` predecessors of the same group (enough in practice)."""
    dominated = np.zeros(len(labels), dtype=bool)
    for lag in range(1, min(reach, len(labels) - 1) + 1):
        near = group[lag:] == group[:-lag]
        if not near.any():
            break
        beats = near & (labels.objective[:-lag] >= labels.objective[lag:])
        for cost in labels.cost:
            beats &= cost[:-lag] <= cost[lag:]
        dominated[lag:] |= beats
    return dominated


def _concatenate(parts: list[Labels]) -> Labels:
    return Labels(
        np.concatenate([part.third for part in parts]),
        np.concatenate([part.width for part in parts]),
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.objective for part in parts]),
        np.concatenate([part.cost for part in parts], axis=1),
        np.concatenate([part.parent for part in parts]),
        np.concatenate([part.option for part in parts]),
    )
