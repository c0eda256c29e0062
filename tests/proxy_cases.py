"""Shared by the tests of eval-proxy: small residual networks, made-up results, and a stand-in for training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from maenas.proxy_folder import Member
from maenas.proxy_runs import RunResult
from maenas.proxy_scores import ScoreValues
from maenas.structure import Backbone, Head, Neck, Stage, Stem, Structure


def network(*depths: int, width: int = 8) -> Structure:
    """A residual detector of four stages."""
    stages = tuple(Stage(width * (place + 1), (width,) * depth, 2, 3) for place, depth in enumerate(depths))
    backbone = Backbone("res", "relu", Stem("focus", 3, width, 3, 1), stages, (2, 3, 4))
    return Structure("made", (64, 64), backbone, Neck((8, 8, 8), 1, 0.5, "relu", False), Head(2, 4, 3))


NETWORKS = tuple(network(1, 1, 1, depth, width=width) for width in (8, 16) for depth in (1, 2, 3))
MEMBERS = tuple(Member("given", structure, predicted_ms=2.0 + place) for place, structure in enumerate(NETWORKS))


def results(aps: Sequence[Sequence[float]], members: Sequence[Member] = MEMBERS) -> dict[tuple[str, int], RunResult]:
    """Results of members and seeds from a table of APs."""
    return {
        (member.digest, seed): RunResult(ap, ap + 0.2, ap - 0.05, 2, 10, 30.0)
        for member, row in zip(members, aps, strict=True)
        for seed, ap in enumerate(row)
    }


def values(name: str, numbers: Sequence[float], members: Sequence[Member] = MEMBERS, reason: str = "") -> ScoreValues:
    """A score with given values."""
    digests = [member.digest for member in members]
    reasons = {digest: reason for digest, number in zip(digests, numbers, strict=True) if reason and number != number}
    return ScoreValues(name, dict(zip(digests, numbers, strict=True)), reasons)


def write_result(folder: Path, ap: float, *, ended_by: str = "completed") -> None:
    """What a training run leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["epoch,ap,ap50,ap75", f"1,{ap / 2},0.1,0.1", "2,,,", f"3,{ap},{ap + 0.1},{ap - 0.1}"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    content = {"ended_by": ended_by, "epochs": 3, "iterations": 12, "seconds": 4.5, "ap": ap}
    (folder / "result.json").write_text(json.dumps(content))
