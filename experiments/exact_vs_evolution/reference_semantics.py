"""The reference tool's evolutionary search, written anew from its documented behaviour with a fast evaluator.

What it does is kept: how children are made, which are rejected, how the population is ranked, and the index bug of its
current release (v2), by which the last block is never mutated; its first release (v1) has no such bug. How it computes
is not: the tool builds a PyTorch module for every candidate and ranks by comparing texts, while here the score and
latency of a block are looked up once computed, and a full population is kept sorted. Same answers, much faster.

Documented facts leave three things open; chosen here: a block's move is drawn uniformly from width, hidden width and
depth; every attempt at a single-block mutation starts from the same network; and a hidden width is not lowered when its
own block becomes narrower (only the next block's is).
"""

from __future__ import annotations

import math
import random
import time
from bisect import insort
from dataclasses import dataclass, field

from maenas.latency.table import LatencyTable
from maenas.lowering.op import conv

Block = tuple[int, int, int]
"""Output width, hidden width, depth; the stem is (width, 0, 0)."""

Network = tuple[Block, ...]

START: Network = ((32, 0, 0), (48, 32, 1), (96, 48, 1), (96, 96, 1), (192, 96, 1), (384, 192, 1))
"""The starting structure of all three shipped configurations."""

STRIDES = (1, 2, 2, 2, 1, 2)
STEM_CHANNELS, STEM_SIDE, MAX_STEM = 12, 320, 32
WEIGHTS = (0, 0, 1, 1, 16)
FACTORS = (2.0, 1.5, 1.25, 0.8, 0.6, 0.5)
DEPTH_STEPS = (-2, -1, 1, 2)
MAX_CHANNELS = 2048
POPULATION = 512
MUTATIONS = 2


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration of the tool.

    Attributes:
        first_kernel: Kernel of a unit's first convolution: 1 (k1kx) or 3 (kxkx).
        layers: Layers budget.
        latency_ms: Latency budget per image.
        ranges: Block index to smallest and largest output width.
    """

    first_kernel: int
    layers: int
    latency_ms: float
    ranges: dict[int, tuple[int, int]]

    def max_depth(self, index: int) -> int:
        """Most units of a block."""
        return 2 if index == 1 else self.layers // 2 // (len(START) - 2)


@dataclass(slots=True)
class Evaluator:
    """Score and latency of networks; every operator and every block is computed once.

    Attributes:
        table: Operator latencies.
        first_kernel: As in `Config`.
    """

    table: LatencyTable
    first_kernel: int
    _ops: dict[tuple[int, ...], float] = field(default_factory=dict)
    _blocks: dict[tuple[int, int, Block], tuple[float, float]] = field(default_factory=dict)

    def __call__(self, network: Network) -> tuple[float, float]:
        """(score, milliseconds per image)."""
        score, ms, width = 0.0, 0.0, STEM_CHANNELS
        for index, block in enumerate(network):
            key = (index, width, block)
            found = self._blocks.get(key)
            if found is None:
                found = self._blocks[key] = self._block(*key)
            score += found[0]
            ms += found[1]
            width = block[0]
        return score, ms

    def _block(self, index: int, width: int, block: Block) -> tuple[float, float]:
        """A stage's weight counts all convolutions up to its end, and ln C of its own last block."""
        out, hidden, depth = block
        level = sum(stride == 2 for stride in STRIDES[1 : index + 1])
        if index == 0:
            terms, ms = math.log(width * 9), self._op(3, width, STEM_SIDE, out, 1, 0)
        else:
            terms, ms = 0.0, 0.0
            side, stride = STEM_SIDE // math.prod(STRIDES[:index]), STRIDES[index]
            for _ in range(depth):
                terms += math.log(width * self.first_kernel**2) + math.log(hidden * 9)
                ms += self._op(self.first_kernel, width, side, hidden, 1, 0)
                ms += self._op(3, hidden, side, out, stride, 1)
                side //= stride
                if width != out:
                    ms += self._op(1, width, side, out, 1, 0)
                width, stride = out, 1
        score = sum(WEIGHTS[level:]) * 0.5 * terms
        if index == len(STRIDES) - 1 or STRIDES[index + 1] == 2:
            score += WEIGHTS[level] * math.log(out)
        return score, ms

    def _op(self, kernel: int, width: int, side: int, out: int, stride: int, fused: int) -> float:
        key = (kernel, width, side, out, stride, fused)
        if key not in self._ops:
            sides, residual = (side, side), bool(fused)
            op = conv(width, out, sides, kernel_size=kernel, stride=stride, residual=residual, name="", stage="")
            self._ops[key] = float(self.table.op_latency(op).ms)
        return self._ops[key]


def num_layers(network: Network) -> int:
    """Convolutions on the main path."""
    return 1 + 2 * sum(depth for _, _, depth in network)


def round8(value: float) -> int:
    """The nearest multiple of 8, halves to even, at least 8."""
    return max(8, round(value / 8) * 8)


