"""Evolutionary search over a chain problem: for scores that do not add up, and as the baseline of the exact solver.

The population is a pair of integer arrays (output width and option of each decision); costs, limits and separable
scores are table look-ups for all children at once. Children are drawn in the parent process from one generator and
workers only evaluate, so a seed gives the same answer for any number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maenas.errors import OutputError
from maenas.files import write_text_atomically
from maenas.solver.problem import ChainProblem, Floats, Integers, Solution, Steps

Evaluate = Callable[[Sequence[Steps]], Sequence[float]]
"""Score of each path, for scores that do not add up."""

CHILDREN_PER_STEP = 1024
CHECKPOINT_EVERY = 50


@dataclass(frozen=True, slots=True)
class Settings:
    """How to evolve.

    Attributes:
        seed: Same seed, same answer.
        num_candidates: Children to draw in total (repeats and those over budget included).
        population: Paths kept.
        mutations: Decisions changed per child, drawn from 1 to this number.
    """

    seed: int = 0
    num_candidates: int = 200_000
    population: int = 256
    mutations: int = 3


@dataclass(slots=True)
class Population:
    """Paths with their objectives and costs, best first.

    Attributes:
        outs: (N, D) output width index of each decision.
        options: (N, D) option index of each decision.
        objective: (N,).
        cost: (M, N) total costs.
    """

    outs: Integers
    options: Integers
    objective: Floats
    cost: Floats

    def take(self, keep: Integers) -> Population:
        """Members at some indices, in that order."""
        return Population(self.outs[keep], self.options[keep], self.objective[keep], self.cost[:, keep])

    def path(self, index: int) -> Steps:
        """One member as a path."""
        pairs = zip(self.outs[index], self.options[index], strict=True)
        return tuple((int(out), int(option)) for out, option in pairs)


@dataclass(frozen=True, slots=True)
class Evolved:
    """Outcome of a run.

    Attributes:
        solutions: The final population, best first.
        candidates: Children drawn.
        evaluations: Children whose objective was computed (new, and within the limits).
        history: (candidates, best objective) after each improvement.
    """

    solutions: tuple[Solution, ...]
    candidates: int
    evaluations: int
    history: tuple[tuple[int, float], ...]


def evolve(
    problem: ChainProblem,
    start: Steps,
    settings: Settings,
    *,
    name: str = "",
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> Evolved:
    """Evolve from one allowed path.

    Args:
        problem: Decisions, costs and limits.
        start: A path within the limits.
        settings: Seed and sizes.
        name: Name of the score in `evaluate`; a checkpoint of another score is not resumed.
        evaluate: Score of paths, added to the problem's own gains; None takes the gains alone.
        checkpoint: File to resume from and to save to now and then; removed at the end.
        progress: Called with the children drawn so far and the best objective.
    """
    state = _State.begin(problem, start, settings, name, evaluate)
    if checkpoint is not None and checkpoint.exists():
        state.restore(checkpoint, problem)
    step = 0
    while state.candidates < settings.num_candidates:
        _step(problem, state, settings, evaluate)
        step += 1
        progress(state.candidates, float(state.population.objective[0]))
        if checkpoint is not None and step % CHECKPOINT_EVERY == 0:
            state.save(checkpoint)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    population = state.population
    solutions = tuple(
        Solution(
            float(population.objective[index]),
            tuple(float(cost) for cost in population.cost[:, index]),
            population.path(index),
        )
        for index in range(len(population.objective))
    )
    return Evolved(solutions, state.candidates, state.evaluations, tuple(state.history))


@dataclass(slots=True)
class _State:
    """Everything a run needs to go on; `question` is a fingerprint of the problem, the score and the settings."""

    population: Population
    rng: np.random.Generator
    seen: set[int]
    question: str
    candidates: int = 0
    evaluations: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def begin(
        cls, problem: ChainProblem, start: Steps, settings: Settings, name: str, evaluate: Evaluate | None
    ) -> _State:
        """The state of a run that has only its start."""
        outs = np.array([[out for out, _ in start]])
        options = np.array([[option for _, option in start]])
        population = _evaluated(problem, outs, options, evaluate)
        rng = np.random.default_rng(settings.seed)
        history = [(0, float(population.objective[0]))]
        return cls(population, rng, set(_keys(outs, options)), _fingerprint(problem, settings, name), 0, 1, history)

    def save(self, path: Path) -> None:
        """Write the state as JSON (no pickle)."""
        content = {
            "question": self.question,
            "outs": self.population.outs.tolist(),
            "options": self.population.options.tolist(),
            "objective": self.population.objective.tolist(),
            "cost": self.population.cost.tolist(),
            "rng": self.rng.bit_generator.state,
            "candidates": self.candidates,
            "evaluations": self.evaluations,
            "history": self.history,
            "seen": sorted(self.seen),
        }
        write_text_atomically(path, json.dumps(content))

    def restore(self, path: Path, problem: ChainProblem) -> None:
        """Go on from a saved state.

        Raises:
            OutputError: The file is not a checkpoint of this search.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["question"] != self.question:
                raise ValueError("it belongs to another search")
            self.population = _restored(content, problem)
            self.rng.bit_generator.state = content["rng"]
            self.candidates, self.evaluations = int(content["candidates"]), int(content["evaluations"])
            self.history = [(int(done), float(best)) for done, best in content["history"]]
            self.seen = {int(key) for key in content["seen"]}
            if not self.history:
                raise ValueError("history is empty")
        except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
            raise OutputError(f"{path}: cannot be resumed ({error}); remove it to start anew") from error


