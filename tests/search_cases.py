"""Small search spaces, made latency tables, and an enumeration of structures that shares no code with the search."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maenas.latency.predict import Prediction, predict
from maenas.latency.table import LatencyTable, OpLatency, load_table
from maenas.latency.table_rows import TableRow
from maenas.latency.table_write import write_table
from maenas.lowering.costs import activation_memory, num_flops, num_params
from maenas.lowering.detector import lower
from maenas.lowering.op import Op
from maenas.lowering.reference import lower_reference, reference_macs, reference_params
from maenas.resources import data_folder
from maenas.scores import Score
from maenas.solver.problem import ChainProblem, Steps
from maenas.structure import Backbone, Head, Neck, Stage, Stem, Structure

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
OFFICIAL = ROOT / "tests" / "fixtures" / "structures"

T4_LIKE = {
    "compute_tflop_s": 30.0,
    "memory_gb_s": 250.0,
    "launch_us": 3.0,
    "tile_penalty": 1.2,
    "pointwise_bytes": 0.3,
    "pointwise_launch": 0.3,
    "host_gb_s": 6.0,
}
CPU_LIKE = {"conv_ms": 0.02, "other_ms": 0.005, "ms_per_gflop": 1.5}


def has_table(name: str) -> bool:
    """Whether a shipped table exists in this checkout."""
    return (data_folder("latency_tables") / name / "table.json").is_file()


def made_table(
    folder: Path,
    *,
    kind: str = "t4-roofline",
    rows: Iterable[TableRow] = (),
    valid_range: dict[str, list[float]] | None = None,
    coefficients: dict[str, float] | None = None,
) -> LatencyTable:
    """A table written to `folder` (its last part is the name) and read back."""
    usual = {"t4-roofline": T4_LIKE, "cpu-linear": CPU_LIKE}.get(kind, {})
    header = {
        "aliases": [],
        "device": "made for a test",
        "device_detail": {},
        "backend": "none",
        "backend_version": None,
        "precision": "fp16",
        "batch": 1,
        "threads": None,
        "image_size": None,
        "provenance": "calibrated",
        "method": "made for a test",
        "date": "2024-01-01",
        "fixed_ms": 0.05,
        "fixed_sigma_ms": 0.01,
        "scale": 1.0,
        "uncertainty": {"relative": 0.1, "how": "made for a test"},
        "predictor": {
            "kind": kind,
            "coefficients": usual if coefficients is None else coefficients,
            "valid_range": valid_range or {},
        },
        "calibration": {},
        "sources": [],
        "license_note": "",
    }
    return load_table(write_table(folder, header, rows))


def rows_for(ops: Iterable[Op], ms: Any = lambda op: 1e-9 * float(op.macs) + 0.01) -> list[TableRow]:
    """One row per operator, in milliseconds by a formula of the operator, with a sigma of 5 %."""
    return [TableRow.of(op, ms=ms(op), sigma_ms=0.05 * ms(op), status="measured") for op in ops]


class Remembered:
    """A table that answers each operator once: the sums of `predict` stay the same and get fast."""

    def __init__(self, table: LatencyTable) -> None:
        self._table = table
        self._known: dict[tuple[object, ...], OpLatency] = {}
        self.name, self.fixed_ms, self.fixed_sigma_ms = table.name, table.fixed_ms, table.fixed_sigma_ms

    def op_latency(self, op: Op) -> OpLatency:
        key = (
            op.kind, op.in_channels, op.out_channels, op.in_size, op.out_size, op.kernel_size, op.stride, op.depthwise,
            op.activation, op.residual,
        )  # fmt: skip
        if key not in self._known:
            self._known[key] = self._table.op_latency(op)
        return self._known[key]


# Spaces as the content of their YAML files


def _range(low: int, high: int, step: int) -> dict[str, int]:
    return {"min": low, "max": high, "divisor": step}


_STEM = {"kind": "focus", "stride": 1, "kernel_size": 3, "out_channels": _range(8, 16, 8)}
_HEAD = {"num_classes": 4, "reg_max": 4, "kernel_size": 3}
_NECK = {"num_blocks": 1, "hidden_ratio": 0.5}
_COMMON: dict[str, Any] = {
    "schema_version": 1,
    "description": "made for a test",
    "activation": "relu",
    "stem": _STEM,
    "out_stages": [2, 3, 4],
    "variants": [{"name": "a", "neck": _NECK, "head": _HEAD}],
}


def _stage(out: object, hidden: object, depth: object, **others: object) -> dict[str, object]:
    return {"stride": 2, "out_channels": out, "hidden_channels": hidden, "depth": depth, **others}


_SPACES: dict[str, dict[str, Any]] = {
    "res": {
        "name": "tiny-res",
        "family": "res",
        "image_size": [64, 96],
        "stages": [
            _stage(_range(8, 16, 8), 8, 1),
            _stage(_range(16, 32, 16), _range(8, 24, 8), _range(1, 2, 1), min_hidden_ratio=0.5, max_hidden_ratio=1.0),
            _stage(_range(16, 48, 16), 16, _range(1, 3, 1), max_growth=2.0),
            _stage(_range(32, 64, 32), _range(16, 32, 16), 1, spp=True, max_hidden_ratio=0.5),
        ],
        "max_layers": 13,
    },
    "csp": {
        "name": "tiny-csp",
        "family": "csp",
        "activation": "silu",
        "image_size": [64, 64],
        "stages": [
            _stage(_range(16, 32, 16), 8, _range(0, 1, 1)),
            _stage(_range(16, 32, 16), _range(8, 16, 8), _range(0, 2, 1), max_growth=1.5),
            _stage(_range(32, 64, 32), 16, _range(1, 3, 2)),
            _stage(64, _range(16, 48, 16), _range(0, 1, 1), spp=True, min_hidden_ratio=0.3, max_hidden_ratio=0.6),
        ],
    },
    "mob": {
        "name": "tiny-mob",
        "family": "mob",
        "activation": "silu",
        "image_size": [96, 64],
        "stem": {"kind": "conv", "stride": 2, "kernel_size": 3, "out_channels": _range(8, 16, 8)},
        "stages": [
            _stage(8, 16, 1),
            _stage(_range(8, 16, 8), _range(24, 48, 24), 1, kernel_sizes=[3, 5]),
            _stage(_range(16, 24, 8), 64, _range(1, 2, 1), se=True),
            {**_stage(_range(16, 24, 8), 64, _range(1, 2, 1), kernel_sizes=[5]), "stride": 1},
            _stage(_range(32, 48, 16), 96, 1, spp=True, kernel_sizes=[3, 5]),
        ],
        "out_stages": [2, 4, 5],
        "variants": [{"name": "a", "neck": {**_NECK, "depthwise": True}, "head": {**_HEAD, "kernel_size": 1}}],
    },
    "kxkx": {
        "name": "tiny-kxkx",
        "family": "kxkx",
        "graph": "reference",
        "image_size": [64, 64],
        "stages": [
            _stage(_range(8, 16, 8), 8, 1),
            _stage(_range(16, 32, 16), _range(8, 16, 8), _range(1, 2, 1)),
            _stage(_range(16, 48, 16), 16, _range(1, 2, 1)),
            _stage(64, _range(16, 32, 16), 1),
        ],
    },
}


def content_of(family: str, **changes: object) -> dict[str, Any]:
    """A tiny space of a family as the content of its YAML file; a change replaces a top-level field."""
    content = copy.deepcopy(_COMMON | _SPACES[family])
    content["score_weights"] = [0, 0, 1, 1, 16]
    return content | copy.deepcopy(changes)


def write_space(folder: Path, content: dict[str, Any], name: str = "space.yaml") -> str:
    """The path of a YAML file with that content."""
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return str(path)


# All structures of a space, from its content alone


def _values(spec: int | dict[str, int]) -> list[int]:
    if isinstance(spec, int):
        return [spec]
    return [value for value in range(spec["min"], spec["max"] + 1) if value % spec.get("divisor", 1) == 0]


def _stages(spec: dict[str, Any], came_in: int, family: str) -> Iterator[Stage]:
    """Every allowed stage behind a width."""
    step = 1 if isinstance(spec["hidden_channels"], int) else spec["hidden_channels"].get("divisor", 1)
    fixed = {"se": spec.get("se", False), "spp": spec.get("spp", False)}
    for out in _values(spec["out_channels"]):
        if not spec.get("min_growth", 1.0) <= out / came_in <= spec.get("max_growth", 64.0):
            continue
        low = max(1, step * round(spec.get("min_hidden_ratio", 0.0) * out / step))
        high = max(step, step * round(spec.get("max_hidden_ratio", 64.0) * out / step))
        widths = [hidden for hidden in _values(spec["hidden_channels"]) if low <= hidden <= high]
        for kernel, depth in itertools.product(spec.get("kernel_sizes", [3]), _values(spec["depth"])):
            assert depth or family == "csp"
            for hidden in widths if depth else widths[:1]:
                yield Stage(out, (hidden,) * depth, spec["stride"], kernel, **fixed)


def _chains(stages: list[dict[str, Any]], came_in: int, family: str) -> Iterator[tuple[Stage, ...]]:
    if not stages:
        yield ()
        return
    for stage in _stages(stages[0], came_in, family):
        for rest in _chains(stages[1:], stage.out_channels, family):
            yield (stage, *rest)


def _num_layers(family: str, stages: tuple[Stage, ...]) -> int:
    """Main-path convolutions: the stem, and per family what the score counts."""
    units = sum(stage.depth for stage in stages)
    if family == "csp":  # down-sampler, and start and fuse around the units
        return 1 + sum(3 if stage.depth else 1 for stage in stages) + 2 * units
    return 1 + (3 if family == "mob" else 2) * units


def all_structures(content: dict[str, Any]) -> Iterator[Structure]:
    """Every structure of a space under its first variant."""
    family, stem = content["family"], content["stem"]
    variant = content["variants"][0]
    for width in _values(stem["out_channels"]):
        first = Stem(stem["kind"], 3, width, stem["kernel_size"], stem["stride"])
        for stages in _chains(content["stages"], width, family):
            if _num_layers(family, stages) > content.get("max_layers", 10_000):
                continue
            backbone = Backbone(family, content["activation"], first, stages, tuple(content["out_stages"]))
            neck = Neck(
                tuple(variant["neck"].get("out_channels") or backbone.out_channels),
                variant["neck"]["num_blocks"],
                variant["neck"]["hidden_ratio"],
                content["activation"],
                variant["neck"].get("depthwise", False),
            )
            yield Structure("made", tuple(content["image_size"]), backbone, neck, Head(**variant["head"]))


def penalty_of(content: dict[str, Any], structure: Structure) -> float:
    """Soft penalties of a structure, from the documented formula."""
    weights = content.get("regularisers", {})
    target = weights.get("hidden_target", 0.5)
    total, came_in = 0.0, structure.backbone.stem.out_channels
    for stage in structure.backbone.stages:
        total += weights.get("depth", 0.0) * stage.depth**2
        total += weights.get("growth", 0.0) * math.log(stage.out_channels / (stage.stride * came_in)) ** 2
        if stage.depth:
            ratio = stage.hidden_channels[0] / (target * stage.out_channels)
            total += weights.get("hidden", 0.0) * math.log(ratio) ** 2
        came_in = stage.out_channels
    return total


@dataclass(frozen=True)
class Judged:
    """A structure with all that a search looks at, computed from its own operators."""

    structure: Structure
    score: float
    objective: float
    prediction: Prediction
    params: int
    flops: int
    layers: int
    memory_bytes: int

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(stage.depth for stage in self.structure.backbone.stages)


def judge(
    content: dict[str, Any],
    structure: Structure,
    score: Score,
    table: LatencyTable | Remembered,
    scope: str = "detector",
) -> Judged:
    """Score and costs of a structure, through `lower` and `predict` only."""
    graph = content.get("graph", "deployed")
    reference = graph == "reference"
    ops = lower_reference(structure) if reference else lower(structure, scope=scope)
    convs = [op for op in ops if op.kind == "conv"] if reference else ops
    value = score(structure, graph=graph)
    return Judged(
        structure=structure,
        score=value,
        objective=value - penalty_of(content, structure),
        prediction=predict(convs, table),  # type: ignore[arg-type]
        params=int(reference_params(ops) if reference else num_params(ops)),
        flops=int(2 * reference_macs(ops) if reference else num_flops(ops)),
        layers=_num_layers(content["family"], structure.backbone.stages),
        memory_bytes=int(activation_memory(ops)),
    )


def all_judged(content: dict[str, Any], score: Score, table: LatencyTable, scope: str = "detector") -> list[Judged]:
    """Every structure of a space with its score and costs."""
    remembered = Remembered(table)
    return [judge(content, structure, score, remembered, scope) for structure in all_structures(content)]


# Paths of chain problems


def random_path(problem: ChainProblem, rng: np.random.Generator, *, tries: int = 10_000) -> Steps:
    """An allowed path, whatever it costs: each step is drawn from what the step before allows."""
    for _ in range(tries):
        path: list[tuple[int, int]] = []
        came_in, third, last_in, layers = 0, 0, 0, 0
        for index, decision in enumerate(problem.decisions):
            choices = np.argwhere(np.isfinite(decision.gain[came_in]))
            if not len(choices):
                break
            out, option = (int(value) for value in choices[rng.integers(len(choices))])
            path.append((out, option))
            layers += int(decision.layers[option])
            third = out if index == problem.tap else third
            last_in, came_in = came_in, out
        else:
            fits = problem.max_layers is None or layers <= problem.max_layers
            if fits and np.isfinite(problem.tail_gain[third, last_in, came_in]):
                return tuple(path)
    raise AssertionError(f"no allowed path in {tries} tries")


def renamed(structure: Structure, name: str = "made") -> Structure:
    """The same structure under another name."""
    return replace(structure, name=name)