@dataclass(slots=True)
class Mutator:
    """Makes children.

    Attributes:
        config: Budgets and width ranges.
        rng: Source of all draws.
        last_mutable: False repeats the index bug of v2.
    """

    config: Config
    rng: random.Random
    last_mutable: bool

    def child(self, network: Network) -> Network:
        """A copy after successive single-block mutations."""
        for _ in range(MUTATIONS):
            network = self._mutated(network)
        return network

    def _mutated(self, network: Network) -> Network:
        """One block changed; up to one attempt per block to stay within the layers, else the last attempt."""
        changed = network
        for _ in range(len(network)):
            index = self.rng.randrange(len(network) if self.last_mutable else len(network) - 1)
            changed = self._moved(network, index)
            if num_layers(changed) <= self.config.layers:
                break
        return changed

    def _moved(self, network: Network, index: int) -> Network:
        out, hidden, depth = network[index]
        move = 0 if index == 0 else self.rng.randrange(3)
        if move == 0:
            return self._with_width(network, index)
        if move == 1:
            hidden = max(min(round8(hidden * self.rng.choice(FACTORS)), out), round8(out / 10))
        else:
            depth = self._other_depth(index, depth)
        return (*network[:index], (out, hidden, depth), *network[index + 1 :])

    def _with_width(self, network: Network, index: int) -> Network:
        """Another output width, not below the input nor above the next block's output."""
        out, hidden, depth = network[index]
        out = min(round8(out * self.rng.choice(FACTORS)), MAX_CHANNELS)
        following = network[index + 1 :]
        if index == 0:
            return ((min(out, MAX_STEM, following[0][0]), hidden, depth), *following)
        low, high = self.config.ranges.get(index, (8, MAX_CHANNELS))
        out = max(min(max(out, low), high), network[index - 1][0])
        if following:
            (next_out, next_hidden, next_depth), *rest = following
            out = min(out, next_out)
            following = ((next_out, min(next_hidden, out), next_depth), *rest)
        return (*network[:index], (out, hidden, depth), *following)

    def _other_depth(self, index: int, depth: int) -> int:
        """Another depth; the draw is repeated a few times if the limits lead back to the same one."""
        for _ in DEPTH_STEPS:
            changed = max(1, min(depth + self.rng.choice(DEPTH_STEPS), self.config.max_depth(index)))
            if changed != depth:
                return changed
        return depth


@dataclass(slots=True)
class Population:
    """Networks with scores; ranked by dropping repeats and cutting to the best POPULATION whenever it overflows.

    It starts as copies of one network, so that the first ranking leaves two and it grows again from there. Once full
    and without repeats it stays so: a repeat, or a child no better than the worst, would leave by the next ranking at
    once, and any other pushes the worst out. `_members` doubles as "full" from then on.
    """

    ranked: list[tuple[float, Network]]
    _members: set[Network] = field(default_factory=set)

    @classmethod
    def of(cls, network: Network, score: float) -> Population:
        """Copies of one network."""
        return cls([(score, network)] * POPULATION)

    def insert(self, network: Network, score: float) -> None:
        """Add a child."""
        if not self._members:
            self.ranked.append((score, network))
            if len(self.ranked) > POPULATION:
                self.ranked = sorted(dict.fromkeys(self.ranked), key=_descending)[:POPULATION]
                if len(self.ranked) == POPULATION:
                    self._members = {member for _, member in self.ranked}
        elif score > self.ranked[-1][0] and network not in self._members:
            self._members.remove(self.ranked.pop()[1])
            self._members.add(network)
            insort(self.ranked, (score, network), key=_descending)


def _descending(member: tuple[float, Network]) -> float:
    return -member[0]


@dataclass(slots=True)
class Run:
    """What one search did.

    Attributes:
        best: Its best network.
        candidates: Children made, rejected ones and repeats included.
        over_latency: Of those, rejected for their latency.
        over_layers: Of those, rejected for their layers.
        repeats: Of those, equal to an earlier one.
        trace: (CPU seconds, candidates, best score) after each improvement and at the end.
    """

    best: Network
    candidates: int = 0
    over_latency: int = 0
    over_layers: int = 0
    repeats: int = 0
    trace: list[tuple[float, int, float]] = field(default_factory=list)


def search(
    config: Config, table: LatencyTable, *, seed: int, num_candidates: int, last_mutable: bool
) -> tuple[Run, Population]:
    """Evolve from START; parents are drawn uniformly, and a child never competes with its parent."""
    begin = time.process_time()
    evaluate = Evaluator(table, config.first_kernel)
    rng = random.Random(seed)
    mutator = Mutator(config, rng, last_mutable)
    best, ms = evaluate(START)
    if ms > config.latency_ms:
        raise ValueError(f"the starting structure takes {ms} ms; expected at most {config.latency_ms}")
    population, run, seen = Population.of(START, best), Run(START), {hash(START)}
    run.trace.append((time.process_time() - begin, 0, best))
    for count in range(1, num_candidates + 1):
        child = mutator.child(rng.choice(population.ranked)[1])
        key = hash(child)
        run.repeats += key in seen
        seen.add(key)
        if num_layers(child) > config.layers:
            run.over_layers += 1
            continue
        score, ms = evaluate(child)
        if ms > config.latency_ms:
            run.over_latency += 1
            continue
        population.insert(child, score)
        if score > best:
            best, run.best = score, child
            run.trace.append((time.process_time() - begin, count, best))
    run.candidates = num_candidates
    run.trace.append((time.process_time() - begin, num_candidates, best))
    return run, population
