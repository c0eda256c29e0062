"""Which network of ours stands for which row of the paper's tables, and what is known about that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maenas.latency.calibration_facts import read_networks
from maenas.lowering.detector import feature_sizes, lower
from maenas.lowering.head import lower_head
from maenas.lowering.op import Op
from maenas.published import load_published
from maenas.resources import data_folder
from maenas.structure import Structure


@dataclass(frozen=True)
class Reading:
    """What a row is taken for.

    Attributes:
        what: The network in words; empty where there is none.
        ops: Its deployed operators; empty where only counts are known, or nothing.
        ours: Lowered from a structure of ours, so that parameters and FLOPs have all their forms.
        fact: Name in the facts of the calibration, where its latency was fitted or set aside.
        note: Why it is taken so, or why there is none.
        chosen: Taken so because its latency fits, which therefore is no test.
    """

    what: str
    ops: tuple[Op, ...] = ()
    ours: bool = False
    fact: str = ""
    note: str = ""
    chosen: bool = False


def readings() -> dict[tuple[str, str], Reading]:
    """By table and row."""
    found = {**_backbones(), **_necks(), **_heads(), **_comparison()}
    # Table 2 repeats Table 1.
    return {**found, **{("2", row): found["1", row] for table, row in list(found) if table == "1"}}


def _structure(name: str, neck: Mapping[str, Any] | None = None, *, fact: str = "", note: str = "") -> Reading:
    """A published structure, with changes to its neck."""
    structure = load_published(name)
    changed = replace(structure, neck=replace(structure.neck, **(neck or {})))
    return Reading(_words(name, neck or {}), tuple(lower(changed)), ours=True, fact=fact, note=note)


def _words(name: str, changes: Mapping[str, Any]) -> str:
    return name + "".join(f", {field} {value}" for field, value in changes.items())


def _backbones() -> dict[tuple[str, str], Reading]:
    lost = Reading("", note="not rebuilt: its structure was not published")
    return {
        ("1", "S depth 25 CSP-Darknet"): Reading("", note="not rebuilt: its channels are not printed"),
        ("1", "S depth 25 MAE-Res"): _structure("damo-yolo-s", fact="DAMO-YOLO-S"),
        ("1", "S depth 25 MAE-CSP"): lost,
        ("1", "M depth 35 MAE-Res"): lost,
        ("1", "M depth 35 MAE-CSP"): _structure(
            "damo-yolo-m", fact="DAMO-YOLO-M", note="Table 9 prints 5.62 ms for the same network"
        ),
        ("2", "N depth 18 MAE-Mob"): _structure("damo-yolo-nm", fact="DAMO-YOLO-Nm"),
        ("2", "N depth 18 MAE-Res"): Reading(
            "public nano residual configuration",
            _facts()["damo-yolo-n-mae-res"],
            fact="DAMO-YOLO-N MAE-Res backbone",
            note="structure assumed, 4.04 GFLOPs; the paper prints neither parameters nor FLOPs",
        ),
    }


def _necks() -> dict[tuple[str, str], Reading]:
    guess = "not reproduced: 22 readings of equal widths give {}; shown is the one with equal outputs at ratio 1.0"
    return {
        ("3", "depth 2 width (192, 192, 192)"): _structure(
            "damo-yolo-s",
            {"num_blocks": 2, "hidden_ratio": 1.0, "out_channels": (192, 192, 192)},
            note=guess.format("29.3 to 46.2 GFLOPs, none 34.9"),
        ),
        ("3", "depth 2 width (128, 256, 512)"): _structure(
            "damo-yolo-s",
            {"num_blocks": 2, "hidden_ratio": 1.0},
            note="width is read as the hidden width of the blocks over node widths (128, 256, 512)",
        ),
        ("3", "depth 3 width (160, 160, 160)"): _structure(
            "damo-yolo-s",
            {"num_blocks": 3, "hidden_ratio": 1.0, "out_channels": (160, 160, 160)},
            note=guess.format("27.8 to 49.2 GFLOPs, 38.2 only by a reading that misses the other row"),
        ),
        ("3", "depth 3 width (96, 192, 384)"): _structure(
            "damo-yolo-s", fact="DAMO-YOLO-S", note="the released network"
        ),
        ("3", "depth 4 width (64, 128, 256)"): _structure(
            "damo-yolo-s",
            {"num_blocks": 4, "hidden_ratio": 0.5},
            fact="DAMO-YOLO-S neck depth 4 width (64 128 256)",
            note="same reading as depth 2 and 3; 0.07 GFLOPs low",
        ),
        ("4", "no extra edges"): _structure(
            "damo-yolo-s", {"extra_edges": "none"}, note="without the first fusion node; with it 36.0 GFLOPs"
        ),
        ("4", "up-sampling edges"): _structure(
            "damo-yolo-s",
            {"extra_edges": "up"},
            note="not established: the only one of 96 wirings that gives 37.7, and it has a redundant edge",
        ),
        ("4", "down-sampling edges"): _structure("damo-yolo-s", fact="DAMO-YOLO-S", note="the released network"),
        ("4", "both"): _structure(
            "damo-yolo-s",
            {"extra_edges": "both"},
            note="not reproduced: no wiring of 96 gives 42.8; wired as the two rows above",
        ),
        ("5", "Conv"): _structure(
            "damo-yolo-s",
            {"fusion": "conv"},
        ),
        ("5", "CSP"): _structure(
            "damo-yolo-s",
            {"fusion": "csp"},
        ),
        ("5", "CSP + Reparam"): _structure(
            "damo-yolo-s", {"fusion": "csp_reparam"}, note="branches are merged when deployed: the same graph as CSP"
        ),
        ("5", "CSP + Reparam + ELAN"): _structure("damo-yolo-s", fact="DAMO-YOLO-S", note="the released network"),
    }


def _heads() -> dict[tuple[str, str], Reading]:
    note = "inferred: towers as wide as the neck at their level, see above"
    rows = {
        "neck (1.0/0.50) head (1.0/1.0)": (2, 1),
        "neck (1.0/0.33) head (1.0/2.0)": (1, 2),
        "neck (1.0/0.0) head (1.0/3.0)": (0, 3),
    }
    return {
        ("6", "neck (1.0/1.0) head (1.0/0.0)"): _structure(
            "damo-yolo-s", fact="DAMO-YOLO-S", note="the released network"
        ),
        **{
            ("6", row): Reading(
                f"damo-yolo-s, num_blocks {blocks}, towers of {depth}",
                tuple(_towers(blocks, depth)),
                ours=True,
                note=note,
                chosen=True,
            )
            for row, (blocks, depth) in rows.items()
        },
    }


def _towers(num_blocks: int, tower_depth: int) -> list[Op]:
    """DAMO-YOLO-S with a shallower neck and towers whose width follows the level, which no structure file can say."""
    base = load_published("damo-yolo-s")
    structure = replace(
        base, neck=replace(base.neck, num_blocks=num_blocks), head=replace(base.head, tower_depth=tower_depth)
    )
    ops = [op for op in lower(structure) if op.stage != "head"]
    for level, width in enumerate(structure.neck.out_channels):
        ops += [op for op in _head(structure, width) if op.name.startswith(f"head.level{level}.")]
    return ops


def _head(structure: Structure, width: int) -> Sequence[Op]:
    head = replace(structure.head, tower_channels=width)
    return lower_head(head, structure.neck.out_channels, feature_sizes(structure), structure.neck.activation)


def _comparison() -> dict[tuple[str, str], Reading]:
    """Tables 9 and 10."""
    network = "operators of the project's own exported model"
    rows: dict[tuple[str, str], Reading] = {}
    names = {"YOLOX-T": "yolox-t", "YOLOX-S": "yolox-s", "YOLOX-L": "yolox-l", "YOLOv5-N": "yolov5-n",
             "YOLOv5-S": "yolov5-s", "YOLOv5-M": "yolov5-m", "YOLOv6-S": "yolov6-s", "YOLOv6-L*": "yolov6-l",
             "YOLOv7-T-silu": "yolov7-t-silu"}  # fmt: skip
    for row, name in names.items():
        fact = "YOLOv7-T-silu" if row == "YOLOv7-T-silu" else row.rstrip("*")
        rows["9", row] = Reading(network, _facts()[name], fact=fact)
    for row in ("YOLOX-M", "YOLOv5-L", "YOLOv6-M*", "YOLOv7", "PP-YOLOE-S", "PP-YOLOE-M", "PP-YOLOE-L"):
        rows["9", row] = Reading("", note="not rebuilt: no operator list")
    rows["9", "YOLOv6-T"] = Reading(
        "", note="not rebuilt: 36.7 GFLOPs in the paper, 24.7 in the released configuration"
    )
    for letter in "tsml":
        name = f"DAMO-YOLO-{letter.upper()}"
        rows["9", name] = rows["9", f"{name}*"] = _structure(f"damo-yolo-{letter}", fact=name)
    for row, name in {
        "NanoDet-Plus-m": "nanodet-plus-m",
        "NanoDet-Plus-m-1.5x": "nanodet-plus-m-1.5x",
        "YOLOv8-N": "yolov8-n",
    }.items():
        rows["10", row] = Reading(network, _facts()[name], fact=row)
    for size in ("XS", "S", "L"):
        rows["10", f"PicoDet-{size}"] = Reading("counts of operators only", fact=f"PicoDet-{size}")
    rows["10", "PicoDet-M"] = Reading("", note="not rebuilt: its convolutions were not counted")
    for name in ("Ns", "Nm", "Nl"):
        rows["10", f"DAMO-YOLO-{name}"] = _structure(f"damo-yolo-{name.lower()}", fact=f"DAMO-YOLO-{name}")
    rows["10", "DAMO-YOLO-Nm"] = replace(
        rows["10", "DAMO-YOLO-Nm"], note="2.14 M is an error or an older network: the project's own page says 2.71 M"
    )
    return rows


def _facts() -> dict[str, tuple[Op, ...]]:
    return read_networks(data_folder("latency_tables") / "facts")