def _restored(content: dict[str, list[object]], problem: ChainProblem) -> Population:
    """The saved population, with every index and shape checked."""
    outs = np.array(content["outs"], dtype=np.int64)
    options = np.array(content["options"], dtype=np.int64)
    objective = np.array(content["objective"], dtype=np.float64)
    cost = np.array(content["cost"], dtype=np.float64)
    shape = (len(objective), len(problem.decisions))
    if not len(objective) or outs.shape != shape or options.shape != shape:
        raise ValueError(f"outs and options are {outs.shape} and {options.shape}; expected {shape}")
    if cost.shape != (len(problem.metrics), len(objective)):
        raise ValueError(f"cost is {cost.shape}; expected {(len(problem.metrics), len(objective))}")
    for index, decision in enumerate(problem.decisions):
        for name, genes, size in (
            ("outs", outs, len(decision.out_channels)),
            ("options", options, len(decision.layers)),
        ):
            if genes[:, index].min() < 0 or genes[:, index].max() >= size:
                raise ValueError(f"{name} of decision {index} leave 0 to {size - 1}")
    return Population(outs, options, objective, cost)


def _fingerprint(problem: ChainProblem, settings: Settings, name: str) -> str:
    """Twelve hex digits over everything that decides a run except its length."""
    digest = hashlib.sha256(f"{name} {settings.seed} {settings.population} {settings.mutations}".encode())
    arrays: list[Floats | Integers] = [problem.limits, problem.fixed_cost, problem.tail_cost, problem.tail_gain]
    for decision in problem.decisions:
        arrays += [decision.gain, decision.cost]
        arrays += [decision.out_channels, decision.hidden, decision.kernel, decision.depth, decision.layers]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(f"{problem.metrics} {problem.max_layers} {problem.tap}".encode())
    return digest.hexdigest()[:12]


def _keys(outs: Integers, options: Integers) -> list[int]:
    """A 64-bit hash of each member; for a million members a collision has odds below 1e-7."""
    genes = np.concatenate([outs, options], axis=1).astype(np.uint64)
    odd = np.random.default_rng(0).integers(1, 2**63, size=genes.shape[1], dtype=np.uint64)
    factors = np.asarray(odd * np.uint64(2) + np.uint64(1), dtype=np.uint64)
    mixed = (genes + np.uint64(1)) * factors
    mixed ^= mixed >> np.uint64(29)
    total: list[int] = (mixed * factors[::-1]).sum(axis=1, dtype=np.uint64).tolist()
    return total


def _step(problem: ChainProblem, state: _State, settings: Settings, evaluate: Evaluate | None) -> None:
    """Draw children, keep the new ones within the limits, rank and cut."""
    count = min(CHILDREN_PER_STEP, settings.num_candidates - state.candidates)
    outs, options = _children(problem, state, settings, count)
    state.candidates += count
    fresh = []
    for index, key in enumerate(_keys(outs, options)):
        if key not in state.seen:
            state.seen.add(key)
            fresh.append(index)
    outs, options = outs[fresh], options[fresh]
    allowed = _allowed(problem, outs, options)
    if not allowed.any():
        return
    children = _evaluated(problem, outs[allowed], options[allowed], evaluate)
    state.evaluations += int(allowed.sum())
    old = state.population
    merged = Population(
        np.concatenate([old.outs, children.outs]),
        np.concatenate([old.options, children.options]),
        np.concatenate([old.objective, children.objective]),
        np.concatenate([old.cost, children.cost], axis=1),
    )
    order = np.argsort(-merged.objective, kind="stable")[: settings.population]
    state.population = merged.take(order)
    best = float(state.population.objective[0])
    if best > state.history[-1][1]:
        state.history.append((state.candidates, best))


def _children(problem: ChainProblem, state: _State, settings: Settings, count: int) -> tuple[Integers, Integers]:
    """Mutated copies of random parents: each changed decision moves a little or is drawn anew."""
    rng, population = state.rng, state.population
    parents = rng.integers(len(population.objective), size=count)
    outs, options = population.outs[parents].copy(), population.options[parents].copy()
    num = len(problem.decisions)
    changes = rng.integers(1, settings.mutations + 1, size=count)
    for turn in range(settings.mutations):
        active = np.flatnonzero(changes > turn)
        place = rng.integers(num, size=len(active))
        kind = rng.random(len(active))
        near = rng.integers(-3, 4, size=(2, len(active)))
        draw = rng.random((2, len(active)))
        for index, decision in enumerate(problem.decisions):
            chosen = active[place == index]
            here = place == index
            for array, size, row in ((outs, len(decision.out_channels), 0), (options, len(decision.layers), 1)):
                moved = np.clip(array[chosen, index] + near[row, here], 0, size - 1)
                anew = (draw[row, here] * size).astype(np.int64)
                touch = (kind[here] < 0.7) if row == 0 else (kind[here] > 0.3)
                value = np.where(kind[here] % 0.1 < 0.05, moved, anew)
                array[chosen, index] = np.where(touch, value, array[chosen, index])
    return outs, options


def _came_in(outs: Integers) -> Integers:
    return np.concatenate([np.zeros((len(outs), 1), dtype=np.int64), outs[:, :-1]], axis=1)


def _third(problem: ChainProblem, outs: Integers) -> Integers:
    return outs[:, problem.tap] if problem.tap is not None else np.zeros(len(outs), dtype=np.int64)


def _totals(problem: ChainProblem, outs: Integers, options: Integers) -> tuple[Floats, Floats]:
    """(N,) sum of gains and (M, N) total costs."""
    came_in = _came_in(outs)
    gain = np.zeros(len(outs))
    cost = np.repeat(problem.fixed_cost[:, None], len(outs), axis=1)
    for index, decision in enumerate(problem.decisions):
        gain = gain + decision.gain[came_in[:, index], outs[:, index], options[:, index]]
        cost = cost + decision.cost[:, came_in[:, index], outs[:, index], options[:, index]]
    third = _third(problem, outs)
    gain = gain + problem.tail_gain[third, came_in[:, -1], outs[:, -1]]
    return gain, cost + problem.tail_cost[:, third, came_in[:, -1], outs[:, -1]]


def _allowed(problem: ChainProblem, outs: Integers, options: Integers) -> np.ndarray:
    """(N,) members within the space and all limits."""
    gain, cost = _totals(problem, outs, options)
    allowed = np.isfinite(gain) & (cost <= problem.limits[:, None]).all(axis=0)
    if problem.max_layers is not None:
        layers = sum(decision.layers[options[:, index]] for index, decision in enumerate(problem.decisions))
        allowed &= layers <= problem.max_layers
    result: np.ndarray = allowed
    return result


def _evaluated(problem: ChainProblem, outs: Integers, options: Integers, evaluate: Evaluate | None) -> Population:
    objective, cost = _totals(problem, outs, options)
    population = Population(outs, options, objective, cost)
    if evaluate is not None:
        paths = [population.path(index) for index in range(len(outs))]
        population.objective = objective + np.array(evaluate(paths), dtype=np.float64)
    return population
